//! `config.json` → the hyperparameters of a GGUF file, with the keys, types and order of llama.cpp's converter.

use serde_json::{Map, Value as Json, json};

use super::config::{Family, KeyKind, hub_config};
use super::rotary::{Rotary, number};
use crate::formats::gguf::{Metadata, Value};

/// Keys of config.json that two models may differ in without being computed differently, and those of the rotary embedding,
/// which has several places there.
const NOT_COMPUTED: [&str; 10] = [
    "architectures",
    "model_type",
    "torch_dtype",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "rope_theta",
    "rope_local_base_freq",
    "rope_scaling",
];

/// Tells what most of a file is stored as.
const FILE_TYPE: &str = "general.file_type";

/// What a config says of a model.
#[derive(Debug)]
pub struct Hyperparameters {
    /// The family it is of.
    pub family: &'static Family,
    /// The config, its text part in front, with what it leaves to the defaults of its class.
    pub config: Map<String, Json>,
    /// Keys that stand before all others but the architecture.
    pub first: Vec<(String, Value)>,
    /// Keys in order; `general.file_type` is still 0.
    pub keys: Vec<(String, Value)>,
    /// Factors of the rotary embedding, as the tensors that hold them.
    pub factors: Vec<(&'static str, Vec<f32>)>,
    /// What llama.cpp computes otherwise.
    pub notes: Vec<String>,
}

impl Family {
    /// The family of a config.
    pub fn of_config(config: &Map<String, Json>) -> Option<&'static Self> {
        let kind = config.get("model_type")?.as_str()?;
        let kind = if kind == "gemma3" { "gemma3_text" } else { kind };
        Self::all().iter().find(|family| family.model_type == kind)
    }

    /// The config with the values that its class takes where it is silent.
    fn complete(&self, config: &Map<String, Json>) -> Map<String, Json> {
        let mut whole = config.clone();
        if let Some(Json::Object(text)) = config.get("text_config") {
            whole.extend(text.clone());
        }
        for (key, other) in [("num_experts", "num_local_experts"), ("num_local_experts", "num_experts")] {
            if let (None, Some(count)) = (whole.get(key), whole.get(other).cloned()) {
                whole.insert(key.into(), count);
            }
        }
        let heads = whole.get("num_attention_heads").cloned();
        for (key, value) in &self.defaults {
            let computed = value.is_string();
            let silent = whole.get(key).is_none_or(|said| said.is_null() && computed);
            if silent {
                let value = if computed { per_head(&whole) } else { Some(value.clone()) };
                whole.extend(value.map(|value| (key.clone(), value)));
            }
        }
        if whole.get("num_key_value_heads").is_none_or(Json::is_null) {
            whole.extend(heads.map(|heads| ("num_key_value_heads".to_owned(), heads)));
        }
        whole
    }
}

/// The width of a head where it is the hidden size cut evenly.
fn per_head(config: &Map<String, Json>) -> Option<Json> {
    let of = |key: &str| config.get(key).and_then(Json::as_u64);
    of("hidden_size")?.checked_div(of("num_attention_heads")?).map(Json::from)
}

