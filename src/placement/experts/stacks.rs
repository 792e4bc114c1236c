//! Pairs that adapt a parameter with all experts at once (PEFT's `target_parameters`).
//!
//! The parameter's name is not in the key: several parameters of one module nest, the last defined outermost, and the shapes have
//! the last word.

use std::sync::Arc;

use super::homes::{Home, Layer};
use super::{add, refuse_init, turned};
use crate::adapters::{Change, Lora, Module, Term, describe};
use crate::error::{Error, Result};
use crate::naming::experts::peft::Sides;
use crate::naming::experts::{self, DEFINITION_ORDER, Part, TRANSPOSED_MODELS};
use crate::placement::change::Placeable;
use crate::placement::fit::check_magnitude;
use crate::placement::placer::{Outcome, Placer};
use crate::tensor::usize_of;

/// Most parameters of one module; their pairs are told apart by trying every order.
const MAX_STACKS: usize = 6;

/// A parameter as it lies in the base.
struct Stack {
    /// Its path as the adapter's config names it.
    parameter: String,
    experts: u64,
    /// Outputs and inputs of one expert.
    size: (u64, u64),
    home: Place,
}

enum Place {
    /// Experts of a layer that the tables know.
    Layer(Layer, &'static [Part]),
    /// One tensor `[E, …]`, which may be `[E, in, out]`, or a plain matrix.
    Tensor { name: String, turned: Option<bool> },
    /// One tensor per expert of a list that no table has, where the projection has the name of the parameter.
    List { path: String, name: String },
}

/// Lands all pairs of the job's module with the first; `None` if the config adapts none of its parameters.
pub fn place(placer: &mut Placer<'_>, job: &Placeable<'_>) -> Result<Option<Outcome>> {
    let parameters = job.applied.adapter.config.parameters_of(&job.module.path);
    if parameters.is_empty() {
        return Ok(None);
    }
    if !job.is_first_pair() {
        return Ok(Some(Outcome::Merged));
    }
    let pairs: Vec<&Module> = job.siblings().filter(|module| matches!(module.change, Change::Lora(_))).collect();
    let Some(assigned) = assign(placer, job, &pairs, &parameters)? else { return Ok(None) };
    refuse_init(job)?;
    for (pair, stack) in assigned {
        place_stack(placer, job, pair, &stack)?;
    }
    Ok(Some(Outcome::Merged))
}

/// Which pair belongs to which parameter: the order of nesting if the shapes agree with it, else the one order that fits.
fn assign<'a>(
    placer: &mut Placer<'_>,
    job: &Placeable<'_>,
    pairs: &[&'a Module],
    parameters: &[&str],
) -> Result<Option<Vec<(&'a Module, Stack)>>> {
    let stacks: Vec<Stack> = parameters.iter().filter_map(|name| find_stack(placer, job, name)).collect();
    if stacks.is_empty() {
        return Ok(None);
    }
    if stacks.len() > MAX_STACKS {
        let path = &job.applied.adapter.config.path;
        return Err(Error::limit(path, "adapted parameters of one module", stacks.len() as u64, MAX_STACKS as u64));
    }
    // The outermost pair (nesting 0) belongs to the parameter defined last.
    let mut inner_first: Vec<&Module> = pairs.to_vec();
    inner_first.sort_by_key(|module| std::cmp::Reverse(module.nesting));
    if inner_first.len() != stacks.len() {
        let names: Vec<String> = stacks.iter().map(|stack| format!("`{}`", stack.parameter)).collect();
        let problem = format!("the file has {} pairs for it, the config adapts {}", pairs.len(), names.join(", "));
        return Err(Error::mismatch(
            format!("{}: `{}`", job.applied.adapter.root.display(), job.module.path),
            job.applied.adapter.config.path.display().to_string(),
            problem,
        ));
    }
    let fits = |order: &[usize]| order.iter().zip(&inner_first).all(|(at, module)| stacks[*at].takes(lora_of(module)));
    let straight = |order: &[usize]| {
        order.iter().zip(&inner_first).all(|(at, module)| stacks[*at].takes_straight(lora_of(module)))
    };
    let orders = permutations(stacks.len());
    let upright: Vec<&Vec<usize>> = orders.iter().filter(|order| straight(order)).collect();
    let fitting = if upright.is_empty() { orders.iter().filter(|order| fits(order)).collect() } else { upright };
    // In what order a class that no table has defines its parameters is not known.
    let is_open =
        |stack: &Stack| matches!(&stack.home, Place::List { name, .. } if !DEFINITION_ORDER.contains(&name.as_str()));
    if stacks.iter().any(is_open) && fitting.len() > 1 {
        let names: Vec<String> = stacks.iter().map(|stack| format!("`{}`", stack.parameter)).collect();
        let what = format!("its pairs for {} have the same shapes, and which is whose is not known", names.join(", "));
        return Err(Error::unsupported(&job.applied.adapter.root, what));
    }
    let Some(order) = fitting.first().copied().cloned() else {
        let pair = lora_of(inner_first[0]);
        let offers: Vec<String> = stacks.iter().map(Stack::describe).collect();
        let problem = format!("B is {}; the parameters are {}", pair.up.info.shape, offers.join(", "));
        return Err(Error::mismatch(describe(&pair.down), placer.base_name(), problem)
            .hint("is this the model the adapter was trained on?"));
    };
    let mut by_place: Vec<Option<Stack>> = stacks.into_iter().map(Some).collect();
    let take =
        |at: usize, by_place: &mut Vec<Option<Stack>>| by_place[at].take().expect("an order names every stack once");
    Ok(Some(inner_first.into_iter().zip(order).map(|(module, at)| (module, take(at, &mut by_place))).collect()))
}

fn lora_of(module: &Module) -> &Lora {
    match &module.change {
        Change::Lora(lora) => lora,
        _ => unreachable!("only pairs are assigned"),
    }
}

/// All orders of 0 … count; the natural one first.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in permutations(count - 1) {
        for at in (0..=shorter.len()).rev() {
            let mut order = shorter.clone();
            order.insert(at, count - 1);
            all.push(order);
        }
    }
    all.sort();
    all
}

