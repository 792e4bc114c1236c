//! What ComfyUI stores beside plain FP8.
//!
//! | format | `M.weight` | scales `M.weight_scale` | W |
//! |---|---|---|---|
//! | `nvfp4` | U8, padded to 16 × 16, the even element in the high half | E4M3, in tiles; `M.weight_scale_2` F32 | E2M1 · (shared · scale) |
//! | `mxfp8` | E4M3, padded to 32 × 32 | powers of two, in tiles | E4M3 · scale |
//! | `int8_tensorwise` | I8 | one, or `[out, 1]` | code · scale, turned back where `convrot` says it is rotated |
//! | `awq_w4a16` | I8 `[out, in ∕ 2]`, the even element low | `[in ∕ group, out]`, and `M.weight_zeros` | (code − 8) · scale + zero |
//!
//! How many rows and columns are padding stands nowhere. As many rows as the bias has are the layer's; beyond that, rows and
//! columns of zeros at the end are padding: leaving them out loses nothing. Sources: ComfyUI `comfy/quant_ops.py`, comfy-kitchen
//! `tensor/*.py`, `backends/eager/quantization.py`.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::coded::{Coded, Codes, Common, Field, Lay, Meaning, Numbers, Place, Runs, Table, Zeros};
use super::files::Files;
use super::rotated::Rotated;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found, Storage};
use crate::error::{Error, Result};
use crate::formats::{Stored, comfyui};
use crate::tensor::codes::{BitOrder, Bits, TILE};
use crate::tensor::{Dtype, TensorInfo};

/// The code of 0, once two's complement is made to ascend.
const MIDDLE: u8 = 128;

/// The code of 0 of `awq_w4a16`.
const MIDDLE_AWQ: f32 = 8.0;

/// A format of blocks with scales in tiles.
struct Blocks {
    /// Columns that share a scale: rows and columns are padded to it.
    group: usize,
    bits: Bits,
    table: &'static Table,
    /// The codes of 0 and −0.
    zeros: [u8; 2],
}

/// Recognises what ComfyUI marks with a format.
///
/// # Errors
/// When what belongs to it does not fit, or the format is none that is read.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let module = info.name.strip_suffix(".weight").filter(|_| info.dtype.bits() == Some(8));
    let Some(module) = module else { return Ok(None) };
    let Some(stored) = files.find(&info.name) else { return Ok(None) };
    let Some(format) = files.comfyui(module).filter(|format| !comfyui::is_plain(format)) else { return Ok(None) };
    let storage: Arc<dyn Storage> = match (format.as_str(), &info.dtype) {
        ("nvfp4", Dtype::U8) => {
            let bits = Bits::new(BitOrder::HighFirst, 4).expect("half bytes");
            let nvfp4 = Blocks { group: 16, bits, table: Table::e2m1(), zeros: [0, 8] };
            Arc::new(blocks(files, info, stored, module, &format, nvfp4)?)
        }
        ("mxfp8", Dtype::F8E4M3) => {
            let bits = Bits::new(BitOrder::Stream, 8).expect("bytes");
            let mxfp8 = Blocks { group: 32, bits, table: Table::e4m3(), zeros: [0, 128] };
            Arc::new(blocks(files, info, stored, module, &format, mxfp8)?)
        }
        ("int8_tensorwise", Dtype::I8) => int8(files, info, stored, module)?,
        ("awq_w4a16", Dtype::I8) => Arc::new(awq(files, info, stored, module)?),
        _ => {
            let what = format!("weight `{}` is stored in ComfyUI's format `{format}`, which is not read", info.name);
            return Err(
                Error::unsupported(stored.path(), what).hint("take the file in 16 bits or FP8 that it was made from")
            );
        }
    };
    let ends = [".weight_scale", ".weight_scale_2", ".weight_zeros", ".scale_input", comfyui::LAYER];
    let tensors = shapes::tensors(files, module, &info.name, &ends);
    Ok(Some(Found { name: info.name.clone(), tensors, storage }))
}

