//! A weight as the mathematics sees it: an f32 matrix behind whatever its file uses.
//!
//! A quantised weight is read through its [storage](super::storage), and is a plain tensor here.
//!
//! Files of llama.cpp store blocks of values that share scales, put the rows of some weights in another order and add 1 to the
//! weights of some norms: a [`RowLayout`] says so, and what is read here is the weight as the checkpoint has it.

use std::ops::Range;
use std::sync::Arc;

use super::storage::Quantised;
use crate::adapters::BaseRows;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::linalg::RowSource;
use crate::llama::RowLayout;
use crate::tensor::{Float, Packing, first_not_finite, usize_of};

/// Bytes of a weight that stay mapped before they are let go.
const RELEASED_BYTES: u64 = 16 << 20;

/// A stored weight, seen as `rows × cols`.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Where it lies.
    pub tensor: Stored,
    /// How its elements are stored.
    pub packing: Packing,
    /// How it lies in its file.
    pub layout: RowLayout,
    /// Rows of the matrix view.
    pub rows: usize,
    /// Columns of the matrix view.
    pub cols: usize,
    /// The weight behind it, where it is quantised.
    pub quantised: Option<Arc<Quantised>>,
}

impl Weight {
    /// `tensor` as a matrix of rows of `cols` elements.
    ///
    /// # Errors
    /// When its dtype holds no floating point numbers, naming dtype and tensor.
    pub fn new(tensor: Stored, cols: Option<usize>) -> Result<Self> {
        let info = &tensor.info;
        let packing = Packing::of(&info.dtype).ok_or_else(|| {
            let what = format!("tensor `{}` is stored as {}, which no delta can be added to", info.name, info.dtype);
            Error::unsupported(tensor.path(), what)
        })?;
        let bytes = usize_of(info.bytes);
        let elements = packing.values_in(bytes);
        let (rows, natural) = info.shape.rows_cols();
        let cols = cols.unwrap_or_else(|| usize_of(natural));
        let rows = elements.checked_div(cols).unwrap_or_else(|| usize::try_from(rows).unwrap_or(0));
        if !cols.is_multiple_of(packing.block()) {
            let (block, name) = (packing.block(), &info.name);
            let what = format!("tensor `{name}`: blocks of {block} values of {packing} do not fit rows of {cols}");
            return Err(Error::unsupported(tensor.path(), what));
        }
        Ok(Self { packing, layout: RowLayout::default(), rows, cols, quantised: None, tensor })
    }

    /// The numbers it is stored as, one by one.
    ///
    /// # Errors
    /// When it is stored in blocks.
    pub fn float(&self) -> Result<Float> {
        self.packing.float().ok_or_else(|| {
            let what = format!("tensor `{}` is stored in blocks of {}", self.tensor.info.name, self.packing);
            Error::unsupported(self.tensor.path(), what)
                .hint("`lorakit convert --to safetensors` gives a model of plain numbers")
        })
    }

    /// Bytes of one row as it is stored.
    pub fn row_bytes(&self) -> usize {
        self.packing.bytes_of(self.cols)
    }

    /// The stored bytes of `cols` in the row that is stored as `row`.
    pub fn bytes<'a>(&self, data: &'a [u8], row: usize, cols: Range<usize>) -> &'a [u8] {
        let start = row * self.row_bytes();
        &data[start + self.packing.bytes_of(cols.start)..start + self.packing.bytes_of(cols.end)]
    }

    /// Whether what is stored for an element is finite: reading as f32 and scaling may make it infinite.
    ///
    /// # Errors
    /// When the file is no longer as it was mapped.
    pub fn is_stored_finite(&self, row: usize, col: usize) -> Result<bool> {
        if self.quantised.is_some() {
            return Ok(true);
        }
        let data = self.tensor.view()?.data;
        // A block whose scale is infinite holds no finite values.
        let Some(float) = self.packing.float() else { return Ok(false) };
        let bytes = self.bytes(data, self.layout.stored_row(row), col..col + 1);
        Ok(first_not_finite(float, bytes).is_none())
    }

    /// Says that `rows` are read next.
    pub fn populate(&self, rows: Range<usize>) {
        let row_bytes = self.row_bytes() as u64;
        self.tensor.map.populate(self.tensor.start + rows.start as u64 * row_bytes, rows.len() as u64 * row_bytes);
    }

    /// Says that `rows` have been read: lets go of mapped pages, a window at a time, since every letting go interrupts
    /// all processors.
    pub fn release(&self, rows: Range<usize>) {
        let row_bytes = self.row_bytes() as u64;
        if let Some(quantised) = &self.quantised {
            quantised.done(rows.len() as u64 * row_bytes);
            return;
        }
        let (start, end) = (rows.start as u64 * row_bytes, rows.end as u64 * row_bytes);
        if rows.end == self.rows || start / RELEASED_BYTES != end / RELEASED_BYTES {
            let first = start - start % RELEASED_BYTES;
            self.tensor.map.release(self.tensor.start + first, end - first);
        }
    }
}

impl BaseRows for Weight {
    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        if let Some(quantised) = &self.quantised {
            return quantised.rows_of(self.cols, rows, cols, out);
        }
        let data = self.tensor.view()?.data;
        if cols.len() == self.cols && self.layout.order.is_none() {
            let bytes = self.row_bytes();
            self.packing.decode(&data[rows.start * bytes..rows.end * bytes], out);
        } else {
            for (row, line) in rows.clone().zip(out.chunks_exact_mut(cols.len().max(1))) {
                self.packing.decode(self.bytes(data, self.layout.stored_row(row), cols.clone()), line);
            }
        }
        if self.layout.added != 0.0 {
            out.iter_mut().for_each(|value| *value -= self.layout.added);
        }
        Ok(())
    }
}

impl RowSource for Weight {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        BaseRows::read(self, rows.clone(), 0..self.cols, out)?;
        self.release(rows);
        Ok(())
    }
}
