//! tuned − base as a matrix that is read in bands: both files are decoded as often as they are asked for, nothing is held.

use std::ops::Range;
use std::sync::Arc;

use crate::adapters::BaseRows;
use crate::error::{Error, Result};
use crate::linalg::RowSource;
use crate::model::same_bytes;
use crate::model::weight::Weight;
use crate::tensor::{Float, Packing, first_not_finite, rounding_variance};

/// Elements that are decoded at once where two dtypes are compared.
const COMPARED: usize = 1 << 16;

/// The change of one weight, or of one expert's part of a stack.
#[derive(Debug, Clone)]
pub struct Difference {
    base: Weight,
    tuned: Weight,
    /// The numbers that the base and the tuned weight are stored as; `None` in blocks.
    floats: [Option<Float>; 2],
    /// Rows of both that are meant.
    rows: Range<usize>,
}

impl Difference {
    /// The change of all rows of two weights of one shape.
    pub fn new(mut base: Weight, tuned: Weight) -> Self {
        assert_eq!((base.rows, base.cols), (tuned.rows, tuned.cols), "weights of one shape are compared");
        let rows = 0..base.rows;
        // What was tuned started from the base as it is loaded in this type.
        if let (Some(quantised), None, Some(float)) = (&base.quantised, &tuned.quantised, tuned.packing.float())
            && float.bytes() == 2
        {
            base.quantised = Some(Arc::new(quantised.rounded_to(float)));
        }
        Self { floats: [base.packing.float(), tuned.packing.float()], base, tuned, rows }
    }

    /// One of `count` parts of as many rows each.
    pub fn part(&self, at: usize, count: usize) -> Self {
        let each = self.rows.len() / count.max(1);
        let first = self.rows.start + at * each;
        Self { rows: first..first + each, ..self.clone() }
    }

    /// How the tuned weight is stored.
    pub fn tuned(&self) -> &Weight {
        &self.tuned
    }

    /// The numbers that the tuned weight is stored as; `None` in blocks.
    pub fn tuned_float(&self) -> Option<Float> {
        self.floats[1]
    }