/// Codes in blocks, with scales in tiles.
fn blocks(
    files: &Files<'_>,
    info: &TensorInfo,
    stored: Stored,
    module: &str,
    format: &str,
    blocks: Blocks,
) -> Result<Coded> {
    if let Some(factors) = files.find(&format!("{module}.pre_quant_scale")) {
        let what = format!(
            "tensor `{}` scales the input of a weight of format `{format}`, which is not read",
            factors.info.name
        );
        return Err(Error::unsupported(factors.path(), what).hint("take the file in 16 bits that it was made from"));
    }
    let packed = Sizes::of(files, info)?;
    let (group, bits) = (blocks.group, blocks.bits);
    let (unit, size) = bits.unit();
    let scales = shapes::needed(files, info, module, ".weight_scale")?;
    let misfit = shapes::misfit(&scales, info);
    let wide = packed.cols.checked_mul(unit).map(|codes| codes / size).filter(|_| packed.front.len() == 1);
    let wide = wide.filter(|wide| wide.is_multiple_of(group) && packed.rows.is_multiple_of(group));
    let padded = wide.map(|wide| (packed.rows.next_multiple_of(TILE.0), (wide / group).next_multiple_of(TILE.1), wide));
    let Some((down, across, wide)) = padded.filter(|(down, across, _)| scales.elements() == down * across) else {
        return Err(misfit);
    };
    let common = match files.find(&format!("{module}.weight_scale_2")) {
        Some(shared) if shared.elements() == 1 => {
            let apply = |scale: f32, shared: f32| shared * scale;
            Some(Common { scales: Scales::of(shared)?, rows: down, apply })
        }
        Some(shared) => return Err(shapes::misfit(&shared, info)),
        None => None,
    };
    let scales = if format == "nvfp4" { Scales::of_e4m3(scales)? } else { Scales::of(scales)? };
    let mut details = vec![scales.dtype()];
    let field = Field { scales, place: Place::Tiled(across) };
    let numbers = Numbers { common, ..Numbers::new(Runs::Of(group), field) };
    let lay = Lay::Rows { bytes: packed.cols };
    let mut codes = Codes { stored, bits, lay, flip: 0, rows: packed.rows, cols: wide }.check()?;
    let bias =
        files.info(&format!("{module}.bias")).and_then(|bias| usize::try_from(*bias.shape.as_slice().first()?).ok());
    (codes.rows, codes.cols) = without_padding(&codes, group, blocks.zeros, bias)?;
    if (codes.rows, codes.cols) != (packed.rows, wide) {
        details.push(format!("padded to [{}, {wide}]", packed.rows));
    }
    let sizes = Sizes::new(&[codes.rows, codes.cols]).ok_or_else(|| shapes::misfit(&codes.stored, info))?;
    let facts = Facts { format: format!("ComfyUI {format}"), bits: bits.width(), group: numbers.group(wide), details };
    Ok(Coded::new(&sizes, Meaning::Level(blocks.table), codes, numbers, facts))
}

/// Rows and columns without those of zeros at the end, which are less than `pad`.
fn without_padding(codes: &Codes, pad: usize, zeros: [u8; 2], bias: Option<usize>) -> Result<(usize, usize)> {
    let is_zero = |code: &u8| zeros.contains(code);
    let trailing = |codes: &[u8]| codes.iter().rev().take_while(|code| is_zero(code)).count();
    let possible = |size: usize| size.saturating_sub(pad - 1)..size + 1;
    let rows = match bias.filter(|rows| possible(codes.rows).contains(rows)) {
        Some(rows) => rows,
        None => {
            let mut line = vec![0; codes.cols];
            let mut rows = codes.rows;
            while rows > possible(codes.rows).start.max(1) {
                codes.read(codes.source(), rows - 1..rows, 0..codes.cols, &mut line)?;
                if !line.iter().all(is_zero) {
                    break;
                }
                rows -= 1;
            }
            rows
        }
    };
    let looked_at: Range<usize> = possible(codes.cols).start.max(1)..codes.cols;
    let (mut empty, mut line) = (looked_at.len(), vec![0; looked_at.len()]);
    for row in 0..rows {
        if empty == 0 {
            break;
        }
        codes.read(codes.source(), row..row + 1, looked_at.clone(), &mut line)?;
        empty = empty.min(trailing(&line));
    }
    Ok((rows, codes.cols - empty))
}

