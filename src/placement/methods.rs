//! Changes by methods other than LoRA: into the layer's weight, turned as it is stored, and into its bias.

use std::sync::Arc;

use super::change::Placeable;
use super::placer::{Outcome, Placer};
use super::split;
use super::tile::Piece;
use crate::adapters::{Delta, Method, Target, Turned, describe};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::embeddings;

/// Lands a change; `None` if the base has no such layer.
///
/// # Errors
/// When the change does not fit the layer.
pub fn place(placer: &mut Placer<'_>, job: &Placeable<'_>, method: &dyn Method) -> Result<Option<Outcome>> {
    let Some(name) = placer.tensor_of(job, "weight") else {
        if let Some((size, spots)) = placer.spots(job)? {
            return split::place_method(placer, job, method, size, &spots);
        }
        return placer.base.packed(&job.path).map_or(Ok(None), Err);
    };
    let stored = placer.target(&name);
    // Says who packed a weight that holds no floating point numbers.
    placer.base.weight(&stored.info.name, None)?;
    let bias = placer.tensor_of(job, "bias");
    let transposed = is_transposed(placer, job, method, &stored);
    let target = Target::of(&stored, transposed, bias.is_some());
    if let Some(reason) = method.kind().on_embedding.filter(|_| embeddings::is_table(&job.path)) {
        return Err(Error::unsupported(&job.applied.adapter.root, format!("`{}` {reason}", job.path)));
    }
    if let Some(note) = method.kind().on_convolution.filter(|_| target.kernel.iter().any(|size| *size > 1)) {
        placer.placement.notes.push(format!("`{}` {note}", job.path));
    }
    for change in method.changes(&target)? {
        if change.delta.reads_weight() && transposed {
            let what = format!("`{}` keeps its inputs in rows, and its bias depends on its weight", job.path);
            return Err(Error::unsupported(&job.applied.adapter.root, what));
        }
        if change.delta.reads_weight() {
            change.delta.see_weight(&placer.base.weight(&stored.info.name, None)?)?;
        }
        let (name, shape) = match change.parameter {
            "bias" => {
                let Some(name) = bias.clone() else {
                    let problem = format!("{} changes the bias of `{}`, which has none", method.kind(), job.path);
                    return Err(Error::mismatch(first(method), placer.base_name(), problem));
                };
                (name.clone(), placer.target(&name).rows_cols())
            }
            _ => (name.clone(), (target.outputs, target.inputs)),
        };
        if change.delta.shape() != shape {
            let (rows, cols) = change.delta.shape();
            let problem = format!("the change is [{rows}, {cols}], its place [{}, {}]", shape.0, shape.1);
            return Err(Error::mismatch(first(method), describe(&placer.target(&name)), problem)
                .hint("is this the model the adapter was trained on?"));
        }
        let turned = transposed && change.parameter != "bias";
        let delta: Arc<dyn Delta> = if turned { Arc::new(Turned(change.delta)) } else { change.delta };
        placer.add(&name, Piece { delta, row: 0, col: 0, strength: job.strength }, None);
    }
    Ok(Some(Outcome::Merged))
}

/// Whether the weight keeps its inputs in rows: by shape where the method tells one, by kind of model where that is square.
fn is_transposed(placer: &Placer<'_>, job: &Placeable<'_>, method: &dyn Method, stored: &Stored) -> bool {
    if stored.info.shape.as_slice().len() != 2 {
        return false;
    }
    let said = placer.base.keeps_inputs_in_rows(&job.path, job.applied.adapter.config.fan_in_fan_out);
    let (rows, cols) = stored.info.shape.rows_cols();
    match method.shape() {
        Some(shape) if rows != cols => shape == (cols, rows),
        _ => said,
    }
}

fn first(method: &dyn Method) -> String {
    method.tensors().first().map_or_else(|| method.kind().to_string(), |(_, tensor)| describe(tensor))
}
