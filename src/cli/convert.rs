//! `lorakit convert`.

use std::ffi::OsString;

use clap::Args as Group;

use super::options::Write;
use super::progress::Bar;
use super::reading::Reading;
use super::said::Said;
use super::{place, values, watch, words};

use crate::dialects::{Target, is_adapter};
use crate::error::{Error, Result};
use crate::llama::Mix;
use crate::ops::Run;
use crate::ops::convert::{ConvertOptions, convert};
use crate::report;

#[derive(Debug, Group)]
pub struct Convert {
    /// A checkpoint (safetensors, PyTorch, numpy, GGUF) or an adapter: a file, a directory, or org/name[@rev] in the Hugging Face cache
    pub input: OsString,
    #[command(flatten)]
    pub write: Write,
    #[command(flatten)]
    pub read: Reading,
    #[arg(long, alias = "format", value_name = "FORMAT", help = to(), value_parser = values::targets(), hide_possible_values = true)]
    pub to: Option<String>,
    /// The model an adapter belongs to, where its names or shapes are needed
    #[arg(long, value_name = "PATH")]
    pub base: Option<OsString>,
    /// The architecture an adapter is for, where its names do not tell
    #[arg(long, value_name = "NAME", value_parser = values::families(), hide_possible_values = true)]
    pub arch: Option<String>,
    /// The component that is meant: the folder of a pipeline that is converted, or the denoiser that an adapter is for
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// How a checkpoint or an adapter is stored in GGUF: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0 and others; its own type if not given
    #[arg(long, value_name = "TYPE", value_parser = values::mixes(), hide_possible_values = true)]
    pub quant: Option<String>,
    /// Write an adapter of another method as LoRA, where that is exact without the base: lora
    #[arg(long = "as", value_name = "METHOD", value_parser = ["lora"])]
    pub method: Option<String>,
    /// The form that adapters of experts get: per-expert, fused, vllm-2d, vllm-3d
    #[arg(long, value_name = "FORM")]
    pub experts: Option<String>,
    /// Metadata keys that are not taken along (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub strip_metadata: Vec<String>,
}

fn to() -> String {
    format!("What is written: {}; a checkpoint becomes safetensors", Target::listed(Target::all()))
}

/// Converts, and gives the report.
pub fn run(args: &Convert) -> Result<Said> {
    let mut write = args.write.options()?;
    if !args.write.allow_unused.is_empty() {
        return Err(Error::invalid("--allow-unused", "a conversion takes every tensor along"));
    }
    write.cast_all |= write.dtype.is_some();
    let input = place::path(&args.input)?;
    let of_model = args.component.as_deref().filter(|_| !is_adapter(&input));
    let mut options = ConvertOptions::new(place::model(&args.input, of_model)?, write);
    options.read = args.read.options()?;
    options.component = args.component.clone().filter(|_| of_model.is_none());
    options.to = args.to.as_deref().map(str::parse).transpose()?;
    options.base = args.base.as_deref().map(place::path).transpose()?;
    options.caches = place::caches();
    options.arch = args.arch.clone();
    options.quant = args.quant.as_deref().map(mix).transpose()?;
    options.experts = args.experts.as_deref().map(str::parse).transpose()?;
    options.as_lora = args.method.is_some();
    options.include = words::patterns("--include", &args.write.include)?;
    options.exclude = words::patterns("--exclude", &args.write.exclude)?;
    options.strip_metadata = args.strip_metadata.clone();
    let cancel = watch::interruptible()?;
    let talk = args.write.talk;
    let bar = Bar::new("converting", talk.quiet);
    let mut result = convert(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.set_peak_resident_bytes(watch::peak_resident_bytes());
    let lost = result.not_finite();
    let bad = (lost > 0).then(|| format!("{lost} values are not finite"));
    Ok(Said::of(talk, &result, report::convert).bad(bad))
}

fn mix(name: &str) -> Result<Mix> {
    Mix::named(name).ok_or_else(|| {
        let names: Vec<&str> = Mix::names().collect();
        Error::invalid("--quant", format!("`{name}` is not one of {}", names.join(", ")))
    })
}
