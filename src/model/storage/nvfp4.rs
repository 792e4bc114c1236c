//! NVFP4: codes of E2M1, 16 of which share a scale of E4M3, and a number that all scales share.
//!
//! | who | codes U8 `[out, in ∕ 2]` | scales F8_E4M3 `[out, in ∕ 16]` | shared, F32 | W |
//! |---|---|---|---|---|
//! | ModelOpt | `M.weight` | `M.weight_scale` | `M.weight_scale_2` | E2M1 · (scale · shared) |
//! | compressed-tensors | `M.weight_packed` | `M.weight_scale` | `M.weight_global_scale` | E2M1 · (scale ∕ shared) |
//!
//! The low half of a byte is the even element. How many columns share a scale, the shapes tell: W4A8_NVFP4_FP8 has 32. Sources:
//! ModelOpt `qtensor/nvfp4_tensor.py`, compressed-tensors `compressors/nvfp4`.

use std::sync::Arc;

use super::coded::{Coded, Codes, Common, Field, Lay, Meaning, Numbers, Runs, Table};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found, modelopt};
use crate::error::{Error, Result};
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo};

/// Who writes it.
struct Maker {
    format: &'static str,
    /// What codes and the shared number are called, in place of `.weight`.
    codes: &'static str,
    shared: &'static str,
    /// (scale, shared number) → scale.
    apply: fn(f32, f32) -> f32,
}

const MAKERS: [Maker; 2] = [
    Maker {
        format: "ModelOpt NVFP4",
        codes: ".weight",
        shared: ".weight_scale_2",
        apply: |scale, shared| scale * shared,
    },
    Maker {
        format: "compressed-tensors nvfp4-pack-quantized",
        codes: ".weight_packed",
        shared: ".weight_global_scale",
        apply: |scale, shared| scale / shared,
    },
];

/// Recognises NVFP4 of ModelOpt and compressed-tensors.
///
/// # Errors
/// When what belongs to it is missing or does not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    if info.dtype != Dtype::U8 {
        return Ok(None);
    }
    let made = MAKERS.iter().find_map(|maker| Some((maker, info.name.strip_suffix(maker.codes)?)));
    let Some((maker, module)) = made else { return Ok(None) };
    let scales = files.find(&format!("{module}.weight_scale"));
    let shared = files.find(&format!("{module}{}", maker.shared));
    let Some(((stored, scales), shared)) = files.find(&info.name).zip(scales).zip(shared) else { return Ok(None) };
    if scales.info.dtype != Dtype::F8E4M3 {
        if scales.info.dtype == Dtype::U8 && scales.info.shape.as_slice().len() == 1 {
            let what = format!("tensor `{}` holds scales in the order of TensorRT-LLM's kernels", scales.info.name);
            return Err(Error::unsupported(scales.path(), what).hint("take the checkpoint as ModelOpt exported it"));
        }
        return Ok(None);
    }
    let packed = Sizes::of(files, info)?;
    let sizes = packed.cols.checked_mul(2).and_then(|cols| packed.with_cols(cols));
    let sizes = sizes.ok_or_else(|| shapes::misfit(&scales, info))?;
    let misfit = shapes::misfit(&scales, info);
    let Some((scales, across)) = Field::by_rows(Scales::of(scales)?, &sizes) else { return Err(misfit) };
    let group = shapes::group(sizes.cols, across, &[]).ok_or(misfit)?;
    let matrix = sizes.matrix_rows();
    let rows = match shared.elements() {
        1 => sizes.rows,
        count if Some(count) == sizes.rows.checked_div(matrix) => matrix,
        _ => return Err(shapes::misfit(&shared, info)),
    };
    let common = Some(Common { scales: Scales::of(shared)?, rows, apply: maker.apply });
    let numbers = Numbers { common, ..Numbers::new(Runs::Of(group), scales) };
    let bits = Bits::new(BitOrder::Stream, 4).expect("half bytes");
    let lay = Lay::Rows { bytes: packed.cols };
    let codes = Codes { stored, bits, lay, flip: 0, rows: sizes.rows, cols: sizes.cols }.check()?;
    let (inputs, details) = modelopt::inputs(files, module, info, sizes.cols)?;
    let facts = Facts { format: maker.format.into(), bits: 4, group: numbers.group(sizes.cols), details };
    let meaning = Meaning::Level(Table::e2m1());
    let storage = Coded { inputs, ..Coded::new(&sizes, meaning, codes, numbers, facts) };
    let ends = [".weight_scale", maker.shared, modelopt::INPUTS];
    let tensors = shapes::tensors(files, module, &info.name, &ends);
    Ok(Some(Found { name: format!("{module}.weight"), tensors, storage: Arc::new(storage) }))
}
