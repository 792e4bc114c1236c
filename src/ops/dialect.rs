//! A new adapter on disk: PEFT's as it is made, any other dialect by the writers of `convert`.
//!
//! For another dialect the adapter of PEFT is written beside the output first, read again like any other input, and removed: what
//! comes out is what the same verb and `convert` after it would give, and memory is bounded as it is there.

use std::path::Path;

use serde_json::Value;

use super::convert::{self, ConvertOptions, Target};
use super::new_adapter::refuse_file_name;
use super::output::{Output, Run};
use super::writing::WriteOptions;
use super::{Budgeted, RankChoice, Ranking};
use crate::error::{Error, Result};
use crate::naming::components;
use crate::plan::Quiet;

/// How a new adapter is written.
#[derive(Debug, Clone, Default)]
pub struct Dialect {
    /// `None` is PEFT's.
    pub to: Option<Target>,
    /// The architecture, where the names of modules do not tell.
    pub arch: Option<String>,
}

/// What was written.
pub struct Written {
    /// Bytes of the output.
    pub bytes: u64,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

impl Dialect {
    /// What is written if it is not PEFT's own form.
    pub fn foreign(&self) -> Option<Target> {
        self.to.filter(|target| !matches!(target, Target::Peft | Target::Safetensors))
    }

    /// As on the command line.
    pub fn name(&self) -> &'static str {
        self.foreign().unwrap_or(Target::Peft).name()
    }

    /// What an output called `name` is called as a file or directory.
    pub fn file_name(&self, name: &str) -> String {
        match self.foreign() {
            Some(Target::Kohya | Target::ComfyUi | Target::XLabs) => format!("{name}.safetensors"),
            Some(Target::Gguf) => format!("{name}.gguf"),
            _ => name.to_owned(),
        }
    }

    /// Records the choice among the `options` of a recipe, where it is one.
    pub fn note(&self, options: &mut serde_json::Map<String, Value>) {
        options.extend(self.foreign().map(|_| ("to".to_owned(), self.name().into())));
        options.extend(self.arch.as_ref().map(|arch| ("arch".to_owned(), arch.as_str().into())));
    }

    /// Finds out before the work whether the output has a name that fits.
    ///
    /// # Errors
    /// When a directory is named like a file.
    pub fn check_out(&self, out: &Path) -> Result<()> {
        match self.foreign() {
            None | Some(Target::Mlx | Target::AdapterHub | Target::Torchtune) => refuse_file_name(out),
            Some(_) => Ok(()),
        }
    }

    /// Finds out before the work whether adapters of the model at `root` can be written at all; `tensors` are its names.
    ///
    /// # Errors
    /// When they cannot.
    pub fn check<'a>(&self, root: &Path, mut tensors: impl Iterator<Item = &'a str>) -> Result<()> {
        let pipelines =
            matches!(self.foreign(), Some(Target::Kohya | Target::ComfyUi | Target::Diffusers | Target::XLabs));
        if pipelines && !tensors.any(|name| components::is_diffusion(&components::with_component(name))) {
            let what = format!("is no part of a diffusion pipeline, and adapters of {} are for those", self.name());
            return Err(Error::unsupported(root, what));
        }
        Ok(())
    }

    /// Writes the adapter `peft`, which was made by `recipe`. `base` is the model it is for, where it is at hand.
    ///
    /// # Errors
    /// When the dialect cannot express it, or it cannot be written; nothing is left behind then.
    pub fn write(
        &self,
        peft: &Output,
        recipe: &Value,
        base: Option<&Path>,
        options: &WriteOptions,
        run: &Run<'_>,
    ) -> Result<Written> {
        let Some(target) = self.foreign() else {
            if !options.dry_run {
                peft.write(options, run)?;
            }
            return Ok(Written { bytes: peft.bytes(), notes: Vec::new() });
        };
        let quiet = Run { cancel: run.cancel, progress: &Quiet };
        let staged = peft.stage(options, &quiet)?;
        let wanted = ConvertOptions {
            quant: None,
            input: staged.path().to_owned(),
            to: Some(target),
            base: base.map(Path::to_owned),
            caches: Vec::new(),
            component: None,
            arch: self.arch.clone(),
            as_lora: false,
            include: Vec::new(),
            exclude: Vec::new(),
            strip_metadata: Vec::new(),
            write: WriteOptions { dtype: None, ..options.clone() },
        };
        let (output, notes) = convert::new_adapter(&wanted, recipe)?;
        if !options.dry_run {
            output.write(options, run)?;
        }
        Ok(Written { bytes: output.bytes(), notes })
    }
}

/// What to say of an adapter that became larger than `ranks` allow, because another dialect needs more room.
pub fn beyond_budget(ranks: &RankChoice, dialect: &Dialect, bytes: u64) -> Option<String> {
    match ranks.ranking {
        Ranking::Budget(Budgeted::Bytes(most)) if bytes > most && dialect.foreign().is_some() => {
            Some(format!("{} takes {bytes} bytes where PEFT keeps to the {most} of the budget", dialect.name()))
        }
        _ => None,
    }
}
