//! Codes of small floats, 32 of which share a power of two, as compressed-tensors and ModelOpt store them: W = level · 2^(scale − 127).
//!
//! | who | codes U8 | scales U8 or E8M0 | levels |
//! |---|---|---|---|
//! | compressed-tensors `mxfp4-pack-quantized` | `M.weight_packed` `[out, in ∕ 2]` | `M.weight_scale` `[out, in ∕ 32]` | E2M1 |
//! | compressed-tensors `mxfp6-pack-quantized` | `M.weight_packed` `[out, in · 3 ∕ 4]` | the same | E2M3 |
//! | ModelOpt MXFP4 | `M.weight` `[out, in ∕ 2]` | the same | E2M1 |
//!
//! Codes are a stream of bits from the low end, so the widths tell four bits from six. Older files carry a `weight_global_scale`
//! that is not used. Sources: compressed-tensors `compressors/mxfp4` and `mxfp6`, ModelOpt `qtensor/mxfp4_tensor.py`.

use std::sync::Arc;

use super::coded::{Coded, Codes, Field, Lay, Meaning, Numbers, Runs, Table};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found, modelopt};
use crate::error::Result;
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo};

/// Columns that share a scale.
const GROUP: usize = 32;

/// What codes are called, in place of `.weight`, and who calls them so.
const MAKERS: [(&str, &str); 2] = [(".weight_packed", "compressed-tensors"), (".weight", "ModelOpt")];

/// Recognises MXFP4 and MXFP6.
///
/// # Errors
/// When the scales do not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    if info.dtype != Dtype::U8 {
        return Ok(None);
    }
    let made = MAKERS.iter().find_map(|(end, maker)| Some((*maker, info.name.strip_suffix(end)?)));
    let Some((maker, module)) = made else { return Ok(None) };
    let scales = files.find(&format!("{module}.weight_scale"));
    let scales = scales.filter(|scales| matches!(scales.info.dtype, Dtype::U8 | Dtype::F8E8M0));
    let Some((stored, scales)) = files.find(&info.name).zip(scales) else { return Ok(None) };
    let packed = Sizes::of(files, info)?;
    let misfit = shapes::misfit(&scales, info);
    let Some((scales, across)) = Field::by_rows(Scales::of(scales)?, &packed) else { return Err(misfit) };
    let cols = across * GROUP;
    let known = [(4, Table::e2m1()), (6, Table::e2m3())].into_iter().find_map(|(width, table)| {
        let bits = Bits::new(BitOrder::Stream, width).filter(|bits| bits.bytes_of(cols) == packed.cols)?;
        // Six bits of others may be E3M2.
        (width == 4 || maker == MAKERS[0].1).then_some((bits, table))
    });
    let Some(((bits, table), sizes)) = known.zip(packed.with_cols(cols)) else { return Err(misfit) };
    let numbers = Numbers::new(Runs::Of(GROUP), scales);
    let lay = Lay::Rows { bytes: packed.cols };
    let codes = Codes { stored, bits, lay, flip: 0, rows: sizes.rows, cols }.check()?;
    let (inputs, details) = modelopt::inputs(files, module, info, cols)?;
    let facts = Facts {
        format: format!("{maker} MXFP{}", bits.width()),
        bits: bits.width(),
        group: numbers.group(cols),
        details,
    };
    let storage = Coded { inputs, ..Coded::new(&sizes, Meaning::Level(table), codes, numbers, facts) };
    let ends = [".weight_scale", ".weight_global_scale", modelopt::INPUTS];
    let tensors = shapes::tensors(files, module, &info.name, &ends);
    Ok(Some(Found { name: format!("{module}.weight"), tensors, storage: Arc::new(storage) }))
}
