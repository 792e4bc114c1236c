//! A tensor that was trained whole (`modules_to_save`, `bias`): W′ = T. With a strength w ≠ 1, or after another change, what
//! is added is w · (T − W). Or one that is added: W′ = W + s · T.

use std::ops::Range;

use super::delta::{Columns, Delta, Tile};
use super::factor::Factor;
use crate::error::Result;

/// A replacement.
#[derive(Debug)]
pub struct Whole {
    tensor: Factor,
}

impl Whole {
    /// `tensor` has the shape of the weight it replaces.
    pub fn new(tensor: Factor) -> Self {
        Self { tensor }
    }
}

impl Delta for Whole {
    fn shape(&self) -> (usize, usize) {
        self.tensor.shape()
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(WholeColumns { tensor: &self.tensor, decoded: Vec::new() }))
    }
}

struct WholeColumns<'a> {
    tensor: &'a Factor,
    decoded: Vec<f32>,
}

impl Columns for WholeColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        self.decoded.resize(tile.value.len(), 0.0);
        self.tensor.decode(tile.rows.clone(), tile.cols.clone(), &mut self.decoded)?;
        replace(strength, tile.fresh, &self.decoded, tile.base, tile.value);
        Ok(())
    }
}

/// A tensor that is added as it is, times a scale: `lora_bias`, ΔW stored whole.
#[derive(Debug)]
pub struct Difference {
    tensor: Factor,
    scale: f64,
}

impl Difference {
    /// W′ = W + scale · tensor.
    pub fn new(tensor: Factor, scale: f64) -> Self {
        Self { tensor, scale }
    }
}

impl Delta for Difference {
    fn shape(&self) -> (usize, usize) {
        self.tensor.shape()
    }

    fn rounds_alone(&self) -> bool {
        false
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(DifferenceColumns { delta: self, decoded: Vec::new() }))
    }
}

struct DifferenceColumns<'a> {
    delta: &'a Difference,
    decoded: Vec<f32>,
}

impl Columns for DifferenceColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        self.decoded.resize(tile.value.len(), 0.0);
        self.delta.tensor.decode(tile.rows.clone(), tile.cols.clone(), &mut self.decoded)?;
        let scale = (strength * self.delta.scale) as f32;
        tile.value.iter_mut().zip(&self.decoded).for_each(|(value, added)| *value += scale * added);
        Ok(())
    }
}

/// Moves `value` by `strength` of the way from `base` to `target`.
pub(super) fn replace(strength: f64, fresh: bool, target: &[f32], base: &[f32], value: &mut [f32]) {
    if fresh && strength == 1.0 {
        value.copy_from_slice(target);
        return;
    }
    for ((value, target), base) in value.iter_mut().zip(target).zip(base) {
        *value += (strength * f64::from(target - base)) as f32;
    }
}
