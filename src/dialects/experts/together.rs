//! Pairs of single experts as the pairs of stacks that PEFT has under transformers 5, and single ones without gaps for servers.
//!
//! Gate and up with factors A of their own get them one below the other, and B_e = blockdiag(B_gate, B_up): the rank is the sum of
//! both, the scale stays. Ranks are filled up with zeros to that of the layer, other scales go into B, experts that are missing
//! are zeros. Exact but for scales that are no power of two apart.

use std::collections::BTreeMap;

use super::sides::Family;
use crate::adapters::{Adapter, ReadOptions};
use crate::dialects::files::{Facts, Wishes};
use crate::dialects::pieces::{self, Pair, Pieces, Stacked, Stacks, most_frequent};
use crate::dialects::{made, peft};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, same_tensors};
use crate::naming::experts::{Part, expert_of};
use crate::pairs::matrix::{Block, Grid};

/// What is known of the model.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// Its family.
    pub family: &'a Family,
    /// Experts of a layer.
    pub experts: Option<u64>,
}

/// Path of the list of experts → expert and part → its pair.
pub type Lists = BTreeMap<String, BTreeMap<(u64, Part), Pair>>;

/// Takes the pairs of single experts out of `pieces`; says whether gate and up were one and alternated.
///
/// # Errors
/// When one has what no stack has.
pub fn singles(pieces: &mut Pieces, interleaved: &mut bool) -> Result<Lists> {
    let mut lists = Lists::new();
    let mut rest = Vec::with_capacity(pieces.pairs.len());
    for pair in std::mem::take(&mut pieces.pairs) {
        let Some(single) = expert_of(&pair.path) else {
            rest.push(pair);
            continue;
        };
        if pair.magnitude.is_some() || pair.bias.is_some() {
            let what = format!("`{}` has magnitudes or a bias, which no stack of experts has", pair.path);
            return Err(Error::unsupported(pair.down.origin().0, what));
        }
        let both = single.parts.len() as u64;
        let joined = pair.path.split('.').next_back().is_some_and(|end| end.parse::<u64>().is_ok());
        let list = match joined {
            true => format!("{}mlp.experts", single.layer),
            false => pair.path.rsplitn(3, '.').nth(2).unwrap_or_default().to_owned(),
        };
        // What is one matrix in lists of gpt-oss alternates.
        *interleaved |= both > 1;
        let own = lists.entry(list).or_default();
        for (at, part) in (0..).zip(single.parts) {
            let up = if both > 1 { pair.up.clone().every(at, pair.up.size.0 / both, both) } else { pair.up.clone() };
            own.insert((single.expert, *part), Pair { up, ..pair.clone() });
        }
    }
    pieces.pairs = rest;
    Ok(lists)
}

/// The same adapter with stacks for its single experts, as PEFT would have it; `config` is that of the model.
///
/// # Errors
/// When it has no such form.
pub fn fused(adapter: &Adapter, model: Model<'_>, config: Option<&ModelConfig>) -> Result<Adapter> {
    let mut pieces = pieces::collect(adapter, Stacks::Kept)?;
    fuse(&mut pieces, model, false)?;
    let facts = Facts { adapter, family: None, float: None, wishes: Wishes::default(), is_file: false, model: config };
    let files = peft::write::write(pieces, &facts)?;
    let file = adapter.tensors.files().first().map(|file| &file.map);
    let file = file.ok_or_else(|| Error::unsupported(&adapter.root, "has no tensors"))?;
    let mut made = made(files, &adapter.root, file)?;
    made.read_stacks(config, &ReadOptions::default(), false)?;
    Ok(made)
}

/// Whether the experts of a list have a gate; those of Nemotron-H have none.
pub fn is_gated(list: &str) -> bool {
    !list.ends_with("mixer.experts")
}

/// How many experts the layers have.
///
/// # Errors
/// When some are missing and nothing tells.
pub fn count(model: Model<'_>, list: &str, own: &BTreeMap<(u64, Part), Pair>) -> Result<u64> {
    let highest = own.keys().map(|(expert, _)| expert + 1).max().unwrap_or(0);
    let found = (0..highest).all(|expert| own.range((expert, Part::Gate)..=(expert, Part::Down)).next().is_some());
    let refuse = |what: String| {
        let path = own.values().next().map(|pair| pair.down.origin().0.to_owned()).unwrap_or_default();
        Err(Error::unsupported(&path, format!("`{list}`: {what}")))
    };
    match model.experts {
        Some(count) if highest > count => refuse(format!("expert {} is adapted, the model has {count}", highest - 1)),
        Some(count) => Ok(count),
        None if found => Ok(highest),
        None => refuse("some experts are missing, and how many there are is not known".into())
            .map_err(|error: Error| error.hint("give the model: --base PATH")),
    }
}

