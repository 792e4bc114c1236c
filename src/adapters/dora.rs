//! DoRA (Liu et al. 2024): with V = W + ΔW, W′ = m · V / ‖V‖, the norm taken per output over the inputs.
//!
//! Follows PEFT 0.21 `tuners/lora/dora.py`: ‖V‖ from the base weight alone, no epsilon. Norms are summed in f64. In the stored
//! orientation an output is a row, or a column where the layer keeps `[in, out]` (Conv1D) or is an embedding.
//! With a strength w ≠ 1, or after another change, what is added is w · (W′ − W).

use std::ops::Range;
use std::sync::OnceLock;

use super::delta::{BaseRows, Columns, Delta, Tile};
use super::low_rank::LowRankDelta;
use crate::error::{Error, Result};

/// Rows that are decoded at once while norms are taken. Part of the definition of the result: sums over rows are formed
/// in blocks of this size, whatever the tiling of the merge.
const MEASURED_ROWS: usize = 64;

/// Columns that are decoded at once while norms are taken.
const MEASURED_COLS: usize = 4096;

/// Where the outputs lie in the stored weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    /// One output per row.
    Rows,
    /// One output per column.
    Cols,
}

/// A low-rank change with magnitudes.
#[derive(Debug)]
pub struct Dora {
    inner: LowRankDelta,
    magnitude: Vec<f32>,
    outputs: Outputs,
    name: String,
    factors: OnceLock<Vec<f32>>,
}

impl Dora {
    /// `magnitude` has one entry per output; `name` is the module, for messages.
    pub fn new(inner: LowRankDelta, magnitude: Vec<f32>, outputs: Outputs, name: String) -> Self {
        Self { inner, magnitude, outputs, name, factors: OnceLock::new() }
    }

    /// m, one entry per output.
    pub fn magnitude(&self) -> &[f32] {
        &self.magnitude
    }

    /// m / ‖V‖ for each output.
    fn factors(&self) -> &[f32] {
        self.factors.get().expect("the plan measures every delta that asks for it before its first tile")
    }
}

impl Delta for Dora {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn needs_measure(&self) -> bool {
        true
    }

    fn measure_bytes(&self) -> u64 {
        self.inner.measure_bytes()
    }

    fn worth_knowing(&self) -> Option<&str> {
        self.inner.worth_knowing()
    }

    fn measure(&self, base: &dyn BaseRows) -> Result<()> {
        self.inner.measure(base)?;
        let (rows, cols) = self.shape();
        let mut squares = vec![0.0_f64; self.magnitude.len()];
        for first in (0..cols).step_by(MEASURED_COLS) {
            let block = first..cols.min(first + MEASURED_COLS);
            let mut columns = self.inner.columns(block.clone())?;
            let mut value = Vec::new();
            for top in (0..rows).step_by(MEASURED_ROWS) {
                let band = top..rows.min(top + MEASURED_ROWS);
                value.resize(band.len() * block.len(), 0.0);
                base.read(band.clone(), block.clone(), &mut value)?;
                columns.add(
                    1.0,
                    &mut Tile { rows: band.clone(), cols: block.clone(), base: &[], value: &mut value, fresh: true },
                )?;
                for (row, line) in band.zip(value.chunks_exact(block.len())) {
                    match self.outputs {
                        Outputs::Rows => {
                            squares[row] += line.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
                        }
                        Outputs::Cols => {
                            squares[block.clone()]
                                .iter_mut()
                                .zip(line)
                                .for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
                        }
                    }
                }
            }
        }
        let factor = |(square, magnitude): (&f64, &f32)| magnitude / (square.sqrt() as f32);
        let factors: Vec<f32> = squares.iter().zip(&self.magnitude).map(factor).collect();
        if let Some(output) = factors.iter().position(|factor| !factor.is_finite()) {
            let path = self.inner.path();
            let problem = format!(
                "output {output} of W + ΔW has norm {}, its DoRA magnitude is {}",
                squares[output].sqrt(),
                self.magnitude[output]
            );
            return Err(Error::numeric(path, &self.name, problem));
        }
        // Measured twice gives the same numbers: keeping the first is right.
        let _ = self.factors.set(factors);
        Ok(())
    }

    fn release(&self) {
        self.inner.release();
    }

    fn columns(&self, cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(DoraColumns { dora: self, inner: self.inner.columns(cols)?, scaled: Vec::new() }))
    }
}

struct DoraColumns<'a> {
    dora: &'a Dora,
    inner: Box<dyn Columns + 'a>,
    scaled: Vec<f32>,
}

impl Columns for DoraColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let factors = self.dora.factors();
        let width = tile.cols.len();
        self.scaled.clear();
        self.scaled.extend_from_slice(tile.base);
        let (rows, cols) = (tile.rows.clone(), tile.cols.clone());
        let mut scaled = Tile { rows, cols, base: &[], value: &mut self.scaled, fresh: true };
        self.inner.add(1.0, &mut scaled)?;
        let whole = tile.fresh && strength == 1.0;
        let lines =
            tile.value.chunks_exact_mut(width).zip(self.scaled.chunks_exact(width)).zip(tile.base.chunks_exact(width));
        for (row, ((value, scaled), base)) in tile.rows.clone().zip(lines) {
            for (at, ((value, v), w)) in value.iter_mut().zip(scaled).zip(base).enumerate() {
                let factor = match self.dora.outputs {
                    Outputs::Rows => factors[row],
                    Outputs::Cols => factors[tile.cols.start + at],
                };
                let changed = factor * v;
                *value = if whole { changed } else { *value + (strength * f64::from(changed - w)) as f32 };
            }
        }
        Ok(())
    }
}
