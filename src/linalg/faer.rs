//! Dense products by faer: no system library, the same bits for any number of threads (one is used).

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2};

/// left · right.
pub fn multiply(left: ArrayView2<'_, f32>, right: ArrayView2<'_, f32>) -> Array2<f32> {
    let (rows, cols) = (left.nrows(), right.ncols());
    let (left, right) = (left.as_standard_layout(), right.as_standard_layout());
    let mut product = Array2::zeros((rows, cols));
    let inner = left.ncols();
    let in_order = "a standard layout is one slice";
    let target = MatMut::from_row_major_slice_mut(product.as_slice_mut().expect(in_order), rows, cols);
    let left = MatRef::from_row_major_slice(left.as_slice().expect(in_order), rows, inner);
    let right = MatRef::from_row_major_slice(right.as_slice().expect(in_order), inner, cols);
    matmul(target, Accum::Replace, left, right, 1.0, Par::Seq);
    product
}
