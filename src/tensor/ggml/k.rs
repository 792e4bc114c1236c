//! The K types to values: 256 values in sixteen parts of 16 or eight of 32, each on a scale that is itself an integer on
//! the block's scale d, and some with a minimum on dmin.
//!
//! | type | block | value |
//! |---|---|---|
//! | Q2_K | 16 · (4-bit scale, 4-bit minimum), 64 bytes, d, dmin | d · s · q − dmin · m |
//! | Q3_K | 32 bytes of third bits, 64 bytes, 12 bytes of scales, d | d · (s − 32) · (q − 4) |
//! | Q4_K | d, dmin, 12 bytes of scales and minima, 128 bytes | d · s · q − dmin · m |
//! | Q5_K | as Q4_K with 32 bytes of fifth bits before the 128 | the same |
//! | Q6_K | 128 bytes of low halves, 64 of upper bits, 16 scales, d | d · s · (q − 32) |
//! | Q8_K | d in f32, 256 bytes, 16 sums | d · q |

use super::unpack::half_at;

/// Scale and minimum of part `at` among the twelve bytes: six bits each. The first four parts have theirs in bytes 0–3
/// and 4–7; the others have the low halves in bytes 8–11 and their upper bits above those of the first four.
#[inline(always)]
pub(super) fn six_bits(bytes: &[u8], at: usize) -> (u8, u8) {
    if at < 4 {
        (bytes[at] & 63, bytes[at + 4] & 63)
    } else {
        let low = bytes[at + 4];
        (low & 15 | bytes[at - 4] >> 6 << 4, low >> 4 | bytes[at] >> 6 << 4)
    }
}

/// The scale of part `at` of a Q3_K: four bits in bytes 0–7, two in bytes 8–11, less 32.
#[inline(always)]
pub(super) fn three_scale(bytes: &[u8], at: usize) -> i32 {
    let low = bytes[at % 8] >> (4 * (at / 8)) & 15;
    let high = bytes[8 + at % 4] >> (2 * (at / 4)) & 3;
    i32::from(low | high << 4) - 32
}

#[inline(always)]
pub(super) fn q2(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    let parts = out.as_chunks_mut::<16>().0;
    for (part, (out, &scale)) in parts.iter_mut().zip(&block[..16]).enumerate() {
        let (scale, min) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let (first, shift) = (16 + part / 8 * 32 + part % 2 * 16, part % 8 / 2 * 2);
        for (out, &byte) in out.iter_mut().zip(&block[first..first + 16]) {
            *out = scale * f32::from(byte >> shift & 3) - min;
        }
    }
}

#[inline(always)]
pub(super) fn q3(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * three_scale(&block[96..108], part) as f32;
        let (column, shift) = (part % 2 * 16, part % 8 / 2 * 2);
        let first = 32 + part / 8 * 32 + column;
        let (low, high) = (&block[first..first + 16], &block[column..column + 16]);
        for (out, (&byte, &bits)) in out.iter_mut().zip(low.iter().zip(high)) {
            let third = i32::from(bits >> (part / 2) & 1) << 2;
            *out = scale * (i32::from(byte >> shift & 3) + third - 4) as f32;
        }
    }
}

#[inline(always)]
pub(super) fn q4(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bits(&block[4..16], part);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (first, shift) = (16 + part / 2 * 32, part % 2 * 4);
        for (out, &byte) in out.iter_mut().zip(&block[first..first + 32]) {
            *out = scale * f32::from(byte >> shift & 15) - min;
        }
    }
}

#[inline(always)]
pub(super) fn q5(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bits(&block[4..16], part);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (first, shift) = (48 + part / 2 * 32, part % 2 * 4);
        for (out, (&byte, &bits)) in out.iter_mut().zip(block[first..first + 32].iter().zip(&block[16..48])) {
            *out = scale * f32::from(byte >> shift & 15 | (bits >> part & 1) << 4) - min;
        }
    }
}

#[inline(always)]
pub(super) fn q6(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block[192 + part].cast_signed());
        // Each half of the block keeps four runs of 32: two in the low halves of 64 bytes, two in the high ones.
        let (half, run, column) = (part / 8, part % 8 / 2, part % 2 * 16);
        let low = half * 64 + run % 2 * 32 + column;
        let high = 128 + half * 32 + column;
        let (low, high) = (&block[low..low + 16], &block[high..high + 16]);
        for (out, (&byte, &bits)) in out.iter_mut().zip(low.iter().zip(high)) {
            let q = byte >> (run / 2 * 4) & 15 | (bits >> (2 * run) & 3) << 4;
            *out = scale * (i32::from(q) - 32) as f32;
        }
    }
}

#[inline(always)]
pub(super) fn q8(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, &byte) in out.iter_mut().zip(&block[4..260]) {
        *out = d * f32::from(byte.cast_signed());
    }
}
