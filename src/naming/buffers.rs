//! Tensors that some versions of a library store with a model and others do not: constants that follow from the config.

/// Last components of their names. Sources: checkpoints of older transformers versions (rotary tables, causal masks, ids).
const NAMES: [&str; 6] = ["inv_freq", "masked_bias", "position_ids", "token_type_ids", "cos_cached", "sin_cached"];

/// Modules whose four-dimensional `bias` is a causal mask (GPT-2, GPT-Neo, GPT-NeoX).
const MASKED: [&str; 2] = ["attn", "attention"];

/// Whether the tensor `name` with so many dimensions is such a constant.
pub fn is_buffer(name: &str, dimensions: usize) -> bool {
    let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
    let masked = || MASKED.contains(&module.rsplit('.').next().unwrap_or_default());
    NAMES.contains(&last) || last == "bias" && dimensions == 4 && masked()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_told_from_parameters() {
        for name in NAMES {
            assert!(is_buffer(&format!("model.rotary_emb.{name}"), 1) && is_buffer(name, 1), "{name}");
        }
        for module in MASKED {
            let name = format!("h.0.{module}.bias");
            assert!(is_buffer(&name, 4) && !is_buffer(&name, 1), "{name}");
        }
        assert!(!is_buffer("model.norm.weight", 1));
    }
}
