//! AdapterHub: `adapter_config.json` with the adapter's architecture under `config`; the adapter's name stands in every key.
//! Source: adapters 1.3 `loading.py`, `methods/{modeling,lora,prefix_tuning}.py`.
//!
//! Scales: α/r, in files of versions before 1.1 (`adapters.1.0.1`) 1; a DoRA is known where that is 1.
//!
//! LoRA and IA³ change weights. Everything else is inserted between layers or in front of the input.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use super::{ADAPTERHUB, HEADS};
use crate::adapters::Inserted;
use crate::adapters::config::{AdapterConfig, CONFIG_NAME, Scaling};
use crate::adapters::{Change, Module};
use crate::adapters::{Gathered, gather, has_magnitudes};
use crate::dialects::opened::{Opened, Source};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::Key;
use crate::naming::Role;

const BOTTLENECK: &str = "a bottleneck is not linear, so no weight can hold it";

/// What stands before the adapter's name → kind, and why it cannot be merged.
const INFIXES: [(&str, &str, &str); 15] = [
    (".invertible_adapters.", "invertible adapter", BOTTLENECK),
    (".invertible_lang_adapters.", "invertible adapter", BOTTLENECK),
    (".adapters.", "bottleneck adapter", BOTTLENECK),
    (".attention_text_task_adapters.", "bottleneck adapter", BOTTLENECK),
    (".attention_text_lang_adapters.", "bottleneck adapter", BOTTLENECK),
    (".layer_text_task_adapters.", "bottleneck adapter", BOTTLENECK),
    (".layer_text_lang_adapters.", "bottleneck adapter", BOTTLENECK),
    (".shared_parameters.", SHARED_PARAMETERS, BOTTLENECK),
    ("shared_parameters.", SHARED_PARAMETERS, BOTTLENECK),
    (
        ".prefix_tunings.",
        "prefix tuning",
        "it puts trained keys and values in front of a layer's own, which no weight can hold",
    ),
    (".prefix_gates.", "a gate of prefix tuning", "it acts on the input, so no weight can hold it"),
    (".prompt_tunings.", "prompt tuning", "it puts trained vectors in front of the input, which no weight can hold"),
    (".refts.", "ReFT", "it edits hidden states at some positions only, which no weight can hold"),
    (
        ".adapter_fusion_layer.",
        "adapter fusion",
        "it attends over the outputs of several adapters, which no weight can hold",
    ),
    ("heads.", "a prediction head", "it belongs to the task, and the base has no such layer"),
];

/// How parameters are called that all bottlenecks of an adapter share.
pub const SHARED_PARAMETERS: &str = "shared parameters of bottleneck adapters";

/// The key of `role` of something inserted at `place` for the adapter `name`, as the library of today writes it.
pub fn key_of(kind: &str, place: &str, name: &str, role: &str) -> String {
    let infix = INFIXES.iter().find(|(_, own, _)| *own == kind).map_or(".adapters.", |(infix, ..)| infix);
    if place.is_empty() {
        format!("{}{name}.{role}", infix.trim_start_matches('.'))
    } else {
        format!("{place}{infix}{name}.{role}")
    }
}

/// A key under the name that the library of today gives it: versions before 3 told adapters of tasks from those of languages.
pub(super) fn key_of_today(key: &str) -> String {
    let old = INFIXES.iter().filter(|(infix, ..)| infix.contains("_lang_") || infix.contains("_task_"));
    let renamed = old.into_iter().find_map(|(infix, kind, _)| {
        let (place, rest) = key.split_once(infix)?;
        let (name, role) = rest.split_once('.')?;
        Some(key_of(kind, place, name, role))
    });
    renamed.unwrap_or_else(|| key.to_owned())
}

/// Where the adapter's name stands in a key.
pub fn name_in(key: &str) -> Option<Range<usize>> {
    let infixes = INFIXES.iter().map(|(infix, ..)| *infix).chain([LORAS]);
    let start = infixes.filter_map(|infix| match infix.starts_with('.') {
        true => key.find(infix).map(|at| at + infix.len()),
        false => key.starts_with(infix).then_some(infix.len()),
    });
    let start = start.min()?;
    let len = key[start..].find('.').unwrap_or(key.len() - start);
    Some(start..start + len)
}

/// What stands before the adapter's name in a LoRA.
const LORAS: &str = ".loras.";

