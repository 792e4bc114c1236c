//! Changes that land on a weight, and the tiles in which they do.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::adapters::{Columns, Delta, Tile};
use crate::error::Result;

/// Columns of a tile: 16 rows of a decoded factor take 32 KiB.
pub(crate) const TILE_COLS: usize = 2048;

/// Rows of a tile: with [`TILE_COLS`] 256 KiB of f32, half the second-level cache of the machine this was measured on.
pub(crate) const TILE_ROWS: usize = 64;

/// A delta and where it lands in the weight.
#[derive(Clone)]
pub struct Piece {
    /// The change.
    pub delta: Arc<dyn Delta>,
    /// First row of its region.
    pub row: usize,
    /// First column of its region.
    pub col: usize,
    /// Its weight.
    pub strength: f64,
}

impl Piece {
    pub(crate) fn rows(&self) -> Range<usize> {
        self.row..self.row + self.delta.shape().0
    }

    pub(crate) fn cols(&self) -> Range<usize> {
        self.col..self.col + self.delta.shape().1
    }

    /// Rows of the weight, all of them in the region, as rows of it.
    pub(crate) fn rows_in(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start - self.row..rows.end - self.row
    }

    /// The same of columns.
    pub(crate) fn cols_in(&self, cols: &Range<usize>) -> Range<usize> {
        cols.start - self.col..cols.end - self.col
    }

    pub(crate) fn is_active(&self, rows: &Range<usize>, cols: &Range<usize>) -> bool {
        let (mine, across) = (self.rows(), self.cols());
        let (start, end) = (rows.start.max(mine.start), rows.end.min(mine.end));
        let overlaps = start < end && cols.start < across.end && across.start < cols.end;
        overlaps && self.delta.touches(start - mine.start..end - mine.start)
    }
}

/// A tile in f32, row by row.
pub struct Tiled<'a> {
    /// As it was, where that is kept.
    pub base: &'a [f32],
    /// As it is to be.
    pub value: &'a [f32],
}

/// Where a tile lies, and what it starts from.
pub(crate) struct Place<'a> {
    pub band: &'a Range<usize>,
    pub cols: &'a Range<usize>,
    pub base: &'a [f32],
    pub fresh: bool,
}

impl Place<'_> {
    pub(crate) fn add(&self, piece: &Piece, columns: &mut dyn Columns, value: &mut [f32]) -> Result<()> {
        let (rows, cols) = (piece.rows_in(self.band), piece.cols_in(self.cols));
        columns.add(piece.strength, &mut Tile { rows, cols, base: self.base, value, fresh: self.fresh })
    }
}

/// `step` as a multiple of `grain`.
pub(crate) fn coarse(step: usize, grain: usize) -> usize {
    (step / grain).max(1) * grain
}

/// The least common multiple.
pub(crate) fn least_common(left: usize, right: usize) -> usize {
    let (mut small, mut large) = (left.min(right), left.max(right));
    while small > 0 {
        (small, large) = (large % small, small);
    }
    left / large.max(1) * right
}

/// Cuts `range` into pieces of at most `step`, and at both ends of every one of `regions`.
pub(crate) fn cuts(range: Range<usize>, step: usize, regions: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut marks: BTreeSet<usize> = range.clone().step_by(step).collect();
    marks.extend(regions.flat_map(|region| [region.start, region.end]).filter(|mark| range.contains(mark)));
    marks.insert(range.end);
    let marks: Vec<usize> = marks.into_iter().collect();
    marks.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// ‖Σ strengthᵢ · ΔWᵢ‖ of deltas that lie side by side, by the Gram identity.
///
/// # Errors
/// When factors cannot be read.
pub fn delta_norm(pieces: &[Piece]) -> Result<Option<f64>> {
    let mut regions: Vec<(usize, usize)> = pieces.iter().map(|piece| (piece.row, piece.col)).collect();
    regions.sort_unstable();
    if pieces.is_empty() || regions.windows(2).any(|pair| pair[0] == pair[1]) {
        return Ok(None);
    }
    let mut squared = 0.0;
    for piece in pieces {
        let Some(operator) = piece.delta.operator()? else { return Ok(None) };
        squared += piece.strength * piece.strength * operator.frobenius_squared()?;
    }
    Ok(Some(squared.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_end_where_regions_do() {
        let tiles = cuts(0..10, 4, std::iter::once(3..7));
        assert_eq!(tiles, [0..3, 3..4, 4..7, 7..8, 8..10]);
    }

    #[test]
    fn an_empty_range_has_no_tiles() {
        assert!(cuts(5..5, 4, std::iter::empty()).is_empty());
    }
}
