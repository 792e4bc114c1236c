//! Blocks of the K types: the scales of the parts are searched for, then made integers on the block's own scale, and the
//! numbers are chosen again for what those say. The layouts stand in `super::super::k`.

use super::super::k::{six_bits, three_scale};
use super::lanes::{Lanes, NEGLIGIBLE, Parts, each, lanes, nearest, turned};
use super::parts::{Found, Search, one_by_one, symmetric, with_minimum};
use crate::tensor::code::{Code, F16};
use crate::tensor::simd::Simd;

/// The largest of some scales, 0 at least.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest })
}

/// The scale of largest size, the first of several, with its sign; 0 at least.
#[inline(always)]
fn furthest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |furthest: f32, &value| if value.abs() > furthest.abs() { value } else { furthest })
}

/// The numbers for what is stored of the scales: (x + min) / scale between `range`, plus `zero`; where a scale is 0 the
/// numbers stay what they were.
#[inline(always)]
fn renumber<const N: usize, const LENGTH: usize>(
    x: &Parts<N, LENGTH>,
    scale: &Lanes<N>,
    min: &Lanes<N>,
    (low, high): (i32, i32),
    numbers: &mut [[u8; N]; LENGTH],
) {
    for (x, numbers) in x.iter().zip(numbers) {
        for lane in 0..N {
            let q = (nearest((x[lane] + min[lane]) / scale[lane]).min(high).max(low) - low) as u8;
            numbers[lane] = if scale[lane] == 0.0 { numbers[lane] } else { q };
        }
    }
}

/// The numbers in the order of the values.
#[inline(always)]
fn in_order<const N: usize, const LENGTH: usize, const ALL: usize>(numbers: &[[u8; N]; LENGTH]) -> [u8; ALL] {
    let mut out = [0; ALL];
    for (lane, part) in out.as_chunks_mut::<LENGTH>().0.iter_mut().enumerate() {
        for (out, numbers) in part.iter_mut().zip(numbers) {
            *out = numbers[lane];
        }
    }
    out
}

/// Two bits each of four runs of 32, in each half of the block.
#[inline(always)]
fn write_two_bits(numbers: &[u8; 256], out: &mut [u8]) {
    for (numbers, out) in numbers.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (at, out) in out.iter_mut().enumerate() {
            let [a, b, c, d] = [0, 32, 64, 96].map(|run| numbers[run + at] & 3);
            *out = a | b << 2 | c << 4 | d << 6;
        }
    }
}

#[inline(always)]
pub(super) fn q2<const W: usize, S: Simd<W>>(simd: S, values: &[f32; 512], blocks: &mut [u8; 168]) {
    const SEARCH: Search = Search { max: 3, first: -0.5, step: 0.1, steps: 15, absolute: true };
    let x: Parts<32, 16> = turned(values);
    let w: Parts<32, 16> = each(|at, lane| x[at][lane].abs());
    let mut found = with_minimum(simd, &x, &w, SEARCH);
    let blocks = blocks.as_chunks_mut::<84>().0;
    let (mut scales, mut minima) = ([0.0; 32], [0.0; 32]);
    for (at, block) in blocks.iter_mut().enumerate() {
        let own = at * 16..at * 16 + 16;
        let (d, dmin) = sixteen_halves(&found.scale[own.clone()], &found.min[own.clone()], block);
        for (lane, &kept) in own.zip(&block[..16]) {
            (scales[lane], minima[lane]) = (d * f32::from(kept & 15), dmin * f32::from(kept >> 4));
        }
    }
    renumber(&x, &scales, &minima, (0, 3), &mut found.numbers);
    let numbers: [u8; 512] = in_order(&found.numbers);
    for (block, numbers) in blocks.iter_mut().zip(numbers.as_chunks::<256>().0) {
        write_two_bits(numbers, &mut block[16..80]);
    }
}

/// Writes four bits of each of sixteen scales and minima, d and dmin; returns these two.
#[inline(always)]
fn sixteen_halves(scales: &[f32], minima: &[f32], block: &mut [u8; 84]) -> (f32, f32) {
    const TOP: f32 = 15.0;
    let (scale, min) = (largest(scales), largest(minima));
    let stored = |largest: f32, value: f32| if largest > 0.0 { nearest(TOP / largest * value) as u8 } else { 0 };
    for (out, (&part, &minimum)) in block.iter_mut().zip(scales.iter().zip(minima)) {
        *out = stored(scale, part) | stored(min, minimum) << 4;
    }
    let d = F16::nearest(if scale > 0.0 { scale / TOP } else { 0.0 });
    let dmin = F16::nearest(if min > 0.0 { min / TOP } else { 0.0 });
    block[80..82].copy_from_slice(&d);
    block[82..84].copy_from_slice(&dmin);
    (F16::widen(d), F16::widen(dmin))
}

