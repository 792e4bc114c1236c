//! What there is to know of a dialect: one record each, in its own file, and one line of [`ALL`](super::ALL).

use std::path::Path;

use serde_json::{Map, Value};

use super::files::{Facts, Files};
use super::fit::fit;
use super::opened::{Opened, Source};
use super::pieces::Pieces;
use super::spell::{Respelled, Wanted};
use crate::adapters::Adapter;
use crate::error::Result;
use crate::formats::Checkpoint;

/// One dialect of adapters. What differs between dialects is a field here, and nobody else asks for a name.
pub struct Dialect {
    /// As it is called on the command line and in reports.
    pub name: &'static str,
    /// As its own people write it.
    pub title: &'static str,
    /// Whether an output is a file or a directory.
    pub form: Form,
    /// What may lie in a directory of it; the weight file first.
    pub files: &'static [&'static str],
    /// Whose names of modules it takes.
    pub names: Wanted,
    /// Its adapters are for image and video pipelines.
    pub pipelines: bool,
    /// The only family of models that its tool knows.
    pub family: Option<&'static str>,
    /// What is written depends on the config of the model.
    pub wants_config: bool,
    /// Stacks of experts are written as pairs of single experts.
    pub takes_experts: bool,
    /// Stacks of experts are written as they are, in one pair for all experts.
    pub keeps_stacks: bool,
    /// Settings that make an adapter impossible to merge, and that it can say.
    pub says: &'static [&'static str],
    /// The task its adapters are for, as PEFT calls it.
    pub task: Option<&'static str>,
    /// Its config declares method, DoRA and modules that are whole: the tensors have to agree.
    pub declares: bool,
    /// α stands beside the factors of every module.
    pub own_alphas: bool,
    /// Methods beside LoRA are named and scaled as by LyCORIS.
    pub lycoris: bool,
    /// What is unknown of files whose config is not there.
    pub lacks: Option<&'static str>,
    /// Whether `adapter_config.json` is one of its own.
    pub has_config: fn(&Map<String, Value>) -> bool,
    /// Whether tensors beside a config of PEFT's are its own.
    pub has_tensors: fn(&Checkpoint) -> bool,
    /// Reads files whose config is its own; those of other dialects say themselves what they are.
    pub(crate) read: Option<fn(Source<'_>) -> Result<Opened>>,
    /// Makes the modules those that it has.
    pub fit: fn(&mut Pieces, &Facts<'_>, &mut Respelled) -> Result<()>,
    /// Writes it, if it is written.
    pub write: Option<fn(Pieces, &Facts<'_>) -> Result<Files>>,
    /// Adds what lies beside an adapter and is taken along where it stays in its dialect.
    pub beside: fn(&Adapter, &mut Files) -> Result<()>,
    /// A key as it is called today, where older versions called it otherwise.
    pub key_of_today: fn(&str) -> String,
}

/// What an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A directory.
    Directory,
    /// One file with this ending.
    File(&'static str),
    /// A safetensors file where it is named like one, else a directory.
    Either,
}

impl Dialect {
    /// What holds of most dialects.
    pub(super) const PLAIN: Self = Self {
        name: "",
        title: "",
        form: Form::Directory,
        files: &["adapter.safetensors"],
        names: Wanted::Own,
        pipelines: false,
        family: None,
        wants_config: false,
        takes_experts: false,
        keeps_stacks: false,
        says: &[],
        task: None,
        declares: false,
        own_alphas: false,
        lycoris: true,
        lacks: None,
        has_config: |_| false,
        has_tensors: |_| false,
        read: None,
        fit,
        write: None,
        beside: |_, _| Ok(()),
        key_of_today: str::to_owned,
    };

    /// Whether the output `out` is one file.
    pub fn is_file(&self, out: &Path) -> bool {
        match self.form {
            Form::Directory => false,
            Form::File(_) => true,
            Form::Either => out.extension().is_some_and(|ending| ending == "safetensors"),
        }
    }

    /// What an output called `name` is called as a file or directory.
    pub fn file_name(&self, name: &str) -> String {
        match self.form {
            Form::File(ending) => format!("{name}.{ending}"),
            Form::Directory | Form::Either => name.to_owned(),
        }
    }
}
