//! A matrix put together of pieces of stored tensors: turned, scaled, padded with zeros, cut by rows, laid out in blocks.
//!
//! It is computed row by row when it is written. One that is a stored tensor as it is is copied instead.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Bytes;
use super::range::beyond;
use crate::adapters::Factor;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::plan::Compute;
use crate::tensor::{Beyond, Float, Shape, usize_of};

/// A matrix and the shape it is written with.
#[derive(Debug, Clone)]
pub struct Grid {
    /// Rows and columns; the first dimension against all others.
    pub size: (u64, u64),
    /// What follows the first two dimensions of the shape: a kernel.
    pub kernel: Vec<u64>,
    /// What stands where; zero elsewhere.
    pub blocks: Vec<Block>,
}

/// A piece of a stored tensor and its place.
#[derive(Debug, Clone)]
pub struct Block {
    /// The tensor.
    pub source: Stored,
    /// It is read with rows and columns exchanged.
    pub turned: bool,
    /// Rows of what is read that are taken.
    pub rows: Range<u64>,
    /// Columns of what is read that are taken.
    pub cols: Range<u64>,
    /// What every value is multiplied by.
    pub factor: f64,
    /// First row and column in the matrix.
    pub at: (u64, u64),
}

impl Grid {
    /// The tensor as it is.
    pub fn of(source: &Stored) -> Self {
        let size = source.info.shape.rows_cols();
        let block =
            Block { source: source.clone(), turned: false, rows: 0..size.0, cols: 0..size.1, factor: 1.0, at: (0, 0) };
        let kernel = source.info.shape.as_slice().iter().skip(2).copied().collect();
        Self { size, kernel, blocks: vec![block] }
    }

    /// The shape it is written with.
    pub fn shape(&self) -> Shape {
        let inner: u64 = self.kernel.iter().product::<u64>().max(1);
        Shape::from(
            [self.size.0, self.size.1 / inner].into_iter().chain(self.kernel.iter().copied()).collect::<Vec<u64>>(),
        )
    }

    /// With rows and columns exchanged; a matrix without a kernel.
    #[must_use]
    pub fn turned(mut self) -> Self {
        self.size = (self.size.1, self.size.0);
        self.kernel.clear();
        for block in &mut self.blocks {
            block.turned = !block.turned;
            std::mem::swap(&mut block.rows, &mut block.cols);
            block.at = (block.at.1, block.at.0);
        }
        self
    }

