//! Convolutions in Tucker form: a core `[r, q, kh, kw]` between an up `[out, r]` and a down `[q, in]`.
//! ΔW[o, i, x] = Σₘₙ core[m, n, x] · up[o, m] · down[n, i]: with the core folded into the down side it is a plain product.

use super::named::room;
use crate::adapters::factor::Factor;
use crate::adapters::parts::wrong;
use crate::error::Result;
use crate::formats::Stored;

/// The down side of a product, perhaps with a core that is to be folded into it.
#[derive(Debug)]
pub struct Down {
    factor: Factor,
    core: Option<Stored>,
}

impl Down {
    /// `factor` is `[q, in]` with a core, `[r, in]` without one.
    ///
    /// # Errors
    /// When the core has no kernel, or another rank than `factor`.
    pub fn new(factor: Factor, core: Option<&Stored>) -> Result<Self> {
        if let Some(core) = core {
            let (shape, inner) = (core.info.shape.as_slice(), factor.shape().0);
            if shape.len() < 3 || shape[1] != inner as u64 {
                let shape = &core.info.shape;
                let problem = format!("has shape {shape}, a core beside a down side of rank {inner} was expected");
                return Err(wrong(core, problem));
            }
        }
        Ok(Self { factor, core: core.cloned() })
    }

    /// r, and inputs times the positions of the kernel.
    pub fn shape(&self) -> (usize, usize) {
        let (inner, inputs) = self.factor.shape();
        let Some(core) = &self.core else { return (inner, inputs) };
        let (rank, width) = core.rows_cols();
        (rank, inputs.saturating_mul(width / inner.max(1)))
    }

    /// Σₙ core[m, n, x] · down[n, i] at (m, i · kernel + x).
    ///
    /// # Errors
    /// When a tensor cannot be read, or the product is out of all measure.
    pub fn folded(self) -> Result<Factor> {
        let (rank, width) = self.shape();
        let Self { factor: down, core: Some(core) } = self else { return Ok(self.factor) };
        let (inner, inputs) = down.shape();
        let mut folded = vec![0.0_f32; room(&core, &[rank, width])?];
        let positions = width / inputs.max(1);
        let (core, down) = (Factor::new(&core)?.to_vec()?, down.to_vec()?);
        for (row, line) in folded.chunks_exact_mut(width.max(1)).enumerate() {
            for at in 0..inner {
                let kernel = &core[(row * inner + at) * positions..][..positions];
                let factors = &down[at * inputs..][..inputs];
                for (spots, factor) in line.chunks_exact_mut(positions.max(1)).zip(factors) {
                    spots.iter_mut().zip(kernel).for_each(|(sum, value)| *sum = value.mul_add(*factor, *sum));
                }
            }
        }
        Ok(Factor::held(folded, width))
    }
}
