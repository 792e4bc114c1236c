//! IA³ (Liu et al. 2022): W′ = diag(l) · W and b′ = l ∘ b; of a feed-forward module, whose inputs are scaled, W′ = W · diag(l).
//!
//! Follows PEFT `tuners/ia3/layer.py`: `[1, in]` is a feed-forward module's, `[out, 1]` any other's; of a convolution
//! `[1, c, 1, 1]` the config's `feedforward_modules` decides.

use std::ops::Range;
use std::sync::Arc;

use super::form::{Formed, Formula, General, bias, values, weight};
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;

/// IA³.
pub static KIND: Kind = Kind::of_peft("IA³", &["IA3"], &["ia3"], gather);

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(stored) = parts.take_part("ia3_l") else { return Ok(None) };
    let inward = match stored.info.shape.as_slice() {
        [1, inputs] if *inputs > 1 => true,
        [outputs, 1] if *outputs > 1 => false,
        [1, 1] | [1, _, 1, ..] => context.config.fields().names("feedforward_modules", &parts.path)?,
        _ => return Err(wrong(&stored, format!("must be a vector, has shape {}", stored.info.shape))),
    };
    let tensors = vec![("ia3_l", stored.clone())];
    let make = move |target: &Target| {
        let factors = values(&stored)?;
        let spots: usize = target.kernel.iter().product();
        let wanted = if inward { target.inputs / spots.max(1) } else { target.outputs };
        agree(&stored, if inward { "the number of inputs" } else { "the number of outputs" }, factors.len(), wanted)?;
        let shape = (target.outputs, target.inputs);
        let mut changes = Vec::new();
        if target.bias && !inward {
            let one = Scaled { shape: (1, target.outputs), factors: factors.clone(), by_columns: Some(1) };
            changes.push(bias(Formed(one)));
        }
        let by_columns = inward.then_some(spots.max(1));
        changes.push(weight(Formed(Scaled { shape, factors, by_columns })));
        Ok(changes)
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make))))
}

struct Scaled {
    shape: (usize, usize),
    factors: Vec<f32>,
    /// So many columns share a factor; none if each row has its own.
    by_columns: Option<usize>,
}

impl Formula for Scaled {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let width = cols.len().max(1);
        let lines = out.chunks_exact_mut(width).zip(base.chunks_exact(width));
        for (row, (new, old)) in rows.zip(lines) {
            for (at, (new, old)) in new.iter_mut().zip(old).enumerate() {
                *new = old * self.factors[self.by_columns.map_or(row, |shared| (cols.start + at) / shared)];
            }
        }
        Ok(())
    }
}