    /// Every value times `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.blocks.iter_mut().for_each(|block| block.factor *= factor);
        self
    }

    /// Filled up with zeros to `rows` and `cols`.
    #[must_use]
    pub fn padded(mut self, rows: u64, cols: u64) -> Self {
        self.size = (self.size.0.max(rows), self.size.1.max(cols));
        self
    }

    /// The rows `rows` alone.
    #[must_use]
    pub fn rows(mut self, rows: &Range<u64>) -> Self {
        self.blocks.retain_mut(|block| {
            let height = block.rows.end - block.rows.start;
            let (first, last) = (block.at.0.max(rows.start), (block.at.0 + height).min(rows.end));
            if first >= last {
                return false;
            }
            let start = block.rows.start + first - block.at.0;
            block.rows = start..start + (last - first);
            block.at.0 = first - rows.start;
            true
        });
        self.size.0 = rows.end - rows.start;
        self
    }

    /// The columns `cols` alone.
    #[must_use]
    pub fn cols(self, cols: &Range<u64>) -> Self {
        let kernel = self.kernel.clone();
        let mut cut = self.turned().rows(cols).turned();
        cut.kernel = kernel;
        cut
    }

    /// `other` beside this one's values, from row and column `at` on.
    #[must_use]
    pub fn with(mut self, other: Self, at: (u64, u64)) -> Self {
        self.size = (self.size.0.max(at.0 + other.size.0), self.size.1.max(at.1 + other.size.1));
        self.blocks.extend(
            other.blocks.into_iter().map(|block| Block { at: (block.at.0 + at.0, block.at.1 + at.1), ..block }),
        );
        self
    }

    /// A matrix of zeros.
    pub fn zero(size: (u64, u64)) -> Self {
        Self { size, kernel: Vec::new(), blocks: Vec::new() }
    }

    /// The widest dtype of the pieces.
    pub fn float(&self) -> Float {
        let floats = self.blocks.iter().filter_map(|block| block.source.info.dtype.float());
        floats.max_by_key(|float| (float.bytes(), *float == Float::F32)).unwrap_or(Float::F32)
    }

    /// Whether the values have to be computed, and might be rounded: some piece is multiplied by something other than a power of two.
    pub fn rounds(&self) -> bool {
        self.blocks.iter().any(|block| !is_power_of_two(block.factor))
    }

    /// The values as `float`; as they are stored if none is given.
    pub fn bytes(self, float: Option<Float>) -> Bytes {
        let own = self.float();
        let float = float.unwrap_or(own);
        if let [block] = self.blocks.as_slice() {
            let all = block.rows == (0..self.size.0)
                && block.cols == (0..self.size.1)
                && block.source.info.shape.elements() == Some(self.size.0 * self.size.1);
            let same = block.source.info.dtype.float() == Some(float);
            if all && same && !block.turned && block.factor == 1.0 && block.at == (0, 0) {
                return Bytes::Stored(block.source.clone());
            }
        }
        let count = self.size.0 * self.size.1 * float.bytes() as u64;
        let written = Written { grid: self, float, kept: Kept::default() };
        Bytes::Computed { compute: Arc::new(written), float, count }
    }

    /// File and name of the first tensor that it is made of.
    pub fn origin(&self) -> (&Path, &str) {
        let first = self.blocks.first();
        first.map_or((Path::new(""), ""), |block| (block.source.path(), block.source.info.name.as_str()))
    }

    /// The refusal of a value among those of the rows from `first` on: it names the tensor that it comes from.
    pub fn refuse(&self, first: usize, found: &Beyond) -> Error {
        let width = usize_of(self.size.1).max(1);
        let (row, col) = ((first + found.index / width) as u64, (found.index % width) as u64);
        let holds = |block: &&Block| {
            let (high, wide) = (block.rows.end - block.rows.start, block.cols.end - block.cols.start);
            (block.at.0..block.at.0 + high).contains(&row) && (block.at.1..block.at.1 + wide).contains(&col)
        };
        let block = self.blocks.iter().find(holds);
        let (path, name) = block.map_or(self.origin(), |block| (block.source.path(), block.source.info.name.as_str()));
        beyond(path, name, first * width, found)
    }

    /// Decodes the rows `rows` into `out`.
    ///
    /// # Errors
    /// When a source is no longer there as it was mapped.
    pub fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = usize_of(self.size.1);
        out.fill(0.0);
        for block in &self.blocks {
            let (top, left) = (usize_of(block.at.0), usize_of(block.at.1));
            let height = usize_of(block.rows.end - block.rows.start);
            let (first, last) = (rows.start.max(top), rows.end.min(top + height));
            if first >= last {
                continue;
            }
            let factor = Factor::new(&block.source)?;
            let factor = if block.turned { factor.transposed() } else { factor };
            let cols = usize_of(block.cols.start)..usize_of(block.cols.end);
            let source = usize_of(block.rows.start) + first - top..usize_of(block.rows.start) + last - top;
            let mut values = vec![0.0; source.len() * cols.len()];
            factor.decode(source, cols.clone(), &mut values)?;
            for (row, line) in (first..last).zip(values.chunks_exact(cols.len().max(1))) {
                let start = (row - rows.start) * width + left;
                for (to, from) in out[start..start + cols.len()].iter_mut().zip(line) {
                    *to = (f64::from(*from) * block.factor) as f32;
                }
            }
        }
        Ok(())
    }
}

/// Whether multiplying by `factor` only moves the exponent.
pub fn is_power_of_two(factor: f64) -> bool {
    const FRACTION: u64 = (1 << 52) - 1;
    factor.is_normal() && factor.to_bits() & FRACTION == 0
}

/// A grid on its way into a file.
struct Written {
    grid: Grid,
    float: Float,
    kept: Kept,
}

impl Compute for Written {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        // A column may be written as one row: [n], or [1, n].
        let (count, width) = (out.len() / self.float.bytes(), usize_of(self.grid.size.1).max(1));
        let first = rows.start * (count / rows.len().max(1)) / width;
        let mut values = vec![0.0; count];
        self.grid.decode(first..first + count / width, &mut values)?;
        let outcome = self.float.encode_finite(&values, out);
        outcome.map_err(|found| self.grid.refuse(first, &found))?;
        self.kept.look(&values, || self.float.vanished(&values, out));
        Ok(())
    }

    fn vanished(&self) -> Option<String> {
        self.kept.is_nothing().then(|| self.grid.origin().1.to_owned())
    }
}

/// Whether anything is left of a tensor that was not all zero.
#[derive(Debug, Default)]
pub struct Kept {
    something: AtomicBool,
    lost: AtomicBool,
}

impl Kept {
    /// Looks at `values`; `vanished` tells whether nothing is left of them.
    pub fn look(&self, values: &[f32], vanished: impl FnOnce() -> bool) {
        if self.something.load(Ordering::Relaxed) {
            return;
        }
        if vanished() {
            self.lost.store(true, Ordering::Relaxed);
        } else if values.iter().any(|value| *value != 0.0) {
            self.something.store(true, Ordering::Relaxed);
        }
    }

    /// Whether there was something, and nothing is left.
    pub fn is_nothing(&self) -> bool {
        self.lost.load(Ordering::Relaxed) && !self.something.load(Ordering::Relaxed)
    }
}
