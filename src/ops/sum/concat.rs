//! Σ wᵢ·sᵢ·Bᵢ·Aᵢ as one product: A = [f₁A₁; f₂A₂; …], B = [g₁B₁, g₂B₂, …] with fᵢ·gᵢ = wᵢ·sᵢ over the scale of the result.
//!
//! Exact but for one rounding of the numbers in fᵢ·Aᵢ to f32, and none where wᵢ·sᵢ is a power of two. Rows are computed from the
//! files as they are written. In a stack of experts A holds expert after expert, and B has the expert running fastest.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::fold::{Fold, holds};
use crate::adapters::Factor;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::pairs::range::beyond;
use crate::pairs::{Bytes, NewPair};
use crate::placement::terms::{Share, Slot};
use crate::plan::Compute;
use crate::tensor::{Beyond, Float};

/// Elements that are looked at at once.
const LOOKED_AT: usize = 1 << 18;

/// A block of the result: a matrix and the number in front of it.
#[derive(Debug, Clone)]
struct Block {
    factor: Factor,
    times: f64,
    rank: usize,
    /// Whose it is, for messages.
    of: (PathBuf, String),
}

/// The sum over the shares of `slot` with the α `alpha`; `inputs` are the adapters. Without `dtype` the factors keep the dtype of the inputs
/// where that changes nothing, and are f32 otherwise. With the pair its dtype, and whether no number was rounded.
///
/// # Errors
/// When factors cannot be read.
pub fn concatenate(
    slot: &Slot,
    alpha: f64,
    dtype: Option<Float>,
    inputs: &[(PathBuf, f64)],
) -> Result<(NewPair, Float, bool)> {
    let rank: usize = slot.shares.iter().map(|share| share.rank).sum();
    let scale = alpha / rank as f64;
    let folds: Vec<Fold> = slot.shares.iter().map(|share| Fold::of(share.factor() / scale)).collect();
    let (float, exact) = match (dtype, slot.common_float()) {
        (Some(float), _) => (float, keeps(slot, &folds, float)?),
        (None, Some(float)) if keeps(slot, &folds, float)? => (float, true),
        (None, _) => (Float::F32, keeps(slot, &folds, Float::F32)?),
    };
    // Factors that no file holds were computed, and rounded to f32 then.
    let exact = exact && slot.shares.iter().all(|share| share.stored.is_some());
    let up_bias = bias(slot, scale, Some(float))?;
    if let ([share], [Fold { up: 1.0, down: 1.0 }], true) = (slot.shares.as_slice(), folds.as_slice(), exact)
        && let Some((down, up)) = share.stored.clone()
    {
        return Ok((slot.pair(rank, alpha, Bytes::Stored(down), Bytes::Stored(up), up_bias), float, exact));
    }
    let block = |share: &Share, is_down: bool, factor: &Factor, times: f64| {
        let stored = share.stored.as_ref().map(|(down, up)| if is_down { down } else { up });
        let computed = || (inputs.get(share.source).map(|(path, _)| path.clone()).unwrap_or_default(), slot.name());
        let of = stored.map_or_else(computed, |stored| (stored.path().to_path_buf(), stored.info.name.clone()));
        Block { factor: factor.clone(), times, rank: share.rank, of }
    };
    let shares = || slot.shares.iter().zip(&folds);
    let down: Vec<Block> = shares().map(|(share, fold)| block(share, true, &share.term.down, fold.down)).collect();
    let up: Vec<Block> = shares().map(|(share, fold)| block(share, false, &share.term.up, fold.up)).collect();
    let computed = |compute: Arc<dyn Compute>, blocks: &[Block]| {
        let numbers = blocks.iter().map(|block| (block.factor.shape().0 * block.factor.shape().1) as u64);
        Bytes::Computed { compute, float, count: numbers.sum::<u64>() * float.bytes() as u64 }
    };
    let beneath: Arc<dyn Compute> = Arc::new(Beneath { blocks: down.clone(), rank, float });
    let beside: Arc<dyn Compute> = Arc::new(Beside { blocks: up.clone(), float });
    let (down, up) = (computed(beneath, &down), computed(beside, &up));
    Ok((slot.pair(rank, alpha, down, up, up_bias), float, exact))
}

