//! The hyperparameters of a model: keys of a GGUF file ↔ `config.json` of Hugging Face.
//!
//! What belongs together is the table `config.toml`; what has no key of its own stands here: the rotary embedding, sizes that
//! follow from others, and what llama.cpp does whatever a file says (the scale of gemma's attention).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use crate::formats::gguf::{Metadata, Value};

#[derive(Deserialize)]
struct Tables {
    keys: BTreeMap<String, (String, KeyKind)>,
    family: Vec<Family>,
}

/// The type of a number in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyKind {
    U32,
    F32,
}

/// Models that share a `model_type`.
#[derive(Debug, Deserialize)]
pub struct Family {
    /// `model_type` of config.json.
    pub model_type: String,
    /// The class that transformers makes of it.
    pub class: String,
    /// `general.architecture`.
    pub arch: String,
    pub(super) order: Vec<String>,
    #[serde(default)]
    names: BTreeMap<String, String>,
    fixed: Map<String, Json>,
    pub(super) defaults: BTreeMap<String, Json>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    toml::from_str(include_str!("config.toml")).expect("the table is part of the program; a test reads it")
});

impl Family {
    /// All that are known.
    pub fn all() -> &'static [Self] {
        &TABLES.family
    }

    /// The family of a file with this metadata.
    fn of(metadata: &Metadata) -> Option<&'static Self> {
        let arch = metadata.text("general.architecture")?;
        let experts = metadata.number(&format!("{arch}.expert_count")).is_some_and(|count| count > 0);
        let mixed = |family: &Self| family.order.iter().any(|key| key == "expert_count");
        Self::all().iter().find(|family| family.arch == arch && mixed(family) == experts)
    }

    /// The key of config.json and the type of a key of a file.
    pub(super) fn key(&self, key: &str) -> Option<(&str, KeyKind)> {
        let (name, kind) = TABLES.keys.get(key)?;
        Some((self.names.get(key).unwrap_or(name), *kind))
    }
}

/// The `config.json` that a model with this metadata has in Hugging Face's form; `has_output` tells whether it has a head
/// of its own. `None` where the architecture has no table, or its sizes are not said as single numbers.
pub fn hub_config(metadata: &Metadata, has_output: bool) -> Option<Map<String, Json>> {
    let family = Family::of(metadata)?;
    let of_arch = |key: &str| metadata.get(&format!("{}.{key}", family.arch));
    let mut config = Map::new();
    config.insert("architectures".into(), json!([family.class]));
    config.insert("model_type".into(), json!(family.model_type));
    for key in &family.order {
        let Some((name, kind)) = family.key(key) else { continue };
        let value = of_arch(key).and_then(|value| match kind {
            KeyKind::U32 => value.as_u64().map(Json::from),
            KeyKind::F32 => decimal(value),
        });
        if let Some(value) = value {
            config.entry(name).or_insert(value);
        }
    }
    config.extend(family.fixed.clone());
    sizes(&mut config, metadata)?;
    rotary(&mut config, family, metadata);
    attention(&mut config, family, metadata);
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        let id = metadata.number(&format!("tokenizer.ggml.{key}_token_id"));
        config.insert(format!("{name}_token_id"), id.map_or(Json::Null, Json::from));
    }
    config.insert("tie_word_embeddings".into(), json!(!has_output));
    let dtype = match metadata.number("general.file_type") {
        Some(0) => "float32",
        Some(32) => "bfloat16",
        _ => "float16",
    };
    config.insert("torch_dtype".into(), json!(dtype));
    Some(config)
}

/// The number that people wrote: the shortest decimal that is this f32.
fn decimal(value: &Value) -> Option<Json> {
    let Value::F32(number) = value else { return value.as_f64().map(Json::from) };
    number.to_string().parse::<f64>().ok().filter(|number| number.is_finite()).map(Json::from)
}

