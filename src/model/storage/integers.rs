//! Whole numbers of up to eight bits in a byte each: compressed-tensors `int-quantized`, ModelOpt INT8; W = (code − zero) · scale.
//!
//! | tensor of `M` | what |
//! |---|---|
//! | `M.weight` I8 `[out, in]` | codes; also those of four bits, from −8 to 7 |
//! | `M.weight_scale` BF16, F16, F32 | one for all, per row, or `[out, groups]` |
//! | `M.weight_zero_point` I8, as the scales | zeros; none: 0 |
//! | `M.pre_quant_scale` `[in]` | factors of the layer's input, see [`modelopt`] |
//!
//! Sources: compressed-tensors `compressors/int_quantized`, ModelOpt `export/quant_utils.py`.

use std::sync::Arc;

use super::coded::{Coded, Codes, Field, Lay, Meaning, Numbers, Runs, Zeros};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found, modelopt, refused};
use crate::error::Result;
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo};

/// The code of 0, once two's complement is made to ascend.
const MIDDLE: u8 = 128;

/// Recognises whole numbers with scales.
///
/// # Errors
/// When what belongs to them does not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let module = info.name.strip_suffix(".weight").filter(|_| info.dtype == Dtype::I8);
    let Some(module) = module.filter(|_| refused::of_settings(files.settings()).is_none()) else { return Ok(None) };
    let scales = files.find(&format!("{module}.weight_scale")).filter(|scales| scales.info.dtype.float().is_some());
    let Some((stored, scales)) = files.find(&info.name).zip(scales) else { return Ok(None) };
    let sizes = Sizes::of(files, info)?;
    let scales = Scales::of(scales)?;
    let (mut details, dtype) = (vec![scales.dtype()], scales.float());
    let misfit = shapes::misfit(&scales.stored, info);
    let Some((scales, across)) = Field::by_rows(scales, &sizes) else { return Err(misfit) };
    let group = shapes::group(sizes.cols, across, &shapes::said(files, "group_size")).ok_or(misfit)?;
    let zeros = match files.find(&format!("{module}.weight_zero_point")) {
        None => Zeros::All(f32::from(MIDDLE)),
        Some(zeros) => {
            details.push("zero points".into());
            if zeros.info.dtype != Dtype::I8 || zeros.elements() != scales.scales.stored.elements() {
                return Err(shapes::misfit(&zeros, info));
            }
            Zeros::Bytes {
                across: if zeros.elements() == 1 { 0 } else { across },
                stored: zeros,
                middle: MIDDLE.into(),
            }
        }
    };
    let numbers = Numbers { zeros, ..Numbers::new(Runs::Of(group), scales) };
    let bits = Bits::new(BitOrder::Stream, 8).expect("a byte holds a code");
    let lay = Lay::Rows { bytes: sizes.cols };
    let codes = Codes { stored, bits, lay, flip: MIDDLE, rows: sizes.rows, cols: sizes.cols }.check()?;
    let (inputs, told) = modelopt::inputs(files, module, info, sizes.cols)?;
    details.extend(told);
    let (format, width) = match files.method().as_deref() {
        Some("modelopt") => ("ModelOpt INT8", Some(8)),
        _ => ("compressed-tensors int-quantized", width(files)),
    };
    let facts = Facts { format: format.into(), bits: width.unwrap_or(8), group: numbers.group(sizes.cols), details };
    let half = 1_u8 << (width.unwrap_or(8) - 1);
    let meaning = Meaning::Whole(MIDDLE - half, MIDDLE + (half - 1));
    let storage = Coded {
        dtype,
        inputs,
        // Codes of how many bits may be written, only the config tells.
        is_writable: width.is_some(),
        ..Coded::new(&sizes, meaning, codes, numbers, facts)
    };
    let tensors =
        shapes::tensors(files, module, &info.name, &[".weight_scale", ".weight_zero_point", modelopt::INPUTS]);
    Ok(Some(Found { name: info.name.clone(), tensors, storage: Arc::new(storage) }))
}

/// The bits of a code, where the config names one number of them.
fn width(files: &Files<'_>) -> Option<u32> {
    match shapes::said(files, "num_bits")[..] {
        [bits] => u32::try_from(bits).ok().filter(|bits| (2..=8).contains(bits)),
        _ => None,
    }
}
