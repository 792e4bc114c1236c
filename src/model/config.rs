//! What the config of a model says (`config.json`, or the metadata of a GGUF file in its terms), read once.
//!
//! Sizes are those of the language model: of a model with several parts, what its `text_config` says.

use serde_json::{Map, Value};

use crate::naming::head::{Heads, is_known};

/// Endings of architecture names whose models have an output head over the vocabulary.
const WITH_HEAD: [&str; 6] =
    ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining", "WithLMHead"];

/// Classes that end like those and have none: Electra's discriminator.
const WITHOUT_HEAD: [&str; 1] = ["ElectraForPreTraining"];

/// The flag of the tie.
const TIED: &str = "tie_word_embeddings";

/// The part with the config of the language model.
const TEXT: &str = "text_config";

/// Parts of a config in which the flag of the tie is looked for.
const TEXT_PARTS: [&str; 5] = [TEXT, "thinker_config", "llm_config", "language_config", "lm_config"];

/// Names of the number of experts.
const EXPERTS: [&str; 4] = ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];

/// The config of a model.
#[derive(Debug, Clone, Default)]
pub struct ModelConfig {
    /// All of it, in its order.
    pub raw: Map<String, Value>,
    /// `model_type`.
    pub model_type: Option<String>,
    /// `model_type` of its text part.
    pub text_type: Option<String>,
    /// `architectures`: the classes of the model.
    pub architectures: Vec<String>,
    /// Width of the model.
    pub hidden: Option<u64>,
    /// Width inside a gated MLP.
    pub intermediate: Option<u64>,
    /// Layers.
    pub layers: Option<u64>,
    /// Attention heads.
    pub heads: Option<u64>,
    /// Heads of keys and values.
    pub kv_heads: Option<u64>,
    /// Size of a head.
    pub head_dim: Option<u64>,
    /// Experts of a layer.
    pub experts: Option<u64>,
    /// Tokens.
    pub vocabulary: Option<u64>,
    /// What it, or one of its parts, says of a head that is the embedding.
    pub tied: Option<bool>,
}

impl ModelConfig {
    /// Reads it.
    pub fn of(raw: Map<String, Value>) -> Self {
        let text = |config: &Map<String, Value>, key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
        let part = raw.get(TEXT).and_then(Value::as_object);
        let language = part.unwrap_or(&raw);
        // A part may say some sizes and leave the others to the whole.
        let of = |name: &str| language.get(name).or_else(|| raw.get(name));
        let size = |names: &[&str]| names.iter().find_map(|name| of(name)?.as_u64());
        let classes = raw.get("architectures").and_then(Value::as_array).into_iter().flatten();
        Self {
            model_type: text(&raw, "model_type"),
            text_type: part.and_then(|part| text(part, "model_type")),
            architectures: classes.filter_map(Value::as_str).map(str::to_owned).collect(),
            hidden: size(&["hidden_size"]),
            intermediate: size(&["intermediate_size"]),
            layers: size(&["num_hidden_layers"]),
            heads: size(&["num_attention_heads", "n_head"]),
            kv_heads: kv_heads(of),
            head_dim: size(&["head_dim"]),
            experts: size(&EXPERTS),
            vocabulary: size(&["vocab_size"]),
            tied: declared_tie(&raw),
            raw,
        }
    }

    /// A text at the top of the config.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.raw.get(key).and_then(Value::as_str)
    }

    /// The types of the model and of its text part.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.model_type.iter().chain(&self.text_type).map(String::as_str)
    }

    /// The class of the model, where it says one.
    pub fn class(&self) -> Option<&str> {
        self.architectures.first().map(String::as_str)
    }

    /// What the model is called in messages.
    pub fn shown(&self) -> &str {
        self.class().or(self.model_type.as_deref()).unwrap_or("?")
    }

    /// What is known of its head.
    pub fn head(&self) -> Heads {
        let known = self.architectures.iter().map(String::as_str).find(|class| is_known(class));
        Heads::of(known.or(self.class()), self.model_type.as_deref())
    }

    /// Whether its head, where it is not stored, is its embedding.
    pub fn is_tied(&self) -> bool {
        // A head that is neither stored nor declared tied is tied by the default of its class; a class without a head is not.
        self.tied.unwrap_or(true) && self.has_head()
    }

    fn has_head(&self) -> bool {
        let ends =
            |class: &str| WITH_HEAD.iter().any(|ending| class.ends_with(ending)) && !WITHOUT_HEAD.contains(&class);
        let has = |class: &String| is_known(class) || ends(class);
        !self.raw.contains_key("architectures") || self.architectures.iter().any(has)
    }
}

/// Falcon has one head of keys, unless it is of the later kind.
fn kv_heads<'a>(of: impl Fn(&str) -> Option<&'a Value>) -> Option<u64> {
    let flag = |key: &str| of(key).and_then(Value::as_bool);
    let number = |key: &str| of(key).and_then(Value::as_u64);
    match (flag("multi_query"), flag("new_decoder_architecture")) {
        (Some(true), Some(false) | None) => Some(1),
        (_, Some(true)) => number("num_kv_heads"),
        _ => number("num_key_value_heads"),
    }
}

/// What the config, or that of its text part, says of the tie.
fn declared_tie(config: &Map<String, Value>) -> Option<bool> {
    let parts = || TEXT_PARTS.iter().filter_map(|part| config.get(*part).and_then(Value::as_object));
    config.get(TIED).and_then(Value::as_bool).or_else(|| parts().find_map(declared_tie))
}

/// Says that head and embedding are two, at the top and in every part that is the language model's: transformers reads the
/// flag there, and takes it for set where it is missing.
pub fn untie(config: &mut Map<String, Value>) {
    config.insert(TIED.into(), false.into());
    for part in TEXT_PARTS {
        if let Some(part) = config.get_mut(part).and_then(Value::as_object_mut) {
            untie(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn the_flag_goes_off_wherever_transformers_reads_it() {
        let mut nested = config(json!({"thinker_config": {"text_config": {"hidden_size": 4}}, "talker_config": {}}));
        untie(&mut nested);
        assert_eq!(
            Value::from(nested),
            json!({
                "thinker_config": {"text_config": {"hidden_size": 4, TIED: false}, TIED: false},
                "talker_config": {},
                TIED: false
            })
        );
    }

    #[test]
    fn sizes_that_the_text_part_leaves_open_are_those_of_the_whole() {
        let both = json!({
            "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64,
            "text_config": {"hidden_size": 32, "model_type": "llama"},
        });
        let both = ModelConfig::of(config(both));
        assert_eq!((both.hidden, both.heads, both.kv_heads), (Some(32), Some(8), Some(2)));
        let one = ModelConfig::of(config(json!({"text_config": {"n_head": 4, "multi_query": true}})));
        assert_eq!((one.heads, one.kv_heads, one.layers), (Some(4), Some(1), None));
    }

    #[test]
    fn a_class_without_a_head_is_not_tied() {
        for (class, tied) in [
            ("BertModel", false),
            ("ElectraForPreTraining", false),
            ("LlamaForSequenceClassification", false),
            ("Qwen2_5OmniModel", true),
            ("FooForCausalLM", true),
        ] {
            assert_eq!(ModelConfig::of(config(json!({"architectures": [class]}))).is_tied(), tied, "{class}");
        }
        assert!(!ModelConfig::of(config(json!({"thinker_config": {"text_config": {TIED: false}}}))).is_tied());
    }
}
