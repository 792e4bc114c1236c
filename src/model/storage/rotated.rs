//! A weight whose columns are rotated in groups: turned back as it is read, and turned once more as it is written.

use std::ops::Range;

use super::coded::Coded;
use super::{Change, Facts, Grid, Storage};
use crate::error::Result;
use crate::tensor::codes::rotate;
use crate::tensor::{Float, Shape};

/// A rotated weight.
#[derive(Debug)]
pub struct Rotated {
    /// As it is stored: codes row by row.
    pub stored: Coded,
    /// Columns of a group, a power of four that divides all of them.
    pub group: usize,
}

impl Storage for Rotated {
    fn shape(&self) -> Shape {
        self.stored.shape()
    }

    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let whole = cols.start / self.group * self.group..cols.end.next_multiple_of(self.group);
        let mut turned = vec![0.0; rows.len() * whole.len()];
        self.stored.read(rows, whole.clone(), &mut turned)?;
        rotate(&mut turned, self.group);
        let skipped = cols.start - whole.start;
        for (line, out) in turned.chunks_exact(whole.len().max(1)).zip(out.chunks_exact_mut(cols.len().max(1))) {
            out.copy_from_slice(&line[skipped..skipped + cols.len()]);
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        let mut facts = self.stored.facts();
        facts.details.push(format!("rotated in groups of {}", self.group));
        facts
    }

    fn dtype(&self) -> Option<Float> {
        self.stored.dtype()
    }

    fn grid(&self) -> Option<&dyn Grid> {
        self.stored.grid().map(|_| self as &dyn Grid)
    }
}

impl Grid for Rotated {
    fn bands(&self) -> (usize, usize) {
        self.stored.bands()
    }

    fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>) {
        self.stored.part(bands)
    }

    fn encode(&self, bands: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()> {
        let mut base = vec![0.0; change.wanted.len()];
        self.stored.values(bands.clone(), out, &mut base)?;
        // What is added is rotated, not the sum: where nothing is, the stored value is wanted to the bit.
        let mut wanted: Vec<f32> = change.wanted.iter().zip(change.base).map(|(wanted, base)| wanted - base).collect();
        rotate(&mut wanted, self.group);
        wanted.iter_mut().zip(&base).for_each(|(wanted, base)| *wanted += base);
        self.stored.encode(bands, &Change { base: &base, wanted: &wanted, ..*change }, out)
    }

    fn values(&self, bands: Range<usize>, codes: &[u8], out: &mut [f32]) -> Result<()> {
        self.stored.values(bands, codes, out)?;
        rotate(out, self.group);
        Ok(())
    }
}
