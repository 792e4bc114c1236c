//! A model as Hugging Face has it → tensors and metadata of a GGUF file.
//!
//! Names are those of [`GgufArch`]; rows of q and k stand interleaved, norms of Gemma have 1 added, the experts of a layer are
//! one tensor, and a head that is the embedding is left out. Source: llama.cpp `conversion/`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::packed::{Packed, Part};
use super::{Made, Source};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::formats::gguf::{Metadata, Value};
use crate::llama::general;
use crate::llama::{GgufArch, HeadCounts, RowOrder, gguf_arch, split_parameter};
use crate::llama::{Hyperparameters, Mix, Tokenizer};
use crate::model::base::Base;
use crate::model::storage::refused;
use crate::tensor::{Dtype, GgmlType, Shape, TensorInfo};

/// Tensors that are computed from others, and never stored in a GGUF file.
const BUFFERS: [&str; 3] = [".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// What stands before the names of the text part of a model that sees.
const TEXT_PARTS: [(&str, &str); 3] =
    [("language_model.model.", "model."), ("model.language_model.", "model."), ("language_model.lm_head.", "lm_head.")];

/// The other parts of such a model, which llama.cpp has in a file of their own.
const OTHER_PARTS: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// A tensor of the file, and the weights that it holds.
struct Group {
    name: String,
    shape: Shape,
    /// By expert; one without a number where it is no stack.
    members: BTreeMap<Option<u64>, Stored>,
    rows: Option<RowOrder>,
    added: f32,
}

/// What is written of the model `base`.
///
/// # Errors
/// When its family, its tokenizer or a tensor has no place in a GGUF file, or something is missing.
pub fn make(base: &Base, mix: Option<Mix>) -> Result<Made> {
    let directory = base.checkpoint.directory();
    let config_path = directory.join("config.json");
    let unsupported = |what: String| Error::unsupported(&config_path, what);
    let config = &base
        .config
        .as_ref()
        .ok_or_else(|| {
            Error::unsupported(directory, "has no config.json, and a GGUF file needs the sizes of the model")
        })?
        .raw;
    let said = Hyperparameters::of(config).map_err(unsupported)?;
    let arch = gguf_arch(&said.family.arch).ok_or_else(|| unsupported("is of an unknown architecture".into()))?;
    let mut notes = said.notes.clone();
    let groups = groups(base, arch, &mut notes)?;
    complete(base, arch, &said.config, &groups)?;
    let tokenizer = Tokenizer::read(directory, said.family, &said.config)?.ok_or_else(|| {
        Error::unsupported(
            directory,
            "has no tokenizer.json and no tokenizer.model, and llama.cpp loads no model without",
        )
    })?;
    notes.extend(tokenizer.notes);

    let factors = said.factors.iter().map(|(name, values)| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let info = info(name, Shape::from([values.len() as u64]), GgmlType::F32, bytes.len() as u64);
        (info.clone(), Stored::held(&base.checkpoint.files()[0].map, info, bytes))
    });
    let (mut infos, mut tensors) = (Vec::new(), Vec::new());
    for (info, stored) in factors {
        tensors.push(Source::Copied(vec![stored]));
        infos.push(info);
    }
    let first = infos.len();
    infos.extend(groups.iter().map(|group| info(&group.name, group.shape.clone(), GgmlType::F32, 0)));
    let mix = mix.or_else(|| of_file(&groups)).unwrap_or_else(|| Mix::plain(GgmlType::F16).expect("F16 is plain"));
    let mut metadata = Metadata::new();
    set_metadata(&mut metadata, &said, directory, &infos, mix)?;
    let types = mix.types(&metadata, &infos);
    for ((info, group), ggml) in infos[first..].iter_mut().zip(groups).zip(&types[first..]) {
        let ggml = ggml.unwrap_or(GgmlType::F32);
        info.dtype = ggml.dtype();
        let elements = info.shape.elements().and_then(|elements| ggml.bytes_of(elements));
        info.bytes = elements.ok_or_else(|| unsupported(format!("tensor `{}` is too large", info.name)))?;
        tensors.push(source(base, group, ggml)?);
    }
    tokenizer.keys.into_iter().for_each(|(key, value)| metadata.set(&key, value));
    Ok(Made { metadata, infos, tensors, notes })
}

fn info(name: &str, shape: Shape, ggml: GgmlType, bytes: u64) -> TensorInfo {
    TensorInfo { name: name.into(), dtype: ggml.dtype(), shape, offset: 0, bytes }
}

/// The plain type that the matrices of a model have, where that is one of GGUF.
fn of_file(groups: &[Group]) -> Option<Mix> {
    let matrix = groups.iter().filter(|group| group.shape.as_slice().len() > 1);
    let dtype = matrix.flat_map(|group| group.members.values()).map(|stored| stored.info.dtype.clone()).next()?;
    Mix::plain(GgmlType::of(&dtype)?)
}

