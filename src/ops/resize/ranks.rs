//! The rank of every pair: by a rule for each, or by one budget for all.

use super::factors::Spectrum;
use super::noise;
use crate::error::{Error, Result};
use crate::linalg::{self, RankPolicy, RankRule, allocate};
use crate::ops::{Budgeted, RankChoice, Ranking};
use crate::pairs::PairKind;
use crate::placement::terms::Slot;

/// What decides about one pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Request {
    /// It keeps its rank.
    Keep,
    /// A rule for it alone.
    Rule(RankRule),
    /// Its share of the budget.
    Share,
}

impl Request {
    /// What `choice` wants of `slot`; `taken` tells whether it is among the modules that are resized.
    ///
    /// # Errors
    /// When factors cannot be read.
    pub fn of(choice: &RankChoice, kohya: bool, slot: &Slot, taken: bool) -> Result<Self> {
        if !taken {
            return Ok(Self::Keep);
        }
        // To kohya a convolution is one whatever its kernel.
        let any_kernel = kohya && matches!(slot.kind, PairKind::Conv { .. });
        let positions = if any_kernel { slot.positions().max(2) } else { slot.positions() };
        let rule = match (choice.rule(positions), choice.ranking) {
            (Some(rule), _) => rule,
            (None, Ranking::Noise) => {
                let rule = RankRule::new(RankPolicy::Above(noise::floor(slot)?));
                RankRule { max_rank: choice.max_rank, ..rule }
            }
            (None, _) => return Ok(Self::Share),
        };
        Ok(Self::Rule(RankRule { kohya, ..rule }))
    }

    /// The rank of a pair that does not depend on others; 0 where nothing of it is worth keeping. `None` for a share.
    pub fn rank(&self, slot: &Slot, spectrum: &Spectrum) -> Option<usize> {
        let own: usize = slot.shares.iter().map(|share| share.rank).sum();
        let rule = match self {
            Self::Keep => return Some(own),
            Self::Share => return None,
            Self::Rule(rule) => rule,
        };
        if let RankPolicy::Rank(rank) = rule.policy {
            return Some(rule.max_rank.map_or(rank, |max| rank.min(max)));
        }
        let chosen = if rule.kohya {
            // kohya looks at B·A without its scale, and at all singular values of the matrix, zeros included.
            let scale = slot.shares[0].factor().abs();
            let scale = if scale > 0.0 { scale } else { 1.0 };
            let (rows, cols) = slot.shape();
            let mut values: Vec<f64> = spectrum.values.iter().map(|value| value / scale).collect();
            values.resize(rows.min(cols).max(values.len()), 0.0);
            rule.choose(&values, spectrum.norm_squared / (scale * scale))
        } else {
            rule.choose(&spectrum.values, spectrum.norm_squared)
        };
        Some(chosen.max(least(slot)))
    }
}

/// A bias needs a pair to belong to.
fn least(slot: &Slot) -> usize {
    usize::from(slot.shares.iter().any(|share| share.bias.is_some()))
}

/// What one unit of the rank of `slot` costs.
pub fn unit_cost(slot: &Slot, budget: Budgeted, width: usize) -> u64 {
    let (rows, cols) = slot.shape();
    let numbers = (slot.experts() * (rows + cols)) as u64;
    match budget {
        Budgeted::Parameters(_) => numbers,
        Budgeted::Bytes(_) => numbers * width as u64,
    }
}

/// A pair that takes part in the division of a budget.
pub struct Claim<'a> {
    /// The pair.
    pub slot: &'a Slot,
    /// What it is worth.
    pub spectrum: &'a Spectrum,
    /// What a unit of its rank costs.
    pub cost: u64,
}

/// Divides `left` among `claims` where it keeps most of ‖ΔW‖².
pub fn divide(claims: &[Claim<'_>], max_rank: Option<usize>, left: u64) -> Vec<usize> {
    let least_cost = |claim: &Claim<'_>| claim.cost * least(claim.slot) as u64;
    let spectra: Vec<linalg::Spectrum<'_>> = claims
        .iter()
        .map(|claim| {
            let values = &claim.spectrum.values;
            let count = max_rank.map_or(values.len(), |max| max.min(values.len()));
            linalg::Spectrum { values: &values[..count], unit_cost: claim.cost }
        })
        .collect();
    let reserved: u64 = claims.iter().map(least_cost).sum();
    let ranks = allocate(&spectra, left.saturating_sub(reserved)).ranks;
    ranks.into_iter().zip(claims).map(|(rank, claim)| rank.max(least(claim.slot))).collect()
}

/// The largest rank that all `claims` can have together.
pub fn equal_share(claims: &[Claim<'_>], max_rank: Option<usize>, left: u64) -> usize {
    let cost: u64 = claims.iter().map(|claim| claim.cost).sum();
    let most = claims.iter().map(|claim| claim.spectrum.values.len()).max().unwrap_or(0);
    let most = max_rank.map_or(most, |max| max.min(most));
    usize::try_from(left / cost.max(1)).unwrap_or(most).min(most)
}

/// What is left of `budget` for the pairs that share it.
///
/// # Errors
/// When nothing is.
pub fn left_of(budget: Budgeted, fixed: u64) -> Result<u64> {
    let (option, total, unit) = match budget {
        Budgeted::Bytes(bytes) => ("--max-size", bytes, "bytes"),
        Budgeted::Parameters(count) => ("--max-params", count, "parameters"),
    };
    total.checked_sub(fixed).ok_or_else(|| {
        Error::invalid(option, format!("{total} {unit} are not enough: what keeps its size takes {fixed}"))
    })
}
