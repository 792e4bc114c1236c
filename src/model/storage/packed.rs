//! compressed-tensors `pack-quantized`: whole numbers of two to eight bits in words of 32; W = (code − zero) · scale.
//!
//! | tensor of `M` | what |
//! |---|---|
//! | `M.weight_packed` I32 `[out, words]` | codes, shifted by 2^(bits − 1) |
//! | `M.weight_shape` I64 or I32 | `[out, in]`, of a stack `[experts, out, in]` |
//! | `M.weight_scale` BF16, F16, F32 `[out, groups]` | scales |
//! | `M.weight_zero_point` I32 `[words, groups]` | zeros, packed down the rows of a matrix in the order of the codes; none: 2^(bits − 1) |
//! | `M.weight_g_idx` I32 `[in]` | the group of each column, in files before release 0.19 |
//!
//! Codes of 3, 5, 6 and 7 bits cross words from release 0.18 on; before it words hold whole codes and are padded. The width of
//! `weight_packed` tells bits and order; where several fit, the config says the bits, and its release the order. Sources:
//! compressed-tensors `compressors/pack_quantized`, releases 0.12 and 0.20.

use std::sync::Arc;

use serde_json::Value;

use super::coded::{Coded, Codes, Field, Lay, Meaning, Numbers, Runs, Zeros};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo, usize_of};

/// The first release whose codes cross words.
const DENSE: [u64; 2] = [0, 18];

/// Recognises packed whole numbers.
///
/// # Errors
/// When what belongs to them is missing or does not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let module = info.name.strip_suffix(".weight_packed").filter(|_| info.dtype == Dtype::I32);
    let Some(module) = module else { return Ok(None) };
    let Some(stored) = files.find(&info.name) else { return Ok(None) };
    let sizes = logical(&shapes::needed(files, info, module, ".weight_shape")?, info)?;
    let words = usize_of(info.shape.as_slice().last().copied().unwrap_or(0));
    let bits = bits_of(files, info, sizes.cols, words)?;
    let scales = Scales::of(shapes::needed(files, info, module, ".weight_scale")?)?;
    let (mut details, dtype) = (vec![scales.dtype()], scales.float());
    let misfit = shapes::misfit(&scales.stored, info);
    let Some((scales, across)) = Field::by_rows(scales, &sizes) else { return Err(misfit) };
    let runs = match files.find(&format!("{module}.weight_g_idx")) {
        Some(index) if across > 1 => {
            if index.info.dtype != Dtype::I32 || index.elements() != sizes.cols {
                return Err(shapes::misfit(&index, info));
            }
            details.push("act-order".into());
            Runs::Named { index, count: across }
        }
        _ => Runs::Of(shapes::group(sizes.cols, across, &shapes::said(files, "group_size")).ok_or(misfit)?),
    };
    let middle = bits.most() / 2 + 1;
    let zeros = match files.find(&format!("{module}.weight_zero_point")) {
        None => Zeros::All(f32::from(middle)),
        Some(zeros) => {
            details.push("zero points".into());
            let rows = sizes.matrix_rows();
            let down = [bits.bytes_of(rows).div_ceil(4), across];
            let matrices = sizes.front[..sizes.front.len() - 1].iter().copied();
            let is_fit = matrices.chain(down).eq(zeros.info.shape.as_slice().iter().map(|size| usize_of(*size)));
            if zeros.info.dtype != Dtype::I32 || !is_fit {
                return Err(shapes::misfit(&zeros, info));
            }
            Zeros::Down { stored: zeros, bits, across, rows }
        }
    };
    let numbers = Numbers { zeros, ..Numbers::new(runs, scales) };
    let lay = Lay::Rows { bytes: 4 * words };
    let codes = Codes { stored, bits, lay, flip: 0, rows: sizes.rows, cols: sizes.cols }.check()?;
    let format = "compressed-tensors pack-quantized".into();
    let facts = Facts { format, bits: bits.width(), group: numbers.group(sizes.cols), details };
    let meaning = Meaning::Whole(0, bits.most());
    let storage = Coded { dtype, ..Coded::new(&sizes, meaning, codes, numbers, facts) };
    let ends = [".weight_shape", ".weight_scale", ".weight_zero_point", ".weight_g_idx"];
    let tensors = shapes::tensors(files, module, &info.name, &ends);
    Ok(Some(Found { name: format!("{module}.weight"), tensors, storage: Arc::new(storage) }))
}

/// The sizes that `weight_shape` says, where the codes have as many rows.
fn logical(shape: &Stored, codes: &TensorInfo) -> Result<Sizes> {
    let bytes = shape.read(0, shape.info.bytes.min(64))?;
    let numbers: Option<Vec<usize>> = match shape.info.dtype {
        Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|size| i64::from_le_bytes(*size).try_into().ok()).collect(),
        Dtype::I32 => bytes.as_chunks::<4>().0.iter().map(|size| i32::from_le_bytes(*size).try_into().ok()).collect(),
        _ => None,
    };
    let sizes = numbers.and_then(|numbers| Sizes::new(&numbers));
    let fits = sizes.filter(|sizes| {
        let front = codes.shape.as_slice().split_last().map(|(_, front)| front.iter().map(|size| usize_of(*size)));
        front.is_some_and(|front| front.eq(sizes.front.iter().copied()))
    });
    fits.ok_or_else(|| shapes::misfit(shape, codes))
}

/// Bits and order of codes of which `cols` fill `words` words.
fn bits_of(files: &Files<'_>, info: &TensorInfo, cols: usize, words: usize) -> Result<Bits> {
    let orders = [BitOrder::Stream, BitOrder::Words];
    let all = (1..=8).flat_map(|width| orders.into_iter().filter_map(move |order| Bits::new(order, width)));
    // Widths that fill a word are one and the same in both orders.
    let all = all.filter(|bits| bits.order() == BitOrder::Stream || !32_u32.is_multiple_of(bits.width()));
    let mut fitting: Vec<Bits> = all.filter(|bits| bits.bytes_of(cols).div_ceil(4) == words).collect();
    let said = shapes::said(files, "num_bits");
    if fitting.len() > 1 {
        fitting.retain(|bits| said.iter().any(|said| u32::try_from(*said) == Ok(bits.width())));
    }
    if fitting.len() > 1
        && let Some(order) = order_of(files)
    {
        fitting.retain(|bits| bits.order() == order || 32_u32.is_multiple_of(bits.width()));
    }
    if let [bits] = fitting[..] {
        return Ok(bits);
    }
    let what = format!(
        "tensor `{}` holds {cols} codes in {words} words, and neither that nor the config (`num_bits`, `version`) tells their bits",
        info.name
    );
    Err(Error::unsupported(files.root(), what)
        .hint("give the directory of the model with its config.json, as it was written"))
}

/// The order of the release that the config names.
fn order_of(files: &Files<'_>) -> Option<BitOrder> {
    let version = files.settings().get("version").and_then(Value::as_str)?;
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u64>().ok());
    let release = [parts.next()??, parts.next()??];
    Some(if release < DENSE { BitOrder::Words } else { BitOrder::Stream })
}
