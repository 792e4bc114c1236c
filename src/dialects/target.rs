//! Dialects by their names: what an option asks for, and what an adapter is in.

use std::fmt;
use std::str::FromStr;

use super::ALL;
use super::dialect::Dialect;
use super::same::SAFETENSORS;
use crate::error::{Error, Result};

impl Dialect {
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

/// What people call a dialect by: its programs.
const OTHER_NAMES: [(&str, &str); 11] = [
    ("comfy", "comfyui"),
    ("diffuser", "diffusers"),
    ("sd-scripts", "kohya"),
    ("kohya-ss", "kohya"),
    ("a1111", "kohya"),
    ("forge", "kohya"),
    ("mlx-lm", "mlx"),
    ("llama.cpp", "gguf"),
    ("ollama", "gguf"),
    ("hf", "peft"),
    ("transformers", "peft"),
];

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

    /// The dialect called `name`, if it is written.
    pub fn written(name: &str) -> Option<Self> {
        Self::dialects().find(|target| target.name() == name)
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
        let lower = text.to_lowercase();
        let name = OTHER_NAMES.iter().find(|(other, _)| *other == lower).map_or(lower.as_str(), |(_, name)| name);
        Self::all().find(|target| target.name() == name).ok_or_else(unknown)
    }
}
