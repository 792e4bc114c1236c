//! A new adapter on disk: PEFT's as it is made, any other dialect by the writers of `convert`.
//!
//! For another dialect the adapter of PEFT is written beside the output first, read again like any other input, and removed: what
//! comes out is what the same verb and `convert` after it would give, and memory is bounded as it is there.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::convert::{self, ConvertOptions, Target};
use crate::dialects::ADAPTERHUB_HEADS;
use crate::error::{Error, Result};
use crate::io::Inputs;
use crate::naming::components;
use crate::output::new_adapter::refuse_file_name;
use crate::output::options::check_name;
use crate::output::{Expected, Output, Run, WriteOptions};
use crate::plan::Quiet;
use crate::truncate::{Budgeted, RankChoice, Ranking};

/// What the writers of all dialects call their files, beside the heads of AdapterHub.
const NAMES: [&str; 8] = [
    "adapter.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapters.safetensors",
    "config.json",
    "head_config.json",
    "lorakit.json",
    "pytorch_lora_weights.safetensors",
];

/// The option that says which of several denoisers is meant.
const COMPONENT: &str = "--component";

/// How a new adapter is written.
#[derive(Debug, Clone, Default)]
pub struct Dialect {
    /// `None` is PEFT's.
    pub to: Option<Target>,
    /// The architecture, where the names of modules do not tell.
    pub arch: Option<String>,
}

/// Where the adapter that is written comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// An input it was made of, by which messages name it.
    pub input: &'a Path,
    /// The model it is for, where it is at hand.
    pub base: Option<&'a Path>,
    /// Whether the verb can be told which denoiser is meant.
    pub component: bool,
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

    /// Whether the output `out` is one file.
    fn is_file(&self, out: &Path) -> bool {
        match self.foreign() {
            Some(Target::Kohya | Target::ComfyUi | Target::XLabs | Target::Gguf) => true,
            Some(Target::Diffusers) => out.extension().is_some_and(|ending| ending == "safetensors"),
            _ => false,
        }
    }

    /// What is known of the output `out` before it is made; `copied` files may lie in it as well.
    pub fn expected(&self, out: &Path, copied: impl Iterator<Item = PathBuf>) -> Expected {
        if self.is_file(out) {
            return Expected::File;
        }
        Expected::Directory(NAMES.iter().chain(&ADAPTERHUB_HEADS).map(PathBuf::from).chain(copied).collect())
    }

    /// Records the choice among the `options` of a recipe, where it is one.
    pub fn note(&self, options: &mut serde_json::Map<String, Value>) {
        options.extend(self.foreign().map(|_| ("to".to_owned(), self.name().into())));
        options.extend(self.arch.as_ref().map(|arch| ("arch".to_owned(), arch.as_str().into())));
    }

    /// Finds out before the work whether the output has a name that fits.
    ///
    /// # Errors
    /// When a directory is named like a file, or a file like one of another format.
    pub fn check_out(&self, out: &Path) -> Result<()> {
        let format = if self.foreign() == Some(Target::Gguf) { "gguf" } else { "safetensors" };
        match self.is_file(out) || self.foreign() == Some(Target::Diffusers) {
            true => check_name(out, self.is_file(out), format),
            false => refuse_file_name(out),
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

    /// Writes the adapter `peft`, which was made by `recipe`.
    ///
    /// # Errors
    /// When the dialect cannot express it, or it cannot be written; nothing is left behind then.
    pub fn write(
        &self,
        peft: &Output,
        recipe: &Value,
        origin: Origin<'_>,
        options: &WriteOptions,
        run: &Run<'_>,
        inputs: &Inputs,
    ) -> Result<Written> {
        let Some(target) = self.foreign() else {
            peft.write(options, run, inputs)?;
            return Ok(Written { bytes: peft.bytes(), notes: Vec::new() });
        };
        let quiet = Run { cancel: run.cancel, progress: &Quiet };
        let staged = peft.stage(options, &quiet)?;
        let wanted = ConvertOptions {
            read: crate::adapters::ReadOptions::default(),
            quant: None,
            input: staged.path().to_owned(),
            to: Some(target),
            base: origin.base.map(Path::to_owned),
            caches: Vec::new(),
            component: None,
            arch: self.arch.clone(),
            as_lora: false,
            include: Vec::new(),
            exclude: Vec::new(),
            strip_metadata: Vec::new(),
            write: WriteOptions { dtype: None, ..options.clone() },
        };
        let (output, notes) = convert::new_adapter(&wanted, origin.input, recipe).map_err(|error| {
            let way = error.way_out().filter(|way| !origin.component && way.contains(COMPONENT)).map(|way| {
                format!("without `--to` it is written; then `lorakit convert --to {}`, {way}", target.name())
            });
            match way {
                Some(way) => error.hint(way),
                None => error,
            }
        })?;
        output.write(options, run, inputs)?;
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
