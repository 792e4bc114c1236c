//! mlx-lm: `adapter_config.json` is the trainer's arguments; `lora_a` is `[in, r]`, `lora_b` `[r, out]`, both the other way
//! round than PEFT's, and `scale` multiplies the product as it is. Source: mlx-lm 0.32 `tuner/{lora,dora,utils}.py`.

use std::path::Path;

use serde_json::{Map, Value};

use super::MLX;
use crate::adapters::config::{AdapterConfig, CONFIG_NAME, Scaling};
use crate::adapters::{AlphaFrom, Gathered, gather, has_magnitudes, peft_keys};
use crate::dialects::experts::stacked;
use crate::dialects::opened::{Opened, Source};
use crate::dialects::turn;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::{Key, Role, embeddings, scheme};

/// What merges a stack of experts, which no pair of matrices is.
const FUSE: &str = "`mlx_lm.fuse` merges them into the model";

pub(super) fn open(source: Source<'_>) -> Result<Opened> {
    let Source { root, raw, tensors, .. } = source;
    let path = root.join(CONFIG_NAME);
    let scale = scale(&path, &raw)?;
    let mut config = AdapterConfig::synthetic(&path, "LORA", None);
    config.alpha_from = scale.map(|_| AlphaFrom::File(CONFIG_NAME.to_owned()));
    config.stacks_merged_by = Some(FUSE);
    config.base_model = raw.get("model").and_then(Value::as_str).map(str::to_owned);
    let table = scheme::scheme("mlx").expect("the table is part of the program");
    let mut keyed = Vec::new();
    for stored in tensors.all() {
        match table.parse(&stored.info.name) {
            Some(key) => keyed.push(oriented(key, stored)?),
            None => keyed.push((peft_keys::parse(&stored.info.name), stored)),
        }
    }
    let stacked::Apart { keyed, .. } = stacked::take_apart(keyed)?;
    let modules = gather(keyed.into_iter(), &config, MLX.name, true).map(|gathered| {
        let Gathered { modules, mut scales, .. } = gathered;
        if let Some(scale) = scale {
            scales.values_mut().for_each(|(rank, alpha)| *alpha = scale * *rank as f64);
        }
        config.scaling = Some(Scaling::exact(scales));
        config.dora = has_magnitudes(&modules);
        modules
    });
    config.raw = raw;
    Ok(Opened::new(root, &MLX, config, tensors, modules))
}

/// A tensor in PEFT's orientation, with PEFT's role.
fn oriented(key: Key, stored: Stored) -> Result<(Key, Stored)> {
    let dimensions = stored.info.shape.as_slice().len();
    let embedding = embeddings::is_table(&key.module);
    let role = match key.role {
        Role::Down if embedding => Role::EmbeddingDown,
        Role::Up if embedding => Role::EmbeddingUp,
        role => role,
    };
    // A stack of experts keeps its factors as PEFT keeps those of a layer.
    let turns = dimensions == 2 && matches!(role, Role::Down | Role::Up | Role::EmbeddingDown | Role::EmbeddingUp);
    let stored = if turns { turn::transposed(&stored)? } else { stored };
    Ok((Key { role, ..key }, stored))
}

/// `lora_parameters.scale`; `None` for a full fine-tune.
fn scale(path: &Path, raw: &Map<String, Value>) -> Result<Option<f64>> {
    let parameters = raw.get("lora_parameters").and_then(Value::as_object);
    let full = raw.get("fine_tune_type").and_then(Value::as_str) == Some("full");
    match parameters.and_then(|parameters| parameters.get("scale")).and_then(Value::as_f64) {
        Some(scale) if scale.is_finite() => Ok(Some(scale)),
        Some(scale) => Err(Error::malformed(path, "`lora_parameters.scale`", format!("must be finite, is {scale}"))),
        None if full => Ok(None),
        None => Err(Error::malformed(path, "`lora_parameters.scale`", "is missing, so the scale is unknown")
            .hint("old versions wrote `alpha`; mlx-lm multiplies by `scale`, 20.0 by default")),
    }
}
