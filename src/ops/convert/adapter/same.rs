//! The same dialect in a file of its own: another container, another dtype.

use std::path::PathBuf;

use super::files::Files;
use super::peft::cast;
use crate::adapters::Adapter;
use crate::adapters::config::CONFIG_NAME;
use crate::error::Result;
use crate::formats::{Stored, json};
use crate::ops::convert::ConvertOptions;
use crate::tensor::Float;

/// Names of weight files by dialect; a dialect that is not listed has a single file.
const NAMES: [(&str, &str); 3] =
    [("peft", "adapter_model.safetensors"), ("mlx", "adapters.safetensors"), ("adapterhub", "adapter.safetensors")];

/// Tensors, config and metadata as they are.
///
/// # Errors
/// When a config beside the weights cannot be read.
pub fn write(adapter: &Adapter, options: &ConvertOptions) -> Result<Files> {
    let named = NAMES.iter().find(|(dialect, _)| *dialect == adapter.dialect).map(|(_, name)| *name);
    let mut files = Files {
        weights: named.unwrap_or("adapter.safetensors").into(),
        metadata: adapter.tensors.files()[0].header.metadata.clone(),
        single: named.is_none() || !adapter.config.path.ends_with(CONFIG_NAME),
        ..Files::default()
    };
    files.hashed = files.metadata.iter().any(|(key, _)| key.starts_with("sshs_") || key == "modelspec.hash_sha256");
    if files.metadata.is_empty() {
        files.metadata.push(("format".into(), "pt".into()));
    }
    for stored in adapter.tensors.all() {
        files.tensors.push((
            stored.info.name.clone(),
            stored.info.shape.clone(),
            cast(&stored, wanted(&stored, options.write.dtype)),
        ));
    }
    if !files.single {
        files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&adapter.config.raw)));
        let head = adapter.root.join("head_config.json");
        if adapter.dialect == "adapterhub" && head.is_file() {
            files.beside.push((PathBuf::from("head_config.json"), json::render(&json::read_object(&head)?)));
        }
    }
    Ok(files)
}

/// Single numbers such as α keep their dtype: they count too much to be rounded, and take no room.
fn wanted(stored: &Stored, float: Option<Float>) -> Option<Float> {
    float.filter(|_| stored.info.shape.elements().is_some_and(|count| count > 1))
}
