//! What training tools put around a model, as it shows in the names of its tensors: `torch.compile`, FSDP, activation
//! checkpointing, DDP, DeepSpeed and PEFT.
//!
//! A name without its wrappers is the one that the model's own class gives the tensor. A PEFT model that was saved as it is in
//! memory holds its frozen layers as `base_layer` and its adapters beside them; these are no tensors of the model.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use super::peft_keys;
use crate::naming::Role;

/// Modules that wrap others wherever they stand, and mean nothing for what the key belongs to (FSDP, activation checkpointing,
/// `torch.compile` in torch 2; Lightning).
const WRAPPERS: [&str; 4] = ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "_forward_module"];

/// Wrappers around the whole model that training tools leave in front of keys, in the order they are taken off.
pub const FRONTS: [&str; 3] = ["module.", "base_model.model.", "base_model."];

/// The frozen modules inside those that PEFT puts in their place.
const FROZEN: [&str; 2] = ["base_layer", "original_module"];

/// The names of a model without what was wrapped around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwrapped {
    /// By position; `None` is a tensor of an adapter that lies inside.
    pub names: Vec<Option<String>>,
    /// What stood in front of all names.
    pub front: String,
    /// The names of the adapters inside.
    pub adapters: BTreeSet<String>,
}

impl Unwrapped {
    /// Tensors that belong to adapters inside.
    pub fn left_out(&self) -> usize {
        self.names.iter().filter(|name| name.is_none()).count()
    }
}

/// A key without the modules that wrap others wherever they stand.
pub fn without_wrappers(key: &str) -> Cow<'_, str> {
    if !WRAPPERS.iter().any(|wrapper| key.contains(wrapper)) {
        return key.into();
    }
    key.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect::<Vec<&str>>().join(".").into()
}

/// The names `keys` of a model without wrappers, or `None` where there are none, or two names would become one.
pub fn unwrap(keys: &[&str]) -> Option<Unwrapped> {
    let mut bare: Vec<Cow<'_, str>> = keys.iter().map(|key| without_wrappers(key)).collect();
    while let Some(front) =
        FRONTS.iter().find(|front| !bare.is_empty() && bare.iter().all(|key| key.starts_with(**front)))
    {
        bare.iter_mut().for_each(|key| *key = key[front.len()..].to_owned().into());
    }
    let front = front(keys, &bare);
    let mut adapters = BTreeSet::new();
    let names: Vec<Option<String>> = if bare.iter().any(|key| has_frozen(key)) {
        bare.iter().map(|key| of_model(key, &mut adapters)).collect()
    } else {
        bare.into_iter().map(|key| Some(key.into_owned())).collect()
    };
    let changed = names.iter().zip(keys).any(|(name, key)| name.as_deref() != Some(*key));
    let mut seen = HashSet::new();
    let distinct = names.iter().flatten().all(|name| seen.insert(name.as_str()));
    (changed && distinct && !seen.is_empty()).then(|| Unwrapped { names: names.clone(), front, adapters })
}

/// What every key has in front of its bare name.
fn front(keys: &[&str], bare: &[Cow<'_, str>]) -> String {
    let fronts = keys.iter().zip(bare).filter_map(|(key, bare)| key.strip_suffix(bare.as_ref()));
    let shortest = fronts.min_by_key(|front| front.len()).unwrap_or_default();
    if keys.iter().all(|key| key.starts_with(shortest)) { shortest.to_owned() } else { String::new() }
}

fn has_frozen(key: &str) -> bool {
    FROZEN.iter().any(|frozen| key.contains(frozen)) && key.split('.').any(|segment| FROZEN.contains(&segment))
}

/// The name that a tensor of a PEFT model has in the model itself; `None` for a tensor of an adapter, whose name is noted.
fn of_model(key: &str, adapters: &mut BTreeSet<String>) -> Option<String> {
    let parsed = peft_keys::parse(key);
    let own = |parameter: &str| {
        let module = &parsed.module;
        if module.is_empty() { parameter.to_owned() } else { format!("{module}.{parameter}") }
    };
    let saved = key.split('.').skip_while(|segment| *segment != "modules_to_save").nth(1);
    match (&parsed.role, saved) {
        (Role::Whole(_), Some(name)) => {
            adapters.insert(name.to_owned());
            None
        }
        (Role::Whole(_), None) if !has_frozen(key) => Some(key.to_owned()),
        (Role::Whole(parameter) | Role::Frozen(parameter), _) => Some(own(parameter)),
        _ => {
            // `….lora_A.default.weight`: what is left of the role and of the parameter.
            let rest = key
                .get(parsed.module.len()..)
                .unwrap_or_default()
                .rsplit('.')
                .find(|segment| !["weight", "bias"].contains(segment) && !segment.is_empty());
            adapters.extend(rest.filter(|name| !name.starts_with("lora_")).map(str::to_owned));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwrapped(keys: &[&str]) -> (Vec<Option<String>>, String, Vec<String>) {
        let Unwrapped { names, front, adapters } = unwrap(keys).unwrap();
        (names, front, adapters.into_iter().collect())
    }

    fn some(names: &[&str]) -> Vec<Option<String>> {
        names.iter().map(|name| Some((*name).to_owned())).collect()
    }

    #[test]
    fn every_wrapper_comes_off_wherever_it_stands() {
        for wrapper in WRAPPERS {
            let keys = [format!("{wrapper}.norm.weight"), format!("{wrapper}.l.0.{wrapper}.q.weight")];
            let (names, front, _) = unwrapped(&[&keys[0], &keys[1]]);
            assert_eq!((names, front), (some(&["norm.weight", "l.0.q.weight"]), format!("{wrapper}.")));
        }
    }

    #[test]
    fn a_front_comes_off_where_all_names_have_it() {
        for front in FRONTS {
            let keys = [format!("{front}norm.weight"), format!("{front}q.weight")];
            let (names, found, _) = unwrapped(&[&keys[0], &keys[1]]);
            assert_eq!((names, found), (some(&["norm.weight", "q.weight"]), front.to_owned()));
            assert_eq!(unwrap(&[&keys[0], "q.weight"]), None);
        }
        assert_eq!(unwrapped(&["module._orig_mod.base_model.model.q.weight"]).0, some(&["q.weight"]));
    }

    #[test]
    fn a_plain_model_is_left_alone() {
        assert_eq!(unwrap(&["model.q.weight", "lm_head.weight", "model.q.lora_A.weight"]), None);
        assert_eq!(unwrap(&[]), None);
        assert_eq!(unwrap(&["_orig_mod.q.weight", "q.weight"]), None, "two names would become one");
    }

    #[test]
    fn adapters_inside_are_told_from_the_model() {
        let (names, _, adapters) = unwrapped(&[
            "base_model.model.model.q.base_layer.weight",
            "base_model.model.model.q.base_layer.bias",
            "base_model.model.model.q.lora_A.vision.weight",
            "base_model.model.model.q.lora_B.speech.weight",
            "base_model.model.model.norm.weight",
            "base_model.model.lm_head.original_module.weight",
            "base_model.model.lm_head.modules_to_save.default.weight",
        ]);
        let bare = ["model.q.weight", "model.q.bias", "", "", "model.norm.weight", "lm_head.weight", ""];
        let wanted = bare.map(|name| (!name.is_empty()).then(|| name.to_owned()));
        assert_eq!(names, wanted);
        assert_eq!(adapters, ["default", "speech", "vision"]);
    }
}
