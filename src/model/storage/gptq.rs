//! GPTQ, and AutoRound's packings of its layout: whole numbers in columns of words; W[o, i] = (code − zero) · scale.
//!
//! | tensor of `M` | what |
//! |---|---|
//! | `M.qweight` I32 `[in · bits ∕ 32, out]` | codes of an output, down a column of words |
//! | `M.qzeros` I32 `[groups, out · bits ∕ 32]` | zeros, along the outputs |
//! | `M.scales` F16 or BF16 `[groups, out]` | scales |
//! | `M.g_idx` I32 `[in]` | the group of each input; none: neighbours |
//!
//! | `checkpoint_format` or `packing_format` | 5, 6, 7 bits | 3 bits | zeros |
//! |---|---|---|---|
//! | `gptq` or none (v1) | planes, zeros as they are | a stream | stored less one: 1 is added to the whole word (2, 4, 8 bits) or to each field |
//! | `gptq_v2` | planes | a stream | as they are |
//! | `gptq_p` | planes | planes | as they are |
//! | `auto_round:auto_gptq` | a stream | a stream | stored less one |
//! | `auto_round`, `auto_round:gptqmodel` | a stream | a stream | as they are |
//!
//! Bits follow from the shapes, so `dynamic` configs need no matching of names. Whether the zeros of a symmetric file are stored
//! less one, they say themselves. Sources: GPTQModel `nn_modules/qlinear`, `utils/planar_packing.py`; AutoRound
//! `export_to_autoround`.

use std::sync::Arc;

use serde_json::Value;

use super::coded::{Coded, Codes, Field, Lay, Meaning, Numbers, Place, Runs, Shift, Zeros};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo, usize_of};

/// Zeros that are looked at to tell whether they are stored less one.
const LOOKED_AT: usize = 1024;

/// How a checkpoint is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packing {
    name: &'static str,
    /// The narrowest of the widths 3, 5, 6 and 7 that lie in planes.
    planes_from: u32,
    /// Whether stored zeros are less by one, those that lie in planes excepted.
    is_less: bool,
}

/// No width lies in planes.
const NO_PLANES: u32 = 9;

/// Recognises GPTQ's layout.
///
/// # Errors
/// When what belongs to it is missing or does not fit, or how it is packed cannot be told.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let Some(module) = info.name.strip_suffix(".qweight") else { return Ok(None) };
    let word = match info.dtype {
        Dtype::I8 | Dtype::U8 => 1,
        Dtype::I16 | Dtype::U16 => 2,
        Dtype::I32 | Dtype::U32 => 4,
        Dtype::I64 | Dtype::U64 => 8,
        _ => return Ok(None),
    };
    let Some((stored, scales)) = files.find(&info.name).zip(files.find(&format!("{module}.scales"))) else {
        return Ok(None);
    };
    let (&[words, out], &[groups, scaled]) = (info.shape.as_slice(), scales.info.shape.as_slice()) else {
        return Ok(None);
    };
    if scaled != out || files.method().as_deref() == Some("awq") {
        return Ok(None);
    }
    let zeros = shapes::needed(files, info, module, ".qzeros")?;
    let (words, out, groups) = (usize_of(words), usize_of(out), usize_of(groups));
    let index = files.find(&format!("{module}.g_idx"));
    let width = match (&index, zeros.info.shape.as_slice()) {
        (_, &[down, across]) if usize_of(down) == groups && zeros.info.dtype == info.dtype => {
            width(usize_of(across), out, word)
        }
        _ => None,
    };
    let Some(width) = width else { return Err(shapes::misfit(&zeros, info)) };
    let cols = match &index {
        Some(index) => index.elements(),
        None => (words * word * 8).checked_div(usize_of(width.into())).unwrap_or(0),
    };
    let Some(sizes) = Sizes::new(&[out, cols]).filter(|_| groups > 0) else {
        return Err(shapes::misfit(&scales, info));
    };
    let packing = packing(files, info, &zeros, width)?;
    let is_planar = packing.planes_from <= width && !32_u32.is_multiple_of(width);
    let order = if is_planar { BitOrder::Planes } else { BitOrder::Stream };
    let bits = Bits::new(order, width).filter(|bits| !is_planar || word == 4 && cols.is_multiple_of(bits.unit().0));
    let needed = bits.map(|bits| bits.bytes_of(cols).div_ceil(word));
    let Some(bits) = bits.filter(|_| needed == Some(words)) else {
        let problem = format!("is {}, and [{out}, {cols}] codes of {width} bits are not", info.shape);
        return Err(files.malformed(&info.name, problem));
    };
    let shift = match packing.is_less && !is_planar {
        false => Shift::Nothing,
        true if 8_u32.is_multiple_of(width) => Shift::Word(word),
        true => Shift::Field,
    };
    let mut details = vec![packing.name.to_owned()];
    let runs = match index {
        Some(index) if groups > 1 => {
            if index.info.dtype != Dtype::I32 {
                return Err(shapes::misfit(&index, info));
            }
            if files.settings().get("desc_act").and_then(Value::as_bool) == Some(true) {
                details.push("act-order".into());
            }
            Runs::Named { index, count: groups }
        }
        _ => {
            let group = shapes::group(cols, groups, &shapes::said(files, "group_size"));
            Runs::Of(group.ok_or_else(|| shapes::misfit(&scales, info))?)
        }
    };
    let scales = Scales::of(scales)?;
    let dtype = scales.float();
    let bytes = usize_of(zeros.info.bytes) / groups;
    let zeros = Zeros::Along { stored: zeros, bits, bytes, shift };
    let numbers = Numbers { zeros, ..Numbers::new(runs, Field { scales, place: Place::Columns(out) }) };
    let codes = Codes { stored, bits, lay: Lay::Columns { word }, flip: 0, rows: out, cols }.check()?;
    let facts = Facts { format: "GPTQ".into(), bits: width, group: numbers.group(cols), details };
    let storage = Coded { dtype, ..Coded::new(&sizes, Meaning::Whole(0, bits.most()), codes, numbers, facts) };
    let tensors = shapes::tensors(files, module, &info.name, &[".qzeros", ".scales", ".g_idx"]);
    Ok(Some(Found { name: format!("{module}.weight"), tensors, storage: Arc::new(storage) }))
}

