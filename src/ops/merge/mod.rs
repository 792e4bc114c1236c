//! `merge`: W′ = W + Σ wᵢ ΔWᵢ, and replacements, streamed in the base's own layout. [`unmerge`] is the other direction.

mod assemble;
mod packing;
mod reversible;
pub(super) mod summary;
mod trained_on;
pub mod unmerge;

use std::path::PathBuf;
use std::time::Instant;

use globset::GlobSet;

use crate::adapters::ReadOptions;
use crate::error::{Error, Result};
use crate::io::Inputs;
use crate::model::base::{Base, Reading};
use crate::model::{ModelConfig, Rounding, TrainBase};
use crate::output::fingerprint::fingerprints;
use crate::output::provenance::{self, Asked, Direction, Edits};
use crate::output::{Run, WriteOptions, sides};
use crate::placement::{Applied, Placer, Sources, applied, ties, vocabulary};
use crate::tensor::{Float, Packing};
use assemble::{Assembled, assemble};

pub use crate::placement::{Outcome, Selection};
pub use assemble::Counts;
pub use summary::{AdapterSummary, MergeReport, TensorSurvival};

/// What is merged, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MergeOptions {
    /// The model.
    pub base: PathBuf,
    /// Adapters with their weights, in order.
    pub adapters: Vec<(PathBuf, f64)>,
    /// What the adapters' files leave open.
    pub read: ReadOptions,
    /// Untrained factors for the adapters that need them, in order.
    pub init_adapters: Vec<PathBuf>,
    /// The model that PiSSA or OLoRA started from: gives the untrained factors of adapters that lost them.
    pub original: Option<PathBuf>,
    /// The base is the one an adapter's initialiser left behind.
    pub residual_base: bool,
    /// Which modules.
    pub selection: Selection,
    /// Patterns of adapter tensors that may stay unused.
    pub allow_unused: Vec<String>,
    /// The denoiser that is meant where a pipeline has several alike.
    pub component: Option<String>,
    /// A matrix saved whole may change the size of the vocabulary.
    pub resize_vocabulary: bool,
    /// What the weights that change are written as in a GGUF file; `None` keeps the type of each.
    pub quant: Option<Packing>,
    /// Blocks may be rounded stochastically, where rounding to nearest would take a change back (`docs/inside/decisions/0012`).
    pub keep_change: bool,
    /// Quantised weights are written back in their own format, on the scales they have.
    pub keep_format: bool,
    /// The base was quantised so when the adapters were trained, and what training saw of it is merged into.
    pub train_base: Option<TrainBase>,
    /// Hash the base's files as well.
    pub hash_base: bool,
    /// How the result is written.
    pub write: WriteOptions,
}

impl MergeOptions {
    /// `adapters` into `base`; everything else is as on the command line without options.
    pub fn new(base: impl Into<PathBuf>, adapters: Vec<(PathBuf, f64)>, write: WriteOptions) -> Self {
        Self {
            base: base.into(),
            adapters,
            read: ReadOptions::default(),
            init_adapters: Vec::new(),
            original: None,
            residual_base: false,
            selection: Selection::default(),
            allow_unused: Vec::new(),
            component: None,
            resize_vocabulary: false,
            quant: None,
            keep_change: true,
            keep_format: false,
            train_base: None,
            hash_base: false,
            write,
        }
    }

    /// What is opened.
    fn sources(&self) -> Sources<'_> {
        Sources {
            adapters: &self.adapters,
            read: &self.read,
            untrained: &self.init_adapters,
            original: self.original.as_deref(),
            residual_base: self.residual_base,
        }
    }

    /// Opens all adapters, for the model with the config `model`.
    pub(super) fn open(&self, model: Option<&ModelConfig>) -> Result<Vec<Applied>> {
        applied::open(self.sources(), model)
    }

    /// What the record tells.
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            selection: &self.selection,
            allow_unused: &self.allow_unused,
            quant: self.quant,
            keep_change: self.keep_change,
            keep_format: self.keep_format,
            train_base: self.train_base,
            hash_base: self.hash_base,
            residual_base: self.residual_base,
            component: self.component.as_deref(),
            resize_vocabulary: self.resize_vocabulary,
            write: &self.write,
        }
    }

    /// Every change at its place in `base`.
    pub(super) fn placed<'a>(&'a self, base: &'a Base, unused: &'a GlobSet, applied: &[Applied]) -> Result<Placer<'a>> {
        let mut placer = Placer::new(base, &self.selection, unused)
            .resizing(self.resize_vocabulary)
            .meaning(self.component.as_deref());
        applied.iter().try_for_each(|applied| placer.place(applied))?;
        self.selection.check(&placer.paths)?;
        placer.tell_of_denoisers();
        Ok(placer)
    }
}

