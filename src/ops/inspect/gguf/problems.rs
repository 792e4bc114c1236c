//! What is wrong with a GGUF file, as far as its header tells.

use std::collections::BTreeSet;

use super::super::{counted, named};
use super::{FileTypeFacts, GgufFacts, weights};
use crate::formats::Checkpoint;
use crate::ops::inspect::weights::elements;
use crate::tensor::{Dtype, GgmlType};

/// The tensor that has a row for every token.
const EMBEDDING: &str = "token_embd.weight";

/// What stands in front of a layer's number.
const LAYER: &str = "blk.";

/// Everything.
pub fn find(facts: &GgufFacts, checkpoint: &Checkpoint) -> Vec<String> {
    let mut problems = Vec::new();
    if facts.architecture.is_none() {
        problems.push("`general.architecture` is missing: llama.cpp loads no such file".to_owned());
    }
    problems.extend(facts.file_type.as_ref().and_then(|said| file_type(said, checkpoint)));
    problems.extend(quantisation_version(checkpoint));
    problems.extend(checkpoint.files().iter().filter_map(trailing));
    if facts.is_adapter() {
        problems.extend(alpha(checkpoint));
    } else if facts.sizes.context.is_some() {
        problems.extend(tokenizer(facts, checkpoint));
        problems.extend(layers(facts, checkpoint));
    }
    problems
}

/// What the file says it is stored as, against its tensors.
fn file_type(said: &FileTypeFacts, checkpoint: &Checkpoint) -> Option<String> {
    let number = said.number;
    let Some(name) = said.name else {
        return Some(format!("`general.file_type` is {number}, which is no known number"));
    };
    if said.agrees {
        return None;
    }
    let mut counts: Vec<(GgmlType, u64)> = Vec::new();
    for (tensor, ggml) in weights(checkpoint) {
        match counts.iter_mut().find(|(own, _)| *own == ggml) {
            Some((_, count)) => *count = count.saturating_add(elements(tensor)),
            None => counts.push((ggml, elements(tensor))),
        }
    }
    let (most, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    let share = 100.0 * said.share;
    Some(format!("`general.file_type` is {number} ({name}), and {share:.0} % of the weights are; most are {most}"))
}

fn quantisation_version(checkpoint: &Checkpoint) -> Option<String> {
    const KEY: &str = "general.quantization_version";
    let packed = checkpoint.tensors().filter(|tensor| matches!(tensor.dtype, Dtype::Ggml(_))).count();
    let missing = checkpoint.gguf().is_some_and(|metadata| metadata.get(KEY).is_none());
    (packed > 0 && missing).then(|| format!("`{KEY}` is missing, and {} quantised", counted(packed, "tensor")))
}

/// Bytes that belong to no tensor, beyond the padding of the last.
fn trailing(file: &crate::formats::WeightFile) -> Option<String> {
    let header = file.gguf.as_ref()?;
    let end = header.tensors.iter().map(|tensor| tensor.offset.saturating_add(tensor.bytes)).max().unwrap_or(0);
    let end = header.data_start.saturating_add(end.next_multiple_of(header.alignment));
    let left = file.map.len().checked_sub(end).filter(|left| *left > 0)?;
    Some(format!("{left} bytes follow the last tensor of `{}` and belong to none", file.name))
}

fn alpha(checkpoint: &Checkpoint) -> Option<String> {
    const KEY: &str = "adapter.lora.alpha";
    let value = checkpoint.gguf()?.get(KEY).map(|value| value.as_f64());
    let found = match value {
        None => "is missing".to_owned(),
        Some(Some(0.0)) => "is 0".to_owned(),
        Some(Some(alpha)) if alpha.is_finite() => return None,
        Some(_) => "is no finite number".to_owned(),
    };
    Some(format!("`{KEY}` {found}: llama.cpp then multiplies B·A by nothing but the strength it is given"))
}

fn tokenizer(facts: &GgufFacts, checkpoint: &Checkpoint) -> Option<String> {
    let Some(tokenizer) = &facts.tokenizer else {
        return Some("holds no tokenizer (`tokenizer.ggml.model`): llama.cpp loads no such model".to_owned());
    };
    let rows = checkpoint.info(EMBEDDING).map(|tensor| tensor.shape.rows_cols().0);
    let (tokens, rows) = tokenizer.tokens.zip(rows)?;
    (tokens != rows).then(|| format!("the tokenizer has {tokens} tokens, `{EMBEDDING}` {rows} rows"))
}

/// Layers that the file says it has, and has.
fn layers(facts: &GgufFacts, checkpoint: &Checkpoint) -> Option<String> {
    let number = |name: &str| name.strip_prefix(LAYER)?.split('.').next()?.parse::<u64>().ok();
    let held: BTreeSet<u64> = checkpoint.tensors().filter_map(|tensor| number(&tensor.name)).collect();
    let said = facts.sizes.layers?;
    if held.is_empty() || held.len() as u64 == said && held.last() == said.checked_sub(1).as_ref() {
        return None;
    }
    let missing: Vec<String> =
        (0..said.min(1 << 16)).filter(|layer| !held.contains(layer)).map(|layer| format!("{LAYER}{layer}")).collect();
    let more = if missing.is_empty() {
        String::new()
    } else {
        format!("; there is no {}", named(missing.iter().map(String::as_str)))
    };
    Some(format!(
        "the metadata says {}, the tensors are of {}{more}",
        counted(usize::try_from(said).unwrap_or(usize::MAX), "layer"),
        held.len()
    ))
}
