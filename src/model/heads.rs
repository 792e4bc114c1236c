//! What a model's config says of its output head: what class it is, whether the head is the embedding, and where else the
//! flag stands.

use serde_json::{Map, Value};

use crate::naming::head::{Heads, is_known};

/// Endings of architecture names whose models have an output head over the vocabulary.
const WITH_HEAD: [&str; 6] =
    ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining", "WithLMHead"];

/// Classes that end like those and have none: Electra's discriminator.
const WITHOUT_HEAD: [&str; 1] = ["ElectraForPreTraining"];

/// The flag of the tie.
pub const TIED: &str = "tie_word_embeddings";

/// Parts of a config that hold that of the language model.
const TEXT_PARTS: [&str; 5] = ["text_config", "thinker_config", "llm_config", "language_config", "lm_config"];

/// What is known of the head of a model with this config.
pub fn of(config: &Map<String, Value>) -> Heads {
    let class = architectures(config).find(|class| is_known(class)).or_else(|| architectures(config).next());
    Heads::of(class, config.get("model_type").and_then(Value::as_str))
}

/// The class of the model, for messages.
pub fn class_of(config: &Map<String, Value>) -> &str {
    let named = architectures(config).next().or_else(|| config.get("model_type").and_then(Value::as_str));
    named.unwrap_or("?")
}

/// What the config, or that of its text part, says of the tie.
pub fn declared_tie(config: &Map<String, Value>) -> Option<bool> {
    let parts = || TEXT_PARTS.iter().filter_map(|part| config.get(*part).and_then(Value::as_object));
    config.get(TIED).and_then(Value::as_bool).or_else(|| parts().find_map(declared_tie))
}

/// Whether the head of a model with this config, where it is not stored, is its embedding.
pub fn is_tied(config: &Map<String, Value>) -> bool {
    // A head that is neither stored nor declared tied is tied by the default of its class; a class without a head is not.
    declared_tie(config).unwrap_or(true) && has_head(config)
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

fn architectures(config: &Map<String, Value>) -> impl Iterator<Item = &str> {
    config.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn has_head(config: &Map<String, Value>) -> bool {
    let ends = |class: &str| WITH_HEAD.iter().any(|ending| class.ends_with(ending)) && !WITHOUT_HEAD.contains(&class);
    !config.contains_key("architectures") || architectures(config).any(|class| is_known(class) || ends(class))
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
    fn a_class_without_a_head_is_not_tied() {
        for (class, tied) in [
            ("BertModel", false),
            ("ElectraForPreTraining", false),
            ("LlamaForSequenceClassification", false),
            ("Qwen2_5OmniModel", true),
            ("FooForCausalLM", true),
        ] {
            assert_eq!(is_tied(&config(json!({"architectures": [class]}))), tied, "{class}");
        }
        assert!(!is_tied(&config(json!({"thinker_config": {"text_config": {TIED: false}}}))));
    }
}
