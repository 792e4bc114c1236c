//! The bytes of a plain tensor that stands for a quantised weight: made as they are read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Storage;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::plan::Compute;
use crate::tensor::{Float, Rounding, TensorInfo, first_not_finite, first_odd_value};

/// Values that are made at once: 256 KiB of f32.
const TILE: usize = 1 << 16;

/// Bytes that are made before the mapped pages of what they were made of are let go.
const RELEASED_BYTES: u64 = 64 << 20;

/// A weight with its storage, and what it is rounded to.
#[derive(Debug)]
pub struct Quantised {
    /// Its name.
    pub name: String,
    /// The tensors it is stored in, codes first, and those that mean nothing without it.
    pub tensors: Vec<Stored>,
    /// The weight.
    pub storage: Arc<dyn Storage>,
    /// What its values are rounded to.
    pub float: Float,
    /// Rows: all dimensions but the last.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Bytes that were made of it since pages were let go.
    made: AtomicU64,
}

impl Quantised {
    /// The weight `name`, stored in `tensors`.
    ///
    /// # Errors
    /// When it is too large to be.
    pub fn new(name: String, tensors: Vec<Stored>, storage: Arc<dyn Storage>, float: Float) -> Result<Self> {
        let shape = storage.shape();
        let (rows, cols) = match shape.as_slice() {
            [] => (Some(1), 1),
            [rest @ .., last] => (rest.iter().try_fold(1_u64, |all, one| all.checked_mul(*one)), *last),
        };
        let sized = rows.and_then(|rows| {
            rows.checked_mul(cols)?.checked_mul(8)?;
            Some((usize::try_from(rows).ok()?, usize::try_from(cols).ok()?))
        });
        let Some((rows, cols)) = sized else {
            let problem = format!("stands for a weight of {shape}, which is too large");
            return Err(Error::malformed(tensors[0].path(), format!("tensor `{}`", tensors[0].info.name), problem));
        };
        Ok(Self { name, tensors, storage, float, rows, cols, made: AtomicU64::new(0) })
    }

    /// The same weight rounded to another type.
    #[must_use]
    pub fn rounded_to(&self, float: Float) -> Self {
        let (storage, tensors) = (Arc::clone(&self.storage), self.tensors.clone());
        let made = AtomicU64::new(0);
        Self { name: self.name.clone(), tensors, storage, float, rows: self.rows, cols: self.cols, made }
    }

