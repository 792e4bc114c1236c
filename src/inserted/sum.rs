//! Bottlenecks of several adapters as one: side by side, so that for every input the output is the weighted sum of theirs. What a
//! place adds to its residual is summed, the residual is there once, as it is for one adapter.
//!
//! With fewer units, those go that can do least by their weights: the product of the norms of a unit's row of `down` and column of
//! `up` bounds what it adds to an input of norm 1, where the non-linearity has slope 1 at most and no bias.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bottleneck::{Bottleneck, Parts};
use super::places;
use super::structure::{BOTTLENECK, Structure};
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::{Adapter, Change, Inserted, Module};
use crate::dialects::adapterhub::{ADAPTERHUB, SHARED_PARAMETERS, key_of};
use crate::dialects::files::{Files, Tensor};
use crate::error::{Error, Result};
use crate::formats::json;
use crate::linalg::RankRule;
use crate::pairs::Bytes;
use crate::placement::Selection;
use crate::tensor::{Float, Shape};
use crate::truncate::{ModuleReport, NewAdapterReport, RankChoice};

/// What is asked of a sum.
pub struct Asked<'a> {
    /// Which places, and how strongly.
    pub selection: &'a Selection,
    /// Places that are not taken stay as they are.
    pub keeps: bool,
    /// How units are chosen.
    pub rank: Option<&'a RankChoice>,
    /// Units of opposite outputs go.
    pub cancels: bool,
    /// The dtype; that of the tensors where it holds the sum.
    pub dtype: Option<Float>,
}

/// The sum of `adapters` with their weights, and what is said of it.
///
/// # Errors
/// When their outputs do not add up in one adapter, with the reason.
pub fn sum(adapters: &[(&Adapter, f64)], asked: &Asked<'_>) -> Result<(Files, NewAdapterReport)> {
    let first = adapters[0].0;
    adapters.iter().try_for_each(|(adapter, _)| check_has_bottlenecks(adapter))?;
    let structures = adapters.iter().map(|(adapter, _)| Structure::of(adapter)).collect::<Result<Vec<_>>>()?;
    let scalings: Vec<Option<f64>> =
        structures.iter().zip(adapters).map(|(one, (adapter, _))| one.scaling(adapter)).collect::<Result<_>>()?;
    // A factor that all share stays in the config.
    let common = scalings[0].filter(|scale| scalings.iter().all(|other| *other == Some(*scale)));
    for (structure, (adapter, _)) in structures.iter().zip(adapters) {
        structure.check_is_sum(adapter)?;
        structure.check_adds_to(&structures[0], (adapter, first))?;
    }
    let mut made: BTreeMap<String, Bottleneck> = BTreeMap::new();
    let mut before: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut others: Vec<(usize, &str, &Inserted)> = Vec::new();
    let mut skipped: Vec<&str> = Vec::new();
    for (at, ((adapter, weight), structure)) in adapters.iter().zip(&structures).enumerate() {
        let shared = shared(adapter);
        for module in &adapter.modules {
            let Change::Inserted(inserted) = &module.change else { continue };
            if inserted.kind == SHARED_PARAMETERS {
                continue;
            }
            if inserted.kind != BOTTLENECK {
                others.push((at, &module.path, inserted));
                continue;
            }
            if !asked.keeps && !asked.selection.takes(&module.path) {
                skipped.push(&module.path);
                continue;
            }
            let parts = Parts::new(&module.path, inserted, shared, adapter);
            let mut one = Bottleneck::read(&parts, structure, if common.is_some() { Some(1.0) } else { scalings[at] })?;
            one.scale(&[weight * asked.selection.strength(&module.path)]);
            before.entry(module.path.clone()).or_default().push(one.units());
            let sum = match made.remove(&module.path) {
                None => one,
                Some(sum) => joined(sum, one, (&module.path, adapter))?,
            };
            made.insert(module.path.clone(), sum);
        }
    }
    let Some(like) = made.values().next().cloned() else {
        return Err(Error::unsupported(&first.root, "no bottleneck of the adapters is taken"));
    };
    let mut report = NewAdapterReport::default();
    let mut kept: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (place, one) in &mut made {
        if asked.cancels {
            *one = one.cancelled();
        }
        let sizes = one.sizes();
        let norm_squared: f64 = sizes.iter().map(|size| size * size).sum();
        let chosen = asked.rank.filter(|_| asked.selection.takes(place)).map(|rank| units(rank, &sizes, norm_squared));
        let left = match chosen.transpose()? {
            Some(units) if units.len() < one.units() => {
                let left = units.iter().map(|unit| sizes[*unit].powi(2)).sum();
                *one = one.only(&units);
                left
            }
            _ => norm_squared,
        };
        kept.insert(place.clone(), (norm_squared, left));
    }
    refuse_nothing(&made, first)?;
    let (count, sizes_before) = (made.len(), made.values().map(Bottleneck::units).sum::<usize>());
    // The library expects one there all the same.
    for place in skipped {
        made.entry(place.to_owned()).or_insert_with(|| Bottleneck::nothing(&like, 1));
    }
    places::fill(&mut made);
    let factors = places::even(&mut made);
    let padded = made.values().map(Bottleneck::units).sum::<usize>() - sizes_before;
    if padded > 0 {
        report.notes.push(format!(
            "{padded} units that add nothing were put in, since the library gives every place of a layer the same size{}",
            if made.len() > count { " and a bottleneck to every location of its config" } else { "" }
        ));
    }
    let float = asked.dtype.unwrap_or_else(|| narrowest(&made));
    let name = name_of(first);
    let mut files = Files::of(&ADAPTERHUB, &[("format", "pt")]);
    for (place, one) in &made {
        files.tensors.extend(tensors(place, name, one, float, &first.root)?);
        report.modules.push(described(place, one, &before, kept.get(place), float));
    }
    files.tensors.extend(carried(adapters, &others, name)?);
    let mut changed = vec![("reduction_factor", factors), ("phm_layer", Value::Bool(false))];
    if common.is_none() {
        changed.push(("scaling", json!(1.0)));
    }
    for key in ["mh_adapter", "output_adapter", "cross_adapter"] {
        changed.push((key, structures.iter().any(|structure| structure.is(key)).into()));
    }
    let left_out = structures[0].left_out();
    let left_out = left_out.into_iter().filter(|layer| structures.iter().all(|one| one.left_out().contains(layer)));
    changed.push(("leave_out", left_out.collect::<Vec<u64>>().into()));
    if let Some((at, ..)) = others.iter().find(|(at, _, inserted)| *at > 0 && inserted.kind == INVERTIBLE) {
        for key in ["inv_adapter", "inv_adapter_reduction_factor"] {
            changed.push((key, structures[*at].setting(key)));
        }
    }
    let config = structures[0].written(first, &changed);
    files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&Value::Object(config))));
    if let [(adapter, _)] = adapters {
        (ADAPTERHUB.beside)(adapter, &mut files)?;
    }
    report.add_up(0.0);
    report.exact = report.modules.iter().all(|module| module.exact);
    Ok((files, report))
}

