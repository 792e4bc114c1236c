//! MLX: rows of codes as streams of bits.
//!
//! | mode | codes U32 `M.weight` | group | `M.scales` | value |
//! |---|---|---|---|---|
//! | affine | 1 … 6, 8 bits | 32, 64, 128 | as the weight was, may be negative | scale · code + bias of `M.biases` |
//! | mxfp4 | E2M1 | 32 | U8: powers of two | level · scale |
//! | mxfp8 | E4M3 | 32 | U8: powers of two | level · scale |
//! | nvfp4 | E2M1 | 16 | U8: E4M3 | level · scale, or level · (scale · (`M.global_scale` ∕ 2688)) |
//!
//! Shapes tell bits × group; the three modes of floats have one such product each. Of affine weights the config says both numbers,
//! for all modules and for single ones. transformers calls the biases `qbiases`. Sources: mlx `python/src/ops.cpp`,
//! `backend/cpu/quantized.cpp`; mlx-lm `utils.py`.

use std::sync::Arc;

use serde_json::Value;

use super::coded::{Coded, Codes, Common, Field, Lay, Meaning, Numbers, Runs, Table};
use super::files::Files;
use super::scales::Scales;
use super::shapes::{self, Sizes};
use super::{Facts, Found, Group};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::{Dtype, TensorInfo};

/// Bits that a group of 32-bit words of affine codes may be cut into, and how many codes a group may have.
const WIDTHS: [usize; 7] = [1, 2, 3, 4, 5, 6, 8];
const GROUPS: [usize; 3] = [32, 64, 128];

/// The largest product of a code and a scale of NVFP4, 6 · 448, by which `global_scale` is stored too large.
const LARGEST: f32 = 2688.0;

/// What biases are called, in place of `.weight`.
const BIASES: [&str; 2] = [".biases", ".qbiases"];

/// How a weight is stored.
struct Mode {
    name: &'static str,
    bits: usize,
    group: usize,
    table: Option<&'static Table>,
}

/// Recognises words of codes with scales.
///
/// # Errors
/// When what belongs to them is missing or does not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let module = info.name.strip_suffix(".weight").filter(|_| info.dtype == Dtype::U32);
    let Some(module) = module else { return Ok(None) };
    let Some((stored, scales)) = files.find(&info.name).zip(files.find(&format!("{module}.scales"))) else {
        return Ok(None);
    };
    let packed = Sizes::of(files, info)?;
    let misfit = shapes::misfit(&scales, info);
    // A single run stands for a scale per row here, too.
    let runs =
        packed.runs_in(&scales.info.shape).filter(|_| scales.info.shape.as_slice().len() == packed.front.len() + 1);
    let Some(runs) = runs else { return Err(misfit) };
    let biases = BIASES.iter().find_map(|end| files.find(&format!("{module}{end}")));
    let mode = match scales.info.dtype {
        Dtype::U8 => by_floats(32 * packed.cols, runs),
        _ => by_config(files, module, 32 * packed.cols, runs)?,
    };
    let mode = mode.filter(|mode| mode.table.is_some() == biases.is_none());
    let sizes = mode.as_ref().and_then(|mode| packed.with_cols(mode.group.checked_mul(runs)?));
    let Some((mode, sizes)) = mode.zip(sizes) else { return Err(misfit) };
    let scales = if mode.name == "nvfp4" { Scales::of_e4m3(scales)? } else { Scales::of(scales)? };
    let dtype = scales.float();
    let Some((scales, _)) = Field::by_rows(scales, &packed) else { return Err(misfit) };
    let common = common(files, module, info, &sizes)?;
    let details: Vec<String> = common.iter().map(|_| "a scale per matrix".to_owned()).collect();
    let biases = biases.map(|biases| field(biases, info, &packed, runs)).transpose()?;
    let numbers = Numbers { common, biases, ..Numbers::new(Runs::Of(mode.group), scales) };
    let width = u32::try_from(mode.bits).unwrap_or(u32::MAX);
    let Some(bits) = Bits::new(BitOrder::Stream, width) else { return Err(misfit) };
    let lay = Lay::Rows { bytes: 4 * packed.cols };
    let codes = Codes { stored, bits, lay, flip: 0, rows: sizes.rows, cols: sizes.cols }.check()?;
    let meaning = mode.table.map_or(Meaning::Whole(0, bits.most()), Meaning::Level);
    let facts = Facts { format: format!("MLX {}", mode.name), bits: width, group: Group::Columns(mode.group), details };
    let storage = Coded { dtype, ..Coded::new(&sizes, meaning, codes, numbers, facts) };
    let tensors = shapes::tensors(files, module, &info.name, &[".scales", BIASES[0], BIASES[1], ".global_scale"]);
    Ok(Some(Found { name: info.name.clone(), tensors, storage: Arc::new(storage) }))
}