    /// Reads `rows × cols`, rounded to what the weight is.
    ///
    /// # Errors
    /// As [`Storage::read`], and when a value is beyond the range of that.
    pub fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.exact(rows.clone(), cols.clone(), out)?;
        if self.float == Float::F32 {
            return Ok(());
        }
        let exact = out.to_vec();
        self.float.round(out);
        match first_odd_value(out) {
            None => Ok(()),
            Some(at) => Err(self.beyond(rows.start + at / cols.len(), cols.start + at % cols.len(), exact[at])),
        }
    }

    /// Reads `rows × cols` of the weight seen as rows of `width` elements.
    ///
    /// # Errors
    /// As [`Quantised::read`].
    pub fn rows_of(&self, width: usize, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        if width == self.cols {
            return self.read(rows, cols, out);
        }
        if cols.is_empty() {
            return Ok(());
        }
        for (row, line) in rows.zip(out.chunks_exact_mut(cols.len())) {
            self.flat(row * width + cols.start, line)?;
        }
        Ok(())
    }

    /// Reads neighbours of all elements, from one on.
    fn flat(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (rows, cols) = self.stretch(at, rest.len());
            let (place, others) = rest.split_at_mut(rows.len() * cols.len());
            at += place.len();
            self.read(rows, cols, place)?;
            rest = others;
        }
        Ok(())
    }

    /// The largest rectangle that begins at an element and has no more than `left`, nor than are made at once.
    fn stretch(&self, at: usize, left: usize) -> (Range<usize>, Range<usize>) {
        let (row, col) = (at / self.cols, at % self.cols);
        if col == 0 && left >= self.cols {
            return (row..row + (left / self.cols).min(self.rows_at_once()), 0..self.cols);
        }
        (row..row + 1, col..self.cols.min(col + left))
    }

    /// Rows that are best read at once.
    pub fn rows_at_once(&self) -> usize {
        let together = self.storage.rows_together();
        (TILE / self.cols.max(1)).max(1).next_multiple_of(together.max(1))
    }

    /// The same in f32, as the storage has it.
    ///
    /// # Errors
    /// As [`Storage::read`], and when a value is not finite.
    pub fn exact(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        debug_assert!(rows.end <= self.rows && cols.end <= self.cols && out.len() == rows.len() * cols.len());
        self.storage.read(rows.clone(), cols.clone(), out)?;
        match first_odd_value(out) {
            None => Ok(()),
            Some(at) => Err(self.not_finite(rows.start + at / cols.len(), cols.start + at % cols.len(), out[at])),
        }
    }

    fn not_finite(&self, row: usize, col: usize, value: f32) -> Error {
        let codes = &self.tensors[0];
        Error::numeric(codes.path(), &codes.info.name, format!("the value at [{row}, {col}] is {value}"))
    }

    fn beyond(&self, row: usize, col: usize, value: f32) -> Error {
        let (codes, float) = (&self.tensors[0], self.float);
        let problem = format!("the value at [{row}, {col}] is {value}, {float} ends at {}", float.max());
        Error::numeric(codes.path(), &codes.info.name, problem).hint("`--dtype bf16` or `--dtype f32` has room for it")
    }

    /// The plain tensor it stands for.
    pub fn stored(self: &Arc<Self>) -> Stored {
        let bytes = self.rows as u64 * self.cols as u64 * self.float.bytes() as u64;
        let source = Arc::clone(self);
        let map = self.tensors[0].map.made(bytes, move |offset, out| source.fill(offset, out));
        let info = TensorInfo {
            name: self.name.clone(),
            dtype: self.float.dtype(),
            shape: self.storage.shape(),
            offset: 0,
            bytes,
        };
        Stored { map: Arc::new(map), info, start: 0 }
    }

    /// The bytes from `offset` on.
    fn fill(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let width = self.float.bytes();
        let offset = usize::try_from(offset).expect("a mapped weight fits the address space");
        if !offset.is_multiple_of(width) || !out.len().is_multiple_of(width) {
            let first = offset - offset % width;
            let mut whole = vec![0; (offset + out.len() - first).next_multiple_of(width)];
            self.fill(first as u64, &mut whole)?;
            out.copy_from_slice(&whole[offset - first..][..out.len()]);
            return Ok(());
        }
        let (mut at, mut values) = (offset / width, Vec::new());
        let mut rest = out;
        while !rest.is_empty() {
            let (rows, span) = self.stretch(at, rest.len() / width);
            let count = rows.len() * span.len();
            values.resize(count, 0.0);
            self.exact(rows.clone(), span.clone(), &mut values)?;
            let (place, others) = rest.split_at_mut(count * width);
            self.float.encode(&values, Rounding::Nearest, place);
            if self.float != Float::F32
                && let Some(bad) = first_not_finite(self.float, place)
            {
                return Err(self.beyond(rows.start + bad / span.len(), span.start + bad % span.len(), values[bad]));
            }
            rest = others;
            at += count;
        }
        self.done((at * width - offset) as u64);
        Ok(())
    }

    /// Bytes of a row of the plain tensor.
    pub fn row_bytes(&self) -> u64 {
        (self.cols * self.float.bytes()) as u64
    }

    /// Counts bytes that were made, and lets go of mapped pages now and then.
    pub fn done(&self, bytes: u64) {
        if self.made.fetch_add(bytes, Ordering::Relaxed) + bytes >= RELEASED_BYTES {
            self.made.store(0, Ordering::Relaxed);
            self.release();
        }
    }

    /// Lets go of all mapped pages.
    pub fn release(&self) {
        self.storage.forget();
        self.tensors.iter().for_each(|stored| stored.map.release(stored.start, stored.info.bytes));
    }
}

/// The plain tensor row by row.
impl Compute for Quantised {
    fn prepare(&self) -> Result<()> {
        self.tensors.iter().try_for_each(|stored| stored.map.check_unchanged())
    }

    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.fill(rows.start as u64 * self.row_bytes(), out)
    }
}
