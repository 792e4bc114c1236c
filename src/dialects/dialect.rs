//! What there is to know of a dialect: one record each, in its own file, and one line of [`ALL`](super::ALL).

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::ALL;
use super::files::{Facts, Files};
use super::opened::{Opened, Source};
use super::pieces::Pieces;
use super::same::SAFETENSORS;
use super::spell::{Respelled, Wanted};
use super::translate::fit;
use crate::adapters::Adapter;
use crate::error::{Error, Result};
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
    /// Who wrote it, and what is unknown of files whose config is not there.
    pub lacks: Option<(&'static str, &'static str)>,
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
    };

    /// The dialect of an adapter that was read.
    ///
    /// ```
    /// let adapter = lorakit::adapters::Adapter::open("fixtures/tiny/adapter".as_ref())?;
    /// assert_eq!(lorakit::dialects::Dialect::of(adapter.dialect).title, "PEFT");
    /// # Ok::<(), lorakit::Error>(())
    /// ```
    pub fn of(name: &str) -> &'static Self {
        ALL.iter().find(|dialect| dialect.name == name).copied().unwrap_or(&super::peft::PEFT)
    }

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

/// What is written: a handle on one of the dialects that have a writer, or the one that an adapter has.
///
/// ```
/// let target: lorakit::Target = "kohya".parse()?;
/// assert_eq!((target, target.name()), (lorakit::Target::KOHYA, "kohya"));
/// # Ok::<(), lorakit::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Target(&'static Dialect);

impl Target {
    /// Adapters as PEFT saves them.
    pub const PEFT: Self = Self(&super::peft::PEFT);
    /// Adapters as sd-scripts saves them.
    pub const KOHYA: Self = Self(&super::kohya::KOHYA);
    /// Adapters as ComfyUI saves them.
    pub const COMFYUI: Self = Self(&super::kohya::COMFYUI);
    /// Adapters as diffusers saves them.
    pub const DIFFUSERS: Self = Self(&super::diffusers::DIFFUSERS);
    /// Adapters as MLX saves them.
    pub const MLX: Self = Self(&super::mlx::MLX);
    /// Adapters and checkpoints for llama.cpp.
    pub const GGUF: Self = Self(&super::gguf::GGUF);
    /// Adapters as AdapterHub saves them.
    pub const ADAPTERHUB: Self = Self(&super::adapterhub::ADAPTERHUB);
    /// Adapters as XLabs' trainer saves them.
    pub const XLABS: Self = Self(&super::xlabs::XLABS);
    /// Adapters as torchtune loads them.
    pub const TORCHTUNE: Self = Self(&super::torchtune::TORCHTUNE);
    /// Checkpoints; adapters keep their dialect.
    pub const SAFETENSORS: Self = Self(&SAFETENSORS);

    /// The dialects that are written.
    pub fn dialects() -> impl Iterator<Item = Self> {
        ALL.iter().filter(|dialect| dialect.write.is_some()).map(|dialect| Self(dialect))
    }

    /// Everything that can be asked for.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::dialects().chain([Self::SAFETENSORS])
    }

    /// Names for a help text.
    pub fn listed(targets: impl Iterator<Item = Self>) -> String {
        targets.map(Self::name).collect::<Vec<_>>().join(", ")
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Its facts; those of no dialect where an adapter keeps its own.
    pub fn dialect(self) -> &'static Dialect {
        self.0
    }

    /// In which dialect an adapter of the dialect `own` is written.
    pub fn over(self, own: &str) -> &'static Dialect {
        if self == Self::SAFETENSORS { Dialect::of(own) } else { self.0 }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Target {}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::invalid("--to", format!("`{text}` is not one of {}", Self::listed(Self::all())));
        Self::all().find(|target| target.name() == text).ok_or_else(unknown)
    }
}
