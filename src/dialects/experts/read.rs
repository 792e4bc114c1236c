//! How the pairs of PEFT's `target_parameters` lie, decided once for all verbs when an adapter is opened.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::HashMap;

use super::opinion::{self, Opinion};
use super::order::{self, By};
use super::packed::as_today;
use super::sides::{self, Family};
use crate::adapters::{Adapter, Change, Lies, Lora, Packing, ReadOptions, Stack, describe};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::naming::experts::STACKS;
use crate::naming::experts::peft::{Era, Order, Sides};

/// Stacks of one parameter whose values are looked at; they were all packed by one program.
const LOOKED_AT: usize = 6;

/// A stack's pair, and what the config says of it.
pub struct Found<'a> {
    at: usize,
    module: &'a str,
    /// The parameter, as in `gate_up_proj`.
    pub name: String,
    /// The pair, as it lies.
    pub lora: &'a Lora,
    experts: u64,
}

impl Found<'_> {
    /// Whether the width of the model is on its outputs.
    pub fn is_down(&self) -> bool {
        self.name.starts_with("down") || self.name == "output_linear"
    }

    fn is_square(&self) -> bool {
        self.lora.inputs() == self.lora.outputs()
    }
}

/// How a pair lies, and what tells.
#[derive(Clone)]
struct Reading {
    sides: Option<Sides>,
    sides_by: String,
    order: Order,
    order_by: String,
}

/// A name from a file in messages.
pub fn quoted(name: &str) -> String {
    format!("`{name}`")
}

impl Adapter {
    /// Finds out how the pairs of its stacks of experts lie, and brings them to the form that PEFT has today. `model` is the
    /// config of the model, where that is at hand; with `look` the values are asked as well.
    ///
    /// # Errors
    /// When what is said, by the config or an option, contradicts the shapes or the values.
    pub(crate) fn read_stacks(&mut self, model: Option<&ModelConfig>, options: &ReadOptions, look: bool) -> Result<()> {
        let found = find(self);
        if found.is_empty() {
            return Ok(());
        }
        let family = Family::of(&self.config, model);
        let all_sides = decide_sides(self, &found, &family, options)?;
        let orders = decide_orders(self, &found, &family, options, look)?;
        let (era, _) = sides::era(&self.config);
        let silent = family.wants_swapped() || family.types.is_empty() && is_of_llama4(&found, &all_sides, era);
        let native = if silent { Sides::Swapped } else { Sides::Straight };
        let told = options.expert_sides.is_some() || options.expert_order.is_some();
        let mut packings: BTreeMap<(String, u64, Option<Sides>, Order), Packing> = BTreeMap::new();
        let mut stacks: Vec<(usize, Stack)> = Vec::with_capacity(found.len());
        for ((found, (sides, sides_by)), (order, order_by)) in found.iter().zip(all_sides).zip(orders) {
            let reading = Reading { sides, sides_by, order, order_by };
            note(&mut packings, found, &reading);
            let turned = reading.sides.is_some_and(|sides| sides != native);
            let regrouped = reading.order != Order::RankMajor && found.experts > 1 && found.lora.rank() > found.experts;
            let lies = (turned || regrouped).then(|| Lies {
                down: found.lora.down.clone(),
                up: found.lora.up.clone(),
                turned,
                order: reading.order,
            });
            stacks.push((
                found.at,
                Stack {
                    parameter: format!("{}.{}", found.module, found.name),
                    experts: found.experts,
                    sides: reading.sides.map(|_| native),
                    lies_as_today: era == Some(Era::Today),
                    by: reading.sides_by,
                    lies,
                },
            ));
        }
        self.packings = packings.into_values().collect();
        self.needed.experts = told;
        for (at, stack) in stacks {
            let Change::Lora(lora) = &mut self.modules[at].change else { continue };
            if let Some(lies) = &stack.lies {
                (lora.down, lora.up) = as_today(lies, stack.experts);
                self.needed.repacked = true;
            }
            lora.stack = Some(Arc::new(stack));
        }
        Ok(())
    }
}

