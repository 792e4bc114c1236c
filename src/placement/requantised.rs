//! A quantised weight that is written back in its own format, on the scales it has: every code the nearest to W + ΔW, or one of the
//! two around it where stochastic rounding is asked for. Codes whose value does not change stay bit for bit, and so does everything
//! beside them.

use std::ops::Range;
use std::sync::Arc;

use super::merged::Merged;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::storage::{Change, Grid, Quantised};
use crate::plan::Compute;
use crate::tensor::{Survival, first_odd_value, survey_values};

/// Values that are requantised at once: 2 MiB of f32.
const AT_ONCE: usize = 1 << 19;

/// The codes of a merged weight.
pub struct Requantised {
    /// The weight with its changes, in f32.
    pub merged: Arc<Merged>,
    quantised: Arc<Quantised>,
}

impl Requantised {
    /// The codes of `merged`.
    ///
    /// # Errors
    /// When its storage cannot be written.
    pub fn new(merged: Arc<Merged>, quantised: Arc<Quantised>) -> Result<Self> {
        let made = Self { merged, quantised };
        if made.quantised.storage.grid().is_none() {
            let facts = made.quantised.storage.facts();
            let what = format!("`{}` is {}, which is read and cannot be written back", made.merged.name, facts.format);
            return Err(Error::unsupported(made.codes().path(), what)
                .hint("without `--keep-format` the result is a plain model"));
        }
        let seen = (made.merged.source.rows, made.merged.source.cols);
        if seen != (made.quantised.rows, made.quantised.cols) {
            let what = format!(
                "`{}` is changed as [{}, {}] and stored as [{}, {}]: it cannot be written back in its own format",
                made.merged.name, seen.0, seen.1, made.quantised.rows, made.quantised.cols
            );
            return Err(Error::unsupported(made.codes().path(), what)
                .hint("without `--keep-format` the result is a plain model"));
        }
        Ok(made)
    }

    /// The tensor of codes.
    pub fn codes(&self) -> &Stored {
        &self.quantised.tensors[0]
    }

    /// How many bands of bytes it has, and how long each is.
    pub fn bands(&self) -> (usize, u64) {
        let (count, bytes) = self.grid().bands();
        (count, bytes as u64)
    }

    fn grid(&self) -> &dyn Grid {
        self.quantised.storage.grid().expect("it was asked for when this was made")
    }

    fn fill(&self, bands: Range<usize>, out: &mut [u8]) -> Result<Survival> {
        let (grid, (_, width)) = (self.grid(), self.grid().bands());
        let (together, mut first, mut survival) = (grid.together().max(1), bands.start, Survival::default());
        let codes = self.codes();
        out.copy_from_slice(&codes.read((bands.start * width) as u64, out.len() as u64)?);
        while first < bands.end {
            let (rows, cols) = grid.part(first..first + 1);
            let each = (rows.len() * cols.len()).max(1);
            let end = (first / together + 1) * together;
            let last = bands.end.min(end).min(first + (AT_ONCE / each).max(1));
            let place = &mut out[(first - bands.start) * width..(last - bands.start) * width];
            survival.add(&self.stretch(first..last, place)?);
            first = last;
        }
        Ok(survival)
    }

    /// The codes of bands that are one rectangle.
    fn stretch(&self, bands: Range<usize>, out: &mut [u8]) -> Result<Survival> {
        let (grid, merged) = (self.grid(), &self.merged);
        let (rows, cols) = grid.part(bands.clone());
        let mut base = vec![0.0; rows.len() * cols.len()];
        self.quantised.exact(rows.clone(), cols.clone(), &mut base)?;
        let mut wanted = base.clone();
        let mut is_changed = false;
        merged.tiles_of(rows.clone(), cols.clone(), |band, span, tile| {
            is_changed = true;
            for (at, line) in band.zip(tile.value.chunks_exact(span.len())) {
                let begin = (at - rows.start) * cols.len() + span.start - cols.start;
                wanted[begin..begin + span.len()].copy_from_slice(line);
            }
            Ok(())
        })?;
        if !is_changed {
            let elements = base.len() as u64;
            return Ok(Survival { elements, codes: elements, ..Survival::default() });
        }
        if let Some(at) = first_odd_value(&wanted) {
            let (row, col) = (rows.start + at / cols.len(), cols.start + at % cols.len());
            let problem = format!("merging makes the weight at [{row}, {col}] {}, it was {}", wanted[at], base[at]);
            return Err(Error::numeric(self.codes().path(), &merged.name, problem));
        }
        let change = Change {
            base: &base,
            wanted: &wanted,
            row: rows.start,
            cols: merged.source.cols,
            span: (cols.start, cols.len()),
            rounding: merged.rounding.at(&merged.name, 0),
        };
        grid.encode(bands.clone(), &change, out)?;
        let mut got = vec![0.0; base.len()];
        grid.values(bands, out, &mut got)?;
        let survival = survey_values(&base, &wanted, &got).map_err(|found| {
            let first = (rows.start * merged.source.cols + cols.start) as u64;
            merged.not_finite(&found, first)
        })?;
        let moved = base.iter().zip(&got).filter(|(before, after)| before != after).count() as u64;
        Ok(Survival { codes: base.len() as u64, codes_moved: moved, ..survival })
    }
}

impl Compute for Requantised {
    fn prepare(&self) -> Result<()> {
        self.merged.prepare()
    }

    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.codes().map.check_unchanged()?;
        let survival = self.fill(rows.clone(), out)?;
        self.quantised.done(out.len() as u64);
        if rows.end == self.grid().bands().0 {
            self.merged.pieces.iter().for_each(|piece| piece.delta.release());
        }
        self.merged.tally(rows.start, survival);
        Ok(())
    }
}
