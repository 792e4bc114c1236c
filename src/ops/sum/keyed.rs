//! An adapter in one file with α beside its factors (sd-scripts, ComfyUI) that stays what it is but for its ranks: every tensor under its
//! own key, the metadata of its training as they were.

use std::collections::HashMap;

use super::kept::{metadata, stored, with_dimension};
use crate::adapters::Adapter;
use crate::dialects::files::{Files, Tensor};
use crate::dialects::kohya::KOHYA;
use crate::error::Result;
use crate::formats::Stored;
use crate::pairs::{Bytes, NewPair, PairKind};
use crate::placement::terms::{Slot, Terms};
use crate::tensor::{Float, Shape};

/// What stands between a module and the name of a factor.
const FACTOR: &str = ".lora_";

/// Keys of sd-scripts that tell rank and alpha of all modules.
const DIM: &str = "ss_network_dim";
const ALPHA: &str = "ss_network_alpha";

/// Key of sd-scripts that tells the arguments of the network as JSON: rank and alpha of convolutions are among them.
const ARGS: &str = "ss_network_args";

/// The file of `adapter` with new `pairs`, one per slot of `terms`; `None` leaves a pair out.
///
/// # Errors
/// When an alpha is beyond f32.
pub fn files(adapter: &Adapter, terms: &Terms, pairs: Vec<Option<NewPair>>) -> Result<Files> {
    let mut metadata = metadata(adapter);
    let left: Vec<&NewPair> = pairs.iter().flatten().collect();
    for (key, values) in [
        (DIM, left.iter().map(|pair| pair.rank.to_string()).collect::<Vec<_>>()),
        (ALPHA, left.iter().map(|pair| format!("{:?}", pair.alpha)).collect()),
    ] {
        let same = values.windows(2).all(|two| two[0] == two[1]);
        let value = if same { values.first().cloned().unwrap_or_default() } else { "Dynamic".to_owned() };
        metadata.iter_mut().filter(|(own, _)| own == key).for_each(|(_, old)| old.clone_from(&value));
    }
    if let Some((_, args)) = metadata.iter_mut().find(|(key, _)| key == ARGS)
        && let Some(said) = arguments(args, &left)
    {
        *args = said;
    }
    let hashed = metadata.iter().any(|(key, _)| key.starts_with("sshs_") || key == "modelspec.hash_sha256");
    let tensors = tensors(adapter, terms.slots.values().zip(pairs))?;
    Ok(Files { tensors, metadata, single: true, hashed, ..Files::of(&KOHYA, &[]) })
}

/// The arguments of the network with the rank and α that its convolutions have now; nothing where they say none.
fn arguments(text: &str, pairs: &[&NewPair]) -> Option<String> {
    let mut said: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let wide = |pair: &&&NewPair| matches!(&pair.kind, PairKind::Conv { kernel } if kernel.iter().product::<u64>() > 1);
    let convolutions: Vec<&&NewPair> = pairs.iter().filter(wide).collect();
    let one = convolutions.first()?;
    let same = convolutions.iter().all(|pair| pair.rank == one.rank && pair.alpha == one.alpha);
    for (key, value) in [("conv_dim", one.rank.to_string()), ("conv_alpha", format!("{:?}", one.alpha))] {
        if said.contains_key(key) {
            said.insert(key.into(), if same { value.into() } else { "Dynamic".into() });
        }
    }
    Some(serde_json::Value::Object(said).to_string())
}

/// The tensors of the adapter in its order, those of its pairs and their α replaced or left out.
fn tensors<'a>(adapter: &Adapter, pairs: impl Iterator<Item = (&'a Slot, Option<NewPair>)>) -> Result<Vec<Tensor>> {
    let mut new: HashMap<String, Option<(Shape, Bytes)>> = HashMap::new();
    let mut alphas = HashMap::new();
    for (slot, pair) in pairs {
        let [down, up] = stored(slot);
        let module = down.info.name.rsplit_once(FACTOR).map_or(down.info.name.as_str(), |(module, _)| module);
        let key = format!("{module}.alpha");
        let Some(pair) = pair else {
            new.extend([(down.info.name.clone(), None), (up.info.name.clone(), None), (key, None)]);
            continue;
        };
        let rank = pair.rank as u64;
        new.insert(down.info.name.clone(), Some((with_dimension(&down.info.shape, 0, rank), pair.down)));
        new.insert(up.info.name.clone(), Some((with_dimension(&up.info.shape, 1, rank), pair.up)));
        alphas.insert(key, (pair.alpha, pair.alpha == pair.rank as f64));
    }
    let mut tensors = Vec::new();
    for stored in adapter.tensors.all() {
        let name = stored.info.name.clone();
        if let Some((value, _)) = alphas.remove(&name) {
            tensors.push(alpha(adapter, name, value, Some(&stored))?);
            continue;
        }
        match new.remove(&name) {
            None => tensors.push((name, stored.info.shape.clone(), Bytes::Stored(stored))),
            Some(replaced) => tensors.extend(replaced.map(|(shape, bytes)| (name, shape, bytes))),
        }
    }
    // Readers take the rank where there is none.
    let mut missing: Vec<(String, (f64, bool))> = alphas.into_iter().filter(|(_, (_, is_rank))| !is_rank).collect();
    missing.sort_by(|left, right| left.0.cmp(&right.0));
    for (name, (value, _)) in missing {
        tensors.push(alpha(adapter, name, value, None)?);
    }
    Ok(tensors)
}

/// α as a tensor: in the dtype it had, if that takes it exactly.
fn alpha(adapter: &Adapter, name: String, value: f64, old: Option<&Stored>) -> Result<Tensor> {
    let held = |float: Float| Bytes::held(&[value as f32], float, (&adapter.config.path, &name));
    let own = old.and_then(|old| old.info.dtype.float());
    let exact = own.filter(|own| match own {
        Float::F32 | Float::F64 => true,
        Float::Bf16 => f64::from(half::bf16::from_f64(value)) == value,
        Float::F16 => f64::from(half::f16::from_f64(value)) == value,
        _ => false,
    });
    let bytes = held(exact.unwrap_or(Float::F32))?;
    let shape = old.map_or_else(|| Shape::from(Vec::<u64>::new()), |old| old.info.shape.clone());
    Ok((name, shape, bytes))
}