/// Refuses adapters without a bottleneck: what else is inserted has no sum.
fn check_has_bottlenecks(adapter: &Adapter) -> Result<()> {
    let kind = |module: &Module| match &module.change {
        Change::Inserted(inserted) => Some(inserted.kind),
        _ => None,
    };
    if adapter.modules.iter().any(|module| kind(module) == Some(BOTTLENECK)) {
        return Ok(());
    }
    let kind = adapter.modules.iter().find_map(kind).unwrap_or("nothing");
    let what = format!("is {kind}, of which neither a sum nor a part is one again: it does not add to an output");
    Err(Error::unsupported(&adapter.root, what)
        .hint("`lorakit stack --method average` averages adapters of one structure"))
}

/// How the kind is called that only one adapter may have, and whose settings stand with those of bottlenecks.
const INVERTIBLE: &str = "invertible adapter";

/// What all bottlenecks of an adapter share.
fn shared(adapter: &Adapter) -> Option<&Inserted> {
    adapter.modules.iter().find_map(|module| match &module.change {
        Change::Inserted(inserted) if inserted.kind == SHARED_PARAMETERS => Some(inserted.as_ref()),
        _ => None,
    })
}

/// The name that stands in the keys of `adapter`.
fn name_of(adapter: &Adapter) -> &str {
    adapter.config.raw.get("name").and_then(Value::as_str).unwrap_or("adapter")
}

/// Two bottlenecks of one place as one.
fn joined(mut left: Bottleneck, mut right: Bottleneck, (place, adapter): (&str, &Adapter)) -> Result<Bottleneck> {
    if left.hidden != right.hidden {
        let problem = format!("has width {}, another adapter {}", right.hidden, left.hidden);
        return Err(Error::malformed(&adapter.root, format!("bottleneck `{place}`"), problem)
            .hint("the adapters belong to different models"));
    }
    if left.norm != right.norm {
        // The norm itself is the same for both: what differs belongs to the projections.
        left.fold_norm();
        right.fold_norm();
    }
    Ok(left.beside(&right))
}

/// The units that are kept, in their order.
fn units(choice: &RankChoice, sizes: &[f64], norm_squared: f64) -> Result<Vec<usize>> {
    let rule: RankRule = choice.rule(None).ok_or_else(|| {
        let problem =
            "the units of bottlenecks are chosen place by place: --rank, --energy, --max-error or --rank-method";
        Error::invalid("--rank", problem)
    })?;
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|left, right| sizes[*right].total_cmp(&sizes[*left]));
    let sorted: Vec<f64> = order.iter().map(|unit| sizes[*unit]).collect();
    let mut kept = order[..rule.choose(&sorted, norm_squared).min(sizes.len())].to_vec();
    kept.sort_unstable();
    Ok(kept)
}