fn set_metadata(
    metadata: &mut Metadata,
    said: &Hyperparameters,
    directory: &Path,
    infos: &[TensorInfo],
    mix: Mix,
) -> Result<()> {
    metadata.set("general.architecture", said.family.arch.as_str().into());
    said.first.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
    metadata.set("general.type", "model".into());
    general::sampling(directory)?.into_iter().for_each(|(key, value)| metadata.set(&key, value));
    metadata.set("general.name", general::name(&said.config, directory).as_str().into());
    metadata.set("general.size_label", general::size_label(infos).as_str().into());
    said.keys.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
    metadata.set("general.file_type", Value::U32(mix.file_type));
    metadata.set("general.quantization_version", Value::U32(2));
    Ok(())
}

/// The tensors of the file, in the order in which those of the checkpoint complete them.
fn groups(base: &Base, arch: &GgufArch, notes: &mut Vec<String>) -> Result<Vec<Group>> {
    let root = base.checkpoint.root();
    let tied = base.stored_tie.as_ref().map(|tie| tie.head.as_str());
    let bare = !base.names.has("model.embed_tokens.weight") && base.names.has("embed_tokens.weight");
    let mut open: HashMap<String, (usize, Group)> = HashMap::new();
    let (mut others, mut dropped) = (0_usize, Vec::new());
    for (at, stored) in base.checkpoint.all().enumerate() {
        let name = stored.info.name.clone();
        if BUFFERS.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        if OTHER_PARTS.iter().any(|part| name.starts_with(part)) {
            others += 1;
            continue;
        }
        if tied == Some(name.as_str()) || (name == "lm_head.weight" && arch.place("lm_head").is_none()) {
            dropped.push(name);
            continue;
        }
        if let Some((ending, who)) = refused::ends().find(|(end, _)| name.ends_with(end)) {
            let what = format!("is quantised by {who} (`{}{ending}`)", name.strip_suffix(ending).unwrap_or_default());
            return Err(Error::unsupported(root, what).hint("convert the model that it was made from"));
        }
        let text = TEXT_PARTS.iter().find_map(|(part, text)| Some(format!("{text}{}", name.strip_prefix(part)?)));
        let own = text.unwrap_or_else(|| if bare { format!("model.{name}") } else { name.clone() });
        let found =
            split_parameter(&own).and_then(|(module, parameter)| Some((module, parameter, arch.place(module)?)));
        let Some((module, parameter, place)) = found else {
            let what = format!("tensor `{name}` has no place in a GGUF file of architecture {}", arch.name());
            return Err(Error::unsupported(root, what));
        };
        let key = format!("{}{parameter}", place.tensor);
        let (last, group) = open.entry(key.clone()).or_insert_with(|| {
            let added = arch.added(module);
            let group =
                Group { name: key, shape: Shape::default(), members: BTreeMap::new(), rows: place.order, added };
            (at, group)
        });
        *last = at;
        if let Some(other) = group.members.insert(place.expert, stored) {
            let what = format!("tensors `{}` and `{name}` have one place in a GGUF file", other.info.name);
            return Err(Error::unsupported(root, what));
        }
    }
    if others > 0 {
        notes.push(format!(
            "{others} tensors of the parts that see are left out: llama.cpp has those in a file of their own (mmproj)"
        ));
    }
    if !dropped.is_empty() {
        notes.push(format!("`{}` is the embedding, and left out", dropped.join("`, `")));
    }
    let mut groups: Vec<(usize, Group)> = open.into_values().collect();
    groups.sort_by(|(left, one), (right, other)| left.cmp(right).then_with(|| one.name.cmp(&other.name)));
    groups.into_iter().map(|(_, group)| shaped(root, group)).collect()
}

/// A group whose members are of one shape, and none is missing among them.
fn shaped(root: &Path, mut group: Group) -> Result<Group> {
    let first = group.members.values().next().expect("a group begins with a member").info.clone();
    for (at, (expert, stored)) in (0_u64..).zip(&group.members) {
        if expert.is_some_and(|expert| expert != at) {
            let what = format!("`{}` lacks expert {at} (of `{}` and others)", group.name, first.name);
            return Err(Error::unsupported(root, what));
        }
        if stored.info.shape != first.shape {
            let (one, other) = (&first, &stored.info);
            let what = format!(
                "tensors `{}` {} and `{}` {} are experts of one layer",
                one.name, one.shape, other.name, other.shape
            );
            return Err(Error::unsupported(root, what));
        }
    }
    let stacked = group.members.keys().any(Option::is_some);
    let experts = stacked.then_some(group.members.len() as u64);
    group.shape = experts.into_iter().chain(first.shape.as_slice().iter().copied()).collect();
    Ok(group)
}

