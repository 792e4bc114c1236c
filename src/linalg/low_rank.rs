//! A matrix known by its factors.
//!
//! Gram identity: ‖s·B·A‖² = s²·⟨BᵀB, A·Aᵀ⟩. Recompression: with B = Q_B·R_B and Aᵀ = Q_A·R_A the singular values of B·A are those of the
//! small core R_B·R_Aᵀ, so the product is never formed; all of it in f64, and exact to its rounding.

use ndarray::{Array2, Axis, concatenate};

use super::decomposition::{Decomposition, LONG};
use super::operator::LinearOperator;
use super::{Matrix, MatrixView};
use super::{backend, inner};
use crate::error::Result;
use crate::interrupt;

/// scale · up · down, with up `[out, r]` and down `[r, in]`.
#[derive(Debug, Clone)]
pub struct LowRank {
    up: Matrix,
    down: Matrix,
    scale: f64,
}

impl LowRank {
    /// The product of `up` and `down`, whose inner dimensions must agree.
    pub fn new(up: Matrix, down: Matrix, scale: f64) -> Self {
        assert_eq!(up.ncols(), down.nrows(), "inner dimensions agree");
        Self { up, down, scale }
    }

    /// As [`LowRank::new`], from rows one after the other: `up` with `rank` columns, `down` with `rank` rows.
    pub fn from_rows(up: Vec<f32>, down: Vec<f32>, rank: usize, scale: f64) -> Self {
        let (rows, cols) = (up.len() / rank.max(1), down.len() / rank.max(1));
        let matrix = |shape, values| Array2::from_shape_vec(shape, values).expect("whole rows are given");
        Self::new(matrix((rows, rank), up), matrix((rank, cols), down), scale)
    }

    /// The inner dimension.
    pub fn rank(&self) -> usize {
        self.down.nrows()
    }

    /// The factor in front of the product.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// `up`, row by row.
    pub fn up(&self) -> Vec<f32> {
        self.up.iter().copied().collect()
    }

    /// `down`, row by row.
    pub fn down(&self) -> Vec<f32> {
        self.down.iter().copied().collect()
    }

    /// The sum of products of one outer shape, as one product of scale 1: factors side by side, scales folded into `up`.
    ///
    /// A folded scale rounds `up` once, in f32.
    pub fn sum(terms: &[Self]) -> Self {
        let ups: Vec<Matrix> = terms.iter().map(|term| scaled(&term.up, term.scale)).collect();
        let ups: Vec<MatrixView<'_>> = ups.iter().map(|up| up.view()).collect();
        let downs: Vec<MatrixView<'_>> = terms.iter().map(|term| term.down.view()).collect();
        let up = concatenate(Axis(1), &ups).expect("terms have one outer shape");
        let down = concatenate(Axis(0), &downs).expect("terms have one outer shape");
        Self::new(up, down, 1.0)
    }

    /// The singular value decomposition, in f64, without forming the product: of the small core that is left when both factors
    /// are written as orthonormal columns times a square. Those columns come from the Gram matrices of the factors, or, where a
    /// factor is too ill-conditioned for its square, from QR.
    ///
    /// # Errors
    /// When the run is interrupted.
    pub fn decompose(&self) -> Result<Decomposition> {
        let (rows, cols) = self.shape();
        if rows.max(cols).saturating_mul(self.rank()).saturating_mul(self.rank()) < LONG {
            interrupt::check()?;
            return Ok(self.decomposed());
        }
        let own = self.clone();
        interrupt::while_wanted(move || own.decomposed())
    }

    fn decomposed(&self) -> Decomposition {
        let (rows, cols) = self.shape();
        if self.rank() >= rows.min(cols) {
            let dense = self.product() * self.scale;
            return Decomposition::of_dense(&dense);
        }
        if let (Some((left, left_core)), Some((right, right_core))) =
            (whitened(self.up.view()), whitened(self.down.t()))
        {
            let core = backend::multiply_f64(left_core.view(), right_core.t()) * self.scale;
            let inner = Decomposition::of_dense(&core);
            return inner.turned(self.up.clone(), &left, self.down.t().as_standard_layout().into_owned(), &right);
        }
        let (up, down) = (wide(&self.up), wide(&self.down));
        let (left, left_core) = backend::qr(up.view());
        let (right, right_core) = backend::qr(down.t());
        let core = backend::multiply_f64(left_core.view(), right_core.t()) * self.scale;
        Decomposition::of_dense(&core).rotated(&left, &right)
    }

