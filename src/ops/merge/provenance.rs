//! What the result says about its own making, and what its config must say differently.

use std::path::PathBuf;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde_json::{Map, Value, json};

use super::applied::Applied;
use super::{MergeOptions, MergeReport};
use crate::adapters::weight_files;
use crate::error::{Error, Result};
use crate::formats::json as files;
use crate::ops::Rounding;
use crate::ops::base::Base;
use crate::ops::recipe::{SIDECAR, hashes, name_of};

/// How the output was made. Depends on the inputs and options alone: no time, no path, no machine.
///
/// # Errors
/// When a file to be hashed cannot be read.
pub fn recipe(options: &MergeOptions, base: &Base, applied: &[Applied]) -> Result<Value> {
    let mut base_entry = Map::new();
    base_entry.insert("name".into(), name_of(base.checkpoint.root()).into());
    if options.hash_base {
        base_entry.insert("blake3".into(), hashes(&files_of(base))?);
    }
    let earlier = base.checkpoint.directory().join(SIDECAR);
    if earlier.is_file() {
        base_entry.insert("lorakit".into(), files::read_object(&earlier)?.into());
    }
    let entry = |applied: &Applied| -> Result<Value> {
        let adapter = &applied.adapter;
        let mut entry = json!({
            "name": name_of(&adapter.root),
            "method": adapter.config.method,
            "weight": applied.strength,
            "blake3": hashes(&weight_files(adapter))?,
        });
        if let Some((original, _)) = &applied.original {
            let mut taken_from = json!({ "name": name_of(original.base.checkpoint.root()) });
            if options.hash_base {
                taken_from["blake3"] = hashes(&files_of(&original.base))?;
            }
            entry["init"] = json!({ "base": taken_from });
        }
        if let Some(init) = &applied.init {
            entry["init"] = json!({ "name": name_of(&init.root), "blake3": hashes(&weight_files(init))? });
        }
        Ok(entry)
    };
    let adapters = applied.iter().map(entry).collect::<Result<Vec<_>>>()?;
    Ok(json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": "merge",
        "base": base_entry,
        "adapters": adapters,
        "options": chosen(options),
    }))
}

fn files_of(base: &Base) -> Vec<PathBuf> {
    base.checkpoint.files().iter().map(|file| file.map.path().into()).collect()
}

/// The options that differ from their defaults and change bytes.
fn chosen(options: &MergeOptions) -> Value {
    let mut chosen = Map::new();
    let mut set = |key: &str, value: Value| chosen.insert(key.into(), value);
    let patterns = |patterns: &[regex::Regex]| patterns.iter().map(ToString::to_string).collect::<Vec<String>>();
    let (write, selection) = (&options.write, &options.selection);
    if let Some(float) = write.dtype {
        set("dtype", float.dtype().name().into());
    }
    if write.cast_all {
        set("cast_all", true.into());
    }
    match write.rounding {
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
    if options.residual_base {
        set("residual_base", true.into());
    }
    if !options.allow_unused.is_empty() {
        set("allow_unused", options.allow_unused.clone().into());
    }
    chosen.into()
}

/// What goes into the header of every file: the recipe in one line, without the history of the base.
pub fn metadata(recipe: &Value) -> Vec<(String, String)> {
    let mut short = recipe.clone();
    if let Some(base) = short["base"].as_object_mut() {
        base.remove("lorakit");
    }
    vec![("lorakit".into(), short.to_string())]
}

/// The base's config with what the merge makes untrue put right, or `None` where nothing is.
pub fn edited_config(base: &Base, options: &MergeOptions, untied: bool, report: &mut MergeReport) -> Option<Vec<u8>> {
    let config = base.config.as_ref()?;
    let mut edited = config.clone();
    if untied {
        set_everywhere(&mut edited, "tie_word_embeddings", &false.into(), true);
    }
    if let (Some(float), true) = (options.write.dtype, options.write.cast_all) {
        let name = Value::from(float.torch_name());
        let newer = edited.contains_key("dtype");
        set_everywhere(&mut edited, "torch_dtype", &name, !newer);
        set_everywhere(&mut edited, "dtype", &name, false);
    }
    if edited == *config {
        return None;
    }
    report.config_changes = changes("", config, &edited);
    Some(files::render(&edited))
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
    found
}

/// Patterns of tensor names as one set.
///
/// # Errors
/// When a pattern is malformed.
pub fn globs(patterns: &[String]) -> Result<GlobSet> {
    let wrong = |pattern: &str, problem: &globset::Error| {
        Error::invalid("--allow-unused", format!("`{pattern}` is not a pattern: {}", problem.kind()))
    };
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        builder.add(Glob::new(pattern).map_err(|problem| wrong(pattern, &problem))?);
    }
    builder.build().map_err(|problem| wrong(&patterns.join(" "), &problem))
}
