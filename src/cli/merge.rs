//! `lorakit merge`.

use std::ffi::OsString;

use clap::Args as Group;

use super::options::{Weights, Write};
use super::progress::Bar;
use super::reading::Reading;
use super::said::Said;
use super::{place, values, watch};

use crate::error::{Error, Result};
use crate::llama::Mix;
use crate::model::TrainBase;
use crate::ops::Run;
use crate::ops::merge::{MergeOptions, merge};
use crate::report;
use crate::tensor::{Float, GgmlType, Packing};

#[derive(Debug, Group)]
pub struct Merge {
    /// The model: a directory, a safetensors file, or org/name[@rev] in the Hugging Face cache
    pub base: OsString,
    /// Adapters, each with a weight after a colon if it is not 1
    #[arg(required = true, value_name = "ADAPTER[:W]")]
    pub adapters: Vec<OsString>,
    #[command(flatten)]
    pub write: Write,
    #[command(flatten)]
    pub weights: Weights,
    #[command(flatten)]
    pub read: Reading,
    /// The adapter as it was before training, for PiSSA, OLoRA, CorDA and LoRA-GA (one for each such adapter)
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Vec<OsString>,
    /// The model that PiSSA or OLoRA training started from, usually BASE itself: finds the untrained factors again
    #[arg(long = "base", value_name = "PATH", conflicts_with_all = ["init_adapter", "residual_base"])]
    pub original: Option<OsString>,
    /// BASE is the residual model that the adapter's initialiser left behind
    #[arg(long, conflicts_with = "init_adapter")]
    pub residual_base: bool,
    /// Which denoiser of a pipeline is meant where two are built alike: transformer, transformer_2
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Let embedding and head that the adapter holds whole change the size of the vocabulary
    #[arg(long)]
    pub resize_vocab: bool,
    /// What the weights that change are written as in a GGUF file: keep, f16, bf16, f32, q8_0, q4_k …
    #[arg(long, default_value = "keep", value_name = "TYPE", value_parser = values::packings(), hide_possible_values = true)]
    pub quant: String,
    /// Write a quantised BASE back in its own format, on the scales it has; without it the result is a plain model
    #[arg(long)]
    pub keep_format: bool,
    /// How BASE was quantised when the adapter was trained on it (QLoRA): nf4[,double][,block=N][,dtype=bf16], fp4 or int8.
    /// Merges into the weights that training saw
    #[arg(long, value_name = "CODES")]
    pub train_base: Option<TrainBase>,
    /// Record the hashes of the base's files as well
    #[arg(long)]
    pub hash_base: bool,
}

/// Merges, and gives the report.
pub fn run(args: &Merge) -> Result<Said> {
    let mut options = MergeOptions::new(
        place::path(&args.base)?,
        args.adapters.iter().map(|written| place::adapter(written)).collect::<Result<_>>()?,
        args.write.options()?,
    );
    options.read = args.read.options()?;
    options.init_adapters = args.init_adapter.iter().map(|written| place::path(written)).collect::<Result<_>>()?;
    options.original = args.original.as_deref().map(place::path).transpose()?;
    options.residual_base = args.residual_base;
    options.selection = args.write.selection(&args.weights)?;
    options.allow_unused = args.write.allow_unused.clone();
    options.component = args.component.clone();
    options.resize_vocabulary = args.resize_vocab;
    options.quant = quant(&args.quant)?;
    options.keep_change = args.write.rounding.is_none();
    options.keep_format = args.keep_format;
    options.train_base = args.train_base;
    options.hash_base = args.hash_base;
    let cancel = watch::interruptible()?;
    let talk = args.write.talk;
    let bar = Bar::new("merging", talk.quiet);
    let mut result = merge(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = watch::peak_resident_bytes();
    super::warn(talk, report::warnings(&result));
    let bad = report::warnings(&result).into_iter().next();
    Ok(Said::of(talk, &result, |result| report::merge(result, talk.verbose)).bad(bad))
}

/// `--quant`: `keep`, a ggml type, or a dtype.
fn quant(typed: &str) -> Result<Option<Packing>> {
    if typed.eq_ignore_ascii_case("keep") {
        return Ok(None);
    }
    let blocks = GgmlType::from_name(typed).and_then(|ggml| Packing::of(&ggml.dtype()));
    let found = blocks.or_else(|| Float::from_option(typed).map(Packing::Float)).filter(|packing| packing.can_encode());
    let wrong = || {
        let known = GgmlType::all().filter(|ggml| ggml.can_encode()).map(|ggml| ggml.name().to_lowercase());
        let known = known.collect::<Vec<_>>().join(", ");
        match Mix::named(typed) {
            Some(mix) => {
                let name = mix.name;
                let one = mix.ggml.name().to_lowercase();
                let problem = format!("`{typed}` is a mix of types, and a merge writes one type: keep, {known}");
                Error::invalid("--quant", problem).hint(format!(
                    "`--quant {one}`; or the mix afterwards: `lorakit convert MERGED -o OUT.gguf --quant {name}`"
                ))
            }
            None => Error::invalid("--quant", format!("`{typed}` is no type that can be written"))
                .hint(format!("keep, {known}")),
        }
    };
    found.map(Some).ok_or_else(wrong)
}
