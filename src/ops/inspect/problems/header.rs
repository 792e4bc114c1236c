//! What the free text of a header says against the tensors.

use foldhash::HashSet;

use super::super::pairs::Pair;
use super::super::{counted, named};
use crate::adapters::{Adapter, number};
use crate::dialects::Dialect;
use crate::formats::{Checkpoint, Stored};
use crate::tensor::Float;

/// The last part of the name of a tensor that holds the alpha of one module.
const ALPHA: &str = ".alpha";

/// Largest relative difference between an alpha and its rounding to half precision.
const ROUNDED: f64 = 0.01;

/// Everything of that kind.
pub fn find(adapter: &Adapter, pairs: &[Pair<'_>]) -> Vec<String> {
    let mut problems = Vec::new();
    let says = |key: &str| text(&adapter.tensors, key);
    problems.extend(missing_alphas(adapter, pairs));
    problems.extend(says("ss_network_dim").and_then(|dim| other_rank(pairs, dim)));
    problems.extend(says("ss_network_alpha").and_then(|alpha| rounded_alphas(&adapter.tensors, alpha)));
    problems
}

fn text<'a>(tensors: &'a Checkpoint, key: &str) -> Option<&'a str> {
    let mut texts = tensors.files().iter().flat_map(|file| &file.header.metadata);
    texts.find(|(own, _)| own == key).map(|(_, text)| text.as_str())
}

/// Pairs without an alpha in a file where other modules have one, or should.
fn missing_alphas(adapter: &Adapter, pairs: &[Pair<'_>]) -> Option<String> {
    let with: HashSet<&str> = adapter.tensors.tensors().filter_map(|tensor| tensor.name.strip_suffix(ALPHA)).collect();
    if with.is_empty() && !Dialect::of(adapter.dialect).own_alphas {
        return None;
    }
    let has = |name: &str| name.match_indices('.').any(|(dot, _)| with.contains(&name[..dot]));
    let missing: Vec<&str> =
        pairs.iter().filter(|pair| !has(&pair.lora.down.info.name)).map(|pair| pair.path.as_str()).collect();
    if missing.is_empty() {
        return None;
    }
    let (count, names) = (counted(missing.len(), "module"), named(missing));
    Some(format!("{count} without an alpha, for which alpha = rank is assumed: {names}"))
}

/// A rank in the header that no pair has.
fn other_rank(pairs: &[Pair<'_>], dim: &str) -> Option<String> {
    let dim: u64 = dim.trim().parse().ok()?;
    let most = pairs.iter().map(|pair| pair.rank).max()?;
    let has = pairs.iter().any(|pair| pair.rank == dim);
    // A rank above what the layers can have is cut to their sides.
    let is_cut = dim > most && pairs.iter().all(|pair| pair.rank >= pair.lora.inputs().min(pair.lora.outputs()));
    (!has && !is_cut).then(|| format!("`ss_network_dim` is {dim}, and no module has that rank: the largest is {most}"))
}

/// Alphas that are what the header says but for the rounding of their dtype.
fn rounded_alphas(tensors: &Checkpoint, alpha: &str) -> Option<String> {
    let alpha: f64 = alpha.trim().parse().ok().filter(|alpha: &f64| alpha.is_finite() && *alpha != 0.0)?;
    let is_half = |float: Float| float.bytes() < 4;
    let halves =
        tensors.tensors().filter(|tensor| tensor.name.ends_with(ALPHA) && tensor.dtype.float().is_some_and(is_half));
    let halves = halves.filter_map(|tensor| tensors.find(&tensor.name));
    let off =
        |stored: &Stored| number(stored).is_ok_and(|value| value != alpha && ((value - alpha) / alpha).abs() < ROUNDED);
    let off: Vec<Stored> = halves.filter(off).collect();
    let first = off.first()?;
    let value = number(first).ok()?;
    Some(format!(
        "{} rounded by {}: `{}` is {value}, `ss_network_alpha` {alpha}",
        counted(off.len(), "alpha"),
        first.info.dtype,
        first.info.name
    ))
}
