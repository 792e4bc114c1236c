//! Dense kernels by the system's OpenBLAS, through ndarray-linalg.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};
use ndarray_linalg::{EigValsh, Eigh, JobSvd, QR, SVDDC, UPLO};

/// out = left · right, or out += left · right.
pub fn multiply_into(
    mut out: ArrayViewMut2<'_, f32>,
    add: bool,
    left: ArrayView2<'_, f32>,
    right: ArrayView2<'_, f32>,
) {
    general_mat_mul(1.0, &left, &right, if add { 1.0 } else { 0.0 }, &mut out);
}

/// left · right in f64.
pub fn multiply_f64(left: ArrayView2<'_, f64>, right: ArrayView2<'_, f64>) -> Array2<f64> {
    left.dot(&right)
}

/// Thin QR: orthonormal columns and the upper triangle.
pub fn qr(matrix: ArrayView2<'_, f64>) -> (Array2<f64>, Array2<f64>) {
    matrix.to_owned().qr().expect("Householder reflections exist for every matrix")
}

/// Thin QR in f32.
pub fn qr_f32(matrix: ArrayView2<'_, f32>) -> (Array2<f32>, Array2<f32>) {
    matrix.to_owned().qr().expect("Householder reflections exist for every matrix")
}

/// Thin SVD: U, σ in descending order, Vᵀ; `None` if the iteration does not converge, as with values that are not finite.
pub fn svd(matrix: ArrayView2<'_, f64>) -> Option<(Array2<f64>, Array1<f64>, Array2<f64>)> {
    let (u, values, vt) = matrix.to_owned().svddc(JobSvd::Some).ok()?;
    Some((u?, values, vt?))
}

/// Eigenvalues in ascending order and eigenvectors in columns of a symmetric matrix, of which the lower triangle is read.
pub fn symmetric_eigen(matrix: ArrayView2<'_, f64>) -> Option<(Array1<f64>, Array2<f64>)> {
    matrix.to_owned().eigh(UPLO::Lower).ok()
}

/// Eigenvalues in ascending order of a symmetric matrix, of which the lower triangle is read.
pub fn symmetric_values(matrix: ArrayView2<'_, f64>) -> Option<Vec<f64>> {
    matrix.eigvalsh(UPLO::Lower).ok().map(|values| values.to_vec())
}
