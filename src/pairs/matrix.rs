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
    /// First row and column of what is read that are taken.
    pub first: (u64, u64),
    /// How far apart the rows and columns that are taken lie there.
    pub step: (u64, u64),
    /// How many rows and columns are taken.
    pub size: (u64, u64),
    /// What every value is multiplied by.
    pub factor: f64,
    /// First row and column in the matrix.
    pub at: (u64, u64),
    /// How far apart they lie in the matrix.
    pub gap: (u64, u64),
}

impl Grid {
    /// The tensor as it is.
    pub fn of(source: &Stored) -> Self {
        let size = source.info.shape.rows_cols();
        let (first, step, at, gap) = ((0, 0), (1, 1), (0, 0), (1, 1));
        let block = Block { source: source.clone(), turned: false, first, step, size, factor: 1.0, at, gap };
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
            for pair in [&mut block.first, &mut block.step, &mut block.size, &mut block.at, &mut block.gap] {
                *pair = (pair.1, pair.0);
            }
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
            // Row i of the block lies in row at + i · gap.
            let reach = |end: u64| end.saturating_sub(block.at.0).div_ceil(block.gap.0).min(block.size.0);
            let (from, to) = (reach(rows.start), reach(rows.end));
            block.at.0 = (block.at.0 + from * block.gap.0).saturating_sub(rows.start);
            block.first.0 += from * block.step.0;
            block.size.0 = to.saturating_sub(from);
            from < to
        });
        self.size.0 = rows.end - rows.start;
        self
    }

    /// Every `step`-th row from `first` on, `count` of them.
    #[must_use]
    pub fn every(self, first: u64, count: u64, step: u64) -> Self {
        if step == 1 {
            return self.rows(&(first..first + count));
        }
        let end = (first + count.saturating_sub(1) * step + 1).min(self.size.0);
        let mut taken = self.rows(&(first..end.max(first)));
        taken.blocks.retain_mut(|block| {
            if block.gap.0 > 1 {
                // Rows that alternate with others: all of them are taken, or none.
                debug_assert_eq!(block.gap.0, step, "rows are taken as they were put in turn");
                block.gap.0 = 1;
                let is_taken = block.at.0 % step == 0;
                block.at.0 /= step;
                return is_taken;
            }
            let skipped = block.at.0.next_multiple_of(step) - block.at.0;
            block.first.0 += skipped * block.step.0;
            block.size.0 = block.size.0.saturating_sub(skipped).div_ceil(step);
            (block.at.0, block.step.0) = ((block.at.0 + skipped) / step, block.step.0 * step);
            block.size.0 > 0
        });
        taken.size.0 = count;
        taken
    }

    /// The rows as those from `first` on, `step` apart, with zeros between them.
    #[must_use]
    pub fn spread(mut self, first: u64, step: u64) -> Self {
        for block in &mut self.blocks {
            block.at.0 = first + block.at.0 * step;
            block.gap.0 *= step;
        }
        self.size.0 *= step;
        self
    }

    /// Every `step`-th column from `first` on, `count` of them.
    #[must_use]
    pub fn every_col(self, first: u64, count: u64, step: u64) -> Self {
        self.turned().every(first, count, step).turned()
    }

    /// The same of columns as [`spread`](Self::spread) does of rows.
    #[must_use]
    pub fn spread_cols(self, first: u64, step: u64) -> Self {
        self.turned().spread(first, step).turned()
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
            let all = block.first == (0, 0)
                && block.step == (1, 1)
                && block.gap == (1, 1)
                && block.size == self.size
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
        let on = |at: u64, from: u64, gap: u64, count: u64| {
            at.checked_sub(from).is_some_and(|past| past % gap == 0 && past / gap < count)
        };
        let holds = |block: &&Block| {
            on(row, block.at.0, block.gap.0, block.size.0) && on(col, block.at.1, block.gap.1, block.size.1)
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
            let pair = |(row, col): (u64, u64)| (usize_of(row), usize_of(col));
            let (at, gap, size) = (pair(block.at), pair(block.gap), pair(block.size));
            // Row i of the block lies in row at + i · gap.
            let reach = |end: usize| end.saturating_sub(at.0).div_ceil(gap.0).min(size.0);
            let taken = reach(rows.start)..reach(rows.end);
            if taken.is_empty() || size.1 == 0 {
                continue;
            }
            let factor = Factor::new(&block.source)?;
            let factor = if block.turned { factor.transposed() } else { factor };
            let (first, step) = (pair(block.first), pair(block.step));
            let factor = factor.pick_rows(first.0, size.0, step.0).pick_cols(first.1, size.1, step.1);
            let mut values = vec![0.0; taken.len() * size.1];
            factor.decode(taken.clone(), 0..size.1, &mut values)?;
            for (row, line) in taken.zip(values.chunks_exact(size.1)) {
                let start = (at.0 + row * gap.0 - rows.start) * width + at.1;
                for (to, from) in out[start..].iter_mut().step_by(gap.1).zip(line) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MappedFile;
    use crate::tensor::{Dtype, TensorInfo};

    /// Rows of `cols` numbers, counted from 1.
    fn grid(rows: u64, cols: u64) -> Grid {
        let bytes: Vec<u8> = (1..=rows * cols).flat_map(|value| (value as f32).to_le_bytes()).collect();
        let file = MappedFile::open("Cargo.toml".as_ref()).expect("a file");
        let (shape, bytes_len) = (Shape::from([rows, cols]), bytes.len() as u64);
        let info = TensorInfo { name: "x".into(), dtype: Dtype::F32, shape, offset: 0, bytes: bytes_len };
        Grid::of(&Stored::held(&file, info, bytes))
    }

    fn values(grid: &Grid) -> Vec<f32> {
        let mut out = vec![0.0; usize_of(grid.size.0 * grid.size.1)];
        grid.decode(0..usize_of(grid.size.0), &mut out).expect("held");
        out
    }

    #[test]
    fn rows_are_taken_in_steps_wherever_a_block_begins() {
        let two = grid(3, 1).with(grid(4, 1), (3, 0));
        assert_eq!(values(&two.clone().every(0, 4, 2)), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(values(&two.clone().every(1, 3, 2)), [2.0, 1.0, 3.0]);
        assert_eq!(values(&two.every(1, 2, 3)), [2.0, 2.0]);
    }

    #[test]
    fn what_was_spread_is_taken_back() {
        let (gate, up) = (grid(2, 2), grid(2, 2).scaled(10.0));
        let both = gate.clone().spread(0, 2).with(up.clone().spread(1, 2), (0, 0));
        assert_eq!(both.size, (4, 2));
        assert_eq!(values(&both), [1.0, 2.0, 10.0, 20.0, 3.0, 4.0, 30.0, 40.0]);
        assert_eq!(values(&both.clone().every(0, 2, 2)), values(&gate));
        assert_eq!(values(&both.clone().every(1, 2, 2)), values(&up));
        assert_eq!(values(&both.clone().rows(&(1..3))), [10.0, 20.0, 3.0, 4.0]);
        let mut one = vec![0.0; 2];
        both.decode(2..3, &mut one).expect("held");
        assert_eq!(one, [3.0, 4.0]);
    }

    #[test]
    fn columns_of_experts_are_put_between_each_other() {
        let all = grid(2, 2).spread_cols(0, 3).with(grid(2, 2).scaled(10.0).spread_cols(2, 3), (0, 0));
        assert_eq!(values(&all), [1.0, 0.0, 10.0, 2.0, 0.0, 20.0, 3.0, 0.0, 30.0, 4.0, 0.0, 40.0]);
        assert_eq!(values(&all.clone().every_col(2, 2, 3)), [10.0, 20.0, 30.0, 40.0]);
        assert_eq!(values(&all.every_col(1, 2, 3)), [0.0; 4]);
    }
}
