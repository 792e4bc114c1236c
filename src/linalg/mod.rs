//! Matrices known by their factors, and operators one can multiply by without forming them.
//!
//! The only room that knows ndarray and its backends: `faer` by default, `ndarray-linalg` on OpenBLAS with the cargo feature
//! `lapack`. Formulas: `docs/architecture.md`; the Gram identity ‖s·B·A‖² = s² · ⟨BᵀB, A·Aᵀ⟩ avoids the product.

#[cfg(not(feature = "lapack"))]
#[path = "faer.rs"]
mod backend;
#[cfg(feature = "lapack")]
#[path = "lapack.rs"]
mod backend;

use ndarray::{Array2, ArrayView2};

/// Rows that are multiplied in f32 before their sum goes on in f64.
const GRAM_ROWS: usize = 4096;

/// A linear map that can be applied without being formed.
pub trait LinearOperator {
    /// `[out, in]`.
    fn shape(&self) -> (usize, usize);

    /// `[in, k]` → `[out, k]`.
    fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32>;

    /// `[out, k]` → `[in, k]`.
    fn apply_transposed(&self, y: ArrayView2<'_, f32>) -> Array2<f32>;

    /// ‖·‖² in the Frobenius norm, summed in f64.
    fn frobenius_squared(&self) -> f64;
}

/// scale · up · down, with up `[out, r]` and down `[r, in]`.
#[derive(Debug, Clone)]
pub struct LowRank {
    up: Array2<f32>,
    down: Array2<f32>,
    scale: f64,
}

impl LowRank {
    /// The product of `up` and `down`, whose inner dimensions must agree.
    pub fn new(up: Array2<f32>, down: Array2<f32>, scale: f64) -> Self {
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
}

impl LinearOperator for LowRank {
    fn shape(&self) -> (usize, usize) {
        (self.up.nrows(), self.down.ncols())
    }

    fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let inner = backend::multiply(self.down.view(), x);
        backend::multiply(self.up.view(), inner.view()) * self.scale as f32
    }

    fn apply_transposed(&self, y: ArrayView2<'_, f32>) -> Array2<f32> {
        let inner = backend::multiply(self.up.t(), y);
        backend::multiply(self.down.t(), inner.view()) * self.scale as f32
    }

    fn frobenius_squared(&self) -> f64 {
        let (up, down) = (gram(self.up.view()), gram(self.down.t()));
        self.scale * self.scale * (&up * &down).sum()
    }
}

/// XᵀX, products in f32 over blocks of rows, blocks summed in f64.
fn gram(x: ArrayView2<'_, f32>) -> Array2<f64> {
    let mut sum = Array2::zeros((x.ncols(), x.ncols()));
    for block in x.axis_chunks_iter(ndarray::Axis(0), GRAM_ROWS) {
        sum += &backend::multiply(block.t(), block).mapv(f64::from);
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
            prop_assert!((low_rank.frobenius_squared() - squared).abs() <= 1e-4 * squared.max(1e-3));
            let x = probes.slice(ndarray::s![..down.ncols(), ..]);
            prop_assert!(close(&low_rank.apply(x), &product.dot(&x.mapv(f64::from))));
            let y = probes.slice(ndarray::s![..up.nrows(), ..]);
            prop_assert!(close(&low_rank.apply_transposed(y), &product.t().dot(&y.mapv(f64::from))));
        }
    }
}
