//! ModelOpt INT4 AWQ: signed codes of four bits, two rows in a byte; W = code · scale · input.
//!
//! | tensor of `M` | what |
//! |---|---|
//! | `M.weight` U8 `[out ∕ 2, in]` | codes: row 2k in the low half of a byte of row k, row 2k + 1 in the high one |
//! | `M.weight_scale` F32 `[out, in ∕ group]` | scales |
//! | `M.weight_scale_2` F32 | the scale of FP8 activations (W4A8): not part of the weight |
//! | `M.pre_quant_scale` BF16 `[in]` | factors of the layer's input, at some layers |
//!
//! A layer with input factors computes W · (x ∘ s): without them its weight is W · diag(s), and that is what is read. Elsewhere
//! ModelOpt has moved them into the norm before the layer, so a LoRA of the 16-bit model does not fit. Source: ModelOpt
//! `export/quant_utils.py` pack_int4_in_uint8.

use std::sync::Arc;

use super::coded::{Coded, Codes, Field, Lay, Meaning, Numbers, Runs, Zeros};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found, refused};
use crate::error::Result;
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo};

/// What the factors of a layer's input are called, in place of `.weight`.
pub const INPUTS: &str = ".pre_quant_scale";

/// The code of 0, once two's complement is made to ascend.
const MIDDLE: u8 = 8;

/// Recognises pairs of rows in bytes.
///
/// # Errors
/// When what belongs to them does not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let module = info.name.strip_suffix(".weight").filter(|_| info.dtype == Dtype::U8);
    let Some(module) = module.filter(|_| refused::of_settings(files.settings()).is_none()) else { return Ok(None) };
    let scales = files.find(&format!("{module}.weight_scale"));
    let wide = scales.filter(|scales| scales.info.dtype.float().is_some_and(|float| float.bytes() > 1));
    let Some((stored, scales)) = files.find(&info.name).zip(wide) else { return Ok(None) };
    let packed = Sizes::of(files, info)?;
    let misfit = shapes::misfit(&scales, info);
    let sizes = match packed.front[..] {
        [pairs] => pairs.checked_mul(2).and_then(|rows| Sizes::new(&[rows, packed.cols])),
        _ => None,
    };
    let Some(sizes) = sizes else { return Err(misfit) };
    let Some((scales, across)) = Field::by_rows(Scales::of(scales)?, &sizes) else { return Err(misfit) };
    let group = shapes::group(sizes.cols, across, &[]).ok_or(misfit)?;
    let zeros = Zeros::All(f32::from(MIDDLE));
    let numbers = Numbers { zeros, ..Numbers::new(Runs::Of(group), scales) };
    let bits = Bits::new(BitOrder::Stream, 4).expect("half bytes");
    let codes = Codes { stored, bits, lay: Lay::Pairs, flip: MIDDLE, rows: sizes.rows, cols: sizes.cols }.check()?;
    let (factors, details) = inputs(files, module, info, sizes.cols)?;
    let facts = Facts { format: "ModelOpt INT4 AWQ".into(), bits: 4, group: numbers.group(sizes.cols), details };
    let meaning = Meaning::Whole(0, bits.most());
    let storage = Coded { inputs: factors, ..Coded::new(&sizes, meaning, codes, numbers, facts) };
    let tensors = shapes::tensors(files, module, &info.name, &[".weight_scale", ".weight_scale_2", INPUTS]);
    Ok(Some(Found { name: info.name.clone(), tensors, storage: Arc::new(storage) }))
}

/// The factors of a layer's input, and what is told of them.
///
/// # Errors
/// When they are not one per column.
pub fn inputs(
    files: &Files<'_>,
    module: &str,
    info: &TensorInfo,
    cols: usize,
) -> Result<(Option<Scales>, Vec<String>)> {
    let Some(factors) = files.find(&format!("{module}{INPUTS}")) else { return Ok((None, Vec::new())) };
    if factors.elements() != cols {
        return Err(shapes::misfit(&factors, info));
    }
    Ok((Some(Scales::of(factors)?), vec!["input factors".into()]))
}