/// Makes stacks of all pairs of single experts; with `complete` every layer gets both.
///
/// # Errors
/// When they have no such form.
pub fn fuse(pieces: &mut Pieces, model: Model<'_>, complete: bool) -> Result<()> {
    let mut interleaved = model.family.is_interleaved();
    let lists = singles(pieces, &mut interleaved)?;
    let fused = !lists.is_empty();
    let swapped = model.family.wants_swapped();
    for (list, own) in lists {
        let experts = count(model, &list, &own)?;
        let path = model.family.fused(&list);
        let gated = is_gated(&list);
        let first: &[Part] = if gated { &[Part::Gate, Part::Up] } else { &[Part::Up] };
        for (name, parts) in [(if gated { "gate_up_proj" } else { "up_proj" }, first), ("down_proj", &[Part::Down])] {
            let stack = stack(&own, experts, parts, interleaved, swapped)?;
            pieces.pairs.extend(stack.map(|(down, up, scale)| Pair {
                stack: Some(Stacked { name: name.into(), experts }),
                ..Pair::new(path.clone(), down, up, scale)
            }));
        }
    }
    if fused {
        routers(pieces, model.family)?;
    }
    if complete {
        complete_stacks(pieces, swapped);
    }
    Ok(())
}

/// Routers that are linear layers are parameters of a class there.
fn routers(pieces: &mut Pieces, family: &Family) -> Result<()> {
    for pair in pieces.pairs.iter_mut().filter(|pair| pair.stack.is_none()) {
        if let Some(path) = family.fused_router(&pair.path) {
            (pair.path, pair.stack) = (path, Some(Stacked { name: "weight".into(), experts: 1 }));
        } else if pair.path.ends_with("block_sparse_moe.gate") {
            let what = format!("`{}` is a router, and what transformers 5 calls it depends on the model", pair.path);
            return Err(Error::unsupported(pair.down.origin().0, what).hint("give the model: --base PATH"));
        }
    }
    Ok(())
}

/// A, B and the scale of the stack whose outputs are `parts`; `None` where no expert has one.
fn stack(
    own: &BTreeMap<(u64, Part), Pair>,
    experts: u64,
    parts: &[Part],
    interleaved: bool,
    swapped: bool,
) -> Result<Option<(Grid, Grid, f64)>> {
    let members: Vec<&Pair> = own.iter().filter(|((_, part), _)| parts.contains(part)).map(|(_, pair)| pair).collect();
    let Some(first) = members.first() else { return Ok(None) };
    let (outputs, inputs) = (first.up.size.0, first.down.size.1);
    if let Some(other) = members.iter().find(|pair| (pair.up.size.0, pair.down.size.1) != (outputs, inputs)) {
        let sizes = format!("[{}, {}] and [{outputs}, {inputs}]", other.up.size.0, other.down.size.1);
        let what = format!("`{}` and `{}` are {sizes}, and of one stack", other.path, first.path);
        return Err(Error::unsupported(first.down.origin().0, what));
    }
    let scale = most_frequent(members.iter().map(|pair| pair.scale));
    let rank_of = |part: &Part| {
        let ranks = own.iter().filter(|((_, own), _)| own == part).map(|(_, pair)| pair.rank());
        ranks.max().unwrap_or(0)
    };
    let shared = parts.len() == 1 || share_factors(own, experts, parts)?;
    let ranks: Vec<u64> = parts.iter().map(rank_of).collect();
    let rank = if shared { ranks.iter().copied().max().unwrap_or(0) } else { ranks.iter().sum() };
    let all = outputs * parts.len() as u64;
    let (width, height) = if swapped { (all, inputs) } else { (inputs, all) };
    let (mut down, mut up) = (Grid::zero((experts * rank, width)), Grid::zero((height, experts * rank)));
    for expert in 0..experts {
        let (mut a, mut b) = (Grid::zero((rank, inputs)), Grid::zero((all, rank)));
        let mut k = 0;
        for ((at, part), own_rank) in (0_u64..).zip(parts).zip(&ranks) {
            if let Some(pair) = own.get(&(expert, *part)) {
                let ratio = if pair.scale == scale { 1.0 } else { pair.scale / scale };
                let rows = pair.up.clone().scaled(ratio);
                let (rows, top) =
                    if interleaved && parts.len() > 1 { (rows.spread(at, 2), 0) } else { (rows, at * outputs) };
                if !shared || a.blocks.is_empty() {
                    a = a.with(pair.down.clone(), (k, 0));
                }
                b = b.with(rows, (top, k));
            }
            k += if shared { 0 } else { *own_rank };
        }
        let (a, b) = if swapped { (b.turned(), a.turned()) } else { (a, b) };
        down = down.with(a, (expert * rank, 0));
        up = up.with(b.spread_cols(expert, experts), (0, 0));
    }
    // Interleaving moves the columns of the last expert beyond the end of the others'.
    (down.size, up.size) = ((experts * rank, width), (height, experts * rank));
    Ok(Some((down, up, scale)))
}

