//! A quantised checkpoint as the plain one it stands for: one tensor for each quantised weight, under the weight's own name, and
//! none of what gives codes their values.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::files::Files;
use super::made::Quantised;
use super::trained::Trained;
use super::{Found, STORAGES, refused};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored, comfyui};
use crate::model::train_base::TrainBase;
use crate::naming::{conv1d, embeddings, head};
use crate::tensor::{Float, TensorInfo};

/// Ends of the names of scales for the cache of keys and values.
const CACHE: [&str; 4] = [".k_scale", ".v_scale", ".q_scale", ".kv_scale"];

/// Where a config says the type its model is computed in.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// The quantised weights of a checkpoint.
#[derive(Debug, Default)]
pub struct View {
    weights: HashMap<String, Arc<Quantised>>,
    /// Tensor that is done with → the weight it belongs to.
    owners: HashMap<String, String>,
    /// Tensors that say of all weights that they are quantised.
    marks: HashSet<String>,
    /// Quantised weights that stay as they are stored.
    kept: Vec<String>,
    /// They were not stored so: they are what training made of plain ones.
    trained: Option<TrainBase>,
}

impl View {
    /// Finds the quantised weights of `checkpoint`, whose config is `config`.
    ///
    /// # Errors
    /// When a weight contradicts itself, or its name is taken.
    pub fn find(checkpoint: &Checkpoint, config: Option<&Map<String, Value>>, float: Option<Float>) -> Result<Self> {
        let files = Files::of(checkpoint, config)?;
        let mut found = Vec::new();
        let mut view = Self::default();
        for info in checkpoint.tensors() {
            if comfyui::is_whole_mark(&info.name) || is_of_cache(info) {
                view.marks.insert(info.name.clone());
            } else if let Some(weight) = recognise(&files, info).map_err(|problem| named(&files, problem))? {
                found.push(weight);
            }
        }
        if found.is_empty() {
            return Ok(view);
        }
        refused::check(&files)?;
        for weight in &found {
            for name in &weight.tensors {
                view.owners.insert(name.clone(), weight.name.clone());
            }
        }
        let said = config.and_then(dtype_of);
        let usual = usual(checkpoint, &view.owners);
        for Found { name, tensors, storage } in found {
            if checkpoint.info(&name).is_some() && !tensors.contains(&name) {
                let at = format!("tensor `{}`", tensors[0]);
                let problem = format!("holds the weight `{name}`, which is there as well");
                return Err(Error::malformed(checkpoint.root(), at, problem));
            }
            let float = float.or(said).or_else(|| storage.dtype()).unwrap_or(usual);
            let stored: Vec<Stored> = tensors.iter().filter_map(|name| checkpoint.find(name)).collect();
            let quantised = Quantised::new(name.clone(), stored, storage, float)?;
            if view.weights.insert(name.clone(), Arc::new(quantised)).is_some() {
                let problem = "is stored as codes twice";
                return Err(Error::malformed(checkpoint.root(), format!("weight `{name}`"), problem));
            }
        }
        Ok(view)
    }

    /// The linear weights of the plain `checkpoint` as `spec` quantised them for training, rounded to `float` or to what they are.
    /// Heads, embeddings, experts and their routers were left alone.
    ///
    /// # Errors
    /// When there are none.
    pub fn trained(
        checkpoint: &Checkpoint,
        config: Option<&Map<String, Value>>,
        spec: TrainBase,
        float: Option<Float>,
    ) -> Result<Self> {
        let files = Files::of(checkpoint, config)?;
        let mut view = Self { trained: Some(spec), ..Self::default() };
        for stored in checkpoint.all() {
            let name = stored.info.name.clone();
            let (Some(module), Some(own)) = (name.strip_suffix(".weight"), stored.info.dtype.float()) else { continue };
            let matrix = stored.info.shape.as_slice().len() == 2 && stored.info.bytes > 0 && own.bytes() > 1;
            if !matrix || !is_linear(module) {
                continue;
            }
            let turned = files.keeps_inputs_in_rows() && conv1d::is_layer(module);
            let storage = Arc::new(Trained::new(stored.clone(), own, spec, turned)?);
            let float = float.unwrap_or(if own == Float::F64 { Float::F32 } else { own });
            let weight = Quantised::new(name.clone(), vec![stored], storage, float)?;
            view.owners.insert(name.clone(), name.clone());
            view.weights.insert(name, Arc::new(weight));
        }
        if view.weights.is_empty() {
            let what = "has no linear weights that training could have quantised";
            return Err(Error::unsupported(checkpoint.root(), what).hint("leave `--train-base` away"));
        }
        Ok(view)
    }

