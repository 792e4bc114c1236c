//! A 16-bit weight as a network saw it that was trained on it in 4 or 8 bits: quantised by the rules of bitsandbytes, and
//! dequantised again.
//!
//! Blocks run over the flattened weight as `nn.Linear` has it, `[out, in]`. A value goes to the nearest level, by the midpoints in f32; one on a
//! midpoint to the lower level. With double quantisation the scales of 256 blocks are codes of the dynamic map, around their mean. On a
//! GPU the order of that sum is not defined, and FP4 has midpoints of seven digits: what was trained there may differ in last
//! bits. Source: bitsandbytes `backends/default/ops.py`, `nn/modules.py`.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Facts, Group, Storage};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::train_base::{TrainBase, TrainCodes};
use crate::tensor::codes::{FP4, NF4, dynamic_map};
use crate::tensor::{Float, Shape, first_not_finite};

/// Scales that share one of their own.
const NESTED: usize = 256;

/// 1 ∕ 127 as bitsandbytes has it.
const PER_CODE: f32 = 7.874_016e-3;

/// Rows that are looked at to tell how far a weight is from its quantised form.
const SAMPLED_ROWS: usize = 64;

/// Values that are read at once where all scales of a weight are wanted.
const AT_ONCE: usize = 1 << 16;

/// A weight that stands for its quantised form.
#[derive(Debug)]
pub struct Trained {
    source: Stored,
    float: Float,
    /// What the model was loaded in.
    loaded: Float,
    spec: TrainBase,
    /// Rows and columns as they are stored.
    rows: usize,
    cols: usize,
    /// They are `[in, out]`.
    turned: bool,
    levels: Nearest,
    /// All scales, where they are quantised themselves.
    scales: Mutex<Option<Arc<Vec<f32>>>>,
}

/// Levels in order, and what lies between.
#[derive(Debug)]
struct Nearest {
    levels: Vec<f32>,
    midpoints: Vec<f32>,
}

impl Nearest {
    fn of(levels: &[f32]) -> Self {
        let mut levels = levels.to_vec();
        levels.sort_by(f32::total_cmp);
        levels.dedup_by(|one, other| *one == *other);
        let midpoints = levels.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
        Self { levels, midpoints }
    }

    fn level(&self, value: f32) -> f32 {
        self.levels[self.midpoints.partition_point(|midpoint| *midpoint < value)]
    }
}

impl Trained {
    /// The weight `source`, a matrix of `float`; `turned` if it is `[in, out]`.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn new(source: Stored, float: Float, spec: TrainBase, turned: bool) -> Result<Self> {
        let (rows, cols) = source.rows_cols();
        let levels = Nearest::of(match spec.codes {
            TrainCodes::Fp4 => &FP4,
            _ => &NF4,
        });
        let loaded = spec.dtype.unwrap_or(float);
        Ok(Self { source, float, loaded, spec, rows, cols, turned, levels, scales: Mutex::default() })
    }

    /// Outputs and inputs.
    fn size(&self) -> (usize, usize) {
        if self.turned { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    /// Elements of the flattened weight as it was loaded; of a turned one from one row only.
    fn loaded(&self, elements: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = self.float.bytes() as u64;
        if self.turned {
            let (_, inputs) = self.size();
            for (at, element) in elements.enumerate() {
                let (output, input) = (element / inputs, element % inputs);
                let bytes = self.source.read((input * self.cols + output) as u64 * width, width)?;
                self.float.decode(&bytes, &mut out[at..at + 1]);
            }
        } else {
            let bytes = self.source.read(elements.start as u64 * width, elements.len() as u64 * width)?;
            if let Some(at) = first_not_finite(self.float, &bytes) {
                let problem = format!("element {} is not finite", elements.start + at);
                return Err(Error::numeric(self.source.path(), &self.source.info.name, problem));
            }
            self.float.decode(&bytes, out);
        }
        let rounded = if self.spec.codes == TrainCodes::Int8 { Float::F16 } else { self.loaded };
        if self.loaded != self.float {
            self.loaded.round(out);
        }
        if rounded != self.loaded {
            rounded.round(out);
        }
        Ok(())
    }

    /// Replaces elements of whole blocks, from block `first` on, by what their codes stand for.
    fn through_codes(&self, first: usize, values: &mut [f32]) -> Result<()> {
        let nested = if self.spec.double { Some(self.nested()?) } else { None };
        for (at, block) in values.chunks_mut(self.spec.block).enumerate() {
            let largest = largest(block);
            let scale = nested.as_ref().map_or(largest, |scales| scales[first + at]);
            if largest == 0.0 {
                block.fill(self.levels.level(0.0) * scale);
                continue;
            }
            let (is_short, inverse) = (block.len() < self.spec.block, 1.0 / largest);
            for value in block {
                let share = if is_short { *value / largest } else { *value * inverse };
                *value = self.levels.level(share.clamp(-1.0, 1.0)) * scale;
            }
        }
        Ok(())
    }

    /// All scales after their own quantisation. They are kept until pages are let go.
    fn nested(&self) -> Result<Arc<Vec<f32>>> {
        let mut held = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scales) = held.as_ref() {
            return Ok(Arc::clone(scales));
        }
        let elements = self.rows * self.cols;
        let step = (AT_ONCE / self.spec.block).max(1) * self.spec.block;
        let mut scales = Vec::with_capacity(elements.div_ceil(self.spec.block));
        let mut values = Vec::new();
        for first in (0..elements).step_by(step) {
            let span = first..elements.min(first + step);
            values.resize(span.len(), 0.0);
            self.loaded(span, &mut values)?;
            scales.extend(values.chunks(self.spec.block).map(largest));
        }
        let sum: f64 = scales.iter().map(|scale| f64::from(*scale)).sum();
        let offset = (sum / scales.len().max(1) as f64) as f32;
        let map = Nearest::of(&dynamic_map());
        for block in scales.chunks_mut(NESTED) {
            block.iter_mut().for_each(|scale| *scale -= offset);
            let (most, is_short) = (largest(block), block.len() < NESTED);
            for scale in block {
                let share = match is_short {
                    _ if most == 0.0 => 0.0,
                    true => *scale / most,
                    false => *scale * (1.0 / most),
                };
                *scale = map.level(share.clamp(-1.0, 1.0)) * most + offset;
            }
        }
        Ok(Arc::clone(held.insert(Arc::new(scales))))
    }

    /// Reads elements of the flattened weight.
    fn flat(&self, elements: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, inputs) = self.size();
        // Rows of codes in 8 bits, blocks of those in 4.
        let unit = if self.spec.codes == TrainCodes::Int8 { inputs } else { self.spec.block };
        let whole = elements.start / unit * unit..elements.end.next_multiple_of(unit).min(self.rows * self.cols);
        let mut values = vec![0.0; whole.len()];
        self.loaded(whole.clone(), &mut values)?;
        if self.spec.codes == TrainCodes::Int8 {
            values.chunks_mut(unit).for_each(through_bytes);
        } else {
            self.through_codes(whole.start / unit, &mut values)?;
        }
        out.copy_from_slice(&values[elements.start - whole.start..][..elements.len()]);
        if self.loaded != Float::F32 {
            self.loaded.round(out);
        }
        Ok(())
    }
}

