//! One number for each of `N` parts of a block; loops over lanes are what the compiler makes vector instructions of.

/// A value per lane.
pub(super) type Lanes<const N: usize> = [f32; N];

/// The values of the parts: `of[i]` has value `i` of every part.
pub(super) type Parts<const N: usize, const LENGTH: usize> = [[f32; N]; LENGTH];

/// Numbers below this size count as none when a scale is looked for (ggml's `GROUP_MAX_EPS`).
pub(super) const NEGLIGIBLE: f32 = 1e-15;

/// `out[lane] = f(lane)`.
#[inline(always)]
pub(super) fn lanes<T: Copy + Default, const N: usize>(f: impl Fn(usize) -> T) -> [T; N] {
    let mut out = [T::default(); N];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = f(lane);
    }
    out
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

/// The nearest integer, ties to even, of a number below 2^22 in size: adding 1.5 · 2^23 leaves it in the lowest bits.
/// (What other numbers give is ggml's as well.)
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007F_FFFF).cast_signed() - 0x0040_0000
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
