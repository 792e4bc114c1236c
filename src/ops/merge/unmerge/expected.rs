//! The bytes a tensor of a merge has: computed as `merge` computes them, or those of an input.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::formats::Stored;
use crate::placement::merged::Merged;
use crate::plan::Compute;

/// Bytes of an input that stay mapped before they are let go.
const RELEASED_BYTES: u64 = 16 << 20;

/// What a tensor of the merge holds.
pub enum Expected {
    /// The bytes of an input.
    Stored(Stored),
    /// The result of a merge.
    Computed(Arc<Merged>),
}

impl Expected {
    /// Gets ready for the first row.
    ///
    /// # Errors
    /// When an input cannot be used.
    pub fn prepare(&self) -> Result<()> {
        match self {
            Self::Stored(tensor) => tensor.map.check_unchanged(),
            Self::Computed(merged) => merged.prepare(),
        }
    }

    /// The bytes of `rows`, each of `row_bytes`.
    ///
    /// # Errors
    /// When an input cannot be read, or a result cannot be stored.
    pub fn rows(&self, rows: Range<usize>, row_bytes: usize) -> Result<Cow<'_, [u8]>> {
        match self {
            Self::Stored(tensor) => rows_of(tensor, rows, row_bytes),
            Self::Computed(merged) => {
                let mut buffer = vec![0; rows.len() * row_bytes];
                merged.rows(rows, &mut buffer)?;
                Ok(Cow::Owned(buffer))
            }
        }
    }

    /// Says that the rows up to `end` have been read.
    pub fn release(&self, end: usize, row_bytes: usize) {
        if let Self::Stored(tensor) = self {
            release(tensor, end, row_bytes);
        }
    }
}

/// The stored bytes of `rows`.
///
/// # Errors
/// When the file is no longer there as it was mapped.
pub fn rows_of(tensor: &Stored, rows: Range<usize>, row_bytes: usize) -> Result<Cow<'_, [u8]>> {
    tensor.read((rows.start * row_bytes) as u64, (rows.len() * row_bytes) as u64)
}

/// Says that the rows up to `end` have been read: lets go of whole windows of mapped pages.
pub fn release(tensor: &Stored, end: usize, row_bytes: usize) {
    let end = (end * row_bytes) as u64;
    let first = end.saturating_sub(RELEASED_BYTES);
    if end == tensor.info.bytes || first / RELEASED_BYTES != end / RELEASED_BYTES {
        let first = first - first % RELEASED_BYTES;
        tensor.map.release(tensor.start + first, end - first);
    }
}
