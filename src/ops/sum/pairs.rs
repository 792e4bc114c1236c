//! The low-rank changes of a sum: slots and a method → pairs of the new adapter, and what is to be said about each.

use super::average::average;
use super::concat::concatenate;
use super::fold::{self, Fold};
use super::intruders::{self, Foreign};
use super::summed::Summed;
use super::{Method, SumOptions};
use crate::error::{Error, Result};
use crate::linalg::{LinearOperator, LowRank};
use crate::model::same_values;
use crate::output::Run;
use crate::pairs::NewPair;
use crate::placement::Applied;
use crate::placement::terms::{Share, Slot, Terms};
use crate::plan::{Quiet, map_within};
use crate::tensor::Float;
use crate::truncate::{Means, ModuleReport, NewAdapterReport, Ranking, Truncatable, Truncated, truncate};

/// Makes the pairs of `terms`, one per slot; `None` where nothing is left. `bytes` and `numbers` are those of what is no factor, `foreign`
/// has one entry per slot where intruders are taken out.
///
/// # Errors
/// When factors cannot be read or have no such combination.
pub fn make(
    terms: &Terms,
    sources: &[Applied],
    options: &SumOptions,
    ((bytes, numbers), foreign): ((u64, u64), &[Option<Foreign>]),
    run: &Run<'_>,
) -> Result<(Vec<Option<NewPair>>, NewAdapterReport)> {
    let slots: Vec<&Slot> = terms.slots.values().collect();
    refuse_multiplied(&slots, sources, options)?;
    let (mut report, pairs) = match &options.rank {
        Some(choice) => {
            if matches!(options.method, Method::Elementwise(_)) {
                refuse_biases(&slots)?;
            }
            let changes: Vec<Summed<'_>> = slots
                .iter()
                .enumerate()
                .map(|(at, slot)| Summed { slot, options, foreign: foreign.get(at).and_then(Option::as_ref) })
                .collect();
            let changes: Vec<&dyn Truncatable> = changes.iter().map(|change| change as &dyn Truncatable).collect();
            let Truncated { pairs, report } = truncate(
                &changes,
                &Means {
                    choice,
                    alpha: options.alpha,
                    compute: options.compute,
                    dtype: options.write.dtype,
                    raises: options.is_of_one(),
                    fixed: choice.fixed(|| bytes, || numbers),
                    budget: &options.write.budget,
                    cancel: run.cancel,
                    progress: &Quiet,
                },
            )?;
            (report, pairs)
        }
        None => {
            if options.method == Method::FactorAverage {
                refuse_untrained(sources)?;
            }
            let held: Vec<u64> = slots.iter().map(|slot| factor_bytes(slot)).collect();
            let made = map_within(&held, &options.write.budget, run.cancel, |at| match options.method {
                Method::FactorAverage => average(slots[at], sources, options.write.dtype).map(Some),
                _ => summed(slots[at], options),
            })?;
            let (mut report, mut pairs) = (NewAdapterReport::default(), Vec::with_capacity(made.len()));
            for (slot, made) in slots.iter().zip(made) {
                let (pair, module) = made.unzip();
                match module {
                    Some(module) => report.modules.push(module),
                    None => report.vanished.push(slot.name()),
                }
                pairs.push(pair);
            }
            report.add_up(0.0);
            (report, pairs)
        }
    };
    if let Some(own) = &options.intruders {
        intruders::tell(&slots, foreign, own, &mut report);
    }
    let before = |slot: &&Slot| {
        let (rows, cols) = slot.shape();
        ((rows + cols) * slot.ranks().iter().sum::<usize>() * slot.experts()) as u64
    };
    report.parameters_before = Some(slots.iter().map(before).sum());
    Ok((pairs, report))
}

/// Bytes of a slot's factors in f32 and of one copy.
fn factor_bytes(slot: &Slot) -> u64 {
    let (rows, cols) = slot.shape();
    let ranks: usize = slot.shares.iter().map(|share| share.rank).sum();
    (2 * (rows + cols) * ranks * slot.experts() * size_of::<f32>()) as u64
}

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
    Ok(slot.shares.len() > 1)
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
fn summed(slot: &Slot, options: &SumOptions) -> Result<Option<(NewPair, ModuleReport)>> {
    if cancels(slot)? {
        return Ok(None);
    }
    let total: usize = slot.shares.iter().map(|share| share.rank).sum();
    let alpha = options.alpha.unwrap_or(total as f64);
    let (pair, float, exact) = concatenate(slot, alpha, options.write.dtype, &options.adapters)?;
    let (mut norm, mut rounded) = (0.0, 0.0);
    for expert in 0..slot.experts() {
        let products = slot.products(expert, Share::factor)?;
        norm += LowRank::sum(&products).frobenius_squared()?.max(0.0);
        rounded += if exact { 0.0 } else { rounding(&products, alpha / total as f64, float).powi(2) };
    }
    let module = ModuleReport::of(&pair, f64::sqrt(norm)).off_by(f64::sqrt(rounded));
    Ok(Some((pair, ModuleReport { exact, ranks_before: slot.ranks(), ..module })))
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
        let mut scaled: Vec<f32> = values.iter().map(|value| (f64::from(*value) * times) as f32).collect();
        float.round(&mut scaled);
        scaled
    };
    LowRank::from_rows(stored(product.up(), fold.up), stored(product.down(), fold.down), product.rank(), scale)
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
fn refuse_multiplied(slots: &[&Slot], sources: &[Applied], options: &SumOptions) -> Result<()> {
    let Some(multiplied) = slots.iter().flat_map(|slot| &slot.multiplied).next() else { return Ok(()) };
    let what = match (options.method, &options.rank) {
        (Method::Concat, Some(rank)) if rank.ranking != Ranking::Noise => return Ok(()),
        (Method::Concat, Some(_)) => {
            "is DoRA: what it adds is no product of rounded factors, nothing says how much is noise"
        }
        (Method::Concat, None) => "is DoRA: what it adds to a weight has full rank, so it takes a way to choose ranks",
        _ => "is DoRA: what it adds depends on the model; only its sum with others is approximated",
    };
    let way = match options.method {
        Method::Concat => "`--rank N` or `--max-error ERROR` writes the nearest LoRA and says how near",
        _ => "`--method concat` with `--rank N` or `--max-error ERROR` writes the nearest LoRA and says how near",
    };
    Err(Error::unsupported(&sources[multiplied.source].adapter.config.path, what).hint(way))
}

/// Only matrices are merged element by element.
fn refuse_biases(slots: &[&Slot]) -> Result<()> {
    let biased = slots.iter().flat_map(|slot| &slot.shares).find_map(|share| share.bias.as_ref());
    let Some(bias) = biased else { return Ok(()) };
    let what = format!("tensor `{}`: a bias of B (`lora_bias`) is not merged element by element", bias.info.name);
    Err(Error::unsupported(bias.path(), what).hint("`--method concat` sums it"))
}
