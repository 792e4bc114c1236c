//! torchtune: its own names and order of rows.

mod read;
mod write;

use super::dialect::Dialect;
use crate::adapters::config::CONFIG_NAME;
use crate::formats::{json, side};

/// The config of the model, which tells the heads.
const MODEL: &str = "config.json";

/// torchtune, known by its names beside a config of PEFT's.
pub const TORCHTUNE: Dialect = Dialect {
    name: "torchtune",
    title: "torchtune",
    files: &["adapter.safetensors", CONFIG_NAME, MODEL],
    wants_config: true,
    lacks: Some("rank, alpha and the numbers of heads"),
    has_tensors: read::is_ours,
    read: Some(read::open),
    write: Some(|pieces, facts| write::write(&pieces, facts)),
    beside: |adapter, files| {
        let model = side::read(&adapter.root, MODEL)?;
        files.beside.extend(model.map(|model| (MODEL.into(), json::render(&model))));
        Ok(())
    },
    ..Dialect::PLAIN
};
