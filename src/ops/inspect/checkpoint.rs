//! A model: architecture, groups of modules, largest tensors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Map;

use super::family::family;
use super::gguf::GgufFacts;
use super::header::HeaderFacts;
use super::model_values::{self, ModelValues};
use super::quantised::{self, Quantisation};
use super::weights::{self, TensorFacts, Weights, elements, problems};
use super::{InspectOptions, counted, named};
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::peft_keys;
use crate::error::Result;
use crate::formats::{Checkpoint, Container, companions};
use crate::model::ModelConfig;
use crate::naming::{Names, Role};
use crate::output::Run;
use crate::tensor::Float;

/// How many of the largest tensors are told.
const LARGEST: usize = 5;

/// A model's weights.
#[derive(Debug, Serialize)]
pub struct CheckpointFacts {
    /// Where it lies.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// `architectures` of config.json.
    pub architectures: Vec<String>,
    /// What the names of the tensors look like.
    pub family: Option<&'static str>,
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
    /// Elements of quantised weights that are read.
    #[serde(skip_serializing_if = "is_none")]
    pub quantised_elements: u64,
    /// Matrices that are plain numbers beside quantised ones, by the last component of their modules.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub plain_beside_quantised: BTreeMap<String, usize>,
    /// What the header's free text tells.
    #[serde(flatten)]
    pub header: HeaderFacts,
    /// What a GGUF file says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gguf: Option<GgufFacts>,
    /// Modules of all layers together, the one with most bytes first.
    pub groups: Vec<Group>,
    /// The largest tensors.
    pub largest: Vec<TensorFacts>,
    /// What the values show, where they were looked at.
    pub values: Option<ModelValues>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// The tensors themselves.
    #[serde(skip)]
    pub checkpoint: Checkpoint,
}

/// Modules that have the same place in every layer.
#[derive(Debug, Clone, Default, Serialize)]
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
    /// Reads headers, index and config of the checkpoint at `path`; `file` is that file, if it is open already.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(path: &Path, file: Option<Checkpoint>, options: &InspectOptions, run: &Run<'_>) -> Result<Self> {
        let checkpoint = file.map_or_else(|| Checkpoint::open(path), Ok)?;
        let config = checkpoint.config()?.map(ModelConfig::of);
        let weights = Weights::of(&checkpoint);
        let found = quantised::find(&checkpoint, config.as_ref())?;
        let mut problems = problems(&checkpoint, |_| false);
        problems.extend(found.problems);
        problems.extend(layout_problems(&checkpoint, config.is_some(), weights.bytes)?);
        let has = |name: &str| checkpoint.info(name).is_some();
        let names = || Names::new(checkpoint.tensors().map(|tensor| tensor.name.clone()));
        let tied = config.as_ref().filter(|config| config.is_tied());
        let tie = tied.and_then(|config| config.head().tie(&names()));
        let gguf = GgufFacts::of(&checkpoint);
        problems.extend(gguf.iter().flat_map(|gguf| gguf.problems(&checkpoint)));
        // A GGUF file without a head takes the embedding for it.
        let is_headless = gguf.as_ref().is_some_and(|gguf| gguf.sizes.context.is_some()) && !has("output.weight");
        let embedding = is_headless.then(|| "token_embd.weight".to_owned()).filter(|name| has(name));
        let config = config.unwrap_or_default();
        let header = HeaderFacts::of(&checkpoint, &Map::new(), &weights, options)?;
        problems.extend(header.problems());
        let declared = config.text("dtype").or_else(|| config.text("torch_dtype")).map(str::to_owned);
        problems.extend(declared.as_deref().and_then(|declared| other_dtype(declared, &weights)));
        let values = options.check.then(|| model_values::values(&checkpoint, options, run)).transpose()?;
        problems.extend(values.iter().flat_map(ModelValues::problems));
        Ok(Self {
            path: path.to_path_buf(),
            family: family(&checkpoint),
            declared_dtype: declared,
            head_tied_to: tie.map(|tie| tie.embedding).or(embedding),
            quantisation: found.ways,
            quantised_elements: found.elements,
            plain_beside_quantised: found.plain,
            architectures: config.architectures,
            model_type: config.model_type,
            header,
            gguf,
            groups: groups(&checkpoint),
            largest: weights::largest(&checkpoint, LARGEST),
            weights,
            values,
            problems,
            checkpoint,
        })
    }
}

