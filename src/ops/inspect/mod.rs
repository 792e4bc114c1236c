//! `inspect`: what a file is, told from its headers and configs alone. No page of tensor data is touched, and what is wrong
//! with a file that can still be described is a line in its list of problems, not an error.
//!
//! | file | idea |
//! |---|---|
//! | `weights` | what every set of tensors has: files, dtypes, sizes |
//! | `checkpoint` | a model: architecture, groups, largest tensors |
//! | `adapter` | a PEFT adapter: method, modules × rank × alpha × scale |
//! | `quantised` | signs of quantised weights |
//! | `pairs` | LoRA pairs with the rank and scale that count for them |
//! | `targets` | which modules a config means |
//! | `problems` | what is wrong with an adapter |

mod adapter;
mod checkpoint;
mod pairs;
mod problems;
mod quantised;
mod targets;
mod weights;

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::adapters::is_adapter;
use crate::error::Result;

pub use adapter::{AdapterFacts, PairGroup, Share};
pub use checkpoint::{CheckpointFacts, Group};
pub use quantised::Quantisation;
pub use weights::{DtypeFacts, FileFacts, TensorFacts, Weights};

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
pub fn inspect(path: &Path) -> Result<Inspection> {
    if is_adapter(path) {
        Ok(Inspection::Adapter(Box::new(AdapterFacts::read(path)?)))
    } else {
        Ok(Inspection::Checkpoint(Box::new(CheckpointFacts::read(path)?)))
    }
}

impl Inspection {
    /// One JSON object with the keys of `docs/inspect-json.md`; with `tensors` it lists every tensor.
    pub fn to_json(&self, tensors: bool) -> Value {
        let mut value = serde_json::to_value(self).expect("maps with text keys always serialise");
        if tensors {
            value["tensors"] =
                serde_json::to_value(self.listing().collect::<Vec<_>>()).expect("plain facts always serialise");
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

    /// Every tensor, file by file in offset order.
    pub fn listing(&self) -> impl Iterator<Item = TensorFacts> + '_ {
        weights::listing(match self {
            Self::Checkpoint(facts) => &facts.checkpoint,
            Self::Adapter(facts) => &facts.adapter.tensors,
        })
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
