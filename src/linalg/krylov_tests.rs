//! What a truncated SVD promises, held against full decompositions in f64.

use ndarray::{Array1, Array2, s};
use proptest::prelude::*;

use super::decomposition::Truncated;
use super::*;
use crate::error::Result;
use crate::tensor::{Float, random_bits};

/// A matrix that is held, read like one that is not.
struct Held(Matrix);

impl RowSource for Held {
    fn shape(&self) -> (usize, usize) {
        self.0.dim()
    }

    fn read(&self, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
        let wanted = self.0.slice(s![rows, ..]);
        out.iter_mut().zip(&wanted).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

fn noise(seed: u64, rows: usize, cols: usize) -> Array2<f64> {
    // A sum of uniform numbers is normal enough.
    let uniform = |at: u64| f64::from(random_bits(seed, at)) / f64::from(u32::MAX) - 0.5;
    Array2::from_shape_fn((rows, cols), |(row, col)| {
        let at = (row * cols + col) as u64 * 4;
        (0..4).map(|k| uniform(at + k)).sum()
    })
}

/// A matrix with these singular values.
fn with_spectrum(rows: usize, cols: usize, values: &[f64], seed: u64) -> Matrix {
    let count = values.len();
    let (left, _) = backend::qr(noise(seed, rows, count).view());
    let (right, _) = backend::qr(noise(!seed, cols, count).view());
    let scaled = &left * &Array1::from(values.to_vec());
    backend::multiply_f64(scaled.view(), right.t()).mapv(|value| value as f32)
}

fn truth(matrix: &Matrix) -> Vec<f64> {
    backend::svd(matrix.mapv(f64::from).view()).unwrap().1.to_vec()
}

/// ‖A − B·A‖ by the definition, in f64.
fn true_residual(matrix: &Matrix, found: &Truncated) -> f64 {
    let wide = |matrix: &Matrix| matrix.mapv(f64::from);
    let (rows, cols) = matrix.dim();
    let rank = found.rank();
    let up = Array2::from_shape_vec((rows, rank), found.factors.up()).unwrap();
    let down = Array2::from_shape_vec((rank, cols), found.factors.down()).unwrap();
    let product = backend::multiply_f64(wide(&up).view(), wide(&down).view());
    (wide(matrix) - product).iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn optimum(values: &[f64], rank: usize) -> f64 {
    values.iter().skip(rank).rev().map(|value| value * value).sum::<f64>().sqrt()
}

fn spectrum(kind: usize, count: usize) -> Vec<f64> {
    let value = |at: usize| {
        let at = at as f64;
        match kind {
            0 => 1.0,                            // flat
            1 => (at + 1.0).powf(-0.4),          // slow
            2 => 1.0 / (at + 1.0),               // decaying
            3 => (-0.2 * at).exp(),              // fast
            4 => f64::from(u8::from(at < 12.0)), // rank 12
            5 => {
                if at < 1.0 {
                    1.0
                } else {
                    3e-4 / at
                }
            } // one direction above all others
            _ => {
                if at < 20.0 {
                    1.0 - at * 1e-3
                } else {
                    0.05
                }
            } // a cluster above a floor
        }
    };
    (0..count).map(value).collect()
}

#[test]
fn every_kind_of_spectrum_is_cut_near_the_optimum() {
    let mut report = String::new();
    for (rows, cols) in [(400, 300), (300, 500), (900, 260)] {
        for kind in 0..7 {
            let matrix = with_spectrum(rows, cols, &spectrum(kind, rows.min(cols)), 7);
            let values = truth(&matrix);
            for rank in [4, 16, 24] {
                for (compute, tolerance) in [(Compute::Accurate, 1.001), (Compute::Fast, 1.01)] {
                    let rule = RankRule::new(RankPolicy::Rank(rank));
                    let operator = Streamed(Held(matrix.clone()));
                    let found = truncated_svd(&operator, &rule, compute, 1, Float::F32).unwrap();
                    let (residual, best) = (true_residual(&matrix, &found), optimum(&values, rank.min(values.len())));
                    let norm = found.certificate.norm;
                    report += &format!(
                        "{rows}x{cols} kind {kind} rank {rank} {compute:?}: {:.6} of {:.2e}\n",
                        residual / best,
                        best / norm
                    );
                    assert!(residual <= tolerance * best + 1e-6 * norm, "{report}");
                    assert!(found.certificate.residual_at_most >= residual, "{report}");
                    assert!(found.certificate.optimum_at_least <= best * (1.0 + 1e-9) + 1e-9 * norm, "{report}");
                    let near = found.certificate.optimum_near;
                    assert!((near - best).abs() <= (tolerance - 1.0) * best + 1e-6 * norm, "{near:e} {report}");
                }
            }
        }
    }
    eprintln!("{report}");
}

#[test]
fn settled_singular_values_are_those_of_a_full_decomposition() {
    for kind in [1, 2, 3, 6] {
        let matrix = with_spectrum(500, 400, &spectrum(kind, 400), 3);
        let rule = RankRule::new(RankPolicy::Rank(16));
        let found = truncated_svd(&Streamed(Held(matrix.clone())), &rule, Compute::Accurate, 1, Float::F32).unwrap();
        for (value, wanted) in found.singular_values.iter().zip(truth(&matrix)).take(found.settled) {
            assert!((value - wanted).abs() <= 1e-4 * wanted, "kind {kind}: {value} instead of {wanted}");
        }
        eprintln!("kind {kind}: {} settled", found.settled);
        assert!(kind == 6 || found.settled >= 4, "kind {kind}: {} settled", found.settled);
    }
}

#[test]
fn values_near_the_edge_of_noise_are_counted_as_a_full_decomposition_counts_them() {
    for (rows, cols) in [(700, 500), (500, 700)] {
        let edge = ((rows as f64).sqrt() + (cols as f64).sqrt()) / 3.0_f64.sqrt();
        let spikes: Vec<f64> = [3.0, 2.0, 1.5, 1.3, 1.2, 1.1, 1.05, 1.0, 0.95, 0.9].map(|size| size * edge).to_vec();
        let signal = with_spectrum(rows, cols, &spikes, 5);
        let matrix = signal + noise(11, rows, cols).mapv(|value| value as f32);
        let values = truth(&matrix);
        for (policy, compute) in [
            (RankPolicy::Above(edge), Compute::Accurate),
            (RankPolicy::Above(edge), Compute::Fast),
            (RankPolicy::Above(4.0 * edge), Compute::Fast),
            (RankPolicy::Ratio(2.7), Compute::Fast),
            (RankPolicy::Ratio(2.7), Compute::Accurate),
        ] {
            let rule = RankRule { max_rank: Some(32), ..RankRule::new(policy) };
            let wanted = rule.choose(&values, values.iter().map(|value| value * value).sum());
            let found = decompose(&Streamed(Held(matrix.clone())), &rule, compute, 1).unwrap();
            assert!(!found.is_complete(), "{policy:?} {compute:?}: decomposed in full");
            assert_eq!(found.rank_by(&rule), wanted, "[{rows}, {cols}] {policy:?} {compute:?}");
        }
    }
}

#[test]
fn the_certificate_of_a_sum_that_nearly_cancels_claims_enough() {
    let narrow = |matrix: Array2<f64>| matrix.mapv(|value| value as f32);
    let (up, down) = (narrow(noise(1, 90, 6)), narrow(noise(2, 6, 70)));
    for difference in [1e-3, 1e-5, 1e-6] {
        let other = &up + &(narrow(noise(3, 90, 6)) * difference);
        let sum = LowRank::sum(&[LowRank::new(up.clone(), down.clone(), 1.0), LowRank::new(other, down.clone(), -1.0)]);
        let found = sum.decompose().unwrap().cut(2, Float::F32, &sum).unwrap();
        let factors = (found.factors.up(), found.factors.down());
        let product = LowRank::from_rows(factors.0, factors.1, 2, 1.0).dense().unwrap();
        let residual = (sum.dense().unwrap() - product).iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!(found.certificate.residual_at_most >= residual, "{difference}: {:?} {residual:e}", found.certificate);
        assert!((found.certificate.residual - residual).abs() <= 1e-6 * residual, "{difference}");
    }
}

#[test]
fn zero_has_rank_zero_and_no_error() {
    let found = truncated_svd(
        &Streamed(Held(Matrix::zeros((300, 200)))),
        &RankRule::new(RankPolicy::Rank(8)),
        Compute::Accurate,
        1,
        Float::F32,
    )
    .unwrap();
    assert_eq!((found.rank(), found.certificate.residual_at_most, found.certificate.relative()), (0, 0.0, 0.0));
}

#[test]
fn values_at_both_ends_of_f32_are_decomposed() {
    for size in [1e38_f32, 1e-38] {
        let matrix = Matrix::from_elem((300, 200), size);
        let rule = RankRule::new(RankPolicy::Rank(2));
        let found = truncated_svd(&Streamed(Held(matrix.clone())), &rule, Compute::Fast, 1, Float::F32).unwrap();
        let largest = f64::from(size) * 60_000.0_f64.sqrt();
        assert!((found.singular_values[0] / largest - 1.0).abs() < 1e-4, "{size}");
    }
}

#[test]
fn values_that_are_not_finite_end_all_the_same() {
    let mut matrix = Matrix::zeros((300, 200));
    matrix[(5, 7)] = f32::NAN;
    let rule = RankRule::new(RankPolicy::Rank(2));
    let found = truncated_svd(&Streamed(Held(matrix)), &rule, Compute::Fast, 1, Float::F32).unwrap();
    assert_eq!(found.rank(), 0);
    assert!(found.certificate.norm.is_nan());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_certificate_never_claims_less_than_there_is(
        rows in 1_usize..180, cols in 1_usize..180, kind in 0_usize..7, rank in 1_usize..24,
        size in -30_i32..30, seed: u64, stored in 0..3_usize,
    ) {
        let stored = [Float::F32, Float::Bf16, Float::F16][stored];
        let size = if stored == Float::F16 { size / 10 } else { size };
        let matrix = with_spectrum(rows, cols, &spectrum(kind, rows.min(cols)), seed).mapv(|value| value * 10.0_f32.powi(size));
        let rule = RankRule::new(RankPolicy::Rank(rank));
        let found = truncated_svd(&Streamed(Held(matrix.clone())), &rule, Compute::Fast, seed, stored).unwrap();
        let residual = true_residual(&matrix, &found);
        let certificate = found.certificate;
        prop_assert!(certificate.residual_at_most >= residual, "{certificate:?} {residual:e}");
        prop_assert!((certificate.residual - residual).abs() <= 1e-5 * certificate.norm);
        let best = optimum(&truth(&matrix), rank);
        prop_assert!(certificate.optimum_at_least <= best * (1.0 + 1e-6) + 1e-7 * certificate.norm);
    }
}
