//! What a resizing did, for people and programs. Serialises to the JSON that `docs/cli.md` describes.

use std::path::PathBuf;

use serde::Serialize;

use super::factors::{Factors, Spectrum};
use crate::adapters::AlphaFrom;
use crate::placement::terms::Slot;

/// What was done to all adapters.
#[derive(Debug, Clone, Serialize)]
pub struct ResizeReport {
    /// Where the results are.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Its dialect.
    pub to: &'static str,
    /// Nothing was written.
    pub dry_run: bool,
    /// One entry per adapter, in the order they were done.
    pub adapters: Vec<AdapterResize>,
    /// Adapters that could not be resized.
    pub failed: usize,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// What became of one adapter.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterResize {
    /// Where it was read.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// Where it was written.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of an adapter.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It has new ranks.
    Resized(Box<Resized>),
    /// The same result lies there already.
    Done,
    /// It could not be resized.
    Failed {
        /// Why.
        problem: String,
        /// The way out, where one is known.
        hint: Option<String>,
    },
}

/// An adapter with new ranks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Resized {
    /// Its pairs, in path order.
    pub modules: Vec<ModuleResize>,
    /// Pairs that nothing is left of.
    pub left_out: Vec<String>,
    /// Where α of the adapter stands.
    pub alpha_from: Option<AlphaFrom>,
    /// Tensors that were copied: modules saved whole, biases, token rows.
    pub copied: usize,
    /// ‖ΔW‖ over all modules.
    pub norm: f64,
    /// Share of ‖ΔW‖² that is kept.
    pub kept_energy: f64,
    /// ‖ΔW − result‖ ∕ ‖ΔW‖, at most.
    pub relative_error: f64,
    /// Numbers in the pairs before.
    pub parameters_before: u64,
    /// And after.
    pub parameters: u64,
    /// Bytes of the weight files before.
    pub bytes_before: u64,
    /// And of the one after.
    pub bytes: u64,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

/// One pair.
#[derive(Debug, Clone, Serialize)]
pub struct ModuleResize {
    /// Module path, with the parameter's name where it has no layer of its own.
    pub module: String,
    /// Rank before; of a stack that of one expert.
    pub rank_before: usize,
    /// And after.
    pub rank: usize,
    /// α; the scale is α/r.
    pub alpha: f64,
    /// The factors are those of the input, but for zeros.
    pub kept: bool,
    /// ‖ΔW‖.
    pub norm: f64,
    /// Share of ‖ΔW‖² that is kept.
    pub kept_energy: f64,
    /// ‖ΔW − result‖ ∕ ‖ΔW‖, never less than the true one.
    pub relative_error: f64,
    /// The error of the best matrix of this rank, relative.
    pub best_error: f64,
    /// What storing the factors in their dtype added, relative.
    pub rounding_error: f64,
    /// All singular values that are not zero, largest first.
    pub singular_values: Vec<f64>,
}

impl ModuleResize {
    /// What `factors` keep of `slot`.
    pub fn new(slot: &Slot, spectrum: Spectrum, factors: &Factors) -> Self {
        let certificate = &factors.certificate;
        let of_norm = |error: f64| if certificate.norm > 0.0 { error / certificate.norm } else { 0.0 };
        Self {
            module: slot.name(),
            rank_before: slot.shares.iter().map(|share| share.rank).sum(),
            rank: factors.rank,
            alpha: factors.alpha,
            kept: factors.kept,
            norm: certificate.norm,
            kept_energy: certificate.kept_energy(),
            relative_error: certificate.relative(),
            best_error: of_norm(certificate.optimum_at_least),
            rounding_error: of_norm(certificate.stored_error),
            singular_values: spectrum.values,
        }
    }
}

impl Resized {
    /// Sums up the modules; `lost` are the ‖ΔW‖² of the pairs left out.
    pub fn total(&mut self, lost: f64) {
        let sum = |of: fn(&ModuleResize) -> f64| self.modules.iter().map(of).sum::<f64>();
        let norm_squared = sum(|module| module.norm.powi(2)) + lost;
        let error = sum(|module| (module.relative_error * module.norm).powi(2)) + lost;
        let kept = sum(|module| module.kept_energy * module.norm.powi(2));
        self.norm = norm_squared.sqrt();
        let of_norm = |value: f64, otherwise: f64| if norm_squared > 0.0 { value / norm_squared } else { otherwise };
        self.relative_error = of_norm(error, 0.0).sqrt();
        self.kept_energy = of_norm(kept, 1.0);
    }
}
