//! GGUF → Hugging Face: what stands beside the weights, and which plain numbers they become.
//!
//! Names, order of rows and experts are those of the view that [`Base`] has of such a file. `config.json` is made of the
//! metadata and of what the tensors show: biases, factors of the rotary embedding.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::{Stored, json as files};
use crate::llama::RowLayout;
use crate::llama::{Family, RotaryFactors, View, hub_tokenizer};
use crate::model::base::Base;
use crate::tensor::{Dtype, Float, Packing};

/// Tensors that are said in the config.
const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Most bytes of factors: four for each pair of values of a head.
const MAX_FACTORS: usize = 1 << 18;

/// Models whose heads share the hidden size evenly, unless their config says otherwise.
const EVEN_HEADS: [&str; 6] = ["llama", "mixtral", "smollm3", "qwen2", "qwen2_moe", "phi3"];

/// What a GGUF file becomes beside its tensors.
#[derive(Debug, Default)]
pub struct Beside {
    /// Files: path below the output, contents.
    pub written: Vec<(PathBuf, Vec<u8>)>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// The plain numbers that a tensor becomes if nothing is asked for: its own, or F16 for blocks. `None` where its bytes are
/// those of the output.
///
/// # Errors
/// When its type is not known.
pub fn plain(base: &Base, stored: &Stored) -> Result<Option<Float>> {
    let Some(view) = &base.view else { return Ok(None) };
    let info = &stored.info;
    match (Packing::of(&info.dtype), &info.dtype) {
        (Some(Packing::Blocks(_)), _) => Ok(Some(Float::F16)),
        (Some(Packing::Float(float)), _) => Ok((view.row_layout(&info.name) != RowLayout::default()).then_some(float)),
        (None, Dtype::Other(_)) => {
            let what = format!("tensor `{}` is of {}, which cannot be unpacked", info.name, info.dtype);
            Err(Error::unsupported(stored.path(), what))
        }
        (None, _) => Ok(None),
    }
}

/// Whether a tensor is said in the config instead.
pub fn is_said(base: &Base, name: &str) -> bool {
    is_known(base) && FACTORS.contains(&name)
}

/// Whether the input is GGUF of an architecture whose names and config are known.
fn is_known(base: &Base) -> bool {
    let arch = base.checkpoint.gguf().and_then(|metadata| metadata.text("general.architecture"));
    base.view.is_some()
        && base.config.is_some()
        && Family::all().iter().any(|family| Some(family.arch.as_str()) == arch)
}

/// The files beside the weights, which are of type `float`.
///
/// # Errors
/// When factors cannot be read.
pub fn beside(base: &Base, float: Option<Float>) -> Result<Beside> {
    let (Some(_), Some(metadata)) = (&base.view, base.checkpoint.gguf()) else { return Ok(Beside::default()) };
    let mut found = Beside::default();
    let Some(config) = base.config.as_ref().filter(|_| is_known(base)) else {
        let arch = metadata.text("general.architecture").unwrap_or_default();
        let named = base.view.as_ref().is_some_and(View::is_named);
        found.notes.push(if named {
            format!("the settings of architecture `{arch}` are not known: there is no config.json")
        } else {
            format!(
                "the names of architecture `{arch}` are not known: tensors keep those of the file, and there is no config.json"
            )
        });
        return Ok(found);
    };
    let mut config = config.raw.clone();
    let said = format!("{}.attention.key_length", metadata.text("general.architecture").unwrap_or_default());
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if metadata.get(&said).is_none() && EVEN_HEADS.contains(&kind) {
        config.shift_remove("head_dim");
    }
    biases(base, &mut config, &mut found.notes);
    rotary(base, &mut config, &mut found.notes)?;
    if let Some(float) = float.or_else(|| most(base)) {
        config.insert("torch_dtype".into(), json!(float.torch_name()));
    }
    let mut generation = Map::new();
    generation.insert("_from_model_config".into(), json!(true));
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        generation.extend(config.get(key).filter(|id| !id.is_null()).map(|id| (key.to_owned(), id.clone())));
    }
    found.written.push(("config.json".into(), files::render(&config)));
    found.written.push(("generation_config.json".into(), files::render(&generation)));
    match hub_tokenizer(metadata) {
        Ok(tokenizer) => {
            let rendered = tokenizer.into_iter().map(|(name, value)| (PathBuf::from(name), files::render(&value)));
            found.written.extend(rendered);
        }
        Err(note) => found.notes.push(note),
    }
    Ok(found)
}

/// The numbers that matrices become.
fn most(base: &Base) -> Option<Float> {
    let matrix = base.checkpoint.tensors().find(|tensor| tensor.shape.as_slice().len() > 1)?;
    Some(Packing::of(&matrix.dtype)?.float().unwrap_or(Float::F16))
}

/// Layers with biases, which some families have and others may have.
fn biases(base: &Base, config: &mut Map<String, Value>, notes: &mut Vec<String>) {
    let has = |module: &str| base.names.has(&format!("model.layers.0.{module}.bias"));
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = kind.as_str();
    if ["llama", "smollm3", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"].contains(&kind) {
        let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|module| has(&format!("self_attn.{module}")));
        config.insert("attention_bias".into(), json!(attention.contains(&true)));
        if attention.contains(&true) && attention.contains(&false) {
            notes.push("some layers of the attention have a bias and others have none, which transformers does not know of this model".into());
        }
    }
    if ["llama", "smollm3"].contains(&kind) {
        config.insert("mlp_bias".into(), json!(has("mlp.gate_proj")));
    }
}

/// Factors of the rotary embedding.
fn rotary(base: &Base, config: &mut Map<String, Value>, notes: &mut Vec<String>) -> Result<()> {
    let values = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(stored) = base.checkpoint.find(name) else { return Ok(None) };
        let view = stored.view()?;
        let Some(packing) = Packing::of(view.dtype) else { return Ok(None) };
        if view.data.len() > MAX_FACTORS {
            let what = format!("has {} bytes of factors, more than {MAX_FACTORS}", view.data.len());
            return Err(Error::malformed(stored.path(), format!("tensor `{name}`"), what));
        }
        let mut values = vec![0.0; packing.values_in(view.data.len())];
        packing.decode(view.data, &mut values);
        Ok(Some(values))
    };
    let [all, long, short] = FACTORS.map(values);
    let attention = base.checkpoint.gguf().and_then(|metadata| metadata.get("phi3.rope.scaling.attn_factor")?.as_f64());
    let factors = RotaryFactors { all: all?, long: long?, short: short?, attention };
    notes.extend(factors.put_into(config));
    Ok(())
}
