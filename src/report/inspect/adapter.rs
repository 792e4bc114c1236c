//! An adapter.

use super::numbers::{exact, first, percent, plural, rounded};
use super::page::{MAX_ROWS, Page};
use super::{dtypes, gguf, made_by, shards, spectrum, stored, training};
use serde_json::Value;

use crate::dialects::Dialect;
use crate::ops::inspect::{AdapterFacts, InsertedFacts, ModuleFacts, ModuleGroup, ShapeCount, Share, Sum};
use crate::report::{shown, size};

/// Most groups of modules that are told one by one.
const MAX_GROUPS: usize = 8;

/// Most names of modules, and most shapes, of one group.
const MAX_NAMES: usize = 12;
const MAX_SHAPES: usize = 4;

/// Everything about an adapter but its problems; `modules` lists each.
pub fn describe(page: &mut Page, facts: &AdapterFacts, verdict: &str, modules: bool) {
    page.title(&format!("{}: {} adapter, {verdict}", shown(&facts.path), Dialect::of(facts.dialect).title));
    super::problems(page, &facts.problems, &facts.header);
    page.line("method", &method(facts));
    page.line("base", &base(facts));
    page.line("task", facts.task_type.as_deref().unwrap_or_default());
    page.line("alpha", &facts.alpha_from.as_ref().map_or(String::new(), |from| format!("from {from}")));
    page.line("written by", facts.trainer.as_deref().unwrap_or_default());
    page.line("trained", &trained(facts));
    stored(page, &facts.weights);
    groups(page, facts);
    // That PEFT reads them as they lie goes without saying.
    let said = facts.experts.iter().filter(|packing| !packing.is_plain() || packing.sides.is_none());
    said.for_each(|packing| page.line("experts", &packing.words()));
    facts.inserted.iter().for_each(|one| inserted(page, one));
    if facts.layers.iter().any(|sum| sum.name != "other") {
        sums(page, "layers", &facts.layers);
    }
    if facts.components.len() > 1 {
        sums(page, "parts", &facts.components);
    }
    let with = |count: usize, what: &str| {
        if count > 0 { format!("{count} of {} pairs {what}", facts.pairs) } else { String::new() }
    };
    page.line("magnitudes", &with(facts.magnitudes, "(DoRA)"));
    page.line("biases", &with(facts.biases, "(lora_bias)"));
    page.line("saved whole", &tensors(&facts.whole));
    page.line("frozen", &tensors(&facts.frozen));
    page.line("token rows", &if facts.token_rows > 0 { facts.token_rows.to_string() } else { String::new() });
    page.line("unknown", &unknown(&facts.unknown));
    facts.gguf.iter().for_each(|facts| gguf::lines(page, facts));
    if let Some(base) =
        facts.base.as_ref().filter(|base| base.unplaced.is_empty() && base.misfit.is_none() && facts.pairs > 0)
    {
        let tensors =
            base.changed_tensors.map_or(String::new(), |count| format!(", {} of it change", plural(count, "tensor")));
        page.line("fits", &format!("every module has a place in `{}`, and its shape{tensors}", shown(&base.path)));
    }
    if facts.values.as_ref().is_some_and(|values| values.not_finite.is_empty() && values.zero.is_empty()) {
        page.line(
            "checked",
            &format!("{} read: no NaN, no infinity, no zeros", plural(facts.weights.tensor_count, "tensor")),
        );
    }
    made_by::line(page, &facts.adapter.tensors);
    let own = facts.weights.metadata_keys.iter().filter(|key| facts.gguf.is_none() && !training::is_told(key));
    let own = own.map(String::as_str);
    page.line("metadata", &first(own.collect::<Vec<_>>().into_iter(), MAX_NAMES));
    spectrum::lines(page, facts);
    training::describe(page, &facts.header);
    spectrum::tables(page, facts, modules);
    if facts.weights.dtypes.len() > 1 {
        dtypes(page, &facts.weights);
    }
    if facts.weights.files.len() > 1 {
        shards(page, &facts.weights);
    }
    if modules {
        list(page, &facts.modules);
    }
}

/// The methods with their counts, or the config's word for the one there is.
pub fn method(facts: &AdapterFacts) -> String {
    let counted = |sum: &Sum| format!("{} {}", sum.modules, sum.name);
    let found = match facts.methods.as_slice() {
        [] => facts.adapter.config.kind.map_or(facts.method.as_str(), |kind| kind.title).to_owned(),
        [one] => one.name.clone(),
        several => several.iter().map(counted).collect::<Vec<_>>().join(", "),
    };
    let told: Vec<&str> =
        facts.variants.iter().map(String::as_str).filter(|variant| !found.contains(variant)).collect();
    if told.is_empty() { found } else { format!("{found} ({})", told.join(", ")) }
}

fn trained(facts: &AdapterFacts) -> String {
    let own = format!("{} parameters", exact(facts.trainable_parameters));
    let Some(base) = &facts.base else { return own };
    let found = match (base.named, base.estimated) {
        (true, _) => "",
        (false, false) => ", found by name",
        (false, true) => ", by its config",
    };
    let share = percent(base.share);
    format!("{own}, {share} of the {} of `{}`{found}", super::count(base.parameters), shown(&base.path))
}

