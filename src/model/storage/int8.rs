//! Weights of bitsandbytes in 8 bits (LLM.int8): W = code · SCB[row] · (1 ∕ 127), in f32 and in that order.
//!
//! | tensor of `M` | what |
//! |---|---|
//! | `M.weight` I8 `[out, in]` | codes |
//! | `M.SCB`, or `M.weight_scb` of GPTQModel: F32 `[out]` | the largest value of a row |
//! | `M.weight_format` U8 | 0: rows lie one after the other |
//!
//! Layers of the type Conv1D (GPT-2) hold the transpose of what the plain checkpoint holds. Source: bitsandbytes `nn/modules.py`,
//! `_ops.py`.

use std::ops::Range;
use std::sync::Arc;

use super::files::Files;
use super::scales::Scales;
use super::{Change, Facts, Found, Grid, Group, Storage};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::conv1d;
use crate::tensor::codes::Level;
use crate::tensor::{Dtype, Shape, TensorInfo, usize_of};

/// 1 ∕ 127 as bitsandbytes has it.
const PER_CODE: f32 = 7.874_016e-3;

/// The bit that tells negative codes.
const SIGN: u8 = 0x80;

/// What the scales of `M.weight` are called, in place of `.weight`.
const SCALES: [&str; 2] = [".SCB", ".weight_scb"];

/// A weight in 8 bits.
#[derive(Debug)]
struct Int8 {
    codes: Stored,
    scales: Scales,
    rows: usize,
    cols: usize,
    turned: bool,
}

/// The value of a code.
fn value(byte: u8, scale: f32) -> f32 {
    f32::from(i8::from_ne_bytes([byte])) * scale * PER_CODE
}

/// Recognises `M.weight` with its scales beside it.
///
/// # Errors
/// When they do not fit, or the rows lie in another order.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let Some(module) = info.name.strip_suffix(".weight").filter(|_| info.dtype == Dtype::I8) else { return Ok(None) };
    let Some(name) = SCALES.map(|end| format!("{module}{end}")).into_iter().find(|name| files.info(name).is_some())
    else {
        return Ok(None);
    };
    let &[rows, cols] = info.shape.as_slice() else {
        return Err(files.malformed(&info.name, format!("is {}, and a matrix belongs there", info.shape)));
    };
    let (Some(codes), Some(scales)) = (files.find(&info.name), files.find(&name)) else { return Ok(None) };
    if scales.elements() as u64 != rows || scales.info.dtype != Dtype::F32 {
        let problem = format!("is {} {}, and F32 [{rows}] belongs there", scales.info.dtype, scales.info.shape);
        return Err(files.malformed(&name, problem));
    }
    let format = format!("{module}.weight_format");
    if let Some(stored) = files.find(&format) {
        let order = stored.read(0, stored.info.bytes.min(1))?.first().copied();
        if order != Some(0) {
            let what = format!("tensor `{format}` says that `{}` is not stored row by row", info.name);
            return Err(Error::unsupported(stored.path(), what)
                .hint("load the model with bitsandbytes 0.43 or later and save it again"));
        }
    }
    let mut tensors = vec![info.name.clone(), name];
    tensors.extend(files.present([format]));
    let turned = files.keeps_inputs_in_rows() && conv1d::is_layer(module);
    let (rows, cols) = (usize_of(rows), usize_of(cols));
    let storage = Arc::new(Int8 { codes, scales: Scales::of(scales)?, rows, cols, turned });
    Ok(Some(Found { name: info.name.clone(), tensors, storage }))
}

impl Int8 {
    /// The scale of a row as it is stored.
    fn scale(&self, row: usize) -> Result<f32> {
        let mut scale = [0.0];
        self.scales.read(row..row + 1, &mut scale)?;
        Ok(scale[0])
    }

    /// Where an element of `count` stored rows is in the rectangle they stand for.
    fn place(&self, row: usize, col: usize, count: usize) -> usize {
        if self.turned { col * count + row } else { row * self.cols + col }
    }

    /// Reads columns of a row as it is stored.
    fn line(&self, row: usize, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let scale = self.scale(row)?;
        let bytes = self.codes.read((row * self.cols + cols.start) as u64, cols.len() as u64)?;
        for (value, byte) in out.iter_mut().zip(bytes.iter()) {
            *value = self::value(*byte, scale);
        }
        Ok(())
    }
}

impl Grid for Int8 {
    fn bands(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>) {
        if self.turned { (0..self.cols, bands) } else { (bands, 0..self.cols) }
    }

    fn encode(&self, bands: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()> {
        // Codes are read without a sign: 0 is 128.
        let level = Level::Whole { least: 1, most: 255, zero: 128.0, bias: None };
        for (at, line) in out.chunks_exact_mut(self.cols).enumerate() {
            let scale = self.scale(bands.start + at)? * PER_CODE;
            for (col, byte) in line.iter_mut().enumerate() {
                let place = self.place(at, col, bands.len());
                let (row, col) = if self.turned { (col, bands.start + at) } else { (bands.start + at, col) };
                *byte = change.code((place, row, col), level, scale, *byte ^ SIGN) ^ SIGN;
            }
        }
        Ok(())
    }

    fn values(&self, bands: Range<usize>, codes: &[u8], out: &mut [f32]) -> Result<()> {
        for (at, line) in codes.chunks_exact(self.cols).enumerate() {
            let scale = self.scale(bands.start + at)?;
            for (col, byte) in line.iter().enumerate() {
                out[self.place(at, col, bands.len())] = value(*byte, scale);
            }
        }
        Ok(())
    }
}

impl Storage for Int8 {
    fn shape(&self) -> Shape {
        let (rows, cols) = (self.rows as u64, self.cols as u64);
        if self.turned { Shape::from([cols, rows]) } else { Shape::from([rows, cols]) }
    }

    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = cols.len();
        if width == 0 {
            return Ok(());
        }
        if !self.turned {
            return rows
                .zip(out.chunks_exact_mut(width))
                .try_for_each(|(row, line)| self.line(row, cols.clone(), line));
        }
        let mut line = vec![0.0; rows.len()];
        for (at, col) in cols.enumerate() {
            self.line(col, rows.clone(), &mut line)?;
            out.iter_mut().skip(at).step_by(width).zip(&line).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }

    fn facts(&self) -> Facts {
        Facts { format: "bitsandbytes LLM.int8".into(), bits: 8, group: Group::Row, details: Vec::new() }
    }
}
