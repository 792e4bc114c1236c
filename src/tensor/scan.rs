//! Whole tensors looked over at memory speed.

use super::code::Code;
use super::codec::with_code;
use super::dtype::Float;
use super::simd::{Level, per_cpu};

/// Elements looked at between two decisions; small enough to stay in the L1 cache, large enough to vectorise.
const CHUNK: usize = 1024;

/// Index of the first element that is infinite or NaN.
///
/// # Panics
/// When `bytes` is not a whole number of elements.
pub fn first_not_finite(float: Float, bytes: &[u8]) -> Option<usize> {
    with_code!(float, C => first_not_finite_at::<C>(Level::best(), bytes))
}

/// Index of the first value that is infinite or NaN.
pub fn first_odd_value(values: &[f32]) -> Option<usize> {
    first_odd_value_at(Level::best(), values)
}

/// Whether every element is 0 or −0.
///
/// # Panics
/// When `bytes` is not a whole number of elements.
pub fn all_zero(float: Float, bytes: &[u8]) -> bool {
    with_code!(float, C => all_zero_at::<C>(Level::best(), bytes))
}

per_cpu! {
    fn first_not_finite_at<C: Code>(bytes: &[u8]) -> Option<usize> = first_not_finite_body::<C>;
}

#[inline(always)]
fn first_not_finite_body<C: Code>(bytes: &[u8]) -> Option<usize> {
    let mut before = 0;
    for chunk in bytemuck::cast_slice::<u8, C::Bytes>(bytes).chunks(CHUNK) {
        // Without an early exit the loop vectorises.
        if !chunk.iter().fold(true, |all, &element| all & C::is_finite(element)) {
            return chunk.iter().position(|&element| !C::is_finite(element)).map(|at| before + at);
        }
        before += chunk.len();
    }
    None
}

per_cpu! {
    fn first_odd_value_at(values: &[f32]) -> Option<usize> = first_odd_value_body;
}

#[inline(always)]
fn first_odd_value_body(values: &[f32]) -> Option<usize> {
    let is_good = |chunk: &[f32]| chunk.iter().fold(true, |all, value| all & value.is_finite());
    let bad = values.chunks(CHUNK).position(|chunk| !is_good(chunk))? * CHUNK;
    values[bad..].iter().position(|value| !value.is_finite()).map(|at| bad + at)
}

per_cpu! {
    fn all_zero_at<C: Code>(bytes: &[u8]) -> bool = all_zero_body::<C>;
}

#[inline(always)]
fn all_zero_body<C: Code>(bytes: &[u8]) -> bool {
    let mut chunks = bytemuck::cast_slice::<u8, C::Bytes>(bytes).chunks(CHUNK);
    chunks.all(|chunk| chunk.iter().fold(true, |all, &element| all & C::is_zero(element)))
}

#[cfg(test)]
mod tests {
    use super::super::codec::Rounding;
    use super::super::dtype::FLOATS;
    use super::*;
    use proptest::prelude::*;

    fn encoded(float: Float, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * float.bytes()];
        float.encode(values, Rounding::Nearest, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn the_first_bad_element_is_found_wherever_it_is(len in 1_usize..5000, at in 0_usize..5000, nan: bool) {
            let at = at % len;
            let mut values = vec![-1.5; len];
            for value in &mut values[at..] {
                *value = if nan { f32::NAN } else { f32::NEG_INFINITY };
            }
            for float in FLOATS {
                let bytes = encoded(float, &values);
                for level in Level::all() {
                    let found = with_code!(float, C => first_not_finite_at::<C>(level, &bytes));
                    prop_assert_eq!(found, Some(at), "{} with {:?}", float, level);
                }
                prop_assert_eq!(first_not_finite(float, &bytes[..at * float.bytes()]), None);
            }
        }

        #[test]
        fn one_element_that_is_not_zero_is_enough(len in 1_usize..5000, at in 0_usize..5000) {
            let at = at % len;
            for float in FLOATS {
                let mut bytes = encoded(float, &vec![-0.0; len]);
                prop_assert!(all_zero(float, &bytes), "{}", float);
                bytes[at * float.bytes()] |= 1;
                for level in Level::all() {
                    prop_assert!(!with_code!(float, C => all_zero_at::<C>(level, &bytes)), "{} with {:?}", float, level);
                }
            }
        }
    }

    #[test]
    fn no_elements_are_finite_and_zero() {
        assert_eq!((first_not_finite(Float::Bf16, &[]), all_zero(Float::Bf16, &[])), (None, true));
        assert_eq!(first_not_finite(Float::F64, &1e300_f64.to_le_bytes()), None);
    }
}
