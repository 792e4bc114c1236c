//! What the reader of a dialect is given, and what it makes of it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::dialect::Dialect;
use crate::adapters::config::{AdapterConfig, CONFIG_NAME};
use crate::adapters::options::Chosen;
use crate::adapters::{Adapter, AlphaFrom, Module, Needed, ReadOptions};
use crate::error::{Error, Result};
use crate::formats::Checkpoint;

/// An adapter as it was read.
pub(crate) struct Opened {
    pub root: PathBuf,
    pub dialect: &'static Dialect,
    pub config: AdapterConfig,
    pub tensors: Checkpoint,
    /// The changes, or why they cannot be put together.
    pub modules: Result<Vec<Module>>,
    pub needed: Needed,
}

impl Opened {
    pub(super) fn new(
        root: &Path,
        dialect: &'static Dialect,
        config: AdapterConfig,
        tensors: Checkpoint,
        modules: Result<Vec<Module>>,
    ) -> Self {
        let needed = Needed { alpha: config.alpha_from == Some(AlphaFrom::Told), ..Needed::default() };
        Self { root: root.to_path_buf(), dialect, config, tensors, modules, needed }
    }

    /// The adapter, and why it cannot be used. It has no modules where they cannot be put together.
    pub(super) fn examined(self) -> (Adapter, Option<Error>) {
        let Self { root, dialect: Dialect { name: dialect, .. }, config, tensors, modules, needed } = self;
        let (modules, problem) = match modules {
            Ok(modules) => (modules, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        let adapter = Adapter { root, dialect, config, tensors, modules, needed, packings: Vec::new() };
        let problem = problem.or_else(|| adapter.check_pairs().err());
        (adapter, problem)
    }
}

/// What an adapter is read from.
pub struct Source<'a> {
    /// The directory, or that of the file.
    pub root: &'a Path,
    /// The config beside the weights; empty where there is none.
    pub raw: Map<String, Value>,
    /// Its tensors.
    pub tensors: Checkpoint,
    /// Which of several adapters in one file is meant.
    pub chosen: &'a Chosen,
    /// What the files leave open.
    pub options: &'a ReadOptions,
}

impl Source<'_> {
    /// The config as one of PEFT's.
    ///
    /// # Errors
    /// When it is none, or a setting that matters cannot be understood.
    pub(super) fn config(&self) -> Result<AdapterConfig> {
        AdapterConfig::parse(self.root.join(CONFIG_NAME), self.raw.clone())
    }
}
