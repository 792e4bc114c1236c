//! Checkpoints → GGUF: from models as Hugging Face has them ([`hub`]), and from GGUF itself ([`requantised`]).

mod hub;
mod packed;
mod requantised;
mod write;

use std::sync::Arc;
use std::time::Instant;

use super::{CheckpointReport, ConvertOptions, watch};
use crate::error::{Error, Result};
use crate::formats::gguf::Metadata;
use crate::formats::{Checkpoint, Stored};
use crate::llama::Mix;
use crate::model::Rounding;
use crate::model::base::Base;
use crate::output::{Expected, Run, check_early};
use crate::tensor::{Float, TensorInfo};
use packed::Packed;

/// What a tensor of the output is.
pub enum Source {
    /// The input's own bytes, one piece after the other.
    Copied(Vec<Stored>),
    /// Computed.
    Packed(Arc<Packed>),
}

/// All that is written.
pub struct Made {
    metadata: Metadata,
    /// What each tensor is in the output.
    infos: Vec<TensorInfo>,
    /// Where each comes from.
    tensors: Vec<Source>,
    notes: Vec<String>,
}

/// Converts the checkpoint `options.input`.
///
/// # Errors
/// When it is malformed, cannot be expressed, or cannot be written; nothing is left behind then.
pub fn convert(options: &ConvertOptions, run: &Run<'_>) -> Result<CheckpointReport> {
    let started = Instant::now();
    let mix = mix(options)?;
    let inputs = watch(options);
    let input = Checkpoint::open(&options.input)?;
    check_early(&options.write, &inputs, &Expected::Planned)?;
    let made = match input.gguf() {
        Some(metadata) => requantised::make(&input, metadata, mix)?,
        None => {
            // Rounded once, from f32 to what is written.
            let base = Base::open_in(&options.input, mix.is_some().then_some(Float::F32))?;
            base.wrapping.refuse_inside(&base.checkpoint, "the model")?;
            hub::make(&base, mix)?
        }
    };
    write::write(options, &input, made, &inputs, run, started)
}

/// What the options ask for; `None` where each tensor keeps its type.
fn mix(options: &ConvertOptions) -> Result<Option<Mix>> {
    let write = &options.write;
    if !options.include.is_empty() || !options.exclude.is_empty() {
        let option = if options.include.is_empty() { "--exclude" } else { "--include" };
        return Err(Error::invalid(option, "the types of a GGUF file follow from `--quant` or `--dtype` alone"));
    }
    if !options.strip_metadata.is_empty() {
        return Err(Error::invalid(
            "--strip-metadata",
            "is about safetensors; llama.cpp needs the metadata of a GGUF file",
        ));
    }
    if write.rounding != Rounding::Nearest {
        return Err(Error::invalid("--rounding", "a GGUF file is rounded to nearest, as llama.cpp does"));
    }
    let plain = match write.dtype {
        None => None,
        Some(float) => Some(hub::plain(&float.dtype()).ok_or_else(|| {
            Error::invalid("--dtype", format!("a GGUF file of a model has f32, f16 or bf16, not {float}"))
                .hint("`--quant q8_0` has a byte for each value and a scale for 32 of them")
        })?),
    };
    match (options.quant, plain) {
        (Some(quant), Some(plain)) if quant != plain => {
            Err(Error::invalid("--quant", format!("`--quant` asks for {}, `--dtype` for {}", quant.name, plain.name)))
        }
        (quant, plain) => Ok(quant.or(plain)),
    }
}
