//! The decomposition of one change, and its best factors of a rank.

use super::change::{Operator, Part, Truncatable};
use crate::error::{Error, Result};
use crate::linalg::{Certificate, Compute, Decomposition, LinearOperator, LowRank, RankRule, decompose};
use crate::pairs::Bytes;
use crate::pairs::range::hinted;
use crate::tensor::Float;

/// ΔW ∕ divisor, decomposed expert by expert.
pub struct Found<'a> {
    parts: Vec<(Part<'a>, Decomposition)>,
    divisor: f64,
}

/// Factors as they are stored.
pub struct Factors {
    /// A, `[experts · r, in]`, expert by expert.
    pub down: Bytes,
    /// B, `[out, r · experts]`, the experts of one direction side by side.
    pub up: Bytes,
    /// Of all experts together.
    pub certificate: Certificate,
}

impl<'a> Found<'a> {
    /// As many leading singular triplets as `rule` asks for.
    ///
    /// # Errors
    /// When inputs cannot be read, or numbers leave the range of f32.
    pub fn find(change: &'a dyn Truncatable, rule: &RankRule, compute: Compute, divisor: f64) -> Result<Self> {
        let part = |expert: usize| {
            let part = change.part(expert, divisor)?;
            let found = match &part.operator {
                Operator::Product(product) => {
                    let found = product.decompose()?;
                    let (rows, cols) = product.shape();
                    // Terms that cancel leave nothing that is worth a rank.
                    let cancelled = found.norm_squared().is_finite() && found.norm_squared().sqrt() <= part.floor;
                    if cancelled { Decomposition::zero(rows, cols, 0.0) } else { found }
                }
                Operator::Streamed(matrix) => decompose(matrix.as_ref(), rule, compute, part.seed)?,
            };
            if found.norm_squared().is_finite() {
                return Ok((part, found));
            }
            let (path, name) = change.origin();
            let problem = "its change is beyond the range of F32, in which it is computed";
            Err(Error::numeric(path, name, problem).hint("a weight, an alpha or a factor is too large"))
        };
        Ok(Self { parts: (0..change.kind().experts()).map(part).collect::<Result<_>>()?, divisor })
    }

    /// The leading singular values of ΔW, at most `most`.
    pub fn values(&self, most: usize) -> Vec<f64> {
        let count = self.parts.iter().map(|(_, found)| found.values().len()).max().unwrap_or(0).min(most);
        let square = |at: usize| self.parts.iter().filter_map(move |(_, found)| found.values().get(at)).map(|x| x * x);
        (0..count).map(|at| square(at).sum::<f64>().sqrt() * self.divisor.abs()).collect()
    }

    /// ‖ΔW‖².
    pub fn norm_squared(&self) -> f64 {
        self.parts.iter().map(|(_, found)| found.norm_squared()).sum::<f64>() * self.divisor.powi(2)
    }

    /// Whether all singular values are known.
    pub fn is_complete(&self) -> bool {
        self.parts.iter().all(|(_, found)| found.is_complete())
    }

    /// How many of the leading values are known to 1e-4.
    pub fn settled(&self) -> usize {
        self.parts.iter().map(|(_, found)| found.settled()).min().unwrap_or(0)
    }

    /// Whether it is known by its factors.
    pub fn is_product(&self) -> bool {
        self.parts.iter().all(|(part, _)| matches!(part.operator, Operator::Product(_)))
    }

    /// Bytes of the vectors.
    pub fn bytes(&self) -> u64 {
        let of = |(part, found): &(Part<'_>, Decomposition)| {
            let (rows, cols) = part.operator.matrix().shape();
            (rows + cols) * found.values().len() * size_of::<f64>()
        };
        self.parts.iter().map(of).sum::<usize>() as u64
    }

    /// The best factors of rank `rank` and the scale `scale`, with zeros where a matrix has less.
    ///
    /// # Errors
    /// When inputs cannot be read, or the factors are beyond the range of `float`.
    pub fn cut(&self, change: &dyn Truncatable, rank: usize, scale: f64, float: Float) -> Result<Factors> {
        let (mut parts, mut sum) = (Vec::with_capacity(self.parts.len()), Squares::default());
        for (part, found) in &self.parts {
            let matrix = part.operator.matrix();
            let (factors, certificate) = if scale == self.divisor {
                let cut = found.cut(rank, float, matrix)?;
                (cut.factors, cut.certificate)
            } else {
                rescaled(found, rank, scale, float, matrix)?
            };
            sum.add(&certificate, part.slack);
            parts.push((factors, part.turned));
        }
        let (certificate, (path, name)) = (sum.certificate(self.divisor.abs()), change.origin());
        if !certificate.norm.is_finite() || !certificate.residual_at_most.is_finite() {
            let problem = format!("its factors at rank {rank} are beyond the range of {float}");
            return Err(hinted(Error::numeric(path, name, problem), Some(float)));
        }
        let (outputs, inputs) = change.kind().matrix(change.outer());
        let (down, up) = lay_out(&parts, (outputs, inputs), rank);
        let held = |values: &[f32]| Bytes::held(values, float, (path, &name));
        Ok(Factors { down: held(&down)?, up: held(&up)?, certificate })
    }
}

