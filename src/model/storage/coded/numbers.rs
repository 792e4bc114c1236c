//! What gives codes their values: scales, zeros and biases, one per run of columns of a row.

use std::ops::Range;

use super::zeros::Zeros;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::storage::Group;
use crate::model::storage::scales::Scales;
use crate::model::storage::shapes::Sizes;
use crate::tensor::codes::{Shared, TILE, tiled};

/// The numbers of a weight.
#[derive(Debug)]
pub struct Numbers {
    /// Which columns share them.
    pub runs: Runs,
    /// What codes are multiplied by.
    pub scales: Field,
    /// What scales are multiplied by or divided by, for all runs of a matrix.
    pub common: Option<Common>,
    /// What is taken off codes.
    pub zeros: Zeros,
    /// What is added to products.
    pub biases: Option<Field>,
}

/// Which columns share numbers.
#[derive(Debug)]
pub enum Runs {
    /// So many neighbours.
    Of(usize),
    /// Those that are given the same index (`g_idx`: I32, one per column).
    Named {
        /// The indices.
        index: Stored,
        /// How many runs there are.
        count: usize,
    },
}

/// Floating point numbers, one per run.
#[derive(Debug)]
pub struct Field {
    /// The tensor.
    pub scales: Scales,
    /// Where the number of a row and run is.
    pub place: Place,
}

/// Where a number lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There is one.
    One,
    /// Row by row, so many in each.
    Rows(usize),
    /// Run by run, so many rows in each.
    Columns(usize),
    /// In the tiles of cuBLAS, so many columns side by side.
    Tiled(usize),
}

/// A number that all runs of a matrix share.
#[derive(Debug)]
pub struct Common {
    /// One for all, or one per matrix of a stack.
    pub scales: Scales,
    /// Rows that share one.
    pub rows: usize,
    /// (scale, shared number) → scale.
    pub apply: fn(f32, f32) -> f32,
}

/// Numbers that were read.
#[derive(Debug)]
pub struct Held {
    size: usize,
    skipped: usize,
    /// Runs of a row.
    across: usize,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    biases: Vec<f32>,
}

impl Held {
    /// Those of the row that was read as the `at`th.
    pub fn row(&self, at: usize) -> Shared<'_> {
        let of = |numbers: &[f32]| {
            let (start, end) = (at * self.across, (at + 1) * self.across);
            if numbers.is_empty() { 0..0 } else { start..end }
        };
        Shared {
            size: self.size,
            skipped: self.skipped,
            scales: &self.scales[of(&self.scales)],
            zeros: &self.zeros[of(&self.zeros)],
            biases: &self.biases[of(&self.biases)],
        }
    }
}

impl Numbers {
    /// Scales and nothing else.
    pub fn new(runs: Runs, scales: Field) -> Self {
        Self { runs, scales, common: None, zeros: Zeros::All(0.0), biases: None }
    }

    /// What shares a scale, of a weight of `cols` columns.
    pub fn group(&self, cols: usize) -> Group {
        match (&self.runs, self.scales.place) {
            (_, Place::One) => Group::Tensor,
            (Runs::Of(size), _) if *size >= cols => Group::Row,
            (Runs::Of(size), _) => Group::Columns(*size),
            (Runs::Named { count, .. }, _) => Group::Columns(cols.div_ceil(*count)),
        }
    }

