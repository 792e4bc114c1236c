//! One merged tensor: decoded, changed and rounded, in one pass where only products change it (`one_pass.rs`), or tile by tile.
//!
//! W′ = round(W + Σ strengthᵢ · ΔWᵢ), accumulated in f32, rounded once. Tiles are cut so that decoded factors stay in the
//! second-level cache; the bytes do not depend on how they are cut.

use std::ops::Range;
use std::sync::{Mutex, OnceLock};

use super::tile::{Piece, Place, TILE_COLS, TILE_ROWS, Tiled, coarse, cuts, least_common};
use crate::adapters::{BaseRows, Columns};
use crate::error::{Error, Result};
use crate::llama::RowLayout;
use crate::model::Rounding;
use crate::model::weight::Weight;
use crate::plan::Compute;
use crate::tensor::{self, Float, NotFinite, Packing, Survival, Tally, add_to_f64, encode_surveyed, encode_values};

/// Least share of a change that rounding to nearest must keep; where it keeps less, blocks are rounded stochastically.
const LEAST_KEPT: f64 = 0.9;

/// Rows that are looked at for that.
const SAMPLED_ROWS: usize = 64;

/// A tensor that is computed from a weight and the changes that land on it.
pub struct Merged {
    /// Its name, for messages.
    pub name: String,
    /// What it starts from: the base's tensor, or the one that replaces it.
    pub source: Weight,
    /// What changes it, in order.
    pub pieces: Vec<Piece>,
    /// What it is written as.
    pub out: Packing,
    /// How it lies in the output.
    pub layout: RowLayout,
    /// How it is rounded.
    pub rounding: Rounding,
    /// Rounding to nearest may give way to stochastic rounding.
    pub may_choose: bool,
    /// Where it did: how much of the change rounding to nearest would have kept of some rows.
    pub by_chance: OnceLock<f64>,
    /// What survived, by first row of each job.
    pub tallies: Mutex<Vec<(usize, Survival)>>,
}

impl Merged {
    /// A merged tensor, nothing computed yet.
    pub fn new(name: String, source: Weight, pieces: Vec<Piece>, out: Packing, rounding: Rounding) -> Self {
        let (layout, by_chance) = (RowLayout::default(), OnceLock::new());
        let tallies = Mutex::default();
        Self { name, source, pieces, out, layout, rounding, may_choose: false, by_chance, tallies }
    }

    /// Bytes of one row of the output.
    pub fn row_bytes(&self) -> u64 {
        self.out.bytes_of(self.source.cols) as u64
    }

    /// What survived rounding so far. Summed in row order, so it does not depend on which thread came first.
    pub fn survival(&self) -> Survival {
        let mut tallies = self.tallies.lock().expect("no thread panics while it holds the tallies").clone();
        tallies.sort_by_key(|(row, _)| *row);
        let mut total = Survival::default();
        tallies.iter().for_each(|(_, tally)| total.add(tally));
        total
    }

    /// Adds what survived in a job that begins at `first`.
    pub fn tally(&self, first: usize, survival: Survival) {
        self.tallies.lock().expect("no thread panics while it holds the tallies").push((first, survival));
    }

    /// Rows and columns that tiles and jobs are cut at multiples of. Counted from the first row and column of the region
    /// of the change that asks for it.
    pub fn grain(&self) -> (usize, usize) {
        let of = |piece: &Piece| piece.delta.grain();
        let stored = (self.layout.grain(), least_common(self.source.packing.block(), self.out.block()));
        self.pieces.iter().map(of).fold(stored, |all, one| (least_common(all.0, one.0), least_common(all.1, one.1)))
    }

    /// Whether the rows that nothing changes have the bytes that are stored.
    pub fn copies_rows(&self) -> bool {
        self.source.quantised.is_none() && self.source.packing == self.out && self.source.layout == self.layout
    }

