//! Blocks of 32 values on one scale from their extremes.
//!
//! | type | scale | number |
//! |---|---|---|
//! | Q4_0 | d = x / −8 with x the value of largest size | ⌊x / d + 8.5⌋, at most 15 |
//! | Q4_1 | d = (max − min) / 15 | ⌊(x − min) / d + 0.5⌋, at most 15 |
//! | Q5_0, Q5_1 | the same with −16 and 31 | ⌊x / d + 16.5⌋, ⌊(x − min) / d + 0.5⌋ |
//! | Q8_0 | d = max size / 127 | x / d to nearest, ties away from 0 |

use super::lanes::{lanes, nearest};
use crate::tensor::code::{Code, F16};

/// Infinity, and above it NaN, as bits without sign.
const INFINITY: u32 = 0x7F80_0000;

/// The size of a value as bits that sort like it; NaN is 0.
#[inline(always)]
fn size(value: f32) -> u32 {
    let bits = value.to_bits() & 0x7FFF_FFFF;
    if bits > INFINITY { 0 } else { bits }
}

#[inline(always)]
fn largest_size(values: &[f32; 32]) -> u32 {
    values.iter().fold(0, |largest, &value| largest.max(size(value)))
}

/// The value of largest size, the first of several; 0 where all are.
#[inline(always)]
pub(super) fn extreme(values: &[f32; 32]) -> f32 {
    let largest = f32::from_bits(largest_size(values));
    let holds = |wanted: f32| values.iter().fold(false, |holds, &value| holds | (value == wanted));
    match (holds(largest), holds(-largest)) {
        _ if largest == 0.0 => 0.0,
        (true, false) => largest,
        (false, _) => -largest,
        (true, true) => *values.iter().find(|value| value.abs() == largest).unwrap_or(&largest),
    }
}

/// (min, max) as `if x < min` and `if x > max` find them, starting beyond all numbers.
#[inline(always)]
fn range(values: &[f32; 32]) -> (f32, f32) {
    // Eight running extremes, then one: the order does not matter to a minimum.
    let (mut low, mut high) = ([f32::MAX; 8], [-f32::MAX; 8]);
    for values in values.as_chunks::<8>().0 {
        for (&value, (low, high)) in values.iter().zip(low.iter_mut().zip(high.iter_mut())) {
            *low = if value < *low { value } else { *low };
            *high = if value > *high { value } else { *high };
        }
    }
    let least = |least: f32, &value: &f32| if value < least { value } else { least };
    let most = |most: f32, &value: &f32| if value > most { value } else { most };
    (low.iter().fold(f32::MAX, least), high.iter().fold(-f32::MAX, most))
}

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// ⌊value⌋ of positive values, at most `max`; 0 for what is no number of moderate size, as the machine has it.
#[inline(always)]
fn floors(values: [f32; 32], max: i32) -> [u8; 32] {
    if values.iter().fold(true, |small, value| small & (*value >= 0.0) & (*value < 127.0)) {
        return lanes(|at| {
            let near = nearest(values[at]);
            (near - i32::from(near as f32 > values[at])).min(max) as u8
        });
    }
    lanes(|at| {
        let moderate = if values[at].abs() < 1e9 { values[at] } else { 0.0 };
        // C casts to eight bits first.
        i32::from(moderate as i32 as i8).min(max) as u8
    })
}

/// Low halves of the first sixteen and high halves of the other sixteen.
#[inline(always)]
pub(super) fn write_halves(numbers: &[u8; 32], out: &mut [u8]) {
    for ((out, low), high) in out.iter_mut().zip(&numbers[..16]).zip(&numbers[16..]) {
        *out = low & 15 | high << 4;
    }
}

/// The fifth bits of 32 numbers.
#[inline(always)]
fn fifth_bits(numbers: &[u8; 32]) -> [u8; 4] {
    let mut out = [0; 4];
    for (out, numbers) in out.iter_mut().zip(numbers.as_chunks::<8>().0) {
        // Bit 0 of byte k, multiplied by one power of two after the other, comes to bit k of the uppermost byte once.
        let bits = u64::from_le_bytes(*numbers) >> 4 & 0x0101_0101_0101_0101;
        [.., *out] = bits.wrapping_mul(0x0102_0408_1020_4080).to_le_bytes();
    }
    out
}

#[inline(always)]
pub(super) fn q4_0(values: &[f32; 32], block: &mut [u8; 18]) {
    let d = extreme(values) / -8.0;
    let inverse = inverse(d);
    let numbers = floors(lanes(|at| values[at] * inverse + 8.5), 15);
    block[..2].copy_from_slice(&F16::nearest(d));
    write_halves(&numbers, &mut block[2..]);
}

#[inline(always)]
pub(super) fn q4_1(values: &[f32; 32], block: &mut [u8; 20]) {
    let (min, max) = range(values);
    let d = (max - min) / 15.0;
    let inverse = inverse(d);
    let numbers = floors(lanes(|at| (values[at] - min) * inverse + 0.5), 15);
    block[..2].copy_from_slice(&F16::nearest(d));
    block[2..4].copy_from_slice(&F16::nearest(min));
    write_halves(&numbers, &mut block[4..]);
}

#[inline(always)]
pub(super) fn q5_0(values: &[f32; 32], block: &mut [u8; 22]) {
    let d = extreme(values) / -16.0;
    let inverse = inverse(d);
    let numbers = floors(lanes(|at| values[at] * inverse + 16.5), 31);
    block[..2].copy_from_slice(&F16::nearest(d));
    block[2..6].copy_from_slice(&fifth_bits(&numbers));
    write_halves(&numbers, &mut block[6..]);
}

#[inline(always)]
pub(super) fn q5_1(values: &[f32; 32], block: &mut [u8; 24]) {
    let (min, max) = range(values);
    let d = (max - min) / 31.0;
    let inverse = inverse(d);
    let numbers = floors(lanes(|at| (values[at] - min) * inverse + 0.5), 31);
    block[..2].copy_from_slice(&F16::nearest(d));
    block[2..4].copy_from_slice(&F16::nearest(min));
    block[4..8].copy_from_slice(&fifth_bits(&numbers));
    write_halves(&numbers, &mut block[8..]);
}

#[inline(always)]
pub(super) fn q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let d = f32::from_bits(largest_size(values)) / 127.0;
    let inverse = inverse(d);
    block[..2].copy_from_slice(&F16::nearest(d));
    let exact: [f32; 32] = lanes(|at| values[at] * inverse);
    let numbers: [i8; 32] = if exact.iter().fold(true, |small, value| small & (value.abs() < 1e6)) {
        lanes(|at| {
            // Ties went to the even number: those on the way to 0 go back. What is cut off is exact.
            let near = nearest(exact[at]);
            let rest = exact[at] - near as f32;
            let (up, down) = ((rest == 0.5) & (exact[at] > 0.0), (rest == -0.5) & (exact[at] < 0.0));
            (near + i32::from(up) - i32::from(down)) as i8
        })
    } else {
        lanes(|at| (if exact[at].abs() < 1e9 { exact[at].round() } else { 0.0 }) as i32 as i8)
    };
    for (out, number) in block[2..].iter_mut().zip(numbers) {
        *out = number.cast_unsigned();
    }
}