/// What follows from other sizes. `None` where one is missing that nothing follows from.
fn sizes(config: &mut Map<String, Json>, metadata: &Metadata) -> Option<()> {
    let number = |config: &Map<String, Json>, key: &str| config.get(key).and_then(Json::as_u64);
    let (hidden, heads) = (number(config, "hidden_size")?, number(config, "num_attention_heads")?);
    number(config, "num_hidden_layers")?;
    config.entry("num_key_value_heads").or_insert(json!(heads));
    config.entry("head_dim").or_insert(json!(hidden.checked_div(heads)?));
    if !config.contains_key("vocab_size") {
        let tokens = || Some(metadata.get("tokenizer.ggml.tokens")?.as_array()?.len());
        let said = metadata.number(&format!("{}.vocab_size", metadata.text("general.architecture")?));
        config.insert("vocab_size".into(), json!(said.or_else(tokens)?));
    }
    Some(())
}

/// Base and scaling of the rotary embedding. Factors that are tensors of the file are not known here.
fn rotary(config: &mut Map<String, Json>, family: &Family, metadata: &Metadata) {
    let of_arch = |key: &str| metadata.get(&format!("{}.rope.{key}", family.arch));
    let number = |key: &str| of_arch(key).and_then(decimal);
    config.insert("rope_theta".into(), number("freq_base").unwrap_or(json!(10_000.0)));
    if family.arch == "gemma3" {
        config.insert("rope_local_base_freq".into(), number("freq_base_swa").unwrap_or(json!(10_000.0)));
    }
    // Without a window phi 4 is told from phi 3 by a 0.
    if config.get("sliding_window") == Some(&json!(0)) {
        config.insert("sliding_window".into(), Json::Null);
    }
    let original = of_arch("scaling.original_context_length").and_then(Value::as_u64);
    if let Some(original) = original.filter(|_| family.arch == "phi3") {
        config.insert("original_max_position_embeddings".into(), json!(original));
    }
    let factor = number("scaling.factor");
    let kind = of_arch("scaling.type").and_then(Value::as_text).or(factor.as_ref().map(|_| "linear"));
    let mut scaling = Map::new();
    if let (Some(kind @ ("linear" | "yarn")), Some(factor)) = (kind, factor) {
        scaling.insert("rope_type".into(), json!(kind));
        scaling.insert("factor".into(), factor);
    }
    if kind == Some("yarn") {
        scaling.extend(original.map(|original| ("original_max_position_embeddings".to_owned(), json!(original))));
        for (name, key) in [
            ("extrapolation_factor", "scaling.yarn_ext_factor"),
            ("attention_factor", "scaling.yarn_attn_factor"),
            ("beta_fast", "scaling.yarn_beta_fast"),
            ("beta_slow", "scaling.yarn_beta_slow"),
        ] {
            scaling.extend(number(key).map(|value| (name.to_owned(), value)));
        }
    }
    if !scaling.is_empty() {
        config.insert("rope_scaling".into(), scaling.into());
    }
    let rotated = of_arch("dimension_count").and_then(Value::as_u64);
    let size = config.get("head_dim").and_then(Json::as_u64);
    if let (Some(rotated), Some(size), "phi3") = (rotated, size, family.arch.as_str())
        && rotated != size
    {
        config.insert("partial_rotary_factor".into(), json!(rotated as f64 / size as f64));
    }
}

