//! GGUF → GGUF: the same model in other types, in one file or cut anew. Metadata keep their order and types; tensors whose type
//! stays are copied bit for bit.

use std::sync::Arc;

use super::packed::{Packed, Part};
use super::{Made, Source};
use crate::error::{Error, Result};
use crate::formats::gguf::{Metadata, Value};
use crate::formats::{Checkpoint, Stored};
use crate::llama::{FileType, Mix};
use crate::model::weight::Weight;
use crate::tensor::{GgmlType, Packing, TensorInfo};

/// Tells which revision of the blocks a file has.
const VERSION: &str = "general.quantization_version";

/// What is written of the checkpoint, whose metadata are these.
///
/// # Errors
/// When a tensor cannot be read that has to change.
pub fn make(checkpoint: &Checkpoint, metadata: &Metadata, mix: Option<Mix>) -> Result<Made> {
    let stored: Vec<Stored> = checkpoint.all().collect();
    let mut infos: Vec<TensorInfo> = stored.iter().map(|stored| stored.info.clone()).collect();
    let types = mix.map_or_else(|| vec![None; infos.len()], |mix| mix.types(metadata, &infos));
    let mut tensors = Vec::with_capacity(stored.len());
    let mut again = 0;
    for ((stored, info), ggml) in stored.into_iter().zip(&mut infos).zip(types) {
        let Some(ggml) = ggml.filter(|ggml| ggml.dtype() != info.dtype) else {
            tensors.push(Source::Copied(vec![stored]));
            continue;
        };
        again += usize::from(matches!(Packing::of(&info.dtype), Some(Packing::Blocks(_))));
        tensors.push(Source::Packed(Arc::new(packed(stored, info, ggml)?)));
    }
    let mut metadata = metadata.clone();
    if let Some(mix) = mix {
        metadata.set(FileType::KEY, Value::U32(mix.file_type));
        let blocks = infos.iter().any(|info| matches!(Packing::of(&info.dtype), Some(Packing::Blocks(_))));
        if blocks && metadata.get(VERSION).is_none() {
            metadata.set(VERSION, Value::U32(2));
        }
    }
    let mut notes = Vec::new();
    if again > 0 {
        notes.push(format!(
            "{again} tensors were quantised already: what that lost stays lost, a file made from the original model is closer to it"
        ));
    }
    Ok(Made { metadata, infos, tensors, notes })
}

fn packed(stored: Stored, info: &mut TensorInfo, ggml: GgmlType) -> Result<Packed> {
    let name = info.name.clone();
    if Packing::of(&info.dtype).is_none() {
        let what = format!("tensor `{name}` is stored as {}, which cannot be written as {ggml}", info.dtype);
        return Err(Error::unsupported(stored.path(), what));
    }
    let bytes = info.shape.elements().and_then(|elements| ggml.bytes_of(elements));
    let too_large =
        || Error::malformed(stored.path(), format!("tensor `{name}`"), "has more values than can be counted");
    info.bytes = bytes.ok_or_else(too_large)?;
    info.dtype = ggml.dtype();
    let row = info.shape.as_slice().last().and_then(|row| usize::try_from(*row).ok());
    let part = Part { weight: Weight::new(stored, row)?, order: None, added: 0.0 };
    Ok(Packed::new(name, vec![part], ggml))
}
