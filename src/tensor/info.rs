//! The description of a tensor: name, element type, shape and which bytes of its file it fills.

use std::fmt;

use serde::Deserialize;
use smallvec::SmallVec;

use super::dtype::{Dtype, Float};

/// The dimensions of a tensor, outermost first; no dimensions at all is one scalar.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default, Deserialize)]
#[serde(transparent)]
pub struct Shape(SmallVec<[u64; 4]>);

/// A tensor as the header of its file describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// The key in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Shape,
    /// First byte, counted from the start of the data section of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A tensor whose bytes are at hand: row-major, little-endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: &'a Dtype,
    /// Dimensions.
    pub shape: &'a Shape,
    /// All the bytes.
    pub data: &'a [u8],
}

impl Shape {
    /// The dimensions, outermost first.
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }

    /// Number of elements, or `None` where it exceeds a `u64`.
    pub fn elements(&self) -> Option<u64> {
        self.0.iter().try_fold(1_u64, |product, &dimension| product.checked_mul(dimension))
    }

    /// The tensor as a matrix, which is how a delta sees it: `[out, in, …]` is `(out, in · …)`, a vector is one row
    /// and a scalar is `(1, 1)`.
    ///
    /// Never overflows where [`elements`](Self::elements) is known and not 0; saturates otherwise.
    pub fn rows_cols(&self) -> (u64, u64) {
        match self.0.as_slice() {
            [] => (1, 1),
            &[cols] => (1, cols),
            [rows, rest @ ..] => (*rows, rest.iter().fold(1, |cols: u64, &dimension| cols.saturating_mul(dimension))),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dimension) in self.0.iter().enumerate() {
            write!(f, "{}{dimension}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl From<Vec<u64>> for Shape {
    fn from(dimensions: Vec<u64>) -> Self {
        Self(dimensions.into())
    }
}

impl FromIterator<u64> for Shape {
    fn from_iter<I: IntoIterator<Item = u64>>(dimensions: I) -> Self {
        Self(dimensions.into_iter().collect())
    }
}

impl<const N: usize> From<[u64; N]> for Shape {
    fn from(dimensions: [u64; N]) -> Self {
        Self(SmallVec::from_slice(&dimensions))
    }
}

impl TensorView<'_> {
    /// The element type as one that can be computed with.
    pub fn float(&self) -> Option<Float> {
        self.dtype.float()
    }
}

/// A size of a tensor that lies in memory or is mapped.
///
/// # Panics
/// When it is no such size: beyond the address space.
pub fn usize_of(size: u64) -> usize {
    usize::try_from(size).expect("a mapped tensor fits the address space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_prints_as_torch_prints_it() {
        assert_eq!(Shape::from([2, 3]).to_string(), "[2, 3]");
        assert_eq!(Shape::default().to_string(), "[]");
    }

    #[test]
    fn elements_are_the_product_unless_that_overflows() {
        assert_eq!(Shape::default().elements(), Some(1));
        assert_eq!(Shape::from([4, 0, 2]).elements(), Some(0));
        assert_eq!(Shape::from([1 << 32, 1 << 31]).elements(), Some(1 << 63));
        assert_eq!(Shape::from([1 << 32, 1 << 32]).elements(), None);
    }

    #[test]
    fn any_shape_is_a_matrix() {
        assert_eq!(Shape::default().rows_cols(), (1, 1));
        assert_eq!(Shape::from([7]).rows_cols(), (1, 7));
        assert_eq!(Shape::from([5, 7]).rows_cols(), (5, 7));
        assert_eq!(Shape::from([320, 4, 3, 3]).rows_cols(), (320, 36));
        assert_eq!(Shape::from([0, u64::MAX, 2]).rows_cols(), (0, u64::MAX));
    }
}
