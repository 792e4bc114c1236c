//! Stochastic rounding for blocks: noise of one step before they are rounded to nearest, so that a value between two levels
//! goes to either with the chance that makes it right on average.
//!
//! A block has its own levels. How far they lie apart is told here from the values: by their largest, or by their range, over the
//! number of levels; the scales that the quantiser chooses differ by some per cent. The smallest and the largest value stay as they
//! are, and noise stays between them, or the block would get other levels, and all its values other roundings. Source of the method: Gupta et al. 2015 (arXiv 1502.02551), there for fixed point.

use super::GgmlType;
use crate::tensor::random;
use crate::tensor::simd::{Level, per_cpu};

/// How the levels of a type follow from the values.
enum Levels {
    /// From −largest to largest: the largest is so many steps away from 0.
    Around(f32),
    /// From smallest to largest in so many steps.
    Between(f32),
    /// From smallest, or 0, to largest in so many steps.
    Above(f32),
    /// 0, ½, 1, 1½, 2, 3, 4 and 6, times a power of two below the largest.
    Fp4,
}

/// Values that share levels, and those.
fn levels(ggml: GgmlType) -> Option<(usize, Levels)> {
    Some(match ggml {
        GgmlType::Q4_0 | GgmlType::Iq4Nl => (32, Levels::Around(8.0)),
        GgmlType::Mxfp4 => (32, Levels::Fp4),
        GgmlType::Q5_0 => (32, Levels::Around(16.0)),
        GgmlType::Q8_0 => (32, Levels::Around(127.0)),
        GgmlType::Q4_1 => (32, Levels::Between(15.0)),
        GgmlType::Q5_1 => (32, Levels::Between(31.0)),
        GgmlType::Q2K => (16, Levels::Above(3.0)),
        GgmlType::Q3K => (16, Levels::Around(4.0)),
        GgmlType::Q4K => (32, Levels::Above(15.0)),
        GgmlType::Q5K => (32, Levels::Above(31.0)),
        GgmlType::Q6K => (16, Levels::Around(32.0)),
        _ => return None,
    })
}

/// The levels of FP4, in halves.
const FP4: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// The level below or above a value; `chance` is drawn from 0 to 1. Levels that lie wider apart further out leave noise no
/// single step.
fn by_chance(value: f32, step: f32, chance: f32) -> f32 {
    let size = value.abs() / step;
    let Some(pair) = FP4.windows(2).find(|pair| pair[0] <= size && size < pair[1]) else { return value };
    let up = chance < (size - pair[0]) / (pair[1] - pair[0]);
    (if up { pair[1] } else { pair[0] } * step).copysign(value)
}

