//! BOFT in PEFT's form (Liu et al. 2024): W′ = diag(s) · W · Qᵀ, Q a product of butterfly factors P · blockdiag(R) · Pᵀ, each R
//! the Cayley transform of S = (B − Bᵀ)/2: (1 − S)(1 + S)⁻¹. With one factor there is no permutation.
//!
//! Follows PEFT `tuners/boft/layer.py`; s scales the weight only, as in its merge.

use std::ops::Range;
use std::sync::Arc;

use super::form::{Formed, Formula, General, sizes, values, weight};
use super::{cayley, oft};
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::{Error, Result};

/// BOFT.
pub static KIND: Kind = Kind::of_peft("BOFT", &["BOFT"], &["boft"], gather);

fn gather(parts: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(stored) = parts.take_part("boft_R") else { return Ok(None) };
    let scales = parts.require_part("boft_s", &stored)?;
    let [factors, count, b, columns] = sizes::<4>(&stored)?;
    agree(&stored, "the block", columns, b)?;
    if factors > 1 {
        let what = format!("BOFT with {factors} butterfly factors (tensor `{}`) is not merged yet", stored.info.name);
        return Err(Error::unsupported(stored.path(), what).hint("merge it with PEFT"));
    }
    let outputs = scales.elements();
    let tensors = vec![("boft_R", stored.clone()), ("boft_s", scales.clone())];
    let make = move |target: &Target| {
        if count * b != target.inputs {
            return Err(wrong(&stored, format!("has {count} blocks of {b}, the layer {} inputs", target.inputs)));
        }
        agree(&scales, "the number of outputs", outputs, target.outputs)?;
        let block = |block: &[f32]| {
            let skew: Vec<f64> =
                (0..b * b).map(|at| 0.5 * (f64::from(block[at]) - f64::from(block[at % b * b + at / b]))).collect();
            cayley::exact(&skew, b)
        };
        let blocks = values(&stored)?.chunks_exact(b * b).map(block).collect();
        Ok(vec![weight(Formed(Butterfly { inputs: target.inputs, b, blocks, scales: values(&scales)? }))])
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make).shaped(outputs as u64, (count * b) as u64))))
}

struct Butterfly {
    inputs: usize,
    b: usize,
    blocks: Vec<Vec<f64>>,
    scales: Vec<f32>,
}

impl Formula for Butterfly {
    fn shape(&self) -> (usize, usize) {
        (self.scales.len(), self.inputs)
    }

    fn grain(&self) -> (usize, usize) {
        (1, self.b)
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let lines = base.chunks_exact(cols.len()).zip(out.chunks_exact_mut(cols.len()));
        for (row, (old, new)) in rows.zip(lines) {
            for (at, (old, new)) in old.chunks_exact(self.b).zip(new.chunks_exact_mut(self.b)).enumerate() {
                oft::rotate(&self.blocks[cols.start / self.b + at], old, new);
                new.iter_mut().for_each(|value| *value *= self.scales[row]);
            }
        }
        Ok(())
    }
}
