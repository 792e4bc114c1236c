//! The k elements of a matrix that are largest by magnitude, found without holding the matrix.
//!
//! Radix selection: without its sign, the bit pattern of an f32 orders as its magnitude does. One pass counts the upper half of the
//! patterns, one the lower half among those that share the decisive upper one; that gives the magnitude of the k-th largest
//! element. Where several elements have just that magnitude, the first of them in row order are taken (a third pass), so that
//! exactly k are selected and the choice does not depend on how the matrix was cut into bands.

use crate::error::Result;

/// Bits of a magnitude that the second pass looks at.
const LOWER_BITS: u32 = 15;

/// Counters of a pass: the upper half of a pattern without its sign has 16 bits.
const BINS: usize = 1 << (u32::BITS - 1 - LOWER_BITS);

/// Calls its argument with every run of elements in row order and the index of the run's first element. Gives the same values
/// each time.
pub type Stream<'a> = dyn Fn(&mut dyn FnMut(u64, &[f32])) -> Result<()> + 'a;

/// Which elements are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Largest {
    /// Magnitudes above this pattern are.
    threshold: u32,
    /// Of those that equal it, the ones before this index.
    end: u64,
}

impl Largest {
    /// Every element.
    pub const ALL: Self = Self { threshold: 0, end: u64::MAX };

    /// Selects the `count` largest by magnitude of all elements of `stream`.
    ///
    /// # Errors
    /// When the elements cannot be read.
    pub fn select(count: u64, stream: &Stream<'_>) -> Result<Self> {
        if count == 0 {
            return Ok(Self { threshold: u32::MAX, end: 0 });
        }
        let (upper, above) = bin_of(count, stream, |pattern| Some(pattern >> LOWER_BITS))?;
        let (lower, above) = bin_of(count - above, stream, |pattern| {
            (pattern >> LOWER_BITS == upper).then_some(pattern & ((1 << LOWER_BITS) - 1))
        })
        .map(|(lower, nearer)| (lower, above + nearer))?;
        let threshold = upper << LOWER_BITS | lower;
        Ok(Self { threshold, end: end_of(count - above, threshold, stream)? })
    }

    /// Whether the element `value` at `index` is selected.
    #[inline(always)]
    pub fn holds(&self, value: f32, index: u64) -> bool {
        let pattern = magnitude(value);
        pattern > self.threshold || pattern == self.threshold && index < self.end
    }
}

/// The bit pattern of |value|.
#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & (u32::MAX >> 1)
}

/// Sorts the patterns into bins; gives the bin with the `count`-th largest, and how many are in higher bins. With fewer
/// elements than `count`, the lowest bin.
fn bin_of(count: u64, stream: &Stream<'_>, bin: impl Fn(u32) -> Option<u32>) -> Result<(u32, u64)> {
    let mut bins = vec![0_u64; BINS];
    stream(&mut |_, values| {
        for at in values.iter().filter_map(|value| bin(magnitude(*value))) {
            bins[at as usize] += 1;
        }
    })?;
    let mut above = 0;
    for (at, inside) in bins.iter().enumerate().rev() {
        if above + inside >= count {
            return Ok((u32::try_from(at).expect("there are 65 536 bins"), above));
        }
        above += inside;
    }
    Ok((0, above))
}

/// The index after the `count`-th element of that magnitude.
fn end_of(count: u64, threshold: u32, stream: &Stream<'_>) -> Result<u64> {
    let (mut found, mut end) = (0, u64::MAX);
    stream(&mut |first, values| {
        if found >= count {
            return;
        }
        for (index, value) in (first..).zip(values) {
            found += u64::from(magnitude(*value) == threshold);
            if found == count {
                end = index + 1;
                return;
            }
        }
    })?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The indices selected, with the elements given in runs of `run`.
    fn selected(values: &[f32], count: u64, run: usize) -> Vec<usize> {
        let largest = Largest::select(count, &|each| {
            values.chunks(run).zip((0..).step_by(run)).for_each(|(values, first)| each(first, values));
            Ok(())
        });
        let largest = largest.expect("nothing can fail");
        (0..values.len()).filter(|index| largest.holds(values[*index], *index as u64)).collect()
    }

    /// By sorting; stable, so that the first of equals come first.
    fn by_sorting(values: &[f32], count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|left, right| values[*right].abs().total_cmp(&values[*left].abs()));
        let mut chosen = order[..count].to_vec();
        chosen.sort_unstable();
        chosen
    }

    proptest! {
        #[test]
        fn it_is_what_sorting_gives(
            values in prop::collection::vec(prop_oneof![-1.0_f32..1.0, prop::sample::select(vec![0.0, -0.0, 0.5, -0.5, 1e-40, 3e38])], 1..200),
            share in 0.0..1.0,
            run in 1_usize..50,
        ) {
            let count = (share * values.len() as f64) as usize;
            prop_assert_eq!(selected(&values, count as u64, run), by_sorting(&values, count));
        }
    }

    #[test]
    fn of_equals_the_first_are_taken() {
        assert_eq!(selected(&[1.0, -2.0, 2.0, 2.0, -3.0], 3, 2), [1, 2, 4]);
        assert_eq!(selected(&[0.5; 4], 4, 3), [0, 1, 2, 3]);
        assert_eq!(selected(&[0.5; 4], 0, 3), [0_usize; 0]);
    }
}