    /// Whether values stand one by one, in their order: the fast way.
    pub(super) fn is_plain(&self) -> bool {
        let layouts = [&self.source.layout, &self.layout];
        self.source.quantised.is_none()
            && self.source.packing.float().is_some()
            && self.out.float().is_some()
            && layouts.iter().all(|layout| **layout == RowLayout::default())
    }

    /// Whether any change reaches `rows`.
    pub fn touches(&self, rows: Range<usize>) -> bool {
        self.pieces.iter().any(|piece| piece.is_active(&rows, &(0..self.source.cols)))
    }

    /// Calls `each` with every tile of `rows` as merged in f32, and as it was unless it is plain. In the
    /// mode of an f64 source the tile holds ΔW instead.
    pub fn tiles(
        &self,
        rows: Range<usize>,
        each: impl FnMut(Range<usize>, Range<usize>, Tiled<'_>) -> Result<()>,
    ) -> Result<()> {
        self.tiles_of(rows, 0..self.source.cols, each)
    }

    /// The same of some columns, which begin and end at multiples of the [grain](Self::grain) of the changes.
    ///
    /// # Errors
    /// As [`tiles`](Self::tiles).
    pub fn tiles_of(
        &self,
        rows: Range<usize>,
        across: Range<usize>,
        mut each: impl FnMut(Range<usize>, Range<usize>, Tiled<'_>) -> Result<()>,
    ) -> Result<()> {
        let (deltas_only, keeps_base) = (self.adds_in_f64(), !self.is_plain());
        let (mut value, mut base, mut spare) = (Vec::new(), Vec::new(), Vec::new());
        let (high, wide) = self.grain();
        for cols in cuts(across, coarse(TILE_COLS, wide), self.pieces.iter().map(Piece::cols)) {
            let here = |piece: &&Piece| piece.is_active(&rows, &cols);
            let active: Vec<&Piece> = self.pieces.iter().filter(here).collect();
            let mut ready = Vec::with_capacity(active.len());
            for piece in &active {
                ready.push(piece.delta.columns(piece.cols_in(&cols))?);
            }
            for band in cuts(rows.clone(), coarse(TILE_ROWS, high), active.iter().map(|piece| piece.rows())) {
                let elements = band.len() * cols.len();
                value.resize(elements, 0.0);
                let reads_base = keeps_base || active.iter().any(|piece| piece.delta.reads_base());
                if deltas_only {
                    value.fill(0.0);
                } else {
                    self.source.read(band.clone(), cols.clone(), &mut value)?;
                }
                base.clear();
                if reads_base && deltas_only {
                    base.resize(elements, 0.0);
                    self.source.read(band.clone(), cols.clone(), &mut base)?;
                } else if reads_base {
                    base.extend_from_slice(&value);
                }
                let mut fresh = !deltas_only;
                for (piece, columns) in active.iter().zip(&mut ready) {
                    if !piece.is_active(&band, &cols) {
                        continue;
                    }
                    let place = Place { band: &band, cols: &cols, base: &base, fresh };
                    if self.rounding == Rounding::PeftSafe && !deltas_only {
                        self.add_rounded(piece, columns.as_mut(), &place, &mut value, &mut spare)?;
                    } else {
                        place.add(piece, columns.as_mut(), &mut value)?;
                    }
                    fresh = false;
                }
                each(band, cols.clone(), Tiled { base: &base, value: &value })?;
            }
        }
        Ok(())
    }

    /// PEFT's `safe_merge=True`: a delta is rounded to the weight's dtype, then the sum; see [`Delta::rounds_alone`].
    fn add_rounded(
        &self,
        piece: &Piece,
        columns: &mut dyn Columns,
        place: &Place<'_>,
        value: &mut [f32],
        spare: &mut Vec<f32>,
    ) -> Result<()> {
        if piece.delta.rounds_alone() {
            spare.clear();
            spare.resize(value.len(), 0.0);
            place.add(piece, columns, spare)?;
            self.round(spare);
            value.iter_mut().zip(spare.iter()).for_each(|(value, delta)| *value += delta);
        } else {
            place.add(piece, columns, value)?;
        }
        self.round(value);
        Ok(())
    }

    fn round(&self, values: &mut [f32]) {
        let mut bytes = vec![0; self.out.bytes_of(values.len())];
        self.out.encode(values, tensor::Rounding::Nearest, &mut bytes);
        self.out.decode(&bytes, values);
    }

    /// Whether the source is too precise for f32: then the sum is formed in f64.
    pub(super) fn adds_in_f64(&self) -> bool {
        [self.source.packing, self.out] == [Packing::Float(Float::F64); 2]
    }

    fn encode(
        &self,
        [own, wanted]: [Float; 2],
        row: usize,
        cols: Range<usize>,
        values: &[f32],
        out: &mut [u8],
        tally: &mut Tally,
    ) -> Result<()> {
        let data = self.source.tensor.view()?.data;
        // A tile that spans whole rows comes in one piece.
        let lines = values.len() / cols.len();
        let width = own.bytes();
        let start = (row * self.source.cols + cols.start) * width;
        let base = &data[start..start + lines * cols.len() * width];
        let index = (row * self.source.cols + cols.start) as u64;
        let outcome = if self.adds_in_f64() {
            add_to_f64(base, values, out, &mut tally.survival)
        } else {
            encode_surveyed(base, own, values, wanted, self.rounding.at(&self.name, index), out, tally)
        };
        outcome.map_err(|found| self.not_finite(&found, index))
    }

    /// Encodes a tile row by row, each where it lies; `out` has the rows from `first` on.
    fn encode_rows(
        &self,
        first: usize,
        band: Range<usize>,
        cols: Range<usize>,
        tile: &Tiled<'_>,
        out: &mut [u8],
        tally: &mut Tally,
    ) -> Result<()> {
        let (width, added) = (self.out.bytes_of(cols.len()), self.layout.added);
        let (mut base, mut exact) = (Vec::new(), Vec::new());
        let lines = tile.base.chunks_exact(cols.len()).zip(tile.value.chunks_exact(cols.len()));
        for (row, (was, is)) in band.zip(lines) {
            let (mut was, mut is) = (was, is);
            if added != 0.0 {
                base.clear();
                exact.clear();
                base.extend(was.iter().map(|value| value + added));
                exact.extend(is.iter().map(|value| value + added));
                (was, is) = (&base, &exact);
            }
            let begin = (self.layout.stored_row(row) - first) * self.out.bytes_of(self.source.cols)
                + self.out.bytes_of(cols.start);
            let index = (row * self.source.cols + cols.start) as u64;
            let chance = self.by_chance.get().map(|_| Rounding::Stochastic { seed: 0 });
            let rounding = chance.unwrap_or(self.rounding).at(&self.name, index);
            encode_values(was, is, self.out, rounding, &mut out[begin..begin + width], tally)
                .map_err(|found| self.not_finite(&found, index))?;
        }
        Ok(())
    }

    /// The message for a value that cannot be stored.
    pub fn not_finite(&self, found: &NotFinite, first: u64) -> Error {
        let element = first + found.index as u64;
        let (row, col) = (element / self.source.cols as u64, element % self.source.cols as u64);
        let problem = if !found.base.is_finite() {
            format!("the weight at [{row}, {col}] is {}", found.base)
        } else if !found.exact.is_finite() {
            format!("merging makes the weight at [{row}, {col}] {}, it was {}", found.exact, found.base)
        } else {
            let ends =
                self.out.float().map_or("has no place for it".into(), |float| format!("ends at {}", float.max()));
            format!("the merged weight at [{row}, {col}] is {}, {} {ends}", found.exact, self.out)
        };
        let error = Error::numeric(self.source.tensor.path(), &self.name, problem);
        if found.base.is_finite() && found.exact.is_finite() {
            match self.out.float() {
                Some(Float::F32 | Float::F64) => error,
                Some(Float::Bf16) => error.hint("`--dtype f32` has room for it"),
                _ => error.hint("`--dtype bf16` or `--dtype f32` has room for it"),
            }
        } else {
            error
        }
    }
}

impl Compute for Merged {
    fn prepare(&self) -> Result<()> {
        self.source.tensor.map.check_unchanged()?;
        for piece in self.pieces.iter().filter(|piece| piece.delta.needs_measure()) {
            piece.delta.measure(&Region { weight: &self.source, row: piece.row, col: piece.col })?;
        }
        if self.may_choose && self.out.float().is_none() && !self.pieces.is_empty() {
            let kept = self.kept_by_nearest()?;
            if kept < LEAST_KEPT {
                // Preparing twice gives the same: keeping the first is right.
                let _ = self.by_chance.set(kept);
            }
        }
        Ok(())
    }

    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.source.tensor.map.check_unchanged()?;
        self.source.populate(rows.clone());
        let mut tally = Tally::default();
        self.fill(rows.clone(), out, &mut tally)?;
        self.source.release(rows.clone());
        if rows.end == self.source.rows {
            self.pieces.iter().for_each(|piece| piece.delta.release());
        }
        self.tally(rows.start, tally.survival);
        Ok(())
    }
}

impl Merged {
    /// How much of the change is left in some rows, spread evenly, when they are rounded to nearest.
    fn kept_by_nearest(&self) -> Result<f64> {
        let high = self.grain().0.max(1);
        let bands = self.source.rows.div_ceil(high);
        let step = bands.div_ceil((SAMPLED_ROWS / high).max(1)).max(1);
        let mut tally = Tally::default();
        for band in (0..bands).step_by(step) {
            let rows = band * high..self.source.rows.min((band + 1) * high);
            let mut out = vec![0; rows.len() * self.out.bytes_of(self.source.cols)];
            self.fill(rows, &mut out, &mut tally)?;
        }
        Ok(tally.survival.retained())
    }

