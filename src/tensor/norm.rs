//! Sums of squares of f32 in f64, the same on every machine: sixteen sums side by side, added up at the end.

use super::simd::{Level, per_cpu};

/// Sums side by side. Part of the definition of the result.
const LANES: usize = 16;

/// Σ x².
pub fn sum_of_squares(values: &[f32]) -> f64 {
    squares(Level::best(), values)
}

/// Σ (x − y)² of slices of equal length; differences are formed in f64.
///
/// # Panics
/// When the lengths differ.
pub fn sum_of_squared_differences(left: &[f32], right: &[f32]) -> f64 {
    assert_eq!(left.len(), right.len(), "slices of equal length");
    squared_differences(Level::best(), left, right)
}

per_cpu! {
    fn squares(values: &[f32]) -> f64 = squares_body;
}

per_cpu! {
    fn squared_differences(left: &[f32], right: &[f32]) -> f64 = squared_differences_body;
}

#[inline(always)]
fn squares_body(values: &[f32]) -> f64 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for values in whole {
        for (sum, value) in sums.iter_mut().zip(values) {
            let value = f64::from(*value);
            *sum = value.mul_add(value, *sum);
        }
    }
    total(sums, rest.iter().map(|value| f64::from(*value)))
}

#[inline(always)]
fn squared_differences_body(left: &[f32], right: &[f32]) -> f64 {
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            let value = f64::from(*left) - f64::from(*right);
            *sum = value.mul_add(value, *sum);
        }
    }
    total(sums, left_rest.iter().zip(right_rest).map(|(left, right)| f64::from(*left) - f64::from(*right)))
}

#[inline(always)]
fn total(sums: [f64; LANES], rest: impl Iterator<Item = f64>) -> f64 {
    rest.fold(sums.iter().sum(), |sum, value| value.mul_add(value, sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_sums_of_the_definition(
            pairs in prop::collection::vec((-1e3_f32..1e3, -1e3_f32..1e3), 0..200)
        ) {
            let (left, right): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let plain: f64 = left.iter().map(|value| f64::from(*value).powi(2)).sum();
            let apart: f64 = left.iter().zip(&right).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
            prop_assert!((sum_of_squares(&left) - plain).abs() <= 1e-12 * plain);
            prop_assert!((sum_of_squared_differences(&left, &right) - apart).abs() <= 1e-12 * apart);
            for level in Level::all() {
                prop_assert_eq!(squares(level, &left), sum_of_squares(&left));
                prop_assert_eq!(squared_differences(level, &left, &right), sum_of_squared_differences(&left, &right));
            }
        }
    }
}
