//! The parameters of a language model by its config alone, where its weights are not at hand.
//!
//! Decoders with grouped attention and a gated MLP (Llama, Mistral, Qwen, Gemma …): with d = `hidden_size`, f = `intermediate_size`, h and k heads of
//! size s, V = `vocab_size`, a layer has d·s·(2h + 2k) + 3·d·f + 2·d, the model L of them, d more and V·d for the embedding, and for the
//! head if it is not tied. Biases and norms of heads are left out: less than a thousandth.

use crate::model::ModelConfig;

/// Model types of that kind.
const DECODERS: [&str; 13] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "smollm3",
    "granite",
    "olmo",
    "olmo2",
    "stablelm",
    "cohere",
    "ministral",
];

/// The number of parameters; `None` for another kind of model.
pub fn parameters(config: &ModelConfig) -> Option<u64> {
    let kind = config.model_type.as_deref()?;
    if !DECODERS.contains(&kind) {
        return None;
    }
    let (width, layers, heads) = (config.hidden?, config.layers?, config.heads?);
    let (inner, vocabulary) = (config.intermediate?, config.vocabulary?);
    let keys = config.kv_heads.unwrap_or(heads);
    let side = config.head_dim.or_else(|| width.checked_div(heads))?;
    let is_tied = config.tied.unwrap_or(kind.starts_with("gemma"));
    let tables = if is_tied { 1 } else { 2 };
    let product = |factors: &[u64]| factors.iter().try_fold(1_u64, |product, factor| product.checked_mul(*factor));
    let attention = product(&[width, side, 2, heads.checked_add(keys)?])?;
    let layer = attention.checked_add(product(&[3, width, inner])?)?.checked_add(product(&[2, width])?)?;
    product(&[layers, layer])?.checked_add(width)?.checked_add(product(&[tables, vocabulary, width])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(config: Value) -> ModelConfig {
        ModelConfig::of(config.as_object().expect("an object").clone())
    }

    #[test]
    fn known_models_have_their_known_sizes() {
        let smollm = json!({"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": true});
        let llama = json!({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": false});
        for (config, size) in [(smollm, 134_515_008), (llama, 8_030_261_248)] {
            assert_eq!(parameters(&of(config)), Some(size));
        }
    }

    #[test]
    fn other_models_and_absurd_numbers_have_none() {
        let huge = u64::MAX;
        let absurd = json!({"model_type": "llama", "hidden_size": huge, "num_hidden_layers": huge, "num_attention_heads": 1,
            "intermediate_size": huge, "vocab_size": huge});
        for config in [json!({"model_type": "bert"}), json!({}), absurd] {
            assert_eq!(parameters(&of(config)), None);
        }
    }
}
