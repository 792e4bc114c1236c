//! The keys of a PEFT file (PEFT 0.21: `peft/utils/save_and_load.py`).
//!
//! `base_model.model.<module path>[.base_layer…].<role>`, where the role is one of the suffixes below. Files of older
//! versions and third parties leave the prefix out, keep the adapter's name (`lora_A.default.weight`) or the in-memory
//! wrappers (`modules_to_save.default`).

use std::borrow::Cow;
use std::sync::LazyLock;

use foldhash::HashSet;

use super::methods::known;
use super::wrappers::{FRONTS, without_wrappers};
use crate::naming::{Key, Role};

/// What the methods say of the names of their tensors.
struct Names {
    prefixes: HashSet<&'static str>,
    segments: HashSet<&'static str>,
    parameters: HashSet<&'static str>,
}

static NAMES: LazyLock<Names> = LazyLock::new(|| Names {
    prefixes: known().flat_map(|kind| kind.prefixes).copied().collect(),
    segments: known().flat_map(|kind| kind.segments).copied().collect(),
    parameters: known().flat_map(|kind| kind.parameters).copied().collect(),
});

/// Whether a segment is that of a tensor of a method with prefixes of its own.
fn is_of_method(segment: &str) -> bool {
    segment.split_once('_').is_some_and(|(method, _)| NAMES.prefixes.contains(method))
}

/// The wrapper around a frozen layer.
const FROZEN: &str = "base_layer";

/// Takes a key apart; every key has some meaning, [`Role::Whole`] if nothing else.
pub fn parse(key: &str) -> Key {
    let bare = without_wrappers(key);
    let mut rest = bare.as_ref();
    for prefix in FRONTS {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let segments: Vec<&str> = rest.split('.').collect();
    let (end, role) = role_of(&segments);
    let path = &segments[..end];
    let wrapper = |segment: &&&str| **segment == FROZEN;
    let nesting = path.iter().rev().take_while(wrapper).count();
    let module = if path.contains(&FROZEN) {
        path.iter().filter(|segment| !wrapper(segment)).copied().collect::<Vec<&str>>().join(".")
    } else {
        let dots = path.len().saturating_sub(1);
        rest[..path.iter().map(|segment| segment.len()).sum::<usize>() + dots].to_owned()
    };
    // A wrapper at the end of the path of a plain parameter means: saved along with its frozen layer.
    let role = match role {
        Role::Whole(parameter) if nesting > 0 => Role::Frozen(parameter),
        role => role,
    };
    Key { module, nesting, role }
}

/// Parts of LoRA after which an adapter's name can stand.
const NAMED: [&str; 6] =
    ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "trainable_tokens_delta"];

/// What an adapter's name is not, nor any of the methods' own parameters.
const PARAMETERS: [&str; 2] = ["weight", "bias"];

/// The adapter's name in a key, where it still stands there: `reference` in `a.lora_A.reference.weight`.
pub fn adapter_name(key: &str) -> Option<&str> {
    name_at(key).map(|(from, to)| &key[from..to])
}

/// The key without the adapter's name. A wrapper of modules that are saved whole keeps it: a path follows there.
pub fn without_name(key: &str) -> Cow<'_, str> {
    match name_at(key) {
        Some((from, to)) if !key[..from].ends_with("modules_to_save.") => {
            format!("{}{}", &key[..from - 1], &key[to..]).into()
        }
        _ => key.into(),
    }
}

/// Where the adapter's name begins and ends.
fn name_at(key: &str) -> Option<(usize, usize)> {
    let mut end = key.len();
    let mut after: Option<(usize, usize)> = None;
    let mut last = true;
    while let Some(dot) = key[..end].rfind('.') {
        let name = after.map(|(from, to)| &key[from..to]);
        let segment = &key[dot + 1..end];
        let is_name = name.is_some_and(|name| !PARAMETERS.contains(&name) && !NAMES.parameters.contains(name));
        let is_number = name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let is_whole = segment == "modules_to_save";
        let is_of_method = is_of_method(segment);
        if NAMED.contains(&segment) || NAMES.segments.contains(segment) || is_whole || is_of_method {
            // A module that is saved whole has a parameter behind the name.
            let fits = is_name && !(is_of_method && is_number) && !(is_whole && last);
            return after.filter(|_| fits);
        }
        last = after.is_none();
        after = Some((dot + 1, end));
        end = dot;
    }
    None
}