    /// Whether both sides hold the same numbers; bytes are compared where they can be.
    ///
    /// # Errors
    /// When a file is no longer there as it was mapped.
    pub fn is_zero(&self) -> Result<bool> {
        let layouts = [&self.base.layout, &self.tuned.layout];
        if self.base.packing == self.tuned.packing
            && layouts[0] == layouts[1]
            && same_bytes(&self.base.tensor, &self.tuned.tensor)?
        {
            return Ok(true);
        }
        let step = (COMPARED / self.base.cols.max(1)).max(1);
        let mut change = vec![0.0; step.min(self.rows.len()) * self.base.cols];
        for first in (0..self.rows.len()).step_by(step) {
            let rows = first..self.rows.len().min(first + step);
            let values = &mut change[..rows.len() * self.base.cols];
            self.read(rows, values)?;
            if values.iter().any(|value| *value != 0.0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Refuses values that are not finite on either side.
    ///
    /// # Errors
    /// `Numeric`, naming file, tensor and the first such element.
    pub fn check_finite(&self) -> Result<()> {
        let sides = [&self.base, &self.tuned].into_iter().zip(self.floats);
        // What stands for a quantised weight is refused where it is read.
        for (weight, float) in sides.filter(|(weight, _)| weight.quantised.is_none()) {
            let Some(float) = float else {
                check_blocks(weight, self.rows.clone())?;
                continue;
            };
            let data = weight.tensor.view()?.data;
            if let Some(at) = first_not_finite(float, data) {
                let mut value = [0.0];
                let width = float.bytes();
                float.decode(&data[at * width..(at + 1) * width], &mut value);
                let problem = format!("element {at} is {}", value[0]);
                return Err(Error::numeric(weight.tensor.path(), &weight.tensor.info.name, problem));
            }
        }
        Ok(())
    }

    /// Variance of the rounding of one element of the tuned weight to its dtype: its mean over at most about `elements`
    /// elements, in rows spread evenly over the weight.
    ///
    /// # Errors
    /// When the file is no longer there as it was mapped.
    pub fn rounding_variance(&self, elements: usize) -> Result<f64> {
        let (weight, cols) = (&self.tuned, self.tuned.cols);
        let wanted = (elements / cols.max(1)).max(1);
        let step = self.rows.len().div_ceil(wanted).max(1);
        let (mut sum, mut count) = (0.0, 0);
        let mut values = vec![0.0; cols];
        for row in self.rows.clone().step_by(step) {
            sum += match (&weight.quantised, weight.packing) {
                (Some(quantised), _) => quantised.storage.rounding_variance(row)?,
                (None, Packing::Blocks(ggml)) => {
                    BaseRows::read(weight, row..row + 1, 0..cols, &mut values)?;
                    ggml.rounding_variance(&values)
                }
                (None, Packing::Float(float)) => {
                    float.decode(weight.bytes(weight.tensor.view()?.data, row, 0..cols), &mut values);
                    rounding_variance(float, &values)
                }
            };
            count += cols;
        }
        Ok(if count > 0 { sum / count as f64 } else { 0.0 })
    }

    /// Lets go of the mapped pages of both sides.
    pub fn release(&self) {
        for weight in [&self.base, &self.tuned] {
            let row_bytes = weight.row_bytes() as u64;
            let start = weight.tensor.start + self.rows.start as u64 * row_bytes;
            weight.tensor.map.release(start, self.rows.len() as u64 * row_bytes);
        }
    }

    /// Checks that neither file was changed while it was read.
    ///
    /// # Errors
    /// When one was.
    pub fn check_unchanged(&self) -> Result<()> {
        self.base.tensor.map.check_unchanged()?;
        self.tuned.tensor.map.check_unchanged()
    }

    /// Subtracts in f64, for files that hold f64: an f32 of each side would lose the difference.
    fn read_wide(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.base.cols;
        let (mut base, mut tuned) = (vec![0.0; cols], vec![0.0; cols]);
        for (row, line) in rows.zip(out.chunks_exact_mut(cols)) {
            wide_row(&self.base, row, &mut base)?;
            wide_row(&self.tuned, row, &mut tuned)?;
            for (out, (tuned, base)) in line.iter_mut().zip(tuned.iter().zip(&base)) {
                *out = (tuned - base) as f32;
            }
        }
        Ok(())
    }
}

impl RowSource for Difference {
    fn shape(&self) -> (usize, usize) {
        (self.rows.len(), self.base.cols)
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let rows = self.rows.start + rows.start..self.rows.start + rows.end;
        if self.floats.contains(&Some(Float::F64)) {
            return self.read_wide(rows, out);
        }
        let cols = self.base.cols;
        BaseRows::read(&self.tuned, rows.clone(), 0..cols, out)?;
        // Row by row: what is subtracted stays in the first-level cache.
        let mut base = vec![0.0; cols];
        for (row, line) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            BaseRows::read(&self.base, row..row + 1, 0..cols, &mut base)?;
            line.iter_mut().zip(&base).for_each(|(value, base)| *value -= base);
        }
        Ok(())
    }
}

/// Refuses blocks whose values are not finite.
fn check_blocks(weight: &Weight, rows: Range<usize>) -> Result<()> {
    let mut values = vec![0.0; weight.cols];
    for row in rows {
        BaseRows::read(weight, row..row + 1, 0..weight.cols, &mut values)?;
        if let Some(col) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("the value at [{row}, {col}] is {}", values[col]);
            return Err(Error::numeric(weight.tensor.path(), &weight.tensor.info.name, problem));
        }
    }
    Ok(())
}

/// One row in f64.
fn wide_row(weight: &Weight, row: usize, out: &mut [f64]) -> Result<()> {
    if weight.packing == Packing::Float(Float::F64) {
        let data = weight.tensor.view()?.data;
        let bytes = weight.bytes(data, weight.layout.stored_row(row), 0..weight.cols);
        for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(8)) {
            *value = f64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        }
        return Ok(());
    }
    let mut narrow = vec![0.0; weight.cols];
    BaseRows::read(weight, row..row + 1, 0..weight.cols, &mut narrow)?;
    out.iter_mut().zip(&narrow).for_each(|(wide, value)| *wide = f64::from(*value));
    Ok(())
}
