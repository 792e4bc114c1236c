//! The contract of a change to one weight.

use std::ops::Range;

use super::low_rank::Term;
use crate::error::Result;
use crate::linalg::LinearOperator;

/// A change to a weight that is stored as `rows × cols`.
///
/// A delta is applied tile by tile, from many threads, so that neither it nor the weight is ever held whole. It knows the
/// stored orientation: a layer that keeps its weight as `[in, out]` gets a delta whose factors are swapped.
pub trait Delta: Send + Sync {
    /// Rows and columns of the stored weight region it changes.
    fn shape(&self) -> (usize, usize);

    /// Gets ready for the columns `cols`: what is shared by all rows is decoded once.
    ///
    /// # Errors
    /// When the factors cannot be read.
    fn columns(&self, cols: Range<usize>) -> Result<Box<dyn Columns + '_>>;

    /// Whether ΔW is a sum that does not depend on W.
    fn is_additive(&self) -> bool {
        true
    }

    /// Whether PEFT's `safe_merge=True` rounds ΔW by itself before it rounds the sum. It does not for DoRA, `lora_bias` and
    /// the second half of attention's output projection.
    fn rounds_alone(&self) -> bool {
        self.is_additive()
    }

    /// Whether [`Columns::add`] looks at [`Tile::base`].
    fn reads_base(&self) -> bool {
        !self.is_additive()
    }

    /// Whether every row may change; if not, [`Delta::touches`] tells which do.
    fn touches_all(&self) -> bool {
        true
    }

    /// Whether these rows change at all.
    fn touches(&self, _rows: Range<usize>) -> bool {
        true
    }

    /// Tiles begin and end at multiples of these many rows and columns, or at the end of the region: a change that mixes
    /// neighbours of W sees all of them in [`Tile::base`].
    fn grain(&self) -> (usize, usize) {
        (1, 1)
    }

    /// Whether facts about the whole weight are needed first.
    fn needs_measure(&self) -> bool {
        false
    }

    /// Bytes that [`Delta::measure`] holds beside its bands, about.
    fn measure_bytes(&self) -> u64 {
        0
    }

    /// ΔW as an operator, where it is one that does not depend on W.
    ///
    /// # Errors
    /// When the factors cannot be read.
    fn operator(&self) -> Result<Option<Box<dyn LinearOperator>>> {
        Ok(None)
    }

    /// The products ΔW is the sum of, where that is all it is.
    fn products(&self) -> Option<Vec<&Term>> {
        None
    }

    /// What was found while it was measured and people should know.
    fn notes(&self) -> Option<&str> {
        None
    }

    /// Whether a change of a bias depends on the layer's weight: then [`Delta::see_weight`] comes before everything else.
    fn reads_weight(&self) -> bool {
        false
    }

    /// Reads the layer's weight, `[out, in]`.
    ///
    /// # Errors
    /// When it cannot be read.
    fn see_weight(&self, _weight: &dyn BaseRows) -> Result<()> {
        Ok(())
    }

    /// Says that the delta has been applied to all rows: mapped pages may go.
    fn release(&self) {}

    /// Reads the whole base weight once, before the first tile.
    ///
    /// # Errors
    /// When the base cannot be read, or makes the change meaningless.
    fn measure(&self, _base: &dyn BaseRows) -> Result<()> {
        Ok(())
    }
}

/// A delta that is ready for some columns.
pub trait Columns {
    /// Adds `strength · ΔW` to the tile.
    ///
    /// # Errors
    /// When the factors cannot be read.
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()>;
}

/// A block of a weight in f32, in the coordinates of the delta.
pub struct Tile<'a> {
    /// Rows of the delta's region.
    pub rows: Range<usize>,
    /// Columns of the delta's region.
    pub cols: Range<usize>,
    /// The untouched weight, row by row; empty unless [`Delta::reads_base`].
    pub base: &'a [f32],
    /// The weight as changed so far, row by row.
    pub value: &'a mut [f32],
    /// Whether `value` still equals `base`: a change that computes W′ as a whole may then store it as it is, without the
    /// detour over W′ − W that costs a rounding.
    pub fresh: bool,
}

/// Row access to a base weight, decoded to f32.
pub trait BaseRows: Sync {
    /// Decodes `rows × cols` into `out`, row by row.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()>;
}