/// Refuses an adapter without a unit.
fn refuse_nothing(made: &BTreeMap<String, Bottleneck>, first: &Adapter) -> Result<()> {
    if made.values().any(|one| one.units() > 0) {
        return Ok(());
    }
    Err(Error::unsupported(&first.root, "nothing is left to write: no unit of any bottleneck remains"))
}

/// The dtype of the inputs, if it holds every number; f32 otherwise.
fn narrowest(made: &BTreeMap<String, Bottleneck>) -> Float {
    let Some(float) = made.values().map(|one| one.float).max_by_key(|float| float.bytes()) else { return Float::F32 };
    let holds = |values: &Vec<f32>| {
        let mut rounded = values.clone();
        float.round(&mut rounded);
        rounded.iter().zip(values).all(|(one, two)| one.to_bits() == two.to_bits())
    };
    let all = |one: &Bottleneck| {
        [&one.down, &one.down_bias, &one.up, &one.up_bias].into_iter().chain(one.norm.iter().flatten()).all(holds)
    };
    if float.bytes() >= Float::F32.bytes() || !made.values().all(all) { Float::F32 } else { float }
}

/// The tensors of a bottleneck, as the library names them.
fn tensors(place: &str, name: &str, one: &Bottleneck, float: Float, root: &Path) -> Result<Vec<Tensor>> {
    let (units, hidden) = (one.units() as u64, one.hidden as u64);
    let mut made = Vec::new();
    let mut put = |role: &str, shape: &[u64], values: &[f32]| -> Result<()> {
        let key = key_of(BOTTLENECK, place, name, role);
        let bytes = Bytes::held(values, float, (root, &key))?;
        made.push((key, Shape::from(shape.to_vec()), bytes));
        Ok(())
    };
    let down = if one.norm.is_some() { "adapter_down.1" } else { "adapter_down.0" };
    // The norm is the first layer of `adapter_down` as well.
    for (end, values) in ["weight", "bias"].iter().zip(one.norm.iter().flatten()) {
        put(&format!("adapter_norm_before.{end}"), &[hidden], values)?;
        put(&format!("adapter_down.0.{end}"), &[hidden], values)?;
    }
    put(&format!("{down}.weight"), &[units, hidden], &one.down)?;
    put(&format!("{down}.bias"), &[units], &one.down_bias)?;
    put("adapter_up.weight", &[hidden, units], &one.up)?;
    put("adapter_up.bias", &[hidden], &one.up_bias)?;
    Ok(made)
}

/// What only one of the adapters inserts beside bottlenecks, under the name of the first.
fn carried(adapters: &[(&Adapter, f64)], others: &[(usize, &str, &Inserted)], name: &str) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for (at, place, inserted) in others {
        let refuse = |problem: String| {
            Err(Error::unsupported(&adapters[*at].0.root, format!("`{place}` has {}: {problem}", inserted.kind)))
        };
        let in_another = others.iter().any(|(other, _, theirs)| other != at && theirs.kind == inserted.kind);
        if in_another {
            return refuse("only one of the adapters can have it, for two do not add up".into());
        }
        if adapters[*at].1 != 1.0 {
            return refuse(format!("no weight can multiply it, and the adapter has the weight {}", adapters[*at].1));
        }
        if *at > 0 && inserted.kind != INVERTIBLE {
            return refuse("name its adapter first, whose config is kept".into());
        }
        tensors.extend(inserted.tensors.iter().map(|(role, stored)| {
            (key_of(inserted.kind, place, name, role), stored.info.shape.clone(), Bytes::Stored(stored.clone()))
        }));
    }
    Ok(tensors)
}

/// What is said of one place.
fn described(
    place: &str,
    one: &Bottleneck,
    before: &BTreeMap<String, Vec<usize>>,
    kept: Option<&(f64, f64)>,
    float: Float,
) -> ModuleReport {
    let (norm_squared, left) = kept.copied().unwrap_or_default();
    let norm = norm_squared.sqrt();
    let off = if norm > 0.0 { ((norm_squared - left).max(0.0)).sqrt() } else { 0.0 };
    ModuleReport {
        ranks_before: before.get(place).cloned().unwrap_or_default(),
        exact: left == norm_squared && !one.rounded && float.bytes() >= one.float.bytes(),
        singular_values: Vec::new(),
        ..ModuleReport::of_units(place, (one.hidden, one.units()), float, norm).off_by(off)
    }
}