/// A row through codes of 8 bits.
fn through_bytes(row: &mut [f32]) {
    let largest = largest(row);
    if largest == 0.0 {
        return;
    }
    let steps = 127.0 / largest;
    row.iter_mut().for_each(|value| *value = (*value * steps).round_ties_even() * largest * PER_CODE);
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// ‖W − dq(Q(W))‖² of the matrix `source` as `spec` quantises it, estimated from some rows spread evenly.
///
/// # Errors
/// When it cannot be read, or is no matrix of numbers.
pub fn error_squared(source: &Stored, spec: TrainBase, turned: bool) -> Result<f64> {
    let Some(float) = source.info.dtype.float() else { return Ok(0.0) };
    let weight = Trained::new(source.clone(), float, spec, turned)?;
    let ((rows, inputs), mut sum) = (weight.size(), 0.0);
    let step = rows.div_ceil(SAMPLED_ROWS).max(1);
    let (mut own, mut seen, mut count) = (vec![0.0; inputs], vec![0.0; inputs], 0_usize);
    for row in (0..rows).step_by(step) {
        let elements = row * inputs..(row + 1) * inputs;
        weight.loaded(elements.clone(), &mut own)?;
        weight.flat(elements, &mut seen)?;
        sum += own.iter().zip(&seen).map(|(own, seen)| f64::from(own - seen).powi(2)).sum::<f64>();
        count += 1;
    }
    Ok(sum * rows as f64 / count.max(1) as f64)
}

impl Storage for Trained {
    fn shape(&self) -> Shape {
        self.source.info.shape.clone()
    }

    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = cols.len();
        if width == 0 || rows.is_empty() {
            return Ok(());
        }
        if !self.turned {
            if width == self.cols {
                return self.flat(rows.start * width..rows.end * width, out);
            }
            let mut lines = rows.zip(out.chunks_exact_mut(width));
            return lines
                .try_for_each(|(row, line)| self.flat(row * self.cols + cols.start..row * self.cols + cols.end, line));
        }
        let (_, inputs) = self.size();
        let mut line = vec![0.0; rows.len()];
        for (at, output) in cols.enumerate() {
            self.flat(output * inputs + rows.start..output * inputs + rows.end, &mut line)?;
            out.iter_mut().skip(at).step_by(width).zip(&line).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        let (bits, group) = match self.spec.codes {
            TrainCodes::Int8 => (8, Group::Row),
            _ => (4, Group::Flat(self.spec.block)),
        };
        Facts { format: format!("{} for training", self.spec), bits, group, details: Vec::new() }
    }

    fn rows_together(&self) -> usize {
        // A turned weight is read by its columns.
        if self.turned { self.rows } else { 1 }
    }

    fn forget(&self) {
        *self.scales.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