/// Bits of codes of which `count` fill `words` words.
fn width(words: usize, count: usize, word: usize) -> Option<u32> {
    let fits = |width: &u32| {
        let bits = count.checked_mul(usize_of(u64::from(*width)));
        bits.is_some_and(|bits| bits.div_ceil(8 * word) == words)
    };
    // Few outputs in long words: several widths fill as many.
    let mut fitting = (2..=8).filter(fits);
    let found = fitting.next()?;
    fitting.next().is_none().then_some(found)
}

/// How the checkpoint is packed, which the config says; of a symmetric file, or one without a config, the zeros say it.
fn packing(files: &Files<'_>, info: &TensorInfo, zeros: &Stored, width: u32) -> Result<Packing> {
    let settings = files.settings();
    let text = |key: &str| settings.get(key).and_then(Value::as_str).map(str::to_lowercase);
    let packing = text("packing_format");
    let format = text("checkpoint_format").or_else(|| text("format"));
    let said = match (packing.as_deref(), format.as_deref()) {
        (Some(packing), _) if packing.contains("auto_gptq") => {
            Packing { name: "AutoRound, zeros less one", planes_from: NO_PLANES, is_less: true }
        }
        (Some(_), _) => Packing { name: "AutoRound", planes_from: NO_PLANES, is_less: false },
        (None, Some("gptq_v2")) => Packing { name: "v2", planes_from: 5, is_less: false },
        (None, Some("gptq_p")) => Packing { name: "planar", planes_from: 3, is_less: false },
        _ => Packing { name: "v1", planes_from: 5, is_less: true },
    };
    let is_symmetric = settings.get("sym").and_then(Value::as_bool) == Some(true);
    if !settings.is_empty() && !is_symmetric || said.planes_from <= width && !32_u32.is_multiple_of(width) {
        return Ok(said);
    }
    match is_less(zeros, width)? {
        Some(is_less) => Ok(Packing { is_less, ..said }),
        None if settings.is_empty() => {
            let what = format!(
                "tensor `{}` holds codes of GPTQ, and without a config nothing says whether their zeros are stored less one",
                info.name
            );
            Err(Error::unsupported(zeros.path(), what)
                .hint("give the directory of the model with its config.json or quantize_config.json"))
        }
        None => Ok(said),
    }
}

/// Whether the zeros of a symmetric weight are stored less one; `None` where they are not all the same middle.
fn is_less(zeros: &Stored, width: u32) -> Result<Option<bool>> {
    let Some(bits) = Bits::new(BitOrder::Stream, width) else { return Ok(None) };
    let bytes = zeros.read(0, zeros.info.bytes.min(bits.bytes_of(LOOKED_AT) as u64))?;
    let mut fields = vec![0; bytes.len() * 8 / bits.unit().1];
    bits.unpack(&bytes, &mut fields);
    let middle = bits.most() / 2 + 1;
    let all = |zero: u8| !fields.is_empty() && fields.iter().all(|field| *field == zero);
    Ok(if all(middle - 1) { Some(true) } else { all(middle).then_some(false) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zeros_tell_the_bits() {
        assert_eq!(
            (width(4, 32, 4), width(3, 32, 4), width(24, 96, 4), width(1, 32, 8)),
            (Some(4), Some(3), Some(8), Some(2))
        );
        assert_eq!((width(1, 4, 4), width(0, 32, 4)), (None, None));
    }
}