/// A tensor of one number per row and run.
fn field(stored: Stored, codes: &TensorInfo, sizes: &Sizes, runs: usize) -> Result<Field> {
    let misfit = shapes::misfit(&stored, codes);
    match Field::by_rows(Scales::of(stored)?, sizes) {
        Some((field, found)) if found == runs => Ok(field),
        _ => Err(misfit),
    }
}

/// The numbers that all scales of a matrix share.
fn common(files: &Files<'_>, module: &str, codes: &TensorInfo, sizes: &Sizes) -> Result<Option<Common>> {
    let Some(stored) = files.find(&format!("{module}.global_scale")) else { return Ok(None) };
    let rows = match stored.elements() {
        1 => sizes.rows,
        count if Some(count) == sizes.rows.checked_div(sizes.matrix_rows()) => sizes.matrix_rows(),
        _ => return Err(shapes::misfit(&stored, codes)),
    };
    let apply = |scale: f32, shared: f32| scale * (shared / LARGEST);
    Ok(Some(Common { scales: Scales::of(stored)?, rows, apply }))
}

/// The mode of floats whose codes of `runs` groups have that many bits.
fn by_floats(bits: usize, runs: usize) -> Option<Mode> {
    let mode = |name, bits, group, table| Mode { name, bits, group, table: Some(table) };
    let modes =
        [mode("mxfp4", 4, 32, Table::e2m1()), mode("mxfp8", 8, 32, Table::e4m3()), mode("nvfp4", 4, 16, Table::e2m1())];
    modes.into_iter().find(|mode| mode.bits * mode.group * runs == bits)
}

/// Bits and group of affine codes: what the config says of the module or of all, where that gives the shapes; otherwise the only
/// pair that does.
fn by_config(files: &Files<'_>, module: &str, bits: usize, runs: usize) -> Result<Option<Mode>> {
    let fits = |(width, group): (usize, usize)| width * group * runs == bits;
    let settings = files.settings();
    let own = settings.get(module).and_then(Value::as_object);
    let number = |key: &str| {
        let said = own.and_then(|own| own.get(key)).or_else(|| settings.get(key))?;
        usize::try_from(said.as_u64()?).ok()
    };
    let said = number("bits").zip(number("group_size")).filter(|said| fits(*said) && WIDTHS.contains(&said.0));
    let affine = |(bits, group)| Some(Mode { name: "affine", bits, group, table: None });
    if let Some(said) = said {
        return Ok(affine(said));
    }
    let all = WIDTHS.into_iter().flat_map(|width| GROUPS.map(|group| (width, group)));
    match all.filter(|pair| fits(*pair)).collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [one] => Ok(affine(one)),
        _ => {
            let what = format!(
                "weight `{module}` is affine codes of MLX, {} bits to a scale, and no config says how many of them a code has",
                bits / runs
            );
            Err(Error::unsupported(files.root(), what)
                .hint("give the directory of the model with its config.json, as mlx-lm wrote it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_of_floats_has_its_own_share_of_bits() {
        let name = |bits| by_floats(bits, 3).map(|mode| (mode.name, mode.group));
        assert_eq!(
            (name(3 * 128), name(3 * 256), name(3 * 64)),
            (Some(("mxfp4", 32)), Some(("mxfp8", 32)), Some(("nvfp4", 16)))
        );
        assert!(name(3 * 96).is_none());
    }
}