impl Stack {
    fn takes(&self, pair: &Lora) -> bool {
        let straight = (pair.outputs(), pair.inputs()) == self.size;
        // A plain matrix never lies the other way round.
        let swapped = self.can_swap() && (pair.inputs(), pair.outputs()) == self.size;
        pair.rank().is_multiple_of(self.experts) && (straight || swapped)
    }

    fn takes_straight(&self, pair: &Lora) -> bool {
        pair.rank().is_multiple_of(self.experts) && (pair.outputs(), pair.inputs()) == self.size
    }

    fn can_swap(&self) -> bool {
        !matches!(&self.home, Place::Tensor { turned: None, .. })
    }

    /// Which factor of `pair`, which fits, lies on the input: the shapes tell, or what is known of the adapter.
    fn sides(&self, pair: &Lora) -> Result<Sides> {
        if !self.can_swap() {
            return Ok(Sides::Straight);
        }
        let straight = (pair.outputs(), pair.inputs()) == self.size;
        if self.size.0 != self.size.1 {
            return Ok(if straight { Sides::Straight } else { Sides::Swapped });
        }
        pair.stack.as_ref().map_or(Ok(Sides::Straight), |stack| stack.sides(&pair.down))
    }

    fn describe(&self) -> String {
        format!("`{}` with {} experts of [{}, {}]", self.parameter, self.experts, self.size.0, self.size.1)
    }
}

/// Where the parameter `name` of the job's module lies in the base.
fn find_stack(placer: &mut Placer<'_>, job: &Placeable<'_>, name: &str) -> Option<Stack> {
    let base = placer.base;
    let parameter = format!("{}.{name}", job.module.path);
    let layer = experts::layer_of_stack(&job.path).and_then(|layer| placer.layers.of(base, layer));
    if let Some((layer, parts)) = layer.and_then(|layer| layer.parts_of(name).map(|parts| (layer, parts))) {
        let experts = layer.experts(base, parts)?;
        let first = if parts.len() > 1 { layer.both(base, 0) } else { None };
        let size = match first {
            Some(home) => home.size,
            None => {
                let (outputs, inputs) = layer.home(base, 0, parts[0])?.size;
                (outputs * parts.len() as u64, inputs)
            }
        };
        return Some(Stack { parameter, experts, size, home: Place::Layer(layer, parts) });
    }
    let plain = format!("{}.{name}", job.path);
    if !base.names.has(&plain) {
        return find_list(placer, &job.path, parameter, name);
    }
    let (experts, size, turned) = match *base.checkpoint.info(&plain)?.shape.as_slice() {
        [outputs, inputs] => (1, (outputs, inputs), None),
        [experts, rows, cols] if experts > 0 => {
            let turned = base.is_one_of(&TRANSPOSED_MODELS);
            (experts, if turned { (cols, rows) } else { (rows, cols) }, Some(turned))
        }
        _ => return None,
    };
    Some(Stack { parameter, experts, size, home: Place::Tensor { name: plain, turned } })
}

