//! `Extract`.

use std::path::PathBuf;

use super::common::{Common, makes_adapters, runs, writes};
use crate::error::Result;
use crate::ops::Run;
use crate::ops::extract::{Choice, ExtractOptions, ExtractReport, extract};

/// What made one model of another, as an adapter.
///
/// Ranks are chosen by [`rank`](Extract::rank), [`energy`](Extract::energy) or [`max_bytes`](Extract::max_bytes); otherwise each
/// ends where nothing but the rounding of what was tuned is left.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let (tuned, lora) = (folder.path().join("tuned"), folder.path().join("lora"));
/// # lorakit::Merge::new("fixtures/tiny/base").adapter("fixtures/tiny/adapter", 1.0).out(&tuned).run()?;
/// let report = lorakit::Extract::new("fixtures/tiny/base", &tuned).rank(4).out(&lora).run()?;
/// assert_eq!((report.made.modules.len(), report.unchanged), (14, 7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is done until it runs"]
pub struct Extract {
    base: PathBuf,
    tuned: PathBuf,
    common: Common,
}

writes!(Extract);
makes_adapters!(Extract);
runs!(Extract, ExtractReport);

impl Extract {
    /// From the model `base` and what it became.
    pub fn new(base: impl Into<PathBuf>, tuned: impl Into<PathBuf>) -> Self {
        Self { base: base.into(), tuned: tuned.into(), common: Common::default() }
    }

    /// The same as [`Extract::run`], watched by `run`.
    ///
    /// # Errors
    /// As [`Extract::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<ExtractReport> {
        let common = &self.common;
        let [include, skip] = common.patterns()?;
        let options = ExtractOptions::new(&self.base, &self.tuned, common.write()?);
        let choice = Choice { include, skip, ..Choice::default() };
        extract(&ExtractOptions { choice, ranks: common.ranks, dialect: common.dialect.clone(), ..options }, run)
    }
}
