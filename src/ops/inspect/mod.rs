//! `inspect`: what files are, told from headers and configs alone. No page of tensor data is touched unless it is asked for, and what
//! is wrong with a file that can still be described is a line in its list of problems, not an error.
//!
//! | file | idea |
//! |---|---|
//! | `weights` | what every set of tensors has: files, dtypes, sizes |
//! | `checkpoint`, `family`, `quantised` | a model: architecture, groups, largest tensors; its family by names; signs of quantised weights |
//! | `adapter` | an adapter: all that follows put together |
//! | `modules` | its modules one by one, and sums over them |
//! | `pairs`, `targets` | LoRA pairs with the rank and scale that count for them; which modules a config means |
//! | `inserted` | prompts, prefixes and bottlenecks |
//! | `origin`, `training`, `dates` | who trained it, on what and how |
//! | `header`, `hashes`, `privacy` | the header's free text: its hashes checked, and what tells about people |
//! | `gguf` | metadata of a GGUF file, against its tensors |
//! | `fit`, `size` | the adapter against its base; the size of a base by its config alone |
//! | `spectrum`, `values` | what only the values tell |
//! | `problems` | what is wrong with an adapter |

mod adapter;
mod checkpoint;
mod dates;
mod family;
mod fit;
mod gguf;
mod hashes;
mod header;
mod inserted;
mod model_values;
mod modules;
mod origin;
mod pairs;
mod privacy;
mod problems;
mod quantised;
mod size;
mod spectrum;
mod targets;
mod training;
mod values;
mod weights;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use crate::adapters::ReadOptions;
use crate::dialects::recognise;
use crate::error::{Blame, Error, Result};
use crate::formats::Format;
use crate::limits::MAX_HELD_BYTES;
use crate::output::Run;
use crate::plan::{Budget, map_within};

pub use crate::dialects::find::{Found, find};
pub use adapter::{AdapterFacts, Hint, PairGroup, Share};
pub use checkpoint::{CheckpointFacts, Group};
pub use fit::{BaseFit, TensorNorms};
pub use gguf::{Entry as GgufEntry, FileTypeFacts, GgufFacts, Given, Sizes, Tokenizer};
pub use hashes::HashFacts;
pub use header::HeaderFacts;
pub use inserted::InsertedFacts;
pub use model_values::ModelValues;
pub(crate) use modules::modules;
pub use modules::{ModuleFacts, ModuleGroup, ShapeCount, Sum};
pub(crate) use pairs::{Pair, pairs};
pub use privacy::Telling;
pub use quantised::Quantisation;
pub use spectrum::{Skipped, Spectra, Spectrum, Spread};
pub(crate) use targets::Targets;
pub use training::{Tag, Training};
pub use values::ValueFacts;
pub use weights::{DtypeFacts, FileFacts, TensorFacts, Weights};

/// What is looked at beside headers and configs.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct InspectOptions {
    /// What an adapter's files leave open.
    pub read: ReadOptions,
    /// The model an adapter is for.
    pub base: Option<PathBuf>,
    /// Where models are looked for by name, if none is given.
    pub caches: Vec<PathBuf>,
    /// Compute singular values, and with a base ‖ΔW‖ ∕ ‖W‖.
    pub spectrum: bool,
    /// Threads and memory for what is computed.
    pub budget: Budget,
    /// Read the values as well: hashes, zeros, what is not finite.
    pub check: bool,
    /// Compute the hashes of files that are no longer than this, in bytes, in any case.
    pub hash_up_to: u64,
}

/// What was found at a path.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspection {
    /// Weights of a model.
    Checkpoint(Box<CheckpointFacts>),
    /// A PEFT adapter.
    Adapter(Box<AdapterFacts>),
}

/// Describes the checkpoint or adapter at `path`: a directory or a file.
///
/// # Errors
/// When headers or configs cannot be read.
pub fn inspect(path: &Path, options: &InspectOptions, run: &Run<'_>) -> Result<Inspection> {
    let (is_adapter, file) = recognise(path);
    let told = options.read.alpha.is_some() || options.read.name.is_some();
    if !is_adapter && !told {
        return Ok(Inspection::Checkpoint(Box::new(CheckpointFacts::read(path, file, options, run)?)));
    }
    match AdapterFacts::read(path, file, options, run) {
        Ok(facts) => Ok(Inspection::Adapter(Box::new(facts))),
        // A GGUF file tells enough to be described where its modules are not understood.
        Err(error) => match CheckpointFacts::read(path, None, options, run) {
            Ok(mut facts) if facts.gguf.is_some() && !matches!(error.blame(), Blame::Interrupted) => {
                facts.problems.insert(0, format!("cannot be used: {error}"));
                Ok(Inspection::Checkpoint(Box::new(facts)))
            }
            _ => Err(error),
        },
    }
}

/// One of several descriptions.
#[derive(Debug)]
pub enum Entry {
    /// A model or adapter.
    Found(Inspection),
    /// Something that could not be read: where and why is in the text.
    Failed {
        /// The error.
        error: String,
        /// The way out, where one is known.
        hint: Option<String>,
    },
}

