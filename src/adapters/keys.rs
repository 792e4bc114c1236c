//! Whether names of tensors are those of an adapter.

use super::methods::known;
use super::peft_keys;
use crate::formats::Checkpoint;
use crate::naming::Role;
use crate::naming::scheme::{Scheme, schemes};

/// Begins of parts without an underscore that no model names its own parameters by.
const STRONG_PARTS: [&str; 2] = ["diff", "a1"];

/// Whether most tensors are an adapter's, and none is of the layers that it was trained on.
pub fn is_bare_adapter(tensors: &Checkpoint) -> bool {
    // Names of models are many.
    let prefixes: Vec<String> = known().flat_map(|kind| kind.prefixes).map(|prefix| format!("{prefix}_")).collect();
    let can_be = |key: &str| key.contains("lora") || prefixes.iter().any(|prefix| key.contains(prefix));
    let own = tensors.tensors().filter(|info| can_be(&info.name) && is_adapters(&info.name)).count();
    own > 0 && own * 2 >= tensors.count() && !tensors.tensors().any(|info| is_frozen(&info.name))
}

/// Whether a key is one of a layer that an adapter was trained on.
pub fn is_frozen(key: &str) -> bool {
    key.contains(".base_layer.")
}

/// The scheme of a key, if it is an adapter's beyond doubt.
pub fn scheme_of(key: &str) -> Option<&'static Scheme> {
    schemes().iter().find(|scheme| scheme.parse(key).is_some_and(|key| is_strong(&key.role) || scheme.is_flattened()))
}

/// Whether no other part of a model has such a name.
pub fn is_adapters(key: &str) -> bool {
    scheme_of(key).is_some() || is_strong(&peft_keys::parse(key).role)
}

/// Whether a role is one that only adapters have.
pub fn is_strong(role: &Role) -> bool {
    match role {
        Role::Down | Role::Up | Role::EmbeddingDown | Role::EmbeddingUp => true,
        Role::Part(name) => {
            STRONG_PARTS.iter().any(|part| name.starts_with(part)) || name.contains('_') && name != "dora_scale"
        }
        _ => false,
    }
}
