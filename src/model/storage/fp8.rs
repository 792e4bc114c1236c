//! FP8 weights with scales: W = code · scale, in f32.
//!
//! | who | scales of `M.weight` |
//! |---|---|
//! | DeepSeek-V3, transformers `fp8` and `mxfp8` | `M.weight_scale_inv`: F32, E8M0 or bytes of E8M0, one per block or one for all |
//! | DeepSeek-V4 | `M.scale`: E8M0 |
//! | compressed-tensors, ModelOpt, fbgemm, ComfyUI | `M.weight_scale`: one for all, per row, per block, per group |
//! | Mistral | `M.qscale_weight`: one for all |
//! | older files for ComfyUI | `M.scale_weight`: one for all |
//!
//! A stack of experts without the ending `.weight` has `P_scale_inv` or `P_scale` beside it. Blocks at the edges are cut off. The
//! size of a block is what the config says where the grid of scales bears it out; without that, 128 × 128 or groups in a row, of
//! the one power of two that gives that grid.
//! Sources: transformers `finegrained_fp8.py`, `fbgemm_fp8.py`; compressed-tensors `naive_quantized`; ModelOpt `quant_utils.py`.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::files::Files;
use super::scales::Scales;
use super::{Change, Facts, Found, Grid, Group, Storage};
use crate::error::{Error, Result};
use crate::formats::{Stored, comfyui};
use crate::tensor::codes::{Codebook, Levels, Shared, requantise};
use crate::tensor::{Dtype, Float, Shape, TensorInfo, rounding_variance, usize_of};

/// What a weight's scales are called, in place of `.weight`.
pub const SCALES: [&str; 5] = [".weight_scale_inv", ".weight_scale", ".scale_weight", ".qscale_weight", ".scale"];

/// What the scales of a parameter without that ending are called, behind its name.
const STACK_SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// What else belongs to a weight and means nothing without its scales: scales of activations, and ComfyUI's word for the format.
pub const BESIDE: [&str; 6] =
    [".input_scale", ".input_scale_ub", ".scale_input", ".qscale_act", ".activation_scale", comfyui::LAYER];

/// The edge of blocks where the config names none (DeepSeek-V3).
const USUAL: usize = 128;

/// Sizes of groups that are tried, as powers of two.
const EDGES: Range<u32> = 0..14;

/// An FP8 weight with its scales.
#[derive(Debug)]
struct Fp8 {
    codes: Stored,
    float: Float,
    scales: Scales,
    /// Rows and columns of one matrix.
    rows: usize,
    cols: usize,
    grid: Blocks,
}

/// Which scale an element has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    /// Rows and columns that share one.
    block: (usize, usize),
    /// Scales side by side.
    across: usize,
    /// Scales of one matrix.
    each: usize,
}

/// The values of the codes of a type of one byte, and the same in order.
fn table(float: Float) -> (Vec<f32>, Levels) {
    let codes: Vec<u8> = (0..=u8::MAX).collect();
    let mut values = vec![0.0; codes.len()];
    float.decode(&codes, &mut values);
    let levels = Levels::new(&values);
    (values, levels)
}