/// Whether gate and up of every expert have one A, as those that were taken out of a stack do.
fn share_factors(own: &BTreeMap<(u64, Part), Pair>, experts: u64, parts: &[Part]) -> Result<bool> {
    let same = |left: &Block, right: &Block| -> Result<bool> {
        let shape = (left.turned, left.first, left.step, left.size, left.at, left.gap)
            == (right.turned, right.first, right.step, right.size, right.at, right.gap);
        let tensors = (&left.source, &right.source);
        let is_one = std::sync::Arc::ptr_eq(&tensors.0.map, &tensors.1.map) && tensors.0.start == tensors.1.start;
        Ok(shape && left.factor == right.factor && (is_one || same_tensors(tensors.0, tensors.1)?))
    };
    for expert in 0..experts {
        let pairs: Vec<&Pair> = parts.iter().filter_map(|part| own.get(&(expert, *part))).collect();
        for pair in pairs.windows(2) {
            let (left, right) = (&pair[0].down.blocks, &pair[1].down.blocks);
            if left.len() != right.len() {
                return Ok(false);
            }
            for (left, right) in left.iter().zip(right) {
                if !same(left, right)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Both parameters of every layer: the missing one changes nothing.
fn complete_stacks(pieces: &mut Pieces, swapped: bool) {
    let mut of_module: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
    for pair in pieces.pairs.iter().filter(|pair| pair.stack.as_ref().is_some_and(|stack| stack.experts > 1)) {
        of_module.entry(&pair.path).or_default().push(pair);
    }
    let mut added = Vec::new();
    for pairs in of_module.into_values().filter(|pairs| pairs.len() == 1) {
        let pair = pairs[0];
        let Some(Stacked { name, experts }) = &pair.stack else { continue };
        let (inputs, outputs) =
            if swapped { (pair.up.size.0, pair.down.size.1) } else { (pair.down.size.1, pair.up.size.0) };
        let (name, halves) = if name == "down_proj" { ("gate_up_proj", 2) } else { ("down_proj", 1) };
        let (from, to) = if halves == 2 { (outputs, inputs * 2) } else { (outputs / 2, inputs) };
        let (width, height) = if swapped { (to, from) } else { (from, to) };
        let rank = pair.down.size.0;
        let (down, up) = (Grid::zero((rank, width)), Grid::zero((height, rank)));
        let stack = Some(Stacked { name: name.into(), experts: *experts });
        added.push(Pair { stack, ..Pair::new(pair.path.clone(), down, up, pair.scale) });
    }
    pieces.pairs.extend(added);
}

/// Every expert of a layer that has any, with all of its projections, and one rank for all of one projection.
///
/// # Errors
/// When how many experts there are is not known.
pub fn complete(pieces: &mut Pieces, model: Model<'_>) -> Result<()> {
    let mut interleaved = false;
    let lists = singles(pieces, &mut interleaved)?;
    for (list, own) in lists {
        let experts = count(model, &list, &own)?;
        let (sample, is_down) = match own.iter().next() {
            Some(((_, part), pair)) => (pair, *part == Part::Down),
            None => continue,
        };
        let (outputs, inputs) = (sample.up.size.0, sample.down.size.1);
        let (hidden, inner) = if is_down { (outputs, inputs) } else { (inputs, outputs) };
        let named = names(&list, &own);
        for part in [Part::Gate, Part::Up, Part::Down] {
            if part == Part::Gate && !is_gated(&list) {
                continue;
            }
            let mine = || own.iter().filter(|((_, own), _)| *own == part).map(|(_, pair)| pair);
            let any = own.values().map(Pair::rank).max().unwrap_or(1);
            let rank = mine().map(Pair::rank).max().unwrap_or(any);
            let (from, to) = if part == Part::Down { (inner, hidden) } else { (hidden, inner) };
            for expert in 0..experts {
                let path = format!("{list}.{expert}.{}", named[part as usize]);
                let pair = match own.get(&(expert, part)) {
                    Some(pair) => {
                        let (width, height) = (pair.down.size.1, pair.up.size.0);
                        // The scale belongs to the rank it was trained with, and stays.
                        let (down, up) = (pair.down.clone().padded(rank, width), pair.up.clone().padded(height, rank));
                        Pair { path, down, up, ..pair.clone() }
                    }
                    None => Pair::new(path, Grid::zero((rank, from)), Grid::zero((to, rank)), 1.0),
                };
                pieces.pairs.push(pair);
            }
        }
    }
    Ok(())
}

/// What gate, up and down are called in the list.
fn names(list: &str, own: &BTreeMap<(u64, Part), Pair>) -> [&'static str; 3] {
    let wide = own.values().any(|pair| ["w1", "w2", "w3"].iter().any(|name| pair.path.ends_with(&format!(".{name}"))));
    if wide || list.ends_with("block_sparse_moe.experts") {
        ["w1", "w3", "w2"]
    } else {
        ["gate_proj", "up_proj", "down_proj"]
    }
}
