//! `Merge`.

use std::path::PathBuf;

use super::common::{Common, alone, weighted, writes};
use crate::error::Result;
use crate::ops::Run;
use crate::ops::merge::{MergeOptions, MergeReport, merge};

/// Adapters merged into a model: W′ = W + Σ wᵢ ΔWᵢ, in the layout and dtypes of the model.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let merged = folder.path().join("merged");
/// let report = lorakit::Merge::new("fixtures/tiny/base").adapter("fixtures/tiny/adapter", 1.0).out(&merged).run()?;
/// assert_eq!((report.tensors.changed, report.tensors.copied), (14, 7));
/// assert_eq!(lorakit::Checkpoint::open(&merged)?.count(), 21);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is done until it runs"]
pub struct Merge {
    base: PathBuf,
    adapters: Vec<(PathBuf, f64)>,
    common: Common,
}

writes!(Merge);

impl Merge {
    /// Into the model `base`: a directory or a file.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into(), adapters: Vec::new(), common: Common::default() }
    }

    /// One more adapter, with its weight.
    pub fn adapter(mut self, path: impl Into<PathBuf>, weight: f64) -> Self {
        self.adapters.push((path.into(), weight));
        self
    }

    /// Merges.
    ///
    /// # Errors
    /// When an input is malformed, a change has no place in the model, or the result cannot be written. Nothing is left behind then.
    pub fn run(&self) -> Result<MergeReport> {
        alone(|run| self.run_with(run))
    }

    /// The same, watched by `run`.
    ///
    /// # Errors
    /// As [`Merge::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<MergeReport> {
        let options = MergeOptions::new(&self.base, weighted(&self.adapters)?, self.common.write()?);
        merge(&MergeOptions { selection: self.common.selection()?, ..options }, run)
    }
}
