//! What the result says about its own making, and what its config must say differently.

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde_json::{Map, Value, json};

use super::WriteOptions;
use super::recipe::{adapter_hashes, checkpoint_hashes, earlier_record};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, json as files};
use crate::io::name_of;
use crate::model::base::Base;
use crate::model::config::untie;
use crate::model::storage::KEYS;
use crate::model::{Rounding, TrainBase};
use crate::placement::{Applied, Selection};
use crate::tensor::Packing;

/// Whether adapters are put into a model or taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// W′ = W + ΔW.
    PutIn,
    /// W = W′ − ΔW: for changes that are sums and nothing else.
    TakenOut,
}

/// What a merge was asked for, as far as its record tells it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Which modules.
    pub selection: &'a Selection,
    /// Patterns of adapter tensors that may stay unused.
    pub allow_unused: &'a [String],
    /// What weights that change are written as in a GGUF file.
    pub quant: Option<Packing>,
    /// Whether stochastic rounding may be chosen where rounding to nearest would take a change back.
    pub keep_change: bool,
    /// Whether quantised weights keep their format.
    pub keep_format: bool,
    /// How the base was quantised for training.
    pub train_base: Option<TrainBase>,
    /// Whether the base's files are hashed as well.
    pub hash_base: bool,
    /// The base is the one an initialiser left behind.
    pub residual_base: bool,
    /// The denoiser that is meant where a pipeline has several alike.
    pub component: Option<&'a str>,
    /// The vocabulary may change its size.
    pub resize_vocabulary: bool,
    /// How the result is written.
    pub write: &'a WriteOptions,
}

/// How the output was made. Depends on the inputs and options alone: no time, no path, no machine.
///
/// # Errors
/// When a file to be hashed cannot be read.
pub fn recipe(asked: Asked<'_>, direction: Direction, base: &Base, applied: &[Applied]) -> Result<Value> {
    let entry = |applied: &Applied| -> Result<Value> {
        let adapter = &applied.adapter;
        let mut entry = json!({
            "name": name_of(&adapter.root),
            "method": adapter.config.method,
            "weight": if direction == Direction::TakenOut { -applied.strength } else { applied.strength },
            "blake3": adapter_hashes(adapter)?,
        });
        if let Some((original, _)) = &applied.original {
            let mut taken_from = json!({ "name": name_of(original.base.checkpoint.root()) });
            if asked.hash_base {
                taken_from["blake3"] = checkpoint_hashes(&original.base.checkpoint)?;
            }
            entry["init"] = json!({ "base": taken_from });
        }
        if let Some(init) = &applied.init {
            entry["init"] = json!({ "name": name_of(&init.root), "blake3": adapter_hashes(init)? });
        }
        Ok(entry)
    };
    let adapters = applied.iter().map(entry).collect::<Result<Vec<_>>>()?;
    let (operation, model) = match direction {
        Direction::PutIn => ("merge", "base"),
        Direction::TakenOut => ("subtract", "merged"),
    };
    Ok(json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": operation,
        model: model_entry(base, asked.hash_base)?,
        "adapters": adapters,
        "options": chosen(asked, base.view.is_some()),
    }))
}

/// What is said of a model: its name, its digests if they are wanted, its own recipe if it has one.
///
/// # Errors
/// When a file cannot be read.
pub fn model_entry(base: &Base, hashed: bool) -> Result<Value> {
    checkpoint_entry(&base.checkpoint, hashed)
}

/// The same of its checkpoint.
///
/// # Errors
/// As [`model_entry`].
pub fn checkpoint_entry(checkpoint: &Checkpoint, hashed: bool) -> Result<Value> {
    let mut entry = Map::new();
    entry.insert("name".into(), name_of(checkpoint.root()).into());
    if hashed {
        entry.insert("blake3".into(), checkpoint_hashes(checkpoint)?);
    }
    entry.extend(earlier_record(checkpoint)?.map(|record| ("lorakit".to_owned(), record)));
    Ok(entry.into())
}

/// The options that differ from their defaults and change bytes.
fn chosen(asked: Asked<'_>, is_gguf: bool) -> Value {
    let mut chosen = Map::new();
    let mut set = |key: &str, value: Value| chosen.insert(key.into(), value);
    let patterns = |patterns: &[regex::Regex]| patterns.iter().map(ToString::to_string).collect::<Vec<String>>();
    let (write, selection) = (asked.write, asked.selection);
    if let Some(float) = write.dtype {
        set("dtype", float.dtype().name().into());
    }
    if let Some(quant) = asked.quant {
        set("quant", quant.to_string().into());
    }
    if asked.keep_format {
        set("keep_format", true.into());
    }
    if let Some(spec) = asked.train_base {
        set("train_base", spec.to_string().into());
    }
    if write.cast_all {
        set("cast_all", true.into());
    }
    if write.changed_only {
        set("changed_only", true.into());
    }
    match write.rounding {
        Rounding::Nearest if is_gguf && !asked.keep_change => set("rounding", "nearest".into()),
        Rounding::Nearest => None,
        Rounding::PeftSafe => set("rounding", "peft-safe".into()),
        Rounding::Stochastic { seed } => set("rounding", json!({ "stochastic": seed })),
    };
    if !selection.include.is_empty() {
        set("include", patterns(&selection.include).into());
    }
    if !selection.exclude.is_empty() {
        set("exclude", patterns(&selection.exclude).into());
    }
    for (pattern, weight) in &selection.weights {
        set(&format!("weight_for {pattern}"), (*weight).into());
    }
    if let Some(blocks) = &selection.blocks {
        set("lbw", blocks.written().into());
    }
    if asked.residual_base {
        set("residual_base", true.into());
    }
    if let Some(component) = asked.component {
        set("component", component.into());
    }
    if asked.resize_vocabulary {
        set("resize_vocab", true.into());
    }
    if !asked.allow_unused.is_empty() {
        set("allow_unused", asked.allow_unused.to_vec().into());
    }
    chosen.into()
}

