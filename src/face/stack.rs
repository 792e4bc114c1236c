//! `Stack`.

use std::path::PathBuf;

use super::common::{Common, alone, makes_adapters, weighted, writes};
use crate::error::Result;
use crate::ops::Run;
use crate::ops::stack::{StackOptions, StackReport, stack};

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
/// assert_eq!(report.modules.len(), 14);
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

impl Stack {
    /// Of no adapters yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more adapter, with its weight.
    pub fn adapter(mut self, path: impl Into<PathBuf>, weight: f64) -> Self {
        self.adapters.push((path.into(), weight));
        self
    }

    /// The model the adapters were trained on, for tensors they hold whole.
    pub fn base(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = Some(base.into());
        self
    }

    /// Stacks.
    ///
    /// # Errors
    /// When an input is malformed, adapters have no sum, or the result cannot be written. Nothing is left behind then.
    pub fn run(&self) -> Result<StackReport> {
        alone(|run| self.run_with(run))
    }

    /// The same, watched by `run`.
    ///
    /// # Errors
    /// As [`Stack::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<StackReport> {
        let common = &self.common;
        let options = StackOptions {
            base: self.base.clone(),
            rank: common.ranks()?,
            selection: common.selection()?,
            dialect: common.dialect.clone(),
            ..StackOptions::new(weighted(&self.adapters)?, common.write()?)
        };
        stack(&options, run)
    }
}