/// Whether a number is worth no line.
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A config whose dtype is not that of most weights: loaders that follow it round them.
fn other_dtype(declared: &str, weights: &Weights) -> Option<String> {
    let wide = |float: Float| float.bytes() > 1;
    let declared =
        Float::from_option(declared.strip_prefix("torch.").unwrap_or(declared)).filter(|float| wide(*float))?;
    let most = weights.dtypes.iter().max_by_key(|facts| facts.bytes)?;
    let stored = Float::from_option(&most.dtype).filter(|float| wide(*float) && *float != declared)?;
    let (declared, stored) = (declared.torch_name(), stored.torch_name());
    Some(format!(
        "`config.json` says {declared}, most of the weights are {stored}: loaders that follow the config round them to {declared}"
    ))
}

fn groups(checkpoint: &Checkpoint) -> Vec<Group> {
    let mut found: HashMap<(&str, &str), Group> = HashMap::new();
    for tensor in checkpoint.tensors() {
        let group = found.entry(group_of(&tensor.name)).or_default();
        group.tensors += 1;
        group.elements = group.elements.saturating_add(elements(tensor));
        group.bytes += tensor.bytes;
    }
    let named = |((block, module), group): ((&str, &str), Group)| {
        let name = if block.is_empty() { module.to_owned() } else { format!("{block}.{module}") };
        Group { name, ..group }
    };
    let mut found: Vec<Group> = found.into_iter().map(named).collect();
    found.sort_by(|left, right| right.bytes.cmp(&left.bytes).then_with(|| left.name.cmp(&right.name)));
    found
}

/// The layer's block and the module in it, without numbers and without the parameter's own name.
fn group_of(name: &str) -> (&str, &str) {
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.rsplit('.').filter(|part| !is_number(part));
    let parameter = parts.next().unwrap_or_default();
    match (parts.next(), parts.next()) {
        (None, _) => ("", parameter),
        (Some(module), block) => (block.unwrap_or_default(), module),
    }
}

/// What is wrong with the files around the tensors.
fn layout_problems(checkpoint: &Checkpoint, has_config: bool, bytes: u64) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let is_factor = |name: &str| name.contains("lora_") && matches!(peft_keys::parse(name).role, Role::Down | Role::Up);
    let factors = checkpoint.tensors().filter(|tensor| is_factor(&tensor.name)).count();
    if factors > 0 {
        problems.push(format!(
            "{} of a LoRA and no `{CONFIG_NAME}` beside them: the scale is unknown",
            counted(factors, "factor")
        ));
    }
    if matches!(checkpoint.container(), Container::File | Container::Split) {
        return Ok(problems);
    }
    let is_pipeline = matches!(checkpoint.container(), Container::Pipeline(_));
    if !has_config && factors == 0 && !is_pipeline && checkpoint.gguf().is_none() {
        problems.push("`config.json` is missing: architecture and ties are unknown".to_owned());
    }
    let mut own: HashSet<String> = checkpoint.files().iter().map(|file| file.name.clone()).collect();
    for component in checkpoint.components() {
        let Container::Sharded { index, metadata } = component.container else { continue };
        let index = component.place(index);
        let bytes = if is_pipeline {
            component.files.iter().flat_map(|file| &file.header.tensors).map(|tensor| tensor.bytes).sum()
        } else {
            bytes
        };
        if let Some(total) = metadata.get("total_size").filter(|total| total.as_u64() != Some(bytes)) {
            problems.push(format!("`{index}` says `total_size` is {total}, the tensors take {bytes} bytes"));
        }
        own.insert(index);
    }
    let left = companions::list(checkpoint.directory())?.weights;
    let left: Vec<String> = left.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let others: Vec<&str> = left.iter().map(String::as_str).filter(|name| !own.contains(*name)).collect();
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
            ("model.layers.17.self_attn.q_proj.weight", ("self_attn", "q_proj")),
            ("model.layers.0.mlp.experts.3.w1.weight", ("experts", "w1")),
            ("model.embed_tokens.weight", ("model", "embed_tokens")),
            ("lm_head.weight", ("", "lm_head")),
            ("attn.in_proj_weight", ("", "attn")),
            ("0.1.weight", ("", "weight")),
            ("x", ("", "x")),
            ("", ("", "")),
        ] {
            assert_eq!(group_of(name), group, "{name}");
        }
    }
}
