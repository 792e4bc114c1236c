//! The resized adapter as files: every tensor under its own key, the config as it was but for what ranks and scales say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::factors::Factors;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::{Adapter, Init};
use crate::dialects::files::{Files, Tensor};
use crate::dialects::peft::new_adapter::NewAdapter;
use crate::dialects::peft::{PEFT, new_config};
use crate::error::{Error, Result};
use crate::formats::{Stored, companions, json};
use crate::output::new_adapter::RECIPE;
use crate::output::recipe::SIDECAR;
use crate::output::tensors::lay_out;
use crate::pairs::{Bytes, NewPair, NewWhole};
use crate::placement::terms::{Slot, Standing, Terms};
use crate::tensor::Shape;

/// Settings that name modules by number; they would bring back what was left out.
const BY_LAYER: [&str; 3] = ["exclude_modules", "layers_pattern", "layers_to_transform"];

/// Bytes of an entry in the header of a file beside its name.
const ENTRY_BYTES: u64 = 128;

/// Files and side files of `adapter` with new `pairs`, one per slot of `terms`; `None` leaves a pair out. With them what is
/// to be said of the side files.
///
/// # Errors
/// When the adapter's directory cannot be listed.
pub fn files(adapter: &Adapter, terms: &Terms, pairs: Vec<Option<Factors>>) -> Result<(Files, Vec<String>)> {
    if !keeps_its_form(adapter, terms) {
        return Ok((renewed(adapter, terms, pairs)?.into_files(), Vec::new()));
    }
    let written = vec![(PathBuf::from(CONFIG_NAME), json::render(&config(adapter, terms, &pairs)))];
    let (copied, notes) = beside(adapter, &written)?;
    let (tensors, metadata) = (tensors(adapter, terms, pairs), metadata(adapter));
    Ok((Files { tensors, metadata, beside: written, copied, ..Files::of(&PEFT, &[]) }, notes))
}

/// Bytes that the weight file has beside its pairs, at most: its header, and the tensors that are copied.
pub fn fixed_bytes(adapter: &Adapter, terms: &Terms, recipe: &Value) -> u64 {
    if !keeps_its_form(adapter, terms) {
        let whole = terms.whole.values().flatten().map(|held| held.tensor.info.bytes).sum::<u64>();
        let keys = terms.slots.keys().map(|(path, _)| 2 * (path.len() as u64 + ENTRY_BYTES)).sum::<u64>();
        return whole + keys + recipe.to_string().len() as u64 * 2;
    }
    let paired: u64 = terms.slots.values().flat_map(stored).map(|tensor| tensor.info.bytes).sum();
    // No rank grows where a budget is divided, so neither does the header.
    let tensors = adapter.tensors.all();
    let tensors = tensors.map(|own| (own.info.name.clone(), own.info.shape.clone(), Bytes::Stored(own)));
    let mut metadata = metadata(adapter);
    metadata.push((RECIPE.to_owned(), recipe.to_string()));
    lay_out("", tensors.collect(), &metadata, u64::MAX).bytes() - paired
}

/// Whether the adapter stays what it is but for its ranks: PEFT's LoRA. Everything else becomes one.
fn keeps_its_form(adapter: &Adapter, terms: &Terms) -> bool {
    let stored = terms.slots.values().all(|slot| slot.shares.first().is_some_and(|share| share.stored.is_some()));
    let is_pefts = adapter.dialect == PEFT.name && adapter.config.path.ends_with(CONFIG_NAME);
    is_pefts && adapter.config.method == "LORA" && adapter.is_self_contained() && stored
}

/// The adapter as a LoRA of PEFT's.
fn renewed(adapter: &Adapter, terms: &Terms, pairs: Vec<Option<Factors>>) -> Result<NewAdapter> {
    if let Some(rows) = terms.rows.values().flatten().next() {
        let tensor = &rows.held.tensor;
        let what = format!("tensor `{}`: token rows are not carried into another form", tensor.info.name);
        return Err(Error::unsupported(tensor.path(), what));
    }
    let pair = |(slot, pair): (&Slot, Option<Factors>)| {
        let Factors { rank, alpha, down, up, bias: up_bias, .. } = pair?;
        let (path, kind, outer) = (slot.path.clone(), slot.kind.clone(), slot.outer);
        Some(NewPair { path, kind, rank, alpha, down, up, outer, up_bias })
    };
    let whole = terms.whole.iter().flat_map(|((module, parameter), held)| {
        let trained = held.iter().filter(|held| held.standing != Standing::Frozen);
        trained.map(|held| NewWhole {
            module: module.clone(),
            parameter: parameter.clone(),
            shape: held.tensor.info.shape.clone(),
            bytes: Bytes::Stored(held.tensor.clone()),
            frozen_bias: held.standing == Standing::Bias,
        })
    });
    let new = NewAdapter {
        inherited: NewAdapter::inherited_from(&adapter.config, adapter.dialect),
        pairs: terms.slots.values().zip(pairs).filter_map(pair).collect(),
        whole: whole.collect(),
        rslora: false,
    };
    new.check_readable(&adapter.root)?;
    Ok(new)
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
    let pair = |(slot, pair): (&Slot, &Option<Factors>)| {
        let Factors { rank, alpha, .. } = *pair.as_ref()?;
        let (path, kind, outer) = (slot.path.clone(), slot.kind.clone(), slot.outer);
        Some(NewPair { path, kind, rank, alpha, down: Bytes::none(), up: Bytes::none(), outer, up_bias: None })
    };
    let saved = terms.whole.iter().filter(|(_, held)| held.iter().any(|held| held.standing == Standing::Saved));
    let whole = saved.map(|((module, parameter), _)| NewWhole {
        module: module.clone(),
        parameter: parameter.clone(),
        shape: Shape::default(),
        bytes: Bytes::none(),
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

/// The free text of the header as it was, without an old recipe.
fn metadata(adapter: &Adapter) -> Vec<(String, String)> {
    let mut metadata = adapter.tensors.files()[0].header.metadata.clone();
    metadata.retain(|(key, _)| key != RECIPE);
    if metadata.is_empty() {
        metadata.push(("format".into(), "pt".into()));
    }
    metadata
}

/// Files that are copied: path below the output, source.
type Copied = Vec<(PathBuf, PathBuf)>;

/// Files that lie beside the weights and are not `written`: a tokenizer, a model card. Folders are other adapters, or the
/// checkpoints of a trainer.
///
/// # Errors
/// When the directory cannot be listed.
pub fn beside(adapter: &Adapter, written: &[(PathBuf, Vec<u8>)]) -> Result<(Copied, Vec<String>)> {
    // A file of its own has no companions: what lies beside it are other adapters.
    if !adapter.root.is_dir() {
        return Ok(Default::default());
    }
    let found = companions::list(&adapter.root)?;
    let is_own = |path: &Path| {
        path.components().count() == 1 && path != Path::new(SIDECAR) && !written.iter().any(|(other, _)| other == path)
    };
    let notes = found.notes(is_own);
    let own = found.copied.into_iter().filter(|path| is_own(path));
    Ok((own.map(|path| (path.clone(), adapter.root.join(path))).collect(), notes))
}
