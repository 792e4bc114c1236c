//! The pairs of single experts that the pair of a stack stands for: A_e are its rows, B_e its columns; gate and up are rows of B_e
//! and take the same A_e. Exact, and of the same rank, unless the stack was put together of gates and ups with factors of their
//! own: then each gets its own back.

use super::sides::Family;
use crate::adapters::{Adapter, Lora, Module, Stack, describe};
use crate::dialects::pieces::Pair;
use crate::error::{Error, Result};
use crate::naming::experts::Part;
use crate::naming::experts::peft::{Order, Sides};
use crate::pairs::matrix::Grid;
use crate::tensor::usize_of;

/// The pairs of all experts that `lora` stands for, in a model of the kind `family`.
///
/// # Errors
/// When it is not known what parameter it is, how it lies or what the model calls its experts.
pub fn take_apart(adapter: &Adapter, module: &Module, lora: &Lora, family: &Family) -> Result<Vec<Pair>> {
    let path = &module.path;
    let refuse = |what: String| Error::unsupported(&adapter.root, format!("`{path}` {what}"));
    let Some(stack) = &lora.stack else {
        let names = adapter.config.parameters_of(path);
        let pairs = adapter.modules.iter().filter(|other| other.path == *path).count();
        return Err(refuse(format!("has {pairs} pairs, and the config adapts {} of its parameters", names.len())));
    };
    let name = stack.parameter.rsplit('.').next().unwrap_or_default();
    let scaling = adapter.config.scaling.as_ref().ok_or_else(|| refuse("has no scale".into()))?;
    let (rank, scale) = (lora.rank() / stack.experts, scaling.scale(&stack.parameter));
    if lora.magnitude.is_some() || lora.bias.is_some() {
        return Err(refuse("is a stack of experts, and can have neither magnitudes nor a bias".into()));
    }
    if family.is_unknown() {
        let what = format!("is a stack of experts, and what the model calls them one by one is not known (`{name}`)");
        return Err(refuse(what).hint("give the model: --base PATH"));
    }
    let Some((layer, split)) = family.split(path, name) else {
        return Err(refuse(format!("has a parameter `{name}`, and what its rows are in one expert is not known")));
    };
    let parts = split.parts_of(name).unwrap_or_default();
    let swapped = stack.sides(&lora.down)? == Sides::Swapped;
    let outputs = if swapped { lora.inputs() } else { lora.outputs() };
    let count = parts.len() as u64;
    if count == 0 || !outputs.is_multiple_of(count) {
        let problem = format!("a change of `{name}` with {outputs} outputs is none of {count} projections");
        return Err(Error::mismatch(describe(&lora.down), describe(&lora.up), problem));
    }
    let each = outputs / count;
    let rows = |up: Grid, at: u64| match family.is_interleaved() {
        true => up.every(at, each, count),
        false => up.every(at * each, each, 1),
    };
    let own = own_ranks(lora, stack, swapped, (usize_of(each), usize_of(count)), family.is_interleaved())?;
    let mut apart = Vec::with_capacity(usize_of(stack.experts * count));
    for expert in 0..stack.experts {
        let (down, up) = one(lora, stack, (expert, rank), swapped);
        for (at, part) in (0_u64..).zip(parts) {
            let taken = own.map_or(0..rank, |own| if *part == Part::Gate { 0..own } else { own..rank });
            let name = split.tensor(layer, expert, *part).trim_end_matches(".weight").to_owned();
            apart.push(Pair::new(name, down.clone().rows(&taken), rows(up.clone().cols(&taken), at), scale));
        }
    }
    Ok(apart)
}

/// A and B of one expert, over in and over out.
fn one(lora: &Lora, stack: &Stack, (expert, rank): (u64, u64), swapped: bool) -> (Grid, Grid) {
    let cut = |down: &_, up: &_, order: Order| {
        let up = Grid::of(up);
        let up = match order {
            Order::RankMajor => up.every_col(expert, rank, stack.experts),
            Order::GroupedByExpert => up.cols(&(expert * rank..(expert + 1) * rank)),
        };
        (Grid::of(down).rows(&(expert * rank..(expert + 1) * rank)), up)
    };
    let (factors, turned) = match &stack.lies {
        Some(lies) => (cut(&lies.down, &lies.up, lies.order), lies.turned != swapped),
        None => (cut(&lora.down, &lora.up, Order::RankMajor), swapped),
    };
    if turned { (factors.1.turned(), factors.0.turned()) } else { factors }
}

/// The rank of the gates where gates and ups have factors of their own: the last columns of B_e are zero for all gates, the first
/// for all ups. `None` where they share their factors, or B is nothing but zeros.
fn own_ranks(
    lora: &Lora,
    stack: &Stack,
    swapped: bool,
    (each, count): (usize, usize),
    interleaved: bool,
) -> Result<Option<u64>> {
    if count != 2 {
        return Ok(None);
    }
    let rank = usize_of(lora.rank() / stack.experts);
    // Columns of the gates up to here are used, those of the ups from here on.
    let (mut gate, mut up) = (0, rank);
    let mut used = (false, false);
    for expert in 0..stack.experts {
        let term = lora.expert(expert, stack.experts, 1.0)?;
        let values = if swapped { term.down.transposed() } else { term.up }.to_vec()?;
        for (row, line) in values.chunks_exact(rank).enumerate() {
            let is_gate = if interleaved { row % 2 == 0 } else { row < each };
            let set = |value: &f32| *value != 0.0;
            match is_gate {
                true => gate = gate.max(line.iter().rposition(set).map_or(0, |at| at + 1)),
                false => up = up.min(line.iter().position(set).unwrap_or(rank)),
            }
            let any = line.iter().any(set);
            used = (used.0 || any && is_gate, used.1 || any && !is_gate);
        }
        if gate > up {
            return Ok(None);
        }
    }
    let half = rank / 2;
    let at = if (gate..=up).contains(&half) && rank.is_multiple_of(2) { half } else { gate };
    Ok((used.0 && used.1 && at > 0 && at < rank).then_some(at as u64))
}
