//! Rows of bytes to rows of f32 and back, in every format that can be computed with.

use super::code::Code;
use super::dtype::Float;
use super::f16c::{decode_f16_at, encode_f16_at};
use super::random;
use super::simd::{Level, per_cpu};

/// How a value that lies between two elements of the target is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// To the nearest, ties to even, in a single rounding.
    Nearest,
    /// Up or down at random, so that the expected value is the exact one (Gupta et al. 2015, arXiv 1502.02551).
    ///
    /// The chance of an element depends on `seed` and its index alone, so any tiling gives the same bytes. Values that
    /// the target can represent never move; f32 and f64 targets never round.
    Stochastic {
        /// One per tensor.
        seed: u64,
        /// Index within the tensor of the first value encoded.
        index: u64,
    },
}

impl Rounding {
    /// The same rounding, for values that start `count` elements further on.
    #[must_use]
    pub fn skip(self, count: usize) -> Self {
        match self {
            Self::Nearest => Self::Nearest,
            Self::Stochastic { seed, index } => Self::Stochastic {
                seed,
                index: index.wrapping_add(u64::try_from(count).expect("usize has at most 64 bits")),
            },
        }
    }
}

impl Float {
    /// Reads little-endian elements, at any alignment, as f32: exact for all but F64, which is rounded.
    ///
    /// # Panics
    /// When `bytes` and `out` hold different numbers of elements.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.bytes(), "as many elements as places");
        self.decode_with(Level::best(), bytes, out);
    }

    /// Rounds values to the nearest that it has.
    pub fn round(self, values: &mut [f32]) {
        let mut bytes = vec![0; values.len() * self.bytes()];
        self.encode(values, Rounding::Nearest, &mut bytes);
        self.decode(&bytes, values);
    }

    /// Writes values as little-endian elements, at any alignment, with one rounding.
    ///
    /// NaN stays NaN. Beyond the largest finite value lies ∞ for F16, BF16 and F8_E5M2, and NaN for the formats
    /// without ∞, as in torch.
    ///
    /// # Panics
    /// When `values` and `out` hold different numbers of elements.
    pub fn encode(self, values: &[f32], rounding: Rounding, out: &mut [u8]) {
        assert_eq!(out.len(), values.len() * self.bytes(), "as many places as values");
        self.encode_with(Level::best(), values, rounding, out);
    }

    fn decode_with(self, level: Level, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F16 => decode_f16_at(level, bytes, out),
            _ => with_code!(self, C => decode_at::<C>(level, bytes, out)),
        }
    }

    fn encode_with(self, level: Level, values: &[f32], rounding: Rounding, out: &mut [u8]) {
        match (self, rounding) {
            (Self::F16, Rounding::Nearest) => encode_f16_at(level, values, out),
            _ => with_code!(self, C => encode_at::<C>(level, values, rounding, out)),
        }
    }
}

/// Calls a function that is generic over [`Code`] with the one of a [`Float`].
macro_rules! with_code {
    ($float:expr, $code:ident => $call:expr) => {{
        use $crate::tensor::code;
        use $crate::tensor::dtype::Float;
        macro_rules! call {
            ($chosen:ty) => {{
                type $code = $chosen;
                $call
            }};
        }
        match $float {
            Float::F64 => call!(code::F64),
            Float::F32 => call!(code::F32),
            Float::F16 => call!(code::F16),
            Float::Bf16 => call!(code::Bf16),
            Float::F8E4M3 => call!(code::F8E4M3),
            Float::F8E5M2 => call!(code::F8E5M2),
            Float::F8E4M3Fnuz => call!(code::F8E4M3Fnuz),
            Float::F8E5M2Fnuz => call!(code::F8E5M2Fnuz),
        }
    }};
}
pub(super) use with_code;

/// Elements per inner loop. A loop that only copies becomes `memcpy`, and that of glibc 2.36 turns to `rep movsb` from
/// a few KiB on, which was measured at 3 GB/s (instead of 35) on a Zen 3 when the addresses are ill aligned.
const COPY: usize = 256;

