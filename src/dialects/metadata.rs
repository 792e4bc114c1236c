//! What the header of a file says of α: `lora_adapter_metadata` of diffusers (PEFT's settings as JSON, with the component in front of
//! every key, or without one as `save_lora_adapter` writes it), or plain numbers under the names that trainers give them.
//!
//! Sources: diffusers 0.42 `loaders/{lora_base,peft}.py`, SGLang `lora/`, sd-scripts `networks/lora.py`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::adapters::config::Scaling;
use crate::adapters::{Change, Module, describe};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, WeightFile, json};
use crate::naming::components;

/// Key of PEFT's settings.
const SETTINGS: &str = "lora_adapter_metadata";

/// Keys of α.
const ALPHAS: [&str; 3] = ["lora_alpha", "network_alpha", "alpha"];

/// The key under which sd-scripts records what it was told: α where nothing else says it.
const TRAINED: &str = "ss_network_alpha";

/// Keys of the rank that α counts for.
const RANKS: [&str; 7] = ["r", "rank", "lora_rank", "network_dim", "lora_dim", "dim", "ss_network_dim"];

/// What stands for the denoiser in files of ComfyUI.
const DENOISER: &str = "diffusion_model";

/// What a header says.
#[derive(Debug)]
pub(crate) struct HeaderAlphas(Vec<Said>);

/// What it says of one component, or of all.
#[derive(Debug)]
struct Said {
    /// Empty for all.
    component: String,
    key: String,
    alpha: Alpha,
}

#[derive(Debug)]
enum Alpha {
    Settings(Box<Scaling>),
    Number { alpha: f64, rank: Option<u64> },
}

impl HeaderAlphas {
    /// What the headers of `tensors` say; `trained` asks what was only recorded of the training as well.
    ///
    /// # Errors
    /// When it cannot be read, or contradicts itself.
    pub fn read(tensors: &Checkpoint, trained: bool) -> Result<Option<Self>> {
        let mut said: Vec<Said> = Vec::new();
        for file in tensors.files() {
            said.extend(settings(file)?);
            for found in numbers(file, trained)? {
                let Some(own) = said.iter().find(|own| own.component == found.component) else {
                    said.push(found);
                    continue;
                };
                let (Alpha::Settings(scaling), Alpha::Number { alpha, .. }) = (&own.alpha, &found.alpha) else {
                    continue;
                };
                if !agree(scaling.alpha(""), *alpha) {
                    let problem = format!("`{}` says alpha {alpha}, `{}` {}", found.key, own.key, scaling.alpha(""));
                    return Err(Error::malformed(file.map.path(), "the header", problem));
                }
            }
        }
        // What is said of a component counts before what is said of all.
        said.sort_by_key(|said| std::cmp::Reverse(said.component.len()));
        Ok((!said.is_empty()).then_some(Self(said)))
    }

    /// α of the module `path`, so that its scale is α over its rank.
    pub fn of(&self, path: &str, rank: u64) -> Option<f64> {
        Some(match &self.serving(path)?.alpha {
            Alpha::Number { alpha, .. } => *alpha,
            Alpha::Settings(scaling) => {
                let alpha = scaling.alpha(below(path));
                if scaling.is_rslora() { alpha * (rank as f64).sqrt() } else { alpha }
            }
        })
    }

    /// The key that says it.
    pub fn key(&self) -> &str {
        &self.0[0].key
    }

    /// Why α says nothing of the scale of `pairs`, paths with ranks, if it does not.
    pub fn ambiguous(&self, pairs: &BTreeMap<String, u64>) -> Option<String> {
        for said in &self.0 {
            let mine = pairs.iter().filter(|(path, _)| self.serving(path).is_some_and(|own| std::ptr::eq(own, said)));
            match &said.alpha {
                Alpha::Settings(scaling) => {
                    let other = |(path, rank): &(&String, &u64)| scaling.rank(below(path)) != **rank;
                    if let Some((path, rank)) = mine.clone().find(other) {
                        let wanted = scaling.rank(below(path));
                        return Some(format!(
                            "the tensors of `{path}` have rank {rank}, its header (`{}`) says {wanted}",
                            said.key
                        ));
                    }
                }
                Alpha::Number { alpha, rank: Some(wanted) } => {
                    if let Some((path, rank)) = mine.clone().find(|(_, rank)| *rank != wanted) {
                        return Some(format!(
                            "the tensors of `{path}` have rank {rank}, its header says {wanted} beside `{}` {alpha}",
                            said.key
                        ));
                    }
                }
                Alpha::Number { alpha, rank: None } => {
                    let ranks: BTreeSet<u64> = mine.map(|(_, rank)| *rank).collect();
                    if ranks.len() > 1 {
                        let ranks: Vec<String> = ranks.iter().map(u64::to_string).collect();
                        return Some(format!(
                            "its header says `{}` {alpha} once, and its pairs have the ranks {}",
                            said.key,
                            ranks.join(", ")
                        ));
                    }
                }
            }
        }
        None
    }

