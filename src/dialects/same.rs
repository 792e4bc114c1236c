//! The same dialect in a file of its own: another container, another dtype.

use std::path::PathBuf;

use serde_json::Value;

use super::ADAPTERHUB_HEADS;
use super::files::Files;
use super::peft::write::cast;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::{Adapter, AlphaFrom};
use crate::error::Result;
use crate::formats::{Checkpoint, Stored, json, safetensors, side};
use crate::io::is_there;
use crate::tensor::{Float, TensorInfo};

/// Names of weight files by dialect; a dialect that is not listed has a single file.
const NAMES: [(&str, &str); 5] = [
    ("peft", "adapter_model.safetensors"),
    ("mlx", "adapters.safetensors"),
    ("mlx-vlm", "adapters.safetensors"),
    ("adapterhub", "adapter.safetensors"),
    ("torchtune", "adapter.safetensors"),
];

/// The config of the model that tells torchtune's heads.
const MODEL: &str = "config.json";

/// What AdapterHub calls the config of a prediction head.
const HEAD_CONFIG: &str = "head_config.json";

/// Whether an adapter's own files say all that was read: nothing was told, and no config counts that would not be written.
pub fn is_whole(adapter: &Adapter) -> bool {
    let writes_config = NAMES.iter().any(|(dialect, _)| *dialect == adapter.dialect);
    let is_config = matches!(adapter.config.alpha_from, Some(AlphaFrom::File(_)));
    adapter.is_self_contained() && (writes_config || !is_config)
}

/// Tensors, config and metadata as they are.
///
/// # Errors
/// When a config beside the weights cannot be read.
pub fn write(adapter: &Adapter, float: Option<Float>) -> Result<Files> {
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
            cast(&stored, wanted(&stored, float)),
        ));
    }
    if !files.single {
        // What Python writes for numbers that JSON does not have means nothing to others.
        let lost = |value: &Value| value.as_str().is_some_and(|text| json::NOT_FINITE.contains(&text));
        let mut config = adapter.config.raw.clone();
        config.values_mut().filter(|value| lost(value)).for_each(|value| *value = Value::Null);
        files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&config)));
        if adapter.dialect == "adapterhub" {
            head(adapter, &mut files)?;
        }
        if adapter.dialect == "torchtune"
            && let Some(model) = side::read(&adapter.root, MODEL)?
        {
            files.beside.push((PathBuf::from(MODEL), json::render(&model)));
        }
    }
    Ok(files)
}

/// The prediction head that lies beside an adapter of AdapterHub, as it is.
fn head(adapter: &Adapter, files: &mut Files) -> Result<()> {
    if let Some(config) = side::read(&adapter.root, HEAD_CONFIG)? {
        files.beside.push((PathBuf::from(HEAD_CONFIG), json::render(&config)));
    }
    let name = PathBuf::from(ADAPTERHUB_HEADS[0]);
    let [safe, pickled] = ADAPTERHUB_HEADS.map(|name| adapter.root.join(name));
    if is_there(&safe)? {
        // Read as weights first: whatever else it is stays behind.
        Checkpoint::open(&safe)?;
        files.copied.push((name, safe));
    } else if is_there(&pickled)? {
        let tensors = Checkpoint::open(&pickled)?;
        let (mut infos, mut data) = (Vec::new(), Vec::new());
        for stored in tensors.all() {
            infos.push(TensorInfo { offset: data.len() as u64, ..stored.info.clone() });
            data.extend_from_slice(stored.view()?.data);
        }
        let mut bytes = safetensors::render_header(&[("format".into(), "pt".into())], &infos);
        bytes.append(&mut data);
        files.beside.push((name, bytes));
    }
    Ok(())
}

/// Single numbers such as α keep their dtype: they count too much to be rounded, and take no room.
fn wanted(stored: &Stored, float: Option<Float>) -> Option<Float> {
    float.filter(|_| stored.info.shape.elements().is_some_and(|count| count > 1))
}
