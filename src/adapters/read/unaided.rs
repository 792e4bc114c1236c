//! Files that say everything themselves: kohya and its kin, ComfyUI, diffusers, XLabs. Every key is read by the scheme it is
//! written in; α stands beside the factors, or in `lora_adapter_metadata`, or is the rank.

use std::collections::BTreeMap;
use std::path::Path;

use foldhash::HashMap;

use super::{Opened, metadata, recognise};
use crate::adapters::config::{AdapterConfig, Scaling};
use crate::adapters::gather::{Gathered, gather, has_magnitudes};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored};
use crate::naming::peft::Key;
use crate::naming::scheme::schemes;
use crate::naming::{Role, arch, components, peft};

/// How many keys of an unknown file are shown.
const SHOWN: usize = 3;

pub(super) fn open(root: &Path, tensors: Checkpoint) -> Result<Opened> {
    let mut dialects: BTreeMap<&str, usize> = BTreeMap::new();
    let mut keyed = Vec::new();
    for stored in tensors.all() {
        let (dialect, key) = read_key(&stored.info.name);
        if let Some(dialect) = dialect {
            *dialects.entry(dialect).or_default() += 1;
        }
        keyed.push((key, stored));
    }
    let Some((dialect, _)) = dialects.iter().max_by_key(|(_, count)| **count) else { return Err(unknown(&tensors)) };
    let dialect: &'static str =
        schemes().iter().map(|scheme| scheme.name()).find(|name| name == dialect).unwrap_or("peft");
    match dialect {
        "mlx" => return Err(lacks_config(&tensors, "MLX", "`scale`")),
        "torchtune" => return Err(lacks_config(&tensors, "torchtune", "rank, alpha and the numbers of heads")),
        _ => {}
    }
    unflatten(&mut keyed);
    gather_denoiser(&mut keyed);
    let is_llm = |key: &Key| components::split(&key.module).is_none() && !components::is_diffusion(&key.module);
    if dialect == "peft" && keyed.iter().any(|(key, _)| matches!(key.role, Role::Down) && is_llm(key)) {
        // Says that the config is missing, and with it the scale.
        AdapterConfig::read(root)?;
    }
    let path = tensors.files().first().map_or(root, |file| file.map.path()).to_path_buf();
    let mut config = AdapterConfig::synthetic(&path, "LORA", None);
    let modules = gather(keyed.into_iter(), &config, dialect, true).and_then(|gathered| {
        let Gathered { modules, mut scales, .. } = gathered;
        metadata::rescale(&tensors, &mut scales)?;
        config.scaling = Some(Scaling::exact(scales));
        config.dora = has_magnitudes(&modules);
        Ok(modules)
    });
    let root = tensors.root().to_path_buf();
    Ok(Opened { root, dialect, config, tensors, modules })
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
        let bare = peft::parse(name);
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
    let key = peft::parse(name);
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

fn unknown(tensors: &Checkpoint) -> Error {
    let keys: Vec<String> = tensors.tensors().take(SHOWN).map(|info| format!("`{}`", info.name)).collect();
    let what =
        format!("holds {} tensors and none with the name of an adapter's: {} …", tensors.count(), keys.join(", "));
    Error::unsupported(tensors.root(), what).hint(
        "known are PEFT, kohya, LyCORIS, ComfyUI, diffusers, XLabs, MLX, torchtune and AdapterHub; the config of the first and \
         the last two lies beside the weights",
    )
}

fn lacks_config(tensors: &Checkpoint, who: &str, what: &str) -> Error {
    let what = format!("has the names of {who}, and no `adapter_config.json` beside it: {what} are unknown");
    Error::unsupported(tensors.root(), what)
}
