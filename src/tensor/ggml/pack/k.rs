//! Blocks of the K types: the scales of the parts are searched for, then made integers on the block's own scale, and the
//! numbers are chosen again for what those say. The layouts stand in `super::super::k`.

use super::super::k::{six_bits, three_scale};
use super::lanes::{Lanes, NEGLIGIBLE, Parts, lanes, nearest, turned};
use super::parts::{Found, Search, one_by_one, symmetric, with_minimum};
use crate::tensor::code::{Code, F16};

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
fn in_order<const N: usize, const LENGTH: usize>(numbers: &[[u8; N]; LENGTH]) -> [u8; 256] {
    let mut out = [0; 256];
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
pub(super) fn q2(values: &[f32; 256], block: &mut [u8; 84]) {
    const SEARCH: Search = Search { max: 3, first: -0.5, step: 0.1, steps: 15, absolute: true };
    const TOP: f32 = 15.0;
    let x: Parts<16, 16> = turned(values);
    let w = x.map(|x| lanes(|lane| x[lane].abs()));
    let mut found = with_minimum(&x, &w, SEARCH);
    let (scale, min) = (largest(&found.scale), largest(&found.min));
    let stored = |largest: f32, value: f32| if largest > 0.0 { nearest(TOP / largest * value) as u8 } else { 0 };
    for (out, (&part, &minimum)) in block.iter_mut().zip(found.scale.iter().zip(&found.min)) {
        *out = stored(scale, part) | stored(min, minimum) << 4;
    }
    let d = F16::nearest(if scale > 0.0 { scale / TOP } else { 0.0 });
    let dmin = F16::nearest(if min > 0.0 { min / TOP } else { 0.0 });
    let (d_wide, dmin_wide) = (F16::widen(d), F16::widen(dmin));
    let scales = lanes(|lane| d_wide * f32::from(block[lane] & 15));
    let minima = lanes(|lane| dmin_wide * f32::from(block[lane] >> 4));
    renumber(&x, &scales, &minima, (0, 3), &mut found.numbers);
    write_two_bits(&in_order(&found.numbers), &mut block[16..80]);
    block[80..82].copy_from_slice(&d);
    block[82..84].copy_from_slice(&dmin);
}

#[inline(always)]
pub(super) fn q3(values: &[f32; 256], block: &mut [u8; 110]) {
    let x: Parts<16, 16> = turned(values);
    let mut found = one_by_one(&x, 4);
    let furthest = furthest(&found.scale);
    let mut scales = [0; 12];
    let mut d = [0; 2];
    if furthest != 0.0 {
        let inverse = -32.0 / furthest;
        for (at, &scale) in found.scale.iter().enumerate() {
            let stored = (i32::from(nearest(inverse * scale) as i8).clamp(-32, 31) + 32) as u8;
            scales[at % 8] |= (stored & 15) << (4 * (at / 8));
            scales[8 + at % 4] |= stored >> 4 << (2 * (at / 4));
        }
        d = F16::nearest(1.0 / inverse);
    }
    let wide = F16::widen(d);
    let kept = lanes(|lane| wide * three_scale(&scales, lane) as f32);
    renumber(&x, &kept, &[0.0; 16], (-4, 3), &mut found.numbers);
    let numbers = in_order(&found.numbers);
    for (at, out) in block[..32].iter_mut().enumerate() {
        *out = (0..8).fold(0, |bits, run| bits | (numbers[run * 32 + at] >> 2 & 1) << run);
    }
    write_two_bits(&numbers, &mut block[32..96]);
    block[96..108].copy_from_slice(&scales);
    block[108..].copy_from_slice(&d);
}

/// Scales and minima of eight parts of 32: searched for, and as the twelve bytes and two halves that keep them.
#[inline(always)]
fn eight_parts(values: &[f32; 256], search: Search) -> ([u8; 16], [u8; 256]) {
    const TOP: f32 = 63.0;
    let x: Parts<8, 32> = turned(values);
    let mut squares = [0.0; 8];
    for x in &x {
        for lane in 0..8 {
            squares[lane] += x[lane] * x[lane];
        }
    }
    let typical: Lanes<8> = lanes(|lane| (squares[lane] / 32.0).sqrt());
    let w = x.map(|x| lanes(|lane| typical[lane] + x[lane].abs()));
    let mut found: Found<8, 32> = with_minimum(&x, &w, search);
    let (scale, min) = (largest(&found.scale), largest(&found.min));
    let inverse = |largest: f32| if largest > 0.0 { TOP / largest } else { 0.0 };
    let stored = |inverse: f32, value: f32| (nearest(inverse * value) as u8).min(63);
    let mut head = [0; 16];
    let (d, dmin) = (F16::nearest(scale / TOP), F16::nearest(min / TOP));
    head[..2].copy_from_slice(&d);
    head[2..4].copy_from_slice(&dmin);
    for at in 0..8 {
        let scale = stored(inverse(scale), found.scale[at]);
        let min = stored(inverse(min), found.min[at]);
        if at < 4 {
            head[4 + at] = scale;
            head[8 + at] = min;
        } else {
            head[8 + at] = scale & 15 | (min & 15) << 4;
            head[at] |= scale >> 4 << 6;
            head[4 + at] |= min >> 4 << 6;
        }
    }
    let (d, dmin) = (F16::widen(d), F16::widen(dmin));
    let kept: [(u8, u8); 8] = lanes(|lane| six_bits(&head[4..], lane));
    let scales = lanes(|lane| d * f32::from(kept[lane].0));
    let minima = lanes(|lane| dmin * f32::from(kept[lane].1));
    renumber(&x, &scales, &minima, (0, search.max), &mut found.numbers);
    (head, in_order(&found.numbers))
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
pub(super) fn q4(values: &[f32; 256], block: &mut [u8; 144]) {
    let search = Search { max: 15, first: -1.0, step: 0.1, steps: 20, absolute: false };
    let (head, numbers) = eight_parts(values, search);
    block[..16].copy_from_slice(&head);
    write_low_halves(&numbers, &mut block[16..]);
}

#[inline(always)]
pub(super) fn q5(values: &[f32; 256], block: &mut [u8; 176]) {
    let search = Search { max: 31, first: -0.5, step: 0.1, steps: 15, absolute: false };
    let (head, numbers) = eight_parts(values, search);
    block[..16].copy_from_slice(&head);
    for (at, out) in block[16..48].iter_mut().enumerate() {
        *out = (0..8).fold(0, |bits, run| bits | (numbers[run * 32 + at] >> 4 & 1) << run);
    }
    write_low_halves(&numbers, &mut block[48..]);
}

#[inline(always)]
pub(super) fn q6(values: &[f32; 256], block: &mut [u8; 210]) {
    let x: Parts<16, 16> = turned(values);
    let mut found = symmetric(&x, 32);
    let furthest = furthest(&found.scale);
    if furthest.abs() < NEGLIGIBLE {
        block.fill(0);
        return;
    }
    let inverse = -128.0 / furthest;
    let d = F16::nearest(1.0 / inverse);
    let wide = F16::widen(d);
    let kept: [i8; 16] = lanes(|lane| nearest(inverse * found.scale[lane]).min(127) as i8);
    let scales = lanes(|lane| wide * f32::from(kept[lane]));
    renumber(&x, &scales, &[0.0; 16], (-32, 31), &mut found.numbers);
    let numbers = in_order(&found.numbers);
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
    for (out, scale) in rest[64..80].iter_mut().zip(kept) {
        *out = scale.cast_unsigned();
    }
    rest[80..].copy_from_slice(&d);
}