/// What goes into the header of every file: the recipe in one line, without the history of the models.
pub fn metadata(recipe: &Value) -> Vec<(String, String)> {
    let mut short = recipe.clone();
    for model in ["base", "merged", "input"] {
        if let Some(entry) = short.get_mut(model).and_then(Value::as_object_mut) {
            entry.remove("lorakit");
        }
    }
    vec![("lorakit".into(), short.to_string())]
}

/// What a config has to say differently.
#[derive(Debug, Default)]
pub struct Edits {
    /// Head and embedding are two tensors from now on.
    pub untied: bool,
    /// The vocabulary has so many tokens from now on.
    pub vocabulary: Option<u64>,
    /// Quantised weights keep their format.
    pub keeps_format: bool,
}

/// The base's config with what the merge makes untrue put right and what was changed, or `None` where nothing is.
pub fn edited_config(base: &Base, write: &WriteOptions, edits: &Edits) -> Option<(Vec<u8>, Vec<String>)> {
    let config = &base.config.as_ref()?.raw;
    let mut edited = config.clone();
    if edits.untied {
        untie(&mut edited);
    }
    if let Some(tokens) = edits.vocabulary {
        set_everywhere(&mut edited, "vocab_size", &tokens.into(), false);
    }
    if base.quantised.is_whole() && !edits.keeps_format {
        plain(&mut edited);
        let float = write.dtype.or_else(|| base.quantised.float());
        let has = |config: &Map<String, Value>| ["dtype", "torch_dtype"].iter().any(|key| config.contains_key(*key));
        let said = has(&edited) || edited.get("text_config").and_then(Value::as_object).is_some_and(has);
        if let Some(float) = float.filter(|_| !said) {
            edited.insert("torch_dtype".into(), float.torch_name().into());
        }
    }
    if let Some(float) = write.dtype.filter(|_| write.cast_all || !write.changed_only && base.view.is_none()) {
        let name = Value::from(float.torch_name());
        let newer = edited.contains_key("dtype");
        set_everywhere(&mut edited, "torch_dtype", &name, !newer);
        set_everywhere(&mut edited, "dtype", &name, false);
    }
    (edited != *config).then(|| (files::render(&edited), changes("", config, &edited)))
}

/// Takes out what says that weights are quantised, of the model or of a part of it.
fn plain(config: &mut Map<String, Value>) {
    KEYS.iter().for_each(|key| drop(config.shift_remove(*key)));
    config.values_mut().filter_map(Value::as_object_mut).for_each(|part| {
        KEYS.iter().for_each(|key| drop(part.shift_remove(*key)));
    });
}

/// Sets `key` where it stands, in the config and in that of its text part; at the top anyway if `always`.
fn set_everywhere(config: &mut Map<String, Value>, key: &str, value: &Value, always: bool) {
    if always || config.contains_key(key) {
        config.insert(key.into(), value.clone());
    }
    let text = config.get_mut("text_config").and_then(Value::as_object_mut);
    if let Some(entry) = text.and_then(|text| text.get_mut(key)) {
        *entry = value.clone();
    }
}

fn changes(prefix: &str, before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in after {
        match (before.get(key), value) {
            (Some(old), new) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                found.extend(changes(&format!("{prefix}{key}."), old, new))
            }
            (Some(old), new) => found.push(format!("{prefix}{key}: {old} → {new}")),
            (None, new) => found.push(format!("{prefix}{key}: {new}")),
        }
    }
    let removed = before.keys().filter(|key| !after.contains_key(*key));
    found.extend(removed.map(|key| format!("{prefix}{key}: removed")));
    found
}

/// The patterns of the option `option` as one set.
///
/// # Errors
/// When a pattern is malformed.
pub fn globs(option: &str, patterns: &[String]) -> Result<GlobSet> {
    let wrong = |pattern: &str, problem: &globset::Error| {
        Error::invalid(option, format!("`{pattern}` is not a pattern: {}", problem.kind()))
    };
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        builder.add(Glob::new(pattern).map_err(|problem| wrong(pattern, &problem))?);
    }
    builder.build().map_err(|problem| wrong(&patterns.join(" "), &problem))
}