/// Where the module path ends, and what follows it.
fn role_of(segments: &[&str]) -> (usize, Role) {
    for (at, segment) in segments.iter().enumerate().rev() {
        // What may follow a role: the adapter's name, `weight`, or both.
        let rest = &segments[at + 1..];
        let last = rest.last().copied();
        let role = match *segment {
            "lora_A" if plain(rest) => Role::Down,
            "lora_B" if last == Some("bias") => Role::UpBias,
            "lora_B" if plain(rest) => Role::Up,
            "lora_embedding_A" if plain(rest) => Role::EmbeddingDown,
            "lora_embedding_B" if plain(rest) => Role::EmbeddingUp,
            "lora_magnitude_vector" if plain(rest) => Role::Magnitude,
            "trainable_tokens_delta" if rest.len() <= 1 => {
                let end = if at > 0 && segments[at - 1] == "token_adapter" { at - 1 } else { at };
                return (end, Role::TokenRows);
            }
            // In-memory wrapper of a module that is saved whole: its adapter's name and the parameter follow.
            "modules_to_save" if !rest.is_empty() => {
                let named = if rest.len() > 1 { &rest[1..] } else { rest };
                return split_whole(segments, at, named, Role::Whole);
            }
            "original_module" if !rest.is_empty() => return split_whole(segments, at, rest, Role::Frozen),
            "ln_tuning_layers" if !rest.is_empty() => {
                return split_whole(segments, at, &rest[rest.len() - 1..], Role::Whole);
            }
            other if NAMES.segments.contains(other) && plain(rest) => Role::Part(other.to_owned()),
            other if is_of_method(other) => {
                let inner = rest.iter().filter(|segment| !["weight", "default"].contains(*segment));
                Role::Part(std::iter::once(&other).chain(inner).copied().collect::<Vec<_>>().join("."))
            }
            other if other.starts_with("lora_") => Role::Unknown(segments[at..].join(".")),
            _ => continue,
        };
        return (at, role);
    }
    let end = segments.len().saturating_sub(1);
    (end, Role::Whole(segments[end].to_owned()))
}

/// `weight`, an adapter's name, a name and `weight`, or nothing.
fn plain(rest: &[&str]) -> bool {
    matches!(rest, [] | [_] | [_, "weight"])
}

