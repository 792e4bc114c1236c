//! DoRA (Liu et al. 2024): with V = W + ΔW, W′ = m · V / ‖V‖, the norm taken per output over the inputs, or per input channel
//! over the outputs and the positions of the kernel. ΔW is any change that does not depend on W: LoRA, LoHa, LoKr …
//!
//! [`Manner::Peft`]: PEFT 0.21 `tuners/lora/dora.py`, ‖V‖ without an epsilon; with a strength w ≠ 1, or after another change,
//! what is added is w · (W′ − W). [`Manner::Lycoris`]: LyCORIS 4.1 `functional/general.py`, m / (‖V‖ + ε) with the ε of f32,
//! and with a strength w the factor is 1 + w · (m / ‖V‖ − 1), on V with the whole ΔW in it. Norms are summed in f64. In the
//! stored orientation an output is a row, or a column where the layer keeps `[in, out]` (Conv1D) or is an embedding.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::delta::{BaseRows, Columns, Delta, Tile};
use crate::error::{Error, Result};

/// Rows that are decoded at once while norms are taken. Part of the definition of the result: sums over rows are formed
/// in blocks of this size, whatever the tiling of the merge.
const MEASURED_ROWS: usize = 64;

/// Columns that are decoded at once while norms are taken.
const MEASURED_COLS: usize = 4096;

/// What one magnitude belongs to, in the orientation of the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// A row.
    Rows,
    /// So many columns that follow each other: one, or all positions of a kernel.
    Cols(usize),
}

/// Whose formula the magnitudes were trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// PEFT's.
    Peft,
    /// LyCORIS'.
    Lycoris,
}

/// Magnitudes and what they mean.
#[derive(Debug, Clone)]
pub struct Magnitudes {
    /// One per row or group of columns.
    pub values: Vec<f32>,
    /// Which.
    pub axis: Axis,
    /// Whose formula.
    pub manner: Manner,
}

/// A change with magnitudes.
pub struct Dora {
    inner: Arc<dyn Delta>,
    magnitudes: Magnitudes,
    path: PathBuf,
    name: String,
    factors: OnceLock<Vec<f32>>,
}

impl Dora {
    /// `inner` does not depend on the weight; `path` and `name` are the file and the module, for messages.
    pub fn new(inner: Arc<dyn Delta>, magnitudes: Magnitudes, path: &Path, name: String) -> Self {
        Self { inner, magnitudes, path: path.to_path_buf(), name, factors: OnceLock::new() }
    }

    /// m, one entry per output or input channel.
    pub fn magnitude(&self) -> &[f32] {
        &self.magnitudes.values
    }

    /// m / ‖V‖ for each output or input channel.
    fn factors(&self) -> &[f32] {
        self.factors.get().expect("the plan measures every delta that asks for it before its first tile")
    }

    /// ‖V‖² along the axis.
    fn squares(&self, base: &dyn BaseRows) -> Result<Vec<f64>> {
        let (rows, cols) = self.shape();
        let mut squares = vec![0.0_f64; self.magnitudes.values.len()];
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
                    let square = |v: &f32| f64::from(*v) * f64::from(*v);
                    match self.magnitudes.axis {
                        Axis::Rows => squares[row] += line.iter().map(square).sum::<f64>(),
                        Axis::Cols(1) => {
                            squares[block.clone()].iter_mut().zip(line).for_each(|(sum, v)| *sum += square(v));
                        }
                        Axis::Cols(width) => {
                            block.clone().zip(line).for_each(|(col, v)| squares[col / width] += square(v));
                        }
                    }
                }
            }
        }
        Ok(squares)
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

    fn notes(&self) -> Option<&str> {
        self.inner.notes()
    }

    fn measure(&self, base: &dyn BaseRows) -> Result<()> {
        self.inner.measure(base)?;
        let squares = self.squares(base)?;
        let epsilon = if self.magnitudes.manner == Manner::Lycoris { f32::EPSILON } else { 0.0 };
        let factor = |(square, magnitude): (&f64, &f32)| magnitude / (square.sqrt() as f32 + epsilon);
        let factors: Vec<f32> = squares.iter().zip(&self.magnitudes.values).map(factor).collect();
        if let Some(at) = factors.iter().position(|factor| !factor.is_finite()) {
            let what = if self.magnitudes.axis == Axis::Rows || self.magnitudes.manner == Manner::Peft {
                "output"
            } else {
                "input"
            };
            let (norm, magnitude) = (squares[at].sqrt(), self.magnitudes.values[at]);
            let problem = format!("{what} {at} of W + ΔW has norm {norm}, its DoRA magnitude is {magnitude}");
            return Err(Error::numeric(&self.path, &self.name, problem));
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
        let blends_factor = self.dora.magnitudes.manner == Manner::Lycoris && strength != 1.0;
        let lines =
            tile.value.chunks_exact_mut(width).zip(self.scaled.chunks_exact(width)).zip(tile.base.chunks_exact(width));
        for (row, ((value, scaled), base)) in tile.rows.clone().zip(lines) {
            for (at, ((value, v), w)) in value.iter_mut().zip(scaled).zip(base).enumerate() {
                let factor = match self.dora.magnitudes.axis {
                    Axis::Rows => factors[row],
                    Axis::Cols(1) => factors[tile.cols.start + at],
                    Axis::Cols(width) => factors[(tile.cols.start + at) / width],
                };
                if blends_factor {
                    let changed = (strength * (f64::from(factor) - 1.0) + 1.0) * f64::from(*v);
                    *value += (changed - f64::from(*w)) as f32;
                    continue;
                }
                let changed = factor * v;
                *value = if whole { changed } else { *value + (strength * f64::from(changed - w)) as f32 };
            }
        }
        Ok(())
    }
}