/// Factors whose product times `scale` is the approximation: B takes the scale, and is rounded anew. What that adds is measured
/// apart and added to the bound.
fn rescaled(
    found: &Decomposition,
    rank: usize,
    scale: f64,
    float: Float,
    matrix: &dyn LinearOperator,
) -> Result<(LowRank, Certificate)> {
    let exact = found.cut(rank, Float::F32, matrix)?;
    let stored = |mut values: Vec<f32>| {
        float.round(&mut values);
        values
    };
    let up: Vec<f32> = exact.factors.up().iter().map(|value| (f64::from(*value) / scale) as f32).collect();
    let rounded = LowRank::from_rows(stored(up), stored(exact.factors.down()), exact.factors.rank(), scale);
    let (added, before) = (exact.factors.distance(&rounded), exact.certificate);
    let certificate = Certificate {
        residual: before.residual.hypot(added),
        residual_at_most: before.residual_at_most + added,
        stored_error: added,
        ..before
    };
    Ok((rounded, certificate))
}

/// A and B of all parts together; those of a part that is turned change places.
fn lay_out(parts: &[(LowRank, bool)], (outputs, inputs): (usize, usize), rank: usize) -> (Vec<f32>, Vec<f32>) {
    let count = parts.len();
    let (mut all_down, mut all_up) = (vec![0.0; count * rank * inputs], vec![0.0; outputs * rank * count]);
    for (expert, (part, turned)) in parts.iter().enumerate() {
        // A part of lower rank leaves zeros.
        let inner = part.rank();
        let (up, down) = (part.up(), part.down());
        for k in 0..inner {
            let row = &mut all_down[(expert * rank + k) * inputs..][..inputs];
            if *turned {
                row.iter_mut().enumerate().for_each(|(at, value)| *value = up[at * inner + k]);
            } else {
                row.copy_from_slice(&down[k * inputs..(k + 1) * inputs]);
            }
        }
        for o in 0..outputs {
            for k in 0..inner {
                all_up[(o * rank + k) * count + expert] =
                    if *turned { down[k * outputs + o] } else { up[o * inner + k] };
            }
        }
    }
    (all_down, all_up)
}

/// Certificates of parts that lie side by side: squares add.
#[derive(Default)]
struct Squares {
    sums: [f64; 6],
    incomplete: bool,
}

impl Squares {
    /// Adds a part that may be `slack` from what it stands for.
    fn add(&mut self, part: &Certificate, slack: f64) {
        let (most, least) = (part.residual_at_most + slack, (part.optimum_at_least - slack).max(0.0));
        let values = [part.norm, part.residual, most, least, part.optimum_near, part.stored_error];
        self.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
        self.incomplete |= !part.complete;
    }

    fn certificate(&self, scale: f64) -> Certificate {
        let [norm, residual, residual_at_most, optimum_at_least, optimum_near, stored_error] =
            self.sums.map(|sum| scale * sum.sqrt());
        let complete = !self.incomplete;
        Certificate { norm, residual, residual_at_most, optimum_at_least, optimum_near, stored_error, complete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_lie_as_peft_interleaves_them() {
        // Two experts of [out 2, in 3], rank 2 the first, rank 1 the second.
        let first = LowRank::from_rows(vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 2, 1.0);
        let second = LowRank::from_rows(vec![11.0, 12.0], vec![13.0, 14.0, 15.0], 1, 1.0);
        let (down, up) = lay_out(&[(first, false), (second, false)], (2, 3), 2);
        assert_eq!(down, [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 13.0, 14.0, 15.0, 0.0, 0.0, 0.0]);
        assert_eq!(up, [1.0, 11.0, 2.0, 0.0, 3.0, 12.0, 4.0, 0.0]);
    }

    #[test]
    fn a_turned_weight_changes_its_factors_places() {
        let stored = LowRank::from_rows(vec![1.0, 2.0, 3.0], vec![4.0, 5.0], 1, 1.0);
        let (down, up) = lay_out(&[(stored, true)], (2, 3), 1);
        assert_eq!((down, up), (vec![1.0, 2.0, 3.0], vec![4.0, 5.0]));
    }
}
