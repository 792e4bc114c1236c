//! What an adapter inserts into the model instead of changing its weights: soft prompts, prefixes, bottlenecks.
//!
//! Facts: PEFT 0.21 `tuners/prompt_tuning`, `tuners/prefix_tuning`; AdapterHub adapters 1.3 `configuration/adapter_config.py`. Sizes are
//! those of the tensors, everything else is what the config says.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};

use super::weights::parameters;
use crate::adapters::{Adapter, Change, Inserted};

/// Settings of a config that describe an inserted part, under the names they are told by.
const SETTINGS: [(&str, &str); 26] = [
    ("num_virtual_tokens", "virtual_tokens"),
    ("prompt_length", "virtual_tokens"),
    ("prefix_length", "virtual_tokens"),
    ("token_dim", "dimension"),
    ("hidden_size", "dimension"),
    ("num_layers", "layers"),
    ("num_attention_heads", "heads"),
    ("prefix_projection", "projection"),
    ("encoder_hidden_size", "bottleneck"),
    ("bottleneck_size", "bottleneck"),
    ("encoder_reparameterization_type", "encoder"),
    ("prompt_tuning_init", "initialiser"),
    ("reduction_factor", "reduction_factor"),
    ("non_linearity", "non_linearity"),
    ("is_parallel", "parallel"),
    ("scaling", "scaling"),
    ("mh_adapter", "after_attention"),
    ("output_adapter", "after_feed_forward"),
    ("cross_adapter", "after_cross_attention"),
    ("use_gating", "gating"),
    ("inv_adapter", "invertible"),
    ("inv_adapter_reduction_factor", "invertible_reduction_factor"),
    ("leave_out", "leave_out"),
    ("phm_layer", "phm_layer"),
    ("phm_dim", "phm_dim"),
    ("r", "rank"),
];

/// Endings of the roles of a bottleneck's down projection, whose rows are the bottleneck.
const DOWN: [&str; 2] = ["adapter_down.0.weight", "adapter_down.1.weight"];

/// Ends of the roles of tables of virtual tokens.
const TABLES: [&str; 3] = ["prompt_embeddings", "prompt_embedding.weight", "wte.weight"];

/// All parts of one kind.
#[derive(Debug, Serialize)]
pub struct InsertedFacts {
    /// `prompt tuning`, `bottleneck` …
    pub kind: String,
    /// How many places have one.
    pub modules: usize,
    /// Why no weight can hold it.
    pub reason: String,
    /// Its elements.
    pub parameters: u64,
    /// Where it is inserted: the ends of the paths, without numbers.
    pub places: BTreeSet<String>,
    /// What is known of it, by name.
    pub facts: Map<String, Value>,
}

/// Everything that `adapter` inserts, kind by kind.
pub fn inserted(adapter: &Adapter) -> Vec<InsertedFacts> {
    let mut found: BTreeMap<&str, InsertedFacts> = BTreeMap::new();
    for module in &adapter.modules {
        let Change::Inserted(inserted) = &module.change else { continue };
        let facts = found.entry(inserted.kind).or_insert_with(|| InsertedFacts {
            kind: inserted.kind.to_owned(),
            modules: 0,
            reason: inserted.reason.to_owned(),
            parameters: 0,
            places: BTreeSet::new(),
            facts: settings(&adapter.config.raw),
        });
        facts.modules += 1;
        let own = inserted.tensors.iter().map(|(_, tensor)| parameters(&tensor.info));
        facts.parameters = own.fold(facts.parameters, u64::saturating_add);
        if !module.path.is_empty() {
            facts.places.insert(place(&module.path));
        }
        facts.sizes(inserted);
    }
    found.into_values().collect()
}

impl InsertedFacts {
    /// What the shapes of the tensors say; the config may not say it, or another layer's.
    fn sizes(&mut self, inserted: &Inserted) {
        let mut put = |name: &str, value: u64| {
            self.facts.insert(name.to_owned(), value.into());
        };
        for (role, tensor) in &inserted.tensors {
            let [rows, cols] = *tensor.info.shape.as_slice() else { continue };
            if DOWN.iter().any(|end| role.ends_with(end)) {
                put("bottleneck", rows);
                put("dimension", cols);
            } else if TABLES.iter().any(|end| role.ends_with(end)) {
                put("virtual_tokens", rows);
                put("dimension", cols);
            }
        }
    }
}

/// What the config says, from its top level or from AdapterHub's `config` and the parts of a union.
fn settings(config: &Map<String, Value>) -> Map<String, Value> {
    let inner = config.get("config").and_then(Value::as_object);
    let union = inner.and_then(|inner| inner.get("configs")).and_then(Value::as_array).into_iter().flatten();
    let parts = union.filter_map(Value::as_object).chain(inner).chain([config]);
    let mut found = Map::new();
    for part in parts {
        for (key, name) in SETTINGS {
            let value = part.get(key).filter(|value| !value.is_null() && **value != Value::Array(Vec::new()));
            if let (Some(value), false) = (value, found.contains_key(name)) {
                found.insert(name.to_owned(), value.clone());
            }
        }
    }
    if found.get("phm_layer") != Some(&Value::Bool(true)) {
        found.remove("phm_dim");
    }
    found
}

/// The last components of a path, without numbers.
fn place(path: &str) -> String {
    const SHOWN: usize = 2;
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = path.split('.').filter(|part| !is_number(part)).collect();
    parts[parts.len().saturating_sub(SHOWN)..].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_are_found_at_every_depth() {
        let config = json!({
            "hidden_size": 64,
            "config": {"architecture": "union", "configs": [{"reduction_factor": 16, "non_linearity": "relu", "leave_out": []}, {"prefix_length": 30}]}
        });
        let found = settings(config.as_object().expect("an object"));
        let wanted = json!({"reduction_factor": 16, "non_linearity": "relu", "virtual_tokens": 30, "dimension": 64});
        assert_eq!(Value::from(found), wanted);
        assert_eq!(place("bert.encoder.layer.0.attention.output"), "attention.output");
    }
}