/// Recognises FP8 codes with scales.
///
/// # Errors
/// When their shapes do not tell which scale belongs where.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let Some(float) = info.dtype.float().filter(|float| float.bytes() == 1) else { return Ok(None) };
    let (module, places): (&str, Vec<String>) = match info.name.strip_suffix(".weight") {
        Some(module) => (module, SCALES.iter().map(|end| format!("{module}{end}")).collect()),
        None => (&info.name, STACK_SCALES.iter().map(|end| format!("{}{end}", info.name)).collect()),
    };
    let known = |name: &String| {
        let info = files.info(name);
        info.is_some_and(|info| !name.ends_with(".scale") || matches!(info.dtype, Dtype::F8E8M0 | Dtype::U8))
    };
    let Some(name) = places.into_iter().find(known) else { return Ok(None) };
    if files.comfyui(module).is_some_and(|format| !comfyui::is_plain(&format)) {
        return Ok(None);
    }
    let (Some(codes), Some(scales)) = (files.find(&info.name), files.find(&name)) else { return Ok(None) };
    let scales = Scales::of(scales)?;
    let shape: Vec<usize> = info.shape.as_slice().iter().map(|size| usize_of(*size)).collect();
    let sizes: Vec<usize> = scales.shape().iter().map(|size| usize_of(*size)).collect();
    let fits = blocks(&shape, &sizes, block_size(files), files.method().as_deref() == Some("fbgemm_fp8"));
    let Some((rows, cols, grid)) = fits else {
        let what = format!(
            "tensor `{name}` {} holds scales for a weight of {} in a layout that is not known",
            scales.stored.info.shape, info.shape
        );
        return Err(Error::unsupported(scales.stored.path(), what));
    };
    let mut tensors = vec![info.name.clone(), name];
    tensors.extend(files.present(BESIDE.iter().map(|end| format!("{module}{end}"))));
    let storage = Arc::new(Fp8 { codes, float, scales, rows, cols, grid });
    Ok(Some(Found { name: info.name.clone(), tensors, storage }))
}

/// The size of a block that the config names: `weight_block_size`, or `block_structure` of a group of compressed-tensors.
fn block_size(files: &Files<'_>) -> Option<(usize, usize)> {
    let settings = files.settings();
    let groups = settings.get("config_groups").and_then(Value::as_object);
    let of_group = || groups?.values().find_map(|group| group.get("weights")?.get("block_structure")?.as_array());
    let sizes = settings.get("weight_block_size").and_then(Value::as_array).or_else(of_group)?;
    let edge = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|edge| *edge > 0);
    match sizes.as_slice() {
        [rows, cols] => Some((edge(rows)?, edge(cols)?)),
        _ => None,
    }
}

/// Rows and columns of one matrix of a weight, and which scale its elements have; `None` where the shapes do not tell.
fn blocks(
    shape: &[usize],
    scales: &[usize],
    said: Option<(usize, usize)>,
    fbgemm: bool,
) -> Option<(usize, usize, Blocks)> {
    let count: usize = scales.iter().try_fold(1_usize, |all, one| all.checked_mul(*one))?;
    let (first, rest) = (*shape.first()?, shape.get(1..)?);
    let behind: usize = rest.iter().try_fold(1_usize, |all, one| all.checked_mul(*one))?;
    let flat = (first, behind);
    if shape.contains(&0) {
        return None;
    }
    let last = *shape.last()?;
    let lines = first.checked_mul(behind)? / last;
    if let (&[rows, cols], [1, 1], Some((high, wide))) = (shape, scales, said)
        && rows <= high
        && cols <= wide
    {
        return Some((rows, cols, Blocks { block: (high, wide), across: 1, each: 1 }));
    }
    if count == 1 {
        return Some((lines, last, Blocks { block: (lines, last), across: 1, each: 1 }));
    }
    let ([experts, rows, cols], stacked) = match shape {
        [experts, rows, cols] if scales.first() == Some(experts) && (scales.len() != 1 || *experts != count) => {
            ([*experts, *rows, *cols], &scales[1..])
        }
        // One scale per expert.
        [experts, rows, cols] if scales.len() == 1 && count == *experts => {
            return Some((*rows, *cols, Blocks { block: (*rows, *cols), across: 1, each: 1 }));
        }
        // The kernel of a convolution has a scale per output.
        [_, _, _, ..] if count == first => {
            return Some((lines, last, Blocks { block: (lines / first, last), across: 1, each: count }));
        }
        [_, _] => ([1, flat.0, flat.1], scales),
        _ => return None,
    };
    let each = count.checked_div(experts)?;
    let whole = Blocks { block: (rows, cols), across: 1, each };
    let sizes = match stacked {
        [down, 1, across, 1] => &[*down, *across][..],
        other => other,
    };
    let grid = match *sizes {
        [1] | [1, 1] => whole,
        // fbgemm keeps stacks transposed, `[experts, in, out]`, and has a scale per output.
        [1, across] if across == cols => Blocks { block: (rows, 1), across, ..whole },
        [down, 1] if shape.len() == 3 && fbgemm && down == cols => Blocks { block: (rows, 1), across: cols, ..whole },
        [down] | [down, 1] if down == rows => Blocks { block: (1, cols), ..whole },
        [down, across] => {
            let said = said.filter(|(high, wide)| rows.div_ceil(*high) == down && cols.div_ceil(*wide) == across);
            let usual = rows.div_ceil(USUAL) == down && cols.div_ceil(USUAL) == across;
            let block = match said {
                Some(said) => said,
                None if usual => (USUAL, USUAL),
                // Groups in a row.
                None if down == rows => (1, edge(cols, across)?),
                None => return None,
            };
            Blocks { block, across, ..whole }
        }
        _ => return None,
    };
    Some((rows, cols, grid))
}

