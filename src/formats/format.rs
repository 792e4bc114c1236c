//! The containers that can be read, as records: each declares its facts in its own file and is one line here.

use std::path::Path;
use std::sync::Arc;

use super::found::Found;
#[cfg(test)]
use super::toy;
use super::{gguf, npy, pickle, safetensors};
use crate::error::Result;
use crate::io::MappedFile;

/// A container and the facts about it.
#[derive(Debug)]
pub struct Format {
    /// The name that people know.
    pub name: &'static str,
    /// What a file is called that has one of the endings: `a PyTorch file`.
    pub called: &'static str,
    /// What made such a file: `a file of numpy`.
    pub made: &'static str,
    /// The endings of its files, in the order they are looked for.
    pub endings: &'static [&'static str],
    /// A file holds as many tensors as a model has.
    pub holds_models: bool,
    /// It is written as well. Its tensors lie in the file as they are.
    pub is_written: bool,
    /// The tensors of a file; `None` for a file of another container.
    pub read: fn(&Arc<MappedFile>) -> Result<Option<Found>>,
}

/// All containers, in the order they are looked for.
pub static FORMATS: &[&Format] = &[
    &safetensors::FORMAT,
    &pickle::FORMAT,
    &pickle::LEGACY,
    &npy::NPZ,
    &npy::NPY,
    &gguf::FORMAT,
    #[cfg(test)]
    &toy::FORMAT,
];

impl Format {
    /// The container that the ending of a file's name tells.
    pub fn named(name: &Path) -> Option<&'static Self> {
        let ending = name.extension()?.to_str()?;
        FORMATS.iter().find(|format| format.endings.contains(&ending)).copied()
    }

    /// Whether a file of this name can hold a model or an adapter, by its ending.
    pub fn is_of_weights(name: &Path) -> bool {
        Self::named(name).is_some_and(|format| format.holds_models)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The endings of files that can hold a model or an adapter, in the order they are looked for.
pub fn endings() -> impl Iterator<Item = &'static str> + Clone {
    FORMATS.iter().filter(|format| format.holds_models).flat_map(|format| format.endings).copied()
}
