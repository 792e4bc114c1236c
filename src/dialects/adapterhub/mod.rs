//! AdapterHub's library: everything it inserts or changes, with its config and heads.

mod head;
mod places;
mod read;
mod write;

use serde_json::Value;

use super::dialect::Dialect;
use crate::adapters::config::CONFIG_NAME;

pub use head::HEADS;
pub use read::{SHARED_PARAMETERS, key_of, name_in};

/// AdapterHub, known by the architecture in its config.
pub const ADAPTERHUB: Dialect = Dialect {
    name: "adapterhub",
    title: "AdapterHub",
    files: &["adapter.safetensors", CONFIG_NAME, head::CONFIG, HEADS[0], HEADS[1]],
    wants_config: true,
    has_config: |raw| {
        let inner = raw.get("config").is_some_and(Value::is_object);
        inner || raw.contains_key("hidden_size") && raw.contains_key("model_type")
    },
    read: Some(read::open),
    write: Some(|pieces, facts| write::write(&pieces, facts)),
    beside: head::take_along,
    key_of_today: read::key_of_today,
    ..Dialect::PLAIN
};