/// Llama 4 alone keeps its experts below `feed_forward.experts` as `[E, in, out]`.
fn is_of_llama4(found: &[Found<'_>], sides: &[(Option<Sides>, String)], era: Option<Era>) -> bool {
    let silent = match era {
        Some(Era::Today) => Sides::Swapped,
        Some(_) => Sides::Straight,
        None => return false,
    };
    let is = |(found, (sides, _)): (&Found<'_>, &(Option<Sides>, String))| {
        found.module.ends_with("feed_forward.experts") && *sides == Some(silent)
    };
    found.iter().zip(sides).all(is)
}

/// The pairs of stacks, with the parameter that each belongs to.
fn find(adapter: &Adapter) -> Vec<Found<'_>> {
    let config = &adapter.config;
    let (Some(scaling), false) = (&config.scaling, config.target_parameters.is_empty()) else { return Vec::new() };
    let mut by_module: Vec<(&str, Vec<usize>)> = Vec::new();
    for (at, module) in adapter.modules.iter().enumerate() {
        match (&module.change, by_module.last_mut()) {
            (Change::Lora(_), Some((path, pairs))) if *path == module.path => pairs.push(at),
            (Change::Lora(_), _) => by_module.push((&module.path, vec![at])),
            _ => {}
        }
    }
    let mut all = Vec::new();
    for (module, mut pairs) in by_module {
        let names = config.parameters_of(module);
        if names.len() != pairs.len() {
            continue;
        }
        // The outermost pair (nesting 0) belongs to the parameter defined last.
        pairs.sort_by_key(|at| std::cmp::Reverse(adapter.modules[*at].nesting));
        for (name, at) in names.into_iter().zip(pairs) {
            let Change::Lora(lora) = &adapter.modules[at].change else { continue };
            let rank = scaling.rank(&format!("{module}.{name}")).max(1);
            let two = [&lora.down, &lora.up].iter().all(|tensor| tensor.info.shape.as_slice().len() == 2);
            let agree = lora.up.info.shape.rows_cols().1 == lora.rank();
            let experts = lora.rank() / rank;
            let is_stack = experts > 1 || experts == 1 && STACKS.contains(&name);
            if two && agree && is_stack && lora.rank().is_multiple_of(rank) && !name.ends_with("bias") {
                all.push(Found { at, module, name: name.to_owned(), lora, experts });
            }
        }
    }
    all
}