    fn serving(&self, path: &str) -> Option<&Said> {
        self.0.iter().find(|said| serves(&said.component, path))
    }
}

/// The first pair without magnitudes of which the settings in a header say that it is DoRA.
///
/// # Errors
/// When it cannot be read, and when there is one.
pub(super) fn check_magnitudes(tensors: &Checkpoint, modules: &[Module]) -> Result<()> {
    for file in tensors.files() {
        let settings = components_of(file)?;
        let dora = settings.iter().filter(|(_, own)| own.get("use_dora").and_then(Value::as_bool) == Some(true));
        for (component, _) in dora {
            let lacks = modules.iter().find_map(|module| match &module.change {
                Change::Lora(lora) if lora.magnitude.is_none() && serves(component, &module.path) => {
                    Some((module, lora))
                }
                _ => None,
            });
            if let Some((module, lora)) = lacks {
                let problem = format!("`use_dora` is true, `{}` has no `lora_magnitude_vector`", module.path);
                let header = format!("{}: metadata `{SETTINGS}`", file.map.path().display());
                return Err(Error::mismatch(describe(&lora.down), header, problem));
            }
        }
    }
    Ok(())
}

/// Whether what is said of `component` is said of the module `path`; what is said of none, of all.
fn serves(component: &str, path: &str) -> bool {
    let of = |component: &str| path.strip_prefix(component).is_some_and(|rest| rest.starts_with('.'));
    component.is_empty() || of(component) || component == DENOISER && (of("unet") || of("transformer"))
}

/// Whether two numbers are the same α, one of which may have been rounded to 8 bits.
pub(crate) fn agree(left: f64, right: f64) -> bool {
    (left - right).abs() <= left.abs().max(right.abs()) / 256.0
}

/// The path without the name of its component, as PEFT's patterns know it.
fn below(path: &str) -> &str {
    components::split(path).map_or(path, |(_, rest)| rest)
}

/// PEFT's settings, component by component.
fn components_of(file: &WeightFile) -> Result<BTreeMap<String, Map<String, Value>>> {
    let mut parts: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let Some((_, text)) = file.header.metadata.iter().find(|(key, _)| key == SETTINGS) else { return Ok(parts) };
    let at = format!("metadata `{SETTINGS}`");
    let all = json::parse(file.map.path(), &at, text.as_bytes())?;
    for (key, value) in &all {
        let (component, name) = key.split_once('.').unwrap_or(("", key));
        parts.entry(component.to_owned()).or_default().insert(name.to_owned(), value.clone());
    }
    Ok(parts)
}

/// What PEFT's settings say of α.
fn settings(file: &WeightFile) -> Result<Vec<Said>> {
    let mut said = Vec::new();
    for (component, own) in components_of(file)? {
        if own.contains_key("r") && own.contains_key("lora_alpha") {
            let alpha = Alpha::Settings(Box::new(Scaling::read(file.map.path(), &own)?));
            said.push(Said { component, key: SETTINGS.to_owned(), alpha });
        }
    }
    Ok(said)
}

/// Plain numbers.
fn numbers(file: &WeightFile, trained: bool) -> Result<Vec<Said>> {
    let mut alphas: BTreeMap<&str, (&str, f64)> = BTreeMap::new();
    let mut ranks: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, text) in &file.header.metadata {
        let Some((component, name)) = parts_of(key) else { continue };
        if RANKS.contains(&name) {
            ranks.extend(text.trim().parse::<u64>().ok().map(|rank| (component, rank)));
        }
        let is_record = name == TRAINED;
        if !(ALPHAS.contains(&name) || is_record && trained) {
            continue;
        }
        let Some(alpha) = number(text) else {
            if is_record || ["", "none", "null"].contains(&text.trim().to_lowercase().as_str()) {
                continue;
            }
            let problem = format!("must be a finite number, is `{}`", short(text));
            return Err(Error::malformed(file.map.path(), format!("metadata `{key}`"), problem));
        };
        match alphas.get(component) {
            Some((other, own)) if !agree(*own, alpha) => {
                let problem = format!("`{other}` says alpha {own}, `{key}` {alpha}");
                return Err(Error::malformed(file.map.path(), "the header", problem));
            }
            Some(_) => {}
            None => {
                alphas.insert(component, (key, alpha));
            }
        }
    }
    let said = alphas.into_iter().map(|(component, (key, alpha))| Said {
        component: component.to_owned(),
        key: key.to_owned(),
        alpha: Alpha::Number { alpha, rank: ranks.get(component).copied() },
    });
    Ok(said.collect())
}

/// Component and name of a key; `None` where what stands in front is no component.
fn parts_of(key: &str) -> Option<(&str, &str)> {
    match key.rsplit_once('.') {
        None => Some(("", key)),
        Some((component, name)) if components::ADAPTED.contains(&component) || component == DENOISER => {
            Some((component, name))
        }
        Some(_) => None,
    }
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|alpha| alpha.is_finite())
}

fn short(text: &str) -> String {
    const SHOWN: usize = 40;
    text.chars().take(SHOWN).collect()
}
