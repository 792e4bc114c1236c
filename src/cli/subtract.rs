//! `lorakit subtract`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args as Group;

use super::options::{RoundingMode, Weights, Write};
use super::progress::Bar;
use super::said::Said;
use super::sum::Sum;
use super::{place, stack, warn, watch};

use crate::dialects::recognise;
use crate::error::{Error, Result};
use crate::ops::Run;
use crate::ops::sum::Operation;
use crate::ops::unmerge::{UnmergeOptions, Unmerged, unmerge};
use crate::report;

#[derive(Debug, Group)]
pub struct Subtract {
    /// What is subtracted from: an adapter, with a weight if it is not 1, or a merged model
    #[arg(value_name = "A[:W]")]
    pub from: OsString,
    /// Adapters that are subtracted, each with a weight after a colon if it is not 1; from a model the one it was merged with
    #[arg(required = true, value_name = "ADAPTER[:W]")]
    pub adapters: Vec<OsString>,
    #[command(flatten)]
    pub write: Write,
    #[command(flatten)]
    pub sum: Sum,
    #[command(flatten)]
    pub weights: Weights,
    /// The model was merged from the residual model that the adapter's initialiser left behind
    #[arg(long, conflicts_with = "init_adapter")]
    pub residual_base: bool,
    /// Which denoiser of a pipeline is meant where two are built alike: transformer, transformer_2
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Let embedding and head that the adapter holds whole change the size of the vocabulary
    #[arg(long)]
    pub resize_vocab: bool,
    /// Record the hashes of the models' files as well
    #[arg(long)]
    pub hash_base: bool,
}

/// Subtracts, and gives the report.
pub fn run(args: &Subtract) -> Result<Said> {
    let (from, weight) = place::adapter(&args.from)?;
    if recognise(&from).0 {
        return from_adapter(args, from, weight);
    }
    if weight != 1.0 {
        return Err(Error::invalid("A", format!("`{}` is a model, and has no weight", from.display())));
    }
    let alpha = args.sum.rank.alpha.is_some();
    if alpha || args.sum.rank.choice()?.is_some() {
        let problem = "ranks and alpha belong to adapters, what is left here is a model";
        return Err(Error::invalid(if alpha { "--alpha" } else { "--rank" }, problem));
    }
    if args.sum.to.to.is_some() || args.sum.to.arch.is_some() {
        let problem = "dialects belong to adapters, what is left here is a model";
        return Err(Error::invalid(if args.sum.to.to.is_some() { "--to" } else { "--arch" }, problem));
    }
    let mut options = UnmergeOptions::new(
        from,
        args.adapters.iter().map(|written| place::adapter(written)).collect::<Result<_>>()?,
        args.write.options()?,
    );
    options.base = args.sum.base()?;
    options.read = args.sum.read.options()?;
    options.init_adapters = args.sum.init_adapters()?;
    options.residual_base = args.residual_base;
    options.selection = args.write.selection(&args.weights)?;
    options.allow_unused = args.write.allow_unused.clone();
    options.component = args.component.clone();
    options.resize_vocabulary = args.resize_vocab;
    options.hash_base = args.hash_base;
    let cancel = watch::interruptible()?;
    let talk = args.write.talk;
    let bar = Bar::new("subtracting", talk.quiet);
    let result = unmerge(&options, &Run { cancel: &cancel, progress: &bar })?;
    let peak = watch::peak_resident_bytes();
    Ok(match result {
        Unmerged::Subtracted(mut result) => {
            result.peak_resident_bytes = peak;
            let nothing = result.changes_nothing;
            let bad = nothing.then(|| "nothing is taken out: the result equals the merged model".to_owned());
            warn(talk, bad.clone());
            Said::of(talk, &*result, |result| report::subtracted(result, talk.verbose)).bad(bad)
        }
        Unmerged::Compared(mut result) => {
            result.peak_resident_bytes = peak;
            let bad = (result.exact == Some(false)).then(|| "MERGED is not that merge of BASE".to_owned());
            Said::of(talk, &*result, |result| report::unmerge(result, talk.verbose)).bad(bad)
        }
    })
}

/// A stack with negative weights.
fn from_adapter(args: &Subtract, from: PathBuf, weight: f64) -> Result<Said> {
    let write = &args.write;
    let of_models = [
        ("--cast-all", write.cast_all),
        ("--changed-only", write.changed_only),
        ("--rounding", write.rounding.is_some_and(|mode| mode != RoundingMode::Nearest)),
        ("--max-shard-size", write.max_shard_size != "keep"),
        ("--allow-unused", !write.allow_unused.is_empty()),
        ("--part", write.part.is_some()),
        ("--residual-base", args.residual_base),
        ("--component", args.component.is_some()),
        ("--resize-vocab", args.resize_vocab),
        ("--hash-base", args.hash_base),
    ];
    if let Some((option, _)) = of_models.iter().find(|(_, given)| *given) {
        return Err(Error::invalid(*option, format!("belongs to models, `{}` is an adapter", from.display())));
    }
    let mut adapters = vec![(from, weight)];
    for written in &args.adapters {
        let (path, weight) = place::adapter(written)?;
        adapters.push((path, -weight));
    }
    let (selection, options) = (write.selection(&args.weights)?, write.options()?);
    stack::perform(&args.sum.options(Operation::Subtract, adapters, selection, options)?, write.talk)
}
