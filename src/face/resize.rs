//! `Resize`.

use std::path::PathBuf;

use super::common::{Common, alone, makes_adapters, writes};
use crate::error::Result;
use crate::ops::Run;
use crate::ops::resize::{ResizeOptions, ResizeReport, resize};

/// An adapter, or a folder of adapters, with other ranks.
///
/// Ranks have to be chosen, by [`rank`](Resize::rank), [`energy`](Resize::energy) or [`max_bytes`](Resize::max_bytes).
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let small = folder.path().join("small");
/// lorakit::Resize::new("fixtures/tiny/adapter").rank(2).out(&small).run()?;
/// assert!(lorakit::Adapter::open(&small)?.modules().iter().all(|module| module.rank == Some(2)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is done until it runs"]
pub struct Resize {
    adapters: Vec<PathBuf>,
    base: Option<PathBuf>,
    common: Common,
}

writes!(Resize);
makes_adapters!(Resize);

impl Resize {
    /// Of an adapter, or of all adapters of a folder.
    pub fn new(adapter: impl Into<PathBuf>) -> Self {
        Self { adapters: vec![adapter.into()], base: None, common: Common::default() }
    }

    /// One more adapter; the output of several is a folder of them.
    pub fn and(mut self, adapter: impl Into<PathBuf>) -> Self {
        self.adapters.push(adapter.into());
        self
    }

    /// The model the adapters are for, where their method needs it.
    pub fn base(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = Some(base.into());
        self
    }

    /// Resizes. With several adapters, one that fails does not keep the others from being done: see
    /// [`failed`](ResizeReport::failed).
    ///
    /// # Errors
    /// When no ranks are chosen, or the only adapter cannot be resized.
    pub fn run(&self) -> Result<ResizeReport> {
        alone(|run| self.run_with(run))
    }

    /// The same, watched by `run`.
    ///
    /// # Errors
    /// As [`Resize::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<ResizeReport> {
        let common = &self.common;
        let options = ResizeOptions {
            base: self.base.clone(),
            selection: common.selection()?,
            dialect: common.dialect.clone(),
            ..ResizeOptions::new(self.adapters.clone(), common.some_ranks()?, common.write()?)
        };
        resize(&options, run)
    }
}
