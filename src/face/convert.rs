//! `Convert`.

use std::path::PathBuf;

use super::common::{Common, alone, writes};
use crate::dialects::Target;
use crate::error::Result;
use crate::ops::Run;
use crate::ops::convert::{ConvertOptions, Converted, convert};

/// An adapter in another dialect, or a model in another container or dtype.
///
/// For models, [`include`](Convert::include) and [`exclude`](Convert::exclude) say which tensors are cast.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("mlx");
/// use lorakit::{Convert, Target};
///
/// Convert::new("fixtures/tiny/adapter").to(Target::MLX).base("fixtures/tiny/base").out(&out).run()?;
/// assert_eq!(lorakit::Adapter::open(&out)?.dialect(), "mlx");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is done until it runs"]
pub struct Convert {
    input: PathBuf,
    base: Option<PathBuf>,
    to: Option<Target>,
    common: Common,
}

writes!(Convert);

impl Convert {
    /// Of an adapter or a model.
    pub fn new(input: impl Into<PathBuf>) -> Self {
        Self { input: input.into(), base: None, to: None, common: Common::default() }
    }

    /// What is written; a model becomes safetensors, if nothing is said.
    pub fn to(mut self, target: Target) -> Self {
        self.to = Some(target);
        self
    }

    /// The model an adapter belongs to, where its names or shapes are needed.
    pub fn base(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = Some(base.into());
        self
    }

    /// Converts.
    ///
    /// # Errors
    /// When the input is malformed, or the target cannot express it. Nothing is left behind then.
    pub fn run(&self) -> Result<Converted> {
        alone(|run| self.run_with(run))
    }

    /// The same, watched by `run`.
    ///
    /// # Errors
    /// As [`Convert::run`], and when it was stopped.
    pub fn run_with(&self, run: &Run<'_>) -> Result<Converted> {
        let [include, exclude] = self.common.patterns()?;
        let mut write = self.common.write()?;
        write.cast_all = write.dtype.is_some();
        let (to, base) = (self.to, self.base.clone());
        convert(&ConvertOptions { to, base, include, exclude, ..ConvertOptions::new(&self.input, write) }, run)
    }
}
