//! `Subtract`.

use std::path::PathBuf;

use super::common::{Common, runs, sums, weighted, writes};
use crate::dialects::recognise;
use crate::error::Result;
use crate::ops::Run;
use crate::ops::sum::{Operation, SumOptions, SumReport, sum};
use crate::ops::unmerge::{UnmergeOptions, Unmerged, unmerge};

/// Adapters taken out of the model they were merged into, or subtracted from another adapter.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let (merged, back) = (folder.path().join("merged"), folder.path().join("back"));
/// # let (base, adapter) = ("fixtures/tiny/base", "fixtures/tiny/adapter");
/// # lorakit::Merge::new(base).adapter(adapter, 1.0).out(&merged).run()?;
/// let found = lorakit::Subtract::new(&merged).adapter(adapter, 1.0).base(base).out(&back).run()?;
/// let lorakit::Subtracted::Compared(report) = found else { panic!("a model and its base are compared") };
/// assert_eq!(report.exact, Some(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is done until it runs"]
pub struct Subtract {
    from: PathBuf,
    adapters: Vec<(PathBuf, f64)>,
    base: Option<PathBuf>,
    common: Common,
}

/// What [`Subtract`] did.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let adapter = "fixtures/tiny/adapter";
/// let half = lorakit::Subtract::new(adapter).adapter(adapter, 0.5).out(folder.path().join("half")).run()?;
/// assert!(matches!(half, lorakit::Subtracted::Adapter(report) if report.made.modules.len() == 14));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Subtracted {
    /// An adapter was made: the report is that of a stack with negated weights.
    Adapter(Box<SumReport>),
    /// ΔW was subtracted from a model: the report is that of a merge with negated weights.
    Model(Box<crate::ops::merge::MergeReport>),
    /// The model was compared with the merge of its base, whose weights are written.
    Compared(Box<crate::ops::unmerge::UnmergeReport>),
}

writes!(Subtract);
runs!(Subtract, Subtracted);
sums!(
    Subtract,
    "The model before the merge: proves the merge, and gives its weights back bit for bit. Of adapters the model they were trained on, \
     for tensors they hold whole."
);

impl Subtract {
    /// From a merged model or an adapter.
    pub fn new(from: impl Into<PathBuf>) -> Self {
        Self { from: from.into(), adapters: Vec::new(), base: None, common: Common::default() }
    }

    /// The same as [`Subtract::run`], watched by `run`.
    ///
    /// # Errors
    /// As [`Subtract::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<Subtracted> {
        let (base, selection) = (self.base.clone(), self.common.selection()?);
        let (mut adapters, write) = (weighted(&self.adapters)?, self.common.write()?);
        if recognise(&self.from).0 {
            adapters.iter_mut().for_each(|(_, weight)| *weight = -*weight);
            adapters.insert(0, (self.from.clone(), 1.0));
            let operation = Operation::Subtract;
            let options = SumOptions { operation, base, selection, ..SumOptions::new(adapters, write) };
            return sum(&options, run).map(Box::new).map(Subtracted::Adapter);
        }
        let options = UnmergeOptions { base, selection, ..UnmergeOptions::new(&self.from, adapters, write) };
        Ok(match unmerge(&options, run)? {
            Unmerged::Subtracted(report) => Subtracted::Model(report),
            Unmerged::Compared(report) => Subtracted::Compared(report),
        })
    }
}
