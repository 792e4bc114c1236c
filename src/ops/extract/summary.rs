//! What an extraction did, for people and programs. Serialises to the JSON that `docs/cli.md` describes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::class::Layer;
use super::examine::{Task, Whole};
use super::factor::Factored;
use super::ranks::Spent;
use crate::tensor::Shape;

/// What an extraction did, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ExtractReport {
    /// The model that was tuned.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub base: PathBuf,
    /// What it became.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub tuned: PathBuf,
    /// The adapter.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Its dialect.
    pub to: &'static str,
    /// Nothing was written.
    pub dry_run: bool,
    /// Changes in factors, in the order of the base's files.
    pub modules: Vec<ModuleSummary>,
    /// Tensors stored whole.
    pub whole: Vec<WholeSummary>,
    /// Tensors that are equal in both models.
    pub unchanged: usize,
    /// Tensors left out by choice, and constants that one side lacks.
    pub skipped: Vec<String>,
    /// All modules together.
    pub total: Total,
    /// How a budget was spent.
    pub budget: Option<Spent>,
    /// Bytes of the adapter.
    pub bytes: u64,
    /// Bytes of the tuned model's tensors.
    pub tuned_bytes: u64,
    /// Things worth knowing.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// One module.
#[derive(Debug, Clone, Serialize)]
pub struct ModuleSummary {
    /// Its path.
    pub module: String,
    /// linear, conv1d, conv, embedding, parameter or experts.
    pub kind: &'static str,
    /// Of the weight as stored.
    pub shape: Vec<u64>,
    /// 0 if nothing is kept.
    pub rank: usize,
    /// α; the scale is α∕rank.
    pub alpha: f64,
    /// Dtype of the factors.
    pub dtype: String,
    /// ‖ΔW‖.
    pub norm: f64,
    /// 1 − (‖ΔW − BA‖ ∕ ‖ΔW‖)².
    pub kept_energy: f64,
    /// ‖ΔW − BA‖ ∕ ‖ΔW‖ at most, the factors as they are stored.
    pub relative_error: f64,
    /// The same as measured.
    pub measured_error: f64,
    /// No factors of this rank have a smaller relative error than this.
    pub optimum_at_least: f64,
    /// Share of the error that rounding the factors added, relative to ‖ΔW‖.
    pub stored_error: f64,
    /// Relative size of what rounding the tuned weight to its dtype added to ΔW.
    pub rounding: f64,
    /// The error is not above that rounding.
    pub at_rounding_floor: bool,
    /// Whether all singular values are known, or the leading ones from below.
    pub complete: bool,
    /// Numbers in the factors.
    pub parameters: u64,
    /// Largest first; of a stack √Σσ² over the experts.
    pub singular_values: Vec<f64>,
}

/// One tensor stored whole.
#[derive(Debug, Clone, Serialize)]
pub struct WholeSummary {
    /// Its name in the adapter's module.
    pub tensor: String,
    /// The module that is saved, or whose bias it is.
    pub module: String,
    /// Its bytes.
    pub bytes: u64,
    /// Why it has no factors.
    pub why: String,
}

/// All modules in factors together.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Total {
    /// √Σ‖ΔW‖².
    pub norm: f64,
    /// Share of Σ‖ΔW‖² that is kept.
    pub kept_energy: f64,
    /// √(Σ‖ΔW − BA‖² ∕ Σ‖ΔW‖²) at most.
    pub relative_error: f64,
    /// Numbers in the factors.
    pub parameters: u64,
    /// Ranks that occur, and in how many modules.
    pub ranks: BTreeMap<usize, usize>,
    /// Modules whose error is not above the rounding of the tuned weight.
    pub at_rounding_floor: usize,
    /// Squares, for sums.
    #[serde(skip)]
    squares: [f64; 3],
}

/// A parameter is named, a layer's weight is not.
fn module_of(task: &Task) -> String {
    match &task.layer {
        Layer::Parameter { name, .. } if name != "weight" => format!("{}.{name}", task.path),
        _ => task.path.clone(),
    }
}

/// A module that was decomposed.
pub fn module(task: &Task, factored: &Factored) -> ModuleSummary {
    let certificate = &factored.certificate;
    let relative = |value: f64| if certificate.norm > 0.0 { value / certificate.norm } else { 0.0 };
    let width = factored.float.bytes();
    ModuleSummary {
        module: module_of(task),
        kind: task.layer.label(),
        shape: task.shape.as_slice().to_vec(),
        rank: factored.rank,
        alpha: factored.alpha,
        dtype: factored.float.torch_name().into(),
        norm: certificate.norm,
        kept_energy: certificate.kept_energy(),
        relative_error: certificate.relative(),
        measured_error: relative(certificate.residual),
        optimum_at_least: relative(certificate.optimum_at_least),
        stored_error: relative(certificate.stored_error),
        rounding: relative(factored.rounding_norm),
        at_rounding_floor: factored.is_at_floor(),
        complete: certificate.complete,
        parameters: ((factored.up.len() + factored.down.len()) / width) as u64,
        singular_values: factored.values.clone(),
    }
}

/// A tensor that is stored whole, of so many bytes.
pub fn whole(whole: &Whole, bytes: u64) -> WholeSummary {
    let (tensor, module) = (whole.parameter.clone(), whole.module.clone());
    WholeSummary { tensor, module, bytes, why: whole.why.clone() }
}

impl Total {
    /// Adds one module.
    pub fn add(&mut self, factored: &Factored, parameters: u64) {
        let certificate = &factored.certificate;
        let values = [certificate.norm, certificate.residual, certificate.residual_at_most];
        self.squares.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
        let [norm, residual, at_most] = self.squares;
        self.norm = norm.sqrt();
        if norm > 0.0 {
            self.kept_energy = (1.0 - residual / norm).max(0.0);
            self.relative_error = (at_most / norm).sqrt();
        }
        self.parameters += parameters;
        *self.ranks.entry(factored.rank).or_default() += 1;
        self.at_rounding_floor += usize::from(factored.is_at_floor());
    }
}

/// Elements of a shape that is known to be countable.
pub fn elements(shape: &Shape) -> u64 {
    shape.elements().unwrap_or(u64::MAX)
}
