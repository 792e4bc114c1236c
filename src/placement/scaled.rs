//! FP8 weights with scales: written back in their own format.
//!
//! A block keeps its scale while its merged values fit, so unchanged values keep their codes; a block that outgrew its range
//! gets the smallest scale that holds it.

use std::ops::Range;
use std::sync::Arc;

use super::merged::Merged;
use crate::adapters::BaseRows;
use crate::error::{Error, Result};
use crate::model::weight::{ScaleGrid, Weight};
use crate::plan::Compute;
use crate::tensor::{Float, Rounding, Survival, Tally, encode_surveyed};

/// The scales of a merged FP8 weight.
#[derive(Debug)]
pub struct Rescaled {
    grid: ScaleGrid,
    /// What the codes are.
    codes: Float,
}

impl Rescaled {
    /// Finds the scales that hold the merged values of `merged`, whose source uses `old`.
    ///
    /// # Errors
    /// When the inputs cannot be read.
    pub fn fit(merged: &Merged, old: &ScaleGrid) -> Result<Self> {
        let mut peaks = vec![0.0_f32; old.values.len()];
        merged.tiles(0..merged.source.rows, |band, cols, tile| {
            for (row, line) in band.zip(tile.value.chunks_exact(cols.len())) {
                old.runs(row, cols.clone(), |cell, run| {
                    let run = &line[run.start - cols.start..run.end - cols.start];
                    peaks[cell] = run.iter().fold(peaks[cell], |peak, value| peak.max(value.abs()));
                });
            }
            Ok(())
        })?;
        let codes = merged.source.float()?;
        let largest = codes.max() as f32;
        let fits = |(scale, peak): (&f32, &f32)| {
            if peak / scale <= largest { *scale } else { round_up(old.float, peak / largest) }
        };
        let values: Vec<f32> = old.values.iter().zip(&peaks).map(fits).collect();
        // An infinite peak is an error of its own, and named where the weight is written.
        if let Some(at) = (0..values.len()).find(|at| !values[*at].is_finite() && peaks[*at].is_finite()) {
            let (peak, float) = (peaks[at], old.float);
            let problem = format!(
                "the merged weight is up to {peak} in block {at}, and its scale would be beyond the range of {float}, which ends at {}",
                float.max()
            );
            return Err(Error::numeric(merged.source.tensor.path(), &merged.name, problem));
        }
        Ok(Self { grid: ScaleGrid { values, ..old.clone() }, codes })
    }

    /// Encodes a tile: codes of value / scale.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn encode(
        &self,
        merged: &Merged,
        band: Range<usize>,
        cols: Range<usize>,
        value: &[f32],
        out: &mut [u8],
        tally: &mut Tally,
    ) -> Result<()> {
        let source: &Weight = &merged.source;
        let mut base = vec![0.0; value.len()];
        let mut local = Tally::default();
        source.read(band.clone(), cols.clone(), &mut base)?;
        for (at, row) in band.enumerate() {
            let mut outcome = Ok(());
            self.grid.runs(row, cols.clone(), |cell, run| {
                let scale = self.grid.values[cell];
                let span = at * cols.len() + run.start - cols.start..at * cols.len() + run.end - cols.start;
                let codes = |values: &[f32]| values.iter().map(|value| value / scale).collect::<Vec<f32>>();
                let (exact, before) = (codes(&value[span.clone()]), codes(&base[span]));
                let begin = at * source.cols + run.start;
                let index = (row * source.cols + run.start) as u64;
                local.survival = Survival::default();
                let rounding = merged.rounding.at(&merged.name, index);
                let place = &mut out[begin..begin + run.len()];
                let result = encode_surveyed(
                    bytemuck::cast_slice(&before),
                    Float::F32,
                    &exact,
                    self.codes,
                    rounding,
                    place,
                    &mut local,
                );
                if let (Ok(()), Err(found)) = (&outcome, result) {
                    outcome = Err(merged.not_finite(&found, index));
                }
                in_values(&mut local.survival, scale);
                tally.survival.add(&local.survival);
            });
            outcome?;
        }
        Ok(())
    }
}

/// Sums over codes → sums over values.
fn in_values(tally: &mut Survival, scale: f32) {
    let square = f64::from(scale) * f64::from(scale);
    for sum in [&mut tally.delta_squared, &mut tally.moved_squared, &mut tally.dot, &mut tally.error_squared] {
        *sum *= square;
    }
    tally.max_delta *= scale;
}

/// The smallest number a scale's dtype holds that is not below `wanted`.
fn round_up(float: Float, wanted: f32) -> f32 {
    let stored = |value: f32| {
        let mut bytes = vec![0; float.bytes()];
        float.encode(&[value], Rounding::Nearest, &mut bytes);
        let mut back = [0.0];
        float.decode(&bytes, &mut back);
        back[0]
    };
    // One step of bf16, the coarsest dtype scales come in, is 2⁻⁷ of the value.
    let nearest = stored(wanted);
    if nearest >= wanted { nearest } else { stored(wanted * (1.0 + 1.0 / 128.0)) }
}

/// The tensor of scales that belongs to a merged FP8 weight.
pub struct Scales(pub Arc<Merged>);

impl Compute for Scales {
    fn rows(&self, _rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let rescaled = self.0.rescaled.get().expect("weights are prepared before any job runs");
        rescaled.grid.float.encode(&rescaled.grid.values, Rounding::Nearest, out);
        Ok(())
    }
}
