//! The factor in front of a product, folded into its two sides.

use crate::linalg::{F32_ROUNDOFF, LowRank};
use crate::tensor::Float;

/// A number as the product of what goes into B and what goes into A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fold {
    /// The sign and a power of two: changes no digit of B.
    pub up: f64,
    /// What remains: at least 1 and below 2, or 0.
    pub down: f64,
}

impl Fold {
    /// Splits `factor`.
    pub fn of(factor: f64) -> Self {
        if factor == 0.0 || !factor.is_normal() {
            return Self { up: 1.0, down: factor };
        }
        // Clearing the digits of a normal number leaves its sign and power of two.
        let up = f64::from_bits(factor.to_bits() & !((1 << (f64::MANTISSA_DIGITS - 1)) - 1));
        Self { up, down: factor / up }
    }

    /// Whether no digit changes, unless values leave the range of their dtype.
    pub fn is_power_of_two(&self) -> bool {
        self.down == 1.0
    }
}

/// Whether `float` holds every one of `values` times `factor`.
pub fn holds(float: Float, values: &[f32], factor: f64) -> bool {
    let mut stored: Vec<f32> = values.iter().map(|value| (f64::from(*value) * factor) as f32).collect();
    float.round(&mut stored);
    let same = |(value, stored): (&f32, &f32)| f64::from(*value) * factor == f64::from(*stored);
    values.iter().zip(&stored).all(same)
}

/// What folding the scale of `product` into one factor in f32 changes at most: nothing where it is a power of two, else every
/// element of the factor is rounded once, and ‖B·δA‖ ≤ u·‖B‖·‖A‖.
pub fn rounding(product: &LowRank) -> f64 {
    if Fold::of(product.scale()).is_power_of_two() { 0.0 } else { F32_ROUNDOFF * size(product) }
}

/// |scale|·‖B‖·‖A‖, which ‖scale·B·A‖ never exceeds.
pub fn size(product: &LowRank) -> f64 {
    let norm = |values: Vec<f32>| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    product.scale().abs() * norm(product.up()) * norm(product.down())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_and_power_of_two_go_one_way_and_the_rest_the_other() {
        for (factor, up, down) in [
            (1.0, 1.0, 1.0),
            (-2.0, -2.0, 1.0),
            (0.75, 0.5, 1.5),
            (-0.7, -0.5, 1.4),
            (5.5, 4.0, 1.375),
            (0.0, 1.0, 0.0),
        ] {
            assert_eq!(Fold::of(factor), Fold { up, down }, "{factor}");
        }
    }

    #[test]
    fn every_factor_is_the_product_of_its_fold() {
        for factor in [1e-30, 0.1, -1e9, std::f64::consts::PI, 1.0 / 3.0] {
            let fold = Fold::of(factor);
            assert_eq!(fold.up * fold.down, factor);
            assert!((1.0..2.0).contains(&fold.down));
        }
    }

    #[test]
    fn a_power_of_two_may_still_leave_the_range() {
        assert!(holds(Float::F16, &[1.5, -3.0], 2.0));
        assert!(!holds(Float::F16, &[60000.0], 2.0));
        assert!(!holds(Float::F16, &[6e-8], 0.5));
        assert!(holds(Float::Bf16, &[60000.0_f32.round()], 1.0) == (60000.0_f32.to_bits() & 0xFFFF == 0));
    }
}
