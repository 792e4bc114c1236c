//! OFT in PEFT's form (Qiu et al. 2023, 2025): W′ = W · blockdiag(R)ᵀ, each R of b × b the Cayley transform of a skew Q whose
//! upper triangle is stored; by default PEFT's Neumann series, else (1 − Q)(1 + Q)⁻¹. COFT first shortens Q to ε / √blocks.
//!
//! Follows PEFT `tuners/oft/layer.py`. Of a convolution the inputs are flattened with the kernel, as PEFT's merge has them.

use std::ops::Range;
use std::sync::Arc;

use super::cayley;
use super::form::{Formed, Formula, General, sizes, values, weight};
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, wrong};
use crate::error::Result;

/// OFT.
pub static KIND: Kind = Kind {
    on_embedding: Some("is an embedding, on which OFT is another function; it is not merged"),
    on_convolution: Some(
        "is a convolution: PEFT's merge of OFT, which is followed, is not what its layer computed in training",
    ),
    ..Kind::of_peft("OFT", &["OFT"], &["oft"], gather)
};

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(stored) = parts.take_part("oft_R") else { return Ok(None) };
    let [count, entries] = sizes::<2>(&stored)?;
    let b = (1..=entries + 1).take_while(|b| b * (b - 1) / 2 <= entries).last().unwrap_or(1);
    if b * (b - 1) / 2 != entries {
        return Err(wrong(&stored, format!("has rows of {entries} entries, which are no triangle of a block")));
    }
    let fields = context.config.fields();
    let neumann = fields.flag_or("use_cayley_neumann", true)?;
    let terms = fields.number("num_cayley_neumann_terms")?.unwrap_or(5.0) as usize;
    let eps = fields.number("eps")?.unwrap_or(6e-5);
    let eps = fields.flag("coft")?.then_some(eps / (count as f64).sqrt());
    let share = fields.flag_or("block_share", count == 1)?;
    let tensors = vec![("oft_R", stored.clone())];
    let make = move |target: &Target| {
        if !target.inputs.is_multiple_of(b) || (count * b != target.inputs && !(share && count == 1)) {
            let problem = format!("has {count} blocks of {b}, the layer {} inputs", target.inputs);
            return Err(wrong(&stored, problem));
        }
        let mut blocks = Vec::with_capacity(count);
        for row in values(&stored)?.chunks_exact(entries) {
            let mut skew = vec![0.0; b * b];
            let upper = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
            for ((i, j), value) in upper.zip(row) {
                skew[i * b + j] = f64::from(*value);
                skew[j * b + i] = -f64::from(*value);
            }
            if let Some(eps) = eps {
                let norm = skew.iter().map(|value| value * value).sum::<f64>().sqrt();
                if norm > eps {
                    skew.iter_mut().for_each(|value| *value *= eps / norm);
                }
            }
            blocks.push(if neumann { cayley::neumann(&skew, b, terms) } else { cayley::exact(&skew, b) });
        }
        Ok(vec![weight(Formed(Rotated { shape: (target.outputs, target.inputs), b, blocks }))])
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make))))
}

struct Rotated {
    shape: (usize, usize),
    b: usize,
    blocks: Vec<Vec<f64>>,
}

impl Formula for Rotated {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn grain(&self) -> (usize, usize) {
        (1, self.b)
    }

    fn compute(&self, _: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        for (old, new) in base.chunks_exact(cols.len()).zip(out.chunks_exact_mut(cols.len())) {
            let parts = old.chunks_exact(self.b).zip(new.chunks_exact_mut(self.b));
            for (at, (old, new)) in parts.enumerate() {
                let block = &self.blocks[(cols.start / self.b + at) % self.blocks.len()];
                rotate(block, old, new);
            }
        }
        Ok(())
    }
}

/// R · old.
pub(super) fn rotate(block: &[f64], old: &[f32], new: &mut [f32]) {
    for (line, new) in block.chunks_exact(old.len()).zip(new) {
        *new = line.iter().zip(old).map(|(r, value)| r * f64::from(*value)).sum::<f64>() as f32;
    }
}
