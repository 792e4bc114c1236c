//! Modules that are tables of rows, one per token or position, and not linear layers: their weight is `[rows, dim]`.

/// Last components of their paths. Sources: `nn.Embedding`s of the model classes in transformers 5 and diffusers.
const NAMES: [&str; 25] = [
    "embed_tokens",
    "embed_tokens_per_layer",
    "embed_positions",
    "embed_in",
    "wte",
    "wpe",
    "tokens_embed",
    "positions_embed",
    "word_embeddings",
    "word_embedding",
    "position_embeddings",
    "position_embedding",
    "token_type_embeddings",
    "token_embedding",
    "token_embeddings",
    "tok_embeddings",
    "relative_attention_bias",
    "embedding",
    "embeddings",
    "emb",
    "embed",
    "embedder",
    "shared",
    "language_embeddings",
    "entity_embeddings",
];

/// Whether the module `path`, whose weight has two dimensions, is a table of rows.
pub fn is_table(path: &str) -> bool {
    NAMES.contains(&path.rsplit('.').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_at_the_end_of_a_path_only() {
        for name in NAMES {
            assert!(is_table(name) && is_table(&format!("model.{name}")), "{name}");
            assert!(!is_table(&format!("{name}.linear")), "{name}");
        }
        assert!(!is_table("lm_head") && !is_table("model.layers.0.self_attn.q_proj"));
    }
}
