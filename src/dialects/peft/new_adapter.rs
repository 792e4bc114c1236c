//! A new PEFT adapter: pairs and whole tensors → the keys of its weight file.
//!
//! Keys and config as PEFT 0.21 reads them (`utils/save_and_load.py`, `tuners/lora/config.py`); the config is made in `new_config`.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::{PEFT, PREFIX, new_config};
use crate::adapters::AdapterConfig;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::peft_keys;
use crate::dialects::files::{Files, Tensor};
use crate::error::{Error, Result};
use crate::formats::json;
use crate::naming::components;
use crate::pairs::{Bytes, NewPair, NewWhole, PairKind};
use crate::tensor::Shape;

/// The wrapper of a layer that is adapted.
const FROZEN: &str = "base_layer";

/// An adapter that is to be written.
#[derive(Debug, Clone, Default)]
pub struct NewAdapter {
    /// Settings kept from an input, as [`inherited`](Self::inherited) picks them.
    pub inherited: Map<String, Value>,
    /// Low-rank changes, one per module and parameter.
    pub pairs: Vec<NewPair>,
    /// Parameters stored whole.
    pub whole: Vec<NewWhole>,
    /// The scale is α/√r. For pairs that keep their input's scale; what is computed has it folded in.
    pub rslora: bool,
    /// Which factor of some stack lies on the input only the model tells: the version stays that of the input.
    pub open: bool,
}

impl NewAdapter {
    /// The settings of the config `raw` that stay true for whatever is made of its adapter.
    pub fn inherited(raw: &Map<String, Value>) -> Map<String, Value> {
        let kept = new_config::INHERITED.iter().filter_map(|key| raw.get_key_value(*key));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The settings of an adapter of any dialect that stay true: only PEFT's own config is taken over by key.
    pub fn inherited_from(config: &AdapterConfig, dialect: &str) -> Map<String, Value> {
        if dialect == PEFT.name {
            return Self::inherited(&config.raw);
        }
        let base = config.base_model.as_ref().map(|name| ("base_model_name_or_path".to_owned(), name.as_str().into()));
        base.into_iter().collect()
    }

    /// Makes sure that every key says the module it was made of when it is read again.
    ///
    /// # Errors
    /// When one does not, naming `root` as the adapter it comes from.
    pub fn check_readable(&self, root: &Path) -> Result<()> {
        for pair in self.pairs.iter().filter(|pair| matches!(pair.kind, PairKind::Linear | PairKind::Conv { .. })) {
            let key = format!("{PREFIX}.{}.lora_A.weight", pair.path);
            if peft_keys::parse(&key).module != pair.path {
                let what = format!("module `{}` has no key in PEFT's dialect that means it", pair.path);
                return Err(Error::unsupported(root, what).hint("`convert --to` writes adapters of diffusion models"));
            }
        }
        Ok(())
    }

    /// Takes the component of a pipeline away in front of the modules: an adapter of PEFT's is loaded into one model, which does
    /// not know it.
    pub fn leave_component(&mut self) {
        let pairs = self.pairs.iter_mut().map(|pair| &mut pair.path);
        for path in pairs.chain(self.whole.iter_mut().map(|whole| &mut whole.module)) {
            let rest = components::split(path).map(|(_, rest)| rest.to_owned());
            rest.into_iter().for_each(|rest| *path = rest);
        }
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        let pairs = self.pairs.iter().flat_map(|pair| [Some(&pair.down), Some(&pair.up), pair.up_bias.as_ref()]);
        pairs.flatten().chain(self.whole.iter().map(|whole| &whole.bytes)).map(Bytes::count).sum()
    }

    /// The files of the adapter.
    pub fn into_files(self) -> Files {
        let config = json::render(&new_config::render(&self));
        let beside = vec![(CONFIG_NAME.into(), config)];
        Files { tensors: self.into_tensors(), beside, ..Files::of(&PEFT, &[("format", "pt")]) }
    }

    /// Keys, shapes, values.
    pub(crate) fn into_tensors(self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        // Each adapted parameter of a module puts a wrapper of its own around it.
        let mut wrappers: HashMap<String, usize> = HashMap::new();
        self.pairs.iter().for_each(|pair| *wrappers.entry(pair.path.clone()).or_default() += 1);
        let adapted: HashSet<String> = wrappers.keys().cloned().collect();
        for pair in self.pairs {
            let module = format!("{PREFIX}.{}{}", wrapped(&pair.path, &adapted), nested(&pair.kind));
            let (down, up) = pair.shapes();
            let (down_key, up_key) = match pair.kind {
                PairKind::Embedding => ("lora_embedding_A", "lora_embedding_B"),
                _ => ("lora_A.weight", "lora_B.weight"),
            };
            tensors.push((format!("{module}.{down_key}"), down, pair.down));
            tensors.push((format!("{module}.{up_key}"), up, pair.up));
            if let Some(bias) = pair.up_bias {
                tensors.push((format!("{module}.lora_B.bias"), Shape::from([pair.outer.0]), bias));
            }
        }
        for whole in self.whole {
            let layer = match wrappers.get(&whole.module) {
                Some(count) if whole.frozen_bias => format!("{}{}", whole.module, format!(".{FROZEN}").repeat(*count)),
                _ => whole.module.clone(),
            };
            let path: Vec<&str> =
                [PREFIX, &layer, &whole.parameter].into_iter().filter(|part| !part.is_empty()).collect();
            tensors.push((path.join("."), whole.shape, whole.bytes));
        }
        tensors
    }
}

/// `path` with a wrapper after every layer on the way that is adapted itself, as in the output projection of a
/// `MultiheadAttention`.
fn wrapped(path: &str, adapted: &HashSet<String>) -> String {
    let mut key = String::with_capacity(path.len());
    for (at, letter) in path.char_indices() {
        if letter == '.' && adapted.contains(&path[..at]) {
            key.push('.');
            key.push_str(FROZEN);
        }
        key.push(letter);
    }
    key
}

fn nested(kind: &PairKind) -> String {
    match kind {
        PairKind::Parameter { nesting, .. } => format!(".{FROZEN}").repeat(*nesting),
        _ => String::new(),
    }
}
