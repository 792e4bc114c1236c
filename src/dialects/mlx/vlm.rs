//! mlx-vlm: `adapter_config.json` is `{rank, alpha, dropout}`; `A` is `[in, r]`, `B` `[r, out]`, and α multiplies the product as it is.
//! Newer files write `lora_A.NAME.weight` the same way round. Source: mlx-vlm `trainer/{lora,utils}.py`.

use serde_json::{Map, Value};

use super::MLX_VLM;
use crate::adapters::config::{AdapterConfig, CONFIG_NAME, Scaling};
use crate::adapters::{AlphaFrom, Gathered, gather, peft_keys};
use crate::dialects::opened::{Opened, Source};
use crate::dialects::turn;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::{Key, Role};

/// What such a config says of the rank.
const RANK: &str = "rank";

/// How the factors of mlx-lm are named.
const OF_MLX_LM: [&str; 2] = [".lora_a", ".lora_b"];

/// Whether a config is one of mlx-vlm.
pub(super) fn is_config(raw: &Map<String, Value>) -> bool {
    !raw.contains_key("peft_type") && raw.get(RANK).is_some_and(Value::is_number) && raw.contains_key("alpha")
}

pub(super) fn open(source: Source<'_>) -> Result<Opened> {
    let Source { root, raw, tensors, chosen, .. } = source;
    let path = root.join(CONFIG_NAME);
    let alpha = raw.get("alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
    let scale = alpha.ok_or_else(|| Error::malformed(&path, "`alpha`", "must be a finite number"))?;
    let rank = raw.get(RANK).and_then(Value::as_u64);
    if let Some(tensor) = tensors.tensors().find(|info| OF_MLX_LM.iter().any(|ending| info.name.ends_with(ending))) {
        let what = format!(
            "is a config of mlx-vlm, and `{}` has a name of mlx-lm: whether `alpha` is what multiplies it is unknown",
            tensor.name
        );
        return Err(Error::unsupported(&path, what).hint(
            "if mlx-lm wrote the weights, its own `adapter_config.json` belongs beside them: `lora_parameters` with `scale`",
        ));
    }
    let mut config = AdapterConfig::synthetic(&path, "LORA", None);
    config.alpha_from = Some(AlphaFrom::File(CONFIG_NAME.to_owned()));
    let mut keyed = Vec::new();
    for stored in tensors.all() {
        let Some(key) = chosen.key(&stored.info.name) else { continue };
        keyed.push(oriented(parse(&key), stored, rank)?);
    }
    let modules = gather(keyed.into_iter(), &config, MLX_VLM.name, true).map(|gathered| {
        let Gathered { modules, mut scales, .. } = gathered;
        scales.values_mut().for_each(|(rank, alpha)| *alpha = scale * *rank as f64);
        config.scaling = Some(Scaling::exact(scales));
        modules
    });
    config.raw = raw;
    Ok(Opened::new(root, &MLX_VLM, config, tensors, modules))
}

fn parse(key: &str) -> Key {
    let role = |ending: &str, role: Role| {
        key.strip_suffix(ending).map(|module| Key { module: module.to_owned(), nesting: 0, role })
    };
    role(".A", Role::Down).or_else(|| role(".B", Role::Up)).unwrap_or_else(|| peft_keys::parse(key))
}

/// A factor in PEFT's orientation.
fn oriented(key: Key, stored: Stored, rank: Option<u64>) -> Result<(Key, Stored)> {
    let shape = stored.info.shape.as_slice();
    let (at, named) = match key.role {
        Role::Down => (1, "A"),
        Role::Up => (0, "B"),
        _ => return Ok((key, stored)),
    };
    if shape.len() != 2 || rank.is_some_and(|rank| shape[at] != rank) {
        let rank = rank.map_or("the rank".into(), |rank| format!("rank {rank}"));
        let problem = format!("has shape {}, and {named} of mlx-vlm has {rank} in dimension {at}", stored.info.shape);
        return Err(Error::malformed(stored.path(), format!("tensor `{}`", stored.info.name), problem));
    }
    Ok((key, turn::transposed(&stored)?))
}
