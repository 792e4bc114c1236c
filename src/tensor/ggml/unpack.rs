//! Blocks to values: the dispatch, and the types that are small integers on one scale.
//!
//! | type | block | value |
//! |---|---|---|
//! | Q4_0 | d, 16 bytes | d · (q − 8); low halves first, then the high ones |
//! | Q4_1 | d, m, 16 bytes | d · q + m |
//! | Q5_0, Q5_1 | as these with 4 bytes of fifth bits before the 16 | d · (q − 16), d · q + m |
//! | Q8_0 | d, 32 bytes | d · q |
//! | Q8_1 | d, d · Σ q, 32 bytes | d · q |
//! | Q1_0 | d, 16 bytes | d where the bit is set, else −d |
//! | Q2_0 | d, 16 bytes | d · (q − 1), four to a byte, lowest bits first |
//! | TQ1_0 | 48 + 4 bytes of five and four base-3 digits, d | d · (digit − 1) |
//! | TQ2_0 | 64 bytes of four two-bit digits, d | d · (digit − 1) |
//!
//! d and m are f16.

use super::GgmlType;
use super::{fp4, iq, k};
use crate::tensor::code::{Code, F16};
use crate::tensor::simd::{Level, per_cpu};

/// A way to unpack whole blocks.
pub(super) trait Unpack {
    fn unpack(bytes: &[u8], out: &mut [f32]);
}

/// Unpacks blocks of a type that is no plain number.
pub(super) fn decode(ggml: GgmlType, bytes: &[u8], out: &mut [f32]) {
    decode_with(Level::best(), ggml, bytes, out);
}

/// Declares how blocks of every type are unpacked: bytes, values, function.
macro_rules! blocks {
    ($($ggml:ident: $bytes:literal, $values:literal, $one:path;)*) => {
        $(
            struct $ggml;
            impl Unpack for $ggml {
                #[inline(always)]
                fn unpack(bytes: &[u8], out: &mut [f32]) {
                    let (blocks, values) = (bytes.as_chunks::<$bytes>().0, out.as_chunks_mut::<$values>().0);
                    for (block, values) in blocks.iter().zip(values) {
                        $one(block, values);
                    }
                }
            }
        )*

        fn decode_with(level: Level, ggml: GgmlType, bytes: &[u8], out: &mut [f32]) {
            match ggml {
                $(GgmlType::$ggml => decode_at::<$ggml>(level, bytes, out),)*
                GgmlType::I8 => integers::<1>(bytes, out, |bytes| f32::from(i8::from_le_bytes(bytes))),
                GgmlType::I16 => integers::<2>(bytes, out, |bytes| f32::from(i16::from_le_bytes(bytes))),
                GgmlType::I32 => integers::<4>(bytes, out, |bytes| i32::from_le_bytes(bytes) as f32),
                GgmlType::I64 => integers::<8>(bytes, out, |bytes| i64::from_le_bytes(bytes) as f32),
                GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 | GgmlType::F64 => {
                    unreachable!("plain floats are decoded as such by the caller")
                }
            }
        }

        /// (type, bytes, values) of what is unpacked here.
        #[cfg(test)]
        const SIZES: &[(GgmlType, usize, usize)] = &[$((GgmlType::$ggml, $bytes, $values)),*];
    };
}

blocks! {
    Q4_0: 18, 32, q4_0;
    Q4_1: 20, 32, q4_1;
    Q5_0: 22, 32, q5_0;
    Q5_1: 24, 32, q5_1;
    Q8_0: 34, 32, q8_0;
    Q8_1: 36, 32, q8_1;
    Q1_0: 18, 128, q1_0;
    Q2_0: 18, 64, q2_0;
    Tq1_0: 54, 256, tq1_0;
    Tq2_0: 66, 256, tq2_0;
    Q2K: 84, 256, k::q2;
    Q3K: 110, 256, k::q3;
    Q4K: 144, 256, k::q4;
    Q5K: 176, 256, k::q5;
    Q6K: 210, 256, k::q6;
    Q8K: 292, 256, k::q8;
    Iq2Xxs: 66, 256, iq::two_xxs;
    Iq2Xs: 74, 256, iq::two_xs;
    Iq2S: 82, 256, iq::two_s;
    Iq3Xxs: 98, 256, iq::three_xxs;
    Iq3S: 110, 256, iq::three_s;
    Iq1S: 50, 256, iq::one_s;
    Iq1M: 56, 256, iq::one_m;
    Iq4Nl: 18, 32, fp4::iq4_nl;
    Iq4Xs: 136, 256, fp4::iq4_xs;
    Mxfp4: 17, 32, fp4::mxfp4;
    Nvfp4: 36, 64, fp4::nvfp4;
}

per_cpu! {
    fn decode_at<U: Unpack>(bytes: &[u8], out: &mut [f32]) = unpack_body::<U>;
}

#[inline(always)]
fn unpack_body<U: Unpack>(bytes: &[u8], out: &mut [f32]) {
    U::unpack(bytes, out);
}

