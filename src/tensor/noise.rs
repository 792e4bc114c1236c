//! How much rounding to a format does to values: the variance of its error.
//!
//! A value rounded to nearest is off by anything between −ulp∕2 and ulp∕2, alike in all of that range as long as what was added to
//! the value before is not small against an ulp: variance ulp²∕12.

use super::dtype::Float;

/// Σ ulp²∕12 over `values`, which are elements of `float`.
pub fn rounding_variance(float: Float, values: &[f32]) -> f64 {
    let (digits, lowest) = (float.digits(), float.min_exponent());
    let ulp_squared = |value: &f32| {
        let exponent = exponent(*value).max(lowest);
        power_of_two(2 * (exponent - digits))
    };
    values.iter().map(ulp_squared).sum::<f64>() / 12.0
}

/// ⌊log₂|x|⌋ of a normal number; of a smaller one, the exponent below all of them.
fn exponent(value: f32) -> i32 {
    const BIAS: i32 = 127;
    let bits = value.to_bits() >> (f32::MANTISSA_DIGITS - 1) & 0xFF;
    i32::try_from(bits).unwrap_or(0) - BIAS
}

/// 2ⁿ in the range of normal f64.
fn power_of_two(exponent: i32) -> f64 {
    const BIAS: i32 = 1023;
    f64::from_bits(u64::from((exponent + BIAS).unsigned_abs()) << (f64::MANTISSA_DIGITS - 1))
}

#[cfg(test)]
mod tests {
    use super::super::codec::Rounding;
    use super::super::dtype::FLOATS;
    use super::super::random;
    use super::*;

    #[test]
    fn the_variance_is_that_of_rounding_errors() {
        const COUNT: usize = 100_000;
        for float in FLOATS.into_iter().filter(|float| float.bytes() < 4) {
            // Uniform in the exponent over the normal and the subnormal numbers of the narrow formats.
            let uniform = |at: usize| f64::from(random::bits(5, at as u64)) / f64::from(u32::MAX);
            let value = |at: usize| ((uniform(at) * 20.0 - 14.0).exp2()) as f32;
            let exact: Vec<f32> = (0..COUNT).map(value).collect();
            let mut bytes = vec![0; COUNT * float.bytes()];
            float.encode(&exact, Rounding::Nearest, &mut bytes);
            let mut stored = vec![0.0; COUNT];
            float.decode(&bytes, &mut stored);
            let pairs = exact.iter().zip(&stored);
            let measured: f64 = pairs.map(|(exact, stored)| f64::from(exact - stored).powi(2)).sum();
            let expected = rounding_variance(float, &stored);
            // Values just below a power of two become it, and count with its ulp: an eighth of them at 3 digits.
            let allowed = if float.bytes() == 1 { 0.3 } else { 0.05 };
            assert!((measured / expected - 1.0).abs() < allowed, "{float}: {measured:e}, expected {expected:e}");
        }
    }

    #[test]
    fn zeros_and_the_widest_formats_stay_in_range() {
        for float in FLOATS {
            let sum = rounding_variance(float, &[0.0, -0.0, f32::MIN_POSITIVE, f32::MAX]);
            assert!(sum.is_finite() && sum > 0.0, "{float}");
        }
        assert_eq!(rounding_variance(Float::F32, &[1.0]), 2.0_f64.powi(-46) / 12.0);
        assert_eq!(rounding_variance(Float::Bf16, &[-3.0]), 2.0_f64.powi(-12) / 12.0);
    }
}
