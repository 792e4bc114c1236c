//! `subtract` from a merged checkpoint: W = W′ − Σ wᵢ ΔWᵢ.
//!
//! Without the base this is a merge with the weights negated, for changes that are sums. Where W′ was rounded, what rounding lost
//! is lost: the result is the base up to that. With the base at hand W′ is computed again from it; where the two agree the
//! base's own element is written, so that a model that is that merge gives its base back bit for bit, and a change that is no
//! sum can be taken out as well.

mod compare;
mod expected;
mod plan;
mod summary;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{MergeOptions, MergeReport, merge_as};
use crate::adapters::{Adapter, Init, ReadOptions};
use crate::error::{Error, Result};
use crate::io::Inputs;
use crate::model::base::Base;
use crate::output::Run;
use crate::output::WriteOptions;
use crate::output::fingerprint::fingerprints;
use crate::output::provenance::Direction;
use crate::output::provenance::{self, Edits};
use crate::output::sides;
use crate::placement::{Selection, ties, vocabulary};
use plan::plan;

pub use summary::{DifferingTensor, UnmergeReport};

/// What is taken out of what, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnmergeOptions {
    /// The merged model.
    pub merged: PathBuf,
    /// Adapters with the weights they were merged with, in order.
    pub adapters: Vec<(PathBuf, f64)>,
    /// What the adapters' files leave open.
    pub read: ReadOptions,
    /// The model they were merged into, if it is at hand.
    pub base: Option<PathBuf>,
    /// Untrained factors for the adapters that need them, in order.
    pub init_adapters: Vec<PathBuf>,
    /// The base was the one an adapter's initialiser left behind.
    pub residual_base: bool,
    /// Which modules.
    pub selection: Selection,
    /// Patterns of adapter tensors that may stay unused.
    pub allow_unused: Vec<String>,
    /// The denoiser that is meant where a pipeline has several alike.
    pub component: Option<String>,
    /// A matrix saved whole changed the size of the vocabulary.
    pub resize_vocabulary: bool,
    /// Hash the models' files as well.
    pub hash_base: bool,
    /// How the result is written; with the base, how MERGED was rounded.
    pub write: WriteOptions,
}

impl UnmergeOptions {
    /// `adapters` out of `merged`; everything else is as on the command line without options.
    pub fn new(merged: impl Into<PathBuf>, adapters: Vec<(PathBuf, f64)>, write: WriteOptions) -> Self {
        Self {
            merged: merged.into(),
            adapters,
            read: ReadOptions::default(),
            base: None,
            init_adapters: Vec::new(),
            residual_base: false,
            selection: Selection::default(),
            allow_unused: Vec::new(),
            component: None,
            resize_vocabulary: false,
            hash_base: false,
            write,
        }
    }
}

/// What was done.
#[derive(Debug)]
pub enum Unmerged {
    /// ΔW was subtracted; the report is that of a merge with negated weights.
    Subtracted(Box<MergeReport>),
    /// MERGED was compared with the merge of the base.
    Compared(Box<UnmergeReport>),
}

/// Takes adapters out of a merged model.
///
/// # Errors
/// When an input is malformed, MERGED cannot be that merge, a change cannot be taken out, or the result cannot be written.
/// Nothing is left behind then.
pub fn unmerge(options: &UnmergeOptions, run: &Run<'_>) -> Result<Unmerged> {
    match &options.base {
        None => {
            let report = merge_as(&as_merge(options, &options.merged, None), Direction::TakenOut, run)?;
            Ok(Unmerged::Subtracted(Box::new(report)))
        }
        Some(base) => with_base(options, base, run).map(|report| Unmerged::Compared(Box::new(report))),
    }
}

/// The same as options of a merge into `model`.
fn as_merge(options: &UnmergeOptions, model: &Path, original: Option<PathBuf>) -> MergeOptions {
    MergeOptions {
        base: model.into(),
        adapters: options.adapters.clone(),
        read: options.read.clone(),
        init_adapters: options.init_adapters.clone(),
        original,
        residual_base: options.residual_base,
        selection: options.selection.clone(),
        allow_unused: options.allow_unused.clone(),
        component: options.component.clone(),
        resize_vocabulary: options.resize_vocabulary,
        quant: None,
        keep_change: true,
        keep_format: false,
        train_base: None,
        hash_base: options.hash_base,
        write: options.write.clone(),
    }
}

