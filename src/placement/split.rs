//! A change whose rows lie in other modules of the base than in the adapter: of a fused weight in its parts, of a part in the
//! fused weight, or in another order. Rows of B·A are products of rows of B, so a LoRA is cut exactly; every other change is
//! seen through a window of rows, where it does not mix them.

use std::ops::Range;
use std::sync::Arc;

use super::change::Placeable;
use super::placer::{Outcome, Placer};
use super::tile::Piece;
use crate::adapters::{
    Axis, Delta, Dora, Lora, LowRankDelta, Magnitudes, Method, Target, Term, Window, describe, magnitudes,
};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::arch::{Spot, parameter};
use crate::tensor::usize_of;

/// Lands a LoRA pair at `spots`.
///
/// # Errors
/// When it does not fit them, or cannot be cut.
pub fn place_lora(
    placer: &mut Placer<'_>,
    job: &Placeable<'_>,
    lora: &Lora,
    spots: &[Spot],
) -> Result<Option<Outcome>> {
    if lora.embedding || lora.bias.is_some() || job.applied.init.is_some() || job.applied.original.is_some() {
        let what = format!(
            "`{}` is called `{}` … in the base: embeddings, biases and adapters that need their untrained factors are not cut",
            job.module.path, spots[0].module
        );
        return Err(Error::unsupported(&job.applied.adapter.root, what));
    }
    let (outputs, inputs) = (usize_of(lora.outputs()), usize_of(lora.inputs()));
    let target = Target { outputs, inputs, kernel: Vec::new(), bias: false };
    let read = |tensor| magnitudes(tensor, &target).map(|found| (tensor, found));
    let magnitude = lora.magnitude.as_ref().map(read).transpose()?;
    if let Some((tensor, found)) = &magnitude
        && found.axis != Axis::Rows
    {
        let what = format!(
            "{}: magnitudes of inputs take their norms over all rows of `{}`, which are those of several weights in the base",
            describe(tensor),
            job.module.path
        );
        return Err(Error::unsupported(&job.applied.adapter.root, what));
    }
    let whole = lora.term(job.scale(lora.rank())?)?;
    for spot in spots {
        let (name, stored) = place(placer, spot, lora.inputs(), || describe(&lora.down))?;
        let rows = rows_of(&spot.take);
        let up = whole.up.clone().pick_rows(rows.start, rows.len(), 1);
        let inner = LowRankDelta::new(vec![Term { up, down: whole.down.clone(), scale: whole.scale }]);
        let delta: Arc<dyn Delta> = match &magnitude {
            None => Arc::new(inner),
            Some((tensor, found)) => {
                let part = Magnitudes { values: found.values[rows].to_vec(), axis: found.axis, manner: found.manner };
                Arc::new(Dora::new(Arc::new(inner), part, tensor.path(), stored.info.name.clone()))
            }
        };
        placer.add(&name, Piece { delta, row: usize_of(spot.at), col: 0, strength: job.strength }, None);
    }
    Ok(Some(Outcome::Merged))
}

/// Lands a change by another method at `spots`.
///
/// # Errors
/// When it does not fit them, or mixes rows of different weights.
pub fn place_method(
    placer: &mut Placer<'_>,
    job: &Placeable<'_>,
    method: &dyn Method,
    (outputs, inputs): (u64, u64),
    spots: &[Spot],
) -> Result<Option<Outcome>> {
    let target = Target { outputs: usize_of(outputs), inputs: usize_of(inputs), kernel: Vec::new(), bias: false };
    for change in method.changes(&target)? {
        let refuse = |what: String| Err(Error::unsupported(&job.applied.adapter.root, what));
        if change.parameter != "weight" {
            return refuse(format!(
                "the {} of `{}` has no single place in the base",
                change.parameter, job.module.path
            ));
        }
        for spot in spots {
            let first = || method.tensors().first().map_or(String::new(), |(_, tensor)| describe(tensor));
            let (name, _) = place(placer, spot, inputs, first)?;
            let rows = rows_of(&spot.take);
            let delta: Arc<dyn Delta> = if rows == (0..change.delta.shape().0) {
                Arc::clone(&change.delta)
            } else if Window::fits(change.delta.as_ref(), &rows) {
                Arc::new(Window::new(Arc::clone(&change.delta), rows))
            } else {
                return refuse(format!(
                    "{} mixes the rows of `{}`, which are those of several weights in the base (`{}` …)",
                    method.kind(),
                    job.module.path,
                    spots[0].module
                ));
            };
            let row = usize_of(spot.at);
            placer.add(&name, Piece { delta, row, col: 0, strength: job.strength }, None);
        }
    }
    Ok(Some(Outcome::Merged))
}

/// The tensor of the base that `spot` means, which has to have so many inputs.
fn place(placer: &Placer<'_>, spot: &Spot, inputs: u64, who: impl Fn() -> String) -> Result<(String, Stored)> {
    let name = parameter(&spot.module, "weight");
    let stored = placer.target(&name);
    // Says who packed a weight that holds no floating point numbers.
    placer.base.weight(&name, None)?;
    let (_, cols) = stored.info.shape.rows_cols();
    if cols == inputs {
        return Ok((name, stored));
    }
    let problem = format!("the change has {inputs} inputs, the weight {}", stored.info.shape);
    Err(Error::mismatch(who(), describe(&stored), problem).hint("is this the model the adapter was trained on?"))
}

fn rows_of(rows: &Range<u64>) -> Range<usize> {
    usize_of(rows.start)..usize_of(rows.end)
}
