//! An adapter that stays what it is but for its ranks: every tensor under its own key, the config as it was but for what ranks and
//! scales say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::SumOptions;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::{Adapter, Init};
use crate::dialects::experts::order;
use crate::dialects::files::{Files, Tensor};
use crate::dialects::kohya::{COMFYUI, KOHYA};
use crate::dialects::peft::new_adapter::NewAdapter;
use crate::dialects::peft::{PEFT, new_config};
use crate::error::{Error, Result};
use crate::formats::{Stored, companions, json};
use crate::naming::experts::peft::{Era, WRITTEN_VERSION};
use crate::output::new_adapter::{RECIPE, ToDialect};
use crate::output::recipe::SIDECAR;
use crate::output::tensors::lay_out;
use crate::pairs::{Bytes, NewPair, NewWhole};
use crate::placement::terms::{Slot, Standing, Terms};
use crate::tensor::Shape;
use crate::truncate::WholeReport;

/// Settings that name modules by number; they would bring back what was left out.
const BY_LAYER: [&str; 3] = ["exclude_modules", "layers_pattern", "layers_to_transform"];

/// Makes sure that `terms`, all of one adapter, have ranks to be changed.
///
/// # Errors
/// When they have none, or a pattern matches none of them.
pub fn check(adapter: &Adapter, terms: &Terms, options: &SumOptions, to: &ToDialect) -> Result<()> {
    let path = &options.adapters[0].0;
    options.selection.check(&terms.slots.values().map(|slot| slot.path.clone()).collect())?;
    let kept = |slot: &&Slot| !slot.multiplied.is_empty() && !options.selection.takes(&slot.path);
    if let Some(slot) = terms.slots.values().find(kept) {
        let what = format!("`{}` is DoRA and would stay so, beside modules that become LoRA", slot.path);
        return Err(Error::unsupported(path, what)
            .hint("resize all of its modules: DoRA and LoRA cannot stand beside each other"));
    }
    if terms.slots.is_empty() {
        return Err(Error::unsupported(path, "holds no low-rank pairs to be resized"));
    }
    match terms.rows.values().flatten().next().filter(|_| form(adapter, terms, to).is_none()) {
        Some(rows) => {
            let tensor = &rows.held.tensor;
            let what = format!("tensor `{}`: token rows are not carried into another form", tensor.info.name);
            Err(Error::unsupported(tensor.path(), what))
        }
        None => Ok(()),
    }
}

/// The dialects whose files are one, with α beside the factors.
const KEYED: [&str; 2] = [KOHYA.name, COMFYUI.name];

/// In which form an adapter stays what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// PEFT's LoRA, with its config.
    Peft,
    /// One file whose pairs have their α beside them.
    Keyed,
}

/// The form in which the adapter stays what it is, every tensor under its own key; everything else becomes LoRA of the dialect `to`.
pub fn form(adapter: &Adapter, terms: &Terms, to: &ToDialect) -> Option<Kept> {
    let stored = terms.slots.values().all(|slot| slot.shares.first().is_some_and(|share| share.stored.is_some()));
    if !stored || !adapter.is_self_contained() {
        return None;
    }
    let has_config = adapter.config.path.ends_with(CONFIG_NAME);
    match to.foreign() {
        None if adapter.dialect == PEFT.name && has_config && adapter.config.method == "LORA" => Some(Kept::Peft),
        Some(to) if to.name == adapter.dialect && KEYED.contains(&to.name) && !has_config => Some(Kept::Keyed),
        _ => None,
    }
}

/// Bytes that the weight file has beside its pairs, at most: its header, and the tensors that are copied; and the numbers in
/// those.
pub fn fixed(adapter: &Adapter, terms: &Terms, recipe: &Value) -> (u64, u64) {
    let paired: u64 = terms.slots.values().flat_map(stored).map(|tensor| tensor.info.bytes).sum();
    // No rank grows where a budget is divided, so neither does the header.
    let tensors = adapter.tensors.all();
    let tensors = tensors.map(|own| (own.info.name.clone(), own.info.shape.clone(), Bytes::Stored(own)));
    let mut metadata = metadata(adapter);
    metadata.push((RECIPE.to_owned(), recipe.to_string()));
    let bytes = lay_out("", tensors.collect(), &metadata, u64::MAX).bytes() - paired;
    (bytes, copied(terms).filter_map(|(_, _, tensor)| tensor.info.shape.elements()).sum())
}

/// The tensors that are copied: module, name, tensor.
fn copied(terms: &Terms) -> impl Iterator<Item = (&str, &str, &Stored)> {
    let whole = terms.whole.iter().flat_map(|((module, parameter), held)| {
        held.iter().map(move |held| (module.as_str(), parameter.as_str(), &held.tensor))
    });
    let rows = terms
        .rows
        .iter()
        .flat_map(|(module, rows)| rows.iter().map(move |rows| (module.as_str(), "token rows", &rows.held.tensor)));
    whole.chain(rows)
}

