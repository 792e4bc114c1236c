//! Codes for changed values on the scales a weight has: nothing but codes moves, and those only whose value changed.

use std::ops::Range;

use crate::error::Result;
use crate::tensor::codes::{Level, Wanted};
use crate::tensor::{Rounding, random_bits};

/// Values and what becomes of them.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// What they were, exactly as [`Storage::read`](super::Storage::read) has them.
    pub base: &'a [f32],
    /// What they are to be.
    pub wanted: &'a [f32],
    /// Rows of the weight they are.
    pub row: usize,
    /// Columns of the weight.
    pub cols: usize,
    /// The column of the weight the first is in, and how many there are side by side.
    pub span: (usize, usize),
    /// How they are rounded. The index of an element is row · columns + column of the weight.
    pub rounding: Rounding,
}

/// A weight that can be written back in its own format, with the scales it has.
///
/// The tensor of codes is cut into *bands* of bytes that lie one after the other, and each stands for a rectangle of the weight:
/// usually one row. A band can be a part of a row, some columns of all rows, or a few rows that share bytes.
pub trait Grid: Send + Sync {
    /// How many bands the tensor of codes has, and the bytes of each.
    fn bands(&self) -> (usize, usize);

    /// How many bands, counted from the first, are one rectangle together: more than that are never asked for at once, nor such
    /// that lie on both sides of a multiple of it.
    fn together(&self) -> usize {
        self.bands().0
    }

    /// The rows and columns of the weight that `bands` stand for.
    fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>);

    /// Writes the codes of `bands` into `out`: for each value the code whose value is nearest, on a tie the even one; the code
    /// that is stored where the value did not change, or where no other is nearer. `change` holds the rectangle of
    /// [`part`](Self::part) row by row. `out` holds what is stored.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    fn encode(&self, bands: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()>;

    /// The values of `codes`, which take the place of those of `bands`, in the rectangle of [`part`](Self::part) row by row.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn values(&self, bands: Range<usize>, codes: &[u8], out: &mut [f32]) -> Result<()>;
}

impl Change<'_> {
    /// The elements with their places: index into the slices, row and column of the weight.
    pub fn cells(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let (first, width) = self.span;
        (0..self.wanted.len()).map(move |at| (at, self.row + at / width, first + at % width))
    }

    /// Whether the element at `at` keeps its code.
    pub fn is_same(&self, at: usize) -> bool {
        self.base[at] == self.wanted[at]
    }

    /// A number in [0, 1) for the element (`row`, `col`), where rounding is stochastic.
    pub fn chance(&self, row: usize, col: usize) -> Option<f64> {
        let Rounding::Stochastic { seed, index } = self.rounding else { return None };
        let element = index.wrapping_add(row as u64 * self.cols as u64 + col as u64);
        Some(f64::from(random_bits(seed, element)) / 4_294_967_296.0)
    }

    /// The values `places` of the slices, which lie side by side from element (`row`, `col`) on.
    pub fn line(&self, places: Range<usize>, (row, col): (usize, usize)) -> Wanted<'_> {
        Wanted {
            base: &self.base[places.clone()],
            wanted: &self.wanted[places],
            rounding: self.rounding.skip(row * self.cols + col),
        }
    }

    /// The code of the element at `at` of the slices, in (`row`, `col`), which was `old`: on `level`, with `scale`.
    pub fn code(&self, (at, row, col): (usize, usize, usize), level: Level<'_>, scale: f32, old: u8) -> u8 {
        if self.is_same(at) {
            return old;
        }
        let target = f64::from(self.wanted[at]);
        match self.chance(row, col) {
            None => level.nearest(target, scale, old),
            Some(chance) => level.stochastic(target, scale, old, chance),
        }
    }
}
