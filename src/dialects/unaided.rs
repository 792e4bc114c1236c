//! Files that say everything themselves: kohya and its kin, ComfyUI, diffusers, XLabs. Every key is read by the scheme it is
//! written in; α stands beside the factors, or in `lora_adapter_metadata`, or is the rank.

use std::collections::BTreeMap;
use std::path::Path;

use foldhash::HashMap;
use serde_json::{Map, Value};

use super::alphas::{Alphas, Survey, TELL};
use super::dialect::Dialect;
use super::mistral::MISTRAL;
use super::opened::{Opened, Source};
use super::{found, metadata, mistral, recognise};
use crate::adapters::config::{AdapterConfig, CONFIG_NAME, Scaling};
use crate::adapters::options::Chosen;
use crate::adapters::{AlphaFrom, Fallback, Gathered, gather_with, has_magnitudes, peft_keys};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored, json};
use crate::naming::scheme::schemes;
use crate::naming::{Key, Role, arch, components};

/// What lies beside such a file.
pub(crate) enum Beside {
    /// Nothing that says more.
    Nothing,
    /// PEFT's config.
    Peft(Box<AdapterConfig>),
    /// What mistral-finetune says of its LoRA.
    Mistral(Map<String, Value>),
}

impl Beside {
    /// What the config of a model says of the adapter that is chosen, where the model holds its adapters itself (Phi-4-multimodal:
    /// `vision_lora`).
    pub fn of_model(root: &Path, chosen: &Chosen) -> Result<Self> {
        const MODEL: &str = "config.json";
        let path = root.join(MODEL);
        let Some(name) = chosen.name().filter(|_| path.is_file()) else { return Ok(Self::Nothing) };
        let mut raw = json::read_object(&path)?;
        let Some(Value::Object(own)) = raw.remove(&format!("{name}_lora")) else { return Ok(Self::Nothing) };
        let scaling = Scaling::read(&path, &own)?;
        Ok(Self::Peft(Box::new(AdapterConfig::synthetic(&path, "LORA", Some(scaling)))))
    }
}

pub(crate) fn open(source: Source<'_>, beside: Beside) -> Result<Opened> {
    let Source { root, tensors, chosen, options, .. } = source;
    let mut dialects: BTreeMap<&str, usize> = BTreeMap::new();
    let mut keyed = Vec::new();
    for stored in tensors.all() {
        let Some(name) = chosen.key(&stored.info.name) else { continue };
        let (dialect, key) = read_key(&name);
        if let Some(dialect) = dialect {
            *dialects.entry(dialect).or_default() += 1;
        }
        keyed.push((key, stored));
    }
    if let Some(problem) = found::foreign(&tensors) {
        return Err(problem);
    }
    let Some((dialect, _)) = dialects.iter().max_by_key(|(_, count)| **count) else {
        return Err(found::no_names(&tensors));
    };
    let dialect = Dialect::of(dialect);
    if let Some(what) = dialect.lacks {
        let who = dialect.title;
        let what = format!("has the names of {who}, and no `{CONFIG_NAME}` beside it: {what} are unknown");
        return Err(Error::unsupported(tensors.root(), what));
    }
    unflatten(&mut keyed);
    gather_denoiser(&mut keyed);
    let survey = Survey::of(&keyed)?;
    let alphas = match &beside {
        Beside::Nothing => Alphas::decide(&tensors, &survey, None, options),
        Beside::Peft(config) => Alphas::decide(&tensors, &survey, Some(config), options),
        Beside::Mistral(lora) => of_mistral(root, lora, &survey),
    };
    let is_lost = alphas.as_ref().is_ok_and(Alphas::is_missing) && dialect.declares && lost_its_config(&keyed);
    let alphas = if is_lost { Err(lost(&tensors, &survey)) } else { alphas };
    let path = tensors.files().first().map_or(root, |file| file.map.path()).to_path_buf();
    let (dialect, mut config) = match beside {
        Beside::Nothing => (dialect, AdapterConfig::synthetic(&path, "LORA", None)),
        Beside::Peft(config) => (dialect, *config),
        Beside::Mistral(_) => (&MISTRAL, AdapterConfig::synthetic(&root.join(mistral::CONFIG), "LORA", None)),
    };
    let modules = alphas.and_then(|alphas| {
        if !alphas.is_told() {
            check_ranks(&config, &survey)?;
        }
        let of = |path: &str, rank| alphas.of(Some(&config), path, rank);
        let fallback = Fallback { of: &of, forced: alphas.forced };
        let gathered = gather_with(keyed.into_iter(), &config, dialect.name, true, Some(&fallback))?;
        let Gathered { modules, scales, .. } = gathered;
        metadata::check_magnitudes(&tensors, &modules)?;
        config.scaling = Some(Scaling::exact(scales));
        config.dora |= has_magnitudes(&modules);
        let is_scaled = !survey.pairs.is_empty() || survey.has_own() || alphas.from != AlphaFrom::Rank;
        config.alpha_from = Some(alphas.from).filter(|_| is_scaled);
        Ok(modules)
    });
    let root = tensors.root().to_path_buf();
    Ok(Opened::new(&root, dialect, config, tensors, modules))
}

fn of_mistral(root: &Path, lora: &Map<String, Value>, survey: &Survey) -> Result<Alphas> {
    for (module, rank) in &survey.pairs {
        mistral::check_rank(root, lora, module, *rank)?;
    }
    Ok(Alphas::scale(mistral::scale(root, lora)?, mistral::CONFIG))
}

