//! Linear layers that keep their weight as `[in, out]` (transformers' `Conv1D`).

/// Model types with such layers.
pub const MODELS: [&str; 5] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gpt-sw3"];

/// Last components of the paths of those layers.
const LAYERS: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];

/// Whether the module `path` of a model of one of [`MODELS`] is such a layer.
pub fn is_layer(path: &str) -> bool {
    LAYERS.contains(&path.rsplit('.').next().unwrap_or_default())
}
