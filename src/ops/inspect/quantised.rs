//! Quantised weights: what is read of them, what is known by name alone, and what config.json says.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::formats::Checkpoint;
use crate::model::ModelConfig;
use crate::model::storage::view::View;
use crate::model::storage::{Facts, KEYS, refused};
use crate::naming::Forms;

/// Weights that cannot be read and are told of one by one.
const TOLD: usize = 3;

/// One way in which weights are quantised.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Quantisation {
    /// Who packs like that, or what config.json says.
    pub method: String,
    /// Modules that show it.
    pub modules: usize,
    /// Bits of a code, where the weights are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// What shares a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What else tells it from others of its name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// Elements of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elements: Option<u64>,
}

/// What was found of quantised weights.
#[derive(Debug, Default)]
pub struct Found {
    /// The ways.
    pub ways: Vec<Quantisation>,
    /// Matrices that are plain numbers beside quantised ones: the last component of their modules, and how many there are.
    pub plain: BTreeMap<String, usize>,
    /// Elements of all quantised weights that are read.
    pub elements: u64,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Looks at the weights of a checkpoint with this config.
///
/// # Errors
/// When a file beside it cannot be read.
pub fn find(checkpoint: &Checkpoint, config: Option<&ModelConfig>) -> Result<Found> {
    let mut found = Found::default();
    let mut wrong = Vec::new();
    let mut told = |problem: Error| {
        wrong.push(problem.to_string());
        Ok(())
    };
    let view = View::look(checkpoint, config.map(|config| &config.raw), None, &mut told).unwrap_or_else(|problem| {
        wrong.push(problem.to_string());
        View::default()
    });
    // What the config says is said of every weight.
    wrong.dedup();
    let more = wrong.len().saturating_sub(TOLD);
    wrong.truncate(TOLD);
    wrong.extend(
        (more > 0)
            .then(|| format!("{} cannot be read for the same or other reasons", super::counted(more, "more weight"))),
    );
    found.problems.extend(wrong);
    let mut ways: BTreeMap<Facts, (usize, u64)> = BTreeMap::new();
    for weight in view.weights() {
        let (modules, elements) = ways.entry(weight.storage.facts()).or_default();
        *modules += 1;
        *elements += weight.rows as u64 * weight.cols as u64;
    }
    found.elements = ways.values().map(|(_, elements)| elements).sum();
    found.ways = ways.into_iter().map(|(facts, counts)| way(facts, counts)).collect();
    for (method, why, modules) in packed(checkpoint, &view) {
        found.problems.push(format!(
            "{} quantised by {method}{}: no adapter can be merged into them",
            super::counted(modules, "weight"),
            why.map_or_else(String::new, |why| format!(", which {why}"))
        ));
        found.ways.push(Quantisation { method, modules, ..Quantisation::default() });
    }
    if !view.is_empty() {
        let plain = checkpoint.tensors().filter(|info| {
            let wide = info.dtype.float().is_some_and(|float| float.bytes() > 1);
            wide && info.shape.as_slice().len() > 1 && !info.name.ends_with("bias") && !view.is_done_with(&info.name)
        });
        for info in plain {
            let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            let last = module.rsplit('.').find(|part| part.parse::<u64>().is_err()).unwrap_or(module);
            *found.plain.entry(last.to_owned()).or_default() += 1;
        }
    }
    found.ways.extend(config.and_then(declared));
    Ok(found)
}

fn way(facts: Facts, (modules, elements): (usize, u64)) -> Quantisation {
    Quantisation {
        method: facts.format,
        modules,
        bits: Some(facts.bits),
        group: Some(facts.group.to_string()),
        details: facts.details,
        elements: Some(elements),
    }
}

/// Weights packed in a way that betrays itself by the names of tensors, and that are not read: by whom, why, and in how many
/// modules.
fn packed(checkpoint: &Checkpoint, view: &View) -> Vec<(String, Option<&'static str>, usize)> {
    let mut forms = Forms::new();
    let betrays = |name: &str| refused::ends().any(|(end, _)| name.ends_with(end));
    let names = checkpoint.tensors().map(|tensor| tensor.name.as_str());
    let names: Vec<&str> =
        names.filter(|name| forms.of(name, betrays)).filter(|name| !view.is_done_with(name)).collect();
    let mut seen = HashSet::new();
    let mut found: Vec<(String, Option<&'static str>, usize)> = Vec::new();
    for (ending, method, why) in refused::ends_and_reasons() {
        let modules = names.iter().filter_map(|name| name.strip_suffix(ending));
        let modules = modules.filter(|module| seen.insert(*module)).count();
        match found.iter_mut().find(|(known, ..)| known == method) {
            _ if modules == 0 => {}
            Some((_, _, count)) => *count += modules,
            None => found.push((method.to_owned(), why, modules)),
        }
    }
    found
}

/// What config.json says of it.
fn declared(config: &ModelConfig) -> Option<Quantisation> {
    let mlx = || config.raw.get("quantization").filter(|value| value.get("bits").is_some());
    let method = if let Some(mlx) = mlx() {
        format!("MLX, {} bits (config.json)", mlx["bits"])
    } else {
        let said = KEYS.iter().find_map(|key| config.raw.get(*key));
        format!("{} (config.json)", said?.get("quant_method").and_then(Value::as_str)?)
    };
    Some(Quantisation { method, ..Quantisation::default() })
}