/// The ranks of a config are those of the tensors.
fn check_ranks(config: &AdapterConfig, survey: &Survey) -> Result<()> {
    let Some(scaling) = &config.scaling else { return Ok(()) };
    match survey.pairs.iter().find(|(path, rank)| scaling.rank(path) != **rank) {
        None => Ok(()),
        Some((path, rank)) => {
            let said = scaling.rank(path);
            let problem =
                format!("the tensors of `{path}` have rank {rank}, the config says {said}: the scale is ambiguous");
            let config = config.path.display().to_string();
            Err(Error::mismatch(format!("module `{path}`"), config, problem)
                .hint("correct `r` or `rank_pattern`; alpha counts for the rank the adapter was trained with"))
        }
    }
}

/// Whether α of some module stands in a config of PEFT's that is not there.
fn lost_its_config(keyed: &[(Key, Stored)]) -> bool {
    let is_llm = |key: &Key| components::split(&key.module).is_none() && !components::is_diffusion(&key.module);
    let scaled = |key: &Key, stored: &Stored| match &key.role {
        Role::Down => true,
        Role::Part(name) => {
            (name.starts_with("hada_") || name.starts_with("lokr_")) && stored.info.name.starts_with("base_model.")
        }
        _ => false,
    };
    keyed.iter().any(|(key, stored)| scaled(key, stored) && is_llm(key))
}

/// The refusal of PEFT's tensors without their config.
fn lost(tensors: &Checkpoint, survey: &Survey) -> Error {
    let what = match survey.pairs.len() {
        0 => format!("is an adapter of PEFT without its `{CONFIG_NAME}`: its alpha is unknown"),
        1 => format!(
            "is a PEFT LoRA (one pair, rank {}) without its `{CONFIG_NAME}`: its alpha is unknown",
            survey.ranks()
        ),
        pairs => format!(
            "is a PEFT LoRA ({pairs} pairs, rank {}) without its `{CONFIG_NAME}`: its alpha is unknown",
            survey.ranks()
        ),
    };
    Error::unsupported(tensors.root(), what)
        .hint(format!("lay the config beside it, or give the `lora_alpha` it was trained with: {TELL}"))
}

/// Writes flattened names as paths where a table of architectures knows exactly one; the others are left to the base's own keys.
fn unflatten(keyed: &mut [(Key, Stored)]) {
    let (mut flat, mut seen): (Vec<&str>, HashMap<&str, usize>) = (Vec::new(), HashMap::default());
    let mut places = Vec::with_capacity(keyed.len());
    for (key, _) in keyed.iter() {
        let module = key.module.as_str();
        places.push(match flat.last() {
            _ if module.contains('.') => None,
            // The tensors of a module mostly stand together.
            Some(last) if *last == module => Some(flat.len() - 1),
            _ => Some(*seen.entry(module).or_insert_with(|| {
                flat.push(module);
                flat.len() - 1
            })),
        });
    }
    let known = arch::unflatten_all(&flat);
    for ((key, _), place) in keyed.iter_mut().zip(places) {
        if let Some(Ok(Some(path))) = place.map(|place| &known[place]) {
            key.module.clone_from(path);
        }
    }
    for (key, _) in keyed.iter_mut().filter(|(key, _)| key.module.ends_with(|c: char| c.is_ascii_digit())) {
        if let Some(path) = arch::part_of(&key.module) {
            key.module = path;
        }
    }
}

/// Puts what stands beside the blocks of a denoiser, and no component in front of it, below that denoiser.
fn gather_denoiser(keyed: &mut [(Key, Stored)]) {
    let Some(denoiser) = components::of_blocks(keyed.iter().map(|(key, _)| key.module.as_str())) else { return };
    for (key, _) in keyed.iter_mut().filter(|(key, _)| arch::flattened(&key.module).is_none()) {
        key.module = components::below(denoiser, &key.module);
    }
}

/// The scheme a key is written in, and what it says. A key of no scheme is an unknown part of the adapter.
fn read_key(name: &str) -> (Option<&'static str>, Key) {
    for scheme in schemes() {
        let Some(mut key) = scheme.parse(name) else { continue };
        if scheme.is_flattened() {
            return (Some(scheme.name()), key);
        }
        let bare = peft_keys::parse(name);
        let wrapped = name.starts_with("base_model.model.");
        if wrapped && matches!(bare.role, Role::Down | Role::Up | Role::UpBias | Role::Magnitude) {
            key = bare;
        }
        key.module = components::unwrapped(&key.module).unwrap_or_else(|| components::with_component(&key.module));
        let dialect = match scheme.name() {
            "diffusers" if wrapped => "peft",
            "diffusers" if name.starts_with("diffusion_model.") => "comfyui",
            "diffusers" if recognise::is_pefts(name) && !components::is_diffusion(&key.module) => "peft",
            name => name,
        };
        return (Some(dialect), key);
    }
    let key = peft_keys::parse(name);
    let dialect = matches!(key.role, Role::Down | Role::Up | Role::Part(_)).then_some("peft");
    match key.role {
        // A parameter under its own name: whole, as the norms of a control LoRA.
        Role::Whole(parameter) => {
            let module = components::with_component(&key.module);
            (None, Key { module, nesting: 0, role: Role::Whole(parameter) })
        }
        _ => (dialect, Key { module: components::with_component(&key.module), ..key }),
    }
}
