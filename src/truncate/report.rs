//! What is said of a new adapter and its modules, in every verb that makes one. Serialises to the JSON that `docs/reference/json.md` describes.

use std::collections::BTreeMap;

use serde::Serialize;

use super::RankChoice;
use super::Truncated;
use super::job::{Job, Pair};
use crate::pairs::{NewPair, NewWhole};
use crate::tensor::Float;

/// A new adapter.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewAdapterReport {
    /// Its low-rank pairs, in order.
    pub modules: Vec<ModuleReport>,
    /// Changes of which nothing is left: they are not in it.
    pub vanished: Vec<String>,
    /// Tensors stored whole.
    pub whole: Vec<WholeReport>,
    /// No number was rounded.
    pub exact: bool,
    /// ‖ΔW‖ over all modules.
    pub norm: f64,
    /// Share of ‖ΔW‖² that is kept, over all modules.
    pub kept_energy: f64,
    /// ‖ΔW − result‖ ∕ ‖ΔW‖ over all modules: never less than the true one.
    pub relative_error: f64,
    /// Numbers in the pairs it was made of, if it was made of some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_before: Option<u64>,
    /// Numbers in its pairs.
    pub parameters: u64,
    /// Ranks that occur, and in how many modules.
    pub ranks: BTreeMap<usize, usize>,
    /// Tensors that are averages, element by element.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub averaged: Option<usize>,
    /// What was found foreign to the model, where it was looked for: modules that have intruders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intruders: Option<Vec<IntruderReport>>,
    /// How a budget was spent.
    pub budget: Option<Spent>,
    /// Bytes of the weight files of the adapters it was made of, if it was made of some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_before: Option<u64>,
    /// Bytes of its weight file, or files in another dialect than PEFT's.
    pub bytes: u64,
    /// Notes.
    pub notes: Vec<String>,
}

/// One pair.
#[derive(Debug, Clone, Serialize)]
pub struct ModuleReport {
    /// Its path; of a parameter without a layer with its name.
    pub module: String,
    /// linear, conv1d, conv, embedding, parameter or experts.
    pub kind: &'static str,
    /// Of the weight as stored.
    pub shape: Vec<u64>,
    /// Ranks of what it was made of, if that had ranks.
    pub ranks_before: Vec<usize>,
    /// Its rank; of a stack that of one expert.
    pub rank: usize,
    /// α; the scale is α∕rank.
    pub alpha: f64,
    /// Dtype of the factors.
    pub dtype: String,
    /// No number was rounded.
    pub exact: bool,
    /// ‖ΔW‖.
    pub norm: f64,
    /// Share of ‖ΔW‖² that is kept.
    pub kept_energy: f64,
    /// ‖ΔW − result‖ ∕ ‖ΔW‖ with the factors as stored: never less than the true one.
    pub relative_error: f64,
    /// The same as measured.
    pub measured_error: f64,
    /// What rounding the factors to their dtype added, relative.
    pub stored_error: f64,
    /// No factors of this rank have a smaller relative error; `None` where no rank was cut.
    pub optimum_at_least: Option<f64>,
    /// The smallest relative error that factors of this rank can have: exact where `complete`, otherwise an estimate.
    pub optimum_near: Option<f64>,
    /// Relative size of what rounding the tuned weight added to ΔW, where there is one.
    pub rounding: Option<f64>,
    /// The error is not above that rounding.
    pub at_rounding_floor: Option<bool>,
    /// The rank above which there is nothing but that rounding, where the known values tell.
    pub rank_above_rounding: Option<usize>,
    /// Whether all singular values are known, or the leading ones from below.
    pub complete: bool,
    /// Numbers in the factors.
    pub parameters: u64,
    /// Largest first; of a stack √Σσ² over the experts. Empty where none were needed.
    pub singular_values: Vec<f64>,
    /// The first so many of them are known to 1e-4; others may be larger in truth.
    pub settled_values: usize,
}

/// Intruders of one module: leading singular vectors of W + ΔW that are like none of W's.
#[derive(Debug, Clone, Serialize)]
pub struct IntruderReport {
    /// The module.
    pub module: String,
    /// Which singular vectors of W + ΔW they are, the largest being 0.
    pub at: Vec<usize>,
    /// Their singular values.
    pub values: Vec<f64>,
    /// The largest |cos| of each with a left singular vector of W.
    pub cosines: Vec<f64>,
}

/// One tensor stored whole.
#[derive(Debug, Clone, Serialize)]
pub struct WholeReport {
    /// The module that is saved, or whose bias it is.
    pub module: String,
    /// Its name in that module.
    pub tensor: String,
    /// Its bytes.
    pub bytes: u64,
    /// Why it has no factors, where that was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What was made of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spent {
    /// What the factors may cost.
    pub budget: u64,
    /// What they cost.
    pub cost: u64,
    /// No other ranks within the budget keep more of Σ‖ΔW‖² than these and this.
    pub short_at_most: f64,
}

