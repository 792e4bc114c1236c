//! FP8 weights with scales, when they get another dtype: W = code · scale in f32, rounded once; the scales are done with.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::model::base::Base;

/// What tells a loader that weights are scaled FP8 (ComfyUI).
const MARKER: &str = "scaled_fp8";

/// Scales of activations, which mean nothing to a weight that is not FP8 (compressed-tensors, ModelOpt, ComfyUI).
const ACTIVATION_SCALES: [&str; 2] = [".input_scale", ".scale_input"];

/// The FP8 weights of a model that have scales.
#[derive(Debug, Default)]
pub struct Scaled {
    /// Weight → scale.
    scales: HashMap<String, String>,
    /// Tensors that belong to such weights: they are left out with them, or stay as they are.
    belonging: HashSet<String>,
}

impl Scaled {
    /// Finds them.
    pub fn find(base: &Base) -> Self {
        let mut found = Self::default();
        for info in base.checkpoint.tensors() {
            let scale = info.dtype.float().and_then(|float| base.scale_of(&info.name, float));
            let Some(scale) = scale else { continue };
            let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            let others = ACTIVATION_SCALES.iter().map(|ending| format!("{module}{ending}"));
            found.belonging.extend(others.filter(|name| base.names.has(name)));
            found.belonging.insert(scale.clone());
            found.scales.insert(info.name.clone(), scale);
        }
        if !found.scales.is_empty() && base.names.has(MARKER) {
            found.belonging.insert(MARKER.into());
        }
        found
    }

    /// Whether the weight of this name has scales.
    pub fn has(&self, weight: &str) -> bool {
        self.scales.contains_key(weight)
    }

    /// Whether the tensor of this name belongs to a weight with scales.
    pub fn belongs(&self, name: &str) -> bool {
        self.belonging.contains(name)
    }

    /// How many tensors belong to weights with scales.
    pub fn belonging(&self) -> usize {
        self.belonging.len()
    }

    /// Whether they are dequantised, which is all or nothing: `chosen` tells which get another dtype.
    ///
    /// # Errors
    /// When some do and some do not: the config of the model has one word for both.
    pub fn dequantised(&self, base: &Base, chosen: impl Fn(&str) -> bool) -> Result<bool> {
        let mut names: Vec<&String> = self.scales.keys().collect();
        names.sort();
        let (changed, kept): (Vec<&String>, Vec<&String>) = names.into_iter().partition(|name| chosen(name));
        match (changed.first(), kept.first()) {
            (Some(changed), Some(kept)) => {
                let what =
                    format!("`{changed}` would be dequantised and `{kept}` stay FP8: no config tells loaders of both");
                Err(Error::unsupported(base.checkpoint.root(), what)
                    .hint("cast all FP8 weights that have scales, or none of them"))
            }
            (changed, _) => Ok(changed.is_some()),
        }
    }
}
