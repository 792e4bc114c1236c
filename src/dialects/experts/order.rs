//! In which order the columns of B stand, by what the config says: the rule of unsloth_zoo 2026.10.9, which reads all its own files.

use serde_json::{Map, Value};

use super::sides::{Family, library};
use crate::adapters::AdapterConfig;
use crate::naming::experts::peft::{GROUPED_BY_UNSLOTH, Order};

/// The key with a word on each parameter.
pub const NESTED: &str = "unsloth_fused_expert_lora";

/// The key with one word for all.
pub const FLAT: &str = "lora_B_layout";

/// The settings of Unsloth's that PEFT keeps when it saves again.
pub const MAPPING: &str = "auto_mapping";

/// What says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A marker.
    Marker,
    /// Unsloth's rule for configs without.
    Rule,
    /// Nothing: what everybody does.
    Default,
    /// Nothing, and Unsloth may have packed it either way.
    Open,
}

impl By {
    /// For reports.
    pub fn words(self, order: Order) -> &'static str {
        match (self, order) {
            (Self::Marker, Order::GroupedByExpert) => "Unsloth's marker",
            (Self::Marker, Order::RankMajor) => "the config says so",
            (Self::Rule, _) => "trained by Unsloth before its markers",
            (Self::Default | Self::Open, _) => "as PEFT does",
        }
    }
}

/// The order of the stack `parameter`, and what says so.
pub fn said(config: &AdapterConfig, family: &Family, parameter: &str) -> (Order, By) {
    let mapping = config.raw.get(MAPPING).and_then(Value::as_object);
    for source in std::iter::once(&config.raw).chain(mapping) {
        if let Some(order) = marker(source, parameter) {
            return (order, By::Marker);
        }
    }
    let fixed = mapping.and_then(|mapping| mapping.get("unsloth_fixed")).and_then(Value::as_bool) == Some(true);
    if !fixed || config.target_parameters.is_empty() || !["gate_up_proj", "down_proj"].contains(&parameter) {
        return (Order::RankMajor, By::Default);
    }
    let own = library(config);
    let types = own.iter().chain(family.types.iter().filter(|_| own.is_none()));
    let types: Vec<&str> = types.map(|name| name.strip_suffix("_text").unwrap_or(name)).collect();
    if types.is_empty() {
        return (Order::RankMajor, By::Open);
    }
    if types.iter().any(|name| GROUPED_BY_UNSLOTH.contains(name)) {
        return (Order::GroupedByExpert, By::Rule);
    }
    (Order::RankMajor, By::Default)
}

/// What one set of settings says of it. Where parameters are named, nothing else there counts.
fn marker(source: &Map<String, Value>, parameter: &str) -> Option<Order> {
    let nested = source.get(NESTED).and_then(|nested| nested.get("parameters")).and_then(Value::as_object);
    let word = |value: &Value| value.as_str().and_then(Order::of_marker);
    if let Some(parameters) = nested {
        let own = parameters.get(parameter).and_then(|own| own.get(FLAT)).and_then(word);
        return Some(own.unwrap_or(Order::RankMajor));
    }
    source.get(FLAT).and_then(word)
}

/// The settings of what we write: columns rank by rank, said where PEFT drops it and where it keeps it, and the version whose rule
/// for the sides holds.
pub fn declare(config: &mut Map<String, Value>, version: Option<&str>) {
    config.extend(version.map(|version| ("peft_version".to_owned(), version.into())));
    config.insert(FLAT.into(), Order::RankMajor.marker().into());
    config.remove(NESTED);
    if let Some(Value::Object(mapping)) = config.get_mut(MAPPING) {
        mapping.remove(NESTED);
        mapping.insert(FLAT.into(), Order::RankMajor.marker().into());
    }
}
