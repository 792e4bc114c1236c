//! FP8 weights with scales, when they get another dtype: W = code · scale in f32, rounded once; the scales are done with, and so is
//! what tells loaders that a weight is scaled.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::{Error, Result};
use crate::formats::comfyui;
use crate::model::base::Base;

/// What else belongs to a scaled weight and means nothing to one that is not FP8: scales of activations (compressed-tensors,
/// ModelOpt, ComfyUI), and ComfyUI's word for the format.
const BESIDE: [&str; 3] = [".input_scale", ".scale_input", comfyui::LAYER];

/// The FP8 weights of a model, and what belongs to them.
#[derive(Debug, Default)]
pub struct Scaled {
    /// Weight → scale.
    scales: BTreeMap<String, String>,
    /// FP8 weights without scales.
    plain: Vec<String>,
    /// Tensor that belongs to a weight → that weight.
    owners: HashMap<String, String>,
    /// Tensors that say of all weights that they are scaled.
    marks: HashSet<String>,
}

/// The FP8 weights that become something else.
#[derive(Debug, Default)]
pub struct Dequantised {
    weights: HashSet<String>,
    /// No FP8 weight is left.
    all: bool,
}

impl Scaled {
    /// Finds them.
    pub fn find(base: &Base) -> Self {
        let mut found = Self::default();
        for info in base.checkpoint.tensors() {
            if comfyui::is_whole_mark(&info.name) {
                found.marks.insert(info.name.clone());
                continue;
            }
            let Some(float) = info.dtype.float().filter(|float| float.bytes() == 1) else { continue };
            let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            let others = BESIDE.iter().map(|ending| format!("{module}{ending}"));
            found.owners.extend(others.filter(|name| base.names.has(name)).map(|name| (name, info.name.clone())));
            match base.scale_of(&info.name, float) {
                Some(scale) => {
                    found.owners.insert(scale.clone(), info.name.clone());
                    found.scales.insert(info.name.clone(), scale);
                }
                None => found.plain.push(info.name.clone()),
            }
        }
        found
    }

    /// Whether the weight of this name has scales.
    pub fn has(&self, weight: &str) -> bool {
        self.scales.contains_key(weight)
    }

    /// Whether the tensor of this name is no weight of its own: it belongs to others, goes with them and stays with them.
    pub fn belongs(&self, name: &str) -> bool {
        self.owners.contains_key(name) || self.marks.contains(name)
    }

    /// Whether the tensor goes with the weights it belongs to.
    pub fn goes(&self, name: &str, dequantised: &Dequantised) -> bool {
        let with_all = dequantised.all && self.marks.contains(name);
        with_all || self.owners.get(name).is_some_and(|weight| dequantised.weights.contains(weight))
    }

    /// Which are dequantised: `chosen` tells which get another dtype. All or none of those that have scales, unless each says
    /// for itself how it is stored.
    ///
    /// # Errors
    /// When some do and some do not, and loaders have one word for both.
    pub fn dequantised(&self, base: &Base, chosen: impl Fn(&str) -> bool) -> Result<Dequantised> {
        let (changed, kept): (Vec<&String>, Vec<&String>) = self.scales.keys().partition(|name| chosen(name));
        let by_itself = |name: &&String| {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            base.formats.of_module(&base.checkpoint, module).is_some()
        };
        if let (Some(first), Some(other)) = (changed.first(), kept.iter().find(|name| !by_itself(name))) {
            let what =
                format!("`{first}` would be dequantised and `{other}` stay FP8: no config tells loaders of both");
            return Err(Error::unsupported(base.checkpoint.root(), what)
                .hint("cast all FP8 weights that have scales, or none of them"));
        }
        let plain = self.plain.iter().filter(|name| chosen(name));
        let weights: HashSet<String> = changed.into_iter().chain(plain).cloned().collect();
        let all = !weights.is_empty() && weights.len() == self.scales.len() + self.plain.len();
        Ok(Dequantised { weights, all })
    }
}

impl Dequantised {
    /// What a header says of the formats of modules, without those that are dequantised; `folder` is the component they are in.
    pub fn header(&self, text: &str, folder: &str) -> Option<String> {
        if self.weights.is_empty() {
            return Some(text.to_owned());
        }
        let modules = self.weights.iter().filter_map(|weight| weight.strip_suffix(".weight"));
        let front = if folder.is_empty() { String::new() } else { format!("{folder}.") };
        let modules = modules.filter_map(|module| module.strip_prefix(front.as_str()));
        let gone: HashSet<&str> = modules.flat_map(comfyui::endings).collect();
        comfyui::without(text, |module| gone.contains(module))
    }

    /// Whether no FP8 weight is left.
    pub fn all(&self) -> bool {
        self.all
    }
}
