//! Any adapter on disk → its modules. What it is, its config tells where there is one, else the names of its tensors.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::adapterhub::read as adapterhub;
use super::gguf::read as gguf;
use super::mlx::{read as mlx, vlm as mlx_vlm};
use super::peft::read as peft;
use super::torchtune::read as torchtune;
use super::unaided::Beside;
use super::{beside, found, mistral, recognise, unaided};
use crate::adapters::config::{AdapterConfig, CONFIG_NAME};
use crate::adapters::options::Chosen;
use crate::adapters::{Adapter, AlphaFrom, Module, Needed, ReadOptions};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, WEIGHT_STEMS, side};

/// File stems under which the libraries store adapters.
pub(super) const STEMS: [&str; 5] = ["adapter_model", "adapters", "adapter", "pytorch_adapter", "pytorch_lora_weights"];

/// An adapter as it was read.
pub(crate) struct Opened {
    pub root: PathBuf,
    pub dialect: &'static str,
    pub config: AdapterConfig,
    pub tensors: Checkpoint,
    /// The changes, or why they cannot be put together.
    pub modules: Result<Vec<Module>>,
    pub needed: Needed,
}

impl Opened {
    pub(super) fn new(
        root: &Path,
        dialect: &'static str,
        config: AdapterConfig,
        tensors: Checkpoint,
        modules: Result<Vec<Module>>,
    ) -> Self {
        let needed = Needed { alpha: config.alpha_from == Some(AlphaFrom::Told), ..Needed::default() };
        Self { root: root.to_path_buf(), dialect, config, tensors, modules, needed }
    }
}

/// Whose config lies beside the weights.
enum Settings {
    Peft,
    Mlx(Map<String, Value>),
    MlxVlm(Map<String, Value>),
    AdapterHub(Map<String, Value>),
    Mistral(Map<String, Value>),
}

/// Reads headers and config of the adapter at `path`; `file` is that file, if it is open already.
///
/// # Errors
/// When a file is missing or malformed, or is no adapter's.
pub(crate) fn open(path: &Path, file: Option<Checkpoint>, options: &ReadOptions) -> Result<Opened> {
    let kind = std::fs::metadata(path).map_err(|source| Error::io(path, "cannot open", source))?;
    let named = options.name.as_deref().and_then(|name| beside::folder_of(path, name)).filter(|_| kind.is_dir());
    if let Some(folder) = named {
        let inner = ReadOptions { name: None, ..options.clone() };
        let opened = open(&folder, None, &inner)?;
        let needed = Needed { name: true, ..opened.needed };
        return Ok(Opened { needed, ..opened });
    }
    if let Some(found) = gguf::file_of(path).filter(|_| !kind.is_dir() || !recognise::is_named(&path.join(CONFIG_NAME)))
    {
        return gguf::open(file.map_or_else(|| Checkpoint::open(&found), Ok)?);
    }
    let root = match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        _ if kind.is_dir() => path,
        parent => parent.unwrap_or(Path::new(".")),
    };
    let settings = settings(root)?;
    let tensors = match file {
        Some(file) => file,
        None if kind.is_dir() => weights(path, settings.as_ref())?,
        None => Checkpoint::open(path)?,
    };
    let whole_folder = kind.is_dir() || settings.is_some() && beside::stands_for(root, path);
    let tensors = if whole_folder { beside::join(root, tensors)? } else { tensors };
    let (chosen, is_named) = match Chosen::of(&tensors, options) {
        Ok(chosen) => chosen,
        Err(several) => {
            let config = match settings {
                Some(Settings::Peft) => AdapterConfig::read(root)?,
                _ => AdapterConfig::synthetic(path, "LORA", None),
            };
            return Ok(Opened::new(root, "peft", config, tensors, Err(several)));
        }
    };
    let mut opened = match settings {
        Some(Settings::Peft) if torchtune::is_ours(&tensors) => torchtune::open(root, tensors),
        // One of several files, of which the config may mean another.
        Some(Settings::Peft)
            if !whole_folder && recognise::speaks_for_itself(&tensors) && !beside::is_meant(root, &tensors) =>
        {
            unaided::open(root, tensors, Beside::Nothing, &chosen, options)
        }
        Some(Settings::Peft) if recognise::needs_scheme(&tensors) => {
            let beside = match AdapterConfig::read(root) {
                Ok(config) if whole_folder || !recognise::has_own_alphas(&tensors) => Beside::Peft(Box::new(config)),
                Err(problem) if whole_folder => return Err(problem),
                _ => Beside::Nothing,
            };
            unaided::open(root, tensors, beside, &chosen, options)
        }
        Some(Settings::Peft) => peft::open(root, tensors, &chosen, options),
        _ if !kind.is_dir() && recognise::speaks_for_itself(&tensors) => {
            unaided::open(root, tensors, Beside::Nothing, &chosen, options)
        }
        None => unaided::open(root, tensors, Beside::of_model(root, &chosen)?, &chosen, options),
        Some(Settings::Mistral(lora)) => unaided::open(root, tensors, Beside::Mistral(lora), &chosen, options),
        Some(Settings::Mlx(raw)) => mlx::open(root, raw, tensors),
        Some(Settings::MlxVlm(raw)) => mlx_vlm::open(root, raw, tensors, &chosen),
        Some(Settings::AdapterHub(raw)) => adapterhub::open(root, raw, tensors),
    }?;
    opened.needed.name = is_named;
    if let Some(name) = chosen.name() {
        opened.tensors.note(format!("it holds several adapters: `{name}` is the one that is read"));
    }
    if whole_folder {
        beside::name_the_rest(root, &mut opened.tensors);
    }
    Ok(opened)
}