/// The edge of blocks of which `count` cover `size`: the whole where there is one, or the only power of two.
fn edge(size: usize, count: usize) -> Option<usize> {
    if count == 1 {
        return Some(size);
    }
    let mut fitting = EDGES.map(|power| 1_usize << power).filter(|edge| size.div_ceil(*edge) == count);
    let found = fitting.next()?;
    fitting.next().is_none().then_some(found)
}

impl Fp8 {
    /// Calls `each` for the runs of `cols` in `row` that share a scale, with its index.
    fn runs(&self, row: usize, cols: &Range<usize>, mut each: impl FnMut(usize, Range<usize>)) {
        let first = row / self.rows * self.grid.each + row % self.rows / self.grid.block.0 * self.grid.across;
        let mut start = cols.start;
        while start < cols.end {
            let across = start / self.grid.block.1;
            let end = ((across + 1) * self.grid.block.1).min(cols.end);
            each(first + across, start..end);
            start = end;
        }
    }
}

impl Fp8 {
    /// Calls `each` for every row with the runs of `cols` that share a scale.
    fn each_row(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        mut each: impl FnMut(usize, &[(f32, Range<usize>)]) -> Result<()>,
    ) -> Result<()> {
        // The scales of the row before serve this one as well where it is of the same block.
        let (mut scales, mut runs, mut held) = (Vec::new(), Vec::new(), None);
        for row in rows {
            let (mut first, mut last) = (usize::MAX, 0);
            self.runs(row, &cols, |cell, _| (first, last) = (first.min(cell), last.max(cell)));
            if first <= last && held != Some((first, last)) {
                scales.resize(last + 1 - first, 0.0);
                self.scales.read_positive(first..last + 1, &mut scales)?;
                held = Some((first, last));
                runs.clear();
                self.runs(row, &cols, |cell, run| runs.push((scales[cell - first], run)));
            }
            each(row, &runs)?;
        }
        Ok(())
    }
}

impl Grid for Fp8 {
    fn bands(&self) -> (usize, usize) {
        (usize_of(self.codes.info.bytes) / self.cols, self.cols)
    }

    fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>) {
        (bands, 0..self.cols)
    }

    fn encode(&self, bands: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()> {
        let (table, levels) = table(self.float);
        let book = Codebook::Table(&table, &levels);
        let width = self.cols.max(1);
        let mut lines = out.chunks_exact_mut(width);
        self.each_row(bands.clone(), 0..self.cols, |row, runs| {
            let Some(codes) = lines.next() else { return Ok(()) };
            let scales: Vec<f32> = runs.iter().map(|(scale, _)| *scale).collect();
            let shared = Shared { size: self.grid.block.1, skipped: 0, scales: &scales, zeros: &[], biases: &[] };
            let line = (row - bands.start) * width..(row + 1 - bands.start) * width;
            requantise(book, shared, change.line(line, (row, 0)), codes);
            Ok(())
        })
    }

    fn values(&self, bands: Range<usize>, codes: &[u8], out: &mut [f32]) -> Result<()> {
        self.float.decode(codes, out);
        let mut lines = out.chunks_exact_mut(self.cols);
        self.each_row(bands, 0..self.cols, |_, scales| {
            let Some(line) = lines.next() else { return Ok(()) };
            scales.iter().for_each(|(scale, run)| line[run.clone()].iter_mut().for_each(|value| *value *= scale));
            Ok(())
        })
    }
}