/// Two blocks: their searches run side by side, each a chain of operations that wait for one another.
#[inline(always)]
pub(super) fn q3(values: &[f32; 512], blocks: &mut [u8; 220]) {
    let x: Parts<32, 16> = turned(values);
    let mut found = one_by_one(&x, 4);
    let mut heads = [[0; 14]; 2];
    let mut kept = [0.0; 32];
    for (at, head) in heads.iter_mut().enumerate() {
        *head = sixteen_scales(&found.scale[at * 16..at * 16 + 16]);
        let wide = F16::widen([head[12], head[13]]);
        for part in 0..16 {
            kept[at * 16 + part] = wide * three_scale(&head[..12], part) as f32;
        }
    }
    renumber(&x, &kept, &[0.0; 32], (-4, 3), &mut found.numbers);
    let numbers: [u8; 512] = in_order(&found.numbers);
    let blocks = blocks.as_chunks_mut::<110>().0.iter_mut();
    for ((block, head), numbers) in blocks.zip(heads).zip(numbers.as_chunks::<256>().0) {
        for (at, out) in block[..32].iter_mut().enumerate() {
            *out = (0..8).fold(0, |bits, run| bits | (numbers[run * 32 + at] >> 2 & 1) << run);
        }
        write_two_bits(numbers, &mut block[32..96]);
        block[96..].copy_from_slice(&head);
    }
}

/// The tail of a Q3_K: six bits of each of sixteen scales, and d.
#[inline(always)]
fn sixteen_scales(scales: &[f32]) -> [u8; 14] {
    let mut tail = [0; 14];
    let furthest = furthest(scales);
    if furthest != 0.0 {
        let inverse = -32.0 / furthest;
        for (at, &scale) in scales.iter().enumerate() {
            let stored = (i32::from(nearest(inverse * scale) as i8).clamp(-32, 31) + 32) as u8;
            tail[at % 8] |= (stored & 15) << (4 * (at / 8));
            tail[8 + at % 4] |= stored >> 4 << (2 * (at / 4));
        }
        tail[12..].copy_from_slice(&F16::nearest(1.0 / inverse));
    }
    tail
}

/// Scales and minima of the eight parts of 32 of four blocks: searched for, and as the twelve bytes and two halves that keep them.
#[inline(always)]
fn eight_parts<const W: usize, S: Simd<W>>(
    simd: S,
    values: &[f32; 1024],
    search: Search,
) -> ([[u8; 16]; 4], [u8; 1024]) {
    let x: Parts<32, 32> = turned(values);
    let mut squares = [0.0; 32];
    for x in &x {
        for lane in 0..32 {
            squares[lane] += x[lane] * x[lane];
        }
    }
    let typical: Lanes<32> = lanes(|lane| (squares[lane] / 32.0).sqrt());
    let w: Parts<32, 32> = each(|at, lane| typical[lane] + x[at][lane].abs());
    let mut found: Found<32, 32> = with_minimum(simd, &x, &w, search);
    let mut heads = [[0; 16]; 4];
    let (mut scales, mut minima) = ([0.0; 32], [0.0; 32]);
    for (at, head) in heads.iter_mut().enumerate() {
        let own = at * 8..at * 8 + 8;
        *head = eight_scales(&found.scale[own.clone()], &found.min[own.clone()]);
        let (d, dmin) = (F16::widen([head[0], head[1]]), F16::widen([head[2], head[3]]));
        for (part, lane) in own.enumerate() {
            let kept = six_bits(&head[4..], part);
            (scales[lane], minima[lane]) = (d * f32::from(kept.0), dmin * f32::from(kept.1));
        }
    }
    renumber(&x, &scales, &minima, (0, search.max), &mut found.numbers);
    (heads, in_order(&found.numbers))
}

/// The head of a block: d, dmin, and six bits of each of eight scales and minima.
#[inline(always)]
fn eight_scales(scales: &[f32], minima: &[f32]) -> [u8; 16] {
    const TOP: f32 = 63.0;
    let (scale, min) = (largest(scales), largest(minima));
    let inverse = |largest: f32| if largest > 0.0 { TOP / largest } else { 0.0 };
    let stored = |inverse: f32, value: f32| (nearest(inverse * value) as u8).min(63);
    let mut head = [0; 16];
    head[..2].copy_from_slice(&F16::nearest(scale / TOP));
    head[2..4].copy_from_slice(&F16::nearest(min / TOP));
    for at in 0..8 {
        let scale = stored(inverse(scale), scales[at]);
        let min = stored(inverse(min), minima[at]);
        if at < 4 {
            head[4 + at] = scale;
            head[8 + at] = min;
        } else {
            head[8 + at] = scale & 15 | (min & 15) << 4;
            head[at] |= scale >> 4 << 6;
            head[4 + at] |= min >> 4 << 6;
        }
    }
    head
}