/// Merges adapters into a model.
///
/// # Errors
/// When an input is malformed, an adapter does not belong to the base, or the result cannot be written. Nothing is left
/// behind then.
pub fn merge(options: &MergeOptions, run: &Run<'_>) -> Result<MergeReport> {
    merge_as(options, Direction::PutIn, run)
}

/// How the quantised weights of the base are read: as what the model was loaded in for training, or exactly, where they keep their
/// format.
fn reading(options: &MergeOptions) -> Result<Reading> {
    let float = options.write.dtype.filter(|float| (2..=4).contains(&float.bytes()));
    if !options.keep_format {
        return Ok(Reading { float, keeps_format: false, train: options.train_base });
    }
    if options.train_base.is_some() {
        let problem = "is about quantised bases, and `--train-base` about plain ones";
        return Err(Error::invalid("--keep-format", problem).hint("leave one of them away"));
    }
    if let Some(dtype) = options.write.dtype {
        let problem = format!("quantised weights would keep their format and become {dtype}");
        return Err(Error::invalid("--keep-format", problem).hint("leave one of `--keep-format` and `--dtype` away"));
    }
    Ok(Reading { float: Some(Float::F32), keeps_format: true, train: None })
}

/// Merges in either direction.
pub(super) fn merge_as(options: &MergeOptions, direction: Direction, run: &Run<'_>) -> Result<MergeReport> {
    let started = Instant::now();
    let inputs = Inputs::watch();
    let base = Base::open_read(&options.base, reading(options)?)
        .map_err(|problem| options.sources().swapped(&options.base, problem))?;
    if direction == Direction::TakenOut {
        base.wrapping.refuse_inside(&base.checkpoint, "the merged model")?;
    }
    let mut applied = options.open(base.config.as_ref())?;
    trained_on::check(&applied)?;
    sides::check_out(&options.write, &base, &inputs)?;
    let changed = applied.iter().flat_map(|applied| &applied.adapter.modules);
    let base = base.with_head_named_by(changed.map(|module| module.path.as_str()));
    if direction == Direction::TakenOut {
        applied.iter_mut().for_each(|applied| applied.strength = -applied.strength);
    }
    let unused = provenance::globs("--allow-unused", &options.allow_unused)?;
    let mut placer = options.placed(&base, &unused, &applied)?;
    let untied = match direction {
        Direction::PutIn => ties::untie(&mut placer, &applied)?,
        Direction::TakenOut => {
            reversible::check(&applied, &placer.placement.outcomes)?;
            ties::keep_together(&mut placer)?
        }
    };
    let vocabulary = vocabulary::check(&mut placer)?;
    let placement = placer.placement;

    let recipe = provenance::recipe(options.asked(), direction, &base, &applied)?;
    let assembled = assemble(&base, &placement, options, &provenance::metadata(&recipe))?;
    let mut report = summary::begin(options, &applied, &placement, &assembled, &base)?;
    report.options = recipe["options"].clone();
    let Assembled { plan, merged, .. } = assembled;
    let mut output = sides::output(plan, &options.write, &base);
    let originals = applied.iter().filter_map(|applied| applied.original.as_ref());
    let models = originals.map(|(original, _)| &original.base.checkpoint).chain([&base.checkpoint]);
    output.inputs = fingerprints(options.write.part, models)?;
    let edits = Edits { untied, vocabulary, keeps_format: options.keep_format };
    let added = sides::add(&mut output, &options.write, &base, &edits, &recipe)?;
    report.notes.extend(trained_on::notes(&base, &applied));
    report.notes.extend(base.quantised.merge_note(options.keep_format));
    report.config_changes = added.config_changes;
    report.notes.extend(added.notes);
    report.bytes = output.bytes();
    output.write(&options.write, run, &inputs)?;
    if !options.write.dry_run {
        let codes = options.keep_format && !base.quantised.is_empty() && options.write.rounding == Rounding::Nearest;
        summary::complete(&mut report, &merged, codes, started.elapsed());
        let change = report.survival.as_ref().map_or(0.0, |survival| survival.delta_norm);
        report.notes.extend(trained_on::distance(&base, &applied, &merged, options.train_base, change)?);
    }
    Ok(report)
}
