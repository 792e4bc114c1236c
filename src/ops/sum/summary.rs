//! What a sum did, for people and programs. Serialises to the JSON that `docs/cli.md` describes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::adapters::{AlphaFrom, Change};
use crate::placement::Applied;
use crate::truncate::NewAdapterReport;

/// What `stack` or `subtract` did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct SumReport {
    /// The result.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Its dialect.
    pub to: &'static str,
    /// Nothing was written.
    pub dry_run: bool,
    /// As on the command line.
    pub method: &'static str,
    /// What was summed.
    pub adapters: Vec<Input>,
    /// Tensors of the inputs that the selection or a weight of zero leave out.
    pub left_out: usize,
    /// The result.
    #[serde(flatten)]
    pub made: NewAdapterReport,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// One adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    /// Where it was read.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// Its weight.
    pub weight: f64,
    /// Modules with a low-rank change.
    pub modules: usize,
    /// Ranks that occur, and in how many modules.
    pub ranks: BTreeMap<u64, usize>,
    /// Where its α stands.
    pub alpha_from: Option<AlphaFrom>,
}

impl Input {
    /// What is said of `source`.
    pub fn of(source: &Applied) -> Self {
        let mut ranks = BTreeMap::new();
        for module in &source.adapter.modules {
            let rank = match &module.change {
                Change::Lora(lora) => Some(lora.rank()),
                Change::Method(method) => method.rank(),
                _ => None,
            };
            rank.into_iter().for_each(|rank| *ranks.entry(rank).or_default() += 1);
        }
        Self {
            path: source.adapter.root.clone(),
            weight: source.strength,
            modules: ranks.values().sum(),
            ranks,
            alpha_from: source.adapter.config.alpha_from.clone(),
        }
    }
}

/// What `resize` did to all adapters.
#[derive(Debug, Clone, Serialize)]
pub struct ResizeReport {
    /// Where the results are.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Their dialect.
    pub to: &'static str,
    /// Nothing was written.
    pub dry_run: bool,
    /// One entry per adapter, in the order they were done.
    pub adapters: Vec<AdapterResize>,
    /// Adapters that could not be resized.
    pub failed: usize,
    /// What lies in the folders and is no adapter.
    #[serde(serialize_with = "paths")]
    pub skipped: Vec<PathBuf>,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// What became of one adapter.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterResize {
    /// Where it was read.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// Where it was written.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of an adapter.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It has new ranks.
    Resized(Box<Resized>),
    /// The same result lies there already.
    Done,
    /// It could not be resized.
    Failed {
        /// Why.
        problem: String,
        /// The way out, where one is known.
        hint: Option<String>,
    },
}

/// Paths as texts.
fn paths<S: serde::Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.display().to_string()))
}

/// An adapter with new ranks.
#[derive(Debug, Clone, Serialize)]
pub struct Resized {
    /// Its dialect.
    pub to: &'static str,
    /// Where α of the adapter stands.
    pub alpha_from: Option<AlphaFrom>,
    /// The result.
    #[serde(flatten)]
    pub made: NewAdapterReport,
}