    /// `checkpoint` with one plain tensor for each of these weights. Of the weights, those are left that are seen so; where they keep their format, so do the headers.
    ///
    /// # Errors
    /// When two tensors get one name.
    pub fn see(
        self,
        checkpoint: Checkpoint,
        chosen: &dyn Fn(&str) -> bool,
        keeps_format: bool,
    ) -> Result<(Checkpoint, Self)> {
        let (weights, others): (HashMap<_, _>, HashMap<_, _>) =
            self.weights.into_iter().partition(|(name, _)| chosen(name));
        let mut kept: Vec<String> = others.into_keys().collect();
        kept.sort();
        if weights.is_empty() {
            return Ok((checkpoint, Self { kept, ..Self::default() }));
        }
        let owners: HashMap<_, _> =
            self.owners.into_iter().filter(|(_, weight)| weights.contains_key(weight)).collect();
        let marks = if kept.is_empty() { self.marks } else { HashSet::new() };
        let view = Self { weights, owners, marks, kept, trained: self.trained };
        let modules = view.weights.keys().map(|name| name.strip_suffix(".weight").unwrap_or(name));
        let gone: HashSet<&str> = modules.flat_map(comfyui::endings).collect();
        let seen = checkpoint.seen_as(|file| {
            let is_said = file.header.metadata.iter().any(|(key, _)| key == comfyui::HEADER);
            if !is_said && !file.header.tensors.iter().any(|info| view.is_done_with(&info.name)) {
                return Ok(file);
            }
            let tensors = file.own().into_iter().filter_map(|stored| view.plain(stored)).collect();
            let mut seen = file.seeing(tensors);
            if keeps_format {
                return Ok(seen);
            }
            let metadata = std::mem::take(&mut seen.header.metadata).into_iter().filter_map(|(key, text)| {
                let text = match key == comfyui::HEADER {
                    true => comfyui::without(&text, |module| gone.contains(module))?,
                    false => text,
                };
                Some((key, text))
            });
            seen.header.metadata = metadata.collect();
            Ok(seen)
        })?;
        drop(gone);
        Ok((seen, view))
    }

    /// What stands for the tensor `stored`.
    fn plain(&self, stored: Stored) -> Option<Stored> {
        let name = &stored.info.name;
        match self.owners.get(name) {
            Some(weight) => {
                let weight = &self.weights[weight];
                (weight.tensors[0].info.name == *name).then(|| weight.stored())
            }
            None => (!self.marks.contains(name)).then_some(stored),
        }
    }

    /// The weight of this name.
    pub fn weight(&self, name: &str) -> Option<&Arc<Quantised>> {
        self.weights.get(name)
    }

    /// All weights, in no order.
    pub fn weights(&self) -> impl Iterator<Item = &Arc<Quantised>> {
        self.weights.values()
    }

    /// The first by name.
    pub fn first(&self) -> Option<&str> {
        self.weights.keys().min().map(String::as_str)
    }

    /// What a user should know of a plain output.
    pub fn note(&self) -> Option<String> {
        (!self.is_empty()).then(|| {
            format!(
                "{} quantised weights ({}) are written as plain numbers; {} tensors of scales and the like are left out",
                self.count(),
                self.formats(),
                self.done_with()
            )
        })
    }

