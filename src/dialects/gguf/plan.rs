//! Modules → the pairs of tensors of a file, before any value is looked at.

use std::collections::BTreeMap;
use std::path::Path;

use super::EMBEDDING;
use super::heads::row_order;
use crate::error::{Error, Result};
use crate::formats::gguf::{Metadata, Value};
use crate::llama::HeadCounts;
use crate::llama::{GgufArch, Place};
use crate::tensor::Shape;

/// The change of one module.
#[derive(Debug, Clone, PartialEq)]
pub struct Part<'a> {
    /// The module as the checkpoint calls it.
    pub module: &'a str,
    /// r.
    pub rank: u64,
    /// Columns of A; of an embedding the rows of the table.
    pub inputs: u64,
    /// Rows of B; of an embedding its width.
    pub outputs: u64,
    /// What B A is multiplied by.
    pub scale: f64,
}

/// A pair of tensors of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Names of A and B.
    pub names: [String; 2],
    /// Shapes of A and B.
    pub shapes: [Shape; 2],
    /// r, that of the parts with the largest.
    pub rank: u64,
    /// What lies in it: one part, or one for every expert that is changed.
    pub parts: Vec<Option<usize>>,
    /// By part: what its B is multiplied by, because α does not say it.
    pub factors: Vec<f64>,
    /// For every row of B in the file the one of the module, where that differs.
    pub order: Option<Vec<usize>>,
    /// A is written with rows and columns exchanged.
    pub embedding: bool,
}

/// What is known of the model that the file is for.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// The numbers of heads.
    pub counts: Option<HeadCounts>,
    /// Rows of B stand in the order of the file already.
    pub in_order: bool,
    /// How many experts a layer has.
    pub experts: Option<u64>,
}

