//! The low-rank changes of a stack: slots and a method → pairs of the new adapter, and what is to be said about each.

use std::path::Path;

use super::average::{Averaged, average};
use super::compress::{Compressed, compress};
use super::concat::{self, concatenate};
use super::fold::{self, Fold};
use super::summary::StackedModule;
use super::{Method, StackOptions};
use crate::error::{Error, Result};
use crate::linalg::{LinearOperator, LowRank};
use crate::model::same_values;
use crate::ops::rank_choice::RankChoice;
use crate::output::Run;
use crate::pairs::{Bytes, NewPair};
use crate::placement::Applied;
use crate::placement::terms::{Share, Slot};
use crate::plan::map_within;
use crate::tensor::{Float, Rounding};

/// Pairs and their description.
#[derive(Default)]
pub struct Made {
    /// In slot order.
    pub pairs: Vec<NewPair>,
    /// The same modules.
    pub modules: Vec<StackedModule>,
    /// Modules whose sum is zero.
    pub vanished: Vec<String>,
    /// Numbers in the factors.
    pub parameters: u64,
}

/// Makes the pairs of all `slots`. `fixed` are bytes and numbers of the adapter's other tensors.
///
/// # Errors
/// When factors cannot be read or have no such combination.
pub fn make(
    slots: &[&Slot],
    sources: &[Applied],
    options: &StackOptions,
    fixed: (u64, u64),
    run: &Run<'_>,
) -> Result<Made> {
    if options.method != Method::Concat || options.rank.is_none() {
        refuse_multiplied(slots, sources, options)?;
    }
    let held: Vec<u64> = slots.iter().map(|slot| factor_bytes(slot)).collect();
    let one_by_one = |work: &(dyn Fn(&Slot) -> Result<Piece> + Sync)| {
        map_within(&held, &options.write.budget, run.cancel, |at| work(slots[at]))
    };
    let pieces = match (options.method, &options.rank) {
        (Method::Concat, None) => one_by_one(&|slot| summed(slot, options))?,
        (Method::FactorAverage, _) => {
            refuse_untrained(sources)?;
            one_by_one(&|slot| averaged(slot, sources, options.write.dtype))?
        }
        (Method::Concat, Some(choice)) => cut(slots, None, choice, options, fixed, run)?,
        (Method::Elementwise(pruning), choice) => {
            refuse_biases(slots)?;
            let choice = choice.unwrap_or(RankChoice::rank(usize::MAX));
            cut(slots, Some(pruning), &choice, options, fixed, run)?
        }
    };
    let mut made = Made::default();
    for (slot, (pair, module)) in slots.iter().zip(pieces) {
        if module.rank == 0 {
            made.vanished.push(module.module);
            continue;
        }
        let (rows, cols) = slot.shape();
        made.parameters += ((rows + cols) * module.rank * slot.experts()) as u64;
        made.pairs.push(pair);
        made.modules.push(module);
    }
    Ok(made)
}

/// Bytes of a slot's factors in f32 and of one copy.
fn factor_bytes(slot: &Slot) -> u64 {
    let (rows, cols) = slot.shape();
    let ranks: usize = slot.shares.iter().map(|share| share.rank).sum();
    (2 * (rows + cols) * ranks * slot.experts() * size_of::<f32>()) as u64
}

type Piece = (NewPair, StackedModule);

/// Whether every product stands there once more with the opposite factor: nothing is left of them.
fn cancels(slot: &Slot) -> Result<bool> {
    let mut rest: Vec<&Share> = slot.shares.iter().collect();
    while let Some(share) = rest.pop() {
        let mut found = None;
        for (at, other) in rest.iter().enumerate() {
            if other.factor() == -share.factor() && are_one(share, other)? {
                found = Some(at);
                break;
            }
        }
        let Some(at) = found else { return Ok(false) };
        rest.swap_remove(at);
    }
    Ok(slot.shares.len() > 1 && slot.multiplied.is_empty())
}