    /// Reads those of `rows × cols`.
    ///
    /// # Errors
    /// When one is no finite number, or names a run that does not exist.
    pub fn read(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Held> {
        match &self.runs {
            Runs::Of(size) => {
                let runs = cols.start / size..cols.end.div_ceil(*size);
                self.read_runs(rows, runs, *size, cols.start % size)
            }
            Runs::Named { index, count } => {
                let all = index.elements();
                let size = all.div_ceil(*count);
                let named = indices(index, cols.clone(), *count)?;
                if named.iter().zip(cols.clone()).all(|(run, col)| *run == col / size) {
                    return self.read_runs(rows, cols.start / size..cols.end.div_ceil(size), size, cols.start % size);
                }
                let first = named.iter().copied().min().unwrap_or(0);
                let end = named.iter().max().map_or(first, |last| last + 1);
                let held = self.read_runs(rows, first..end, 1, 0)?;
                let across = held.across;
                let each = |numbers: Vec<f32>| -> Vec<f32> {
                    let lines = numbers.chunks_exact(across.max(1));
                    lines.flat_map(|line| named.iter().map(|run| line[run - first])).collect()
                };
                let Held { scales, zeros, biases, .. } = held;
                let (scales, zeros, biases) = (each(scales), each(zeros), each(biases));
                Ok(Held { size: 1, skipped: 0, across: named.len(), scales, zeros, biases })
            }
        }
    }

    fn read_runs(&self, rows: Range<usize>, runs: Range<usize>, size: usize, skipped: usize) -> Result<Held> {
        let across = runs.len();
        let mut scales = vec![0.0; rows.len() * across];
        self.scales.read(rows.clone(), runs.clone(), &mut scales)?;
        if let Some(common) = &self.common {
            common.apply_to(rows.clone(), across, &mut scales)?;
        }
        let zeros = self.zeros.read(rows.clone(), runs.clone())?;
        let biases = match &self.biases {
            None => Vec::new(),
            Some(field) => {
                let mut biases = vec![0.0; rows.len() * across];
                field.read(rows, runs, &mut biases)?;
                biases
            }
        };
        Ok(Held { size, skipped, across, scales, zeros, biases })
    }
}

/// The runs of columns.
fn indices(index: &Stored, cols: Range<usize>, count: usize) -> Result<Vec<usize>> {
    let bytes = index.read(cols.start as u64 * 4, cols.len() as u64 * 4)?;
    let named = bytes.as_chunks::<4>().0.iter().enumerate().map(|(at, bytes)| {
        let run = i32::from_le_bytes(*bytes);
        usize::try_from(run).ok().filter(|run| *run < count).ok_or_else(|| {
            let problem = format!("column {} is in group {run}, and there are {count}", cols.start + at);
            Error::malformed(index.path(), format!("tensor `{}`", index.info.name), problem)
        })
    });
    named.collect()
}

impl Field {
    /// Numbers that lie row by row, or one for all, of a weight of these sizes; and how many runs they tell apart.
    pub fn by_rows(scales: Scales, sizes: &Sizes) -> Option<(Self, usize)> {
        let runs = sizes.runs_in(&scales.stored.info.shape)?;
        let place = if scales.stored.elements() == 1 { Place::One } else { Place::Rows(runs) };
        Some((Self { scales, place }, runs))
    }

    /// Row by row.
    fn read(&self, rows: Range<usize>, runs: Range<usize>, out: &mut [f32]) -> Result<()> {
        let across = runs.len().max(1);
        match self.place {
            Place::One => {
                let mut one = [0.0];
                self.scales.read(0..1, &mut one)?;
                out.fill(one[0]);
            }
            Place::Rows(all) => {
                for (row, line) in rows.zip(out.chunks_exact_mut(across)) {
                    self.scales.read(row * all + runs.start..row * all + runs.end, line)?;
                }
            }
            Place::Columns(all) => {
                let mut column = vec![0.0; rows.len()];
                for (at, run) in runs.enumerate() {
                    self.scales.read(run * all + rows.start..run * all + rows.end, &mut column)?;
                    out[at..].iter_mut().step_by(across).zip(&column).for_each(|(place, value)| *place = *value);
                }
            }
            Place::Tiled(all) => {
                for (row, line) in rows.zip(out.chunks_exact_mut(across)) {
                    let (mut run, mut rest) = (runs.start, line);
                    while run < runs.end {
                        // Those of a row in one tile lie side by side.
                        let count = (TILE.1 - run % TILE.1).min(runs.end - run);
                        let place = tiled(row, run, all);
                        let (values, others) = rest.split_at_mut(count);
                        self.scales.read(place..place + count, values)?;
                        (run, rest) = (run + count, others);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Common {
    fn apply_to(&self, rows: Range<usize>, across: usize, scales: &mut [f32]) -> Result<()> {
        for (row, line) in rows.zip(scales.chunks_exact_mut(across.max(1))) {
            let (matrix, mut shared) = (row / self.rows, [0.0]);
            self.scales.read(matrix..matrix + 1, &mut shared)?;
            line.iter_mut().for_each(|scale| *scale = (self.apply)(*scale, shared[0]));
        }
        Ok(())
    }
}
