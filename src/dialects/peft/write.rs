//! PEFT: `adapter_config.json` and `adapter_model.safetensors`. Source: PEFT 0.21 `tuners/{lora,loha,lokr}/config.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::lokr::Rule;
use super::new_adapter::NewAdapter;
use super::new_config;
use super::{PEFT, PREFIX};
use crate::adapters::config::{CONFIG_NAME, INVOCATION};
use crate::dialects::dialect::Dialect;
use crate::dialects::files::{Facts, Files, column};
use crate::dialects::pieces::{Other, Pieces};
use crate::dialects::spell::is_of_pipeline;
use crate::error::Result;
use crate::formats::json;
use crate::naming::components;
use crate::naming::experts::DEFINITION_ORDER;
use crate::pairs::{Bytes, NewPair, NewWhole, PairKind};
use crate::tensor::Float;

/// The files.
///
/// # Errors
/// When PEFT cannot express a change.
pub fn write(mut pieces: Pieces, facts: &Facts<'_>) -> Result<Files> {
    one_component(&mut pieces, facts)?;
    let mut files = Files::of(&PEFT, &[("format", "pt")]);
    let config = if pieces.methods.is_empty() {
        loras(pieces, facts, &mut files)?
    } else {
        if !pieces.pairs.is_empty() {
            let (method, pair) = (&pieces.methods[0], &pieces.pairs[0]);
            let what = format!(
                "changes `{}` by {} and `{}` by LoRA; an adapter of PEFT has one method",
                method.path,
                method.method.kind(),
                pair.path
            );
            return Err(facts.refuse(what).hint("make all of them LoRA: --as lora"));
        }
        others(&pieces, facts, &mut files)?
    };
    files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&config)));
    Ok(files)
}

/// Why an adapter that changes the components `one` and `other` cannot be PEFT's, and the ways out.
#[must_use]
pub fn one_model(one: &str, other: &str) -> (String, String) {
    let what = format!("changes `{one}` and `{other}`; an adapter of PEFT belongs to one model");
    let way = format!(
        "one part at a time: `--include '^{one}\\.'`, then `--include '^{other}\\.'`; or all in one file: `--to diffusers`, \
         `--to kohya`"
    );
    (what, way)
}

/// An adapter of PEFT belongs to one model: the name of its component is left out.
fn one_component(pieces: &mut Pieces, facts: &Facts<'_>) -> Result<()> {
    let mut known: Option<String> = None;
    for path in pieces.paths().filter(|path| is_of_pipeline(facts.adapter, path)) {
        let Some((component, _)) = components::split(path) else { continue };
        match &known {
            Some(other) if other != component => {
                let (what, way) = one_model(other, component);
                return Err(facts.refuse(what).hint(way));
            }
            _ => known = Some(component.to_owned()),
        }
    }
    for path in pieces.paths_mut().filter(|path| is_of_pipeline(facts.adapter, path)) {
        let rest = components::split(path).map(|(_, rest)| rest.to_owned());
        rest.into_iter().for_each(|rest| *path = rest);
    }
    Ok(())
}

fn inherited(facts: &Facts<'_>) -> Map<String, Value> {
    let mut inherited = NewAdapter::inherited_from(&facts.adapter.config, facts.adapter.dialect);
    if let Some(tokens) = facts.adapter.config.raw.get(INVOCATION) {
        inherited.insert(INVOCATION.into(), tokens.clone());
    }
    inherited.extend(Dialect::of(facts.adapter.dialect).task.map(|task| ("task_type".to_owned(), task.into())));
    inherited
}

