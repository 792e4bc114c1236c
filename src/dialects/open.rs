//! Any adapter on disk → its modules. What it is, its config tells where there is one, else the names of its tensors.

use std::path::Path;

use serde_json::{Map, Value};

use super::dialect::{Dialect, Form};
use super::gguf::read as gguf;
use super::mistral::{self, MISTRAL};
use super::opened::{Opened, Source};
use super::peft::{self, PEFT};
use super::unaided::Beside;
use super::{ALL, beside, found, recognise, unaided};
use crate::adapters::config::{AdapterConfig, CONFIG_NAME};
use crate::adapters::options::Chosen;
use crate::adapters::{Adapter, Needed, ReadOptions};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, WEIGHT_STEMS, side};

/// Whose config lies beside the weights, and what it says.
type Settings = (&'static Dialect, Map<String, Value>);

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
                Some((of, raw)) if of.declares => AdapterConfig::parse(root.join(CONFIG_NAME), raw)?,
                _ => AdapterConfig::synthetic(path, "LORA", None),
            };
            return Ok(Opened::new(root, &PEFT, config, tensors, Err(several)));
        }
    };
    let (of, raw) = settings.map_or((None, Map::new()), |(of, raw)| (Some(of), raw));
    let source = Source { root, raw, tensors, chosen: &chosen, options };
    let mut opened = match of {
        Some(of) if of.declares => of_peft(source, whole_folder),
        _ if !kind.is_dir() && recognise::speaks_for_itself(&source.tensors) => unaided::open(source, Beside::Nothing),
        None => {
            let beside = Beside::of_model(root, &chosen)?;
            unaided::open(source, beside)
        }
        Some(of) => of.read.unwrap_or(peft::read::open)(source),
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

/// Tensors beside a config of PEFT's: `whole_folder` tells that they are the only ones.
///
/// # Errors
/// When the config or what they say together cannot be understood.
pub(super) fn of_peft(source: Source<'_>, whole_folder: bool) -> Result<Opened> {
    let (root, tensors) = (source.root, &source.tensors);
    if let Some(read) = ALL.iter().find(|dialect| (dialect.has_tensors)(tensors)).and_then(|dialect| dialect.read) {
        return read(source);
    }
    // One of several files, of which the config may mean another.
    if !whole_folder && recognise::speaks_for_itself(tensors) && !beside::is_meant(root, tensors) {
        return unaided::open(source, Beside::Nothing);
    }
    if !recognise::needs_scheme(tensors) {
        return peft::read::open(source);
    }
    let beside = match source.config() {
        Ok(config) if whole_folder || !recognise::has_own_alphas(tensors) => Beside::Peft(Box::new(config)),
        Err(problem) if whole_folder => return Err(problem),
        _ => Beside::Nothing,
    };
    unaided::open(source, beside)
}

/// The weights of the adapter in `directory`.
fn weights(directory: &Path, settings: Option<&Settings>) -> Result<Checkpoint> {
    let stems: Vec<&str> = beside::STEMS.into_iter().chain(WEIGHT_STEMS).collect();
    match settings {
        Some((of, _)) if of.form != Form::Directory => Checkpoint::open(&directory.join(of.files[0])),
        Some(_) if found::has_no_weights(directory) => Err(found::config_alone(directory)),
        Some(_) => {
            let tensors = Checkpoint::open_directory(directory, &stems)?;
            let of_model = !beside::has_stem(&tensors, &beside::STEMS) && beside::has_stem(&tensors, &WEIGHT_STEMS);
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
                Ok(tensors) if beside::has_stem(&tensors, &beside::STEMS) => Ok(tensors),
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
        Ok(open(path, file, options)?.examined())
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
        let lora = lora.filter(|_| recognise::is_named(&directory.join(mistral::WEIGHTS)));
        return Ok(lora.map(|lora| (&MISTRAL, lora)));
    };
    let own = ALL.iter().find(|dialect| (dialect.has_config)(&raw)).copied();
    Ok(Some((own.unwrap_or(&PEFT), raw)))
}