/// What llama.cpp does in gemma's attention.
fn attention(config: &mut Map<String, Json>, family: &Family, metadata: &Metadata) {
    // Layers of the 27 B models, whose scale follows from the width and not from a head (`src/models/gemma{2,3}.cpp`).
    let large = match family.arch.as_str() {
        "gemma2" => 46,
        "gemma3" => 62,
        _ => return,
    };
    let number = |config: &Map<String, Json>, key: &str| config.get(key).and_then(Json::as_u64);
    let per_head = number(config, "hidden_size").zip(number(config, "num_attention_heads"));
    let scalar = match number(config, "num_hidden_layers") {
        Some(layers) if layers == large => per_head.and_then(|(hidden, heads)| hidden.checked_div(heads)),
        _ => number(config, "head_dim"),
    };
    config.insert("query_pre_attn_scalar".into(), json!(scalar));
    config.entry("final_logit_softcapping").or_insert(if family.arch == "gemma2" { json!(30.0) } else { Json::Null });
    config.entry("attn_logit_softcapping").or_insert(if family.arch == "gemma2" { json!(50.0) } else { Json::Null });
    if family.arch == "gemma3" {
        let windowed = config.contains_key("sliding_window");
        let pattern = metadata.number("gemma3.attention.sliding_window_pattern").unwrap_or(6);
        config.insert("sliding_window_pattern".into(), json!(if windowed { pattern } else { 1 }));
    }
    config.entry("sliding_window").or_insert(json!(4096));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::gguf_arch_of;

    fn metadata(arch: &str, more: &[(&str, Value)]) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", arch.into());
        metadata.set("general.file_type", Value::U32(32));
        let sizes = [
            ("block_count", 2),
            ("context_length", 128),
            ("embedding_length", 64),
            ("feed_forward_length", 96),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("vocab_size", 320),
        ];
        for (key, size) in sizes {
            metadata.set(&format!("{arch}.{key}"), Value::U32(size));
        }
        metadata.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(1e-6));
        metadata.set("tokenizer.ggml.bos_token_id", Value::U32(1));
        for (key, value) in more {
            metadata.set(&format!("{arch}.{key}"), value.clone());
        }
        metadata
    }

    #[test]
    fn every_row_of_the_table_has_its_facts() {
        for family in Family::all() {
            assert_eq!(gguf_arch_of(&family.model_type).map(|arch| arch.name()), Some(family.arch.as_str()));
            for key in &family.order {
                let known = family.key(key).is_some() || key.starts_with("rope") || key == "file_type";
                assert!(known, "{}: {key}", family.model_type);
            }
            let mixed = family.order.iter().any(|key| key == "expert_count");
            let more = if mixed { vec![("expert_count", Value::U32(4))] } else { Vec::new() };
            let config = hub_config(&metadata(&family.arch, &more), true).unwrap();
            // A mistral is a llama in GGUF.
            let expected = if family.model_type == "mistral" { "llama" } else { &family.model_type };
            assert_eq!(config["model_type"], expected);
            assert_eq!((&config["num_key_value_heads"], &config["head_dim"]), (&json!(2), &json!(16)), "{expected}");
        }
    }

    #[test]
    fn a_llama_is_what_its_config_was() {
        let config = hub_config(&metadata("llama", &[("rope.freq_base", Value::F32(5e5))]), false).unwrap();
        let expected = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
            "max_position_embeddings": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 320, "hidden_act": "silu", "head_dim": 16,
            "rope_theta": 500_000.0, "bos_token_id": 1, "eos_token_id": null, "pad_token_id": null,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        });
        assert_eq!(Json::Object(config), expected);
    }

    #[test]
    fn scales_that_llama_cpp_takes_for_granted_are_said() {
        let yarn = [
            ("rope.scaling.type", Value::from("yarn")),
            ("rope.scaling.factor", Value::F32(4.0)),
            ("rope.scaling.original_context_length", Value::U32(32)),
        ];
        let config = hub_config(&metadata("qwen2", &yarn), true).unwrap();
        let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
        assert_eq!(config["rope_scaling"], scaling);
        let config = hub_config(&metadata("gemma2", &[("attention.key_length", Value::U32(32))]), false).unwrap();
        assert_eq!((&config["query_pre_attn_scalar"], &config["sliding_window"]), (&json!(32), &json!(4096)));
        let large = [("attention.key_length", Value::U32(32)), ("block_count", Value::U32(62))];
        let config = hub_config(&metadata("gemma3", &large), false).unwrap();
        assert_eq!((&config["query_pre_attn_scalar"], &config["sliding_window_pattern"]), (&json!(16), &json!(1)));
        let half = hub_config(&metadata("phi3", &[("rope.dimension_count", Value::U32(12))]), true).unwrap();
        assert_eq!(half["partial_rotary_factor"], json!(0.75));
    }

    #[test]
    fn what_has_no_table_has_no_config() {
        assert_eq!(hub_config(&metadata("rwkv7", &[]), true), None);
        assert_eq!(hub_config(&Metadata::new(), true), None);
        assert_eq!(hub_config(&metadata("qwen3", &[("attention.head_count", Value::from("four"))]), true), None);
    }
}
