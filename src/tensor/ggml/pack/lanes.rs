//! One number for each of `N` parts of a block; loops over lanes are what the compiler makes vector instructions of.

use crate::tensor::simd::Simd;
pub(super) use crate::tensor::simd::lanes;

/// A value per lane.
pub(super) type Lanes<const N: usize> = [f32; N];

/// The values of the parts: `of[i]` has value `i` of every part.
pub(super) type Parts<const N: usize, const LENGTH: usize> = [[f32; N]; LENGTH];

/// Numbers below this size count as none when a scale is looked for (ggml's `GROUP_MAX_EPS`).
pub(super) const NEGLIGIBLE: f32 = 1e-15;

/// `out[at][lane] = f(at, lane)`. (`array::map` is a call, made without the instructions of its caller.)
#[inline(always)]
pub(super) fn each<const N: usize, const LENGTH: usize>(f: impl Fn(usize, usize) -> f32) -> Parts<N, LENGTH> {
    let mut out = [[0.0; N]; LENGTH];
    for (at, out) in out.iter_mut().enumerate() {
        for (lane, out) in out.iter_mut().enumerate() {
            *out = f(at, lane);
        }
    }
    out
}

/// Where a condition holds: all bits of a lane, or none.
pub(super) type Mask<const N: usize> = [u32; N];

/// The lanes where `holds`.
#[inline(always)]
pub(super) fn mask<const N: usize>(holds: impl Fn(usize) -> bool) -> Mask<N> {
    lanes(|lane| 0_u32.wrapping_sub(u32::from(holds(lane))))
}

/// Puts `new` where the mask is set. By bits: of a choice between two places in memory the compiler makes branches.
#[inline(always)]
pub(super) fn put<const N: usize>(mask: &Mask<N>, new: &Lanes<N>, into: &mut Lanes<N>) {
    for ((into, new), mask) in into.iter_mut().zip(new).zip(mask) {
        *into = f32::from_bits(mask & new.to_bits() | !mask & into.to_bits());
    }
}

/// The values of a block by lanes.
#[inline(always)]
pub(super) fn turned<const N: usize, const LENGTH: usize>(values: &[f32]) -> Parts<N, LENGTH> {
    let mut parts = [[0.0; N]; LENGTH];
    for (lane, part) in values.as_chunks::<LENGTH>().0.iter().enumerate() {
        for (out, &value) in parts.iter_mut().zip(part) {
            out[lane] = value;
        }
    }
    parts
}

/// 1.5 · 2^23: added to a number below 2^22 in size it leaves the nearest integer in the lowest bits.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of a number below 2^22 in size.
/// (What other numbers give is ggml's as well.)
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    ((value + MAGIC).to_bits() & 0x007F_FFFF).cast_signed() - 0x0040_0000
}

/// The nearest integers between two others, as f32.
#[derive(Clone, Copy)]
pub(super) struct Number {
    low: f32,
    high: f32,
}

impl Number {
    pub(super) fn between(low: i32, high: i32) -> Self {
        Self { low: low as f32, high: high as f32 }
    }

    /// [`nearest`] within the limits.
    #[inline(always)]
    pub(super) fn of(self, value: f32) -> f32 {
        let whole = nearest(value) as f32;
        let whole = if whole > self.high { self.high } else { whole };
        if whole < self.low { self.low } else { whole }
    }

    /// The same of values that are [moderate](is_moderate), in fewer instructions.
    #[inline(always)]
    pub(super) fn of_moderate<const W: usize, S: Simd<W>>(self, simd: S, values: S::Vector) -> S::Vector {
        let magic = simd.splat(MAGIC);
        let whole = simd.sub(simd.add(values, magic), magic);
        simd.most(simd.splat(self.low), simd.least(simd.splat(self.high), whole))
    }
}

/// Numbers below this size are rounded alike by both ways of [`Number`].
const MODERATE: f32 = 4_000_000.0;

/// Whether all are small enough for the short way of rounding; not where one is no number.
#[inline(always)]
pub(super) fn is_moderate<const N: usize>(values: &Lanes<N>) -> bool {
    values.iter().fold(true, |moderate, value| moderate & (value.abs() < MODERATE))
}

/// (value of largest size, its size) per lane; the first of several.
#[inline(always)]
pub(super) fn extremes<const N: usize, const LENGTH: usize>(x: &Parts<N, LENGTH>) -> (Lanes<N>, Lanes<N>) {
    let (mut max, mut size) = ([0.0; N], [0.0; N]);
    for x in x {
        for lane in 0..N {
            let larger = x[lane].abs() > size[lane];
            max[lane] = if larger { x[lane] } else { max[lane] };
            size[lane] = if larger { x[lane].abs() } else { size[lane] };
        }
    }
    (max, size)
}
