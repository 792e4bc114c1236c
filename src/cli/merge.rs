//! `lorakit merge`.

use lorakit::error::{Error, Result};
use lorakit::naming::blocks::BlockWeights;
use lorakit::ops::merge::{MergeOptions, Selection, merge};
use lorakit::ops::{Rounding, Run, WriteOptions};
use lorakit::report;
use lorakit::tensor::{Float, GgmlType, Packing};
use regex::Regex;

use super::args::{Merge, RoundingMode, Weights, Write};
use super::progress::Bar;
use super::{notice, place, told, watch, words};

/// Merges, and gives the report.
pub fn run(args: &Merge) -> Result<Vec<u8>> {
    let options = MergeOptions {
        base: place::path(&args.base)?,
        adapters: args.adapters.iter().map(|written| place::adapter(written)).collect::<Result<_>>()?,
        read: args.read.options()?,
        init_adapters: args.init_adapter.iter().map(|written| place::path(written)).collect::<Result<_>>()?,
        original: args.original.as_deref().map(place::path).transpose()?,
        residual_base: args.residual_base,
        selection: selection(&args.write, &args.weights)?,
        allow_unused: args.write.allow_unused.clone(),
        component: args.component.clone(),
        resize_vocabulary: args.resize_vocab,
        quant: quant(&args.quant)?,
        keep_change: args.write.rounding.is_none(),
        hash_base: args.hash_base,
        write: write_options(&args.write)?,
    };
    let cancel = watch::interruptible()?;
    let talk = args.write.talk;
    let bar = Bar::new(talk.quiet);
    let mut result = merge(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = watch::peak_resident_bytes();
    if let Some(warning) = report::drowned(&result) {
        notice(&format!("warning: {warning} (--quant or --dtype)"));
    }
    if result.changes_nothing {
        notice("warning: the merge changes nothing: the result equals the base");
    }
    Ok(told(talk, &result, |result| report::merge(result, talk.verbose)))
}

/// `--quant`: `keep`, a type of ggml, or a dtype.
fn quant(typed: &str) -> Result<Option<Packing>> {
    if typed.eq_ignore_ascii_case("keep") {
        return Ok(None);
    }
    let blocks = GgmlType::from_name(typed).and_then(|ggml| Packing::of(&ggml.dtype()));
    let found = blocks.or_else(|| Float::from_option(typed).map(Packing::Float)).filter(|packing| packing.can_encode());
    let wrong = || {
        let known = GgmlType::all().filter(|ggml| ggml.can_encode()).map(|ggml| ggml.name().to_lowercase());
        let hint = format!("keep, {}", known.collect::<Vec<_>>().join(", "));
        Error::invalid("--quant", format!("`{typed}` is no type that can be written")).hint(hint)
    };
    found.map(Some).ok_or_else(wrong)
}

/// Options shared by all writing verbs.
pub fn write_options(args: &Write) -> Result<WriteOptions> {
    let dtype = words::dtype(&args.dtype)?;
    if args.cast_all && dtype.is_none() {
        return Err(Error::invalid("--cast-all", "needs a `--dtype` other than `keep`"));
    }
    let keep = args.max_shard_size == "keep";
    Ok(WriteOptions {
        out: args.out.clone(),
        force: args.force,
        dtype,
        cast_all: args.cast_all,
        rounding: match args.rounding.unwrap_or(RoundingMode::Nearest) {
            RoundingMode::Nearest => Rounding::Nearest,
            RoundingMode::Stochastic => Rounding::Stochastic { seed: args.seed },
            RoundingMode::PeftSafe => Rounding::PeftSafe,
        },
        max_shard_bytes: if keep { None } else { Some(place::size("--max-shard-size", &args.max_shard_size)?) },
        budget: words::budget(args.threads, &args.max_memory)?,
        dry_run: args.dry_run,
        part: args.part.as_deref().map(str::parse).transpose()?,
        durable: args.sync,
    })
}

/// Which modules are changed, and how strongly.
pub fn selection(args: &Write, weights: &Weights) -> Result<Selection> {
    Ok(Selection {
        include: words::patterns("--include", &args.include)?,
        exclude: words::patterns("--exclude", &args.exclude)?,
        weights: weights.patterns()?,
        blocks: weights.blocks()?,
    })
}

impl Weights {
    /// What `--weight-for` says.
    pub fn patterns(&self) -> Result<Vec<(Regex, f64)>> {
        self.weight_for.iter().map(|written| weight(written)).collect()
    }

    /// What `--lbw` says.
    pub fn blocks(&self) -> Result<Option<BlockWeights>> {
        self.lbw.as_deref().map(BlockWeights::read).transpose()
    }
}

/// `--weight-for`: a pattern and the weight of the modules that match.
fn weight(written: &str) -> Result<(Regex, f64)> {
    let wrong = || Error::invalid("--weight-for", format!("`{written}` is not REGEX=W with a finite number W"));
    let (pattern, weight) = written.rsplit_once('=').ok_or_else(wrong)?;
    let weight: f64 = weight.parse().map_err(|_| wrong())?;
    if weight.is_finite() { Ok((words::pattern("--weight-for", pattern)?, weight)) } else { Err(wrong()) }
}
