//! Pairs of stacks of experts, which PEFT adapts as parameters without a layer of their own, taken apart into pairs of the
//! experts' layers.
//!
//! A is `[E·r, in]`, expert after expert; B is `[out, r·E]` with the expert running fastest. The gate's rows of `gate_up_proj`
//! come before those of up. The key does not name the parameter: the one that its module defines last is outermost.

use crate::adapters::{Adapter, Change, Lora, Module, describe};
use crate::dialects::pieces::Pair;
use crate::error::{Error, Result};
use crate::naming::experts::{SPLIT, layer_of_stack};
use crate::pairs::matrix::Grid;

/// The pairs of all experts that `lora` stands for; `hidden` is the width of the model, which tells the way round.
///
/// # Errors
/// When it is not known what parameter it is, or shapes do not fit.
pub fn take_apart(adapter: &Adapter, module: &Module, lora: &Lora, hidden: Option<u64>) -> Result<Vec<Pair>> {
    let path = &module.path;
    let refuse = |what: String| Error::unsupported(&adapter.root, format!("`{path}` {what}"));
    let names = adapter.config.parameters_of(path);
    let of_module = adapter.modules.iter().filter(|other| other.path == *path);
    let pairs = of_module.filter(|other| matches!(other.change, Change::Lora(_))).count();
    let at = names.len().checked_sub(1 + module.nesting).filter(|_| pairs == names.len());
    let Some(name) = at.map(|at| names[at]) else {
        return Err(refuse(format!("has {pairs} pairs, and the config adapts {} of its parameters", names.len())));
    };
    let parameter = format!("{path}.{name}");
    let scaling = adapter.config.scaling.as_ref().ok_or_else(|| refuse("has no scale".into()))?;
    let (rank, scale) = (scaling.rank(&parameter), scaling.scale(&parameter));
    if lora.magnitude.is_some() || lora.bias.is_some() {
        return Err(refuse("is a stack of experts, and can have neither magnitudes nor a bias".into()));
    }
    let (down, up) = (Grid::of(&lora.down), Grid::of(&lora.up));
    if name == "weight" && lora.rank() == rank {
        return Ok(vec![Pair::new(path.clone(), down, up, scale)]);
    }
    let mut splits = SPLIT.iter().filter(|split| path.ends_with(split.experts)).peekable();
    let (Some(layer), Some(_)) = (layer_of_stack(path), splits.peek()) else {
        return Err(refuse("is no list of experts that is known".into()));
    };
    let Some((split, parts)) = splits.find_map(|split| Some((split, split.parts_of(name)?))) else {
        return Err(refuse(format!("has a parameter `{name}`, and what its rows are is not known")));
    };
    let hidden = hidden
        .ok_or_else(|| refuse("is a stack of experts of unknown size".into()).hint("give the model: --base PATH"))?;
    let inner = if parts.len() == 2 { (lora.inputs(), lora.outputs()) } else { (lora.outputs(), lora.inputs()) };
    let straight = inner.0 == hidden;
    let outputs = if straight { lora.outputs() } else { lora.inputs() };
    let fits = (straight || inner.1 == hidden) && lora.rank().is_multiple_of(rank);
    if !fits || !outputs.is_multiple_of(parts.len() as u64) {
        let problem = format!("a change of `{name}` at rank {rank} in a model of width {hidden} has another shape");
        return Err(Error::mismatch(describe(&lora.down), describe(&lora.up), problem));
    }
    let (experts, each) = (lora.rank() / rank, outputs / parts.len() as u64);
    let mut apart = Vec::new();
    for expert in 0..experts {
        let own = down.clone().rows(&(expert * rank..(expert + 1) * rank));
        let column = |at: u64| up.clone().cols(&(at * experts + expert..at * experts + expert + 1));
        let beside = |all: Grid, at: u64| all.with(column(at), (0, at));
        let others = (0..rank).fold(Grid::zero((up.size.0, 0)), beside);
        let (down, up) = if straight { (own, others) } else { (others.turned(), own.turned()) };
        for (at, part) in (0_u64..).zip(parts) {
            let tensor = split.tensor(layer, expert, *part);
            let name = tensor.trim_end_matches(".weight").to_owned();
            apart.push(Pair::new(name, down.clone(), up.clone().rows(&(at * each..(at + 1) * each)), scale));
        }
    }
    Ok(apart)
}
