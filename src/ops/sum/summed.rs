//! The sum over one module as something to truncate: a product of factors, a ΔW that is merged element by element, or W′ − W.

use std::path::Path;

use super::elementwise::{Contribution, Elementwise, Pruning};
use super::intruders::Foreign;
use super::{Method, SumOptions, concat, fold, noise};
use crate::error::Result;
use crate::linalg::{F32_ROUNDOFF, LinearOperator, LowRank, Streamed};
use crate::pairs::{Bytes, PairKind};
use crate::placement::terms::{Moved, Share, Slot};
use crate::tensor::{Float, seed_of};
use crate::truncate::{Operator, Own, Part, Truncatable};

/// What a decomposition holds beside its factors in f64: QR, rotated vectors, their f32 copies.
const WORK_FACTORS: u64 = 6;

/// Relative to its terms, a sum below this is rounding in f64 of a sum that is zero.
const CANCELLED: f64 = 1e-13;

/// Roundings between W and W′ − W: the product, the sum, the factor, the product with it, the difference.
const MOVED_ROUNDOFFS: f64 = 6.0;

/// What adapters do to one module.
pub struct Summed<'a> {
    /// Their changes.
    pub slot: &'a Slot,
    /// How they become one.
    pub options: &'a SumOptions,
    /// What is taken out of it, of a single adapter.
    pub foreign: Option<&'a Foreign>,
}

impl Summed<'_> {
    /// Whether the rank of the module is chosen; `resize` lets the others be.
    fn is_taken(&self) -> bool {
        !self.options.keeps_the_rest() || self.options.selection.takes(&self.slot.path)
    }

    /// Whether it may stay the product that it is.
    fn stays(&self) -> bool {
        self.options.is_of_one() && self.slot.multiplied.is_empty() && self.foreign.is_none()
    }

    fn merged(&self, pruning: Pruning, expert: usize) -> Result<Elementwise> {
        let (slot, options) = (self.slot, self.options);
        let mut contributions: Vec<Contribution> = Vec::new();
        let root = |source: usize| options.adapters.get(source).map(|(path, _)| path.clone()).unwrap_or_default();
        for (share, product) in slot.shares.iter().zip(slot.products(expert, |share| share.term.scale)?) {
            match contributions.last_mut().filter(|last| last.adapter == share.source) {
                // The change of an adapter with untrained factors is the difference of two products.
                Some(last) => last.delta = LowRank::sum(&[last.delta.clone(), product]),
                None => {
                    let (adapter, root) = (share.source, root(share.source));
                    contributions.push(Contribution { adapter, root, weight: share.weight, delta: product });
                }
            }
        }
        let name = if slot.experts() > 1 { format!("{}.{expert}", slot.name()) } else { slot.name() };
        Elementwise::new(pruning, &name, &contributions)
    }
}

impl Truncatable for Summed<'_> {
    fn path(&self) -> &str {
        &self.slot.path
    }

    fn kind(&self) -> PairKind {
        self.slot.kind.clone()
    }

    fn outer(&self) -> (u64, u64) {
        self.slot.outer
    }

    fn origin(&self) -> (&Path, String) {
        match self.own() {
            Some(own) => (own.down.path(), own.down.info.name.clone()),
            None => (self.options.root_of(self.slot), self.slot.name()),
        }
    }

    fn float(&self, wanted: Option<Float>) -> Float {
        wanted.filter(|_| self.is_taken()).or(self.slot.common_float()).unwrap_or(Float::F32)
    }

    fn part(&self, expert: usize, divisor: f64) -> Result<Part<'_>> {
        let slot = self.slot;
        // Chance is drawn by the name alone.
        let seed = seed_of(&[slot.name().as_bytes()]);
        if !slot.multiplied.is_empty() {
            let moved = Moved::new(&slot.multiplied, &slot.shares);
            let turned = moved.is_transposed();
            let moved = Streamed(moved);
            // W′ − W in f32 rounds W′ a few times, and ‖W‖ ≤ ‖W′‖ + ‖W′ − W‖.
            let norms: f64 = slot.multiplied.iter().map(|one| one.strength.abs() * one.norm()).sum();
            let slack = MOVED_ROUNDOFFS * F32_ROUNDOFF * (2.0 * norms + moved.frobenius_squared()?.sqrt());
            return Ok(Part { turned, slack, ..Part::new(Operator::Streamed(Box::new(moved)), seed) });
        }
        if let Method::Elementwise(pruning) = self.options.method {
            let merged = Streamed(self.merged(pruning, expert)?);
            return Ok(Part::new(Operator::Streamed(Box::new(merged)), seed));
        }
        let mut terms = slot.products(expert, |share| share.factor() / divisor)?;
        terms.extend(self.foreign.map(|foreign| foreign.over(divisor)));
        // A sum of one adapter keeps the scale of its only product apart; of several, scales are folded into the factors.
        if terms.len() == 1 && self.options.is_of_one() {
            return Ok(Part::new(Operator::Product(terms.remove(0)), seed));
        }
        // What folding the scales in f32 changed at most, and below which norm terms cancel.
        let slack = terms.iter().map(fold::rounding).sum();
        let size: f64 = terms.iter().map(fold::size).sum();
        let floor = f64::max(slack, CANCELLED * size);
        Ok(Part { slack, floor, ..Part::new(Operator::Product(LowRank::sum(&terms)), seed) })
    }

    fn noise(&self) -> Result<f64> {
        noise::floor(self.slot)
    }

    fn held_bytes(&self, _rank: Option<usize>) -> u64 {
        let slot = self.slot;
        let (rows, cols) = slot.shape();
        let rank: usize = slot.shares.iter().map(|share| share.rank).sum();
        let side = rows.min(cols);
        let full = matches!(self.options.method, Method::Elementwise(_)) || !slot.multiplied.is_empty();
        let inner = if full { side } else { rank.min(side) };
        ((rows + cols) * inner * slot.experts() * size_of::<f64>()) as u64 * WORK_FACTORS
    }

    fn ranks(&self) -> Vec<usize> {
        self.slot.ranks()
    }

    fn own(&self) -> Option<Own<'_>> {
        let [share] = self.slot.shares.as_slice() else { return None };
        let Share { rank, float, stored, bias, .. } = share;
        let (down, up) = stored.as_ref().filter(|_| self.stays())?;
        Some(Own { rank: *rank, float: *float, scale: share.factor(), down, up, bias: bias.as_ref() })
    }

    fn is_chosen(&self) -> bool {
        self.is_taken()
    }

    fn scale(&self) -> f64 {
        self.slot.shares.first().map_or(1.0, Share::factor)
    }

    fn has_bias(&self) -> bool {
        self.slot.shares.iter().any(|share| share.bias.is_some())
    }

    fn bias(&self, scale: f64) -> Result<Option<Bytes>> {
        concat::bias(self.slot, scale, None)
    }
}