impl Storage for Fp8 {
    fn shape(&self) -> Shape {
        self.codes.info.shape.clone()
    }

    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut places = out.chunks_exact_mut(cols.len().max(1));
        self.each_row(rows, cols.clone(), |row, scales| {
            let Some(line) = places.next() else { return Ok(()) };
            let start = row * self.cols + cols.start;
            self.float.decode(&self.codes.read(start as u64, cols.len() as u64)?, line);
            scales.iter().for_each(|(scale, run)| {
                line[run.start - cols.start..run.end - cols.start].iter_mut().for_each(|value| *value *= scale);
            });
            Ok(())
        })
    }

    fn rounding_variance(&self, row: usize) -> Result<f64> {
        let mut codes = vec![0.0; self.cols];
        self.float.decode(&self.codes.read((row * self.cols) as u64, self.cols as u64)?, &mut codes);
        let mut sum = 0.0;
        self.each_row(row..row + 1, 0..self.cols, |_, scales| {
            for (scale, run) in scales {
                let scale = f64::from(*scale);
                sum += scale * scale * rounding_variance(self.float, &codes[run.clone()]);
            }
            Ok(())
        })?;
        Ok(sum)
    }

    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }

    fn facts(&self) -> Facts {
        let (high, wide) = self.grid.block;
        let group = match (high == self.rows, wide == self.cols) {
            (true, true) => Group::Tensor,
            _ if high == 1 && wide == self.cols || wide == 1 && high == self.rows => Group::Row,
            _ if high == 1 => Group::Columns(wide),
            _ => Group::Block(high, wide),
        };
        let kind = if self.float == Float::F8E5M2 { "E5M2" } else { "E4M3" };
        Facts { format: "FP8".into(), bits: 8, group, details: vec![kind.into(), self.scales.dtype()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_of_scales_tells_the_blocks() {
        let of =
            |shape: &[usize], scales: &[usize], said| blocks(shape, scales, said, false).map(|found| found.2.block);
        assert_eq!(of(&[64, 96], &[], None), Some((64, 96)));
        assert_eq!(of(&[64, 96], &[1, 1], None), Some((64, 96)));
        assert_eq!(of(&[64, 96], &[64], None), Some((1, 96)));
        assert_eq!(of(&[64, 96], &[64, 1], None), Some((1, 96)));
        assert_eq!(of(&[576, 200], &[5, 2], None), Some((128, 128)));
        assert_eq!(of(&[130, 200], &[2, 2], Some((128, 128))), Some((128, 128)));
        assert_eq!(of(&[64, 96], &[64, 3], None), Some((1, 32)));
        assert_eq!(of(&[72, 136], &[1, 1, 2, 1], None), Some((128, 128)));
        // Four blocks of 33 to 43 rows; or one where two belong.
        assert_eq!(of(&[256, 256], &[1, 2], None), None);
        assert_eq!(of(&[130, 200], &[4, 7], None), None);
        assert_eq!(of(&[4, 64, 96], &[4], None), Some((64, 96)));
        assert_eq!(of(&[8, 4, 3, 3], &[8, 1, 1, 1], None), Some((12, 3)));
        assert_eq!(of(&[8, 4, 3, 3], &[], None), Some((96, 3)));
        assert_eq!(of(&[5], &[1], None), Some((1, 5)));
        assert_eq!(of(&[4, 64, 96], &[4, 1, 96], None), Some((64, 1)));
        assert_eq!(of(&[4, 256, 384], &[4, 2, 3], None), Some((128, 128)));
        assert_eq!(of(&[64, 96], &[63], None), None);
        assert_eq!(of(&[0, 96], &[1], None), None);
    }

    #[test]
    fn transposed_stacks_have_their_scales_per_output() {
        let found = blocks(&[3, 48, 64], &[3, 64, 1], None, true).expect("known");
        assert_eq!((found.2.block, found.2.across), ((48, 1), 64));
    }
}
