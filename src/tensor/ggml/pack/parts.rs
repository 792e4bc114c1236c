//! The search for scales: for every part of a block the one (and the minimum) whose numbers come nearest to the values,
//! in weighted least squares.
//!
//! For given numbers q the best scale is Σ w x q / Σ w q², and with a minimum m the solution of a 2 × 2 system. The
//! numbers come from scales tried around the obvious one. These are `make_qx_quants`, `make_q3_quants` and
//! `make_qkx2_quants` of ggml, with its weights and its candidates.

use super::lanes::{Lanes, NEGLIGIBLE, Number, Parts, each, extremes, is_moderate, lanes, mask, nearest, put};
use crate::tensor::simd::Simd;

/// What was found for the parts.
pub(super) struct Found<const N: usize, const LENGTH: usize> {
    pub scale: Lanes<N>,
    /// To be taken off; not negative. 0 where the type has none.
    pub min: Lanes<N>,
    /// The numbers of the best candidate, as they are stored.
    pub numbers: [[u8; N]; LENGTH],
}

/// How a search with a minimum goes.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// Largest number.
    pub max: i32,
    /// Candidates are (first + step · k + max) / range, for k from 0 to `steps`.
    pub first: f32,
    pub step: f32,
    pub steps: u8,
    /// Whether the candidates are compared by |error| instead of its square.
    pub absolute: bool,
}

#[inline(always)]
fn error(search: Search, difference: f32) -> f32 {
    if search.absolute { difference.abs() } else { difference * difference }
}