/// Σ wᵢ·sᵢ·bᵢ over the biases of B, divided by `scale`, as `float`; where that is open a single bias stays what it is.
///
/// # Errors
/// When a bias cannot be read.
pub fn bias(slot: &Slot, scale: f64, float: Option<Float>) -> Result<Option<Bytes>> {
    let mut sum: Vec<f64> = Vec::new();
    let mut first: Option<&Stored> = None;
    for share in &slot.shares {
        let Some(bias) = &share.bias else { continue };
        first = first.or(Some(bias));
        let values = Factor::new(bias)?.to_vec()?;
        sum.resize(values.len(), 0.0);
        let factor = share.factor() / scale;
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * f64::from(value));
    }
    let Some(first) = first else { return Ok(None) };
    // A bias is added once for every output: it costs nothing to keep what narrower types would round.
    let float = float.or(first.info.dtype.float()).filter(|_| slot.shares.len() == 1).unwrap_or(Float::F32);
    let sum: Vec<f32> = sum.iter().map(|value| *value as f32).collect();
    Bytes::held(&sum, float, (first.path(), &first.info.name)).map(Some)
}

/// Whether `float` holds the folded factors as they are.
fn keeps(slot: &Slot, folds: &[Fold], float: Float) -> Result<bool> {
    for (share, fold) in slot.shares.iter().zip(folds) {
        // What is read as f32 is all of it, unless it was wider.
        let Some(own) = share.float.filter(|own| *own != Float::F64) else { return Ok(false) };
        let wide = own == float || float == Float::F32;
        let kept = fold.is_power_of_two()
            && (wide || all_held(&share.term.down, float, 1.0)?)
            && (wide && fold.up == 1.0 || all_held(&share.term.up, float, fold.up)?);
        if !kept {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether `float` holds every element times `times`.
fn all_held(factor: &Factor, float: Float, times: f64) -> Result<bool> {
    let (rows, cols) = factor.shape();
    let step = (LOOKED_AT / cols.max(1)).max(1);
    let mut band = Vec::new();
    for first in (0..rows).step_by(step) {
        let rows = first..rows.min(first + step);
        band.resize(rows.len() * cols, 0.0);
        factor.decode(rows, 0..cols, &mut band)?;
        if !holds(float, &band, times) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Block {
    /// The refusal of a value among those from element `first` on.
    fn refuse(&self, first: usize, found: &Beyond) -> Error {
        beyond(&self.of.0, &self.of.1, first, found)
    }
}

/// Matrices one beneath the other; in a stack expert after expert.
struct Beneath {
    blocks: Vec<Block>,
    /// Rows of one expert.
    rank: usize,
    float: Float,
}

impl Compute for Beneath {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let width = out.len() / rows.len().max(1);
        let cols = width / self.float.bytes();
        let mut line = vec![0.0; cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(width.max(1))) {
            let (expert, mut within) = (row / self.rank, row % self.rank);
            let mut block = self.blocks.iter();
            let block = loop {
                let block = block.next().expect("the ranks of the blocks add up to the rank");
                if within < block.rank {
                    break block;
                }
                within -= block.rank;
            };
            let from = expert * block.rank + within;
            block.factor.decode(from..from + 1, 0..cols, &mut line)?;
            scale(&mut line, block.times);
            self.float.encode_finite(&line, out).map_err(|found| block.refuse(from * cols, &found))?;
        }
        Ok(())
    }
}

/// Matrices side by side.
struct Beside {
    blocks: Vec<Block>,
    float: Float,
}

impl Compute for Beside {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let width = out.len() / rows.len().max(1);
        let mut offset = 0;
        let mut band = Vec::new();
        for block in &self.blocks {
            let cols = block.factor.shape().1;
            band.resize(rows.len() * cols, 0.0);
            block.factor.decode(rows.clone(), 0..cols, &mut band)?;
            scale(&mut band, block.times);
            let bytes = cols * self.float.bytes();
            let lines = band.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(width.max(1)));
            for (row, (line, out)) in rows.clone().zip(lines) {
                let outcome = self.float.encode_finite(line, &mut out[offset..offset + bytes]);
                outcome.map_err(|found| block.refuse(row * cols, &found))?;
            }
            offset += bytes;
        }
        Ok(())
    }
}

fn scale(values: &mut [f32], times: f64) {
    if times != 1.0 {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) * times) as f32);
    }
}