    /// ‖self − other‖, by QR of the factors side by side: nothing cancels but what is equal.
    pub fn distance(&self, other: &Self) -> f64 {
        let negated = Self { scale: -other.scale, ..other.clone() };
        let up =
            concatenate(Axis(1), &[(wide(&self.up) * self.scale).view(), (wide(&negated.up) * negated.scale).view()]);
        let down = concatenate(Axis(0), &[wide(&self.down).view(), wide(&negated.down).view()]);
        let (up, down) = (up.expect("outer shapes agree"), down.expect("outer shapes agree"));
        let (_, left) = backend::qr(up.view());
        let (_, right) = backend::qr(down.t());
        backend::multiply_f64(left.view(), right.t()).iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    fn product(&self) -> Array2<f64> {
        backend::multiply_f64(wide(&self.up).view(), wide(&self.down).view())
    }
}

impl LinearOperator for LowRank {
    fn shape(&self) -> (usize, usize) {
        (self.up.nrows(), self.down.ncols())
    }

    fn apply(&self, x: MatrixView<'_>) -> Result<Matrix> {
        let inner = multiply(self.down.view(), x);
        Ok(multiply(self.up.view(), inner.view()) * self.scale as f32)
    }

    fn apply_transposed(&self, y: MatrixView<'_>) -> Result<Matrix> {
        let inner = multiply(self.up.t(), y);
        Ok(multiply(self.down.t(), inner.view()) * self.scale as f32)
    }

    fn frobenius_squared(&self) -> Result<f64> {
        let (up, down) = (inner(self.up.view(), self.up.view()), inner(self.down.t(), self.down.t()));
        Ok(self.scale * self.scale * (&up * &down).sum())
    }

    /// By the Gram identity in f64 where its terms do not cancel, otherwise by [`LowRank::distance`].
    fn residual_squared(&self, up: MatrixView<'_>, down: MatrixView<'_>) -> Result<f64> {
        type Factors<'a> = (MatrixView<'a>, MatrixView<'a>);
        let product = |left: Factors<'_>, right: Factors<'_>| (inner(left.0, right.0) * inner(left.1, right.1)).sum();
        let size = |(up, down): Factors<'_>| {
            let squares = |factor: MatrixView<'_>| factor.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            squares(up) * squares(down)
        };
        let (own, other) = ((self.up.view(), self.down.t()), (up, down.t()));
        let square = self.scale * self.scale;
        let squared = square * product(own, own) + product(other, other) - 2.0 * self.scale * product(own, other);
        if squared < CANCELLED * (square * size(own) + size(other)) {
            let (own, other) = (self.clone(), Self::new(up.to_owned(), down.to_owned(), 1.0));
            let distance = interrupt::while_wanted(move || own.distance(&other))?;
            return Ok(distance * distance);
        }
        Ok(squared)
    }

    fn dense(&self) -> Result<Array2<f64>> {
        Ok(self.product() * self.scale)
    }
}

/// Share of what the terms of the Gram identity may add up to, below which their difference has lost too many of its digits.
const CANCELLED: f64 = 1e-6;

/// Smallest ratio of eigenvalues of a Gram matrix whose small ones are still right to 1e-8.
const WELL_CONDITIONED: f64 = 1e-8;

/// With X = Q·C for orthonormal Q: the mix with Q = X·mix, and C; from XᵀX = E·Λ·Eᵀ. `None` if X is ill-conditioned.
fn whitened(x: MatrixView<'_>) -> Option<(Array2<f64>, Array2<f64>)> {
    let (values, vectors) = backend::symmetric_eigen(inner(x, x).view())?;
    let (smallest, largest) = (values.first().copied()?, values.last().copied()?);
    let usable = largest.is_finite() && smallest > WELL_CONDITIONED * largest;
    if !usable {
        return None;
    }
    let roots = values.mapv(f64::sqrt);
    Some((&vectors / &roots, (&vectors * &roots).reversed_axes()))
}

fn multiply(left: MatrixView<'_>, right: MatrixView<'_>) -> Matrix {
    let mut product = Matrix::zeros((left.nrows(), right.ncols()));
    backend::multiply_into(product.view_mut(), false, left, right);
    product
}

fn wide(matrix: &Matrix) -> Array2<f64> {
    matrix.mapv(f64::from)
}

fn scaled(matrix: &Matrix, scale: f64) -> Matrix {
    matrix.mapv(|value| (f64::from(value) * scale) as f32)
}