fn integers<const BYTES: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        *out = value(bytes);
    }
}

/// The f16 at `at`.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    F16::widen([block[at], block[at + 1]])
}

/// `out[i] = value(low half of byte i, i)`, then the high halves in the second half of `out`.
#[inline(always)]
fn halves(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(i32, usize) -> f32) {
    // Numbers first, as wide as the values: so the compiler makes vector instructions of both loops.
    let mut numbers = [0_i32; 32];
    let (low, high) = numbers.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = i32::from(byte & 15);
        *high = i32::from(byte >> 4);
    }
    for (at, (out, &number)) in out.iter_mut().zip(&numbers).enumerate() {
        *out = value(number, at);
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    halves(&block[2..18], out, |q, _| (q - 8) as f32 * d);
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    halves(&block[4..20], out, |q, _| q as f32 * d + m);
}

/// The fifth bits, each worth 16.
#[inline(always)]
fn fifth(bits: u32, at: usize) -> i32 {
    (((bits >> at) & 1) << 4).cast_signed()
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let bits = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    halves(&block[6..22], out, |q, at| ((q | fifth(bits, at)) - 16) as f32 * d);
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let bits = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    halves(&block[8..24], out, |q, at| (q | fifth(bits, at)) as f32 * d + m);
}

#[inline(always)]
fn bytes_on_scale(bytes: &[u8], d: f32, out: &mut [f32]) {
    for (out, &byte) in out.iter_mut().zip(bytes) {
        *out = f32::from(byte.cast_signed()) * d;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    bytes_on_scale(&block[2..], half_at(block, 0), out);
}

#[inline(always)]
fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    bytes_on_scale(&block[4..], half_at(block, 0), out);
}

#[inline(always)]
fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = half_at(block, 0);
    for (out, &byte) in out.as_chunks_mut::<8>().0.iter_mut().zip(&block[2..]) {
        for (at, out) in out.iter_mut().enumerate() {
            *out = if byte >> at & 1 == 1 { d } else { -d };
        }
    }
}

#[inline(always)]
fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = half_at(block, 0);
    for (out, &byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(&block[2..]) {
        for (at, out) in out.iter_mut().enumerate() {
            *out = (i32::from(byte >> (2 * at) & 3) - 1) as f32 * d;
        }
    }
}

/// Digit `n` of a byte that holds a fraction of 256 in base 3: 3^n of it, cut to the byte, three times over.
#[inline(always)]
fn digit(byte: u8, power: u8) -> i32 {
    i32::from((u16::from(byte.wrapping_mul(power)) * 3) >> 8)
}

const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

#[inline(always)]
fn digits(bytes: &[u8], powers: &[u8], d: f32, out: &mut [f32]) {
    for (out, &power) in out.chunks_exact_mut(bytes.len()).zip(powers) {
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = (digit(byte, power) - 1) as f32 * d;
        }
    }
}

#[inline(always)]
fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half_at(block, 52);
    digits(&block[..32], &POWERS, d, &mut out[..160]);
    digits(&block[32..48], &POWERS, d, &mut out[160..240]);
    digits(&block[48..52], &POWERS[..4], d, &mut out[240..]);
}

#[inline(always)]
fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 64);
    for (out, bytes) in out.as_chunks_mut::<128>().0.iter_mut().zip(block.as_chunks::<32>().0) {
        for (at, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (out, &byte) in out.iter_mut().zip(bytes) {
                *out = (i32::from(byte >> (2 * at) & 3) - 1) as f32 * d;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random_bits;

    #[test]
    fn blocks_are_as_large_as_the_table_says() {
        for &(ggml, bytes, values) in SIZES {
            assert_eq!(ggml.block(), (values, bytes), "{ggml}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for &(ggml, bytes, values) in SIZES {
            let blocks: Vec<u8> = (0..37 * bytes).map(|i| random_bits(9, i as u64) as u8).collect();
            let mut expected = vec![0.0; 37 * values];
            ggml.decode(&blocks, &mut expected);
            for level in Level::all() {
                let mut out = vec![0.0; 37 * values];
                decode_with(level, ggml, &blocks, &mut out);
                let same =
                    out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                assert!(same, "{ggml} with {level:?}");
            }
        }
    }

    #[test]
    fn integers_are_values() {
        let mut out = [0.0; 2];
        GgmlType::I8.decode(&[255, 3], &mut out);
        assert_eq!(out, [-1.0, 3.0]);
        GgmlType::I16.decode(&[0, 255, 3, 0], &mut out);
        assert_eq!(out, [-256.0, 3.0]);
        GgmlType::I32.decode(&[0, 0, 0, 1, 3, 0, 0, 0], &mut out);
        assert_eq!(out, [16_777_216.0, 3.0]);
        GgmlType::I64.decode(&[0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], &mut out);
        assert_eq!(out, [4_294_967_296.0, 3.0]);
    }
}
