//! MXFP4 as gpt-oss and DeepSeek-V4 store it: codes of E2M1, 32 of which share a scale of E8M0; W = value · 2^(scale − 127).
//!
//! | who | codes | scales | plain weight |
//! |---|---|---|---|
//! | gpt-oss | `P_blocks` U8 `[experts, out, groups, 16]` | `P_scales` U8 `[experts, out, groups]` | `P` `[experts, in, out]` |
//! | DeepSeek-V4 | `M.weight` I8 `[out, in ∕ 2]` | `M.scale` E8M0 `[out, in ∕ 32]` | `M.weight` `[out, in]` |
//!
//! The low nibble of a byte is the even element. transformers keeps the experts of gpt-oss transposed (`integrations/mxfp4.py`),
//! and so does a checkpoint of it in 16 bits.

use std::ops::Range;
use std::sync::Arc;

use super::files::Files;
use super::{Change, Facts, Found, Grid, Group, Storage};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::codes::{E2M1, Level, Levels, power_of_two};
use crate::tensor::{Dtype, Shape, TensorInfo, usize_of};

/// Elements that share a scale.
const GROUP: usize = 32;

/// Bytes of their codes.
const BYTES: usize = GROUP / 2;

/// Endings of gpt-oss.
const ENDS: [&str; 2] = ["_blocks", "_scales"];

/// Rows of groups that share scales.
#[derive(Debug)]
struct Mxfp4 {
    codes: Stored,
    scales: Stored,
    /// Rows of one matrix as it is stored.
    rows: usize,
    groups: usize,
    /// Matrices of a stack.
    experts: Option<usize>,
}

/// Recognises the experts of gpt-oss and of DeepSeek-V4.
///
/// # Errors
/// When codes and scales do not fit each other.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let found = match info.dtype {
        Dtype::U8 => info.name.strip_suffix(ENDS[0]).map(|stem| (stem.to_owned(), format!("{stem}{}", ENDS[1]), true)),
        Dtype::I8 => {
            let module = info.name.strip_suffix(".weight");
            module.map(|module| (info.name.clone(), format!("{module}.scale"), false))
        }
        _ => None,
    };
    let Some((name, scales_name, is_stack)) = found else { return Ok(None) };
    let (Some(codes), Some(scales)) = (files.find(&info.name), files.find(&scales_name)) else { return Ok(None) };
    if !matches!(scales.info.dtype, Dtype::U8 | Dtype::F8E8M0) {
        return Ok(None);
    }
    let shape = info.shape.as_slice();
    let (rows, groups, experts, wanted) = match *shape {
        [experts, rows, groups, bytes] if is_stack && bytes == BYTES as u64 => {
            (rows, groups, Some(usize_of(experts)), vec![experts, rows, groups])
        }
        [rows, bytes] if !is_stack && bytes % BYTES as u64 == 0 => {
            (rows, bytes / BYTES as u64, None, vec![rows, bytes / BYTES as u64])
        }
        _ => {
            let problem = format!("is {}, and codes of MXFP4 come in groups of {BYTES} bytes", info.shape);
            return Err(files.malformed(&info.name, problem));
        }
    };
    if scales.info.shape.as_slice() != wanted {
        return Err(files.misfit(&scales_name, &name, &wanted));
    }
    let storage = Arc::new(Mxfp4 { codes, scales, rows: usize_of(rows), groups: usize_of(groups), experts });
    Ok(Some(Found { name, tensors: vec![info.name.clone(), scales_name], storage }))
}

impl Mxfp4 {
    /// Reads columns of a row as it is stored, counted over all matrices.
    fn line(&self, row: usize, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        if cols.is_empty() {
            return Ok(());
        }
        let groups = cols.start / GROUP..cols.end.div_ceil(GROUP);
        let first = row * self.groups + groups.start;
        let codes = self.codes.read((first * BYTES) as u64, (groups.len() * BYTES) as u64)?;
        let scales = self.scales.read(first as u64, groups.len() as u64)?;
        let mut values = [0.0; GROUP];
        for (at, (group, byte)) in groups.zip(scales.iter()).enumerate() {
            let scale = self.scale(first + at, *byte)?;
            for (pair, code) in values.chunks_exact_mut(2).zip(&codes[at * BYTES..(at + 1) * BYTES]) {
                pair[0] = E2M1[usize::from(code & 15)] * scale;
                pair[1] = E2M1[usize::from(code >> 4)] * scale;
            }
            let begin = group * GROUP;
            let (from, to) = (begin.max(cols.start), (begin + GROUP).min(cols.end));
            out[from - cols.start..to - cols.start].copy_from_slice(&values[from - begin..to - begin]);
        }
        Ok(())
    }
}

