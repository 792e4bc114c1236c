//! Dense products by the system's OpenBLAS, through ndarray-linalg.

use ndarray::{Array2, ArrayView2};
// Only naming the crate links its BLAS, which `dot` then uses.
use ndarray_linalg as _;

/// left · right.
pub fn multiply(left: ArrayView2<'_, f32>, right: ArrayView2<'_, f32>) -> Array2<f32> {
    left.dot(&right)
}