/// A tensor's sizes as the config has them.
fn expected(name: &str, config: &Map<String, Json>) -> Option<Vec<u64>> {
    let size = |key: &str| config.get(key).and_then(Json::as_u64);
    let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
    let kv = size("num_key_value_heads").unwrap_or(heads);
    let head = size("head_dim").or(hidden.checked_div(heads))?;
    let wide = |heads: u64| heads.checked_mul(head);
    let tensor = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, tensor)| tensor);
    Some(match tensor {
        "token_embd.weight" | "output.weight" => vec![size("vocab_size")?, hidden],
        "output_norm.weight" | "attn_norm.weight" | "ffn_norm.weight" => vec![hidden],
        "attn_q.weight" => vec![wide(heads)?, hidden],
        "attn_k.weight" | "attn_v.weight" => vec![wide(kv)?, hidden],
        "attn_output.weight" => vec![hidden, wide(heads)?],
        "ffn_gate.weight" => vec![size("intermediate_size")?, hidden],
        "ffn_down.weight" => vec![hidden, size("intermediate_size")?],
        _ => return None,
    })
}

/// Checks that all layers are there with the same tensors, and that their sizes are those of the config.
fn complete(base: &Base, arch: &GgufArch, config: &Map<String, Json>, groups: &[Group]) -> Result<()> {
    let root = base.checkpoint.root();
    let has = |name: &str| groups.iter().any(|group| group.name == name);
    let hub_name = |name: &str| {
        let (stem, parameter) = split_parameter(name).unwrap_or((name, ""));
        let module = arch.module(stem, None).or_else(|| arch.module(stem, Some(0)));
        module.map_or_else(|| name.to_owned(), |module| format!("{module}{parameter}"))
    };
    let missing = |name: &str| {
        let what = format!("tensor `{}` is missing (`{name}` of a GGUF file)", hub_name(name));
        Error::unsupported(root, what)
    };
    for name in ["token_embd.weight", "output_norm.weight"] {
        if !has(name) {
            return Err(missing(name));
        }
    }
    if config.get("hidden_size").and_then(Json::as_u64) == Some(0) {
        return Err(Error::malformed(root.join("config.json"), "`hidden_size`", "is 0"));
    }
    let layers = config.get("num_hidden_layers").and_then(Json::as_u64).unwrap_or(0);
    let of_layer = |name: &str| -> Option<(u64, String)> {
        let (number, tensor) = name.strip_prefix("blk.")?.split_once('.')?;
        Some((number.parse().ok()?, tensor.to_owned()))
    };
    let mut tensors: BTreeMap<String, u64> = BTreeMap::new();
    for group in groups {
        let Some((number, tensor)) = of_layer(&group.name) else { continue };
        if number >= layers {
            let what =
                format!("tensor `{}` is of layer {number}, config.json has {layers} layers", hub_name(&group.name));
            return Err(Error::unsupported(root, what));
        }
        *tensors.entry(tensor).or_insert(0) += 1;
    }
    if tensors.is_empty() {
        return Err(missing("blk.0.attn_norm.weight"));
    }
    if let Some((tensor, _)) = tensors.iter().find(|(_, count)| **count != layers) {
        let name = (0..layers).map(|layer| format!("blk.{layer}.{tensor}")).find(|name| !has(name));
        return Err(missing(&name.unwrap_or_default()));
    }
    for group in groups {
        let Some(expected) = expected(&group.name, config).filter(|expected| group.shape.as_slice() != expected) else {
            continue;
        };
        let what = format!("is {}, and must be {} by config.json", group.shape, Shape::from(expected));
        return Err(Error::malformed(root, format!("tensor `{}`", hub_name(&group.name)), what));
    }
    Ok(())
}

/// How a tensor comes into the file.
fn source(base: &Base, group: Group, ggml: GgmlType) -> Result<Source> {
    let same = |stored: &Stored| stored.info.dtype == ggml.dtype();
    if group.rows.is_none() && group.added == 0.0 && group.members.values().all(same) {
        return Ok(Source::Copied(group.members.into_values().collect()));
    }
    let mut parts = Vec::with_capacity(group.members.len());
    for stored in group.members.into_values() {
        let name = &stored.info.name;
        if stored.info.dtype.float().is_none() {
            let what = format!("tensor `{name}` is stored as {}, which cannot be written as {ggml}", stored.info.dtype);
            return Err(Error::unsupported(base.checkpoint.root(), what));
        }
        let shape = stored.info.shape.as_slice();
        let rows = shape.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(0);
        let order = group.rows.map(|rule| order(base, name, rows, rule)).transpose()?;
        // The rows of a bias are its values.
        let cols = if order.is_some() && shape.len() == 1 { Some(1) } else { None };
        parts.push(Part { weight: base.weight(name, cols)?, order: order.map(Arc::new), added: group.added });
    }
    Ok(Source::Packed(Arc::new(Packed::new(group.name, parts, ggml))))
}

fn order(base: &Base, name: &str, rows: usize, rule: RowOrder) -> Result<Vec<usize>> {
    let counts = base.config.as_ref().and_then(HeadCounts::of).unwrap_or(HeadCounts { heads: 0, kv_heads: 0 });
    rule.rows(rows, counts).map_err(|what| Error::malformed(base.checkpoint.root(), format!("tensor `{name}`"), what))
}

/// Whether the model can be written as plain numbers of this type.
pub fn plain(dtype: &Dtype) -> Option<Mix> {
    GgmlType::of(dtype).and_then(Mix::plain)
}