    /// The bytes of `rows`, and what became of the change in them.
    fn fill(&self, rows: Range<usize>, out: &mut [u8], tally: &mut Tally) -> Result<()> {
        if let Some(survival) = self.fill_in_one_pass(&rows, out)? {
            tally.survival.add(&survival);
            return Ok(());
        }
        let row_bytes = self.out.bytes_of(self.source.cols);
        self.tiles(rows.clone(), |band, cols, tile| {
            let (start, value) = ((band.start - rows.start) * row_bytes, tile.value);
            let floats = self.source.packing.float().zip(self.out.float()).filter(|_| self.is_plain());
            let Some((own, wanted)) = floats else {
                return self.encode_rows(rows.start, band, cols, &tile, out, tally);
            };
            let (floats, width) = ([own, wanted], wanted.bytes());
            if cols.len() == self.source.cols {
                let place = &mut out[start..start + value.len() * width];
                return self.encode(floats, band.start, cols, value, place, tally);
            }
            for (at, line) in value.chunks_exact(cols.len()).enumerate() {
                let begin = start + at * row_bytes + cols.start * width;
                let place = &mut out[begin..begin + cols.len() * width];
                self.encode(floats, band.start + at, cols.clone(), line, place, tally)?;
            }
            Ok(())
        })
    }
}

/// The part of a weight a delta covers.
struct Region<'a> {
    weight: &'a Weight,
    row: usize,
    col: usize,
}

impl BaseRows for Region<'_> {
    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let shifted = |range: Range<usize>, by: usize| range.start + by..range.end + by;
        let rows = shifted(rows, self.row);
        self.weight.read(rows.clone(), shifted(cols, self.col), out)?;
        self.weight.release(rows);
        Ok(())
    }
}
