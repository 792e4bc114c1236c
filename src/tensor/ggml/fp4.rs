//! Four bits that stand for one of sixteen levels, to values.
//!
//! | type | block | value |
//! |---|---|---|
//! | IQ4_NL | d, 16 bytes | d · level, uneven levels |
//! | IQ4_XS | d, 16 + 32 bits of scales, 128 bytes | d · (s − 32) · level |
//! | MXFP4 | e, 16 bytes | 2^(e − 128) · level, twice the E2M1 numbers (OCP Microscaling 1.0) |
//! | NVFP4 | 4 scales in E4M3 without sign, 32 bytes | scale / 2 · level |

use super::unpack::half_at;

/// The levels of IQ4_NL and IQ4_XS.
pub(super) const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The E2M1 numbers, doubled.
pub(super) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `out[i] = scale · level of the low half of byte i`, then the high halves.
#[inline(always)]
fn levels(bytes: &[u8], levels: &[i8; 16], scale: f32, out: &mut [f32]) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = scale * f32::from(levels[usize::from(byte & 15)]);
        *high = scale * f32::from(levels[usize::from(byte >> 4)]);
    }
}

#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    levels(&block[2..], &UNEVEN, half_at(block, 0), out);
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let upper = u16::from_le_bytes([block[2], block[3]]);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + part / 2] >> (part % 2 * 4) & 15;
        let scale = i32::from(u16::from(low) | (upper >> (2 * part) & 3) << 4) - 32;
        let first = 8 + part * 16;
        levels(&block[first..first + 16], &UNEVEN, d * scale as f32, out);
    }
}

/// Half of 2^(e − 127): what a doubled E2M1 number is multiplied by.
#[inline(always)]
pub(super) fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    levels(&block[1..], &E2M1, half_power(block[0]), out);
}

/// An E4M3 number without sign; what would be NaN is 0, as ggml has it.
#[inline(always)]
fn unsigned_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
    if byte & 127 == 0 || byte == 127 {
        return 0.0;
    }
    if exponent == 0 {
        mantissa * (1.0 / 512.0)
    } else {
        // 2^(exponent − 7), put together from its bits.
        (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 120) << 23)
    }
}

#[inline(always)]
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let first = 4 + part * 8;
        levels(&block[first..first + 8], &E2M1, unsigned_e4m3(block[part]) * 0.5, out);
    }
}
