//! A change that becomes factors: tuned − base of one tensor, as something to truncate.

use std::path::Path;

use super::class::Layer;
use super::difference::Difference;
use crate::error::Result;
use crate::linalg::{RowSource, Streamed, held_bytes};
use crate::pairs::PairKind;
use crate::tensor::{Float, Shape, seed_of};
use crate::truncate::{Operator, Part, Truncatable};

/// Elements over which the rounding of a tuned weight is measured where only the report asks for it.
const SAMPLED: usize = 1 << 18;

/// Copies of a matrix in f64 that a full decomposition holds, and blocks that an iteration holds of its two sides (measured).
const DENSE_COPIES: u64 = 5;
const SIDE_BYTES: u64 = 24;
const EXPECTED_BLOCKS: usize = 6;

/// Singular values beyond the rank that an iteration looks at.
const BEYOND_RANK: usize = 16;

/// A change that is to be decomposed.
#[derive(Debug)]
pub struct Task {
    /// Name of the weight in the base.
    pub name: String,
    /// Path of its module.
    pub path: String,
    /// What kind of layer it is.
    pub layer: Layer,
    /// Its shape as stored.
    pub shape: Shape,
    /// tuned − base.
    pub difference: Difference,
    /// The head that shares this embedding's tensor.
    pub tied_head: Option<String>,
}

impl Task {
    /// Rows and columns of one expert's matrix, as they are stored.
    fn stored(&self) -> (usize, usize) {
        let (rows, cols) = self.difference.shape();
        (rows / self.kind().experts().max(1), cols)
    }
}

impl Truncatable for Task {
    fn path(&self) -> &str {
        &self.path
    }

    fn kind(&self) -> PairKind {
        match &self.layer {
            Layer::Linear | Layer::Conv1d => PairKind::Linear,
            Layer::Conv(kernel) => PairKind::Conv { kernel: kernel.clone() },
            Layer::Embedding => PairKind::Embedding,
            Layer::Parameter { name, experts, .. } => {
                PairKind::Parameter { name: name.clone(), nesting: 0, experts: *experts }
            }
        }
    }

    fn outer(&self) -> (u64, u64) {
        let (rows, cols) = self.stored();
        let (rows, cols) = (rows as u64, cols as u64 / self.kind().positions().max(1));
        if self.layer.is_turned() { (cols, rows) } else { (rows, cols) }
    }

    fn origin(&self) -> (&Path, String) {
        let tensor = &self.difference.tuned().tensor;
        (tensor.path(), tensor.info.name.clone())
    }

    /// Formats that no one serves adapters in are widened or narrowed.
    fn float(&self, wanted: Option<Float>) -> Float {
        wanted.unwrap_or(match self.difference.tuned_float() {
            Some(Float::F32 | Float::F64) => Float::F32,
            Some(Float::F16) => Float::F16,
            _ => Float::Bf16,
        })
    }

    fn part(&self, expert: usize, _divisor: f64) -> Result<Part<'_>> {
        let part = Streamed(self.difference.part(expert, self.kind().experts()));
        let seed = seed(&self.name, expert);
        Ok(Part { turned: self.layer.is_turned(), ..Part::new(Operator::Streamed(Box::new(part)), seed) })
    }

    /// A matrix of noise of standard deviation σ has no singular value above σ(√m + √n) in the limit of many rows and columns
    /// (Marchenko & Pastur 1967; Bai & Yin 1988).
    fn noise(&self) -> Result<f64> {
        let deviation = self.difference.rounding_variance(usize::MAX)?.sqrt();
        let (rows, cols) = self.stored();
        let edge = deviation * ((rows as f64).sqrt() + (cols as f64).sqrt());
        Ok(edge * (self.kind().experts() as f64).sqrt())
    }

    fn held_bytes(&self, rank: Option<usize>) -> u64 {
        let (rows, cols) = self.stored();
        let dense = (rows * cols * size_of::<f64>()) as u64 * DENSE_COPIES;
        let rank = rank.map_or(rows.min(cols) / EXPECTED_BLOCKS, |rank| rank.min(rows).min(cols));
        let sides = ((rows + cols) * (rank + BEYOND_RANK) * EXPECTED_BLOCKS) as u64 * SIDE_BYTES;
        dense.min(sides + held_bytes(rows, cols).unwrap_or(0) as u64)
    }

    /// A tied head repeats its embedding's factors.
    fn copies(&self) -> u64 {
        1 + u64::from(self.tied_head.is_some())
    }

    fn bytes(&self) -> u64 {
        self.difference.tuned().tensor.info.bytes
    }

    fn rounding(&self) -> Result<Option<f64>> {
        let elements = self.shape.elements().unwrap_or(0) as f64;
        Ok(Some((self.difference.rounding_variance(SAMPLED)? * elements).sqrt()))
    }

    fn release(&self) {
        self.difference.release();
    }

    fn check_unchanged(&self) -> Result<()> {
        self.difference.check_unchanged()
    }

    fn label(&self) -> &'static str {
        if self.layer == Layer::Conv1d { "conv1d" } else { self.kind().label() }
    }

    fn weight_shape(&self) -> Vec<u64> {
        self.shape.as_slice().to_vec()
    }
}

/// The seed of one part of a tensor: from its name alone.
fn seed(name: &str, part: usize) -> u64 {
    seed_of(&[name.as_bytes(), &(part as u64).to_le_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_and_parts_have_other_seeds() {
        assert_ne!(seed("a", 0), seed("b", 0));
        assert_ne!(seed("a", 0), seed("a", 1));
        assert_eq!(seed("a", 1), seed("a", 1));
    }
}
