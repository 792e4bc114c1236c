//! mlx-lm: factors the other way round, and a scale that multiplies them as it is.

mod read;
mod stacks;
mod vlm;
mod write;

use super::dialect::Dialect;
use crate::adapters::config::CONFIG_NAME;

/// mlx-lm, and models in its names.
pub const MLX: Dialect = Dialect {
    name: "mlx",
    title: "MLX",
    files: &["adapters.safetensors", CONFIG_NAME],
    task: Some("CAUSAL_LM"),
    takes_experts: true,
    lacks: Some("`scale`"),
    has_config: |raw| ["fine_tune_type", "lora_parameters", "lora_layers"].iter().any(|key| raw.contains_key(*key)),
    read: Some(read::open),
    write: Some(write::write),
    ..Dialect::PLAIN
};

/// mlx-vlm, which is read only.
pub const MLX_VLM: Dialect = Dialect {
    name: "mlx-vlm",
    title: "mlx-vlm",
    files: &["adapters.safetensors", CONFIG_NAME],
    has_config: vlm::is_config,
    read: Some(vlm::open),
    ..Dialect::PLAIN
};
