//! The prediction head that lies beside an adapter of AdapterHub: it belongs to the task, and no merge has a place for it.

use std::path::PathBuf;

use crate::adapters::Adapter;
use crate::dialects::files::Files;
use crate::error::Result;
use crate::formats::{Checkpoint, json, safetensors, side};
use crate::io::is_there;
use crate::tensor::TensorInfo;

/// What the library calls the weights of a head, as safetensors and as a pickle.
pub const HEADS: [&str; 2] = ["model_head.safetensors", "pytorch_model_head.bin"];

/// What it calls the config of a head.
pub(super) const CONFIG: &str = "head_config.json";

/// Takes the head along as it is.
///
/// # Errors
/// When it cannot be read.
pub(super) fn take_along(adapter: &Adapter, files: &mut Files) -> Result<()> {
    if let Some(config) = side::read(&adapter.root, CONFIG)? {
        files.beside.push((PathBuf::from(CONFIG), json::render(&config)));
    }
    let name = PathBuf::from(HEADS[0]);
    let [safe, pickled] = HEADS.map(|name| adapter.root.join(name));
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
