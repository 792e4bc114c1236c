//! Modules → the tensors of a file.

use std::collections::BTreeMap;
use std::path::Path;

use super::{EMBEDDING, HeadCounts, Pair, row_order, transposed};
use crate::error::{Error, Result};
use crate::formats::gguf::{Metadata, Value};
use crate::naming::gguf::{GgufArch, Place};
use crate::tensor::Shape;

/// What a file of factors holds.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufLora {
    /// The one α of all.
    pub alpha: f32,
    /// (name, shape as torch has it, values), A before B, in the order of the pairs.
    pub tensors: Vec<(String, Shape, Vec<f32>)>,
}

/// Turns pairs into the tensors of a file for `arch`. `source` is the adapter they are from, for messages.
///
/// # Errors
/// When a module has no place in a file of that architecture, heads are not known or do not fit, or experts are missing.
pub fn lora_tensors(source: &Path, arch: &GgufArch, counts: Option<HeadCounts>, pairs: &[Pair]) -> Result<GgufLora> {
    let alpha = common_alpha(pairs);
    let mut groups: Vec<(String, Vec<(Place, &Pair)>)> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for pair in pairs {
        let place = arch.place(&pair.module).ok_or_else(|| {
            let what = format!("module `{}` has no tensor in a GGUF file of architecture {}", pair.module, arch.name());
            Error::unsupported(source, what)
        })?;
        let group = *at.entry(place.tensor.clone()).or_insert_with(|| {
            groups.push((place.tensor.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push((place, pair));
    }
    let mut tensors = Vec::new();
    for (tensor, mut members) in groups {
        let wrong = |module: &str, what: String| Error::unsupported(source, format!("module `{module}`: {what}"));
        members.sort_by_key(|(place, _)| place.expert);
        let (first, like) = (&members[0].0, members[0].1);
        let stacked = first.expert.is_some();
        for (expert, (place, pair)) in (0_u64..).zip(&members) {
            let expected = stacked.then_some(expert);
            if place.expert != expected {
                let what =
                    format!("tensor `{tensor}` holds all experts of a layer, and the adapter lacks expert {expert}");
                return Err(wrong(&pair.module, what));
            }
            if (pair.rank, pair.down.len(), pair.up.len()) != (like.rank, like.down.len(), like.up.len()) {
                let what =
                    format!("its rank or shape differs from that of `{}`, and both lie in `{tensor}`", like.module);
                return Err(wrong(&pair.module, what));
            }
        }
        let rank = like.rank;
        if rank == 0 || !like.down.len().is_multiple_of(rank) || !like.up.len().is_multiple_of(rank) {
            let what = format!("factors of {} and {} values are not of rank {rank}", like.down.len(), like.up.len());
            return Err(wrong(&like.module, what));
        }
        let (inputs, outputs) = (like.down.len() / rank, like.up.len() / rank);
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for (place, pair) in &members {
            let order = row_order(place, counts, outputs).map_err(|what| wrong(&pair.module, what))?;
            down.extend(if tensor == EMBEDDING { transposed(&pair.down, rank) } else { pair.down.clone() });
            up.extend(folded(pair, alpha, order.as_deref()));
        }
        let (rank, inputs, outputs) = (rank as u64, inputs as u64, outputs as u64);
        let down_shape = if tensor == EMBEDDING { vec![inputs, rank] } else { vec![rank, inputs] };
        let shape = |last: Vec<u64>| {
            let experts = stacked.then_some(members.len() as u64);
            Shape(experts.into_iter().chain(last).collect())
        };
        tensors.push((format!("{tensor}.weight.lora_a"), shape(down_shape), down));
        tensors.push((format!("{tensor}.weight.lora_b"), shape(vec![outputs, rank]), up));
    }
    Ok(GgufLora { alpha, tensors })
}

/// The α that all scales are said with where there is one, so that no factor changes; else the largest rank.
fn common_alpha(pairs: &[Pair]) -> f32 {
    let alpha = |pair: &Pair| (pair.scale * pair.rank as f64) as f32;
    let first = pairs.first().map_or(1.0, alpha);
    // An α of 0 means none to llama.cpp.
    if first != 0.0 && first.is_finite() && pairs.iter().all(|pair| alpha(pair) == first) {
        return first;
    }
    pairs.iter().map(|pair| pair.rank as f32).fold(1.0, f32::max)
}

/// B in the order of the file, times what α does not say.
fn folded(pair: &Pair, alpha: f32, order: Option<&[usize]>) -> Vec<f32> {
    let rank = pair.rank;
    let said = (pair.scale * rank as f64) as f32 == alpha;
    let factor = if said { 1.0 } else { pair.scale * rank as f64 / f64::from(alpha) };
    let scaled = |value: &f32| (f64::from(*value) * factor) as f32;
    match order {
        None => pair.up.iter().map(scaled).collect(),
        Some(order) => order.iter().flat_map(|row| pair.up[row * rank..(row + 1) * rank].iter().map(scaled)).collect(),
    }
}

/// The metadata that llama.cpp wants of such a file.
pub fn metadata_of(arch: &GgufArch, name: &str, alpha: f32) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", arch.name().into());
    metadata.set("general.type", "adapter".into());
    metadata.set("adapter.type", "lora".into());
    metadata.set("general.name", name.into());
    metadata.set("adapter.lora.alpha", Value::F32(alpha));
    metadata.set("general.quantization_version", Value::U32(2));
    metadata
}
