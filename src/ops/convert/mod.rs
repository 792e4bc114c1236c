//! `convert`: the same weights in another container, dtype or layout.
//!
//! * `adapter`: adapters between the dialects;
//! * [`checkpoint`]: models; read from any container, written as safetensors;
//! * `gguf`: models, written as GGUF.

mod adapter;
pub mod checkpoint;
mod from_gguf;
mod gguf;
mod layout;
mod rounded;

use std::path::PathBuf;

use regex::Regex;
use serde::Serialize;

use crate::adapters::ReadOptions;
use crate::dialects::experts::ExpertForm;
use crate::dialects::{Target, of_a_folder, recognise};
use crate::error::{Error, Result};
use crate::formats::Checkpoint;
use crate::formats::gguf::is_gguf_name;
use crate::io::Inputs;
use crate::llama::Mix;
use crate::output::{Run, WriteOptions};

pub use adapter::AdapterReport;
pub use checkpoint::CheckpointReport;
pub use rounded::RoundingError;

/// What is converted, and to what.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// A checkpoint or an adapter.
    pub input: PathBuf,
    /// What an adapter's files leave open.
    pub read: ReadOptions,
    /// What is written; a checkpoint becomes safetensors if nothing is said, or GGUF where the output or `quant` says so.
    pub to: Option<Target>,
    /// The model an adapter belongs to, where its names or shapes are needed.
    pub base: Option<PathBuf>,
    /// Where the model that an adapter names is looked for, if none is given and its config is needed.
    pub caches: Vec<PathBuf>,
    /// The denoiser an adapter is for, where a pipeline has several alike.
    pub component: Option<String>,
    /// The architecture an adapter is for, where names alone do not tell.
    pub arch: Option<String>,
    /// The types of a GGUF file; each tensor keeps its own if nothing is said.
    pub quant: Option<Mix>,
    /// The form that the experts of an adapter get.
    pub experts: Option<ExpertForm>,
    /// An adapter of another method becomes LoRA.
    pub as_lora: bool,
    /// Only these tensors are cast; all if there are none.
    pub include: Vec<Regex>,
    /// These are not.
    pub exclude: Vec<Regex>,
    /// Patterns of metadata keys that are not taken along.
    pub strip_metadata: Vec<String>,
    /// How the result is written.
    pub write: WriteOptions,
}

impl ConvertOptions {
    /// `input` in another form; everything else is as on the command line without options.
    pub fn new(input: impl Into<PathBuf>, write: WriteOptions) -> Self {
        Self {
            input: input.into(),
            read: ReadOptions::default(),
            to: None,
            base: None,
            caches: Vec::new(),
            component: None,
            arch: None,
            quant: None,
            experts: None,
            as_lora: false,
            include: Vec::new(),
            exclude: Vec::new(),
            strip_metadata: Vec::new(),
            write,
        }
    }
}

/// What was converted.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Converted {
    /// A model.
    Checkpoint(Box<CheckpointReport>),
    /// An adapter.
    Adapter(Box<AdapterReport>),
}

impl Converted {
    /// Values that are infinite or NaN, as they were.
    pub fn not_finite(&self) -> u64 {
        match self {
            Self::Checkpoint(report) => report.rounding.as_ref().map_or(0, |rounding| rounding.not_finite),
            Self::Adapter(_) => 0,
        }
    }

    /// Sets what the caller measured.
    pub fn set_peak_resident_bytes(&mut self, bytes: Option<u64>) {
        match self {
            Self::Checkpoint(report) => report.peak_resident_bytes = bytes,
            Self::Adapter(report) => report.peak_resident_bytes = bytes,
        }
    }
}

/// The files that a conversion reads from now on. What is named as its base is none of its outputs, used or not.
fn watch(options: &ConvertOptions) -> Inputs {
    let inputs = Inputs::watch();
    if let Some(base) = &options.base {
        inputs.keep(base);
        // What of it is used may be the config alone, and that it cannot be read is said where it is needed.
        let _ = Checkpoint::open(base);
    }
    inputs
}

/// Converts a checkpoint or an adapter.
///
/// # Errors
/// When the input is malformed, or the target cannot express it; nothing is left behind then.
pub fn convert(options: &ConvertOptions, run: &Run<'_>) -> Result<Converted> {
    if recognise(&options.input).0 || options.read.name.is_some() || options.read.alpha.is_some() {
        return adapter::convert(options, run).map(Box::new).map(Converted::Adapter);
    }
    if options.as_lora {
        let problem = format!("is about adapters, and `{}` is a checkpoint", options.input.display());
        return Err(Error::invalid("--as", problem));
    }
    if options.experts.is_some() {
        let problem = format!("is about adapters, and `{}` is a checkpoint", options.input.display());
        return Err(Error::invalid("--experts", problem));
    }
    let named = is_gguf_name(&options.write.out);
    let is_gguf = options.to.map_or(named || options.quant.is_some(), |to| to == Target::GGUF);
    let converted = if is_gguf { gguf::convert(options, run) } else { checkpoint::convert(options, run) };
    let mut report = converted.map_err(|problem| of_a_folder(&options.input).unwrap_or(problem))?;
    let unused = [(options.base.is_some(), "--base"), (options.arch.is_some(), "--arch")];
    for (_, option) in unused.iter().filter(|(given, _)| *given) {
        report.notes.push(format!("`{option}` was not used: a checkpoint says itself what it is"));
    }
    Ok(Converted::Checkpoint(Box::new(report)))
}
