//! A factor matrix as it lies in a mapped file: transposed, or one expert's slice of a stack, without a copy.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::Float;

/// A strided matrix view over a stored tensor. Strides and the origin count elements.
#[derive(Debug, Clone)]
pub struct Factor {
    tensor: Stored,
    float: Float,
    rows: usize,
    cols: usize,
    origin: usize,
    row_stride: usize,
    col_stride: usize,
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
        let (rows, cols) = tensor.info.shape.rows_cols();
        let narrow =
            |count: u64| usize::try_from(count).expect("a mapped tensor has fewer elements than the address space");
        let (rows, cols) = (narrow(rows), narrow(cols));
        Ok(Self { tensor: tensor.clone(), float, rows, cols, origin: 0, row_stride: cols, col_stride: 1 })
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
        let data = self.tensor.view()?.data;
        if self.col_stride == 1 {
            for (row, line) in rows.zip(out.chunks_exact_mut(width)) {
                self.run(data, self.origin + row * self.row_stride + cols.start, line);
            }
        } else if self.row_stride == 1 {
            // A transposed factor: whole columns lie together.
            let mut column = vec![0.0; rows.len()];
            for (at, col) in cols.enumerate() {
                self.run(data, self.origin + rows.start + col * self.col_stride, &mut column);
                out.iter_mut().skip(at).step_by(width).zip(&column).for_each(|(to, from)| *to = *from);
            }
        } else {
            // One expert's columns between those of the others.
            let mut span = vec![0.0; (width - 1) * self.col_stride + 1];
            for (row, line) in rows.zip(out.chunks_exact_mut(width)) {
                self.run(data, self.origin + row * self.row_stride + cols.start * self.col_stride, &mut span);
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

    /// The tensor behind the view.
    pub fn tensor(&self) -> &Stored {
        &self.tensor
    }

    /// Decodes neighbours from element `first` on.
    fn run(&self, data: &[u8], first: usize, out: &mut [f32]) {
        let width = self.float.bytes();
        self.float.decode(&data[first * width..(first + out.len()) * width], out);
    }
}
