//! The tensors of a checkpoint by name, and what is said of how it is quantised.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored, comfyui, side};
use crate::naming::conv1d;
use crate::tensor::TensorInfo;

/// Keys of a config that say how a model is quantised: Hugging Face, compressed-tensors, MLX.
pub const KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// Files of their own that say it (GPTQ and AutoRound, ModelOpt), and the key it stands under.
pub const SIDE_FILES: [(&str, &str); 3] =
    [("quantize_config.json", ""), ("quantization_config.json", ""), ("hf_quant_config.json", "quantization")];

/// What a storage may look at.
#[derive(Debug)]
pub struct Files<'a> {
    checkpoint: &'a Checkpoint,
    config: Option<&'a Map<String, Value>>,
    settings: Map<String, Value>,
    formats: comfyui::Formats,
}

impl<'a> Files<'a> {
    /// The tensors of `checkpoint`, whose config is `config`.
    ///
    /// # Errors
    /// When a file beside it cannot be read.
    pub fn of(checkpoint: &'a Checkpoint, config: Option<&'a Map<String, Value>>) -> Result<Self> {
        let formats = comfyui::Formats::of(checkpoint);
        Ok(Self { checkpoint, config, settings: settings(checkpoint, config)?, formats })
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<Stored> {
        self.checkpoint.find(name)
    }

    /// What is known of the tensor of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.checkpoint.info(name)
    }

    /// Those of `names` that are there.
    pub fn present(&self, names: impl IntoIterator<Item = String>) -> Vec<String> {
        names.into_iter().filter(|name| self.info(name).is_some()).collect()
    }

    /// The path that was opened, for messages.
    pub fn root(&self) -> &Path {
        self.checkpoint.root()
    }

    /// What the config says of how the model is quantised: `quantization_config` and its like; empty where it says nothing.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// `quant_method`, in lower case.
    pub fn method(&self) -> Option<String> {
        self.settings.get("quant_method").and_then(Value::as_str).map(str::to_lowercase)
    }

    /// Whether linear layers of the model's class keep their weights as `[in, out]`.
    pub fn keeps_inputs_in_rows(&self) -> bool {
        let kind = self.config.and_then(|config| config.get("model_type")?.as_str());
        kind.is_some_and(|kind| conv1d::MODELS.contains(&kind))
    }

    /// The format of a module's weight where ComfyUI says it.
    pub fn comfyui(&self, module: &str) -> Option<String> {
        self.formats.of_module(self.checkpoint, module)
    }

    /// All that ComfyUI says of the format of a module's weight.
    pub fn comfyui_said(&self, module: &str) -> Option<Value> {
        self.formats.said(self.checkpoint, module)
    }

    /// The refusal of tensor `name`: `problem` says why.
    pub fn malformed(&self, name: &str, problem: impl Into<String>) -> Error {
        let found = self.find(name);
        let path = found.as_ref().map_or(self.root(), |stored| stored.path());
        Error::malformed(path, format!("tensor `{name}`"), problem)
    }

    /// The refusal of a companion whose shape does not fit the weight.
    pub fn misfit(&self, name: &str, weight: &str, shape: &[u64]) -> Error {
        let found = self.info(name).map(|info| info.shape.to_string()).unwrap_or_default();
        let wanted: Vec<String> = shape.iter().map(ToString::to_string).collect();
        self.malformed(name, format!("is {found}, and weight `{weight}` is [{}]", wanted.join(", ")))
    }
}

/// What is said of how a model is quantised: in its config, in that of its text part, or in a file of its own.
fn settings(checkpoint: &Checkpoint, config: Option<&Map<String, Value>>) -> Result<Map<String, Value>> {
    let said = |config: &Map<String, Value>| {
        KEYS.iter().find_map(|key| config.get(*key)?.as_object().filter(|said| !said.is_empty()).cloned())
    };
    if let Some(config) = config {
        let text = config.get("text_config").and_then(Value::as_object);
        if let Some(found) = said(config).or_else(|| text.and_then(said)) {
            return Ok(found);
        }
    }
    let has_codes = || checkpoint.tensors().any(|info| info.dtype.float().is_none_or(|float| float.bytes() == 1));
    if checkpoint.directory() == checkpoint.root() && has_codes() {
        for (file, key) in SIDE_FILES {
            let Some(mut found) = side::look_up(&checkpoint.directory().join(file))? else { continue };
            match found.remove(key) {
                Some(Value::Object(inner)) => return Ok(inner),
                _ => return Ok(found),
            }
        }
    }
    Ok(Map::new())
}
