//! Matrices that can be multiplied by without being formed: the only thing the decompositions ask for.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

use super::backend;
use super::{Matrix, MatrixView};
use crate::error::Result;
use crate::interrupt;
use crate::tensor::{sum_of_squared_differences, sum_of_squares};

/// Elements of one band of rows that is decoded and multiplied at once: 512 KiB of f32, half of a second-level cache.
/// Part of the definition of every result: sums over rows run band by band, whatever the memory.
const BAND_ELEMENTS: usize = 128 << 10;

/// Fewest rows in a band: with fewer, a product of matrices is as slow as one with vectors.
const MIN_BAND_ROWS: usize = 64;

/// A linear map that can be applied without being formed.
pub trait LinearOperator: Sync {
    /// `[out, in]`.
    fn shape(&self) -> (usize, usize);

    /// `[in, k]` → `[out, k]`.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn apply(&self, x: MatrixView<'_>) -> Result<Matrix>;

    /// `[out, k]` → `[in, k]`.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn apply_transposed(&self, y: MatrixView<'_>) -> Result<Matrix>;

    /// ‖·‖² in the Frobenius norm, summed in f64.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn frobenius_squared(&self) -> Result<f64>;

    /// ‖A‖² and Aᵀ·y.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn sketch(&self, y: MatrixView<'_>) -> Result<(f64, Matrix)> {
        Ok((self.frobenius_squared()?, self.apply_transposed(y)?))
    }

    /// With C = scale · A: C·x and Cᵀ·C·x.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn apply_gram(&self, x: MatrixView<'_>, scale: f32) -> Result<(Matrix, Matrix)> {
        let image = self.apply(x)? * scale;
        let back = self.apply_transposed(image.view())? * scale;
        Ok((image, back))
    }

    /// ‖A − up · down‖² with up `[out, k]` and down `[k, in]`: formed, not derived, so that nothing cancels.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn residual_squared(&self, up: MatrixView<'_>, down: MatrixView<'_>) -> Result<f64>;

    /// All of it, for matrices that are small or whose rank is not.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn dense(&self) -> Result<Array2<f64>>;

    /// The same matrix with its elements in memory, if they have to be read for every product and are few enough to be held.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn held(&self) -> Result<Option<Streamed<Held>>> {
        Ok(None)
    }
}

/// Elements of a matrix up to which it is held while it is decomposed: 16 MiB of f32.
const HELD_ELEMENTS: usize = 4 << 20;

/// Bytes of a matrix of this shape while it is decomposed, if it is held.
pub fn held_bytes(rows: usize, cols: usize) -> Option<usize> {
    rows.checked_mul(cols).filter(|elements| *elements <= HELD_ELEMENTS).map(|elements| elements * size_of::<f32>())
}

/// A matrix in memory.
pub struct Held(Matrix);

impl Held {
    /// This matrix.
    #[cfg(test)]
    pub(super) fn of(matrix: Matrix) -> Self {
        Self(matrix)
    }
}

impl RowSource for Held {
    fn shape(&self) -> (usize, usize) {
        self.0.dim()
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(self.rows(rows).expect("all rows are held"));
        Ok(())
    }

    fn rows(&self, rows: Range<usize>) -> Option<&[f32]> {
        let cols = self.0.ncols();
        self.0.as_slice()?.get(rows.start * cols..rows.end * cols)
    }
}

/// A matrix that is read in bands of rows, any number of times, with the same values each time.
pub trait RowSource: Sync {
    /// Rows and columns.
    fn shape(&self) -> (usize, usize);

    /// Gives `rows`, row by row.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// `rows`, if they are in memory.
    fn rows(&self, _rows: Range<usize>) -> Option<&[f32]> {
        None
    }
}

/// A [`RowSource`] as an operator: nothing but one band of it is held.
pub struct Streamed<S>(pub S);