impl Mxfp4 {
    /// The scales of a row as it is stored.
    fn scales_of(&self, row: usize) -> Result<Vec<f32>> {
        let first = row * self.groups;
        let bytes = self.scales.read(first as u64, self.groups as u64)?;
        bytes.iter().enumerate().map(|(at, byte)| self.scale(first + at, *byte)).collect()
    }

    fn scale(&self, at: usize, byte: u8) -> Result<f32> {
        if byte == u8::MAX {
            let problem = format!("scale {at} is 255, which is no number");
            return Err(Error::numeric(self.scales.path(), &self.scales.info.name, problem));
        }
        Ok(power_of_two(byte))
    }

    /// Where an element of `count` stored rows is in the rectangle they stand for.
    fn place(&self, row: usize, col: usize, count: usize) -> usize {
        if self.experts.is_some() { col * count + row } else { row * self.groups * GROUP + col }
    }
}

impl Grid for Mxfp4 {
    fn bands(&self) -> (usize, usize) {
        (self.experts.unwrap_or(1) * self.rows, self.groups * BYTES)
    }

    fn together(&self) -> usize {
        self.rows
    }

    fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>) {
        let inner = self.groups * GROUP;
        if self.experts.is_none() {
            return (bands, 0..inner);
        }
        let expert = bands.start / self.rows.max(1);
        (expert * inner..(expert + 1) * inner, bands.start - expert * self.rows..bands.end - expert * self.rows)
    }

    fn encode(&self, bands: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()> {
        let level = Level::Table { table: &E2M1, levels: &Levels::new(&E2M1) };
        let (rows, cols) = self.part(bands.clone());
        for (at, line) in out.chunks_exact_mut(self.groups * BYTES).enumerate() {
            let scales = self.scales_of(bands.start + at)?;
            for (byte, pair) in line.iter_mut().zip((0..).step_by(2)) {
                let code = |col: usize, old: u8| {
                    let place = self.place(at, col, bands.len());
                    let element = match self.experts {
                        Some(_) => (place, rows.start + col, cols.start + at),
                        None => (place, rows.start + at, col),
                    };
                    change.code(element, level, scales[col / GROUP], old)
                };
                *byte = code(pair, *byte & 15) | code(pair + 1, *byte >> 4) << 4;
            }
        }
        Ok(())
    }

    fn values(&self, bands: Range<usize>, codes: &[u8], out: &mut [f32]) -> Result<()> {
        for (at, line) in codes.chunks_exact(self.groups * BYTES).enumerate() {
            let scales = self.scales_of(bands.start + at)?;
            for (byte, col) in line.iter().zip((0..).step_by(2)) {
                let scale = scales[col / GROUP];
                out[self.place(at, col, bands.len())] = E2M1[usize::from(byte & 15)] * scale;
                out[self.place(at, col + 1, bands.len())] = E2M1[usize::from(byte >> 4)] * scale;
            }
        }
        Ok(())
    }
}

impl Storage for Mxfp4 {
    fn shape(&self) -> Shape {
        let inner = self.groups * GROUP;
        match self.experts {
            Some(experts) => Shape::from([experts as u64, inner as u64, self.rows as u64]),
            None => Shape::from([self.rows as u64, inner as u64]),
        }
    }

    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = cols.len();
        if width == 0 {
            return Ok(());
        }
        if self.experts.is_none() {
            return rows
                .zip(out.chunks_exact_mut(width))
                .try_for_each(|(row, line)| self.line(row, cols.clone(), line));
        }
        let inner = self.groups * GROUP;
        let (mut row, mut done) = (rows.start, 0);
        let mut line = Vec::new();
        while row < rows.end {
            // Rows of the plain weight are columns of what is stored: those of one matrix at once.
            let (expert, first) = (row / inner, row % inner);
            let count = (inner - first).min(rows.end - row);
            line.resize(count, 0.0);
            for (at, col) in cols.clone().enumerate() {
                self.line(expert * self.rows + col, first..first + count, &mut line)?;
                let place = out[done * width..(done + count) * width].iter_mut().skip(at).step_by(width);
                place.zip(&line).for_each(|(to, from)| *to = *from);
            }
            row += count;
            done += count;
        }
        Ok(())
    }

    fn rows_together(&self) -> usize {
        if self.experts.is_some() { GROUP } else { 1 }
    }

    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }

    fn facts(&self) -> Facts {
        let details = self.experts.map(|experts| format!("{experts} experts")).into_iter().collect();
        Facts { format: "MXFP4".into(), bits: 4, group: Group::Columns(GROUP), details }
    }
}
