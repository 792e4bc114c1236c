//! A factor matrix as it lies in a mapped file or, where it was computed, in memory: transposed, or one expert's slice of a
//! stack, without a copy.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::Float;

/// Elements so far apart are decoded one by one, nearer ones with what lies between them.
const SCATTERED: usize = 16;

/// A strided matrix view over a tensor. Strides and the origin count elements.
#[derive(Debug, Clone)]
pub struct Factor {
    home: Home,
    rows: usize,
    cols: usize,
    origin: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Where the elements are.
#[derive(Debug, Clone)]
enum Home {
    Stored(Stored, Float),
    Held(Arc<[f32]>),
}

impl Factor {
    /// The tensor as a matrix: its first dimension against all others.
    ///
    /// # Errors
    /// `Unsupported` when its dtype holds no floating point numbers.
    pub fn new(tensor: &Stored) -> Result<Self> {
        let float = tensor.info.dtype.float().ok_or_else(|| {
            Error::unsupported(
                tensor.path(),
                format!(
                    "tensor `{}` is stored as {}, which is not a floating point type",
                    tensor.info.name, tensor.info.dtype
                ),
            )
        })?;
        let (rows, cols) = tensor.rows_cols();
        Ok(Self::whole(Home::Stored(tensor.clone(), float), rows, cols))
    }

    /// Computed values, `cols` in a row.
    pub fn held(values: Vec<f32>, cols: usize) -> Self {
        let rows = values.len() / cols.max(1);
        assert_eq!(values.len(), rows * cols, "rows are whole");
        Self::whole(Home::Held(values.into()), rows, cols)
    }

    fn whole(home: Home, rows: usize, cols: usize) -> Self {
        Self { home, rows, cols, origin: 0, row_stride: cols, col_stride: 1 }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The transpose.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `count` rows, from `first` on, `step` apart.
    #[must_use]
    pub fn pick_rows(self, first: usize, count: usize, step: usize) -> Self {
        assert!(count == 0 || first + (count - 1) * step < self.rows, "the rows picked lie in the matrix");
        Self { rows: count, origin: self.origin + first * self.row_stride, row_stride: self.row_stride * step, ..self }
    }

    /// `count` columns, from `first` on, `step` apart.
    #[must_use]
    pub fn pick_cols(self, first: usize, count: usize, step: usize) -> Self {
        self.transposed().pick_rows(first, count, step).transposed()
    }

    /// Decodes `rows × cols` row by row into `out`.
    ///
    /// # Errors
    /// When the file is no longer there as it was mapped.
    pub fn decode(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = cols.len();
        assert!(
            rows.end <= self.rows && cols.end <= self.cols && out.len() == rows.len() * width,
            "a block of the matrix"
        );
        if out.is_empty() {
            return Ok(());
        }
        let at = |row: usize, col: usize| self.origin + row * self.row_stride + col * self.col_stride;
        let elements = self.elements(at(rows.start, cols.start)..at(rows.end - 1, cols.end - 1) + 1)?;
        if self.col_stride == 1 {
            for (row, line) in rows.zip(out.chunks_exact_mut(width)) {
                elements.run(self.origin + row * self.row_stride + cols.start, line);
            }
        } else if self.row_stride == 1 {
            // A transposed factor: whole columns lie together.
            let mut column = vec![0.0; rows.len()];
            for (at, col) in cols.enumerate() {
                elements.run(self.origin + rows.start + col * self.col_stride, &mut column);
                out.iter_mut().skip(at).step_by(width).zip(&column).for_each(|(to, from)| *to = *from);
            }
        } else if self.col_stride >= SCATTERED {
            for (row, line) in rows.zip(out.chunks_exact_mut(width)) {
                let first = self.origin + row * self.row_stride + cols.start * self.col_stride;
                for (at, value) in line.iter_mut().enumerate() {
                    elements.run(first + at * self.col_stride, std::slice::from_mut(value));
                }
            }
        } else {
            // One expert's columns between those of the others.
            let mut span = vec![0.0; (width - 1) * self.col_stride + 1];
            for (row, line) in rows.zip(out.chunks_exact_mut(width)) {
                elements.run(self.origin + row * self.row_stride + cols.start * self.col_stride, &mut span);
                line.iter_mut().zip(span.iter().step_by(self.col_stride)).for_each(|(to, from)| *to = *from);
            }
        }
        Ok(())
    }

    /// The whole matrix in f32. For small things only: vectors, factors of one module.
    ///
    /// # Errors
    /// As [`Factor::decode`].
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.decode(0..self.rows, 0..self.cols, &mut out)?;
        Ok(out)
    }

    /// The file it lies in, if it lies in one.
    pub fn path(&self) -> Option<&Path> {
        match &self.home {
            Home::Stored(tensor, _) => Some(tensor.path()),
            Home::Held(_) => None,
        }
    }

    /// Says that it is no longer read: mapped pages may go.
    pub fn release(&self) {
        if let Home::Stored(tensor, _) = &self.home {
            tensor.map.release(tensor.start, tensor.info.bytes);
        }
    }

    /// The elements behind it, at least those of `span`.
    fn elements(&self, span: Range<usize>) -> Result<Elements<'_>> {
        Ok(match &self.home {
            Home::Stored(tensor, float) => {
                let width = float.bytes();
                let bytes = tensor.read((span.start * width) as u64, (span.len() * width) as u64)?;
                Elements::Stored(bytes, *float, span.start)
            }
            Home::Held(values) => Elements::Held(values),
        })
    }
}

/// The elements behind a view, ready to be read.
enum Elements<'a> {
    /// Those from an element on.
    Stored(Cow<'a, [u8]>, Float, usize),
    Held(&'a [f32]),
}

impl Elements<'_> {
    /// Decodes neighbours from element `first` on.
    fn run(&self, first: usize, out: &mut [f32]) {
        match self {
            Self::Stored(data, float, start) => {
                let (width, first) = (float.bytes(), first - start);
                float.decode(&data[first * width..(first + out.len()) * width], out);
            }
            Self::Held(values) => out.copy_from_slice(&values[first..first + out.len()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computed_values_are_seen_through_the_same_views() {
        let factor = Factor::held((0..12).map(|value| value as f32).collect(), 4);
        assert_eq!(factor.shape(), (3, 4));
        assert_eq!(
            factor.clone().transposed().pick_rows(1, 2, 2).to_vec().expect("held"),
            [1.0, 5.0, 9.0, 3.0, 7.0, 11.0]
        );
        assert_eq!(factor.pick_cols(0, 2, 3).to_vec().expect("held"), [0.0, 3.0, 4.0, 7.0, 8.0, 11.0]);
    }
}