/// The sides of every stack, and what tells.
fn decide_sides(
    adapter: &Adapter,
    found: &[Found<'_>],
    family: &Family,
    options: &ReadOptions,
) -> Result<Vec<(Option<Sides>, String)>> {
    let width = family.width.or_else(|| width_of(adapter, found));
    let by_shape: Vec<Option<Sides>> =
        found.iter().map(|found| width.and_then(|width| sides::by_width(found, width))).collect();
    let sibling = by_shape.iter().flatten().next().copied();
    let (era, told) = sides::era(&adapter.config);
    let version = sides::by_version(era, &told, family);
    let says_version = adapter.config.raw.contains_key("peft_version");
    let mut all = Vec::with_capacity(found.len());
    for (found, shape) in found.iter().zip(by_shape) {
        let decided = match (shape, options.expert_sides) {
            (Some(shape), Some(said)) if shape != said => {
                let problem = format!("the shapes say {} for `{}`", shape.name(), found.module);
                return Err(Error::mismatch(
                    describe(&found.lora.down),
                    format!("--expert-sides {}", said.name()),
                    problem,
                ));
            }
            (Some(shape), _) => (Some(shape), "by its shapes".to_owned()),
            (None, Some(said)) => (Some(said), "told".to_owned()),
            (None, None) if sibling.is_some() && found.is_square() => {
                (sibling, "as the adapter's other stacks".to_owned())
            }
            // Of a matrix that is not square the model tells, if nothing else does.
            (None, None) if !found.is_square() && (family.types.is_empty() || !says_version) => {
                (None, "only the model tells".to_owned())
            }
            (None, None) => match &version {
                Ok((sides, by)) => (Some(*sides), by.clone()),
                Err(why) => (None, why.clone()),
            },
        };
        all.push(decided);
    }
    Ok(all)
}

/// The width of the model: what two stacks of a module tell, else the layers that read its states.
fn width_of(adapter: &Adapter, found: &[Found<'_>]) -> Option<u64> {
    const READERS: [&str; 5] = ["q_proj", "k_proj", "v_proj", "qkv_proj", "router"];
    let mut first_of: HashMap<&str, &Found<'_>> = HashMap::default();
    for found in found {
        if let Some(first) = first_of.get(found.module)
            && let Some(width) = sides::width_of_both(first, found)
        {
            return Some(width);
        }
        first_of.entry(found.module).or_insert(found);
    }
    // A vision tower has another width.
    let layers = found.first()?.module.split(".layers.").next()?;
    adapter.modules.iter().find_map(|module| {
        let name = module.path.rsplit('.').next()?;
        let Change::Lora(lora) = &module.change else { return None };
        let reads = READERS.contains(&name) && module.path.starts_with(layers);
        reads.then(|| lora.inputs())
    })
}

/// The order of every stack, and what tells.
fn decide_orders(
    adapter: &Adapter,
    found: &[Found<'_>],
    family: &Family,
    options: &ReadOptions,
    look: bool,
) -> Result<Vec<(Order, String)>> {
    if let Some(order) = options.expert_order {
        return Ok(vec![(order, "told".to_owned()); found.len()]);
    }
    let said: Vec<(Order, By)> = found.iter().map(|found| order::said(&adapter.config, family, &found.name)).collect();
    if !look {
        return Ok(said.into_iter().map(|(order, by)| (order, by.words(order).to_owned())).collect());
    }
    let opinions = opinions(found)?;
    // What speaks against the order that is said, of each parameter and of all.
    let mut total = Opinion::default();
    let mut against: BTreeMap<&str, (Opinion, Order)> = BTreeMap::new();
    for ((found, opinion), (order, _)) in found.iter().zip(&opinions).zip(&said) {
        let Some(opinion) = opinion else { continue };
        total = total.and(*opinion);
        let (own, _) = against.entry(&found.name).or_insert((Opinion::default(), *order));
        *own = own.and(*opinion);
    }
    let firm = said.iter().any(|(_, by)| matches!(by, By::Marker | By::Rule));
    if firm {
        for (name, (opinion, order)) in &against {
            if opinion.clear().is_some_and(|clear| clear != *order) {
                return Err(contradicted(adapter, name, *order, opinion));
            }
        }
        return Ok(said.into_iter().map(|(order, by)| (order, by.words(order).to_owned())).collect());
    }
    let open = said.iter().any(|(_, by)| *by == By::Open);
    match total.clear() {
        Some(clear) => {
            let by = if clear == Order::RankMajor { "as PEFT does" } else { "by the values: no marker says so" };
            Ok(vec![(clear, by.to_owned()); found.len()])
        }
        None if open && found.iter().any(|found| found.experts > 1 && found.lora.rank() > found.experts) => {
            let what = format!(
                "Unsloth wrote it without saying whether the columns of B are `rank_major` or `grouped_by_expert`: {}",
                total.words()
            );
            Err(Error::unsupported(&adapter.config.path, what).hint(WAY_OUT))
        }
        None => Ok(said.into_iter().map(|(order, by)| (order, by.words(order).to_owned())).collect()),
    }
}

/// What every refusal of an order offers.
const WAY_OUT: &str = "`--expert-order rank_major` or `--expert-order grouped_by_expert` says which";

fn contradicted(adapter: &Adapter, name: &str, said: Order, opinion: &Opinion) -> Error {
    let what = format!(
        "the columns of B of `{name}` should be `{}`, and the values say otherwise: {}",
        said.marker(),
        opinion.words()
    );
    Error::unsupported(&adapter.config.path, what).hint(WAY_OUT)
}

/// What the values say of the first stacks of every parameter.
fn opinions(found: &[Found<'_>]) -> Result<Vec<Option<Opinion>>> {
    let mut seen: HashMap<String, usize> = HashMap::default();
    let opinion = |found: &Found<'_>| {
        let seen = seen.entry(found.name.clone()).or_default();
        *seen += 1;
        (*seen <= LOOKED_AT).then(|| opinion::of(found.lora, found.experts)).transpose()
    };
    found.iter().map(opinion).collect()
}

fn note(packings: &mut BTreeMap<(String, u64, Option<Sides>, Order), Packing>, found: &Found<'_>, reading: &Reading) {
    let key = (found.name.clone(), found.experts, reading.sides, reading.order);
    let packing = packings.entry(key).or_insert_with(|| Packing {
        parameter: found.name.clone(),
        stacks: 0,
        experts: found.experts,
        sides: reading.sides.map(Sides::name),
        sides_by: reading.sides_by.clone(),
        order: reading.order.marker(),
        order_by: reading.order_by.clone(),
    });
    packing.stacks += 1;
}