/// The same, described.
pub fn whole(terms: &Terms) -> Vec<WholeReport> {
    let of = |(module, tensor, stored): (&str, &str, &Stored)| WholeReport {
        module: module.to_owned(),
        tensor: tensor.to_owned(),
        bytes: stored.info.bytes,
        why: None,
    };
    copied(terms).map(of).collect()
}

/// Files and side files of `adapter` with new `pairs`, one per slot of `terms`; `None` leaves a pair out. With them what is
/// to be said of the side files.
///
/// # Errors
/// When the adapter's directory cannot be listed.
pub fn files(adapter: &Adapter, terms: &Terms, pairs: Vec<Option<NewPair>>) -> Result<(Files, Vec<String>)> {
    let left: Vec<bool> = pairs.iter().map(Option::is_some).collect();
    let saved = terms.whole.iter().filter(|(_, held)| held.iter().any(|held| held.standing == Standing::Saved));
    let whole = saved.map(|((module, parameter), _)| NewWhole {
        module: module.clone(),
        parameter: parameter.clone(),
        shape: Shape::default(),
        bytes: Bytes::none(),
        frozen_bias: false,
    });
    let pairs = pairs.into_iter().flatten().collect();
    let open = terms.slots.values().any(Slot::is_open);
    let new = NewAdapter { pairs, whole: whole.collect(), open, ..NewAdapter::default() };
    let config = json::render(&config(adapter, &new, left.iter().all(|left| *left)));
    let mut pairs = new.pairs.into_iter();
    let slots = terms.slots.values().zip(left).map(|(slot, left)| (slot, if left { pairs.next() } else { None }));
    let tensors = tensors(adapter, slots);
    let written = vec![(PathBuf::from(CONFIG_NAME), config)];
    let (copied, notes) = beside(adapter, &written)?;
    let metadata = metadata(adapter);
    Ok((Files { tensors, metadata, beside: written, copied, ..Files::of(&PEFT, &[]) }, notes))
}

/// A and B of a pair, as the file holds them.
pub(super) fn stored(slot: &Slot) -> [&Stored; 2] {
    let (down, up) = slot.shares[0].stored.as_ref().expect("a pair of one adapter is stored");
    [down, up]
}

/// The tensors of the adapter in its order, those of its pairs replaced or left out: key, shape, values.
fn tensors<'a>(adapter: &Adapter, pairs: impl Iterator<Item = (&'a Slot, Option<NewPair>)>) -> Vec<Tensor> {
    let mut new: HashMap<&str, Option<(Shape, Bytes)>> = HashMap::new();
    for (slot, pair) in pairs {
        let [down, up] = stored(slot);
        let bias = slot.shares[0].bias.as_ref();
        let all = [Some(down), Some(up), bias].into_iter().flatten();
        new.extend(all.map(|tensor| (tensor.info.name.as_str(), None)));
        let Some(pair) = pair else { continue };
        let rank = (pair.rank * slot.experts()) as u64;
        new.insert(&down.info.name, Some((with_dimension(&down.info.shape, 0, rank), pair.down)));
        new.insert(&up.info.name, Some((with_dimension(&up.info.shape, 1, rank), pair.up)));
        if let Some((bias, values)) = bias.zip(pair.up_bias) {
            new.insert(&bias.info.name, Some((bias.info.shape.clone(), values)));
        }
    }
    let tensor = |stored: Stored| match new.remove(stored.info.name.as_str()) {
        None => Some((stored.info.name.clone(), stored.info.shape.clone(), Bytes::Stored(stored))),
        Some(replaced) => replaced.map(|(shape, bytes)| (stored.info.name.clone(), shape, bytes)),
    };
    adapter.tensors.all().filter_map(tensor).collect()
}

pub(super) fn with_dimension(shape: &Shape, at: usize, size: u64) -> Shape {
    let mut dimensions = shape.as_slice().to_vec();
    dimensions[at] = size;
    Shape::from(dimensions)
}

/// The config as it was, with the ranks and alphas that are true now; without `all` modules, with the names of those that are left.
fn config(adapter: &Adapter, new: &NewAdapter, all: bool) -> Map<String, Value> {
    let rendered = new_config::render(new);
    let mut config = adapter.config.raw.clone();
    for key in ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"] {
        config.insert(key.into(), rendered[key].clone());
    }
    if new_config::has_stacks(new) {
        let version = adapter.config.raw.get("peft_version").and_then(Value::as_str).unwrap_or(WRITTEN_VERSION);
        let version =
            if Era::of(version) == Some(Era::Today) { version.to_owned() } else { WRITTEN_VERSION.to_owned() };
        order::declare(&mut config, (!new.open).then_some(version.as_str()));
    }
    if adapter.config.init.0 != Init::Plain {
        // ΔW is told from the original base now.
        config.insert("init_lora_weights".into(), true.into());
    }
    if !all {
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
pub(super) fn metadata(adapter: &Adapter) -> Vec<(String, String)> {
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
