//! The same dialect in a file of its own: another container, another dtype.

use std::path::PathBuf;

use serde_json::Value;

use super::dialect::{Dialect, Form};
use super::files::Files;
use super::peft::write::cast;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::{Adapter, AlphaFrom};
use crate::error::Result;
use crate::formats::{Stored, json};
use crate::tensor::Float;

/// What stands for the dialect that an adapter has, and for checkpoints.
pub const SAFETENSORS: Dialect = Dialect { name: "safetensors", title: "safetensors", ..Dialect::PLAIN };

/// Whether an adapter's own files say all that was read: nothing was told, and no config counts that would not be written.
pub fn is_whole(adapter: &Adapter) -> bool {
    let writes_config = Dialect::of(adapter.dialect).form == Form::Directory;
    let is_config = matches!(adapter.config.alpha_from, Some(AlphaFrom::File(_)));
    adapter.is_self_contained() && (writes_config || !is_config)
}

/// Tensors, config and metadata as they are.
///
/// # Errors
/// When a config beside the weights cannot be read.
pub fn write(adapter: &Adapter, float: Option<Float>) -> Result<Files> {
    let dialect = Dialect::of(adapter.dialect);
    let is_directory = dialect.form == Form::Directory;
    let own = if is_directory { dialect } else { &SAFETENSORS };
    let mut files = Files {
        metadata: adapter.tensors.files()[0].header.metadata.clone(),
        single: !is_directory || !adapter.config.path.ends_with(CONFIG_NAME),
        ..Files::of(own, &[])
    };
    files.hashed = files.metadata.iter().any(|(key, _)| key.starts_with("sshs_") || key == "modelspec.hash_sha256");
    if files.metadata.is_empty() {
        files.metadata.push(("format".into(), "pt".into()));
    }
    for stored in adapter.tensors.all() {
        files.tensors.push((
            (dialect.key_of_today)(&stored.info.name),
            stored.info.shape.clone(),
            cast(&stored, wanted(&stored, float)),
        ));
    }
    if !files.single {
        // What Python writes for numbers that JSON does not have means nothing to others.
        let lost = |value: &Value| value.as_str().is_some_and(|text| json::NOT_FINITE.contains(&text));
        let mut config = adapter.config.raw.clone();
        config.values_mut().filter(|value| lost(value)).for_each(|value| *value = Value::Null);
        files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&config)));
        (dialect.beside)(adapter, &mut files)?;
    }
    Ok(files)
}

/// Single numbers such as α keep their dtype: they count too much to be rounded, and take no room.
fn wanted(stored: &Stored, float: Option<Float>) -> Option<Float> {
    float.filter(|_| stored.info.shape.elements().is_some_and(|count| count > 1))
}
