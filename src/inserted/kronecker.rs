//! Compacter's layers as plain ones: the weight of a PHM layer is Σᵢ ruleᵢ ⊗ Wᵢ, `[in, out]` (Mahabadi et al. 2021; adapters 1.3
//! `methods/modeling.py`).

use super::bottleneck::{Layer, Parts, values};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::usize_of;

/// Numbers in three dimensions.
struct Cube {
    sizes: [usize; 3],
    values: Vec<f32>,
}

impl Cube {
    fn of(stored: &Stored) -> Result<Self> {
        let values = values(stored)?;
        let sizes: Vec<usize> = stored.info.shape.as_slice().iter().map(|size| usize_of(*size)).collect();
        let wrong = |_| {
            let problem = format!("is {}, and three dimensions belong there", stored.info.shape);
            Error::malformed(stored.path(), format!("tensor `{}`", stored.info.name), problem)
        };
        Ok(Self { sizes: sizes.try_into().map_err(wrong)?, values })
    }

    /// The products of the matrices of `self` and `right`.
    fn times(&self, right: &Self) -> Option<Self> {
        let ([count, rows, inner], [others, same, cols]) = (self.sizes, right.sizes);
        if count != others || inner != same {
            return None;
        }
        let mut product = Vec::with_capacity(count * rows * cols);
        for at in 0..count {
            for row in 0..rows {
                for col in 0..cols {
                    let left = &self.values[(at * rows + row) * inner..][..inner];
                    let column = right.values[at * inner * cols + col..].iter().step_by(cols);
                    product.push(left.iter().zip(column).map(|(l, r)| l * r).sum());
                }
            }
        }
        Some(Self { sizes: [count, rows, cols], values: product })
    }
}

/// The weight `[out, in]` and the bias of the layer `layer` (`adapter_down.0`, `adapter_up`) of a Compacter.
///
/// # Errors
/// When a tensor is missing, or they do not fit each other.
pub fn plain(parts: &Parts<'_>, layer: &str, position: &str) -> Result<Layer> {
    let rule = cube(parts, &[(layer, "phm_rule"), ("", "phm_rule")])?;
    let shared = format!("W_{position}");
    let weight = cube(parts, &[(layer, "W"), ("", &shared)])?;
    let ([count, up, down], [others, rows, cols]) = (rule.sizes, weight.sizes);
    if count != others {
        let problem = format!("`{layer}` has {count} rules and {others} weights");
        return Err(Error::malformed(parts.path(), parts.place.to_owned(), problem));
    }
    let (inputs, outputs) = (up * rows, down * cols);
    let mut plain = vec![0.0_f32; outputs * inputs];
    for at in 0..count {
        for (a, b) in (0..up).flat_map(|a| (0..down).map(move |b| (a, b))) {
            let factor = rule.values[(at * up + a) * down + b];
            for (p, q) in (0..rows).flat_map(|p| (0..cols).map(move |q| (p, q))) {
                plain[(b * cols + q) * inputs + a * rows + p] += factor * weight.values[(at * rows + p) * cols + q];
            }
        }
    }
    let bias = parts.find(&format!("{layer}.b")).map(values).transpose()?;
    Ok((plain, [outputs, inputs], bias))
}

/// The matrices of one of these names: layer, or nothing for what all layers share, and the name. Stored as they are, or as the
/// products of `_left` and `_right`.
fn cube(parts: &Parts<'_>, names: &[(&str, &str)]) -> Result<Cube> {
    for (layer, name) in names {
        let find = |end: &str| match layer.is_empty() {
            true => parts.shared(&format!("{name}{end}")),
            false => parts.find(&format!("{layer}.{name}{end}")),
        };
        if let Some(whole) = find("") {
            return Cube::of(whole);
        }
        if let (Some(left), Some(right)) = (find("_left"), find("_right")) {
            return Cube::of(left)?.times(&Cube::of(right)?).ok_or_else(|| {
                let problem =
                    format!("is {}, which does not fit `{}` {}", left.info.shape, right.info.name, right.info.shape);
                Error::malformed(left.path(), format!("tensor `{}`", left.info.name), problem)
            });
        }
    }
    let wanted = names[0].1;
    Err(Error::malformed(parts.path(), parts.place.to_owned(), format!("`{wanted}` of its layers is missing")))
}
