//! What ComfyUI writes beside quantised weights to say so. Sources: ComfyUI `comfy/quant_ops.py`, `QUANTIZATION.md`, kijai's scaled
//! FP8 files.
//!
//! | mark | where | says |
//! |---|---|---|
//! | `M.comfy_quant` | U8 tensor, JSON `{"format": …}` | how the weight of module M is stored |
//! | `_quantization_metadata` | header, JSON `{"layers": {M: {"format": …}}}` | the same for all of them |
//! | `[PREFIX]scaled_fp8` | tensor of FP8, its values mean nothing | all linear layers are FP8 with `M.scale_weight` |
//!
//! With a weight that is no longer quantised its marks have to go: a loader would scale it once more.

use serde_json::{Map, Value};

use super::Checkpoint;

/// How the tensor ends that says how one module's weight is stored.
pub const LAYER: &str = ".comfy_quant";

/// Key of the header that says it for all.
pub const HEADER: &str = "_quantization_metadata";

/// Name of the tensor that says that all are scaled FP8, below any prefix.
const WHOLE: &str = "scaled_fp8";

/// Longest description of one module's format that is read.
const MAX_BYTES: u64 = 1 << 16;

/// Whether a tensor says that all linear layers are scaled FP8.
pub fn is_whole_mark(name: &str) -> bool {
    name == WHOLE || name.strip_suffix(WHOLE).is_some_and(|prefix| prefix.ends_with('.'))
}

/// Whether a weight of this format is FP8 with one scale, which is read as any other of that kind.
pub fn is_plain(format: &str) -> bool {
    format.starts_with("float8_")
}

/// What the headers of a checkpoint say of the formats of its modules.
#[derive(Debug, Default)]
pub struct Formats {
    layers: Map<String, Value>,
}

impl Formats {
    /// Reads the headers.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let headers = checkpoint.files().iter().flat_map(|file| &file.header.metadata);
        let said = headers.filter(|(key, _)| key == HEADER).filter_map(|(_, text)| layers(text));
        Self { layers: said.flatten().collect() }
    }

    /// The format of a module's weight, where ComfyUI says it: in a tensor beside it, or in the header.
    pub fn of_module(&self, checkpoint: &Checkpoint, module: &str) -> Option<String> {
        self.said(checkpoint, module)?.get("format").and_then(Value::as_str).map(str::to_owned)
    }

    /// All that is said of it.
    pub fn said(&self, checkpoint: &Checkpoint, module: &str) -> Option<Value> {
        if let Some(mark) = checkpoint.find(&format!("{module}{LAYER}")).filter(|mark| mark.info.bytes <= MAX_BYTES) {
            return serde_json::from_slice(mark.view().ok()?.data).ok();
        }
        endings(module).find_map(|name| self.layers.get(name)).cloned()
    }
}

/// The path, and what is left of it without what stands in front: a header leaves out the prefix of a file's tensors.
pub fn endings(module: &str) -> impl Iterator<Item = &str> {
    std::iter::once(module).chain(module.match_indices('.').map(|(at, _)| &module[at + 1..]))
}

/// The modules that the header says the formats of.
fn layers(text: &str) -> Option<Map<String, Value>> {
    match serde_json::from_str::<Value>(text).ok()?.get_mut("layers")? {
        Value::Object(layers) => Some(std::mem::take(layers)),
        _ => None,
    }
}

/// What the header says of its modules without those of which `gone` is true; `None` where nothing is left to be said.
pub fn without(text: &str, gone: impl Fn(&str) -> bool) -> Option<String> {
    let Ok(mut said) = serde_json::from_str::<Value>(text) else { return Some(text.to_owned()) };
    let Some(layers) = said.get_mut("layers").and_then(Value::as_object_mut) else { return Some(text.to_owned()) };
    let before = layers.len();
    layers.retain(|module, _| !gone(module));
    match (layers.len(), before) {
        (0, _) => None,
        (left, before) if left == before => Some(text.to_owned()),
        _ => Some(said.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_known_below_any_prefix() {
        for (name, is) in [
            ("scaled_fp8", true),
            ("model.diffusion_model.scaled_fp8", true),
            ("a.is_scaled_fp8", false),
            ("scaled_fp8.weight", false),
        ] {
            assert_eq!(is_whole_mark(name), is, "{name}");
        }
        assert!(is_plain("float8_e4m3fn") && !is_plain("mxfp8"));
    }

    #[test]
    fn the_header_forgets_what_is_no_longer_quantised() {
        let text = r#"{"format_version":"1.0","layers":{"a.b":{"format":"float8_e4m3fn"},"a.c":{"format":"nvfp4"}}}"#;
        assert_eq!(without(text, |_| false).as_deref(), Some(text));
        assert_eq!(without(text, |_| true), None);
        let left = without(text, |module| module == "a.b").unwrap_or_default();
        assert_eq!(
            layers(&left).map(|layers| layers.keys().cloned().collect::<Vec<_>>()),
            Some(vec!["a.c".to_owned()])
        );
        assert_eq!(without("no json", |_| true).as_deref(), Some("no json"));
    }
}
