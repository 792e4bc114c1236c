//! Sums of low rank, cut to fewer ranks: exact singular values from the factors, or those of a ΔW that is merged element by element.

use std::sync::atomic::AtomicBool;

use foldhash::HashSet;

use super::StackOptions;
use super::elementwise::{Contribution, Elementwise, Pruning};
use super::fold;
use crate::error::{Error, Result};
use crate::linalg::{
    Certificate, Compute, Decomposition, LinearOperator, LowRank, RankPolicy, RankRule, Spectrum, Streamed, allocate,
    decompose,
};
use crate::naming::layers_within_layers;
use crate::ops::rank_choice::{Budgeted, RankChoice, Ranking};
use crate::placement::terms::{Moved, Share, Slot};
use crate::plan::map_within;
use crate::tensor::Float;

/// Bytes of an entry in the header of a file beside its name: dtype, shape, offsets.
const ENTRY_BYTES: u64 = 128;

/// What a decomposition holds beside its factors in f64: QR, rotated vectors, their f32 copies.
const WORK_FACTORS: u64 = 6;

/// Relative to its terms, a sum below this is rounding in f64 of a sum that is zero.
const CANCELLED: f64 = 1e-13;

/// Unit roundoff of f32.
const F32_ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// Roundings between W and W′ − W: the product, the sum, the factor, the product with it, the difference.
const MOVED_ROUNDOFFS: f64 = 6.0;

/// The factors of one module.
pub struct Compressed {
    /// A, row by row, rounded to the dtype it is stored in.
    pub down: Vec<f32>,
    /// B, row by row, as A.
    pub up: Vec<f32>,
    /// r; of a stack that of one expert.
    pub rank: usize,
    /// How they are stored.
    pub float: Float,
    /// All singular values that are known, largest first; of a stack, root of the sum of squares over its experts.
    pub singular_values: Vec<f64>,
    /// ‖ΔW‖.
    pub norm: f64,
    /// ‖ΔW − B·A‖ at most.
    pub residual_at_most: f64,
    /// ‖ΔW − B·A‖ as measured.
    pub residual: f64,
    /// No matrix of this rank is closer to ΔW.
    pub optimum_at_least: f64,
}

/// Cuts the sum over every slot as `choice` says. `fixed_bytes` and `fixed_parameters` are those of the adapter's other tensors.
///
/// # Errors
/// When factors cannot be read, or the budget is too small for anything.
pub fn compress(
    slots: &[&Slot],
    pruning: Option<Pruning>,
    choice: &RankChoice,
    options: &StackOptions,
    fixed: (u64, u64),
    cancel: &AtomicBool,
) -> Result<Vec<Compressed>> {
    let work = Work { slots, pruning, compute: options.compute, dtype: options.write.dtype, options };
    let rules = work.rules(choice, options, fixed, cancel)?;
    let run = |at: usize| work.cut(slots[at], &rules[at]);
    work.all(options, cancel, run)
}

struct Work<'a> {
    slots: &'a [&'a Slot],
    pruning: Option<Pruning>,
    compute: Compute,
    dtype: Option<Float>,
    options: &'a StackOptions,
}

/// How one slot is cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    By(RankRule),
    /// To exactly this rank, with zeros where there is less.
    To(usize),
}

/// A matrix that is decomposed.
enum Operator<'a> {
    Sum(Sum),
    Merged(Streamed<Elementwise>),
    /// ΔW as its weight is stored, and what rounding in f32 can make of it.
    Moved(Streamed<Moved<'a>>, f64),
}

/// Σ fᵢ·Bᵢ·Aᵢ, and what is known of its arithmetic.
struct Sum {
    product: LowRank,
    /// What folding the scales in f32 changed at most.
    folded: f64,
    /// Below this a sum is what rounding left of terms that cancel.
    floor: f64,
}

impl Sum {
    fn of(terms: &[LowRank]) -> Self {
        let folded = terms.iter().map(fold::rounding).sum();
        let size: f64 = terms.iter().map(fold::size).sum();
        Self { product: LowRank::sum(terms), folded, floor: f64::max(folded, CANCELLED * size) }
    }
}

impl Operator<'_> {
    fn as_dyn(&self) -> &dyn LinearOperator {
        match self {
            Self::Sum(sum) => &sum.product,
            Self::Merged(merged) => merged,
            Self::Moved(moved, _) => moved,
        }
    }

    /// How far the matrix may be from the ΔW it stands for.
    fn slack(&self) -> f64 {
        match self {
            Self::Sum(sum) => sum.folded,
            Self::Merged(_) => 0.0,
            Self::Moved(_, rounding) => *rounding,
        }
    }

    fn is_transposed(&self) -> bool {
        matches!(self, Self::Moved(moved, _) if moved.0.is_transposed())
    }
}

