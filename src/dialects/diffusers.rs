//! diffusers: PEFT's names below the name of a component; scales in `lora_adapter_metadata`.
//! Source: diffusers 0.42 `loaders/lora_base.py`, `utils/peft_utils.py`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::dialect::{Dialect, Form};
use super::files::{Facts, Files, column};
use super::peft::new_adapter::NewAdapter;
use super::peft::new_config;
use super::pieces::{Pair, Pieces};
use super::spell::Wanted;
use crate::error::Result;
use crate::naming::Role;
use crate::naming::components;
use crate::naming::scheme::scheme;
use crate::pairs::{Bytes, NewPair};

/// diffusers: names below those of components.
pub const DIFFUSERS: Dialect = Dialect {
    name: "diffusers",
    title: "diffusers",
    form: Form::Either,
    files: &["pytorch_lora_weights.safetensors"],
    names: Wanted::Diffusers,
    pipelines: true,
    write: Some(|pieces, facts| write(&pieces, facts)),
    ..Dialect::PLAIN
};

/// The file, alone or in a directory.
fn write(pieces: &Pieces, facts: &Facts<'_>) -> Result<Files> {
    let scheme = scheme("diffusers").expect("the tables are part of the program");
    let mut files = Files { single: facts.is_file, ..Files::of(&DIFFUSERS, &[]) };
    facts.only_pairs(pieces, "which diffusers loads as LoRA or not at all", "which diffusers does not load")?;
    let mut by_component: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
    for pair in &pieces.pairs {
        let Some((component, _)) = components::split(&pair.path) else {
            let what = format!("`{}` is no part of a diffusion pipeline, and diffusers loads no others", pair.path);
            return Err(facts.refuse(what));
        };
        by_component.entry(component).or_default().push(pair);
        let key = |role: &Role| scheme.print(&pair.path, role).expect("diffusers has the roles of LoRA");
        files.add(scheme, &pair.path, (pair.down.clone(), pair.up.clone()), facts.float);
        if let Some(bias) = &pair.bias {
            files.tensors.push(column(key(&Role::UpBias), bias.clone(), &[bias.size.0], facts.float));
        }
        if let Some(magnitude) = facts.magnitude(pair, "diffusers")? {
            let count = magnitude.size.0;
            let shape = if pair.is_conv() { vec![1, count, 1, 1] } else { vec![count] };
            files.tensors.push(column(key(&Role::Magnitude), magnitude, &shape, facts.float));
        }
    }
    let mut metadata = Map::new();
    for (component, pairs) in &by_component {
        metadata
            .extend(settings(component, pairs).into_iter().map(|(key, value)| (format!("{component}.{key}"), value)));
    }
    let mut sorted: Vec<(String, Value)> = metadata.into_iter().collect();
    sorted.sort_by(|left, right| left.0.cmp(&right.0));
    let metadata: Map<String, Value> = sorted.into_iter().collect();
    let text = serde_json::to_string_pretty(&metadata).expect("settings are plain JSON");
    files.metadata = vec![("format".into(), "pt".into()), ("lora_adapter_metadata".into(), text)];
    let scaled: BTreeSet<&str> =
        pieces.pairs.iter().filter(|pair| pair.scale != 1.0).map(|pair| pair.path.as_str()).collect();
    if !scaled.is_empty() {
        files.notes.push(format!(
            "the scales of {} modules are in `lora_adapter_metadata`; readers that do not look there take them for 1",
            scaled.len()
        ));
    }
    Ok(files)
}

/// PEFT's settings of one component.
fn settings(component: &str, pairs: &[&Pair]) -> Map<String, Value> {
    let pair = |pair: &&Pair| NewPair {
        up_bias: pair.bias.as_ref().map(|_| Bytes::none()),
        ..NewPair::numbers(&pair.path[component.len() + 1..], pair.rank(), pair.alpha())
    };
    let adapter = NewAdapter { pairs: pairs.iter().map(pair).collect(), ..NewAdapter::default() };
    let mut config = new_config::render(&adapter);
    config["use_dora"] = pairs.iter().any(|pair| pair.magnitude.is_some()).into();
    match config {
        Value::Object(config) => config,
        _ => Map::new(),
    }
}