/// Smallest and largest value, eight at a time: the order does not matter to them.
#[inline(always)]
fn range<const TOGETHER: usize>(values: &[f32; TOGETHER]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    for values in values.as_chunks::<8>().0 {
        for lane in 0..8 {
            low[lane] = if values[lane] < low[lane] { values[lane] } else { low[lane] };
            high[lane] = if values[lane] > high[lane] { values[lane] } else { high[lane] };
        }
    }
    (low.iter().copied().fold(f32::INFINITY, f32::min), high.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

impl Levels {
    /// How far levels lie apart between these ends; of FP4 the smallest distance.
    #[inline(always)]
    fn step(&self, (low, high): (f32, f32)) -> f32 {
        match self {
            Self::Around(steps) => high.max(-low) / steps,
            Self::Between(steps) => (high - low) / steps,
            Self::Above(steps) => (high - low.min(0.0)) / steps,
            Self::Fp4 => (high.max(-low).log2().floor() - 3.0).exp2(),
        }
    }
}

#[inline(always)]
fn blocks<const TOGETHER: usize>(levels: &Levels, values: &mut [f32], seed: u64, index: u64) {
    for (block, values) in (0_u64..).zip(values.as_chunks_mut::<TOGETHER>().0) {
        let first = index + block * TOGETHER as u64;
        let mut noise = [0.0; TOGETHER];
        for (at, noise) in (first..).zip(&mut noise) {
            *noise = random::bits(seed, at) as f32 / 4_294_967_296.0 - 0.5;
        }
        let (low, high) = range(values);
        let step = levels.step((low, high));
        if matches!(levels, Levels::Fp4) {
            for (value, noise) in values.iter_mut().zip(noise) {
                *value = by_chance(*value, step, noise + 0.5);
            }
            continue;
        }
        for (value, noise) in values.iter_mut().zip(noise) {
            let moved = *value + noise * step;
            let moved = if moved < low { low } else { moved };
            let moved = if moved > high { high } else { moved };
            // The levels hang on these two.
            let is_end = (*value == low) | (*value == high);
            *value = if is_end { *value } else { moved };
        }
    }
}

#[inline(always)]
fn dither(together: usize, levels: &Levels, values: &mut [f32], seed: u64, index: u64) {
    if together == 16 {
        blocks::<16>(levels, values, seed, index);
    } else {
        blocks::<32>(levels, values, seed, index);
    }
}

per_cpu! {
    fn dither_at(together: usize, levels: &Levels, values: &mut [f32], seed: u64, index: u64) = dither;
}

impl GgmlType {
    /// Σ step²∕12 over values of whole blocks: the variance of what rounding to nearest added to them. 0 for types that are not
    /// made here, whose levels are not told from the values.
    pub fn rounding_variance(self, values: &[f32]) -> f64 {
        let Some((together, levels)) = levels(self) else { return 0.0 };
        let one = |block: &[f32]| {
            let low = block.iter().copied().fold(f32::INFINITY, f32::min);
            let high = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let step = if high > low { f64::from(levels.step((low, high))) } else { 0.0 };
            block.len() as f64 * step * step
        };
        values.chunks(together).map(one).sum::<f64>() / 12.0
    }

    /// Adds noise to values that are packed next, whole blocks. `seed` is one per tensor, `index` that of the first value in it.
    pub fn dither(self, values: &mut [f32], seed: u64, index: u64) {
        if let Some((together, levels)) = levels(self) {
            dither_at(Level::best(), together, &levels, values, seed, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_survive_on_average_and_every_type_that_is_packed_has_levels() {
        let count = 64 * 256;
        let noise = |seed, at: usize| random::bits(seed, at as u64) as f32 / 2_147_483_648.0 - 1.0;
        for ggml in GgmlType::all().filter(|ggml| ggml.can_encode() && ggml.float().is_none()) {
            let mut packed = vec![0; usize::try_from(ggml.bytes_of(count as u64).unwrap()).unwrap()];
            let mut base: Vec<f32> = (0..count).map(|at| noise(1, at)).collect();
            ggml.encode(&base, &mut packed);
            ggml.decode(&packed, &mut base);
            // A fraction of a coarse step, which rounding to nearest takes back.
            let delta: Vec<f32> = (0..count).map(|at| 0.01 * noise(2, at)).collect();
            let exact: Vec<f32> = base.iter().zip(&delta).map(|(base, delta)| base + delta).collect();
            let retained = |values: &[f32], packed: &mut [u8]| {
                let mut back = vec![0.0; count];
                ggml.encode(values, packed);
                ggml.decode(packed, &mut back);
                let moved = back.iter().zip(&base).map(|(back, base)| f64::from(back - base));
                let dot: f64 = moved.zip(&delta).map(|(moved, delta)| moved * f64::from(*delta)).sum();
                dot / delta.iter().map(|delta| f64::from(*delta).powi(2)).sum::<f64>()
            };
            let mut dithered = exact.clone();
            ggml.dither(&mut dithered, 7, 0);
            assert_ne!(dithered, exact, "{ggml} has levels");
            let kept = retained(&dithered, &mut packed);
            // The sum has a deviation of its own, the larger the coarser the levels are. Of four levels two are ends, beyond
            // which nothing goes.
            let room = match ggml {
                GgmlType::Q8_0 => 0.1,
                GgmlType::Q2K => 0.75,
                _ => 0.4,
            };
            assert!(
                (kept - 1.0).abs() < room,
                "{ggml}: {kept} stochastically, {} to nearest",
                retained(&exact, &mut packed)
            );
        }
    }

    #[test]
    fn the_range_stays_and_parts_give_what_the_whole_gives() {
        let values: Vec<f32> = (0..512).map(|at| ((at * 37) % 101) as f32 - 50.0).collect();
        let mut whole = values.clone();
        GgmlType::Q4K.dither(&mut whole, 3, 0);
        let range =
            |values: &[f32]| values.iter().fold((0.0_f32, 0.0_f32), |(low, high), v| (low.min(*v), high.max(*v)));
        assert_eq!(range(&whole).0.max(-50.0), range(&whole).0, "not below what was there");
        let mut second = values[256..].to_vec();
        GgmlType::Q4K.dither(&mut second, 3, 256);
        assert_eq!(whole[256..], second);
    }
}