impl Hyperparameters {
    /// What `config` says.
    ///
    /// # Errors
    /// The problem in words, when the family is not known, or a size is missing or no number.
    pub fn of(config: &Map<String, Json>) -> Result<Self, String> {
        let family = Family::of_config(config).ok_or_else(|| {
            let known: Vec<&str> = Family::all().iter().map(|family| family.model_type.as_str()).collect();
            let kind = config.get("model_type").and_then(Json::as_str);
            let what = kind.map_or("has no `model_type`".into(), |kind| format!("is of type `{kind}`"));
            format!("{what}; models of these types can be written as GGUF: {}", known.join(", "))
        })?;
        let config = family.complete(config);
        let rotary = Rotary::of(&config)?;
        let mut all = Self {
            family,
            config,
            first: Vec::new(),
            keys: Vec::new(),
            factors: Vec::new(),
            notes: rotary.notes.clone(),
        };
        for key in &family.order {
            all.push(key, &rotary)?;
        }
        let (first, factors) = rotary.factors(family, &all.config)?;
        all.first = first.into_iter().map(|(key, value)| (all.key(key), value)).collect();
        all.factors = factors;
        all.compare();
        Ok(all)
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family.arch)
    }

    fn push(&mut self, key: &str, rotary: &Rotary) -> Result<(), String> {
        match key {
            "file_type" => self.keys.push((FILE_TYPE.into(), Value::U32(0))),
            "rope" => {
                let keys = rotary.keys(&self.config)?;
                self.keys.extend(keys.into_iter().map(|(key, value)| (format!("{}.{key}", self.family.arch), value)));
            }
            "rope.freq_base" => {
                let base = rotary.base.ok_or("`rope_theta` is missing")?;
                self.keys.push((self.key(key), Value::F32(base as f32)));
            }
            "rope.scaling.original_context_length" => {
                let original = rotary.original(&self.config).ok_or("`original_max_position_embeddings` is missing")?;
                self.keys.push((self.key(key), Value::U32(original)));
            }
            "rope_dimensions" => {
                let rotated = rotary.dimensions(self.family, &self.config)?;
                self.keys.push((self.key("rope.dimension_count"), Value::U32(rotated)));
            }
            known => self.push_known(known)?,
        }
        Ok(())
    }

    fn push_known(&mut self, key: &str) -> Result<(), String> {
        let Some((name, kind)) = self.family.key(key) else { return Ok(()) };
        let window = name == "sliding_window" && self.family.arch == "phi3";
        let value = match self.config.get(name).filter(|value| !value.is_null()) {
            Some(value) => value.clone(),
            // Without a window phi 4 is told from phi 3 by a 0.
            None if window => json!(0),
            None if OPTIONAL.contains(&name) => return Ok(()),
            None => return Err(format!("`{name}` is missing")),
        };
        let wrong = || format!("`{name}` is {value}, not a number that a GGUF file can hold");
        let value = match kind {
            KeyKind::U32 => Value::U32(value.as_u64().and_then(|number| number.try_into().ok()).ok_or_else(wrong)?),
            KeyKind::F32 => Value::F32(number(&value).ok_or_else(wrong)? as f32),
        };
        self.keys.push((self.key(key), value));
        Ok(())
    }

    /// Notes where llama.cpp takes something for granted that the config says otherwise.
    fn compare(&mut self) {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", self.family.arch.as_str().into());
        for (key, value) in &self.keys {
            metadata.set(key, value.clone());
        }
        metadata.set(&self.key("vocab_size"), Value::U32(1));
        let said = |key: &str| self.config.get(key).and_then(Json::as_u64);
        let windowed = self.config.get("use_sliding_window").and_then(Json::as_bool);
        let windowed = windowed.unwrap_or(["mistral", "mixtral"].contains(&self.family.model_type.as_str()));
        let known = self.family.order.iter().any(|key| key == "attention.sliding_window");
        if let Some(window) = said("sliding_window").filter(|window| {
            windowed && !known && said("max_position_embeddings").is_none_or(|longest| *window < longest)
        }) {
            self.notes.push(format!(
                "llama.cpp has no window of attention in models of type {}: `sliding_window` {window} is left out",
                self.family.model_type
            ));
        }
        let Some(taken) = hub_config(&metadata, true) else { return };
        for (key, taken) in taken.iter().filter(|(key, _)| !NOT_COMPUTED.contains(&key.as_str())) {
            let Some(said) = self.config.get(key).filter(|said| !said.is_null() && key.as_str() != "vocab_size") else {
                continue;
            };
            let same = match (number(said), number(taken)) {
                (Some(said), Some(taken)) => (said - taken).abs() <= said.abs() * 1e-6,
                _ => said == taken,
            };
            if !same {
                self.notes.push(format!("config.json says `{key}` is {said}, llama.cpp takes {taken}"));
            }
        }
    }
}

