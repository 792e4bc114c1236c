//! ΔW of an adapter by the definition, in f64, from its files alone: what stacked and cut adapters are held against.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use crate::support::{Tensor, read, read_json};

/// ΔW of one key, expert after expert, each `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    pub experts: usize,
    pub values: Vec<f64>,
}

pub type Deltas = BTreeMap<String, Delta>;

/// Everything an adapter says.
pub struct Content {
    /// By key without its ending.
    pub deltas: Deltas,
    /// scale · lora_B.bias.
    pub biases: BTreeMap<String, Vec<f64>>,
    /// What is neither factor nor bias of a factor.
    pub whole: BTreeMap<String, Tensor>,
}

fn setting<T>(config: &Value, patterns: &str, default: &str, path: &str, as_number: impl Fn(&Value) -> Option<T>) -> T {
    let matches = |key: &String| Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).unwrap().is_match(path);
    let own = config[patterns].as_object().and_then(|map| map.iter().find(|(key, _)| matches(key)));
    own.and_then(|(_, value)| as_number(value)).or_else(|| as_number(&config[default])).unwrap()
}

/// Reads the adapter in `directory`.
pub fn content(directory: &Path) -> Content {
    let config = read_json(&directory.join("adapter_config.json"));
    let tensors = read(&directory.join("adapter_model.safetensors"));
    let mut found = Content { deltas: Deltas::new(), biases: BTreeMap::new(), whole: BTreeMap::new() };
    for (key, tensor) in &tensors {
        let key = key.strip_prefix("base_model.model.").unwrap_or(key);
        if let Some(stem) = key.strip_suffix(".lora_A.weight").or(key.strip_suffix(".lora_embedding_A")) {
            let up = if key.ends_with("A.weight") { "lora_B.weight" } else { "lora_embedding_B" };
            let up = &tensors[&format!("base_model.model.{stem}.{up}")];
            found.deltas.insert(stem.into(), delta(&config, stem, tensor, up));
        } else if let Some(stem) = key.strip_suffix(".lora_B.bias") {
            let (_, scale) = scale(&config, stem);
            found.biases.insert(stem.into(), tensor.values().iter().map(|value| scale * value).collect());
        } else if !key.contains("lora_") {
            found.whole.insert(key.into(), tensor.clone());
        }
    }
    found
}

fn scale(config: &Value, stem: &str) -> (usize, f64) {
    let module = stem.replace(".base_layer", "");
    // Parameters are named in patterns; both of a module have one rank in all files here, or a pattern of their own.
    let parameters = config["target_parameters"].as_array().cloned().unwrap_or_default();
    let mut owned: Vec<String> = parameters
        .iter()
        .filter_map(|name| name.as_str()?.rsplit_once('.'))
        .filter(|(owner, _)| module.ends_with(owner))
        .map(|(_, name)| name.to_owned())
        .collect();
    owned.sort_by_key(|name| name.starts_with("down"));
    let nesting = stem.matches(".base_layer").count();
    let path = match owned.len() {
        0 => module,
        count => format!("{module}.{}", owned[count - 1 - nesting]),
    };
    let rank = setting(config, "rank_pattern", "r", &path, Value::as_u64);
    let alpha = setting(config, "alpha_pattern", "lora_alpha", &path, Value::as_f64);
    let divisor = if config["use_rslora"] == true { (rank as f64).sqrt() } else { rank as f64 };
    (usize::try_from(rank).unwrap(), alpha / divisor)
}

fn delta(config: &Value, stem: &str, down: &Tensor, up: &Tensor) -> Delta {
    let (rank, scale) = scale(config, stem);
    let rows = down.shape[0];
    assert_eq!(rows % rank, 0, "{stem}: {rows} rows of rank {rank}");
    let experts = rows / rank;
    let (a, b) = (down.values(), up.values());
    let (cols, outs) = (a.len() / rows, up.shape[0]);
    let mut values = vec![0.0; experts * outs * cols];
    for expert in 0..experts {
        for out in 0..outs {
            let line = &mut values[(expert * outs + out) * cols..][..cols];
            for k in 0..rank {
                let weight = scale * b[out * rows + k * experts + expert];
                let row = &a[(expert * rank + k) * cols..][..cols];
                line.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
    }
    Delta { experts, values }
}

/// Σ wᵢ·ΔWᵢ.
pub fn sum(parts: &[(f64, &Deltas)]) -> Deltas {
    let mut total = Deltas::new();
    for (weight, deltas) in parts {
        for (key, delta) in *deltas {
            let zero = || Delta { experts: delta.experts, values: vec![0.0; delta.values.len()] };
            let entry = total.entry(key.clone()).or_insert_with(zero);
            assert_eq!(entry.experts, delta.experts, "{key}");
            entry.values.iter_mut().zip(&delta.values).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    total
}

pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// ‖left − right‖ ∕ ‖right‖ over all keys, which must be the same.
#[track_caller]
pub fn distance(left: &Deltas, right: &Deltas) -> f64 {
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    let squares = |key: &String| {
        let (l, r) = (&left[key].values, &right[key].values);
        assert_eq!(l.len(), r.len(), "{key}");
        l.iter().zip(r).map(|(l, r)| (l - r).powi(2)).sum::<f64>()
    };
    let size: f64 = right.values().map(|delta| norm(&delta.values).powi(2)).sum();
    (left.keys().map(squares).sum::<f64>() / size).sqrt()
}
