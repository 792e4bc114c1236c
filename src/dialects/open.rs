//! Any adapter on disk → its modules. What it is, its config tells where there is one, else the names of its tensors.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::adapterhub::read as adapterhub;
use super::gguf::read as gguf;
use super::mlx::read as mlx;
use super::peft::read as peft;
use super::torchtune::read as torchtune;
use super::{recognise, unaided};
use crate::adapters::config::{AdapterConfig, CONFIG_NAME};
use crate::adapters::{Adapter, Module};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, json};

/// File stems under which the libraries store adapters.
const STEMS: [&str; 5] = ["adapter_model", "adapters", "adapter", "pytorch_adapter", "pytorch_lora_weights"];

/// An adapter as it was read.
pub(crate) struct Opened {
    pub root: PathBuf,
    pub dialect: &'static str,
    pub config: AdapterConfig,
    pub tensors: Checkpoint,
    /// The changes, or why they cannot be put together.
    pub modules: Result<Vec<Module>>,
}

/// Whose config lies beside the weights.
enum Settings {
    Peft,
    Mlx(Map<String, Value>),
    AdapterHub(Map<String, Value>),
}

/// Reads headers and config of the adapter at `path`; `file` is that file, if it is open already.
///
/// # Errors
/// When a file is missing or malformed, or is no adapter's.
pub(crate) fn open(path: &Path, file: Option<Checkpoint>) -> Result<Opened> {
    let kind = std::fs::metadata(path).map_err(|source| Error::io(path, "cannot open", source))?;
    if let Some(found) = gguf::file_of(path).filter(|_| !kind.is_dir() || !path.join(CONFIG_NAME).is_file()) {
        return gguf::open(file.map_or_else(|| Checkpoint::open(&found), Ok)?);
    }
    let (root, settings) = if kind.is_dir() {
        (path, settings(path)?)
    } else {
        let root = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (root, settings(root)?)
    };
    if kind.is_dir() && settings.is_none() && !recognise::has_adapter_file(path) {
        return Err(AdapterConfig::read(path).err().unwrap_or_else(|| recognise::no_adapter(path)));
    }
    let tensors = match file {
        Some(file) => file,
        None if kind.is_dir() => Checkpoint::open_directory(path, &STEMS)?,
        None => Checkpoint::open(path)?,
    };
    if !kind.is_dir() && recognise::speaks_for_itself(&tensors) {
        return unaided::open(root, tensors);
    }
    match settings {
        None => unaided::open(root, tensors),
        Some(Settings::Peft) if torchtune::is_ours(&tensors) => torchtune::open(root, tensors),
        Some(Settings::Peft) => peft::open(root, tensors),
        Some(Settings::Mlx(raw)) => mlx::open(root, raw, tensors),
        Some(Settings::AdapterHub(raw)) => adapterhub::open(root, raw, tensors),
    }
}

impl Adapter {
    /// Opens the adapter in the directory `path`, or the weight file `path`, with its config beside it where its dialect has one.
    ///
    /// # Errors
    /// When a file is missing or malformed, and when tensors that belong together do not fit: half a pair, ranks that
    /// disagree with each other or with the config.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, None)
    }

    /// Opens an adapter to be described: also gives the problem for which [`Adapter::open`] refuses it. `modules` is empty
    /// where the tensors cannot be put together.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn examine(path: &Path) -> Result<(Self, Option<Error>)> {
        Self::examine_opened(path, None)
    }

    /// As [`Adapter::examine`]; `file` is the weight file at `path`, if it is open already.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn examine_opened(path: &Path, file: Option<Checkpoint>) -> Result<(Self, Option<Error>)> {
        let Opened { root, dialect, config, tensors, modules } = open(path, file)?;
        let (modules, problem) = match modules {
            Ok(modules) => (modules, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        let adapter = Self { root, dialect, config, tensors, modules };
        let problem = problem.or_else(|| adapter.check_pairs().err());
        Ok((adapter, problem))
    }
}

fn settings(directory: &Path) -> Result<Option<Settings>> {
    let path = directory.join(CONFIG_NAME);
    if !path.is_file() {
        return Ok(None);
    }
    let raw = json::read_object(&path)?;
    let has = |key: &str| raw.contains_key(key);
    Ok(Some(if has("peft_type") {
        Settings::Peft
    } else if has("fine_tune_type") || has("lora_parameters") || has("lora_layers") {
        Settings::Mlx(raw)
    } else if raw.get("config").is_some_and(Value::is_object) || has("hidden_size") && has("model_type") {
        Settings::AdapterHub(raw)
    } else {
        Settings::Peft
    }))
}