impl ModuleReport {
    /// `pair`, for a change of this norm, of which all is kept.
    pub fn of(pair: &NewPair, norm: f64) -> Self {
        let (rows, cols) = pair.kind.matrix(pair.outer);
        Self {
            shape: pair.kind.weight_shape(pair.outer),
            alpha: pair.alpha,
            dtype: pair.down.dtype().name().to_owned(),
            parameters: ((rows + cols) * pair.kind.experts() * pair.rank) as u64,
            ..Self::whole(pair.kind.name(&pair.path), pair.kind.label(), pair.rank, norm)
        }
    }

    /// A bottleneck of so many units in a model of the width `hidden`; `norm` is the size of its units together.
    pub fn of_units(place: &str, (hidden, units): (usize, usize), float: Float, norm: f64) -> Self {
        Self {
            shape: vec![hidden as u64, hidden as u64],
            alpha: units as f64,
            dtype: float.dtype().name().to_owned(),
            exact: true,
            parameters: (2 * hidden * units + hidden + units) as u64,
            ..Self::whole(place.to_owned(), "bottleneck", units, norm)
        }
    }

    /// What is said where all of a change is kept and no more is known.
    fn whole(module: String, kind: &'static str, rank: usize, norm: f64) -> Self {
        Self {
            module,
            kind,
            shape: Vec::new(),
            ranks_before: Vec::new(),
            rank,
            alpha: 0.0,
            dtype: String::new(),
            exact: false,
            norm,
            kept_energy: 1.0,
            relative_error: 0.0,
            measured_error: 0.0,
            stored_error: 0.0,
            optimum_at_least: None,
            optimum_near: None,
            rounding: None,
            at_rounding_floor: None,
            rank_above_rounding: None,
            complete: true,
            parameters: 0,
            singular_values: Vec::new(),
            settled_values: 0,
        }
    }

    /// With an error of this norm.
    #[must_use]
    pub fn off_by(mut self, error: f64) -> Self {
        let relative = if self.norm > 0.0 { error / self.norm } else { 0.0 };
        (self.relative_error, self.measured_error) = (relative, relative);
        self.kept_energy = (1.0 - relative.powi(2)).max(0.0);
        self
    }
}

impl WholeReport {
    /// What is said of `whole`.
    pub fn of(whole: &NewWhole) -> Self {
        let (module, tensor) = (whole.module.clone(), whole.parameter.clone());
        Self { module, tensor, bytes: whole.bytes.count(), why: None }
    }
}

impl NewAdapterReport {
    /// Tells how large it became, by the ranks that `ranks` chose: its files in `dialect`, the weight file where that is PEFT's.
    pub fn weigh(&mut self, dialect: Option<&str>, (files, weights): (u64, u64), ranks: Option<&RankChoice>) {
        self.notes.extend(ranks.zip(dialect).and_then(|(ranks, dialect)| ranks.exceeded(dialect, files)));
        self.bytes = if dialect.is_some() { files } else { weights };
    }

    /// Sums the modules up; `lost` is ‖ΔW‖² of those that vanished.
    pub fn add_up(&mut self, lost: f64) {
        let sum = |of: fn(&ModuleReport) -> f64| self.modules.iter().map(of).sum::<f64>();
        let norm = sum(|module| module.norm.powi(2)) + lost;
        let error = sum(|module| (module.norm * module.relative_error).powi(2)) + lost;
        let kept = sum(|module| module.norm.powi(2) * module.kept_energy);
        let share = |value: f64, otherwise: f64| if norm > 0.0 { value / norm } else { otherwise };
        (self.norm, self.kept_energy, self.relative_error) = (norm.sqrt(), share(kept, 1.0), share(error, 0.0).sqrt());
        self.exact = lost == 0.0 && self.modules.iter().all(|module| module.exact);
        self.parameters = self.modules.iter().map(|module| module.parameters).sum();
        self.ranks.clear();
        self.modules.iter().for_each(|module| *self.ranks.entry(module.rank).or_default() += 1);
    }
}

impl Truncated {
    /// Puts together what became of `jobs`.
    pub(super) fn of(jobs: &[Job<'_>], made: Vec<Pair>, budget: Option<Spent>) -> Self {
        let (mut report, mut lost) = (NewAdapterReport { budget, ..NewAdapterReport::default() }, 0.0);
        let mut pairs = Vec::with_capacity(made.len());
        for (job, pair) in jobs.iter().zip(made) {
            if pair.pair.is_none() {
                lost += pair.norm_squared;
                report.vanished.push(job.change.kind().name(job.change.path()));
            }
            report.modules.extend(pair.report);
            pairs.push(pair.pair);
        }
        report.add_up(lost);
        let uniform = jobs.iter().any(|job| job.means.choice.uniform);
        if let Some(rank) = report.ranks.keys().next_back().filter(|_| uniform) {
            report.notes.push(format!("all pairs have rank {rank}, filled up with zeros where there was less"));
        }
        if let Some(Spent { short_at_most, .. }) = budget.filter(|budget| budget.short_at_most > 0.0) {
            let share = short_at_most / report.norm.powi(2).max(f64::MIN_POSITIVE);
            report.notes.push(format!("other ranks within the budget could keep up to {share:.1e} of ‖ΔW‖² more"));
        }
        Self { pairs, report }
    }
}
