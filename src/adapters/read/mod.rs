//! Any adapter on disk → its modules. What it is, its config tells where there is one, else the names of its tensors.

mod adapterhub;
mod gguf;
mod metadata;
mod mlx;
mod peft;
mod recognise;
mod torchtune;
pub(super) mod turn;
mod unaided;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config::{AdapterConfig, CONFIG_NAME};
use super::peft::Module;
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, side};

pub use adapterhub::ADAPTERHUB_HEADS;
pub use recognise::{is_adapter, recognise};
pub use torchtune::head_of as torchtune_heads;

/// File stems under which the libraries store adapters.
const STEMS: [&str; 5] = ["adapter_model", "adapters", "adapter", "pytorch_adapter", "pytorch_lora_weights"];

/// An adapter as it was read.
pub(super) struct Opened {
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
pub(super) fn open(path: &Path, file: Option<Checkpoint>) -> Result<Opened> {
    let kind = std::fs::metadata(path).map_err(|source| Error::io(path, "cannot open", source))?;
    if let Some(found) =
        gguf::file_of(path).filter(|_| !kind.is_dir() || std::fs::symlink_metadata(path.join(CONFIG_NAME)).is_err())
    {
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

fn settings(directory: &Path) -> Result<Option<Settings>> {
    let Some(raw) = side::look_up(&directory.join(CONFIG_NAME))? else { return Ok(None) };
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