/// The weights of the adapter in `directory`.
fn weights(directory: &Path, settings: Option<&Settings>) -> Result<Checkpoint> {
    let stems: Vec<&str> = STEMS.into_iter().chain(WEIGHT_STEMS).collect();
    match settings {
        Some(Settings::Mistral(_)) => Checkpoint::open(&directory.join(mistral::WEIGHTS)),
        Some(_) if found::has_no_weights(directory) => Err(found::config_alone(directory)),
        Some(_) => {
            let tensors = Checkpoint::open_directory(directory, &stems)?;
            let of_model = !beside::has_stem(&tensors, &STEMS) && beside::has_stem(&tensors, &WEIGHT_STEMS);
            if of_model && !recognise::holds_factors(&tensors) {
                return Err(found::config_beside_model(directory));
            }
            Ok(tensors)
        }
        None => {
            let tensors = Checkpoint::open_directory(directory, &stems);
            match tensors {
                Ok(tensors) if recognise::holds_factors(&tensors) => Ok(tensors),
                // What is known of the file says more than that it is no adapter's.
                Ok(tensors) if beside::has_stem(&tensors, &STEMS) => Ok(tensors),
                Ok(tensors) => Err(found::nothing(directory, Some(&tensors))),
                Err(problem)
                    if recognise::has_adapter_file(directory) || beside::weight_files(directory).len() == 1 =>
                {
                    Err(problem)
                }
                Err(_) => Err(found::nothing(directory, None)),
            }
        }
    }
}

impl Adapter {
    /// Opens the adapter in the directory `path`, or the weight file `path`, with its config beside it where its dialect has one.
    ///
    /// # Errors
    /// When a file is missing or malformed, and when tensors that belong together do not fit: half a pair, ranks that
    /// disagree with each other or with the config.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, None, &ReadOptions::default())
    }

    /// Opens an adapter to be described: also gives the problem for which [`Adapter::open`] refuses it. `modules` is empty
    /// where the tensors cannot be put together.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn examine(path: &Path, options: &ReadOptions) -> Result<(Self, Option<Error>)> {
        Self::examine_opened(path, None, options)
    }

    /// As [`Adapter::examine`]; `file` is the weight file at `path`, if it is open already.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn examine_opened(
        path: &Path,
        file: Option<Checkpoint>,
        options: &ReadOptions,
    ) -> Result<(Self, Option<Error>)> {
        let Opened { root, dialect, config, tensors, modules, needed } = open(path, file, options)?;
        let (modules, problem) = match modules {
            Ok(modules) => (modules, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        let adapter = Self { root, dialect, config, tensors, modules, needed };
        let problem = problem.or_else(|| adapter.check_pairs().err());
        Ok((adapter, problem))
    }

    /// Whether the adapter's own files say all that was read, and PEFT would read all of them: nothing was told, nothing joined,
    /// nothing left out.
    pub fn is_self_contained(&self) -> bool {
        self.needed == Needed::default() && !self.tensors.all().any(|stored| crate::adapters::is_saved_beside(&stored))
    }
}

fn settings(directory: &Path) -> Result<Option<Settings>> {
    let Some(raw) = side::look_up(&directory.join(CONFIG_NAME))? else {
        let lora = mistral::settings(directory)?;
        return Ok(lora.filter(|_| recognise::is_named(&directory.join(mistral::WEIGHTS))).map(Settings::Mistral));
    };
    let has = |key: &str| raw.contains_key(key);
    Ok(Some(if has("peft_type") {
        Settings::Peft
    } else if has("fine_tune_type") || has("lora_parameters") || has("lora_layers") {
        Settings::Mlx(raw)
    } else if raw.get("config").is_some_and(Value::is_object) || has("hidden_size") && has("model_type") {
        Settings::AdapterHub(raw)
    } else if mlx_vlm::is_config(&raw) {
        Settings::MlxVlm(raw)
    } else {
        Settings::Peft
    }))
}
