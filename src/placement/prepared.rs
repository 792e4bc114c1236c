//! A LoRA pair → its ΔW, turned as its weight is stored, less what an initialiser took out, with its magnitudes.

use std::sync::Arc;

use super::change::Placeable;
use super::fit::{check_magnitude, check_same_shape, is_transposed};
use crate::adapters::{Dora, Initialiser, Lora, LowRankDelta, Target, magnitudes};
use crate::error::Result;
use crate::formats::Stored;
use crate::model::base::Base;

/// A change in the orientation of its weight.
pub enum Prepared {
    /// It does not depend on the weight.
    Plain(LowRankDelta),
    /// It has magnitudes.
    Dora(Dora),
}

/// ΔW in the orientation of `target`.
///
/// # Errors
/// When shapes disagree, or the scale is not known.
pub fn prepare(base: &Base, job: &Placeable<'_>, lora: &Lora, target: &Stored) -> Result<Prepared> {
    check_magnitude(job, lora)?;
    let scale = job.scale(lora.rank())?;
    let transposed = is_transposed(base, job, lora, target)?;
    let trained = lora.term(scale)?;
    let mut terms = vec![if transposed { trained.transposed() } else { trained }];
    if let Some((pair, scale)) = job.untrained()? {
        check_same_shape(lora, pair)?;
        let square = pair.outputs() == pair.inputs();
        // OLoRA factors a weight as it is stored, and of layers that keep their inputs in rows only square ones survive that in
        // PEFT (docs/inside/decisions/0006).
        let as_stored = square && job.applied.adapter.config.initialiser() == Some(Initialiser::Olora);
        let taken = pair.term(-scale)?;
        terms.push(if transposed && !as_stored { taken.transposed() } else { taken });
    }
    let mut inner = LowRankDelta::new(terms);
    if let Some((original, started)) = &job.applied.original
        && let Some(initial) = original.initial(*started, lora, &target.info.name, scale)?
    {
        inner = inner.less(initial);
    }
    let Some(magnitude) = &lora.magnitude else { return Ok(Prepared::Plain(inner)) };
    let target = Target::of(target, transposed, false);
    let magnitudes = magnitudes(magnitude, &target)?;
    let magnitudes = if transposed { magnitudes.turned() } else { magnitudes };
    let path = inner.path().to_path_buf();
    Ok(Prepared::Dora(Dora::new(Arc::new(inner), magnitudes, &path, job.path.clone())))
}
