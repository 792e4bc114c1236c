//! The resized adapter as files: every tensor under its own key, the config as it was but for what ranks and scales say.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::factors::Factors;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::{Adapter, Init};
use crate::error::Result;
use crate::formats::{Stored, companions, json};
use crate::ops::new_adapter::{self, Bytes, NewAdapter, NewPair, NewWhole};
use crate::ops::new_config;
use crate::ops::output::Output;
use crate::ops::recipe::SIDECAR;
use crate::ops::terms::{Slot, Standing, Terms};
use crate::tensor::{Float, Shape};

/// Settings that name modules by number; they would bring back what was left out.
const BY_LAYER: [&str; 3] = ["exclude_modules", "layers_pattern", "layers_to_transform"];

/// A tensor of the output: key, shape, values.
type Tensor = (String, Shape, Bytes);

/// Files and side files of `adapter` with new `pairs`, one per slot of `terms`; `None` leaves a pair out.
///
/// # Errors
/// When the adapter's directory cannot be listed.
pub fn output(
    adapter: &Adapter,
    terms: &Terms,
    pairs: Vec<Option<Factors>>,
    recipe: &Value,
    job_bytes: u64,
) -> Result<Output> {
    let config = json::render(&config(adapter, terms, &pairs));
    let tensors = tensors(adapter, terms, pairs);
    let plan = new_adapter::lay_out(tensors, &metadata(adapter, recipe), job_bytes);
    let written = vec![(PathBuf::from(CONFIG_NAME), config), (PathBuf::from(SIDECAR), json::render(recipe))];
    Ok(Output { plan, copied: beside(adapter, &written)?, written, single_file: false })
}

/// Bytes that the weight file has beside its pairs, at most: its header, and the tensors that are copied.
pub fn fixed_bytes(adapter: &Adapter, terms: &Terms, recipe: &Value) -> u64 {
    let paired: u64 = terms.slots.values().flat_map(stored).map(|tensor| tensor.info.bytes).sum();
    // No rank grows where a budget is divided, so neither does the header.
    let tensors = adapter.tensors.all();
    let tensors = tensors.map(|own| (own.info.name.clone(), own.info.shape.clone(), Bytes::Stored(own)));
    new_adapter::lay_out(tensors.collect(), &metadata(adapter, recipe), u64::MAX).bytes() - paired
}

/// A and B of a pair, as the file holds them.
fn stored(slot: &Slot) -> [&Stored; 2] {
    let (down, up) = slot.shares[0].stored.as_ref().expect("a pair of one adapter is stored");
    [down, up]
}

/// The tensors of the adapter in its order, those of its pairs replaced or left out.
fn tensors(adapter: &Adapter, terms: &Terms, pairs: Vec<Option<Factors>>) -> Vec<Tensor> {
    let mut new: HashMap<&str, Option<(Shape, Bytes)>> = HashMap::new();
    for (slot, pair) in terms.slots.values().zip(pairs) {
        let [down, up] = stored(slot);
        let bias = slot.shares[0].bias.as_ref();
        let all = [Some(down), Some(up), bias].into_iter().flatten();
        new.extend(all.map(|tensor| (tensor.info.name.as_str(), None)));
        let Some(pair) = pair else { continue };
        let rank = (pair.rank * slot.experts()) as u64;
        new.insert(&down.info.name, Some((with_dimension(&down.info.shape, 0, rank), pair.down)));
        new.insert(&up.info.name, Some((with_dimension(&up.info.shape, 1, rank), pair.up)));
        if let Some((bias, values)) = bias.zip(pair.bias) {
            new.insert(&bias.info.name, Some((bias.info.shape.clone(), values)));
        }
    }
    let tensor = |stored: Stored| match new.remove(stored.info.name.as_str()) {
        None => Some((stored.info.name.clone(), stored.info.shape.clone(), Bytes::Stored(stored))),
        Some(replaced) => replaced.map(|(shape, bytes)| (stored.info.name.clone(), shape, bytes)),
    };
    adapter.tensors.all().filter_map(tensor).collect()
}

fn with_dimension(shape: &Shape, at: usize, size: u64) -> Shape {
    let mut dimensions = shape.as_slice().to_vec();
    dimensions[at] = size;
    Shape::from(dimensions)
}

/// The config as it was, with the ranks and alphas that are true now.
fn config(adapter: &Adapter, terms: &Terms, pairs: &[Option<Factors>]) -> Map<String, Value> {
    let nothing = || Bytes::Held { bytes: Vec::new(), float: Float::F32 };
    let pair = |(slot, pair): (&Slot, &Option<Factors>)| {
        let Factors { rank, alpha, .. } = *pair.as_ref()?;
        let (path, kind, outer) = (slot.path.clone(), slot.kind.clone(), slot.outer);
        Some(NewPair { path, kind, rank, alpha, down: nothing(), up: nothing(), outer, up_bias: None })
    };
    let saved = terms.whole.iter().filter(|(_, held)| held.iter().any(|held| held.standing == Standing::Saved));
    let whole = saved.map(|((module, parameter), _)| NewWhole {
        module: module.clone(),
        parameter: parameter.clone(),
        shape: Shape::default(),
        bytes: nothing(),
        frozen_bias: false,
    });
    let new = NewAdapter {
        pairs: terms.slots.values().zip(pairs).filter_map(pair).collect(),
        whole: whole.collect(),
        ..NewAdapter::default()
    };
    let rendered = new_config::render(&new);
    let mut config = adapter.config.raw.clone();
    for key in ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"] {
        config.insert(key.into(), rendered[key].clone());
    }
    if adapter.config.init.0 != Init::Plain {
        // ΔW is told from the original base now.
        config.insert("init_lora_weights".into(), true.into());
    }
    if pairs.iter().any(Option::is_none) {
        for key in ["target_modules", "target_parameters"] {
            config.insert(key.into(), rendered[key].clone());
        }
        BY_LAYER.iter().filter(|key| adapter.config.raw.contains_key(**key)).for_each(|key| {
            config.insert((*key).into(), Value::Null);
        });
    }
    config
}

/// The free text of the header, as it was, and the recipe.
fn metadata(adapter: &Adapter, recipe: &Value) -> Vec<(String, String)> {
    const OWN: &str = "lorakit";
    let mut metadata = adapter.tensors.files()[0].header.metadata.clone();
    metadata.retain(|(key, _)| key != OWN);
    if metadata.is_empty() {
        metadata.push(("format".into(), "pt".into()));
    }
    metadata.push((OWN.into(), recipe.to_string()));
    metadata
}

/// Files that lie beside the weights and are not `written`: a tokenizer, a model card. Folders are other adapters, or the
/// checkpoints of a trainer.
fn beside(adapter: &Adapter, written: &[(PathBuf, Vec<u8>)]) -> Result<Vec<(PathBuf, PathBuf)>> {
    // A file of its own has no companions: what lies beside it are other adapters.
    if !adapter.root.is_dir() {
        return Ok(Vec::new());
    }
    let found = companions::list(&adapter.root)?.copied.into_iter();
    let own = found.filter(|path| path.components().count() == 1 && !written.iter().any(|(other, _)| other == path));
    Ok(own.map(|path| (path.clone(), adapter.root.join(path))).collect())
}
