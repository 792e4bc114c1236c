//! `Stack`.

use std::path::PathBuf;

use super::common::{Common, makes_adapters, runs, sums, weighted, writes};
use crate::error::Result;
use crate::ops::Run;
use crate::ops::sum::{SumOptions, SumReport, sum};

/// Several adapters as one: Σ wᵢ ΔWᵢ, exactly where no ranks are chosen.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let adapter = "fixtures/tiny/adapter";
/// let report = lorakit::Stack::new()
///     .adapter(adapter, 0.7)
///     .adapter(adapter, 0.3)
///     .rank(4)
///     .out(folder.path().join("sum"))
///     .run()?;
/// assert_eq!(report.made.modules.len(), 14);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is done until it runs"]
pub struct Stack {
    adapters: Vec<(PathBuf, f64)>,
    base: Option<PathBuf>,
    common: Common,
}

writes!(Stack);
makes_adapters!(Stack);
runs!(Stack, SumReport);
sums!(Stack, "The model the adapters were trained on, for tensors they hold whole.");

impl Stack {
    /// Of no adapters yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same as [`Stack::run`], watched by `run`.
    ///
    /// # Errors
    /// As [`Stack::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<SumReport> {
        let (common, base) = (&self.common, self.base.clone());
        let (selection, dialect) = (common.selection()?, common.dialect.clone());
        let options = SumOptions::new(weighted(&self.adapters)?, common.write()?);
        sum(&SumOptions { base, rank: common.ranks, selection, dialect, ..options }, run)
    }
}
