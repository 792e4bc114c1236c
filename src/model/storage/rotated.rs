//! A weight whose columns are rotated in groups, turned back as it is read.

use std::ops::Range;

use super::coded::Coded;
use super::{Facts, Storage};
use crate::error::Result;
use crate::tensor::codes::rotate;
use crate::tensor::{Float, Shape};

/// A rotated weight.
#[derive(Debug)]
pub struct Rotated {
    /// As it is stored.
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
}