/// Scales and minima with weights `w`.
#[inline(always)]
pub(super) fn with_minimum<const W: usize, S: Simd<W>, const N: usize, const LENGTH: usize>(
    simd: S,
    x: &Parts<N, LENGTH>,
    w: &Parts<N, LENGTH>,
    search: Search,
) -> Found<N, LENGTH> {
    let (mut low, mut high) = (x[0], x[0]);
    let mut sum_w = w[0];
    let mut sum_x: Lanes<N> = lanes(|lane| w[0][lane] * x[0][lane]);
    for (x, w) in x.iter().zip(w).skip(1) {
        for lane in 0..N {
            low[lane] = if x[lane] < low[lane] { x[lane] } else { low[lane] };
            high[lane] = if x[lane] > high[lane] { x[lane] } else { high[lane] };
            sum_w[lane] += w[lane];
            sum_x[lane] += w[lane] * x[lane];
        }
    }
    let low: Lanes<N> = lanes(|lane| if low[lane] > 0.0 { 0.0 } else { low[lane] });
    let flat: [bool; N] = lanes(|lane| low[lane] == high[lane]);
    let (number, top) = (Number::between(0, search.max), search.max as f32);

    let mut inverse: Lanes<N> = lanes(|lane| top / (high[lane] - low[lane]));
    let mut scale: Lanes<N> = lanes(|lane| 1.0 / inverse[lane]);
    // ggml counts the next candidates from the best minimum so far; `from` is where the best numbers were counted from.
    let (mut min, mut from) = (low, low);
    let mut best = [0.0; N];
    for (x, w) in x.iter().zip(w) {
        for lane in 0..N {
            let q = number.of(inverse[lane] * (x[lane] - low[lane]));
            best[lane] += w[lane] * error(search, scale[lane] * q + low[lane] - x[lane]);
        }
    }
    // Not where a value is no number.
    let finite = sum_x.iter().fold(true, |finite, sum| finite & sum.is_finite());
    let mut tries = [[0.0; N]; LENGTH];
    for step in 0..=search.steps {
        let tried: Lanes<N> =
            lanes(|lane| (search.first + search.step * f32::from(step) + top) / (high[lane] - min[lane]));
        let ends = [low, high].map(|end| lanes(|lane| tried[lane] * (end[lane] - min[lane])));
        let sums = if finite && ends.iter().all(is_moderate::<N>) {
            try_moderate(simd, [x, w], [&tried, &min], number, &mut tries)
        } else {
            try_numbers([x, w], [&tried, &min], number, &mut tries)
        };
        let [sum_l, sum_l2, sum_xl] = sums;
        let determinant: Lanes<N> = lanes(|lane| sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane]);
        let solved: Lanes<N> =
            lanes(|lane| (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / determinant[lane]);
        let above = mask(|lane| solved[lane] > 0.0);
        let (mut new_min, mut new_scale) = (solved, [0.0; N]);
        for lane in 0..N {
            new_scale[lane] = (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / determinant[lane];
        }
        put(&above, &[0.0; N], &mut new_min);
        put(&above, &lanes(|lane| sum_xl[lane] / sum_l2[lane]), &mut new_scale);
        let errors = errors(simd, search, [x, w, &tries], [&new_scale, &new_min]);
        let better = mask(|lane| (determinant[lane] > 0.0) & (errors[lane] < best[lane]));
        put(&better, &errors, &mut best);
        put(&better, &new_scale, &mut scale);
        put(&better, &min, &mut from);
        put(&better, &new_min, &mut min);
        put(&better, &tried, &mut inverse);
    }
    let mut numbers = [[0; N]; LENGTH];
    for (x, numbers) in x.iter().zip(&mut numbers) {
        for lane in 0..N {
            let q = nearest(inverse[lane] * (x[lane] - from[lane])).min(search.max).max(0) as u8;
            numbers[lane] = if flat[lane] { 0 } else { q };
        }
    }
    Found { scale: lanes(|lane| if flat[lane] { 0.0 } else { scale[lane] }), min: lanes(|lane| -min[lane]), numbers }
}

/// The numbers that inverse scales and minima give, and their sums Σ w q, Σ w q² and Σ w q x.
#[inline(always)]
fn try_numbers<const N: usize, const LENGTH: usize>(
    [x, w]: [&Parts<N, LENGTH>; 2],
    [inverse, min]: [&Lanes<N>; 2],
    number: Number,
    numbers: &mut Parts<N, LENGTH>,
) -> [Lanes<N>; 3] {
    let mut sums = [[0.0; N]; 3];
    for ((x, w), numbers) in x.iter().zip(w).zip(numbers) {
        for lane in 0..N {
            let q = number.of(inverse[lane] * (x[lane] - min[lane]));
            numbers[lane] = q;
            let wq = w[lane] * q;
            sums[0][lane] += wq;
            sums[1][lane] += wq * q;
            sums[2][lane] += wq * x[lane];
        }
    }
    sums
}

/// The same where what is rounded is moderate.
#[inline(always)]
fn try_moderate<const W: usize, S: Simd<W>, const N: usize, const LENGTH: usize>(
    simd: S,
    [x, w]: [&Parts<N, LENGTH>; 2],
    [inverse, min]: [&Lanes<N>; 2],
    number: Number,
    numbers: &mut Parts<N, LENGTH>,
) -> [Lanes<N>; 3] {
    let zero = simd.splat(0.0);
    let mut sums = [[zero; 3]; GROUPS];
    for ((x, w), numbers) in x.iter().zip(w).zip(numbers) {
        for (at, sums) in sums[..N / W].iter_mut().enumerate() {
            let x = load(simd, at, x);
            let above = simd.sub(x, load(simd, at, min));
            let q = number.of_moderate(simd, simd.mul(load(simd, at, inverse), above));
            numbers.as_chunks_mut::<W>().0[at] = simd.store(q);
            let wq = simd.mul(load(simd, at, w), q);
            sums[0] = simd.add(sums[0], wq);
            sums[1] = simd.add(sums[1], simd.mul(wq, q));
            sums[2] = simd.add(sums[2], simd.mul(wq, x));
        }
    }
    stored(simd, sums)
}

/// Vectors of lanes that are worked on at once, at most: 32 lanes of four.
const GROUPS: usize = 8;

/// Sums of all lanes, kind by kind.
#[inline(always)]
fn stored<const W: usize, S: Simd<W>, const N: usize, const KINDS: usize>(
    simd: S,
    sums: [[S::Vector; KINDS]; GROUPS],
) -> [Lanes<N>; KINDS] {
    let mut all = [[0.0; N]; KINDS];
    for (at, sums) in sums[..N / W].iter().enumerate() {
        for (all, sum) in all.iter_mut().zip(sums) {
            all.as_chunks_mut::<W>().0[at] = simd.store(*sum);
        }
    }
    all
}

/// The lanes from `at` · `W` on.
#[inline(always)]
fn load<const W: usize, S: Simd<W>, const N: usize>(simd: S, at: usize, lanes: &Lanes<N>) -> S::Vector {
    simd.load(&lanes.as_chunks::<W>().0[at])
}

/// Σ w · error of values, weights and numbers on a scale above a minimum.
#[inline(always)]
fn errors<const W: usize, S: Simd<W>, const N: usize, const LENGTH: usize>(
    simd: S,
    search: Search,
    [x, w, numbers]: [&Parts<N, LENGTH>; 3],
    [scale, min]: [&Lanes<N>; 2],
) -> Lanes<N> {
    let zero = simd.splat(0.0);
    let mut sums = [zero; GROUPS];
    for ((x, w), numbers) in x.iter().zip(w).zip(numbers) {
        for (at, sum) in sums[..N / W].iter_mut().enumerate() {
            let stored = simd.add(simd.mul(load(simd, at, scale), load(simd, at, numbers)), load(simd, at, min));
            let difference = simd.sub(stored, load(simd, at, x));
            let error = if search.absolute { simd.largest(difference, zero) } else { simd.mul(difference, difference) };
            *sum = simd.add(*sum, simd.mul(load(simd, at, w), error));
        }
    }
    let mut all = [0.0; N];
    for (all, sum) in all.as_chunks_mut::<W>().0.iter_mut().zip(sums) {
        *all = simd.store(sum);
    }
    all
}

/// Scales for numbers from −max to max − 1 with the weights x², stored with max added.
#[inline(always)]
pub(super) fn symmetric<const W: usize, S: Simd<W>, const N: usize, const LENGTH: usize>(
    simd: S,
    x: &Parts<N, LENGTH>,
    max: i32,
) -> Found<N, LENGTH> {
    let (extreme, size) = extremes(x);
    let (number, top) = (Number::between(-max, max - 1), max as f32);
    let w: Parts<N, LENGTH> = each(|at, lane| x[at][lane] * x[at][lane]);
    let mut wx = w;
    for (wx, x) in wx.iter_mut().zip(x) {
        for lane in 0..N {
            wx[lane] *= x[lane];
        }
    }
    let mut inverse: Lanes<N> = lanes(|lane| -top / extreme[lane]);
    let [sum_lx, sum_l2] = weighed([x, &w, &wx], &inverse, number);
    let mut scale: Lanes<N> = lanes(|lane| if sum_l2[lane] == 0.0 { 0.0 } else { sum_lx[lane] / sum_l2[lane] });
    let mut best: Lanes<N> = lanes(|lane| scale[lane] * sum_lx[lane]);
    // No value is larger than the extreme, and none is no number where the sums are numbers.
    let moderate = is_moderate::<N>(&lanes(|lane| inverse[lane] * NEGLIGIBLE))
        && sum_l2.iter().fold(true, |finite, sum| finite & sum.is_finite());
    for step in (-9_i8..=9).filter(|step| *step != 0) {
        let tried: Lanes<N> = lanes(|lane| -(top + 0.1 * f32::from(step)) / extreme[lane]);
        let [sum_lx, sum_l2] = if moderate {
            weighed_moderate(simd, [x, &w, &wx], &tried, number)
        } else {
            weighed([x, &w, &wx], &tried, number)
        };
        let better = mask(|lane| (sum_l2[lane] > 0.0) & (sum_lx[lane] * sum_lx[lane] > best[lane] * sum_l2[lane]));
        let found: Lanes<N> = lanes(|lane| sum_lx[lane] / sum_l2[lane]);
        put(&better, &found, &mut scale);
        put(&better, &lanes(|lane| found[lane] * sum_lx[lane]), &mut best);
        put(&better, &tried, &mut inverse);
    }
    let zero: [bool; N] = lanes(|lane| size[lane] < NEGLIGIBLE);
    let mut numbers = [[0; N]; LENGTH];
    for (x, numbers) in x.iter().zip(&mut numbers) {
        for lane in 0..N {
            let q = (nearest(inverse[lane] * x[lane]).min(max - 1).max(-max) + max) as u8;
            numbers[lane] = if zero[lane] { 0 } else { q };
        }
    }
    Found { scale: lanes(|lane| if zero[lane] { 0.0 } else { scale[lane] }), min: [0.0; N], numbers }
}

/// Σ w x q and Σ w q² of the numbers that inverse scales give; of values, weights and values times weights.
#[inline(always)]
fn weighed<const N: usize, const LENGTH: usize>(
    [x, w, wx]: [&Parts<N, LENGTH>; 3],
    inverse: &Lanes<N>,
    number: Number,
) -> [Lanes<N>; 2] {
    let mut sums = [[0.0; N]; 2];
    for ((x, w), wx) in x.iter().zip(w).zip(wx) {
        for lane in 0..N {
            let q = number.of(inverse[lane] * x[lane]);
            sums[0][lane] += wx[lane] * q;
            sums[1][lane] += w[lane] * q * q;
        }
    }
    sums
}

/// The same where what is rounded is moderate.
#[inline(always)]
fn weighed_moderate<const W: usize, S: Simd<W>, const N: usize, const LENGTH: usize>(
    simd: S,
    [x, w, wx]: [&Parts<N, LENGTH>; 3],
    inverse: &Lanes<N>,
    number: Number,
) -> [Lanes<N>; 2] {
    let zero = simd.splat(0.0);
    let mut sums = [[zero; 2]; GROUPS];
    for ((x, w), wx) in x.iter().zip(w).zip(wx) {
        for (at, sums) in sums[..N / W].iter_mut().enumerate() {
            let q = number.of_moderate(simd, simd.mul(load(simd, at, inverse), load(simd, at, x)));
            sums[0] = simd.add(sums[0], simd.mul(load(simd, at, wx), q));
            sums[1] = simd.add(sums[1], simd.mul(simd.mul(load(simd, at, w), q), q));
        }
    }
    stored(simd, sums)
}

/// As [`symmetric`], by moving one number after the other to where it fits best, in at most five passes.
#[inline(always)]
pub(super) fn one_by_one<const N: usize, const LENGTH: usize>(x: &Parts<N, LENGTH>, max: i32) -> Found<N, LENGTH> {
    const PASSES: usize = 5;
    let (extreme, size) = extremes(x);
    let inverse: Lanes<N> = lanes(|lane| -(max as f32) / extreme[lane]);
    let mut numbers = [[0.0; N]; LENGTH];
    let (mut sum_lx, mut sum_l2) = ([0.0; N], [0.0; N]);
    for (x, numbers) in x.iter().zip(&mut numbers) {
        for lane in 0..N {
            let q = nearest(inverse[lane] * x[lane]).min(max - 1).max(-max) as f32;
            numbers[lane] = q;
            let w = x[lane] * x[lane];
            sum_lx[lane] += w * x[lane] * q;
            sum_l2[lane] += w * q * q;
        }
    }
    for _ in 0..PASSES {
        let mut moved = false;
        for (x, numbers) in x.iter().zip(&mut numbers) {
            for lane in 0..N {
                let w = x[lane] * x[lane];
                let old = numbers[lane];
                let without_lx = sum_lx[lane] - w * x[lane] * old;
                let without_l2 = sum_l2[lane] - w * old * old;
                let new = nearest(x[lane] * without_l2 / without_lx).min(max - 1).max(-max) as f32;
                let with_lx = without_lx + w * x[lane] * new;
                let with_l2 = without_l2 + w * new * new;
                let better = (without_lx > 0.0)
                    & (new != old)
                    & (with_l2 > 0.0)
                    & (with_lx * with_lx * sum_l2[lane] > sum_lx[lane] * sum_lx[lane] * with_l2);
                numbers[lane] = if better { new } else { old };
                sum_lx[lane] = if better { with_lx } else { sum_lx[lane] };
                sum_l2[lane] = if better { with_l2 } else { sum_l2[lane] };
                moved |= better;
            }
        }
        // A pass that moves nothing would be repeated without effect.
        if !moved {
            break;
        }
    }
    let zero: [bool; N] = lanes(|lane| size[lane] < NEGLIGIBLE);
    let mut stored = [[0; N]; LENGTH];
    for (stored, numbers) in stored.iter_mut().zip(&numbers) {
        for lane in 0..N {
            stored[lane] = if zero[lane] { 0 } else { (numbers[lane] as i32 + max) as u8 };
        }
    }
    let scale = lanes(|lane| {
        let usable = sum_l2[lane] > 0.0 && !zero[lane];
        if usable { sum_lx[lane] / sum_l2[lane] } else { 0.0 }
    });
    Found { scale, min: [0.0; N], numbers: stored }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random_bits;
    use crate::tensor::simd::Portable;

    #[test]
    fn both_ways_of_rounding_give_the_same_numbers_and_sums() {
        let parts = |seed: u64| -> Parts<16, 32> {
            let mut parts = [[0.0; 16]; 32];
            for (at, value) in (0..).zip(parts.as_flattened_mut()) {
                *value = (random_bits(seed, at) >> 8) as f32 / 1e6 - 8.0;
            }
            parts
        };
        let (x, w) = (parts(1), parts(2).map(|w| w.map(f32::abs)));
        let (inverse, min) = (parts(3)[0].map(|value| value.abs() + 0.5), parts(4)[0].map(|value| -value.abs()));
        let (mut long, mut short) = (x, w);
        let number = Number::between(0, 15);
        let sums = try_numbers([&x, &w], [&inverse, &min], number, &mut long);
        assert_eq!(try_moderate::<4, _, 16, 32>(Portable, [&x, &w], [&inverse, &min], number, &mut short), sums);
        assert_eq!(long, short);
        let (number, wx) = (Number::between(-32, 31), w);
        let sums = weighed([&x, &w, &wx], &inverse, number);
        assert_eq!(weighed_moderate::<4, _, 16, 32>(Portable, [&x, &w, &wx], &inverse, number), sums);
    }
}
