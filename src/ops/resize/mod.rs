//! `resize`: an adapter at another rank.
//!
//! The singular values of ΔW = s·B·A come from its factors (`linalg::LowRank`: QR of both and an SVD of a small core, in f64), so the
//! truncation is the best there is and its error exact; ΔW is never formed. A pair whose rank does not fall keeps its factors bit
//! for bit, with zeros where it rises.

mod batch;
mod factors;
mod noise;
mod one;
mod ranks;
mod recipe;
mod summary;
mod written;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::rank_choice::{RankChoice, beyond_budget};
use crate::adapters::ReadOptions;
use crate::error::{Blame, Error, Result};
use crate::io::{Inputs, sweep_leftovers};
use crate::output::new_adapter::{Origin, ToDialect};
use crate::output::{Run, WriteOptions, check_early};
use crate::placement::Selection;
use batch::{Named, OutFolder};
use one::Opened;

pub use summary::{AdapterResize, ModuleResize, Outcome, ResizeReport, Resized};

/// What is resized, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResizeOptions {
    /// Adapters, or folders of adapters. The output of a single adapter is an adapter, that of several a folder of them.
    pub adapters: Vec<PathBuf>,
    /// What the adapters' files leave open.
    pub read: ReadOptions,
    /// The untrained factors of a single adapter that needs them.
    pub init_adapters: Vec<PathBuf>,
    /// How ranks are chosen.
    pub ranks: RankChoice,
    /// α of what is computed; its rank if not given, so that the scale is 1.
    pub alpha: Option<f64>,
    /// The same rank for all pairs, filled up with zeros: what servers of many adapters ask for.
    pub uniform_rank: bool,
    /// The `sv_*` rules keep one more, as kohya's `resize_lora.py` does.
    pub kohya: bool,
    /// Which modules are resized; the others stay as they are.
    pub selection: Selection,
    /// The model the adapters are for: for methods that need it, and what PiSSA or OLoRA took out of it.
    pub base: Option<PathBuf>,
    /// In which dialect.
    pub dialect: ToDialect,
    /// How results are written.
    pub write: WriteOptions,
}

impl ResizeOptions {
    /// `adapters` with other ranks; everything else is as on the command line without options.
    pub fn new(adapters: Vec<PathBuf>, ranks: RankChoice, write: WriteOptions) -> Self {
        Self {
            adapters,
            read: ReadOptions::default(),
            init_adapters: Vec::new(),
            ranks,
            alpha: None,
            uniform_rank: false,
            kohya: false,
            selection: Selection::default(),
            base: None,
            dialect: ToDialect::default(),
            write,
        }
    }
}

/// Resizes adapters. With several, one that fails does not keep the others from being done.
///
/// # Errors
/// When the options make no sense, the only adapter cannot be resized, or the run is interrupted.
pub fn resize(options: &ResizeOptions, run: &Run<'_>) -> Result<ResizeReport> {
    let started = Instant::now();
    check(options)?;
    let mut report = ResizeReport {
        out: options.write.out.clone(),
        to: options.dialect.name(),
        dry_run: options.write.dry_run,
        adapters: Vec::new(),
        failed: 0,
        seconds: 0.0,
        peak_resident_bytes: None,
    };
    match batch::inputs(&options.adapters)? {
        Named::One(path) => {
            let outcome = resize_one(&path, options, run)?;
            report.adapters.push(AdapterResize { path, out: options.write.out.clone(), outcome });
        }
        Named::Several(inputs) => {
            if let Some(extra) = options.init_adapters.first() {
                let problem = format!("`{}`: untrained factors are for a single adapter", extra.display());
                return Err(Error::invalid("--init-adapter", problem));
            }
            let _folder = OutFolder::make(options)?;
            for (path, name) in inputs {
                let out = options.write.out.join(options.dialect.file_name(&name));
                // A dry run makes no folder: there is a place in it if there is one for it.
                let place = if options.write.out.is_dir() { &out } else { &options.write.out };
                let write = WriteOptions { out: place.clone(), ..options.write.clone() };
                let own = ResizeOptions { write, ..options.clone() };
                if !own.write.dry_run {
                    // Of a run that was killed after this one was done, which is then not written again.
                    sweep_leftovers(&out);
                }
                let outcome = match resize_or_skip(&path, &own, run) {
                    Ok(outcome) => outcome,
                    Err(error) if matches!(error.blame(), Blame::Interrupted) => return Err(error),
                    Err(error) => {
                        report.failed += 1;
                        Outcome::Failed { problem: error.to_string(), hint: error.way_out().map(str::to_owned) }
                    }
                };
                report.adapters.push(AdapterResize { path, out, outcome });
            }
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn check(options: &ResizeOptions) -> Result<()> {
    options.dialect.check_out(&options.write.out)?;
    match options.alpha {
        Some(alpha) if !(alpha.is_finite() && alpha > 0.0) => {
            Err(Error::invalid("--alpha", format!("`{alpha}` is not a finite number above 0")))
        }
        _ => Ok(()),
    }
}

/// As [`resize_one`], unless the same result is there.
fn resize_or_skip(path: &Path, options: &ResizeOptions, run: &Run<'_>) -> Result<Outcome> {
    let inputs = Inputs::watch();
    let opened = Opened::read(path, options, run)?;
    let recipe = recipe::recipe(opened.source(), options)?;
    if !options.write.force && batch::is_done(&options.write.out, &recipe)? {
        return Ok(Outcome::Done);
    }
    write(&opened, options, &recipe, run, &inputs)
}

fn resize_one(path: &Path, options: &ResizeOptions, run: &Run<'_>) -> Result<Outcome> {
    let inputs = Inputs::watch();
    let opened = Opened::read(path, options, run)?;
    let recipe = recipe::recipe(opened.source(), options)?;
    write(&opened, options, &recipe, run, &inputs)
}

fn write(
    opened: &Opened,
    options: &ResizeOptions,
    recipe: &serde_json::Value,
    run: &Run<'_>,
    inputs: &Inputs,
) -> Result<Outcome> {
    let copied = written::beside(&opened.source().adapter, &[])?.0.into_iter().map(|(path, _)| path);
    check_early(&options.write, inputs, &options.dialect.expected(&options.write.out, copied))?;
    let (files, mut resized) = opened.resize(options, recipe, run)?;
    let adapter = &opened.source().adapter;
    let file = &adapter.tensors.files()[0].map;
    let origin = Origin { input: &adapter.root, file, base: options.base.as_deref(), component: false };
    let written = options.dialect.write(files, recipe, origin, &options.write, run, inputs)?;
    resized.bytes = if options.dialect.foreign().is_some() { written.bytes } else { written.weights };
    resized.notes.extend(beyond_budget(&options.ranks, &options.dialect, written.bytes));
    resized.notes.extend(written.notes);
    Ok(Outcome::Resized(Box::new(resized)))
}