/// Finds the place of every part in a file for `arch`: α, and the tensors in the order of the parts. `source` is the adapter
/// they are from, for messages.
///
/// # Errors
/// When a module has no place in a file of that architecture, or heads or experts are not known or do not fit.
pub fn plan(source: &Path, arch: &GgufArch, model: Model, parts: &[Part<'_>]) -> Result<(f32, Vec<Planned>)> {
    let mut groups: Vec<(String, Vec<(Place, usize)>)> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for (number, part) in parts.iter().enumerate() {
        let place = arch.place(part.module).ok_or_else(|| {
            let reason = arch.refusal(part.module).map_or(String::new(), |reason| format!(": {reason}"));
            let what = "has no tensor in a GGUF file of architecture";
            let what = format!("module `{}` {what} {}{reason}", part.module, arch.name());
            Error::unsupported(source, what).hint("merge the adapter into the model: `lorakit merge`")
        })?;
        let group = *at.entry(place.tensor.clone()).or_insert_with(|| {
            groups.push((place.tensor.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push((place, number));
    }
    let ranks: Vec<u64> = groups.iter().map(|(_, members)| rank_of(members, parts)).collect();
    let each = || groups.iter().zip(&ranks).flat_map(|((_, members), rank)| members.iter().map(|at| (at.1, *rank)));
    let alpha = common_alpha(each().map(|(part, rank)| (parts[part].scale, rank)));
    let planned = groups.iter().zip(&ranks).map(|((tensor, members), rank)| {
        let refuse =
            |part: usize, what: String| Error::unsupported(source, format!("module `{}`: {what}", parts[part].module));
        let (first, like) = (&members[0].0, &parts[members[0].1]);
        let shape = (like.inputs, like.outputs);
        if let Some((_, other)) = members.iter().find(|(_, at)| (parts[*at].inputs, parts[*at].outputs) != shape) {
            let what = format!("its shape differs from that of `{}`, and both lie in `{tensor}`", like.module);
            return Err(refuse(*other, what));
        }
        let lying = match first.expert {
            Some(_) => stacked(members, model.experts).map_err(|(part, what)| refuse(part, what))?,
            None if members.len() > 1 => return Err(refuse(members[1].1, "is changed twice".into())),
            None => vec![Some(members[0].1)],
        };
        let rows = usize::try_from(like.outputs).unwrap_or(usize::MAX);
        let order = if model.in_order { Ok(None) } else { row_order(first, model.counts, rows) };
        let order = order.map_err(|what| refuse(members[0].1, what))?;
        let factor = |part: &Option<usize>| part.map_or(1.0, |part| factor(parts[part].scale, *rank, alpha));
        let embedding = tensor == EMBEDDING;
        let down = if embedding { [like.inputs, *rank] } else { [*rank, like.inputs] };
        let stack = first.expert.map(|_| lying.len() as u64);
        let shape = |of: [u64; 2]| Shape::from(stack.into_iter().chain(of).collect::<Vec<u64>>());
        Ok(Planned {
            names: ["a", "b"].map(|factor| format!("{tensor}.weight.lora_{factor}")),
            shapes: [shape(down), shape([like.outputs, *rank])],
            rank: *rank,
            factors: lying.iter().map(factor).collect(),
            parts: lying,
            order,
            embedding,
        })
    });
    Ok((alpha, planned.collect::<Result<_>>()?))
}

fn rank_of(members: &[(Place, usize)], parts: &[Part<'_>]) -> u64 {
    members.iter().map(|(_, part)| parts[*part].rank).max().unwrap_or(1)
}

/// The parts of a stack by expert; experts that are not changed have none.
fn stacked(members: &[(Place, usize)], experts: Option<u64>) -> Result<Vec<Option<usize>>, (usize, String)> {
    let mut by_expert = BTreeMap::new();
    for (place, part) in members {
        if by_expert.insert(place.expert.unwrap_or(0), *part).is_some() {
            return Err((*part, "is changed twice".into()));
        }
    }
    let (last, part) = by_expert.last_key_value().map_or((0, 0), |(last, part)| (*last, *part));
    match experts {
        Some(count) if last >= count => Err((part, format!("the model has {count} experts"))),
        Some(count) => Ok((0..count).map(|expert| by_expert.get(&expert).copied()).collect()),
        None if by_expert.len() as u64 == last + 1 => Ok(by_expert.into_values().map(Some).collect()),
        None => {
            let lacking = (0..last).find(|expert| !by_expert.contains_key(expert)).unwrap_or(last);
            let what = format!(
                "its tensor holds all experts of a layer, the adapter lacks expert {lacking}, and how many \
                                there are is not known"
            );
            Err((part, what))
        }
    }
}

/// The α that all scales are said with where there is one, so that no factor changes; else the largest rank.
fn common_alpha(mut scales: impl Iterator<Item = (f64, u64)> + Clone) -> f32 {
    let largest = scales.clone().map(|(_, rank)| rank as f32).fold(1.0, f32::max);
    let alpha = |(scale, rank): (f64, u64)| (scale * rank as f64) as f32;
    let Some(first) = scales.next().map(alpha) else { return largest };
    // An α of 0 means none to llama.cpp.
    let one = first != 0.0 && first.is_finite() && scales.all(|other| alpha(other) == first);
    if one { first } else { largest }
}

/// What B is multiplied by so that α / r does the rest.
fn factor(scale: f64, rank: u64, alpha: f32) -> f64 {
    let wanted = scale * rank as f64;
    if wanted as f32 == alpha { 1.0 } else { wanted / f64::from(alpha) }
}

/// The metadata that llama.cpp wants of such a file.
pub fn metadata_of(arch: &GgufArch, name: &str, alpha: f32) -> Metadata {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", arch.name().into());
    metadata.set("general.type", "adapter".into());
    metadata.set("adapter.type", "lora".into());
    metadata.set("general.name", name.into());
    metadata.set("adapter.lora.alpha", Value::F32(alpha));
    metadata.set("general.quantization_version", Value::U32(2));
    metadata
}
