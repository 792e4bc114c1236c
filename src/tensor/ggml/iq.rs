//! The types that choose points of a grid: eight (IQ2, IQ1) or four (IQ3) values at a time by an index, with signs kept
//! apart where the points are positive.
//!
//! | type | block | value |
//! |---|---|---|
//! | IQ2_XXS | d, 8 · (4 indexes, 28 bits of signs, 4-bit scale) | d · (s + ½) / 4 · point |
//! | IQ2_XS | d, 32 · (9-bit index, 7 bits of signs), 8 bytes of scales | the same |
//! | IQ2_S | d, 32 indexes, 32 bytes of signs, 8 of upper bits, 8 of scales | the same |
//! | IQ3_XXS | d, 64 indexes, 8 · (28 bits of signs, 4-bit scale) | d · (s + ½) / 2 · point |
//! | IQ3_S | d, 64 indexes, 8 bytes of upper bits, 32 of signs, 4 of scales | d · (2 s + 1) · point |
//! | IQ1_S | d, 32 indexes, 8 · (3 bits for each of 4, 3-bit scale, sign of the shift) | d · (2 s + 1) · (point ± ⅛) |
//! | IQ1_M | 32 indexes, 16 bytes of upper bits and shifts, 8 bytes of scales and d | the same |

use super::grids::one::IQ1;
use super::grids::three::{IQ3_S, IQ3_XXS, S_LEVELS, XXS_LEVELS};
use super::grids::two::{IQ2_S, IQ2_XS, IQ2_XXS, LEVELS};
use super::unpack::half_at;
use crate::tensor::code::{Code, F16};

/// Seven bits of signs and the eighth that makes the number of minus signs even.
#[inline(always)]
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

#[inline(always)]
fn signed(value: f32, signs: u8, at: usize) -> f32 {
    if signs >> at & 1 == 1 { -value } else { value }
}

/// `out[k] = scale · level k of the point`, with signs.
#[inline(always)]
fn two(point: u16, scale: f32, signs: u8, out: &mut [f32; 8]) {
    for (at, out) in out.iter_mut().enumerate() {
        *out = signed(scale * f32::from(LEVELS[usize::from(point >> (2 * at) & 3)]), signs, at);
    }
}

/// Two points of four values, with their signs.
#[inline(always)]
fn three(points: [u16; 2], levels: &[u8; 8], scale: f32, signs: u8, out: &mut [f32; 8]) {
    for (at, out) in out.iter_mut().enumerate() {
        *out = signed(scale * f32::from(levels[usize::from(points[at / 4] >> (3 * (at % 4)) & 7)]), signs, at);
    }
}

#[inline(always)]
fn one(index: usize, scale: f32, shift: f32, out: &mut [f32; 8]) {
    for (at, out) in out.iter_mut().enumerate() {
        *out = scale * (f32::from(IQ1[index] >> (2 * at) & 3) - 1.0 + shift);
    }
}

#[inline(always)]
fn word_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn long_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
pub(super) fn two_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (group, item) = (2 + at / 4 * 8, at % 4);
        let signs = long_at(block, group + 4);
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
        two(IQ2_XXS[usize::from(block[group + item])], scale, even_signs(signs >> (7 * item)), out);
    }
}

/// d · (s + ½) / 4 with the half of a byte of scales that belongs to the sixteen values of part `at`.
#[inline(always)]
fn half_scale(d: f32, scales: &[u8], at: usize) -> f32 {
    d * (0.5 + f32::from(scales[at / 2] >> (at % 2 * 4) & 15)) * 0.25
}

#[inline(always)]
pub(super) fn two_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let code = word_at(block, 2 + 2 * at);
        let scale = half_scale(d, &block[66..], at / 2);
        two(IQ2_XS[usize::from(code & 511)], scale, even_signs(u32::from(code >> 9)), out);
    }
}

#[inline(always)]
pub(super) fn two_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let upper = block[66 + at / 4] >> (at % 4 * 2) & 3;
        let index = usize::from(block[2 + at]) | usize::from(upper) << 8;
        two(IQ2_S[index], half_scale(d, &block[74..], at / 2), block[34 + at], out);
    }
}

#[inline(always)]
pub(super) fn three_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let signs = long_at(block, 66 + at / 4 * 4);
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
        let points = [2 * at, 2 * at + 1].map(|item| IQ3_XXS[usize::from(block[2 + item])]);
        three(points, &XXS_LEVELS, scale, even_signs(signs >> (7 * (at % 4))), out);
    }
}

#[inline(always)]
pub(super) fn three_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = d * f32::from(1 + 2 * (block[106 + at / 8] >> (at / 4 % 2 * 4) & 15));
        let upper = block[66 + at / 4];
        let points = [2 * at, 2 * at + 1]
            .map(|item| IQ3_S[usize::from(block[2 + item]) | usize::from(upper >> (item % 8) & 1) << 8]);
        three(points, &S_LEVELS, scale, block[74 + at], out);
    }
}

/// How far the points of an IQ1 are moved.
const SHIFT: f32 = 0.125;

#[inline(always)]
pub(super) fn one_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let upper = word_at(block, 34 + at / 4 * 2);
        let scale = d * f32::from(2 * (upper >> 12 & 7) + 1);
        let index = usize::from(block[2 + at]) | usize::from(upper >> (3 * (at % 4)) & 7) << 8;
        one(index, scale, if upper & 0x8000 == 0 { SHIFT } else { -SHIFT }, out);
    }
}

#[inline(always)]
pub(super) fn one_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let scales = [48, 50, 52, 54].map(|at| word_at(block, at));
    // The top four bits of each of the words of scales together are d.
    let d = scales.iter().rev().fold(0, |bits: u16, word| bits << 4 | word >> 12);
    let d = F16::widen(d.to_le_bytes());
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = scales[at / 8] >> (3 * (at / 2 % 4)) & 7;
        let upper = block[32 + at / 2] >> (at % 2 * 4);
        let index = usize::from(block[at]) | usize::from(upper & 7) << 8;
        one(index, d * f32::from(2 * scale + 1), if upper & 8 == 0 { SHIFT } else { -SHIFT }, out);
    }
}