/// A wrapped module can be a whole tree: the parameter keeps its path below the wrapper.
fn split_whole(segments: &[&str], at: usize, below: &[&str], role: fn(String) -> Role) -> (usize, Role) {
    debug_assert!(at < segments.len(), "the wrapper is one of the segments");
    (at, role(below.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(key: &str) -> (String, usize, Role) {
        let Key { module, nesting, role } = parse(key);
        (module, nesting, role)
    }

    #[test]
    fn names_of_adapters_are_found_and_left_out() {
        for (key, name, rest) in [
            ("base_model.model.a.lora_A.weight", None, "base_model.model.a.lora_A.weight"),
            ("base_model.model.a.lora_B.bias", None, "base_model.model.a.lora_B.bias"),
            ("a.lora_A.default.weight", Some("default"), "a.lora_A.weight"),
            ("a.lora_B.my_ref.bias", Some("my_ref"), "a.lora_B.bias"),
            ("a.lora_A.1.weight", Some("1"), "a.lora_A.weight"),
            ("a.lora_embedding_A.speech", Some("speech"), "a.lora_embedding_A"),
            ("a.lora_magnitude_vector.x.weight", Some("x"), "a.lora_magnitude_vector.weight"),
            ("a.ia3_l.mine", Some("mine"), "a.ia3_l"),
            ("a.lily_A.0.weight", None, "a.lily_A.0.weight"),
            ("a.oft_R.b.weight", Some("b"), "a.oft_R.weight"),
            ("h.modules_to_save.x.dense.bias", Some("x"), "h.modules_to_save.x.dense.bias"),
            ("h.modules_to_save.weight", None, "h.modules_to_save.weight"),
            ("oft_unet_x.alpha", None, "oft_unet_x.alpha"),
            ("lora_unet_x.lora_down.weight", None, "lora_unet_x.lora_down.weight"),
            ("a.base_layer.weight", None, "a.base_layer.weight"),
            ("foo", None, "foo"),
        ] {
            assert_eq!((adapter_name(key), without_name(key).as_ref()), (name, rest), "{key}");
        }
    }

    #[test]
    fn every_kind_of_key_is_understood() {
        let whole = |name: &str| Role::Whole(name.into());
        let frozen = |name: &str| Role::Frozen(name.into());
        for (key, module, nesting, role) in [
            ("base_model.model.model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj", 0, Role::Down),
            ("base_model.model.a.lora_B.weight", "a", 0, Role::Up),
            ("a.b.lora_A.weight", "a.b", 0, Role::Down),
            ("base_model.model.a.lora_A.default.weight", "a", 0, Role::Down),
            ("base_model.model.a.lora_B.my_name.weight", "a", 0, Role::Up),
            ("base_model.model.a.lora_B.bias", "a", 0, Role::UpBias),
            ("base_model.model.a.lora_B.default.bias", "a", 0, Role::UpBias),
            ("base_model.model.emb.lora_embedding_A", "emb", 0, Role::EmbeddingDown),
            ("base_model.model.emb.lora_embedding_B.default", "emb", 0, Role::EmbeddingUp),
            ("base_model.model.a.lora_magnitude_vector", "a", 0, Role::Magnitude),
            ("base_model.model.a.lora_magnitude_vector.weight", "a", 0, Role::Magnitude),
            ("base_model.model.a.lora_magnitude_vector.default.weight", "a", 0, Role::Magnitude),
            ("base_model.model.experts.base_layer.lora_A.weight", "experts", 1, Role::Down),
            ("base_model.model.experts.base_layer.base_layer.lora_B.weight", "experts", 2, Role::Up),
            ("base_model.model.attn.base_layer.out_proj.lora_A.weight", "attn.out_proj", 0, Role::Down),
            ("base_model.model.emb.base_layer.weight", "emb", 1, frozen("weight")),
            ("base_model.model.c_attn.base_layer.bias", "c_attn", 1, frozen("bias")),
            ("base_model.model.lm_head.weight", "lm_head", 0, whole("weight")),
            ("base_model.model.head.modules_to_save.default.weight", "head", 0, whole("weight")),
            ("base_model.model.head.modules_to_save.default.dense.bias", "head", 0, whole("dense.bias")),
            ("base_model.model.head.modules_to_save.weight", "head", 0, whole("weight")),
            ("base_model.model.head.original_module.weight", "head", 0, frozen("weight")),
            ("base_model.model.emb.token_adapter.trainable_tokens_delta", "emb", 0, Role::TokenRows),
            ("base_model.model.emb.trainable_tokens_delta.default", "emb", 0, Role::TokenRows),
            ("module.base_model.model.a.lora_A.weight", "a", 0, Role::Down),
            ("_orig_mod.base_model.model._orig_mod.a.lora_A.weight", "a", 0, Role::Down),
            (
                "base_model.model.l.0._fsdp_wrapped_module.a._checkpoint_wrapped_module.lora_B.x.weight",
                "l.0.a",
                0,
                Role::Up,
            ),
            ("base_model.model.a.lora_diag", "a", 0, Role::Unknown("lora_diag".into())),
            ("foo", "", 0, whole("foo")),
        ] {
            assert_eq!(parsed(key), (module.to_owned(), nesting, role), "{key}");
        }
    }
}
