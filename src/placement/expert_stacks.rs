//! Mixture-of-experts layers: adapters of stacks and of single experts, into bases of either layout.
//!
//! PEFT adapts a stack `[E, …]` with one pair for all experts (`target_parameters`): A is `[E·r, in]`, expert after expert; B is
//! `[out, r·E]` with the *expert* running fastest. The parameter's name is not in the key: several parameters of one module
//! nest, the last defined outermost, and the shapes have the last word.

use std::sync::Arc;

use super::change::Placeable;
use super::fit::check_magnitude;
use super::placer::{Outcome, Placer};
use super::tile::Piece;
use crate::adapters::{Change, Lora, LowRankDelta, Module, Term, describe};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::experts::{
    self, DEFINITION_ORDER, Fused, INTERLEAVED_MODELS, Part, Place, Split, TRANSPOSED_MODELS,
};
use crate::tensor::usize_of;

/// Most parameters of one module; their pairs are told apart by trying every order.
const MAX_STACKS: usize = 6;

/// A matrix in a stack, or a part of it, to which one expert's change is added.
struct ExpertPlace {
    tensor: String,
    /// First row and column in the matrix view with `cols` columns.
    row: usize,
    col: usize,
    cols: Option<usize>,
    /// Rows of the expert's ΔW that land here: first and count.
    outputs: (usize, usize),
    transposed: bool,
}