fn loras(pieces: Pieces, facts: &Facts<'_>, files: &mut Files) -> Result<Value> {
    let float = facts.float;
    let dora = pieces.pairs.iter().filter(|pair| pair.magnitude.is_some()).count();
    if dora > 0 && dora < pieces.pairs.len() {
        let plain = pieces.pairs.iter().find(|pair| pair.magnitude.is_none()).map_or("", |pair| pair.path.as_str());
        let what = format!("`{plain}` has no magnitudes and other modules have; PEFT has DoRA everywhere or nowhere");
        return Err(facts.refuse(what));
    }
    let mut adapter = NewAdapter { inherited: inherited(facts), ..NewAdapter::default() };
    let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, stack) in pieces.pairs.iter().filter_map(|pair| Some((&pair.path, pair.stack.as_ref()?))) {
        parameters.entry(path.clone()).or_default().push(stack.name.clone());
    }
    let place = |name: &String| DEFINITION_ORDER.iter().position(|known| known == name).unwrap_or(usize::MAX);
    parameters.values_mut().for_each(|names| names.sort_by_key(place));
    for pair in pieces.pairs {
        let (out, kernel) = (pair.up.size.0, pair.down.kernel.clone());
        if let Some(magnitude) = facts.magnitude(&pair, "PEFT")? {
            let shape: Vec<u64> = if kernel.is_empty() {
                vec![out]
            } else {
                [1, out].into_iter().chain(kernel.iter().map(|_| 1)).collect()
            };
            files.tensors.push(column(
                format!("{PREFIX}.{}.lora_magnitude_vector", pair.path),
                magnitude,
                &shape,
                float,
            ));
        }
        let inner: u64 = kernel.iter().product();
        let inputs = pair.down.size.1 / inner.max(1);
        let kind = match (pair.embedding, kernel.is_empty()) {
            _ if let Some(stack) = &pair.stack => {
                let names = &parameters[&pair.path];
                let at = names.iter().position(|name| *name == stack.name).unwrap_or(0);
                PairKind::Parameter { name: stack.name.clone(), nesting: names.len() - 1 - at, experts: stack.experts }
            }
            (true, _) => PairKind::Embedding,
            (false, true) => PairKind::Linear,
            (false, false) => PairKind::Conv { kernel },
        };
        let rank = usize::try_from(pair.rank()).expect("a mapped tensor fits the address space");
        adapter.pairs.push(NewPair {
            rank,
            alpha: pair.alpha(),
            path: pair.path,
            kind,
            outer: (out, inputs),
            down: pair.down.bytes(float),
            up: pair.up.bytes(float),
            up_bias: pair.bias.map(|bias| bias.bytes(float)),
        });
    }
    for whole in pieces.whole {
        adapter.whole.push(NewWhole {
            module: whole.path,
            parameter: whole.parameter,
            shape: whole.tensor.info.shape.clone(),
            bytes: cast(&whole.tensor, float),
            frozen_bias: whole.frozen,
        });
    }
    let mut config = new_config::render(&adapter);
    config["use_dora"] = (dora > 0).into();
    files.tensors.extend(adapter.into_tensors());
    Ok(config)
}

/// A tensor as it is, or in another dtype.
pub fn cast(tensor: &crate::formats::Stored, float: Option<Float>) -> Bytes {
    if tensor.info.dtype.float().is_some() {
        crate::pairs::matrix::Grid::of(tensor).bytes(float)
    } else {
        Bytes::Stored(tensor.clone())
    }
}

/// Methods whose tensors PEFT calls as LyCORIS does.
fn others(pieces: &Pieces, facts: &Facts<'_>, files: &mut Files) -> Result<Value> {
    let kind = pieces.methods[0].method.kind();
    if !kind.is_of_lycoris {
        let what = format!(
            "`{}` is changed by {kind}, which PEFT stores in another form or not at all",
            pieces.methods[0].path
        );
        return Err(facts.refuse(what).hint("--as lora, where the change is one of low rank; or merge, then extract"));
    }
    let is_own = |role: &str| role.split_once('_').is_some_and(|(prefix, _)| kind.prefixes.contains(&prefix));
    if let Some(other) = pieces.methods.iter().find(|other| other.method.kind() != kind) {
        let what =
            format!("changes modules by {kind} and by {}; an adapter of PEFT has one method", other.method.kind());
        return Err(facts.refuse(what).hint("make all of them LoRA: --as lora"));
    }
    let rule = Rule::of(&pieces.methods, facts)?;
    let mut numbers = NewAdapter { inherited: inherited(facts), ..NewAdapter::default() };
    for (at, Other { path, method }) in pieces.methods.iter().enumerate() {
        let rank = rule.as_ref().map(|rule| rule.ranks[at]).or_else(|| method.rank());
        let Some((rank, scale)) = rank.zip(method.scale()) else {
            return Err(facts.refuse(format!("the scale of `{path}` is not known")));
        };
        for (role, tensor) in method.tensors() {
            if !is_own(role) {
                // Both are part of the scale.
                if role == "alpha" || role == "scalar" {
                    continue;
                }
                let what = format!("`{path}` has a tensor `{role}`, which {kind} of PEFT does not have");
                return Err(facts.refuse(what));
            }
            let shape = tensor.info.shape.clone();
            files.tensors.push((format!("{PREFIX}.{path}.{role}"), shape, cast(tensor, facts.float)));
        }
        numbers.pairs.push(NewPair::numbers(path, rank, scale * rank as f64));
    }
    if let Some(whole) = pieces.whole.first() {
        return Err(
            facts.refuse(format!("`{}` is stored whole beside {kind}, for which PEFT has no place", whole.path))
        );
    }
    let rendered = new_config::render(&numbers);
    let mut config = Map::new();
    for key in [
        "base_model_name_or_path",
        "inference_mode",
        "rank_pattern",
        "alpha_pattern",
        "r",
        "target_modules",
        "task_type",
    ] {
        config.insert(key.into(), rendered.get(key).cloned().unwrap_or(Value::Null));
    }
    config.insert("peft_type".into(), kind.peft_types[0].into());
    config.insert("alpha".into(), rendered["lora_alpha"].clone());
    let has =
        |role: &str| pieces.methods.iter().any(|other| other.method.tensors().iter().any(|(own, _)| *own == role));
    config.insert("use_effective_conv2d".into(), (has("hada_t1") || has("lokr_t2")).into());
    if let Some(Rule { both, factor, .. }) = rule {
        config.insert("decompose_both".into(), both.into());
        config.insert("decompose_factor".into(), factor.into());
    }
    Ok(Value::Object(config))
}