/// Low halves of a run of 32 with those of the next as high ones.
#[inline(always)]
fn write_low_halves(numbers: &[u8; 256], out: &mut [u8]) {
    for (numbers, out) in numbers.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (at, out) in out.iter_mut().enumerate() {
            *out = numbers[at] & 15 | numbers[32 + at] << 4;
        }
    }
}

#[inline(always)]
pub(super) fn q4<const W: usize, S: Simd<W>>(simd: S, values: &[f32; 1024], blocks: &mut [u8; 576]) {
    let search = Search { max: 15, first: -1.0, step: 0.1, steps: 20, absolute: false };
    let (heads, numbers) = eight_parts(simd, values, search);
    let blocks = blocks.as_chunks_mut::<144>().0.iter_mut();
    for ((block, head), numbers) in blocks.zip(heads).zip(numbers.as_chunks::<256>().0) {
        block[..16].copy_from_slice(&head);
        write_low_halves(numbers, &mut block[16..]);
    }
}

#[inline(always)]
pub(super) fn q5<const W: usize, S: Simd<W>>(simd: S, values: &[f32; 1024], blocks: &mut [u8; 704]) {
    let search = Search { max: 31, first: -0.5, step: 0.1, steps: 15, absolute: false };
    let (heads, numbers) = eight_parts(simd, values, search);
    let blocks = blocks.as_chunks_mut::<176>().0.iter_mut();
    for ((block, head), numbers) in blocks.zip(heads).zip(numbers.as_chunks::<256>().0) {
        block[..16].copy_from_slice(&head);
        for (at, out) in block[16..48].iter_mut().enumerate() {
            *out = (0..8).fold(0, |bits, run| bits | (numbers[run * 32 + at] >> 4 & 1) << run);
        }
        write_low_halves(numbers, &mut block[48..]);
    }
}

#[inline(always)]
pub(super) fn q6<const W: usize, S: Simd<W>>(simd: S, values: &[f32; 512], blocks: &mut [u8; 420]) {
    let x: Parts<32, 16> = turned(values);
    let mut found = symmetric(simd, &x, 32);
    let mut tails = [[0; 18]; 2];
    let mut scales = [0.0; 32];
    for (at, tail) in tails.iter_mut().enumerate() {
        let own = at * 16..at * 16 + 16;
        *tail = sixteen_bytes(&found.scale[own.clone()]);
        let d = F16::widen([tail[16], tail[17]]);
        for (lane, kept) in own.zip(*tail) {
            scales[lane] = d * f32::from(kept.cast_signed());
        }
    }
    renumber(&x, &scales, &[0.0; 32], (-32, 31), &mut found.numbers);
    let numbers: [u8; 512] = in_order(&found.numbers);
    let blocks = blocks.as_chunks_mut::<210>().0.iter_mut();
    for (at, (block, numbers)) in blocks.zip(numbers.as_chunks::<256>().0).enumerate() {
        if furthest(&found.scale[at * 16..at * 16 + 16]).abs() < NEGLIGIBLE {
            block.fill(0);
            continue;
        }
        let (low, rest) = block.split_at_mut(128);
        for ((numbers, low), high) in
            numbers.as_chunks::<128>().0.iter().zip(low.as_chunks_mut::<64>().0).zip(rest.as_chunks_mut::<32>().0)
        {
            for (at, high) in high.iter_mut().enumerate() {
                let [a, b, c, d] = [0, 32, 64, 96].map(|run| numbers[run + at]);
                low[at] = a & 15 | c << 4;
                low[32 + at] = b & 15 | d << 4;
                *high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
            }
        }
        rest[64..].copy_from_slice(&tails[at]);
    }
}

/// The tail of a Q6_K: sixteen scales, and d.
#[inline(always)]
fn sixteen_bytes(scales: &[f32]) -> [u8; 18] {
    let inverse = -128.0 / furthest(scales);
    let mut tail = [0; 18];
    for (out, scale) in tail.iter_mut().zip(scales) {
        *out = (nearest(inverse * scale).min(127) as i8).cast_unsigned();
    }
    tail[16..].copy_from_slice(&F16::nearest(1.0 / inverse));
    tail
}
