//! A model: architecture, groups of modules, largest tensors.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::weights::{TensorFacts, Weights, elements, problems};
use super::{counted, named};
use crate::adapters::config::CONFIG_NAME;
use crate::error::Result;
use crate::formats::{Checkpoint, Container, companions};
use crate::naming::{Role, peft};
use crate::ops::base::{Base, PACKED};
use crate::tensor::TensorInfo;

/// How many of the largest tensors are told.
const LARGEST: usize = 5;

/// Components of a path that name a group: the layer's block and the module in it.
const GROUP_COMPONENTS: usize = 2;

/// A model's weights.
#[derive(Debug, Clone, Serialize)]
pub struct CheckpointFacts {
    /// Where it lies.
    pub path: PathBuf,
    /// `architectures` of config.json.
    pub architectures: Vec<String>,
    /// `model_type` of config.json.
    pub model_type: Option<String>,
    /// `dtype` or `torch_dtype` of config.json.
    pub declared_dtype: Option<String>,
    /// How it is stored.
    #[serde(flatten)]
    pub weights: Weights,
    /// Embedding that the head shares its tensor with; `None` if it has its own, or none.
    pub head_tied_to: Option<String>,
    /// Signs of quantised weights.
    pub quantisation: Vec<Quantisation>,
    /// Modules of all layers together, the one with most bytes first.
    pub groups: Vec<Group>,
    /// The largest tensors.
    pub largest: Vec<TensorFacts>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// One way in which weights are quantised.
#[derive(Debug, Clone, Serialize)]
pub struct Quantisation {
    /// Who packs like that, or what config.json says.
    pub method: String,
    /// Modules that show it.
    pub modules: usize,
}

/// Modules that have the same place in every layer.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// The last components of their path, without numbers.
    pub name: String,
    /// Their tensors.
    pub tensors: usize,
    /// Elements of these.
    pub elements: u64,
    /// Bytes of these.
    pub bytes: u64,
}

impl CheckpointFacts {
    /// Reads headers, index and config of the checkpoint at `path`.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let base = Base::open(path)?;
        let weights = Weights::of(&base.checkpoint);
        let empty = Map::new();
        let config = base.config.as_ref().unwrap_or(&empty);
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
        let architectures = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
        let packed = packed(&base);
        let mut problems = problems(&base.checkpoint);
        problems.extend(packed.iter().map(|found| {
            let Quantisation { method, modules } = found;
            format!("{} quantised by {method}: no adapter can be merged into them", counted(*modules, "weight"))
        }));
        problems.extend(layout_problems(&base, weights.bytes)?);
        Ok(Self {
            path: path.to_path_buf(),
            architectures: architectures.filter_map(Value::as_str).map(str::to_owned).collect(),
            model_type: text("model_type"),
            declared_dtype: text("dtype").or_else(|| text("torch_dtype")),
            head_tied_to: base.tie.as_ref().map(|tie| tie.embedding.clone()),
            quantisation: packed.into_iter().chain(scaled(&base)).chain(declared(config)).collect(),
            groups: groups(&base.checkpoint),
            largest: largest(&weights.listing),
            weights,
            problems,
        })
    }
}

/// Weights packed in a way that betrays itself by the names of tensors.
fn packed(base: &Base) -> Vec<Quantisation> {
    let mut seen = HashSet::new();
    let mut found: Vec<Quantisation> = Vec::new();
    for (ending, method) in PACKED {
        let modules = base.checkpoint.tensors().filter_map(|tensor| tensor.name.strip_suffix(ending));
        let modules = modules.filter(|module| seen.insert(*module)).count();
        if modules > 0 {
            found.push(Quantisation { method: method.to_owned(), modules });
        }
    }
    found
}

/// FP8 weights with scales beside them.
fn scaled(base: &Base) -> Option<Quantisation> {
    let is_scaled =
        |tensor: &&TensorInfo| tensor.dtype.float().is_some_and(|float| base.scale_of(&tensor.name, float).is_some());
    let modules = base.checkpoint.tensors().filter(is_scaled).count();
    (modules > 0).then(|| Quantisation { method: "scaled FP8".to_owned(), modules })
}

/// What config.json says of it.
fn declared(config: &Map<String, Value>) -> Option<Quantisation> {
    let method = config.get("quantization_config")?.get("quant_method")?.as_str()?;
    Some(Quantisation { method: format!("{method} (config.json)"), modules: 0 })
}

fn groups(checkpoint: &Checkpoint) -> Vec<Group> {
    let mut found: BTreeMap<String, Group> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let name = group_of(&tensor.name);
        let new = || Group { name: name.clone(), tensors: 0, elements: 0, bytes: 0 };
        let group = found.entry(name.clone()).or_insert_with(new);
        group.tensors += 1;
        group.elements = group.elements.saturating_add(elements(tensor));
        group.bytes += tensor.bytes;
    }
    let mut found: Vec<Group> = found.into_values().collect();
    found.sort_by_key(|group| std::cmp::Reverse(group.bytes));
    found
}

fn group_of(name: &str) -> String {
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts: Vec<&str> = name.split('.').filter(|part| !is_number(part)).collect();
    if parts.len() > 1 {
        // The parameter's own name.
        parts.pop();
    }
    parts[parts.len().saturating_sub(GROUP_COMPONENTS)..].join(".")
}

fn largest(listing: &[TensorFacts]) -> Vec<TensorFacts> {
    let mut order: Vec<&TensorFacts> = listing.iter().collect();
    order.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes));
    order.into_iter().take(LARGEST).cloned().collect()
}

/// What is wrong with the files around the tensors.
fn layout_problems(base: &Base, bytes: u64) -> Result<Vec<String>> {
    let checkpoint = &base.checkpoint;
    let mut problems = Vec::new();
    let factors =
        checkpoint.tensors().filter(|tensor| matches!(peft::parse(&tensor.name).role, Role::Down | Role::Up)).count();
    if factors > 0 {
        problems.push(format!(
            "{} of a LoRA and no `{CONFIG_NAME}` beside them: the scale is unknown",
            counted(factors, "factor")
        ));
    }
    if *checkpoint.container() == Container::File {
        return Ok(problems);
    }
    if base.config.is_none() && factors == 0 {
        problems.push("`config.json` is missing: architecture and ties are unknown".to_owned());
    }
    let mut own: HashSet<&str> = checkpoint.files().iter().map(|file| file.name.as_str()).collect();
    if let Container::Sharded { index, metadata } = checkpoint.container() {
        own.insert(index);
        if let Some(total) = metadata.get("total_size").filter(|total| total.as_u64() != Some(bytes)) {
            problems.push(format!("`{index}` says `total_size` is {total}, the tensors take {bytes} bytes"));
        }
    }
    let left = companions::list(checkpoint.directory())?.left;
    let left: Vec<String> = left.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let others: Vec<&str> = left.iter().map(String::as_str).filter(|name| !own.contains(name)).collect();
    if !others.is_empty() {
        problems.push(format!("other weights lie beside these and were not looked at: {}", named(others)));
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_the_end_of_the_path_without_numbers() {
        for (name, group) in [
            ("model.layers.17.self_attn.q_proj.weight", "self_attn.q_proj"),
            ("model.layers.0.mlp.experts.3.w1.weight", "experts.w1"),
            ("model.embed_tokens.weight", "model.embed_tokens"),
            ("lm_head.weight", "lm_head"),
            ("attn.in_proj_weight", "attn"),
            ("0.1.weight", "weight"),
            ("x", "x"),
            ("", ""),
        ] {
            assert_eq!(group_of(name), group, "{name}");
        }
    }
}
