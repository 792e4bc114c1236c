//! `Resize`.

use std::path::PathBuf;

use super::common::{Common, makes_adapters, runs, writes};
use crate::error::Result;
use crate::ops::sum::{Intruders, ResizeReport, SumOptions, resize};
use crate::ops::{RankChoice, Ranking, Run};

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
    intruders: Option<Intruders>,
    common: Common,
}

writes!(Resize);
makes_adapters!(Resize);
runs!(Resize, ResizeReport);

impl Resize {
    /// Of an adapter, or of all adapters of a folder.
    pub fn new(adapter: impl Into<PathBuf>) -> Self {
        Self { adapters: vec![adapter.into()], base: None, intruders: None, common: Common::default() }
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

    /// Weakens directions that the [`base`](Resize::base) does not have, as PEFT's `reduce_intruder_dimension` does. Ranks stay if none are
    /// chosen.
    pub fn remove_intruders(mut self, intruders: Intruders) -> Self {
        self.intruders = Some(intruders);
        self
    }

    /// The same as [`Resize::run`], watched by `run`. With several adapters, one that fails does not keep the others from being done:
    /// see [`failed`](ResizeReport::failed).
    ///
    /// # Errors
    /// As [`Resize::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<ResizeReport> {
        let common = &self.common;
        let (base, selection, dialect) = (self.base.clone(), common.selection()?, common.dialect.clone());
        let own = self.intruders.map(|_| RankChoice::new(Ranking::Own));
        let ranks = RankChoice::required(common.ranks.or(own))?;
        let options = SumOptions::resize(self.adapters.clone(), ranks, common.write()?);
        resize(&SumOptions { base, selection, dialect, intruders: self.intruders, ..options }, run)
    }
}