/// Sizes that a config may leave away.
const OPTIONAL: [&str; 5] = [
    "head_dim",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "sliding_window",
    "shared_expert_intermediate_size",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Json) -> Map<String, Json> {
        let Json::Object(mut config) = value else { panic!("an object") };
        for (key, size) in [
            ("hidden_size", 64),
            ("intermediate_size", 96),
            ("num_hidden_layers", 2),
            ("num_attention_heads", 4),
            ("max_position_embeddings", 128),
            ("vocab_size", 320),
        ] {
            config.entry(key).or_insert(json!(size));
        }
        config
    }

    fn keys(found: &Hyperparameters) -> Vec<&str> {
        found.keys.iter().map(|(key, _)| key.as_str()).collect()
    }

    #[test]
    fn a_llama_has_the_keys_of_the_converter_in_its_order() {
        let found = Hyperparameters::of(&config(json!({"model_type": "llama", "rope_theta": 5e5}))).unwrap();
        assert_eq!(
            keys(&found),
            [
                "llama.block_count",
                "llama.context_length",
                "llama.embedding_length",
                "llama.feed_forward_length",
                "llama.attention.head_count",
                "llama.attention.head_count_kv",
                "llama.rope.freq_base",
                "llama.attention.layer_norm_rms_epsilon",
                "llama.attention.key_length",
                "llama.attention.value_length",
                "general.file_type",
                "llama.vocab_size",
                "llama.rope.dimension_count",
            ]
        );
        assert_eq!(found.keys[5].1, Value::U32(4), "as many as heads");
        assert_eq!(found.keys[6].1, Value::F32(5e5));
        assert!(found.notes.is_empty(), "{:?}", found.notes);
    }

    #[test]
    fn what_goes_there_comes_back() {
        for family in Family::all() {
            let mut said = config(json!({"model_type": family.model_type, "num_key_value_heads": 2, "head_dim": 16}));
            for key in ["num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"] {
                if family.defaults.contains_key(key) {
                    said.insert(key.into(), json!(2));
                }
            }
            let found = Hyperparameters::of(&said).unwrap();
            let mut metadata = Metadata::new();
            metadata.set("general.architecture", family.arch.as_str().into());
            metadata.set(&format!("{}.vocab_size", family.arch), Value::U32(320));
            found.keys.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
            let back = hub_config(&metadata, true).unwrap();
            for key in said.keys().filter(|key| *key != "model_type") {
                assert_eq!(back.get(key), said.get(key), "{}: {key}", family.model_type);
            }
            assert!(found.notes.is_empty(), "{}: {:?}", family.model_type, found.notes);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let of = |value: Json| Hyperparameters::of(&config(value)).unwrap_err();
        assert!(
            of(json!({"model_type": "mamba"})).starts_with("is of type `mamba`; models of these types can be written")
        );
        assert!(of(json!({})).starts_with("has no `model_type`"));
        assert_eq!(
            of(json!({"model_type": "llama", "hidden_size": -1})),
            "`hidden_size` is -1, not a number that a GGUF file can hold"
        );
        let kind = json!({"model_type": "llama", "rope_scaling": {"rope_type": "spiral"}});
        assert_eq!(of(kind), "`rope_type` is `spiral`, which llama.cpp does not have");
    }

    #[test]
    fn what_llama_cpp_takes_for_granted_is_noted() {
        let gelu = json!({"model_type": "qwen2", "hidden_act": "gelu"});
        let found = Hyperparameters::of(&config(gelu)).unwrap();
        assert_eq!(found.notes, ["config.json says `hidden_act` is \"gelu\", llama.cpp takes \"silu\""]);
        let window = json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 32});
        let found = Hyperparameters::of(&config(window)).unwrap();
        assert!(found.notes[0].ends_with("`sliding_window` 32 is left out"), "{:?}", found.notes);
    }
}
