//! PEFT: `adapter_config.json` and keys below `base_model.model.`.

mod lokr;
pub mod new_adapter;
pub mod new_config;
pub(super) mod read;
pub(crate) mod write;

use super::dialect::Dialect;
use crate::adapters::config::{CONFIG_NAME, INVOCATION};

/// PEFT, known by `peft_type` in its config.
pub const PEFT: Dialect = Dialect {
    name: "peft",
    title: "PEFT",
    files: &["adapter_model.safetensors", CONFIG_NAME],
    says: &[INVOCATION],
    declares: true,
    keeps_stacks: true,
    lycoris: false,
    has_config: |raw| raw.contains_key("peft_type"),
    read: Some(read::open),
    write: Some(write::write),
    ..Dialect::PLAIN
};

/// What PEFT puts in front of every key.
const PREFIX: &str = "base_model.model";