impl Work<'_> {
    /// What `run` gives for every slot, in order.
    fn all<T: Send>(
        &self,
        options: &StackOptions,
        cancel: &AtomicBool,
        run: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let held: Vec<u64> = self.slots.iter().map(|slot| self.held(slot)).collect();
        map_within(&held, &options.write.budget, cancel, run)
    }

    /// Bytes that the decomposition of a slot takes, roughly.
    fn held(&self, slot: &Slot) -> u64 {
        let (rows, cols) = slot.shape();
        let rank: usize = slot.shares.iter().map(|share| share.rank).sum();
        let side = rows.min(cols);
        let full = self.pruning.is_some() || !slot.multiplied.is_empty();
        let inner = if full { side } else { rank.min(side) };
        ((rows + cols) * inner * size_of::<f64>()) as u64 * WORK_FACTORS
    }

    fn float(&self, slot: &Slot) -> Float {
        match self.dtype.or(slot.common_float()) {
            // Factors are computed in f32.
            None | Some(Float::F64) => Float::F32,
            Some(float) => float,
        }
    }

    fn operator<'s>(&self, slot: &'s Slot, expert: usize) -> Result<Operator<'s>> {
        if !slot.multiplied.is_empty() {
            let moved = Streamed(Moved::new(&slot.multiplied, &slot.shares));
            // W′ − W in f32 rounds W′ a few times, and ‖W‖ ≤ ‖W′‖ + ‖W′ − W‖.
            let norms: f64 = slot.multiplied.iter().map(|one| one.strength.abs() * one.norm()).sum();
            let rounding = MOVED_ROUNDOFFS * F32_ROUNDOFF * (2.0 * norms + moved.frobenius_squared()?.sqrt());
            return Ok(Operator::Moved(moved, rounding));
        }
        let Some(pruning) = self.pruning else {
            return Ok(Operator::Sum(Sum::of(&slot.products(expert, Share::factor)?)));
        };
        let mut contributions: Vec<Contribution> = Vec::new();
        let root = |source: usize| self.options.adapters.get(source).map(|(path, _)| path.clone()).unwrap_or_default();
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
        Ok(Operator::Merged(Streamed(Elementwise::new(pruning, &name, &contributions)?)))
    }

    fn decomposed(&self, slot: &Slot, operator: &Operator<'_>, rule: &RankRule) -> Result<Decomposition> {
        let found = match operator {
            Operator::Sum(sum) => {
                let found = sum.product.decompose()?;
                // Terms that cancel leave nothing that is worth a rank.
                let nothing = found.norm_squared().sqrt() <= sum.floor;
                let (rows, cols) = slot.shape();
                if nothing && found.norm_squared().is_finite() { Decomposition::zero(rows, cols, 0.0) } else { found }
            }
            Operator::Merged(_) | Operator::Moved(..) => {
                decompose(operator.as_dyn(), rule, self.compute, seed(&slot.name()))?
            }
        };
        if found.norm_squared().is_finite() {
            return Ok(found);
        }
        let problem = "its change is beyond the range of F32, in which it is computed";
        Err(Error::numeric(self.options.root_of(slot), slot.name(), problem)
            .hint("a weight, an alpha or a factor is too large"))
    }

    /// How every slot is cut.
    fn rules(
        &self,
        choice: &RankChoice,
        options: &StackOptions,
        fixed: (u64, u64),
        cancel: &AtomicBool,
    ) -> Result<Vec<Cut>> {
        let all = RankRule { max_rank: choice.max_rank, ..RankRule::new(RankPolicy::All) };
        let rule_of = |slot: &Slot| choice.rule(slot.positions()).unwrap_or(all);
        let mut cuts: Vec<Cut> = self.slots.iter().map(|slot| Cut::By(rule_of(slot))).collect();
        let budgeted = match choice.ranking {
            Ranking::Budget(budget) => Some(budget),
            _ => None,
        };
        let inner = layers_within_layers(self.slots.iter().map(|slot| slot.path.as_str()));
        let nested: HashSet<usize> = inner.iter().flat_map(|(child, parent)| [*child, *parent]).collect();
        if budgeted.is_none() && inner.is_empty() {
            return Ok(cuts);
        }
        let spectra = self.all(options, cancel, |at| {
            let needed = budgeted.is_some() || nested.contains(&at);
            if needed { self.spectrum(self.slots[at], &rule_of(self.slots[at])) } else { Ok((Vec::new(), 0.0)) }
        })?;
        if let Some(budget) = budgeted {
            let ranks = self.spend(budget, choice, &spectra, fixed)?;
            cuts = ranks.into_iter().map(Cut::To).collect();
        }
        // PEFT builds the layer within an adapted layer with the same rank.
        let rank_of = |cut: &Cut, at: usize| match cut {
            Cut::To(rank) => *rank,
            Cut::By(rule) => rule.choose(&spectra[at].0, spectra[at].1),
        };
        for (child, parent) in inner {
            let rank = rank_of(&cuts[child], child).max(rank_of(&cuts[parent], parent));
            (cuts[child], cuts[parent]) = (Cut::To(rank), Cut::To(rank));
        }
        Ok(cuts)
    }

    /// Singular values of a slot, over its experts, and ‖ΔW‖².
    fn spectrum(&self, slot: &Slot, rule: &RankRule) -> Result<(Vec<f64>, f64)> {
        let mut squares: Vec<f64> = Vec::new();
        let mut norm = 0.0;
        for expert in 0..slot.experts() {
            let operator = self.operator(slot, expert)?;
            let found = self.decomposed(slot, &operator, rule)?;
            norm += found.norm_squared();
            add_squares(&mut squares, found.values());
        }
        Ok((squares.into_iter().map(f64::sqrt).collect(), norm))
    }

    /// The best ranks within a budget.
    fn spend(
        &self,
        budget: Budgeted,
        choice: &RankChoice,
        spectra: &[(Vec<f64>, f64)],
        fixed: (u64, u64),
    ) -> Result<Vec<usize>> {
        let (option, whole, taken) = match budget {
            Budgeted::Bytes(bytes) => {
                let entries: u64 = self.slots.iter().map(|slot| 2 * (slot.name().len() as u64 + ENTRY_BYTES)).sum();
                ("--max-size", bytes, fixed.0 + entries)
            }
            Budgeted::Parameters(parameters) => ("--max-params", parameters, fixed.1),
        };
        let numbers = |slot: &Slot| {
            let (rows, cols) = slot.shape();
            ((rows + cols) * slot.experts()) as u64
        };
        let unit = |slot: &Slot| match budget {
            Budgeted::Bytes(_) => numbers(slot) * self.float(slot).bytes() as u64,
            Budgeted::Parameters(_) => numbers(slot),
        };
        let capped = |slot: &Slot, values: &[f64]| {
            let conv = choice.conv_rank.filter(|_| slot.positions() > 1);
            [choice.max_rank, conv].into_iter().flatten().fold(values.len(), usize::min)
        };
        let candidates: Vec<Spectrum<'_>> = self
            .slots
            .iter()
            .zip(spectra)
            .map(|(slot, (values, _))| Spectrum { values: &values[..capped(slot, values)], unit_cost: unit(slot) })
            .collect();
        let ranks = allocate(&candidates, whole.saturating_sub(taken)).ranks;
        if ranks.iter().all(|rank| *rank == 0) && candidates.iter().any(|spectrum| !spectrum.values.is_empty()) {
            let least = self.slots.iter().map(|slot| unit(slot)).min().unwrap_or(0);
            let problem = format!("{whole} leaves nothing: {taken} are taken by other tensors, rank 1 needs {least}");
            return Err(Error::invalid(option, problem));
        }
        Ok(ranks)
    }

    fn cut(&self, slot: &Slot, cut: &Cut) -> Result<Compressed> {
        let float = self.float(slot);
        let rule = match cut {
            Cut::By(rule) => *rule,
            Cut::To(rank) => RankRule::new(RankPolicy::Rank(*rank)),
        };
        let mut parts: Vec<(Operator<'_>, Decomposition)> = Vec::with_capacity(slot.experts());
        for expert in 0..slot.experts() {
            let operator = self.operator(slot, expert)?;
            let decomposition = self.decomposed(slot, &operator, &rule)?;
            parts.push((operator, decomposition));
        }
        let rank = match cut {
            Cut::To(rank) => *rank,
            Cut::By(rule) => parts.iter().map(|(_, found)| found.rank_by(rule)).max().unwrap_or(0),
        };
        let (rows, cols) = slot.shape();
        let experts = slot.experts();
        let mut down = vec![0.0; experts * rank * cols];
        let mut up = vec![0.0; rows * rank * experts];
        let mut squares: Vec<f64> = Vec::new();
        let mut sums = [0.0_f64; 4];
        for (expert, (operator, decomposition)) in parts.iter().enumerate() {
            let truncated = decomposition.cut(rank, float, operator.as_dyn())?;
            let own = truncated.rank();
            let (own_down, own_up) = if operator.is_transposed() {
                (transposed(&truncated.factors.up(), own), transposed(&truncated.factors.down(), rows))
            } else {
                (truncated.factors.down(), truncated.factors.up())
            };
            down[expert * rank * cols..][..own * cols].copy_from_slice(&own_down);
            for (row, values) in own_up.chunks_exact(own.max(1)).enumerate() {
                for (k, value) in values.iter().enumerate() {
                    up[(row * rank + k) * experts + expert] = *value;
                }
            }
            add_squares(&mut squares, &truncated.singular_values);
            let Certificate { norm, residual, residual_at_most, optimum_at_least, .. } = truncated.certificate;
            let slack = operator.slack();
            let parts = [norm, residual, residual_at_most + slack, (optimum_at_least - slack).max(0.0)];
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part * part);
        }
        let [norm, residual, residual_at_most, optimum_at_least] = sums.map(f64::sqrt);
        let singular_values = squares.into_iter().map(f64::sqrt).collect();
        Ok(Compressed { down, up, rank, float, singular_values, norm, residual_at_most, residual, optimum_at_least })
    }
}

/// The transpose of a matrix with `cols` columns.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols.max(1)).copied()).collect()
}

fn add_squares(squares: &mut Vec<f64>, values: &[f64]) {
    squares.resize(squares.len().max(values.len()), 0.0);
    squares.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
}

/// Where the chances of a module are drawn from: its name.
fn seed(name: &str) -> u64 {
    let digest = blake3::hash(name.as_bytes());
    u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
}
