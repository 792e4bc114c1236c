//! How the values of a tensor are stored: one by one, or in blocks of ggml.

use std::fmt;

use super::codec::Rounding;
use super::dtype::{Dtype, Float};
use super::ggml::GgmlType;

/// What values are written as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Packing {
    /// Numbers, one by one.
    Float(Float),
    /// Blocks of values that share scales.
    Blocks(GgmlType),
}

impl Packing {
    /// How a tensor of this type is stored; `None` where its values are not known or no real numbers.
    pub fn of(dtype: &Dtype) -> Option<Self> {
        match dtype {
            Dtype::Ggml(ggml) => Some(Self::Blocks(*ggml)),
            plain => plain.float().map(Self::Float),
        }
    }

    /// The same as an element type.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Float(float) => float.dtype(),
            Self::Blocks(ggml) => ggml.dtype(),
        }
    }

    /// The type of the numbers, where they are stored one by one.
    pub fn float(self) -> Option<Float> {
        match self {
            Self::Float(float) => Some(float),
            Self::Blocks(_) => None,
        }
    }

    /// Values that are stored together: rows and parts of rows are cut at multiples of it.
    pub fn block(self) -> usize {
        match self {
            Self::Float(_) => 1,
            Self::Blocks(ggml) => ggml.block().0,
        }
    }

    /// Bytes of `values` values, a whole number of blocks.
    pub fn bytes_of(self, values: usize) -> usize {
        match self {
            Self::Float(float) => values * float.bytes(),
            Self::Blocks(ggml) => values / ggml.block().0 * ggml.block().1,
        }
    }

    /// Values in `bytes` bytes.
    pub fn values_in(self, bytes: usize) -> usize {
        match self {
            Self::Float(float) => bytes / float.bytes(),
            Self::Blocks(ggml) => bytes / ggml.block().1 * ggml.block().0,
        }
    }

    /// Whether values can be written so.
    pub fn can_encode(self) -> bool {
        match self {
            Self::Float(_) => true,
            Self::Blocks(ggml) => ggml.can_encode(),
        }
    }

    /// The values in `bytes` as f32.
    ///
    /// # Panics
    /// When `bytes` and `out` do not hold the same number of values.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Float(float) => float.decode(bytes, out),
            Self::Blocks(ggml) => ggml.decode(bytes, out),
        }
    }

    /// Writes values. Blocks know one rounding, to nearest: stochastically it is after [noise](GgmlType::dither).
    ///
    /// # Panics
    /// When `values` and `out` do not hold the same number of values, or this is not what can be
    /// [written](Self::can_encode).
    pub fn encode(self, values: &[f32], rounding: Rounding, out: &mut [u8]) {
        match self {
            Self::Float(float) => float.encode(values, rounding, out),
            Self::Blocks(ggml) => ggml.encode(values, out),
        }
    }
}

impl From<Float> for Packing {
    fn from(float: Float) -> Self {
        Self::Float(float)
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(float) => float.fmt(f),
            Self::Blocks(ggml) => ggml.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_blocks_are_counted_alike() {
        let half = Packing::of(&Dtype::F16).unwrap();
        assert_eq!((half.block(), half.bytes_of(64), half.values_in(128)), (1, 128, 64));
        let blocks = Packing::of(&Dtype::Ggml(GgmlType::Q4_1)).unwrap();
        assert_eq!((blocks.block(), blocks.bytes_of(64), blocks.values_in(40)), (32, 40, 64));
        assert!(blocks.can_encode() && !Packing::Blocks(GgmlType::Iq2Xs).can_encode());
        assert_eq!(Packing::of(&Dtype::I32), None);
        assert_eq!((blocks.to_string(), half.to_string()), ("Q4_1".into(), "F16".into()));
    }
}
