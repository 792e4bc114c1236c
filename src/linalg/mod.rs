//! Matrices known by their factors, operators one can multiply by without forming them, and their truncated SVD.
//!
//! The only room that knows ndarray and its backends: `faer` by default, `ndarray-linalg` on OpenBLAS with the cargo feature
//! `lapack`. Formulas and sources stand in the files; where a result is an approximation it comes with a [`Certificate`].

#[cfg(not(feature = "lapack"))]
#[path = "faer.rs"]
mod backend;
#[cfg(feature = "lapack")]
#[path = "lapack.rs"]
mod backend;
#[cfg(all(test, feature = "lapack"))]
mod backend_tests;
mod budget;
mod decomposition;
#[cfg(all(test, feature = "lapack"))]
#[path = "faer.rs"]
mod faer_backend;
mod intruders;
mod krylov;
#[cfg(test)]
mod krylov_tests;
mod leading;
mod low_rank;
mod operator;
mod policy;

use ndarray::{Array2, ArrayView2};

pub use budget::{Allocation, Spectrum, allocate};
pub use decomposition::{Certificate, Decomposition, Truncated};
pub use intruders::{Foreign, Intruder, intruders};
pub use krylov::{Compute, decompose, truncated_svd};
pub use leading::{Part, first_columns, leading};
pub use low_rank::LowRank;
pub use operator::{Held, LinearOperator, RowSource, Streamed, held_bytes};
pub use policy::{RankPolicy, RankRule};

/// A matrix in f32, row by row.
pub type Matrix = Array2<f32>;

/// A matrix in f64.
pub type Dense = Array2<f64>;

/// A view of a [`Matrix`].
pub type MatrixView<'a> = ArrayView2<'a, f32>;

/// Unit roundoff of f32.
pub const F32_ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// Rows that are widened and multiplied at once, so that they stay in the cache.
const INNER_ROWS: usize = 512;

/// All singular values of a matrix given row by row, largest first; `None` if it is not finite.
pub fn singular_values(values: &[f32], rows: usize, cols: usize) -> Option<Vec<f64>> {
    let matrix = ArrayView2::from_shape((rows, cols), values).ok()?.mapv(f64::from);
    backend::svd(matrix.view()).map(|(_, values, _)| values.to_vec())
}

/// leftᵀ · right in f64, of matrices with many rows and few columns.
fn inner(left: MatrixView<'_>, right: MatrixView<'_>) -> Array2<f64> {
    let mut sum = Array2::zeros((left.ncols(), right.ncols()));
    for first in (0..left.nrows()).step_by(INNER_ROWS) {
        let rows = ndarray::s![first..left.nrows().min(first + INNER_ROWS), ..];
        let (left, right) = (left.slice(rows).mapv(f64::from), right.slice(rows).mapv(f64::from));
        sum += &backend::multiply_f64(left.t(), right.view());
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matrix(rows: usize, cols: usize) -> impl Strategy<Value = Array2<f32>> {
        prop::collection::vec(-2.0_f32..2.0, rows * cols)
            .prop_map(move |values| Array2::from_shape_vec((rows, cols), values).expect("sizes agree"))
    }

    fn factors() -> impl Strategy<Value = (Array2<f32>, Array2<f32>, Array2<f32>, f64)> {
        (1_usize..40, 1_usize..40, 1_usize..9, 1_usize..5).prop_flat_map(|(out, inputs, rank, probes)| {
            (matrix(out, rank), matrix(rank, inputs), matrix(inputs.max(out), probes), -3.0..3.0)
        })
    }

    /// The product by the definition, in f64.
    fn dense(up: &Array2<f32>, down: &Array2<f32>, scale: f64) -> Array2<f64> {
        let wide = |x: &Array2<f32>| x.mapv(f64::from);
        Array2::from_shape_fn((up.nrows(), down.ncols()), |(row, col)| {
            scale * wide(up).row(row).iter().zip(wide(down).column(col)).map(|(b, a)| b * a).sum::<f64>()
        })
    }

    fn close(left: &Array2<f32>, right: &Array2<f64>) -> bool {
        let size = right.iter().fold(1.0_f64, |size, value| size.max(value.abs()));
        left.dim() == right.dim() && left.iter().zip(right).all(|(l, r)| (f64::from(*l) - r).abs() <= 1e-4 * size)
    }

    proptest! {
        #[test]
        fn the_factors_act_as_their_product((up, down, probes, scale) in factors()) {
            let product = dense(&up, &down, scale);
            let squared: f64 = product.iter().map(|value| value * value).sum();
            let low_rank = LowRank::new(up.clone(), down.clone(), scale);
            prop_assert!((low_rank.frobenius_squared().unwrap() - squared).abs() <= 1e-4 * squared.max(1e-3));
            let x = probes.slice(ndarray::s![..down.ncols(), ..]);
            prop_assert!(close(&low_rank.apply(x).unwrap(), &product.dot(&x.mapv(f64::from))));
            let y = probes.slice(ndarray::s![..up.nrows(), ..]);
            prop_assert!(close(&low_rank.apply_transposed(y).unwrap(), &product.t().dot(&y.mapv(f64::from))));
        }
    }
}
