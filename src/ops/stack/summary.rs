//! What a stack did, for people and programs. Serialises to the JSON that `docs/cli.md` describes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::adapters::AlphaFrom;

/// What a stack did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct StackReport {
    /// The result.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Its dialect.
    pub to: &'static str,
    /// Nothing was written.
    pub dry_run: bool,
    /// As on the command line.
    pub method: String,
    /// What was summed.
    pub adapters: Vec<Input>,
    /// Low-rank changes of the result, in path order.
    pub modules: Vec<StackedModule>,
    /// Modules whose sum is zero: they are not in the result.
    pub vanished: Vec<String>,
    /// Tensors stored whole.
    pub whole: usize,
    /// Tensors of the inputs that the selection or a weight of zero leave out.
    pub left_out: usize,
    /// No number was rounded.
    pub exact: bool,
    /// ‖ΔW‖ over all modules.
    pub norm: f64,
    /// Share of ‖ΔW‖² that is kept, over all modules.
    pub kept_energy: f64,
    /// ‖ΔW − result‖ ∕ ‖ΔW‖ over all modules: never less than the true one.
    pub relative_error: f64,
    /// Numbers in the low-rank factors.
    pub parameters: u64,
    /// Bytes of the inputs' weight files.
    pub bytes_before: u64,
    /// Bytes of the output.
    pub bytes: u64,
    /// Things worth knowing.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// One adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    /// Where it was read.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// Its weight.
    pub weight: f64,
    /// Modules with a low-rank change.
    pub modules: usize,
    /// Ranks that occur, and in how many modules.
    pub ranks: BTreeMap<u64, usize>,
    /// Where its α stands.
    pub alpha_from: Option<AlphaFrom>,
}

/// One module of the result.
#[derive(Debug, Clone, Serialize)]
pub struct StackedModule {
    /// Its path; of a parameter without a layer with its name.
    pub module: String,
    /// Ranks of what was summed.
    pub ranks_before: Vec<usize>,
    /// Rank of the result.
    pub rank: usize,
    /// Dtype of the factors.
    pub dtype: String,
    /// No number was rounded.
    pub exact: bool,
    /// ‖ΔW‖.
    pub norm: f64,
    /// Share of ‖ΔW‖² that is kept.
    pub kept_energy: f64,
    /// ‖ΔW − result‖ ∕ ‖ΔW‖: never less than the true one.
    pub relative_error: f64,
    /// The same for the best matrix of this rank: never more than the true one. `None` where no rank was cut.
    pub optimum_at_least: Option<f64>,
    /// All that are known, largest first; empty where no rank was cut.
    pub singular_values: Vec<f64>,
}

impl StackReport {
    /// Sums the modules up.
    pub(super) fn add_up(&mut self) {
        let norm: f64 = self.modules.iter().map(|module| module.norm.powi(2)).sum();
        let residual: f64 = self.modules.iter().map(|module| (module.norm * module.relative_error).powi(2)).sum();
        let kept: f64 = self.modules.iter().map(|module| module.norm.powi(2) * module.kept_energy).sum();
        self.norm = norm.sqrt();
        self.kept_energy = if norm > 0.0 { kept / norm } else { 1.0 };
        self.relative_error = if norm > 0.0 { (residual / norm).sqrt() } else { 0.0 };
        self.exact = self.modules.iter().all(|module| module.exact);
    }
}
