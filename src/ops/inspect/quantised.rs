//! Signs of quantised weights, as names, dtypes and config.json show them.

use std::collections::HashSet;

use serde::Serialize;

use crate::formats::Checkpoint;
use crate::model::ModelConfig;
use crate::model::storage::{fp8, refused};

/// One way in which weights are quantised.
#[derive(Debug, Clone, Serialize)]
pub struct Quantisation {
    /// Who packs like that, or what config.json says.
    pub method: String,
    /// Modules that show it.
    pub modules: usize,
}

/// Weights packed in a way that betrays itself by the names of tensors.
pub fn packed(checkpoint: &Checkpoint) -> Vec<Quantisation> {
    let mut seen = HashSet::new();
    let mut found: Vec<Quantisation> = Vec::new();
    for (ending, method) in refused::ends() {
        let modules = checkpoint.tensors().filter_map(|tensor| tensor.name.strip_suffix(ending));
        let modules = modules.filter(|module| seen.insert(*module)).count();
        if modules > 0 {
            found.push(Quantisation { method: method.to_owned(), modules });
        }
    }
    found
}

/// FP8 weights with scales beside them.
pub fn scaled(checkpoint: &Checkpoint) -> Option<Quantisation> {
    let has_scale = |module: &str| fp8::SCALES.iter().any(|end| checkpoint.info(&format!("{module}{end}")).is_some());
    let eight = checkpoint.tensors().filter(|tensor| tensor.dtype.float().is_some_and(|float| float.bytes() == 1));
    let modules = eight.filter_map(|tensor| tensor.name.strip_suffix(".weight")).filter(|name| has_scale(name)).count();
    (modules > 0).then(|| Quantisation { method: "scaled FP8".to_owned(), modules })
}

/// What config.json says of it.
pub fn declared(config: &ModelConfig) -> Option<Quantisation> {
    let mlx = || config.raw.get("quantization").filter(|value| value.get("bits").is_some());
    if let Some(mlx) = mlx() {
        let method = format!("MLX, {} bits (config.json)", mlx["bits"]);
        return Some(Quantisation { method, modules: 0 });
    }
    let method = config.raw.get("quantization_config")?.get("quant_method")?.as_str()?;
    Some(Quantisation { method: format!("{method} (config.json)"), modules: 0 })
}
