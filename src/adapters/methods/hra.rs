//! HRA (Yuan et al. 2024): W′ = W · R, R = Π (1 − 2 uᵢuᵢᵀ) over the normalised columns of U; with `apply_GS` the columns are made
//! orthogonal first, so that R = 1 − 2 UUᵀ.
//!
//! Follows PEFT `tuners/hra/layer.py`. Reflections are applied to each row of W in f64. The columns are made orthogonal in f32, step
//! by step as PEFT does: trained columns are often nearly parallel, and then its roundings decide where they point.

use std::ops::Range;
use std::sync::Arc;

use super::form::{Formed, Formula, General, values, weight};
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;

/// HRA.
pub static KIND: Kind = Kind::of_peft("HRA", &["HRA"], &["hra"], gather);

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(stored) = parts.take_part("hra_u") else { return Ok(None) };
    let orthogonal = context.config.fields().flag("apply_GS")?;
    let (inputs, rank) = stored.rows_cols();
    let tensors = vec![("hra_u", stored.clone())];
    let make = move |target: &Target| {
        agree(&stored, "the number of inputs", inputs, target.inputs)?;
        let all = values(&stored)?;
        let mut mirrors: Vec<Vec<f64>> = Vec::new();
        for k in 0..rank {
            let mut u: Vec<f64> = all.iter().skip(k).step_by(rank).map(|value| f64::from(*value)).collect();
            for other in mirrors.iter().filter(|_| orthogonal) {
                let along = narrow_dot(other, &u);
                u.iter_mut()
                    .zip(other)
                    .for_each(|(value, other)| *value = f64::from(*value as f32 - along * *other as f32));
            }
            let norm = if orthogonal { f64::from(narrow_dot(&u, &u).sqrt()) } else { dot(&u, &u).sqrt() };
            if norm == 0.0 || !norm.is_finite() {
                return Err(wrong(&stored, format!("column {k} has norm {norm} and gives no direction")));
            }
            u.iter_mut().for_each(|value| *value /= norm);
            if orthogonal {
                u.iter_mut().for_each(|value| *value = f64::from(*value as f32));
            }
            mirrors.push(u);
        }
        Ok(vec![weight(Formed(Reflected { outputs: target.outputs, inputs, mirrors, together: orthogonal }))])
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make).ranked(rank as u64, None))))
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(l, r)| l * r).sum()
}

/// One f32 sum, element after element, fused multiply and add.
fn narrow_dot(left: &[f64], right: &[f64]) -> f32 {
    left.iter().zip(right).fold(0.0, |sum, (l, r)| (*l as f32).mul_add(*r as f32, sum))
}

struct Reflected {
    outputs: usize,
    inputs: usize,
    mirrors: Vec<Vec<f64>>,
    /// R = 1 − 2 UUᵀ as it stands, whether or not the columns are orthogonal to the last bit.
    together: bool,
}

impl Formula for Reflected {
    fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    fn grain(&self) -> (usize, usize) {
        (1, self.inputs)
    }

    fn compute(&self, _: Range<usize>, _: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        for (old, new) in base.chunks_exact(self.inputs).zip(out.chunks_exact_mut(self.inputs)) {
            let mut line: Vec<f64> = old.iter().map(|value| f64::from(*value)).collect();
            let first = line.clone();
            for mirror in &self.mirrors {
                let along = 2.0 * dot(mirror, if self.together { &first } else { &line });
                line.iter_mut().zip(mirror).for_each(|(value, mirror)| *value -= along * mirror);
            }
            new.iter_mut().zip(line).for_each(|(new, value)| *new = value as f32);
        }
        Ok(())
    }
}