fn with_base(options: &UnmergeOptions, base: &Path, run: &Run<'_>) -> Result<UnmergeReport> {
    let started = Instant::now();
    if options.write.dtype.is_some() {
        return Err(Error::invalid("--dtype", "the result has the dtypes of `--base`").hint("leave `--dtype` away"));
    }
    let inputs = Inputs::watch();
    let as_merge = as_merge(options, base, taken_from(options, base)?);
    let (base, merged) = (Base::open(base)?, Base::open(&options.merged)?);
    merged.wrapping.refuse_inside(&merged.checkpoint, "the merged model")?;
    if let Some(gguf) = [&base, &merged].into_iter().find(|model| model.view.is_some()) {
        let what = "is a GGUF file, and `--base` compares models of other formats only";
        return Err(Error::unsupported(gguf.checkpoint.root(), what)
            .hint("without `--base` the adapters are taken out up to rounding; or keep the base itself"));
    }
    let applied = as_merge.open(base.config.as_ref())?;
    let changed = applied.iter().flat_map(|applied| &applied.adapter.modules);
    let base = base.with_head_named_by(changed.map(|module| module.path.as_str()));
    sides::check_out(&options.write, &base, &inputs)?;
    let unused = provenance::globs("--allow-unused", &options.allow_unused)?;
    let mut placer = as_merge.placed(&base, &unused, &applied)?;
    let notes = super::summary::notes(&base, &applied, &placer.placement);
    ties::untie(&mut placer, &applied)?;
    vocabulary::check(&mut placer)?;
    let placement = placer.placement;

    let mut recipe = provenance::recipe(as_merge.asked(), Direction::PutIn, &base, &applied)?;
    recipe["operation"] = "subtract".into();
    recipe["merged"] = provenance::model_entry(&merged, options.hash_base)?;
    let mut planned = plan(&base, &merged, &placement, &options.write, &provenance::metadata(&recipe))?;
    let mut report = UnmergeReport {
        merged: options.merged.clone(),
        base: base.checkpoint.root().into(),
        out: options.write.out.clone(),
        dry_run: options.write.dry_run,
        part: options.write.part.map(|part| format!("{}/{}", part.part, part.parts)),
        adapters: super::summary::adapters(&applied, &placement),
        compared: planned.taken.len(),
        proved: planned.proved.len(),
        elements: 0,
        differing: 0,
        delta_rounded_first: 0,
        exact: None,
        differing_tensors: Vec::new(),
        files: planned.plan.files.len(),
        jobs: planned.plan.jobs.len(),
        bytes: 0,
        notes,
        seconds: 0.0,
        gb_per_second: 0.0,
        peak_resident_bytes: None,
    };
    let mut output = sides::output(std::mem::take(&mut planned.plan), &options.write, &base);
    let originals = applied.iter().filter_map(|applied| applied.original.as_ref());
    let models = originals.map(|(original, _)| &original.base.checkpoint);
    output.inputs = fingerprints(options.write.part, models.chain([&base.checkpoint, &merged.checkpoint]))?;
    report.notes.extend(sides::add(&mut output, &options.write, &base, &Edits::default(), &recipe)?.notes);
    report.bytes = output.bytes();
    output.write(&options.write, run, &inputs)?;
    if !options.write.dry_run {
        report.complete(&planned, |tensor| placement.targets.contains_key(tensor), started.elapsed());
    }
    Ok(report)
}

/// The base as the model PiSSA or OLoRA started from, where an adapter has lost its untrained factors.
fn taken_from(options: &UnmergeOptions, base: &Path) -> Result<Option<PathBuf>> {
    if options.residual_base {
        return Ok(None);
    }
    let mut lacking = 0;
    for (path, _) in &options.adapters {
        lacking += usize::from(Adapter::examine(path, &options.read)?.0.config.init.0 != Init::Plain);
    }
    Ok((lacking > options.init_adapters.len()).then(|| base.into()))
}
