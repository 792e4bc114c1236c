//! The size below which a singular value of ΔW can be the rounding of its factors.
//!
//! Factors that were rounded to their dtype are B + δB and A + δA with errors as if at random (`tensor::rounding_variance`). To
//! first order ΔW is off by s·(δB·A + B·δA), and a random matrix `[m, r]` of variance v has norm √v·(√m + √r) at most (the edge of
//! Marchenko and Pastur's law). So no singular value is moved by more than s·(‖δB‖·‖A‖ + ‖B‖·‖δA‖) by Weyl's inequality,
//! and what is smaller than that may be nothing else.

use crate::error::Result;
use crate::linalg::LowRank;
use crate::placement::terms::Slot;
use crate::tensor::{Float, rounding_variance};

/// The floor of `slot`; of a stack that of its experts together.
///
/// # Errors
/// When factors cannot be read.
pub fn floor(slot: &Slot) -> Result<f64> {
    let mut squared = 0.0;
    for expert in 0..slot.experts() {
        let products = slot.products(expert, |share| share.factor())?;
        for (share, product) in slot.shares.iter().zip(&products) {
            // What was computed is rounded to f32.
            let float = share.float.unwrap_or(Float::F32);
            let (up, down, rank) = (product.up(), product.down(), product.rank());
            let of_up = spread(&up, rank, float) * spectral(&down, rank)?;
            let of_down = spread(&down, rank, float) * spectral(&transposed(&up, rank), rank)?;
            squared += (product.scale() * (of_up + of_down)).powi(2);
        }
    }
    Ok(squared.sqrt())
}

/// ‖δ‖ of a matrix with one side `rank`.
fn spread(values: &[f32], rank: usize, float: Float) -> f64 {
    let count = values.len() as f64;
    let other = count / rank.max(1) as f64;
    (rounding_variance(float, values) / count.max(1.0)).sqrt() * (other.sqrt() + (rank as f64).sqrt())
}

/// The largest singular value of `[rank, n]`.
fn spectral(values: &[f32], rank: usize) -> Result<f64> {
    let mut identity = vec![0.0; rank * rank];
    identity.iter_mut().step_by(rank + 1).for_each(|value| *value = 1.0);
    let found = LowRank::from_rows(identity, values.to_vec(), rank, 1.0).decompose()?;
    Ok(found.values().first().copied().unwrap_or(0.0))
}

/// `[n, rank]` as `[rank, n]`.
fn transposed(values: &[f32], rank: usize) -> Vec<f32> {
    (0..rank).flat_map(|col| values.iter().skip(col).step_by(rank)).copied().collect()
}