/// Lands a pair that has no layer of its own: of an expert, or of a stack. `None` if it is neither.
pub fn place(placer: &mut Placer<'_>, job: &Placeable<'_>, lora: &Lora) -> Result<Option<Outcome>> {
    if let Some((layer, expert, part)) = experts::expert_of(&job.path) {
        return place_expert(placer, job, lora, layer, expert, part);
    }
    let parameters = job.applied.adapter.config.parameters_of(&job.module.path);
    if parameters.is_empty() {
        return Ok(None);
    }
    if !job.is_first_pair() {
        // All pairs of a module are placed together, with the first.
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

/// A stack as it lies in the base.
struct Stack {
    /// Path of the parameter as the adapter's config names it.
    parameter: String,
    experts: u64,
    outputs: u64,
    inputs: u64,
    home: Home,
}

enum Home {
    /// One tensor `[E, …]`, or a plain matrix (`E` = 1).
    Tensor { name: String, transposed: bool },
    /// One tensor per expert; gate over up where the parameter is both.
    Split { split: &'static Split, layer: String, parts: &'static [Part] },
    /// One tensor per expert of a list that no table has, where the projection has the name of the parameter.
    List { path: String, name: String },
}

/// Which pair belongs to which parameter: the order of nesting if the shapes agree with it, else the one order that fits.
fn assign<'a>(
    placer: &Placer<'_>,
    job: &Placeable<'_>,
    pairs: &[&'a Module],
    parameters: &[&str],
) -> Result<Option<Vec<(&'a Module, Stack)>>> {
    let mut stacks = Vec::new();
    for name in parameters {
        let Some(home) = find_stack(placer, job, name) else { continue };
        stacks.push(home);
    }
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
    let found = permutations(stacks.len()).into_iter().find(|order| fits(order));
    // In what order a class that no table has defines its parameters is not known.
    let is_open =
        |stack: &Stack| matches!(&stack.home, Home::List { name, .. } if !DEFINITION_ORDER.contains(&name.as_str()));
    if stacks.iter().any(is_open) && permutations(stacks.len()).iter().filter(|order| fits(order)).count() > 1 {
        let names: Vec<String> = stacks.iter().map(|stack| format!("`{}`", stack.parameter)).collect();
        let what = format!("its pairs for {} have the same shapes, and which is whose is not known", names.join(", "));
        return Err(Error::unsupported(&job.applied.adapter.root, what));
    }
    let Some(order) = found else {
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
        let fits = pair.rank().is_multiple_of(self.experts);
        let straight = (pair.outputs(), pair.inputs()) == (self.outputs, self.inputs);
        let swapped =
            matches!(self.home, Home::Tensor { .. }) && (pair.inputs(), pair.outputs()) == (self.outputs, self.inputs);
        fits && (straight || swapped)
    }

    fn describe(&self) -> String {
        format!("`{}` with {} experts of [{}, {}]", self.parameter, self.experts, self.outputs, self.inputs)
    }
}

/// Where the parameter `name` of the job's module lies in the base.
fn find_stack(placer: &Placer<'_>, job: &Placeable<'_>, name: &str) -> Option<Stack> {
    let names = &placer.base.names;
    let parameter = format!("{}.{name}", job.module.path);
    let plain = format!("{}.{name}", job.path);
    let layer = experts::layer_of_stack(&job.path);
    let part = if name.starts_with("down") || name == "output_linear" { Part::Down } else { Part::Gate };
    let known = ["gate_up_proj", "up_proj", "down_proj"].contains(&name);
    let place = layer.filter(|_| known).and_then(|layer| experts::find(layer, |name| names.has(name)));
    let tensor = match place {
        _ if names.has(&plain) => plain,
        Some(Place::Fused(fused)) if fused.holds(name) => fused.tensor(layer?, part),
        Some(Place::Fused(_)) => return None,
        Some(Place::Split(split, experts)) => {
            let layer = layer?.to_owned();
            let parts = split.parts_of(name)?;
            let (rows, inputs) = placer.base.checkpoint.info(&split.tensor(&layer, 0, parts[0]))?.shape.rows_cols();
            let outputs = rows * parts.len() as u64;
            return Some(Stack { parameter, experts, outputs, inputs, home: Home::Split { split, layer, parts } });
        }
        None => return find_list(placer, &job.path, parameter, name),
    };
    let info = placer.base.checkpoint.info(&tensor)?;
    let (experts, outputs, inputs) = match *info.shape.as_slice() {
        [outputs, inputs] => (1, outputs, inputs),
        [experts, outputs, inputs] if experts > 0 => (experts, outputs, inputs),
        _ => return None,
    };
    let transposed = placer.base.is_one_of(&TRANSPOSED_MODELS);
    Some(Stack { parameter, experts, outputs, inputs, home: Home::Tensor { name: tensor, transposed } })
}

/// A parameter whose experts the base keeps one by one below `path`, each under the name of the parameter.
fn find_list(placer: &Placer<'_>, path: &str, parameter: String, name: &str) -> Option<Stack> {
    let names = &placer.base.names;
    let (outputs, inputs) = placer.base.checkpoint.info(&experts::of_list(path, 0, name))?.shape.rows_cols();
    let count = (0..).take_while(|expert| names.has(&experts::of_list(path, *expert, name))).count();
    let home = Home::List { path: path.to_owned(), name: name.to_owned() };
    Some(Stack { parameter, experts: count as u64, outputs, inputs, home })
}

/// Adds every expert's share of a pair to its place.
fn place_stack(placer: &mut Placer<'_>, job: &Placeable<'_>, module: &Module, stack: &Stack) -> Result<()> {
    let pair = lora_of(module);
    check_magnitude(job, pair)?;
    if let Some(extra) = pair.magnitude.as_ref().or(pair.bias.as_ref()) {
        let what = format!("tensor `{}`: a stack of experts can have neither magnitudes nor a bias", extra.info.name);
        return Err(Error::unsupported(extra.path(), what));
    }
    let rank = usize_of(pair.rank() / stack.experts);
    let scale = job.scale_as(&stack.parameter, rank as u64)?;
    let count = usize_of(stack.experts);
    for expert in 0..count {
        let whole = pair.term(scale)?;
        let term = Term {
            down: whole.down.pick_rows(expert * rank, rank, 1),
            up: whole.up.pick_cols(expert, rank, count),
            scale,
        };
        for place in expert_places(stack, pair, expert) {
            check_place(placer, pair, &place)?;
            add(placer, job, &place, term.clone());
        }
    }
    Ok(())
}

fn expert_places(stack: &Stack, pair: &Lora, expert: usize) -> Vec<ExpertPlace> {
    let outputs = usize_of(pair.outputs());
    match &stack.home {
        Home::Tensor { name, transposed } => {
            // PEFT calls in and out what the class says; where the sides differ the shapes say it.
            let square = stack.outputs == stack.inputs;
            let swapped = if square { *transposed } else { pair.outputs() == stack.inputs };
            let row = expert * usize_of(stack.outputs);
            let cols = Some(usize_of(stack.inputs));
            vec![ExpertPlace { tensor: name.clone(), row, col: 0, cols, outputs: (0, outputs), transposed: swapped }]
        }
        Home::Split { split, layer, parts } => {
            let each = outputs / parts.len();
            let place = |(at, part): (usize, &Part)| ExpertPlace {
                tensor: split.tensor(layer, expert as u64, *part),
                row: 0,
                col: 0,
                cols: None,
                outputs: (at * each, each),
                transposed: false,
            };
            parts.iter().enumerate().map(place).collect()
        }
        Home::List { path, name } => {
            let tensor = experts::of_list(path, expert as u64, name);
            vec![ExpertPlace { tensor, row: 0, col: 0, cols: None, outputs: (0, outputs), transposed: false }]
        }
    }
}

/// The tensor a share goes to must be there, and one of a split layer must have the shape of its share.
fn check_place(placer: &Placer<'_>, pair: &Lora, place: &ExpertPlace) -> Result<()> {
    let Some(info) = placer.base.checkpoint.info(&place.tensor) else {
        let place = format!("{}: `{}`", placer.base_name(), place.tensor);
        let problem = "the base has other experts of this layer, and not this tensor";
        return Err(Error::mismatch(describe(&pair.down), place, problem));
    };
    let wanted = (place.outputs.1 as u64, pair.inputs());
    if place.cols.is_none() && info.shape.rows_cols() != wanted {
        let problem = format!("its share is [{}, {}], the weight {}", wanted.0, wanted.1, info.shape);
        return Err(Error::mismatch(describe(&pair.down), describe(&placer.base.stored(&place.tensor)), problem));
    }
    Ok(())
}

/// The difference to untrained factors is formed for layers only.
fn refuse_init(job: &Placeable<'_>) -> Result<()> {
    if job.applied.init.is_none() && job.applied.original.is_none() {
        return Ok(());
    }
    let what = format!("untrained factors of experts (`{}`) are not subtracted yet", job.module.path);
    Err(Error::unsupported(&job.applied.adapter.root, what))
}

fn add(placer: &mut Placer<'_>, job: &Placeable<'_>, place: &ExpertPlace, term: Term) {
    let (first, count) = place.outputs;
    let part = Term { up: term.up.pick_rows(first, count, 1), ..term };
    let delta = LowRankDelta::from(if place.transposed { part.transposed() } else { part });
    let piece = Piece { delta: Arc::new(delta), row: place.row, col: place.col, strength: job.strength };
    placer.add(&place.tensor, piece, place.cols);
}

/// A pair of one expert's linear layer, into the expert's tensor under another name or into its slice of a stack.
fn place_expert(
    placer: &mut Placer<'_>,
    job: &Placeable<'_>,
    lora: &Lora,
    layer: &str,
    expert: u64,
    part: Part,
) -> Result<Option<Outcome>> {
    let place = match experts::find(layer, |name| placer.base.names.has(name)) {
        None => return Ok(None),
        Some(Place::Split(split, count)) if expert < count => {
            let tensor = split.tensor(layer, expert, part);
            let Some(shape) = placer.base.checkpoint.find(&tensor) else { return Ok(None) };
            check(lora, &shape, shape.info.shape.rows_cols())?;
            let outputs = (0, usize_of(lora.outputs()));
            ExpertPlace { tensor, row: 0, col: 0, cols: None, outputs, transposed: false }
        }
        Some(Place::Split(..)) => return Ok(None),
        Some(Place::Fused(fused)) => match slice_of_stack(placer, lora, fused, layer, expert, part)? {
            Some(place) => place,
            None => return Ok(None),
        },
    };
    refuse_init(job)?;
    check_magnitude(job, lora)?;
    if let Some(extra) = lora.magnitude.as_ref().or(lora.bias.as_ref()) {
        let what = format!(
            "tensor `{}`: magnitudes and biases of single experts are not merged into a stack",
            extra.info.name
        );
        return Err(Error::unsupported(extra.path(), what));
    }
    add(placer, job, &place, lora.term(job.scale(lora.rank())?)?);
    Ok(Some(Outcome::Merged))
}

fn slice_of_stack(
    placer: &Placer<'_>,
    lora: &Lora,
    fused: &Fused,
    layer: &str,
    expert: u64,
    part: Part,
) -> Result<Option<ExpertPlace>> {
    let name = fused.tensor(layer, part);
    let Some(stack) = placer.base.checkpoint.find(&name) else { return Ok(None) };
    let &[experts, rows, cols] = stack.info.shape.as_slice() else { return Ok(None) };
    if expert >= experts {
        return Ok(None);
    }
    let both = part != Part::Down && fused.gated;
    if both && placer.base.is_one_of(&INTERLEAVED_MODELS) {
        let what = format!(
            "`{name}` alternates gate and up column by column; adapters of single experts cannot be merged into it"
        );
        return Err(Error::unsupported(placer.base.checkpoint.root(), what));
    }
    if part == Part::Gate && !fused.gated {
        return Ok(None);
    }
    let halves = if both { 2 } else { 1 };
    let (outputs, inputs) = (lora.outputs(), lora.inputs());
    let straight = rows == outputs * halves && cols == inputs;
    let turned = rows == inputs && cols == outputs * halves;
    let transposed = match (straight, turned) {
        (true, true) => placer.base.is_one_of(&TRANSPOSED_MODELS),
        (false, false) => {
            check(lora, &stack, (rows / halves, cols))?;
            return Ok(None);
        }
        (_, turned) => turned,
    };
    let half = if both && part == Part::Up { usize_of(outputs) } else { 0 };
    let first = usize_of(expert * rows);
    let (row, col) = if transposed { (first, half) } else { (first + half, 0) };
    Ok(Some(ExpertPlace {
        tensor: name,
        row,
        col,
        cols: Some(usize_of(cols)),
        outputs: (0, usize_of(outputs)),
        transposed,
    }))
}

fn check(lora: &Lora, target: &Stored, wanted: (u64, u64)) -> Result<()> {
    let got = (lora.outputs(), lora.inputs());
    if got == wanted {
        return Ok(());
    }
    let problem = format!("the change is [{}, {}], its place [{}, {}]", got.0, got.1, wanted.0, wanted.1);
    Err(Error::mismatch(describe(&lora.down), describe(target), problem)
        .hint("is this the model the adapter was trained on?"))
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