    /// What a user should know of a merge onto them.
    pub fn merge_note(&self, keeps_format: bool) -> Option<String> {
        let float = self.float()?;
        if let Some(spec) = self.trained {
            return Some(format!(
                "{} linear weights are what training on `{spec}` saw, dequantised: W′ = round({float}(dq(Q(W))) + ΔW); heads, embeddings, \
                 experts and routers are BASE's{}",
                self.count(),
                if spec.double {
                    ". On a GPU the mean of the scales may have been summed in another order: last bits may differ"
                } else {
                    ""
                }
            ));
        }
        Some(if keeps_format {
            format!(
                "BASE is quantised ({}), and stays so: codes are the nearest to W + ΔW on the scales it has",
                self.formats()
            )
        } else {
            format!(
                "BASE is quantised ({}): the result is plain {float}, W′ = round(dequantised to {float} + ΔW), which is what training \
                 on it saw; `--keep-format` writes its own format",
                self.formats()
            )
        })
    }

    fn formats(&self) -> String {
        let formats: BTreeSet<String> = self.weights().map(|weight| weight.storage.facts().format).collect();
        formats.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.weights.len()
    }

    /// The weight that the tensor `name` belongs to.
    pub fn owner(&self, name: &str) -> Option<&str> {
        self.owners.get(name).map(String::as_str)
    }

    /// Whether the tensor is none of the plain model's.
    pub fn is_done_with(&self, name: &str) -> bool {
        self.owners.contains_key(name) || self.marks.contains(name)
    }

    /// Quantised weights that stay as they are stored.
    pub fn kept(&self) -> &[String] {
        &self.kept
    }

    /// Whether all quantised weights there are are plain tensors here, and there are some.
    pub fn is_whole(&self) -> bool {
        !self.weights.is_empty() && self.kept.is_empty()
    }

    /// What most of them are rounded to.
    pub fn float(&self) -> Option<Float> {
        let count = |float: Float| self.weights.values().filter(|weight| weight.float == float).count();
        let floats = [Float::F32, Float::F16, Float::Bf16];
        floats.into_iter().filter(|float| count(*float) > 0).max_by_key(|float| count(*float))
    }

    /// How many tensors are none of the plain model's.
    pub fn done_with(&self) -> usize {
        self.owners.len() - self.weights.len() + self.marks.len()
    }
}

/// Whether transformers replaces the module by a quantised one, by its path: heads stay, embeddings are none, and since its version 5
/// experts and their routers are no modules of their own.
fn is_linear(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    let is_expert = module.split('.').any(|part| part.contains("experts"));
    let is_router = ["gate", "router"].contains(&last);
    !is_expert && !is_router && !head::is_head(module) && !embeddings::is_table(module) && !last.contains("norm")
}

/// Whether a tensor scales the cache of keys and values: the config that says so goes with that of the weights.
fn is_of_cache(info: &TensorInfo) -> bool {
    info.shape.elements() == Some(1) && CACHE.iter().any(|end| info.name.ends_with(end))
}

/// Why a weight is not read, by the name of its format where the config says one that never is.
fn named(files: &Files<'_>, problem: Error) -> Error {
    refused::check(files).err().unwrap_or(problem)
}

fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    for storage in STORAGES {
        if let Some(found) = storage(files, info)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The type a config says the model is computed in.
fn dtype_of(config: &Map<String, Value>) -> Option<Float> {
    let said = |config: &Map<String, Value>| {
        let names = DTYPE_KEYS.iter().filter_map(|key| config.get(*key)?.as_str());
        names.filter_map(|name| Float::from_option(name.strip_prefix("torch.").unwrap_or(name))).next()
    };
    let text = config.get("text_config").and_then(Value::as_object);
    said(config).or_else(|| text.and_then(said)).filter(|float| float.bytes() > 1 && float.bytes() < 8)
}

/// The type of numbers that most bytes of a checkpoint have, of what belongs to no quantised weight.
fn usual(checkpoint: &Checkpoint, owners: &HashMap<String, String>) -> Float {
    let wide = [Float::Bf16, Float::F16, Float::F32];
    let bytes = |float: Float| -> u64 {
        let of = |info: &&TensorInfo| info.dtype.float() == Some(float) && !owners.contains_key(&info.name);
        checkpoint.tensors().filter(of).map(|info| info.bytes).sum()
    };
    let most = wide.into_iter().rev().max_by_key(|float| bytes(*float));
    most.filter(|float| bytes(*float) > 0).unwrap_or(Float::Bf16)
}
