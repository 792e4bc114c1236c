//! f16 by the conversion instructions that every CPU with AVX2 has; they round as `code::F16` does, NaN included.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm256_cvtph_ps, _mm256_cvtps_ph};

use super::code::F16;
use super::codec::{Rounding, decode_body, encode_body};
use super::simd::per_cpu;

per_cpu! {
    /// `out[i] = bytes[i]` as f32.
    pub(super) fn decode_f16_at(bytes: &[u8], out: &mut [f32])
        = { avx512: decode, avx2: decode, portable: decode_body::<F16> };
}

per_cpu! {
    /// `out[i] = values[i]`, rounded to nearest.
    pub(super) fn encode_f16_at(values: &[f32], out: &mut [u8])
        = { avx512: encode, avx2: encode, portable: encode_nearest };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = bytes.as_chunks::<16>();
    let (values, last) = out.as_chunks_mut::<8>();
    for (values, &eight) in values.iter_mut().zip(eights) {
        *values = bytemuck::cast(_mm256_cvtph_ps(bytemuck::cast(eight)));
    }
    decode_body::<F16>(rest, last);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn encode(values: &[f32], out: &mut [u8]) {
    let (eights, rest) = values.as_chunks::<8>();
    let (bytes, last) = out.as_chunks_mut::<16>();
    for (bytes, &eight) in bytes.iter_mut().zip(eights) {
        *bytes = bytemuck::cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(bytemuck::cast(eight)));
    }
    encode_nearest(rest, last);
}

#[inline(always)]
fn encode_nearest(values: &[f32], out: &mut [u8]) {
    encode_body::<F16>(values, Rounding::Nearest, out);
}

#[cfg(test)]
mod tests {
    use super::super::code::Code;
    use super::super::simd::Level;
    use super::*;
    use half::f16;

    #[test]
    fn every_f16_is_widened_as_the_half_crate_does() {
        let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for level in Level::all() {
            let mut values = vec![0.0; 1 << 16];
            decode_f16_at(level, &codes, &mut values);
            for (code, value) in (0..=u16::MAX).zip(values) {
                assert_eq!(value.to_bits(), f16::from_bits(code).to_f32().to_bits(), "{code:#06x} with {level:?}");
                let narrow = F16::nearest(value);
                let quiet = if f16::from_bits(code).is_nan() { code | 0x200 } else { code };
                assert_eq!(u16::from_le_bytes(narrow), quiet);
            }
        }
    }

    #[test]
    fn f32_of_every_exponent_are_narrowed_as_the_half_crate_does() {
        // 65536 upper halves, and below them what makes ties, near ties and NaN payloads.
        let lower = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
        let values: Vec<f32> =
            (0..=0xFFFF_u32).flat_map(|upper| lower.map(|lower| f32::from_bits(upper << 16 | lower))).collect();
        for level in Level::all() {
            let mut bytes = vec![0; 2 * values.len()];
            encode_f16_at(level, &values, &mut bytes);
            for (code, value) in bytes.as_chunks().0.iter().zip(&values) {
                let expected = f16::from_f32(*value).to_bits();
                assert_eq!(u16::from_le_bytes(*code), expected, "{:#010x} with {level:?}", value.to_bits());
            }
        }
    }
}
