//! Where bottlenecks sit, and the sizes that the library reads back. It puts one at every location that its config names, in every
//! layer that is not left out, of `hidden // reduction_factor` units (adapters 1.3 `methods/bottleneck.py`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::bottleneck::Bottleneck;
use crate::naming::layer_of;

/// Fills up the places where the library expects a bottleneck and there is none, with one that adds nothing.
pub fn fill(found: &mut BTreeMap<String, Bottleneck>) {
    let mut layers: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let mut locations: BTreeSet<(String, String)> = BTreeSet::new();
    for (before, layer, behind) in found.keys().filter_map(|place| layer_of(place)) {
        layers.entry(before.to_owned()).or_default().insert(layer);
        locations.insert((before.to_owned(), behind.to_owned()));
    }
    let Some(like) = found.values().next().cloned() else { return };
    for (before, behind) in locations {
        for layer in layers.get(&before).into_iter().flatten() {
            let place = format!("{before}{layer}{behind}");
            found.entry(place).or_insert_with(|| Bottleneck::nothing(&like, 1));
        }
    }
}

/// Gives bottlenecks that share a reduction factor one size, with units that add nothing. Gives the factors, as the config has them.
pub fn even(found: &mut BTreeMap<String, Bottleneck>) -> Value {
    let widest = |of: &BTreeMap<String, Bottleneck>| of.values().map(Bottleneck::units).max().unwrap_or(1).max(1);
    let hidden = found.values().next().map_or(1, |one| one.hidden);
    let fronts: BTreeSet<&str> = found.keys().filter_map(|place| layer_of(place)).map(|(before, ..)| before).collect();
    let sizes: BTreeSet<usize> = found.values().map(Bottleneck::units).collect();
    // Of an encoder with a decoder the library counts layers through.
    let by_layer = fronts.len() == 1 && found.keys().all(|place| layer_of(place).is_some()) && sizes.len() > 1;
    let all = widest(found);
    if !by_layer {
        found.values_mut().for_each(|one| widen(one, all));
        return factor(hidden, all);
    }
    let mut of_layer: BTreeMap<u64, usize> = BTreeMap::new();
    for (place, one) in found.iter() {
        let layer = layer_of(place).map_or(0, |(_, layer, _)| layer);
        let widest = of_layer.entry(layer).or_insert(1);
        *widest = one.units().max(*widest);
    }
    for (place, one) in found.iter_mut() {
        let layer = layer_of(place).map_or(0, |(_, layer, _)| layer);
        widen(one, of_layer.get(&layer).copied().unwrap_or(all));
    }
    let mut factors: Map<String, Value> =
        of_layer.iter().map(|(layer, units)| (layer.to_string(), factor(hidden, *units))).collect();
    factors.insert("default".into(), factor(hidden, all));
    factors.into()
}

/// A reduction factor that gives `units`: a whole number where one does, otherwise one in the middle of those that do.
fn factor(hidden: usize, units: usize) -> Value {
    if hidden.is_multiple_of(units) { json!(hidden / units) } else { json!(hidden as f64 / (units as f64 + 0.5)) }
}

fn widen(one: &mut Bottleneck, units: usize) {
    let missing = units.saturating_sub(one.units());
    if missing > 0 {
        let nothing = Bottleneck::nothing(one, missing);
        let norm = one.norm.take();
        *one = one.beside(&nothing);
        one.norm = norm;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_reads_the_size_back() {
        for hidden in [1_usize, 7, 64, 768, 4096] {
            for units in 1..=hidden.min(200) + 3 {
                let factor = factor(hidden, units).as_f64().expect("a number");
                assert_eq!((hidden as f64 / factor).floor() as usize, units, "{hidden} and {units}: {factor}");
            }
        }
    }
}