/// Whole numbers of eight bits, from −127 to 127.
fn int8(files: &Files<'_>, info: &TensorInfo, stored: Stored, module: &str) -> Result<Arc<dyn Storage>> {
    let sizes = Sizes::of(files, info)?;
    let scales = Scales::of(shapes::needed(files, info, module, ".weight_scale")?)?;
    let misfit = shapes::misfit(&scales.stored, info);
    let details = vec![scales.dtype()];
    let field = Field::by_rows(scales, &sizes).filter(|(_, runs)| *runs == 1);
    let Some((field, _)) = field else { return Err(misfit) };
    let numbers = Numbers { zeros: Zeros::All(MIDDLE.into()), ..Numbers::new(Runs::Of(sizes.cols), field) };
    let bits = Bits::new(BitOrder::Stream, 8).expect("bytes");
    let lay = Lay::Rows { bytes: sizes.cols };
    let codes = Codes { stored, bits, lay, flip: MIDDLE, rows: sizes.rows, cols: sizes.cols }.check()?;
    let facts = Facts { format: "ComfyUI int8_tensorwise".into(), bits: 8, group: numbers.group(sizes.cols), details };
    let coded = Coded::new(&sizes, Meaning::Whole(1, u8::MAX), codes, numbers, facts);
    let said = files.comfyui_said(module).unwrap_or_default();
    let word = |key: &str| said.get(key).or_else(|| said.get("params")?.get(key));
    if word("convrot").is_none_or(|turned| matches!(turned, Value::Null | Value::Bool(false))) {
        return Ok(Arc::new(coded));
    }
    let group = word("convrot_groupsize").and_then(Value::as_u64).and_then(|group| usize::try_from(group).ok());
    let is_known = |group: &usize| {
        group.is_power_of_two()
            && group.trailing_zeros().is_multiple_of(2)
            && *group > 1
            && sizes.cols.is_multiple_of(*group)
    };
    match group.filter(is_known) {
        Some(group) => Ok(Arc::new(Rotated { stored: coded, group })),
        None => {
            let what = format!("weight `{}` is rotated (`convrot`) in groups of a size that is not known", info.name);
            Err(Error::unsupported(coded.codes.stored.path(), what)
                .hint("take the file in 16 bits or FP8 that it was made from"))
        }
    }
}

/// Half bytes with a scale and an offset per group, which lie run by run.
fn awq(files: &Files<'_>, info: &TensorInfo, stored: Stored, module: &str) -> Result<Coded> {
    let packed = Sizes::of(files, info)?;
    let sizes = packed.cols.checked_mul(2).filter(|_| packed.front.len() == 1).and_then(|cols| packed.with_cols(cols));
    let misfit = |stored: &Stored| shapes::misfit(stored, info);
    let scales = shapes::needed(files, info, module, ".weight_scale")?;
    let offsets = shapes::needed(files, info, module, ".weight_zeros")?;
    let Some(sizes) = sizes else { return Err(misfit(&scales)) };
    let groups = match *scales.info.shape.as_slice() {
        [groups, rows] if usize::try_from(rows) == Ok(sizes.rows) => usize::try_from(groups).ok(),
        _ => None,
    };
    let group = groups.filter(|groups| *groups > 0).and_then(|groups| shapes::group(sizes.cols, groups, &[]));
    let Some(group) = group else { return Err(misfit(&scales)) };
    if offsets.info.shape != scales.info.shape {
        return Err(misfit(&offsets));
    }
    let place = Place::Columns(sizes.rows);
    let scales = Scales::of(scales)?;
    let (details, dtype) = (vec![scales.dtype()], scales.float());
    let biases = Some(Field { scales: Scales::of(offsets)?, place });
    let zeros = Zeros::All(MIDDLE_AWQ);
    let numbers = Numbers { zeros, biases, ..Numbers::new(Runs::Of(group), Field { scales, place }) };
    let bits = Bits::new(BitOrder::Stream, 4).expect("half bytes");
    let lay = Lay::Rows { bytes: packed.cols };
    let codes = Codes { stored, bits, lay, flip: 0, rows: sizes.rows, cols: sizes.cols }.check()?;
    let facts = Facts { format: "ComfyUI awq_w4a16".into(), bits: 4, group: numbers.group(sizes.cols), details };
    Ok(Coded { dtype, ..Coded::new(&sizes, Meaning::Whole(0, bits.most()), codes, numbers, facts) })
}
