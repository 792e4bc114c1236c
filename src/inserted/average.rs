//! Tensors of one name averaged, of whatever kind an adapter is, as AdapterHub's `average_adapter` does it (adapters 1.3
//! `methods/adapter_layer_base.py`): weights are divided by their sum, and `weight · tensor` is added up adapter by adapter in the dtype
//! of the tensors. What is averaged has one structure: the same names and shapes, and configs that agree in what they mean.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::bottleneck::values;
use crate::adapters::Adapter;
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::adapterhub::{ADAPTERHUB, name_in};
use crate::dialects::files::Files;
use crate::dialects::{Target, same};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::pairs::Bytes;
use crate::tensor::Float;

/// Settings that change nothing of what the tensors mean: where it came from, and how it was trained.
const ASIDE: [&str; 18] = [
    "name",
    "version",
    "peft_version",
    "model_name",
    "model_class",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "dropout",
    "lora_dropout",
    "module_dropout",
    "rank_dropout",
    "init_weights",
    "init_weights_seed",
    "init_lora_weights",
    "auto_mapping",
    "num_layers_trained",
    "iters",
];

/// Settings that are sets: PEFT writes them in any order.
const SETS: [&str; 3] = ["target_modules", "modules_to_save", "exclude_modules"];

/// The average of `adapters`, whose weights are divided by their sum. `dtype` is that of the result.
///
/// # Errors
/// When their structures differ, naming how, or nothing can be averaged.
pub fn average(adapters: &[(&Adapter, f64)], dtype: Option<Float>) -> Result<Files> {
    let first = adapters[0].0;
    check_dialect(first)?;
    let sum: f64 = adapters.iter().map(|(_, weight)| weight).sum();
    if sum == 0.0 || !sum.is_finite() {
        return Err(Error::invalid("--method", format!("the weights of an average cannot sum to {sum}")));
    }
    let tensors: Vec<HashMap<String, Stored>> = adapters.iter().map(|(adapter, _)| by_name(adapter)).collect();
    for ((adapter, _), own) in adapters.iter().zip(&tensors).skip(1) {
        check_configs(adapter, first)?;
        check_names((adapter, own), (first, &tensors[0]))?;
    }
    let mut files = same::write(first, dtype)?;
    // The head of the first would be taken for that of all.
    files.beside.retain(|(name, _)| *name == *CONFIG_NAME);
    files.copied.clear();
    for (written, stored) in files.tensors.iter_mut().zip(first.tensors.all()) {
        let name = plain_name(first, &stored.info.name);
        let all = tensors.iter().map(|own| &own[&name]).zip(adapters.iter().map(|(_, weight)| weight / sum));
        if let Some(bytes) = one(&stored, &all.collect::<Vec<_>>(), dtype)? {
            written.2 = bytes;
        }
    }
    Ok(files)
}

/// Refuses files that are not written again tensor by tensor.
fn check_dialect(first: &Adapter) -> Result<()> {
    if first.dialect != Target::GGUF.dialect().name {
        return Ok(());
    }
    Err(Error::unsupported(&first.root, "is an adapter of llama.cpp, whose tensors are not averaged as they lie")
        .hint("`lorakit convert ADAPTER --to peft -o OUT` makes one whose tensors are"))
}

/// A tensor's name without the adapter's own.
fn plain_name(adapter: &Adapter, key: &str) -> String {
    let name = (adapter.dialect == ADAPTERHUB.name).then(|| name_in(key)).flatten();
    name.map_or_else(|| key.to_owned(), |name| format!("{}{}", &key[..name.start], &key[name.end..]))
}

fn by_name(adapter: &Adapter) -> HashMap<String, Stored> {
    adapter.tensors.all().map(|stored| (plain_name(adapter, &stored.info.name), stored)).collect()
}

/// Both have tensors of the same names and shapes.
fn check_names(own: (&Adapter, &HashMap<String, Stored>), first: (&Adapter, &HashMap<String, Stored>)) -> Result<()> {
    let roots = (own.0.root.display().to_string(), first.0.root.display().to_string());
    let differ = |problem: String| {
        Err(Error::mismatch(roots.0.clone(), roots.1.clone(), problem)
            .hint("an average needs one structure; `--method concat` sums adapters of any"))
    };
    for (one, other, who) in [(own, first, "the first"), (first, own, "the second")] {
        if let Some(name) = other.1.keys().filter(|name| !one.1.contains_key(*name)).min() {
            let which = if who == "the first" { "only the second" } else { "only the first" };
            return differ(format!("{which} has the tensor `{name}`"));
        }
    }
    let mut names: Vec<&String> = own.1.keys().collect();
    names.sort();
    for name in names {
        let (left, right) = (&own.1[name].info, &first.1[name].info);
        if left.shape != right.shape {
            return differ(format!("tensor `{name}` is {} in one and {} in the other", left.shape, right.shape));
        }
    }
    Ok(())
}

/// Both configs say the same of what the tensors mean.
fn check_configs(own: &Adapter, first: &Adapter) -> Result<()> {
    let (left, right) = (&own.config.raw, &first.config.raw);
    let Some((key, one, two)) = difference(left, right) else { return Ok(()) };
    let problem = format!("`{key}` is {one} in one and {two} in the other");
    Err(Error::mismatch(own.config.path.display().to_string(), first.config.path.display().to_string(), problem)
        .hint("an average needs one structure; `--method concat` sums adapters of any"))
}

/// The first setting in which they differ, and both values.
fn difference(left: &Map<String, Value>, right: &Map<String, Value>) -> Option<(String, Value, Value)> {
    let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    keys.into_iter().filter(|key| !ASIDE.contains(&key.as_str())).find_map(|key| {
        let get = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
        let (one, two) = (get(left), get(right));
        if let (Value::Object(one), Value::Object(two)) = (&one, &two) {
            return difference(one, two).map(|(inner, one, two)| (format!("{key}.{inner}"), one, two));
        }
        let same = one == two || SETS.contains(&key.as_str()) && sorted(&one) == sorted(&two);
        (!same).then(|| (key.clone(), one, two))
    })
}

fn sorted(value: &Value) -> Vec<String> {
    let mut all: Vec<String> = value.as_array().into_iter().flatten().map(Value::to_string).collect();
    all.sort();
    all
}

/// The average of one tensor; `None` where all have to have the same, and do.
fn one(stored: &Stored, all: &[(&Stored, f64)], dtype: Option<Float>) -> Result<Option<Bytes>> {
    let name = &stored.info.name;
    let same = || all.iter().map(|(own, _)| own.read(0, own.info.bytes)).collect::<Result<Vec<_>>>();
    let is_alpha = name == "alpha" || name.ends_with(".alpha");
    let Some(float) = stored.info.dtype.float().filter(|_| !is_alpha) else {
        let bytes = same()?;
        if bytes.iter().any(|other| *other != bytes[0]) {
            let what = if is_alpha { "an alpha".to_owned() } else { stored.info.dtype.to_string() };
            let problem = format!("differs between the adapters, and {what} has no average");
            return Err(Error::malformed(stored.path(), format!("tensor `{name}`"), problem));
        }
        return Ok(None);
    };
    let mut sum: Vec<f32> = Vec::new();
    for (own, weight) in all {
        let mut values = values(own)?;
        let weight = *weight as f32;
        values.iter_mut().for_each(|value| *value *= weight);
        float.round(&mut values);
        if sum.is_empty() {
            sum = values;
        } else {
            sum.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
            float.round(&mut sum);
        }
    }
    Bytes::held(&sum, dtype.unwrap_or(float), (stored.path(), name)).map(Some)
}
