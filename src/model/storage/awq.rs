//! AWQ `gemm`: whole numbers of four bits along the outputs; W[o, i] = (code − zero) · scale.
//!
//! | tensor of `M` | what |
//! |---|---|
//! | `M.qweight` I32 `[in, out ∕ 8]` | codes; in a word those of outputs 0, 2, 4, 6, 1, 3, 5, 7 from its low end |
//! | `M.qzeros` I32 `[groups, out ∕ 8]` | zeros in the same order, as they are |
//! | `M.scales` F16 or BF16 `[groups, out]` | scales |
//!
//! AWQ scales the layer in front of another when it is made: a LoRA of the 16-bit model does not fit these weights. Sources: AutoAWQ
//! `utils/packing_utils.py`, `modules/linear/gemm.py`.

use std::sync::Arc;

use super::coded::{Coded, Codes, Field, Lay, Meaning, Numbers, Place, Runs, Shift, Zeros};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found};
use crate::error::{Error, Result};
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo, usize_of};

/// Codes of a word.
const CODES: u64 = 8;

/// Recognises AWQ's layout.
///
/// # Errors
/// When what belongs to it is missing or does not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let Some(module) = info.name.strip_suffix(".qweight") else { return Ok(None) };
    let Some((stored, scales)) = files.find(&info.name).zip(files.find(&format!("{module}.scales"))) else {
        return Ok(None);
    };
    let zeros = shapes::needed(files, info, module, ".qzeros")?;
    let (rows, words, groups) = match (info.shape.as_slice(), scales.info.shape.as_slice()) {
        (&[rows, words], &[groups, out])
            if words.checked_mul(CODES) == Some(out)
                && zeros.info.shape.as_slice() == [groups, words]
                && [&info.dtype, &zeros.info.dtype].into_iter().all(|dtype| *dtype == Dtype::I32) =>
        {
            (usize_of(rows), usize_of(words), usize_of(groups))
        }
        _ => {
            let what = format!(
                "tensors `{}` {} {}, `.qzeros` {} and `.scales` {} are in no order that is known of GPTQ and AWQ",
                info.name, info.dtype, info.shape, zeros.info.shape, scales.info.shape
            );
            return Err(Error::unsupported(stored.path(), what).hint(
                "AWQ is read as `gemm` packs it; take such a file, or the model the quantised one was made from",
            ));
        }
    };
    let (out, bytes) = (words * usize_of(CODES), words * 4);
    let misfit = shapes::misfit(&scales, info);
    let group = Some(groups).filter(|groups| *groups > 0);
    let group = group.and_then(|groups| shapes::group(rows, groups, &shapes::said(files, "group_size")));
    let Some((sizes, group)) = Sizes::new(&[out, rows]).zip(group) else { return Err(misfit) };
    let scales = Scales::of(scales)?;
    let (details, dtype) = (vec![scales.dtype()], scales.float());
    let bits = Bits::new(BitOrder::Interleaved, 4).expect("half bytes");
    let zeros = Zeros::Along { stored: zeros, bits, bytes, shift: Shift::Nothing };
    let field = Field { scales, place: Place::Columns(out) };
    let numbers = Numbers { zeros, ..Numbers::new(Runs::Of(group), field) };
    let codes = Codes { stored, bits, lay: Lay::Turned { bytes }, flip: 0, rows: out, cols: rows }.check()?;
    let facts = Facts { format: "AWQ gemm".into(), bits: 4, group: numbers.group(rows), details };
    let storage = Coded { dtype, ..Coded::new(&sizes, Meaning::Whole(0, bits.most()), codes, numbers, facts) };
    let tensors = shapes::tensors(files, module, &info.name, &[".qzeros", ".scales"]);
    Ok(Some(Found { name: format!("{module}.weight"), tensors, storage: Arc::new(storage) }))
}
