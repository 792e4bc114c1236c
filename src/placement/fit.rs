//! Whether a change fits its place: shapes, orientation, and what to say if not.

use super::change::Placeable;
use super::vocabulary::{self, is_resized, is_vocabulary};
use crate::adapters::{Lora, describe};
use crate::dialects::Dialect;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::base::Base;

/// Whether the weight keeps its inputs in rows. Decided by shape; where it is square, by what kind of model it is.
///
/// # Errors
/// When the change has another shape than the weight, either way round.
pub fn is_transposed(base: &Base, job: &Placeable<'_>, lora: &Lora, target: &Stored) -> Result<bool> {
    let shape = target.info.shape.as_slice();
    let (out, inputs) = (lora.outputs(), lora.inputs());
    let rows_cols = target.info.shape.rows_cols();
    if lora.embedding {
        // B·A is [dim, vocabulary], the table [vocabulary, dim].
        return if rows_cols == (inputs, out) { Ok(true) } else { Err(shape_error(lora, target, (inputs, out))) };
    }
    // A convolution of one position is a linear layer, and is stored as either.
    let down = lora.down.info.shape.as_slice();
    let kernel_agrees = down.len() <= 2 || kernel(down) == kernel(shape);
    match (
        shape.len() > 1 && rows_cols == (out, inputs) && kernel_agrees,
        shape.len() == 2 && rows_cols == (inputs, out),
    ) {
        (true, true) => Ok(base.keeps_inputs_in_rows(&job.path, job.applied.adapter.config.fan_in_fan_out)),
        (true, false) => Ok(false),
        (false, true) => Ok(true),
        (false, false) => Err(shape_error(lora, target, (out, inputs))),
    }
}

/// The sizes behind outputs and inputs, less trailing ones.
fn kernel(shape: &[u64]) -> &[u64] {
    let kernel = shape.get(1..).unwrap_or_default();
    let ones = kernel.iter().rev().take_while(|size| **size == 1).count();
    &kernel[..kernel.len() - ones]
}

fn shape_error(lora: &Lora, target: &Stored, (rows, cols): (u64, u64)) -> Error {
    let shape = target.info.shape.as_slice();
    let (base_rows, base_cols) = target.info.shape.rows_cols();
    let problem = format!("the change is [{rows}, {cols}], the weight {}", target.info.shape);
    let error = Error::mismatch(describe(&lora.down), describe(target), problem);
    if cols == base_cols && shape.len() == 2 && is_vocabulary(&target.info.name) {
        return error.hint(vocabulary::hint(rows, base_rows));
    }
    if shape.len() > 2 && rows == base_rows && cols > base_cols && base_cols > 0 && cols % base_cols == 0 {
        let groups = cols / base_cols;
        return error
            .hint(format!("a convolution in {groups} groups; neither PEFT nor lorakit merges a LoRA into one"));
    }
    error.hint("is this the model the adapter was trained on?")
}

/// A tensor that takes the place of another, or is added to it, has its shape.
///
/// # Errors
/// When it has not, naming both shapes.
pub fn check_elements(tensor: &Stored, target: &Stored) -> Result<()> {
    if tensor.info.shape == target.info.shape {
        return Ok(());
    }
    let problem = format!("its shape is {}, that of the base's {}", tensor.info.shape, target.info.shape);
    let error = Error::mismatch(describe(tensor), describe(target), problem);
    let rows = (tensor.info.shape.rows_cols().0, target.info.shape.rows_cols().0);
    Err(match (is_vocabulary(&target.info.name), is_resized(tensor, target)) {
        (_, true) => error.hint(format!(
            "{}; `--resize-vocab` takes the adapter's matrix as it is",
            vocabulary::hint(rows.0, rows.1)
        )),
        (true, _) => error.hint(vocabulary::hint(rows.0, rows.1)),
        _ => error,
    })
}

/// The config and the file must agree on whether the module is a DoRA: without its magnitude it is another function.
///
/// # Errors
/// When one of them is alone.
pub fn check_magnitude(job: &Placeable<'_>, lora: &Lora) -> Result<()> {
    let config = &job.applied.adapter.config;
    // Only a config of its own can say something else than the tensors.
    if !Dialect::of(job.applied.adapter.dialect).declares || config.dora == lora.magnitude.is_some() {
        return Ok(());
    }
    let problem = match &lora.magnitude {
        None => format!("`use_dora` is true, `{}` has no `lora_magnitude_vector`", job.module.path),
        Some(tensor) => format!("`use_dora` is not set, the file holds `{}`", tensor.info.name),
    };
    Err(Error::mismatch(describe(&lora.down), config.path.display().to_string(), problem))
}

/// Trained and untrained factors change the same weight.
///
/// # Errors
/// When their outer shapes differ.
pub fn check_same_shape(trained: &Lora, untrained: &Lora) -> Result<()> {
    let outer = |pair: &Lora| (pair.outputs(), pair.inputs());
    if outer(trained) == outer(untrained) {
        return Ok(());
    }
    let problem = format!("the untrained pair is {:?}, the trained one {:?}", outer(untrained), outer(trained));
    Err(Error::mismatch(describe(&untrained.down), describe(&trained.down), problem))
}
