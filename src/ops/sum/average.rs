//! `factor-average`: A = Σ ±√|fᵢ|·Aᵢ, B = Σ √|fᵢ|·Bᵢ with fᵢ = wᵢ·sᵢ, the sign going into A.
//!
//! What PEFT calls `linear` and some tools `merge`. B·A then holds the products of every Bᵢ with every Aⱼ, so it is not Σ fᵢ·Bᵢ·Aᵢ;
//! how far it is from that is measured. The rank stays that of the inputs, which is why it needs equal ones.

use super::concat::bias;
use crate::error::{Error, Result};
use crate::linalg::{LinearOperator, LowRank};
use crate::pairs::{Bytes, NewPair};
use crate::placement::Applied;
use crate::placement::terms::{Share, Slot};
use crate::tensor::Float;
use crate::truncate::ModuleReport;

/// The pair of averaged factors of `slot`, stored as `dtype`, and how far their product is from the sum.
///
/// # Errors
/// When ranks differ, or factors cannot be read.
pub fn average(slot: &Slot, sources: &[Applied], dtype: Option<Float>) -> Result<(NewPair, ModuleReport)> {
    let stored = dtype.or(slot.common_float()).unwrap_or(Float::F32);
    let rank = slot.shares[0].rank;
    if let Some(other) = slot.shares.iter().find(|share| share.rank != rank) {
        let root = |at: usize| sources[at].adapter.root.display().to_string();
        let problem = format!("`{}` has rank {} in one and {rank} in the other", slot.name(), other.rank);
        return Err(Error::mismatch(root(other.source), root(slot.shares[0].source), problem)
            .hint("factors of different ranks have no average; `--method concat` sums adapters of any ranks"));
    }
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for share in &slot.shares {
        let factor = share.factor();
        let root = factor.abs().sqrt();
        add(&mut down, &share.term.down.to_vec()?, root.copysign(factor));
        add(&mut up, &share.term.up.to_vec()?, root);
    }
    stored.round(&mut down);
    stored.round(&mut up);
    let (mut norm, mut residual) = (0.0, 0.0);
    for expert in 0..slot.experts() {
        let sum = LowRank::sum(&slot.products(expert, Share::factor)?);
        norm += sum.frobenius_squared()?;
        residual += sum.distance(&one_expert(&down, &up, rank, expert, slot.experts())).powi(2);
    }
    let (root, name) = (&sources[slot.shares[0].source].adapter.root, slot.name());
    let [down, up] = [&down, &up].map(|values| Bytes::held(values, stored, (root, &name)));
    let pair = slot.pair(rank, rank as f64, down?, up?, bias(slot, 1.0, Some(stored))?);
    let module = ModuleReport::of(&pair, norm.max(0.0).sqrt()).off_by(residual.sqrt());
    Ok((pair, ModuleReport { ranks_before: slot.ranks(), ..module }))
}

fn add(sum: &mut Vec<f32>, values: &[f32], factor: f64) {
    sum.resize(values.len(), 0.0);
    // As PEFT does it: factors rounded to f32, products and sums in f32.
    let factor = factor as f32;
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
}

/// The product for one expert of a stack: its rows of A, every `experts`-th column of B.
fn one_expert(down: &[f32], up: &[f32], rank: usize, expert: usize, experts: usize) -> LowRank {
    let cols = down.len() / (rank * experts);
    let down = down[expert * rank * cols..(expert + 1) * rank * cols].to_vec();
    let up = up.iter().skip(expert).step_by(experts).copied().collect();
    LowRank::from_rows(up, down, rank, 1.0)
}
