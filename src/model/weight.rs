//! A weight as the mathematics sees it: an f32 matrix behind whatever dtype and scale its file uses.
//!
//! FP8 checkpoints store codes and, in a tensor of their own, scales: one for the tensor (`weight_scale`, ComfyUI's
//! `scale_weight`), one per row, or one per block of 128 × 128 (`weight_scale_inv`, DeepSeek-V3). In all of them
//! W = code · scale.
//!
//! Files of llama.cpp store blocks of values that share scales, put the rows of some weights in another order and add 1 to the
//! weights of some norms: a [`RowLayout`] says so, and what is read here is the weight as the checkpoint has it.

use std::ops::Range;

use crate::adapters::BaseRows;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::linalg::RowSource;
use crate::llama::RowLayout;
use crate::tensor::{Float, Packing, first_not_finite, usize_of};

/// Block edge of DeepSeek's FP8 checkpoints (`weight_block_size` in their config).
const BLOCK: usize = 128;

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
    /// Scales of an FP8 weight.
    pub scale: Option<ScaleGrid>,
}

/// Scales, one per block of a weight.
#[derive(Debug, Clone)]
pub struct ScaleGrid {
    /// The tensor they are stored in.
    pub tensor: Stored,
    /// How they are stored.
    pub float: Float,
    /// Row by row.
    pub values: Vec<f32>,
    /// Rows and columns of one block.
    pub block: (usize, usize),
    /// Blocks side by side.
    pub across: usize,
}

impl ScaleGrid {
    /// Reads the scales `tensor` of a weight of `rows × cols`.
    ///
    /// # Errors
    /// When the shapes do not tell which scale belongs where.
    pub fn read(tensor: Stored, rows: usize, cols: usize) -> Result<Self> {
        let shape: Vec<usize> =
            tensor.info.shape.as_slice().iter().filter_map(|size| usize::try_from(*size).ok()).collect();
        let (block, across) = match shape.as_slice() {
            [] | [1] | [1, 1] => ((rows, cols), 1),
            [count] | [count, 1] if *count == rows => ((1, cols), 1),
            [down, across] if *down == rows.div_ceil(BLOCK) && *across == cols.div_ceil(BLOCK) => {
                ((BLOCK, BLOCK), *across)
            }
            _ => {
                let what = format!(
                    "tensor `{}` {} holds scales for a weight of [{rows}, {cols}] in a layout that is not known",
                    tensor.info.name, tensor.info.shape
                );
                return Err(Error::unsupported(tensor.path(), what));
            }
        };
        let Some(float) = tensor.info.dtype.float() else {
            let what = format!(
                "tensor `{}` holds scales as {}, which cannot be read yet",
                tensor.info.name, tensor.info.dtype
            );
            return Err(Error::unsupported(tensor.path(), what));
        };
        let view = tensor.view()?;
        let mut values = vec![0.0; view.data.len() / float.bytes()];
        float.decode(view.data, &mut values);
        if let Some(at) = values.iter().position(|scale| !scale.is_finite() || *scale <= 0.0) {
            let problem = format!("scale {at} is {}, not a positive number", values[at]);
            return Err(Error::numeric(tensor.path(), &tensor.info.name, problem));
        }
        Ok(Self { float, values, block, across, tensor: tensor.clone() })
    }

    /// Index of the scale at (`row`, `col`), and the end of the columns it serves.
    pub fn cell(&self, row: usize, col: usize) -> (usize, usize) {
        let across = col / self.block.1;
        ((row / self.block.0) * self.across + across, (across + 1) * self.block.1)
    }

    /// Calls `each` for the runs of `cols` in `row` that share a scale: index of the scale, range of columns.
    pub fn runs(&self, row: usize, cols: Range<usize>, mut each: impl FnMut(usize, Range<usize>)) {
        let mut start = cols.start;
        while start < cols.end {
            let (cell, end) = self.cell(row, start);
            let end = end.min(cols.end);
            each(cell, start..end);
            start = end;
        }
    }
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
        Ok(Self { packing, layout: RowLayout::default(), rows, cols, scale: None, tensor })
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
        let data = self.tensor.view()?.data;
        // A block whose scale is infinite holds no finite values.
        let Some(float) = self.packing.float() else { return Ok(false) };
        let bytes = self.bytes(data, self.layout.stored_row(row), col..col + 1);
        let mut is_finite = first_not_finite(float, bytes).is_none();
        if let Some(grid) = &self.scale {
            grid.runs(row, col..col + 1, |cell, _| is_finite &= grid.values[cell].is_finite());
        }
        Ok(is_finite)
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
        let (start, end) = (rows.start as u64 * row_bytes, rows.end as u64 * row_bytes);
        if rows.end == self.rows || start / RELEASED_BYTES != end / RELEASED_BYTES {
            let first = start - start % RELEASED_BYTES;
            self.tensor.map.release(self.tensor.start + first, end - first);
        }
    }
}

impl BaseRows for Weight {
    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
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
        if let Some(grid) = &self.scale {
            for (row, line) in rows.zip(out.chunks_exact_mut(cols.len())) {
                grid.runs(row, cols.clone(), |cell, run| {
                    let scale = grid.values[cell];
                    line[run.start - cols.start..run.end - cols.start].iter_mut().for_each(|value| *value *= scale);
                });
            }
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