/// Whether two products are of the same stored factors.
fn are_one(left: &Share, right: &Share) -> Result<bool> {
    let (Some(one), Some(other)) = (&left.stored, &right.stored) else { return Ok(false) };
    let biases = match (&left.bias, &right.bias) {
        (None, None) => true,
        (Some(one), Some(other)) => same_values(one, other)?,
        _ => false,
    };
    let shapes = one.0.info.shape == other.0.info.shape && one.1.info.shape == other.1.info.shape;
    Ok(biases && shapes && same_values(&one.0, &other.0)? && same_values(&one.1, &other.1)?)
}

/// The exact sum.
fn summed(slot: &Slot, options: &StackOptions) -> Result<Piece> {
    if cancels(slot)? {
        let nothing = || Bytes::Held { bytes: Vec::new(), float: Float::F32 };
        return Ok((pair(slot, 0, 0.0, nothing(), nothing(), None), describe(slot, 0, Float::F32, 0.0)));
    }
    let total: usize = slot.shares.iter().map(|share| share.rank).sum();
    let alpha = options.alpha.unwrap_or(total as f64);
    let joined = concatenate(slot, alpha / total as f64, options.write.dtype, &options.adapters)?;
    let (mut norm, mut rounded) = (0.0, 0.0);
    for expert in 0..slot.experts() {
        let products = slot.products(expert, Share::factor)?;
        norm += LowRank::sum(&products).frobenius_squared()?.max(0.0);
        rounded += if joined.exact { 0.0 } else { rounding(&products, alpha / total as f64, joined.float).powi(2) };
    }
    let norm = f64::sqrt(norm);
    let mut module = describe(slot, joined.rank, joined.float, norm);
    module.exact = joined.exact;
    module.relative_error = share_of(f64::sqrt(rounded), norm);
    module.kept_energy = (1.0 - module.relative_error.powi(2)).max(0.0);
    Ok((pair(slot, joined.rank, alpha, joined.down, joined.up, joined.up_bias), module))
}

/// What storing the folded factors as `float` changes at most; measured for dtypes narrower than f32.
fn rounding(products: &[LowRank], scale: f64, float: Float) -> f64 {
    let folded = |products: &[LowRank]| products.iter().map(fold::rounding).sum::<f64>();
    if matches!(float, Float::F32 | Float::F64) {
        return folded(products);
    }
    let stored: Vec<LowRank> = products.iter().map(|product| stored_as(product, scale, float)).collect();
    LowRank::sum(products).distance(&LowRank::sum(&stored)) + folded(products) + folded(&stored)
}

/// The product as its folded factors are stored, in a result of scale `scale`.
fn stored_as(product: &LowRank, scale: f64, float: Float) -> LowRank {
    let fold = Fold::of(product.scale() / scale);
    let stored = |values: Vec<f32>, times: f64| {
        let scaled: Vec<f32> = values.iter().map(|value| (f64::from(*value) * times) as f32).collect();
        let mut bytes = vec![0; scaled.len() * float.bytes()];
        float.encode(&scaled, Rounding::Nearest, &mut bytes);
        let mut back = scaled;
        float.decode(&bytes, &mut back);
        back
    };
    LowRank::from_rows(stored(product.up(), fold.up), stored(product.down(), fold.down), product.rank(), scale)
}

/// Averaged factors.
fn averaged(slot: &Slot, sources: &[Applied], dtype: Option<Float>) -> Result<Piece> {
    let float = dtype.or(slot.common_float()).unwrap_or(Float::F32);
    let Averaged { down, up, rank, norm, residual } = average(slot, sources, float)?;
    let mut module = describe(slot, rank, float, norm);
    module.relative_error = share_of(residual, norm);
    module.kept_energy = (1.0 - module.relative_error.powi(2)).max(0.0);
    let bias = concat::bias(slot, 1.0, float)?;
    let root = slot.shares.first().map_or(Path::new(""), |share| sources[share.source].adapter.root.as_path());
    let name = slot.name();
    let [down, up] = [&down, &up].map(|values| Bytes::held(values, float, (root, &name)));
    Ok((pair(slot, rank, rank as f64, down?, up?, bias), module))
}

