//! The search for scales: for every part of a block the one (and the minimum) whose numbers come nearest to the values,
//! in weighted least squares.
//!
//! For given numbers q the best scale is Σ w x q / Σ w q², and with a minimum m the solution of a 2 × 2 system. The
//! numbers come from scales tried around the obvious one. These are `make_qx_quants`, `make_q3_quants` and
//! `make_qkx2_quants` of ggml, with its weights and its candidates.

use super::lanes::{Lanes, NEGLIGIBLE, Parts, extremes, lanes, nearest};

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
pub(super) fn with_minimum<const N: usize, const LENGTH: usize>(
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
    let top = search.max as f32;
    let number = |inverse: f32, x: f32, low: f32| nearest(inverse * (x - low)).min(search.max).max(0);

    let mut inverse: Lanes<N> = lanes(|lane| top / (high[lane] - low[lane]));
    let mut scale: Lanes<N> = lanes(|lane| 1.0 / inverse[lane]);
    // ggml counts the next candidates from the best minimum so far; `from` is where the best numbers were counted from.
    let (mut min, mut from) = (low, low);
    let mut best = [0.0; N];
    for (x, w) in x.iter().zip(w) {
        for lane in 0..N {
            let q = number(inverse[lane], x[lane], low[lane]) as f32;
            best[lane] += w[lane] * error(search, scale[lane] * q + low[lane] - x[lane]);
        }
    }
    for step in 0..=search.steps {
        let tried: Lanes<N> =
            lanes(|lane| (search.first + search.step * f32::from(step) + top) / (high[lane] - min[lane]));
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; N], [0.0; N], [0.0; N]);
        let mut numbers = [[0.0; N]; LENGTH];
        for ((x, w), numbers) in x.iter().zip(w).zip(&mut numbers) {
            for lane in 0..N {
                let q = number(tried[lane], x[lane], min[lane]) as f32;
                numbers[lane] = q;
                let wq = w[lane] * q;
                sum_l[lane] += wq;
                sum_l2[lane] += wq * q;
                sum_xl[lane] += wq * x[lane];
            }
        }
        let determinant: Lanes<N> = lanes(|lane| sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane]);
        let solved: Lanes<N> =
            lanes(|lane| (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / determinant[lane]);
        let new_min: Lanes<N> = lanes(|lane| if solved[lane] > 0.0 { 0.0 } else { solved[lane] });
        let new_scale: Lanes<N> = lanes(|lane| {
            let free = (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / determinant[lane];
            if solved[lane] > 0.0 { sum_xl[lane] / sum_l2[lane] } else { free }
        });
        let mut errors = [0.0; N];
        for ((x, w), numbers) in x.iter().zip(w).zip(&numbers) {
            for lane in 0..N {
                let difference = new_scale[lane] * numbers[lane] + new_min[lane] - x[lane];
                errors[lane] += w[lane] * error(search, difference);
            }
        }
        for lane in 0..N {
            let better = determinant[lane] > 0.0 && errors[lane] < best[lane];
            best[lane] = if better { errors[lane] } else { best[lane] };
            scale[lane] = if better { new_scale[lane] } else { scale[lane] };
            from[lane] = if better { min[lane] } else { from[lane] };
            min[lane] = if better { new_min[lane] } else { min[lane] };
            inverse[lane] = if better { tried[lane] } else { inverse[lane] };
        }
    }
    let mut numbers = [[0; N]; LENGTH];
    for (x, numbers) in x.iter().zip(&mut numbers) {
        for lane in 0..N {
            let q = number(inverse[lane], x[lane], from[lane]) as u8;
            numbers[lane] = if flat[lane] { 0 } else { q };
        }
    }
    Found { scale: lanes(|lane| if flat[lane] { 0.0 } else { scale[lane] }), min: lanes(|lane| -min[lane]), numbers }
}

/// Scales for numbers from −max to max − 1 with the weights x², stored with max added.
#[inline(always)]
pub(super) fn symmetric<const N: usize, const LENGTH: usize>(x: &Parts<N, LENGTH>, max: i32) -> Found<N, LENGTH> {
    let (extreme, size) = extremes(x);
    let top = max as f32;
    let number = |inverse: f32, x: f32| nearest(inverse * x).min(max - 1).max(-max);
    let mut inverse: Lanes<N> = lanes(|lane| -top / extreme[lane]);
    let sums = |inverse: &Lanes<N>| {
        let (mut sum_lx, mut sum_l2) = ([0.0; N], [0.0; N]);
        for x in x {
            for lane in 0..N {
                let q = number(inverse[lane], x[lane]) as f32;
                let w = x[lane] * x[lane];
                sum_lx[lane] += w * x[lane] * q;
                sum_l2[lane] += w * q * q;
            }
        }
        (sum_lx, sum_l2)
    };
    let (sum_lx, sum_l2) = sums(&inverse);
    let mut scale: Lanes<N> = lanes(|lane| if sum_l2[lane] == 0.0 { 0.0 } else { sum_lx[lane] / sum_l2[lane] });
    let mut best: Lanes<N> = lanes(|lane| scale[lane] * sum_lx[lane]);
    for step in (-9_i8..=9).filter(|step| *step != 0) {
        let tried: Lanes<N> = lanes(|lane| -(top + 0.1 * f32::from(step)) / extreme[lane]);
        let (sum_lx, sum_l2) = sums(&tried);
        for lane in 0..N {
            let better = sum_l2[lane] > 0.0 && sum_lx[lane] * sum_lx[lane] > best[lane] * sum_l2[lane];
            let found = sum_lx[lane] / sum_l2[lane];
            scale[lane] = if better { found } else { scale[lane] };
            best[lane] = if better { found * sum_lx[lane] } else { best[lane] };
            inverse[lane] = if better { tried[lane] } else { inverse[lane] };
        }
    }
    let zero: [bool; N] = lanes(|lane| size[lane] < NEGLIGIBLE);
    let mut numbers = [[0; N]; LENGTH];
    for (x, numbers) in x.iter().zip(&mut numbers) {
        for lane in 0..N {
            let q = (number(inverse[lane], x[lane]) + max) as u8;
            numbers[lane] = if zero[lane] { 0 } else { q };
        }
    }
    Found { scale: lanes(|lane| if zero[lane] { 0.0 } else { scale[lane] }), min: [0.0; N], numbers }
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
                let better = without_lx > 0.0
                    && new != old
                    && with_l2 > 0.0
                    && with_lx * with_lx * sum_l2[lane] > sum_lx[lane] * sum_lx[lane] * with_l2;
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
    let stored = numbers.map(|numbers| lanes(|lane| if zero[lane] { 0 } else { (numbers[lane] as i32 + max) as u8 }));
    let scale = lanes(|lane| {
        let usable = sum_l2[lane] > 0.0 && !zero[lane];
        if usable { sum_lx[lane] / sum_l2[lane] } else { 0.0 }
    });
    Found { scale, min: [0.0; N], numbers: stored }
}
