//! IQ4_NL and MXFP4: four bits that choose the nearest of sixteen levels.
//!
//! IQ4_NL tries fifteen scales besides the obvious one and keeps the best in least squares weighted by x²; sixteen blocks
//! are searched at once, one to a lane. MXFP4 has the power of two two below that of the largest value.

use super::super::fp4::{UNEVEN, half_power};
use super::lanes::{Lanes, NEGLIGIBLE, Parts, extremes, lanes, mask, put, turned};
use super::simple::write_halves;
use crate::tensor::code::{Code, F16};

/// Halfway between a level and the next: from there on the next is nearer.
const BORDERS: [f32; 15] = {
    let mut borders = [0.0; 15];
    let mut at = 0;
    while at < 15 {
        borders[at] = (UNEVEN[at] as f32 + UNEVEN[at + 1] as f32) / 2.0;
        at += 1;
    }
    borders
};

/// What is added to the level at each border.
const STEPS: [f32; 15] = {
    let mut steps = [0.0; 15];
    let mut at = 0;
    while at < 15 {
        steps[at] = UNEVEN[at + 1] as f32 - UNEVEN[at] as f32;
        at += 1;
    }
    steps
};

const LOWEST: f32 = UNEVEN[0] as f32;

/// The level nearest to `value`. What is no number gets the last, as in ggml's search.
#[inline(always)]
fn level<const N: usize>(value: &Lanes<N>) -> Lanes<N> {
    let mut level = [LOWEST; N];
    for (border, step) in BORDERS.into_iter().zip(STEPS) {
        for lane in 0..N {
            // Not `>=`: NaN passes every border.
            level[lane] += if value[lane] < border { 0.0 } else { step };
        }
    }
    level
}

/// The index of the level nearest to `value`.
#[inline(always)]
fn index<const N: usize>(value: &Lanes<N>) -> [u8; N] {
    let mut index = [0; N];
    for border in BORDERS {
        for lane in 0..N {
            index[lane] += if value[lane] < border { 0 } else { 1 };
        }
    }
    index
}

#[inline(always)]
pub(super) fn iq4_nl(values: &[f32; 512], blocks: &mut [u8; 288]) {
    const TRIES: i8 = 7;
    let x: Parts<16, 32> = turned(values);
    let (extreme, size) = extremes(&x);
    let sums = |inverse: &Lanes<16>| {
        let (mut sum_qx, mut sum_q2) = ([0.0; 16], [0.0; 16]);
        for x in &x {
            let level: Lanes<16> = level(&lanes(|lane| inverse[lane] * x[lane]));
            for lane in 0..16 {
                let wq = x[lane] * x[lane] * level[lane];
                sum_qx[lane] += wq * x[lane];
                sum_q2[lane] += wq * level[lane];
            }
        }
        (sum_qx, sum_q2)
    };
    let (sum_qx, sum_q2) = sums(&lanes(|lane| 1.0 / (-extreme[lane] / LOWEST)));
    let mut scale: Lanes<16> = lanes(|lane| sum_qx[lane] / sum_q2[lane]);
    let mut best: Lanes<16> = lanes(|lane| scale[lane] * sum_qx[lane]);
    for step in -TRIES..=TRIES {
        let (sum_qx, sum_q2) = sums(&lanes(|lane| (f32::from(step) + LOWEST) / extreme[lane]));
        let better = mask(|lane| (sum_q2[lane] > 0.0) & (sum_qx[lane] * sum_qx[lane] > best[lane] * sum_q2[lane]));
        let found: Lanes<16> = lanes(|lane| sum_qx[lane] / sum_q2[lane]);
        put(&better, &found, &mut scale);
        put(&better, &lanes(|lane| found[lane] * sum_qx[lane]), &mut best);
    }
    let scale: Lanes<16> = lanes(|lane| if size[lane] < NEGLIGIBLE { 0.0 } else { scale[lane] });
    let inverse: Lanes<16> = lanes(|lane| if scale[lane] == 0.0 { 0.0 } else { 1.0 / scale[lane] });
    let mut numbers = [[0; 16]; 32];
    for (numbers, x) in numbers.iter_mut().zip(&x) {
        *numbers = index(&lanes::<16, _>(|lane| inverse[lane] * x[lane]));
    }
    for (lane, block) in blocks.as_chunks_mut::<18>().0.iter_mut().enumerate() {
        block[..2].copy_from_slice(&F16::nearest(scale[lane]));
        write_halves(&numbers.map(|numbers| numbers[lane]), &mut block[2..]);
    }
}

#[inline(always)]
pub(super) fn mxfp4(values: &[f32; 32], block: &mut [u8; 17]) {
    /// Halfway between the doubled E2M1 numbers.
    const BORDERS: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
    let size = super::simple::extreme(values).abs();
    // The logarithm is rounded to f32, so values just below a power of two may count as it: as in C.
    let power = if size > 0.0 { (f64::from(size).log2() as f32).floor() - 2.0 + 127.0 } else { 0.0 };
    let e = power.clamp(0.0, 254.0) as u8;
    let scale = half_power(e);
    let borders = BORDERS.map(|border| border * scale);
    let mut numbers = [0; 32];
    for (number, &value) in numbers.iter_mut().zip(values) {
        let above = borders.iter().fold(0, |above, &border| above + u8::from(value.abs() > border));
        *number = above | u8::from(above > 0 && value < 0.0) << 3;
    }
    block[0] = e;
    write_halves(&numbers, &mut block[1..]);
}