fn cut(
    slots: &[&Slot],
    pruning: Option<super::Pruning>,
    choice: &RankChoice,
    options: &StackOptions,
    fixed: (u64, u64),
    run: &Run<'_>,
) -> Result<Vec<Piece>> {
    let compressed = compress(slots, pruning, choice, options, fixed, run.cancel)?;
    let piece = |(slot, found): (&&Slot, Compressed)| -> Result<Piece> {
        let mut module = describe(slot, found.rank, found.float, found.norm);
        module.relative_error = share_of(found.residual_at_most, found.norm);
        module.kept_energy = (1.0 - share_of(found.residual, found.norm).powi(2)).max(0.0);
        module.optimum_at_least = Some(share_of(found.optimum_at_least, found.norm));
        module.singular_values = found.singular_values;
        let (root, name) = (options.root_of(slot), slot.name());
        let [down, up] = [&found.down, &found.up].map(|values| Bytes::held(values, found.float, (root, &name)));
        let bias = concat::bias(slot, 1.0, found.float)?;
        Ok((pair(slot, found.rank, found.rank as f64, down?, up?, bias), module))
    };
    slots.iter().zip(compressed).map(piece).collect()
}

fn pair(slot: &Slot, rank: usize, alpha: f64, down: Bytes, up: Bytes, up_bias: Option<Bytes>) -> NewPair {
    let (path, kind, outer) = (slot.path.clone(), slot.kind.clone(), slot.outer);
    NewPair { path, kind, rank, alpha, down, up, outer, up_bias }
}

fn describe(slot: &Slot, rank: usize, float: Float, norm: f64) -> StackedModule {
    StackedModule {
        module: slot.name(),
        ranks_before: slot.ranks(),
        rank,
        dtype: float.dtype().name().to_owned(),
        exact: false,
        norm,
        kept_energy: 1.0,
        relative_error: 0.0,
        optimum_at_least: None,
        singular_values: Vec::new(),
    }
}

fn share_of(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Averages of factors mean nothing where a change is a difference of products.
fn refuse_untrained(sources: &[Applied]) -> Result<()> {
    let Some(source) = sources.iter().find(|source| source.init.is_some() || source.original.is_some()) else {
        return Ok(());
    };
    let root = source.init.as_ref().map_or(&source.adapter.root, |init| &init.root);
    let what = "untrained factors are subtracted as products; an average of factors cannot do that";
    Err(Error::unsupported(root, what).hint("`--method concat` can"))
}

/// What DoRA adds is no product: it can be approximated, and nothing else.
fn refuse_multiplied(slots: &[&Slot], sources: &[Applied], options: &StackOptions) -> Result<()> {
    let Some(multiplied) = slots.iter().flat_map(|slot| &slot.multiplied).next() else { return Ok(()) };
    let what = match options.method {
        Method::Concat => "is DoRA: what it adds to a weight has full rank, so it takes a way to choose ranks",
        _ => "is DoRA: what it adds depends on the model; only its sum with others is approximated",
    };
    Err(Error::unsupported(&sources[multiplied.source].adapter.config.path, what)
        .hint("`--method concat` with `--rank N` or `--max-error ERROR` gives the nearest adapter, and says how near"))
}

/// Only matrices are merged element by element.
fn refuse_biases(slots: &[&Slot]) -> Result<()> {
    let biased = slots.iter().flat_map(|slot| &slot.shares).find_map(|share| share.bias.as_ref());
    let Some(bias) = biased else { return Ok(()) };
    let what = format!("tensor `{}`: a bias of B (`lora_bias`) is not merged element by element", bias.info.name);
    Err(Error::unsupported(bias.path(), what).hint("`--method concat` sums it"))
}
