//! Encoding that looks at what it wrote: a value without a place in its type is found, not stored as infinity.

use super::codec::Rounding;
use super::dtype::Float;
use super::ggml::GgmlType;
use super::packing::Packing;
use super::scan::{all_zero, first_not_finite};

/// Values of blocks that are looked at at once; a whole number of blocks of every type.
const CHUNK: usize = 1024;

/// Blocks whose largest value is smaller may lose it to their scales; the scales of all types hold this.
const LARGE: f32 = 1.0;

/// A block that keeps less than this share of its largest value has lost its scale.
const KEPT: f32 = 1.0 / 8.0;

/// A value that has no place in the type it was to be written as.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Beyond {
    /// Index in the values given.
    pub index: usize,
    /// The value; not finite where the computation left the range of f32 already.
    pub value: f32,
    /// The type.
    pub packing: Packing,
}

impl Packing {
    /// As [`encode`](Self::encode), of values that are to be finite before and after.
    ///
    /// # Errors
    /// With the first value that is not; `out` is then not to be used.
    ///
    /// # Panics
    /// As [`encode`](Self::encode).
    pub fn encode_finite(self, values: &[f32], rounding: Rounding, out: &mut [u8]) -> Result<(), Beyond> {
        self.encode(values, rounding, out);
        let found = match self {
            Self::Float(float) => first_not_finite(float, out),
            Self::Blocks(ggml) => first_lost(ggml, values, out),
        };
        match found {
            None => Ok(()),
            Some(index) => Err(Beyond { index, value: values[index], packing: self }),
        }
    }
}

impl Float {
    /// As [`Packing::encode_finite`], to nearest.
    ///
    /// # Errors
    /// As [`Packing::encode_finite`].
    ///
    /// # Panics
    /// When `values` and `out` hold different numbers of elements.
    pub fn encode_finite(self, values: &[f32], out: &mut [u8]) -> Result<(), Beyond> {
        Packing::Float(self).encode_finite(values, Rounding::Nearest, out)
    }

    /// Whether none of some values is left in `bytes`, which are what became of them.
    pub fn vanished(self, values: &[f32], bytes: &[u8]) -> bool {
        all_zero(self, bytes) && values.iter().any(|value| *value != 0.0)
    }
}

fn first_lost(ggml: GgmlType, values: &[f32], bytes: &[u8]) -> Option<usize> {
    let packing = Packing::Blocks(ggml);
    let mut back = vec![0.0; CHUNK.min(values.len())];
    let chunks = values.chunks(CHUNK).zip(bytes.chunks(packing.bytes_of(CHUNK)));
    for (at, (values, bytes)) in chunks.enumerate() {
        let back = &mut back[..values.len()];
        ggml.decode(bytes, back);
        let odd = values.iter().zip(&*back).position(|(before, after)| !(before.is_finite() && after.is_finite()));
        if let Some(index) = odd.or_else(|| ggml.lost(values, back)) {
            return Some(at * CHUNK + index);
        }
    }
    None
}

impl GgmlType {
    /// The largest value of the first block that has lost it: beyond some size the search for a scale overflows and a block
    /// becomes zeros, as in ggml. `after` is what became of `before`, whole blocks of finite values.
    pub fn lost(self, before: &[f32], after: &[f32]) -> Option<usize> {
        let block = self.block().0;
        let any_large = || before.iter().fold(false, |large, value| large | (value.abs() >= LARGE));
        if block == 1 || !any_large() {
            return None;
        }
        let largest = |values: &[f32]| values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let blocks = before.chunks(block).zip(after.chunks(block)).enumerate();
        for (at, (before, after)) in blocks {
            let wanted = largest(before);
            if wanted >= LARGE && largest(after) < wanted * KEPT {
                return before.iter().position(|value| value.abs() == wanted).map(|index| at * block + index);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::dtype::FLOATS;
    use super::*;
    use crate::tensor::random_bits;

    fn encoded(packing: Packing, values: &[f32]) -> Result<Vec<u8>, Beyond> {
        let mut out = vec![0; packing.bytes_of(values.len())];
        packing.encode_finite(values, Rounding::Nearest, &mut out).map(|()| out)
    }

    #[test]
    fn the_largest_value_has_a_place_and_the_next_has_none() {
        for float in FLOATS {
            let max = float.max().min(f64::from(f32::MAX)) as f32;
            assert!(encoded(float.into(), &[0.0, max, -max]).is_ok(), "{float}");
            let beyond = if max == f32::MAX { f32::INFINITY } else { max * 1.25 };
            let found = encoded(float.into(), &[0.0, max, beyond]).expect_err("no place");
            assert_eq!(found, Beyond { index: 2, value: beyond, packing: float.into() });
        }
        assert_eq!(encoded(Float::F32.into(), &[f32::NAN]).map_err(|found| found.index), Err(0));
    }

    #[test]
    fn blocks_hold_usual_values_and_refuse_what_their_scales_cannot_hold() {
        let usual: Vec<f32> = (0..2048).map(|at| random_bits(3, at) as f32 / 2.0_f32.powi(31) - 1.0).collect();
        for ggml in GgmlType::all().filter(|ggml| ggml.can_encode() && ggml.float().is_none()) {
            for size in [1e-30, 1e-6, 1.0, 1e4] {
                let values: Vec<f32> = usual.iter().map(|value| value * size).collect();
                assert!(encoded(Packing::Blocks(ggml), &values).is_ok(), "{ggml} {size:e}");
            }
            for size in [1e13, 1e18, 1e30, 3e38] {
                let values: Vec<f32> = usual.iter().map(|value| value * size).collect();
                let found = encoded(Packing::Blocks(ggml), &values);
                // A power of two is the scale of MXFP4: it holds what an f32 holds.
                assert!(found.is_err() || ggml == GgmlType::Mxfp4, "{ggml} {size:e}");
            }
        }
    }

    #[test]
    fn what_vanishes_is_told_from_zeros() {
        let vanished =
            |values: &[f32]| Float::F16.vanished(values, &encoded(Float::F16.into(), values).expect("finite"));
        assert!(vanished(&[1e-9, -1e-10]));
        assert!(!vanished(&[1e-9, 1e-4]) && !vanished(&[0.0, -0.0]));
    }
}