pub(super) fn open(source: Source<'_>) -> Result<Opened> {
    let Source { root, raw, mut tensors, .. } = source;
    let path = root.join(CONFIG_NAME);
    let own = raw.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    let number = |key: &str| own.get(key).and_then(Value::as_f64);
    let scales_rows = own.get("composition_mode").and_then(Value::as_str) == Some("scale");
    let gated = own.get("use_gating").and_then(Value::as_bool) == Some(true);
    let mut config = AdapterConfig::synthetic(&path, "LORA", None);
    config.base_model = raw.get("model_name").and_then(Value::as_str).map(str::to_owned);
    let (mut keyed, mut inserted, mut rest) = (Vec::new(), BTreeMap::new(), Vec::new());
    for stored in tensors.all() {
        let name = stored.info.name.clone();
        match (lora_key(&name), inserted_at(&name)) {
            (Some((_, role)), _) if gated && role == "gate" => return Err(gate(&stored)),
            (Some((module, role)), _) => match role_of(role, scales_rows) {
                Some(role) => keyed.push((Key { module: module.to_owned(), nesting: 0, role }, stored)),
                None => rest.push(unknown(module, stored)),
            },
            (None, Some((place, kind, reason, role))) => {
                let new = || Inserted { kind, reason, tensors: Vec::new() };
                let entry: &mut Inserted = inserted.entry((place.to_owned(), kind)).or_insert_with(new);
                entry.tensors.push((role.to_owned(), stored));
            }
            (None, None) => rest.push(unknown("", stored)),
        }
    }
    let modules = gather(keyed.into_iter(), &config, ADAPTERHUB.name, true).and_then(|gathered| {
        let Gathered { mut modules, mut scales, .. } = gathered;
        if !scales.is_empty() {
            let missing =
                |key: &str| Error::malformed(&path, format!("`config.{key}`"), "is missing, so the scale is unknown");
            let alpha = number("alpha").filter(|alpha| alpha.is_finite()).ok_or_else(|| missing("alpha"))?;
            let faulty = raw.get("version").and_then(Value::as_str).is_some_and(scaled_by_one);
            scales.values_mut().for_each(|(rank, own)| *own = if faulty { *rank as f64 } else { alpha });
        }
        config.dora = has_magnitudes(&modules);
        let refuse = |problem: String| Err(Error::unsupported(&path, problem));
        if let Some((rank, alpha)) = scales.values().find(|(rank, alpha)| config.dora && *alpha != *rank as f64) {
            return refuse(format!(
                "is a DoRA of rank {rank} with `config.alpha` {alpha}, where the library's merge leaves out the scale that its \
                 forward pass applies: only with alpha = r do they agree"
            ));
        }
        if let Some(alpha) = number("alpha").filter(|alpha| scales_rows && *alpha != 1.0) {
            return refuse(format!("is an IA³ with `config.alpha` {alpha}, which multiplies every weight; only 1 is known"));
        }
        config.scaling = Some(Scaling::exact(scales));
        modules.extend(inserted.into_iter().map(|((path, _), inserted)| Module {
            path,
            nesting: 0,
            change: Change::Inserted(Box::new(inserted)),
        }));
        modules.extend(rest);
        modules.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(modules)
    });
    config.raw = raw;
    if let Some(head) = HEADS.iter().find(|head| std::fs::symlink_metadata(root.join(head)).is_ok()) {
        tensors.note(format!(
            "a prediction head lies beside it (`{head}`): it belongs to the task, and goes along only where the adapter stays one of \
             AdapterHub by itself"
        ));
    }
    Ok(Opened::new(root, &ADAPTERHUB, config, tensors, modules))
}

/// Whether a library of this version multiplied by nothing, whatever its config says: before 1.1 the loader takes α for r.
fn scaled_by_one(version: &str) -> bool {
    let Some(version) = version.strip_prefix("adapters.") else { return false };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) < (1, 1)
}

fn unknown(path: &str, stored: Stored) -> Module {
    Module { path: path.to_owned(), nesting: 0, change: Change::Unknown(stored) }
}

/// Module and role of a LoRA's key, the adapter's name left out.
fn lora_key(key: &str) -> Option<(&str, &str)> {
    let (module, rest) = key.split_once(LORAS)?;
    let (_, role) = rest.split_once('.')?;
    Some((module, role))
}

fn role_of(role: &str, scales: bool) -> Option<Role> {
    Some(match role {
        "lora_A" | "lora_A.weight" => Role::Down,
        "lora_B" | "lora_B.weight" if scales => Role::Part("ia3_l".into()),
        "lora_B" | "lora_B.weight" => Role::Up,
        "m.weight" | "m" => Role::Magnitude,
        _ => return None,
    })
}

/// Place, kind, reason and role of something inserted.
fn inserted_at(key: &str) -> Option<(&str, &'static str, &'static str, &str)> {
    INFIXES.iter().find_map(|(infix, kind, reason)| {
        let (place, rest) =
            if infix.starts_with('.') { key.split_once(infix)? } else { ("", key.strip_prefix(infix)?) };
        Some((place, *kind, *reason, rest.split_once('.').map_or(rest, |(_, role)| role)))
    })
}

fn gate(stored: &Stored) -> Error {
    let what =
        format!("tensor `{}` is a gate that depends on the input, so no weight can hold the change", stored.info.name);
    Error::unsupported(stored.path(), what)
}