/// Describes everything that was found in a folder, in parallel; what cannot be read is an entry as well.
///
/// # Errors
/// When the run is stopped.
pub fn inspect_all(found: &Found, options: &InspectOptions, run: &Run<'_>) -> Result<Vec<Entry>> {
    // What is computed for one adapter runs on several threads itself.
    let threads = if options.spectrum || options.check { 1 } else { options.budget.threads };
    let budget = Budget { threads, ..options.budget };
    let held: Vec<u64> = found.paths.iter().map(|path| held_for(path)).collect();
    let look = |at: usize| match inspect(&found.paths[at], options, run) {
        Ok(mut found) => {
            // Of many, none is read any more.
            found.let_go();
            Ok(Entry::Found(found))
        }
        Err(error) if matches!(error.blame(), Blame::Interrupted) => Err(error),
        Err(error) => Ok(Entry::failed(&error)),
    };
    let mut entries = map_within(&held, &budget, run.cancel, look)?;
    entries.extend(found.unreadable.iter().map(|(_, error)| Entry::failed(error)));
    if found.cut {
        let error = "there is more, deeper or after these, that was not looked at".to_owned();
        entries.push(Entry::Failed { error, hint: Some("name a folder further down".to_owned()) });
    }
    Ok(entries)
}

/// Bytes that looking at `path` holds: files that may be compressed are unpacked.
fn held_for(path: &Path) -> u64 {
    if Format::named(path).is_some_and(|format| format.is_written) { 1 } else { MAX_HELD_BYTES }
}

impl Entry {
    /// What could not be read.
    pub fn failed(error: &Error) -> Self {
        Self::Failed { error: error.to_string(), hint: error.way_out().map(str::to_owned) }
    }

    /// Why this is not as it should be, in one sentence.
    pub fn bad(&self) -> Option<String> {
        let found = match self {
            Self::Found(found) => found,
            Self::Failed { error, .. } => return Some(error.clone()),
        };
        let unplaced = match found {
            Inspection::Adapter(facts) => facts.base.as_ref().map_or(0, |base| base.unplaced.len()),
            Inspection::Checkpoint(_) => 0,
        };
        match found.problems() {
            [] if unplaced == 0 => None,
            [] => Some(format!("{unplaced} tensors have no place in the base")),
            [one] => Some(one.clone()),
            several => Some(format!("{} problems: {} …", several.len(), several[0])),
        }
    }

    /// One JSON object, as [`Inspection::to_json`].
    pub fn to_json(&self, tensors: bool) -> Value {
        match self {
            Self::Found(found) => found.to_json(tensors),
            Self::Failed { error, hint } => json!({"kind": "error", "error": error, "hint": hint}),
        }
    }
}

impl Inspection {
    /// One JSON object with the keys of `docs/inspect-json.md`; with `tensors` it lists every tensor.
    pub fn to_json(&self, tensors: bool) -> Value {
        let mut value = serde_json::to_value(self).expect("maps with text keys always serialise");
        if tensors {
            value["tensors"] =
                serde_json::to_value(self.listing().collect::<Vec<_>>()).expect("plain facts always serialise");
            if let Self::Adapter(facts) = self {
                let plain = "plain facts always serialise";
                value["modules"] = serde_json::to_value(&facts.modules).expect(plain);
                if let Some(spectra) = &facts.spectrum {
                    value["spectrum"]["each"] = serde_json::to_value(&spectra.each).expect(plain);
                }
            }
        }
        value
    }

    /// The tensors as they are stored.
    pub fn weights(&self) -> &Weights {
        match self {
            Self::Checkpoint(facts) => &facts.weights,
            Self::Adapter(facts) => &facts.weights,
        }
    }

    /// Lets go of what is held in memory of the tensors.
    fn let_go(&mut self) {
        match self {
            Self::Checkpoint(facts) => facts.checkpoint.let_go(),
            Self::Adapter(facts) => {
                facts.adapter.modules.clear();
                facts.adapter.tensors.let_go();
            }
        }
    }

    /// Every tensor, file by file in offset order.
    pub fn listing(&self) -> impl Iterator<Item = TensorFacts> + '_ {
        weights::listing(match self {
            Self::Checkpoint(facts) => &facts.checkpoint,
            Self::Adapter(facts) => &facts.adapter.tensors,
        })
    }

    /// What a GGUF file says about itself.
    pub fn gguf(&self) -> Option<&GgufFacts> {
        match self {
            Self::Checkpoint(facts) => facts.gguf.as_ref(),
            Self::Adapter(facts) => facts.gguf.as_ref(),
        }
    }

    /// What is wrong.
    pub fn problems(&self) -> &[String] {
        match self {
            Self::Checkpoint(facts) => &facts.problems,
            Self::Adapter(facts) => &facts.problems,
        }
    }
}

/// The first few of `names` in backticks, and how many more there are.
fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let mut names = names.into_iter();
    let shown: Vec<String> = names.by_ref().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let shown = shown.join(", ");
    match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `count` and a noun that ends in `s` unless it is one.
fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_names_are_cut_and_counted() {
        assert_eq!(named(["a", "b"]), "`a`, `b`");
        assert_eq!(named(["a", "b", "c", "d", "e"]), "`a`, `b`, `c` and 2 more");
    }
}