pub(super) fn base(facts: &AdapterFacts) -> String {
    let mut said: Vec<&str> = Vec::new();
    for hint in &facts.base_hints {
        if !said.contains(&hint.says.as_str()) {
            said.push(&hint.says);
        }
    }
    said.extend(facts.base_model.as_deref().filter(|name| !facts.base_hints.iter().any(|hint| hint.says == *name)));
    said.join(", ")
}

fn groups(page: &mut Page, facts: &AdapterFacts) {
    facts.module_groups.iter().take(MAX_GROUPS).for_each(|group| module_group(page, group));
    let rest = facts.module_groups.iter().skip(MAX_GROUPS);
    if facts.module_groups.len() > MAX_GROUPS {
        let modules = rest.clone().map(|group| group.modules).sum();
        let ranks: Vec<u64> = rest.filter_map(|group| group.rank).collect();
        let ranks = match (ranks.iter().min(), ranks.iter().max()) {
            (Some(least), Some(most)) => format!(", r={least} to {most}"),
            _ => String::new(),
        };
        let more = facts.module_groups.len() - MAX_GROUPS;
        page.line("", &format!("… and {} in {more} more groups{ranks}", plural(modules, "module")));
    }
}

fn module_group(page: &mut Page, group: &ModuleGroup) {
    let number =
        |name: &str, value: Option<f64>| value.map_or_else(String::new, |value| format!(" {name}={}", rounded(value)));
    let rank = group.rank.map_or_else(String::new, |rank| format!(" r={rank}"));
    let (alpha, scale) = (number("alpha", group.alpha), number("scale", group.scale));
    let label = if group.component == "model" { "modules" } else { group.component };
    page.line(label, &format!("{} × {}:{rank}{alpha}{scale} {}", group.modules, group.method, group.dtype));
    page.line("", &first(group.names.iter().map(String::as_str), MAX_NAMES));
    let shape = |count: &ShapeCount| {
        let [outputs, inputs] = count.shape;
        let times = if count.modules > 1 { format!(" × {}", count.modules) } else { String::new() };
        format!("[{outputs}, {inputs}]{times}")
    };
    let shapes: Vec<String> = group.shapes.iter().map(shape).collect();
    page.line("", &first(shapes.iter().map(String::as_str), MAX_SHAPES));
}

fn inserted(page: &mut Page, facts: &InsertedFacts) {
    page.line("inserted", &format!("{}: {}", facts.kind, facts.reason));
    let fact = |(name, value): (&String, &Value)| match value {
        Value::Bool(true) => Some(name.replace('_', " ")),
        Value::Bool(false) => None,
        Value::String(text) => Some(format!("{} {text}", name.replace('_', " "))),
        other => Some(format!("{} {other}", name.replace('_', " "))),
    };
    page.line("", &facts.facts.iter().filter_map(fact).collect::<Vec<_>>().join(", "));
    if !facts.places.is_empty() {
        let places = first(facts.places.iter().map(String::as_str), MAX_NAMES);
        page.line("", &format!("in {}: {places}", plural(facts.modules, "place")));
    }
}

/// Kinds of layers or parts of the model, with their sizes.
fn sums(page: &mut Page, label: &str, sums: &[Sum]) {
    let all: u64 = sums.iter().map(|sum| sum.bytes).sum();
    let one = |sum: &Sum| {
        let share = percent(sum.bytes as f64 / all.max(1) as f64);
        format!("{} {} ({share})", sum.name, size(sum.bytes))
    };
    page.line(label, &sums.iter().map(one).collect::<Vec<_>>().join(", "));
}

fn list(page: &mut Page, modules: &[ModuleFacts]) {
    let row = |module: &ModuleFacts| {
        let shape = module.shape.map_or_else(String::new, |[outputs, inputs]| format!("{outputs}×{inputs}"));
        let rank = module.rank.map_or_else(String::new, |rank| rank.to_string());
        let scale = module.scale.map_or_else(String::new, rounded);
        vec![module.path.clone(), module.method.to_owned(), shape, rank, scale, module.dtype.clone()]
    };
    page.table(&["module", "method", "out×in", "r", "scale", "dtype"], modules.iter().map(row), usize::MAX);
}

/// What some tensors take, and what they are called.
fn tensors(share: &Share) -> String {
    const SHOWN: usize = 4;
    if share.tensors == 0 {
        return String::new();
    }
    let names = first(share.names.iter().map(String::as_str), SHOWN);
    format!("{} elements, {}: {names}", super::count(share.elements), size(share.bytes))
}

fn unknown(names: &[String]) -> String {
    const SHOWN: usize = 4;
    if names.is_empty() {
        return String::new();
    }
    format!("{}: {}", plural(names.len(), "tensor"), first(names.iter().map(String::as_str), SHOWN.min(MAX_ROWS)))
}