per_cpu! {
    fn decode_at<C: Code>(bytes: &[u8], out: &mut [f32]) = decode_body::<C>;
}

/// `out[i] = bytes[i]` as f32.
#[inline(always)]
pub(super) fn decode_body<C: Code>(bytes: &[u8], out: &mut [f32]) {
    let elements = bytemuck::cast_slice::<u8, C::Bytes>(bytes);
    for (out, elements) in out.chunks_mut(COPY).zip(elements.chunks(COPY)) {
        for (value, &element) in out.iter_mut().zip(elements) {
            *value = C::widen(element);
        }
    }
}

per_cpu! {
    fn encode_at<C: Code>(values: &[f32], rounding: Rounding, out: &mut [u8]) = encode_body::<C>;
}

/// `out[i] = values[i]`, rounded.
#[inline(always)]
pub(super) fn encode_body<C: Code>(values: &[f32], rounding: Rounding, out: &mut [u8]) {
    let elements = bytemuck::cast_slice_mut::<u8, C::Bytes>(out);
    match rounding {
        Rounding::Nearest => {
            for (elements, values) in elements.chunks_mut(COPY).zip(values.chunks(COPY)) {
                for (element, &value) in elements.iter_mut().zip(values) {
                    *element = C::nearest(value);
                }
            }
        }
        Rounding::Stochastic { seed, mut index } => {
            for (element, &value) in elements.iter_mut().zip(values) {
                *element = C::stochastic(value, random::bits(seed, index));
                index = index.wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dtype::FLOATS;
    use super::*;
    use proptest::prelude::*;

    /// f32 with bits of every kind: all exponents, signs, subnormals, infinities and NaN.
    fn any_f32s(count: usize) -> Vec<f32> {
        (0..count).map(|i| f32::from_bits(random::bits(42, i as u64))).collect()
    }

    fn encoded(float: Float, values: &[f32], rounding: Rounding) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * float.bytes()];
        float.encode(values, rounding, &mut bytes);
        bytes
    }

    fn decoded(float: Float, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / float.bytes()];
        float.decode(bytes, &mut values);
        values
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values = any_f32s(10_007);
        for float in FLOATS {
            for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 7, index: 1 << 40 }] {
                let bytes = encoded(float, &values, rounding);
                let wide = decoded(float, &bytes);
                for level in Level::all() {
                    let (mut again, mut back) = (vec![0; bytes.len()], vec![0.0; values.len()]);
                    float.encode_with(level, &values, rounding, &mut again);
                    float.decode_with(level, &bytes, &mut back);
                    assert!(again == bytes && bits(&back) == bits(&wide), "{float} {rounding:?} with {level:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_may_lie_at_any_address() {
        let values: Vec<f32> = (0..77).map(|i| i as f32 / 8.0).collect();
        for float in FLOATS {
            let bytes = encoded(float, &values, Rounding::Nearest);
            for shift in 0..8 {
                let mut moved = vec![0; shift + bytes.len()];
                float.encode(&values, Rounding::Nearest, &mut moved[shift..]);
                assert_eq!(moved[shift..], bytes);
                assert_eq!(decoded(float, &moved[shift..]), decoded(float, &bytes));
            }
        }
    }

    #[test]
    fn bf16_is_that_of_the_half_crate() {
        let lower = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
        for upper in 0..=0xFFFF_u32 {
            for value in lower.map(|lower| f32::from_bits(upper << 16 | lower)) {
                let theirs = half::bf16::from_f32(value).to_bits().to_le_bytes();
                assert_eq!(encoded(Float::Bf16, &[value], Rounding::Nearest), theirs, "{:#010x}", value.to_bits());
            }
        }
    }

    #[test]
    fn f64_holds_every_f32_and_is_rounded_to_one() {
        let values = any_f32s(1000);
        assert_eq!(
            bits(&decoded(Float::F64, &encoded(Float::F64, &[1.5, -0.0, 1e-45], Rounding::Nearest))),
            bits(&[1.5, -0.0, 1e-45])
        );
        assert_eq!(decoded(Float::F64, &(1.0_f64 + 2.0_f64.powi(-24)).to_le_bytes()), [1.0]);
        assert_eq!(bits(&decoded(Float::F32, &encoded(Float::F32, &values, Rounding::Nearest))), bits(&values));
    }

    #[test]
    fn the_largest_value_survives_and_the_next_one_overflows_as_in_torch() {
        for float in FLOATS {
            let max = float.max() as f32;
            assert_eq!(decoded(float, &encoded(float, &[max, -max], Rounding::Nearest)), [max, -max], "{float}");
        }
        let far = [1e6, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        assert_eq!(encoded(Float::F8E4M3, &far, Rounding::Nearest), [0x7F, 0x7F, 0xFF, 0x7F]);
        assert_eq!(encoded(Float::F8E5M2, &far, Rounding::Nearest), [0x7C, 0x7C, 0xFC, 0x7F]);
        assert_eq!(encoded(Float::F8E4M3Fnuz, &far, Rounding::Nearest), [0x80; 4]);
        assert_eq!(encoded(Float::F8E5M2Fnuz, &far, Rounding::Nearest), [0x80; 4]);
        assert_eq!(
            decoded(Float::F16, &encoded(Float::F16, &[65519.0, 65520.0], Rounding::Nearest)),
            [65504.0, f32::INFINITY]
        );
    }

    #[test]
    fn stochastic_rounding_leaves_what_the_target_can_represent() {
        let rounding = Rounding::Stochastic { seed: 3, index: 0 };
        for float in FLOATS {
            let exact = decoded(float, &encoded(float, &any_f32s(50_000), Rounding::Nearest));
            let finite: Vec<f32> = exact.into_iter().filter(|value| value.is_finite()).collect();
            assert_eq!(bits(&decoded(float, &encoded(float, &finite, rounding))), bits(&finite), "{float}");
        }
    }

    #[test]
    fn stochastic_rounding_is_unbiased_and_takes_neighbours_only() {
        const DRAWS: usize = 40_000;
        for float in FLOATS.into_iter().filter(|float| float.bytes() < 4) {
            let step = decoded(float, &[1, 0][..float.bytes()])[0];
            // One value in the normal range and one among the subnormals (bf16: the smallest are below f32's normals).
            for (value, below, above) in [(-1.0625_f32, -1.0, -1.25), (step * 2.25, step * 2.0, step * 3.0)] {
                let bytes = encoded(float, &vec![value; DRAWS], Rounding::Stochastic { seed: 11, index: 5 });
                let results = decoded(float, &bytes);
                let (low, high) = (below.min(above), below.max(above));
                assert!(results.iter().all(|result| (low..=high).contains(result)), "{float}");
                let mean = results.iter().map(|&result| f64::from(result)).sum::<f64>() / DRAWS as f64;
                let unit = f64::from(high - low);
                // The standard deviation of one draw is at most half a step; allow five of the mean's.
                let allowed = 5.0 * 0.5 * unit / (DRAWS as f64).sqrt();
                assert!((mean - f64::from(value)).abs() < allowed, "{float}: {value} became {mean} on average");
            }
        }
    }

    proptest! {
        #[test]
        fn any_tiling_draws_the_same(cut in 0_usize..500, seed: u64, index: u64) {
            let values = any_f32s(500);
            let rounding = Rounding::Stochastic { seed, index };
            for float in FLOATS {
                let mut parts = encoded(float, &values[..cut], rounding);
                parts.extend(encoded(float, &values[cut..], rounding.skip(cut)));
                prop_assert_eq!(&parts, &encoded(float, &values, rounding));
            }
        }
    }
}