/// A parameter whose experts the base keeps one by one below `path`, each under the name of the parameter.
fn find_list(placer: &Placer<'_>, path: &str, parameter: String, name: &str) -> Option<Stack> {
    let names = &placer.base.names;
    let size = placer.base.checkpoint.info(&experts::of_list(path, 0, name))?.shape.rows_cols();
    let count = (0..).take_while(|expert| names.has(&experts::of_list(path, *expert, name))).count();
    let home = Place::List { path: path.to_owned(), name: name.to_owned() };
    Some(Stack { parameter, experts: count as u64, size, home })
}

/// Adds every expert's share of a pair to its place.
fn place_stack(placer: &mut Placer<'_>, job: &Placeable<'_>, module: &Module, stack: &Stack) -> Result<()> {
    let pair = lora_of(module);
    check_magnitude(job, pair)?;
    if let Some(extra) = pair.magnitude.as_ref().or(pair.bias.as_ref()) {
        let what = format!("tensor `{}`: a stack of experts can have neither magnitudes nor a bias", extra.info.name);
        return Err(Error::unsupported(extra.path(), what));
    }
    let rank = pair.rank() / stack.experts;
    let scale = job.scale_as(&stack.parameter, rank)?;
    let sides = stack.sides(pair)?;
    for expert in 0..stack.experts {
        let term = pair.expert(expert, stack.experts, scale)?;
        let term = if sides == Sides::Swapped { term.transposed() } else { term };
        for (home, up) in homes(placer, pair, stack, expert, &term)? {
            let delta = turned(&home, Term { up, ..term.clone() }, &pair.up)?;
            add(placer, job, &home, Arc::new(delta));
        }
    }
    Ok(())
}

/// Where the outputs of one expert's share go, and the rows of B that do.
fn homes(
    placer: &Placer<'_>,
    pair: &Lora,
    stack: &Stack,
    expert: u64,
    term: &Term,
) -> Result<Vec<(Home, crate::adapters::Factor)>> {
    let base = placer.base;
    let missing = |tensor: String| {
        let place = format!("{}: `{tensor}`", placer.base_name());
        let problem = "the base has other experts of this layer, and not this tensor";
        Error::mismatch(describe(&pair.down), place, problem)
    };
    let whole = |home: Option<Home>, name: &dyn Fn() -> String| match home {
        Some(home) => check(base, pair, home, stack.size).map(|home| vec![(home, term.up.clone())]),
        None => Err(missing(name())),
    };
    match &stack.home {
        Place::Tensor { name, turned: Some(turned) } => {
            whole(Home::slice(base, name.clone(), expert, *turned), &|| name.clone())
        }
        Place::Tensor { name, turned: None } => whole(Home::whole(base, name.clone()), &|| name.clone()),
        Place::List { path, name } => {
            let tensor = experts::of_list(path, expert, name);
            whole(Home::whole(base, tensor.clone()), &|| tensor.clone())
        }
        Place::Layer(layer, [part]) => whole(layer.home(base, expert, *part), &|| layer.tensor(expert, *part)),
        Place::Layer(layer, parts) => {
            if let Some(home) = layer.both(base, expert) {
                return whole(Some(home), &String::new);
            }
            let count = parts.len();
            let each = stack.size.0 / count as u64;
            let rows = usize_of(each);
            let part = |(at, part): (usize, &Part)| {
                let home = layer.home(base, expert, *part).ok_or_else(|| missing(layer.tensor(expert, *part)))?;
                let home = check(base, pair, home, (each, stack.size.1))?;
                let (first, step) = if layer.interleaved { (at, count) } else { (at * rows, 1) };
                Ok((home, term.up.clone().pick_rows(first, rows, step)))
            };
            parts.iter().enumerate().map(part).collect()
        }
    }
}

/// The place of a share has its shape.
fn check(base: &crate::model::base::Base, pair: &Lora, home: Home, wanted: (u64, u64)) -> Result<Home> {
    if home.size == wanted {
        return Ok(home);
    }
    let stored = base.stored(&home.tensor);
    let problem = format!("its share is [{}, {}], the weight {}", wanted.0, wanted.1, stored.info.shape);
    Err(Error::mismatch(describe(&pair.down), describe(&stored), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_natural_order_is_tried_first() {
        let all = permutations(3);
        assert_eq!(all.len(), 6);
        assert_eq!(all[0], [0, 1, 2]);
    }
}
