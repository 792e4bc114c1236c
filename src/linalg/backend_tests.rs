//! The two backends against each other: compiled with the feature `lapack` only, where both are at hand.

use ndarray::{Array2, s};

use super::{backend, faer_backend};
use crate::tensor::random_bits;

const SHAPES: [(usize, usize); 4] = [(40, 40), (90, 33), (33, 90), (300, 7)];

fn matrix(rows: usize, cols: usize) -> Array2<f64> {
    let value = |at: usize| f64::from(random_bits(5, at as u64)) / f64::from(u32::MAX) - 0.5;
    Array2::from_shape_fn((rows, cols), |(row, col)| value(row * cols + col))
}

#[track_caller]
fn assert_close(left: &Array2<f64>, right: &Array2<f64>, tolerance: f64) {
    assert_eq!(left.dim(), right.dim());
    let worst = left.iter().zip(right).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "off by {worst:e}");
}

#[test]
fn products_agree() {
    for (rows, cols) in SHAPES {
        let matrix = matrix(rows, cols);
        assert_close(
            &backend::multiply_f64(matrix.t(), matrix.view()),
            &faer_backend::multiply_f64(matrix.t(), matrix.view()),
            1e-12,
        );
        let narrow = matrix.mapv(|value| value as f32);
        let (mut ours, mut theirs) = (Array2::ones((cols, cols)), Array2::ones((cols, cols)));
        backend::multiply_into(ours.view_mut(), true, narrow.t(), narrow.view());
        faer_backend::multiply_into(theirs.view_mut(), true, narrow.t(), narrow.view());
        assert_close(&ours.mapv(f64::from), &theirs.mapv(f64::from), 1e-4);
    }
}

#[test]
fn factorisations_agree_but_for_signs() {
    for (rows, cols) in SHAPES {
        let matrix = matrix(rows, cols);
        let (ours, theirs) = (backend::svd(matrix.view()).unwrap(), faer_backend::svd(matrix.view()).unwrap());
        assert!(ours.1.iter().zip(&theirs.1).all(|(l, r)| (l - r).abs() <= 1e-12 * r.max(1.0)));
        let leading = |(u, sigma, vt): &(Array2<f64>, ndarray::Array1<f64>, Array2<f64>)| {
            let up = &u.slice(s![.., ..3]) * &sigma.slice(s![..3]);
            up.dot(&vt.slice(s![..3, ..]))
        };
        assert_close(&leading(&ours), &leading(&theirs), 1e-10);
        let narrow = matrix.mapv(|value| value as f32);
        let (ours, theirs) = (backend::qr_f32(narrow.view()), faer_backend::qr_f32(narrow.view()));
        assert_close(&ours.0.dot(&ours.1).mapv(f64::from), &theirs.0.dot(&theirs.1).mapv(f64::from), 1e-5);
        let (ours, theirs) = (backend::qr(matrix.view()), faer_backend::qr(matrix.view()));
        assert_close(&ours.0.dot(&ours.1), &theirs.0.dot(&theirs.1), 1e-12);
        let square = matrix.t().dot(&matrix);
        let (ours, theirs) =
            (backend::symmetric_eigen(square.view()).unwrap(), faer_backend::symmetric_eigen(square.view()).unwrap());
        assert!(ours.0.iter().zip(&theirs.0).all(|(l, r)| (l - r).abs() <= 1e-10));
        let values = faer_backend::symmetric_values(square.view()).unwrap();
        assert!(ours.0.iter().zip(&values).all(|(l, r)| (l - r).abs() <= 1e-10));
    }
}
