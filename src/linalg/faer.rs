//! Dense kernels by faer: no system library, the same bits for any number of threads (one is used).

use faer::linalg::matmul::matmul;

use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par, Side};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2};

/// out = left · right, or out += left · right.
pub fn multiply_into(
    mut out: ArrayViewMut2<'_, f32>,
    add: bool,
    left: ArrayView2<'_, f32>,
    right: ArrayView2<'_, f32>,
) {
    let accumulate = if add { Accum::Add } else { Accum::Replace };
    let (rows, cols) = out.dim();
    let target = MatMut::from_row_major_slice_mut(out.as_slice_mut().expect("results are whole matrices"), rows, cols);
    let (left, right) = (Layout::of(left), Layout::of(right));
    matmul(target, accumulate, left.mat(), right.mat(), 1.0, Par::Seq);
}

/// left · right in f64.
pub fn multiply_f64(left: ArrayView2<'_, f64>, right: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut product = Array2::zeros((left.nrows(), right.ncols()));
    let (rows, cols) = product.dim();
    let target = MatMut::from_row_major_slice_mut(product.as_slice_mut().expect("just made"), rows, cols);
    let (left, right) = (Layout::of(left), Layout::of(right));
    matmul(target, Accum::Replace, left.mat(), right.mat(), 1.0, Par::Seq);
    product
}

/// Thin QR: orthonormal columns and the upper triangle.
pub fn qr(matrix: ArrayView2<'_, f64>) -> (Array2<f64>, Array2<f64>) {
    thin_qr(matrix)
}

/// Thin QR in f32.
pub fn qr_f32(matrix: ArrayView2<'_, f32>) -> (Array2<f32>, Array2<f32>) {
    thin_qr(matrix)
}

fn thin_qr<T: RealField + Copy>(matrix: ArrayView2<'_, T>) -> (Array2<T>, Array2<T>) {
    let qr = Layout::of(matrix).mat().qr();
    (array(qr.compute_thin_Q().as_ref()), array(qr.thin_R()))
}

/// Thin SVD: U, σ in descending order, Vᵀ; `None` if the iteration does not converge, as with values that are not finite.
pub fn svd(matrix: ArrayView2<'_, f64>) -> Option<(Array2<f64>, Array1<f64>, Array2<f64>)> {
    let svd = Layout::of(matrix).mat().thin_svd().ok()?;
    let values = svd.S().column_vector().iter().copied().collect();
    Some((array(svd.U()), values, array(svd.V().transpose())))
}

/// Eigenvalues in ascending order and eigenvectors in columns of a symmetric matrix, of which the lower triangle is read.
pub fn symmetric_eigen(matrix: ArrayView2<'_, f64>) -> Option<(Array1<f64>, Array2<f64>)> {
    let eigen = Layout::of(matrix).mat().self_adjoint_eigen(Side::Lower).ok()?;
    Some((eigen.S().column_vector().iter().copied().collect(), array(eigen.U())))
}

/// Eigenvalues in ascending order of a symmetric matrix, of which the lower triangle is read.
pub fn symmetric_values(matrix: ArrayView2<'_, f64>) -> Option<Vec<f64>> {
    Layout::of(matrix).mat().self_adjoint_eigenvalues(Side::Lower).ok()
}

/// A matrix in row-major order, or one whose transpose is.
struct Layout<'a, T> {
    values: CowArray<'a, T, Ix2>,
    transposed: bool,
}

impl<'a, T: Copy> Layout<'a, T> {
    fn of(matrix: ArrayView2<'a, T>) -> Self {
        let transposed = !matrix.is_standard_layout() && matrix.t().is_standard_layout();
        let matrix = if transposed { matrix.reversed_axes() } else { matrix };
        let values = if matrix.is_standard_layout() {
            CowArray::from(matrix)
        } else {
            CowArray::from(matrix.as_standard_layout().into_owned())
        };
        Self { values, transposed }
    }

    fn mat(&self) -> MatRef<'_, T> {
        let (rows, cols) = self.values.dim();
        let slice = self.values.as_slice().expect("the layout was made so");
        let mat = MatRef::from_row_major_slice(slice, rows, cols);
        if self.transposed { mat.transpose() } else { mat }
    }
}

/// faer's matrices are column-major.
fn array<T: Copy>(mat: MatRef<'_, T>) -> Array2<T> {
    Array2::from_shape_fn((mat.nrows(), mat.ncols()), |(row, col)| mat[(row, col)])
}
