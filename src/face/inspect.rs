//! `Inspect`.

use std::path::PathBuf;

use super::common::{alone, budget};
use crate::error::Result;
use crate::ops::Run;
use crate::ops::inspect::{InspectOptions, Inspection, inspect};

/// What a model or an adapter is: format, dtypes, modules, ranks, scales, and what is wrong with it.
///
/// ```
/// use lorakit::Inspect;
/// use lorakit::ops::inspect::Inspection;
///
/// let Inspection::Adapter(facts) = Inspect::new("fixtures/tiny/adapter").run()? else { panic!("it is an adapter") };
/// assert_eq!((facts.dialect, facts.pairs), ("peft", 14));
/// # Ok::<(), lorakit::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is done until it runs"]
pub struct Inspect {
    path: PathBuf,
    base: Option<PathBuf>,
    spectrum: bool,
    check: bool,
    threads: Option<usize>,
}

impl Inspect {
    /// Of what lies at `path`: a directory or a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), base: None, spectrum: false, check: false, threads: None }
    }

    /// The model an adapter is for: says whether they fit.
    pub fn base(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = Some(base.into());
        self
    }

    /// Computes the singular values of every change.
    pub fn spectrum(mut self) -> Self {
        self.spectrum = true;
        self
    }

    /// Reads the values as well: hashes, zeros, what is not finite.
    pub fn check(mut self) -> Self {
        self.check = true;
        self
    }

    /// Worker threads; all processors, if nothing is said.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Looks.
    ///
    /// # Errors
    /// When headers or configs cannot be read.
    pub fn run(&self) -> Result<Inspection> {
        alone(|run| self.run_with(run))
    }

    /// The same, watched by `run`.
    ///
    /// # Errors
    /// As [`Inspect::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<Inspection> {
        let options = InspectOptions {
            base: self.base.clone(),
            spectrum: self.spectrum,
            check: self.check,
            budget: budget(self.threads)?,
            ..InspectOptions::default()
        };
        inspect(&self.path, &options, run)
    }
}