impl<S: RowSource> Streamed<S> {
    /// Calls `each` with every band of rows.
    fn bands(&self, mut each: impl FnMut(Range<usize>, MatrixView<'_>) -> Result<()>) -> Result<()> {
        let (rows, cols) = self.0.shape();
        let step = (BAND_ELEMENTS / cols.max(1)).max(MIN_BAND_ROWS);
        let mut buffer = Vec::new();
        for first in (0..rows).step_by(step) {
            interrupt::check()?;
            let band = first..rows.min(first + step);
            let values = match self.0.rows(band.clone()) {
                Some(values) => values,
                None => {
                    buffer.resize(band.len() * cols, 0.0);
                    self.0.read(band.clone(), &mut buffer)?;
                    &buffer
                }
            };
            let view = ArrayView2::from_shape((band.len(), cols), values).expect("the buffer was cut to size");
            each(band, view)?;
        }
        Ok(())
    }
}

impl<S: RowSource> LinearOperator for Streamed<S> {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn apply(&self, x: MatrixView<'_>) -> Result<Matrix> {
        let mut image = Matrix::zeros((self.shape().0, x.ncols()));
        self.bands(|rows, band| {
            backend::multiply_into(image.slice_mut(s![rows, ..]), false, band, x);
            Ok(())
        })?;
        Ok(image)
    }

    fn apply_transposed(&self, y: MatrixView<'_>) -> Result<Matrix> {
        Ok(self.sketch(y)?.1)
    }

    fn frobenius_squared(&self) -> Result<f64> {
        let mut squared = 0.0;
        self.bands(|_, band| {
            squared += sum_of_squares(flat(&band));
            Ok(())
        })?;
        Ok(squared)
    }

    fn sketch(&self, y: MatrixView<'_>) -> Result<(f64, Matrix)> {
        let (mut squared, mut back) = (0.0, Matrix::zeros((self.shape().1, y.ncols())));
        self.bands(|rows, band| {
            squared += sum_of_squares(flat(&band));
            backend::multiply_into(back.view_mut(), true, band.t(), y.slice(s![rows, ..]));
            Ok(())
        })?;
        Ok((squared, back))
    }

    fn apply_gram(&self, x: MatrixView<'_>, scale: f32) -> Result<(Matrix, Matrix)> {
        let (rows, cols) = self.shape();
        let (mut image, mut back) = (Matrix::zeros((rows, x.ncols())), Matrix::zeros((cols, x.ncols())));
        self.bands(|rows, band| {
            let mut part = image.slice_mut(s![rows, ..]);
            backend::multiply_into(part.view_mut(), false, band, x);
            part *= scale;
            backend::multiply_into(back.view_mut(), true, band.t(), part.view());
            Ok(())
        })?;
        Ok((image, back * scale))
    }

    fn residual_squared(&self, up: MatrixView<'_>, down: MatrixView<'_>) -> Result<f64> {
        let mut squared = 0.0;
        let mut product = Matrix::zeros((0, 0));
        self.bands(|rows, band| {
            if product.dim() != band.dim() {
                product = Matrix::zeros(band.dim());
            }
            backend::multiply_into(product.view_mut(), false, up.slice(s![rows, ..]), down);
            squared += sum_of_squared_differences(flat(&band), flat(&product.view()));
            Ok(())
        })?;
        Ok(squared)
    }

    fn dense(&self) -> Result<Array2<f64>> {
        let mut all = Array2::zeros(self.shape());
        self.bands(|rows, band| {
            all.slice_mut(s![rows, ..]).zip_mut_with(&band, |to, from| *to = f64::from(*from));
            Ok(())
        })?;
        Ok(all)
    }

    fn held(&self) -> Result<Option<Streamed<Held>>> {
        let (rows, cols) = self.shape();
        if held_bytes(rows, cols).is_none() || self.0.rows(0..rows).is_some() {
            return Ok(None);
        }
        let mut all = Matrix::zeros((rows, cols));
        self.bands(|rows, band| {
            all.slice_mut(s![rows, ..]).assign(&band);
            Ok(())
        })?;
        Ok(Some(Streamed(Held(all))))
    }
}

/// A band's values.
fn flat<'a>(matrix: &'a MatrixView<'_>) -> &'a [f32] {
    matrix.as_slice().expect("bands lie without gaps")
}
