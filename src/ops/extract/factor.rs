//! One change → factors as they are stored, with what is known of their error.

use crate::error::{Error, Result};
use crate::linalg::{
    Certificate, Compute, Decomposition, LowRank, RankPolicy, RankRule, RowSource, Streamed, decompose,
};
use crate::tensor::{Float, Rounding};

use super::difference::Difference;
use super::examine::Task;

/// Elements over which the rounding of a tuned weight is measured where only the report asks for it.
const SAMPLED: usize = 1 << 18;

/// An error below this many times that of rounding the tuned weight is called rounding.
const FLOOR_MARGIN: f64 = 1.1;

/// How factors are made and stored.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// `None` stores them as the tuned weight is stored.
    pub stored: Option<Float>,
    /// `None` is the rank: a scale of 1.
    pub alpha: Option<f64>,
    /// How close to the best.
    pub compute: Compute,
}

/// The factors of one module.
#[derive(Debug, Clone)]
pub struct Factored {
    /// r; of a stack that of one expert.
    pub rank: usize,
    /// α; the scale is α∕r.
    pub alpha: f64,
    /// How they are stored.
    pub float: Float,
    /// A, `[experts · r, in]`, expert by expert.
    pub down: Vec<u8>,
    /// B, `[out, r · experts]`, the experts of one direction side by side.
    pub up: Vec<u8>,
    /// Of all experts together.
    pub certificate: Certificate,
    /// Singular values that are known, largest first; of a stack √Σσ² over the experts.
    pub values: Vec<f64>,
    /// ‖·‖ of what rounding the tuned weight to its dtype added, as far as can be told from its values.
    pub rounding_norm: f64,
}

impl Factored {
    /// Whether the error is not above that of the tuned weight's own rounding.
    pub fn is_at_floor(&self) -> bool {
        self.certificate.residual <= FLOOR_MARGIN * self.rounding_norm
    }
}

/// The decompositions of one change, one per expert.
pub struct Spectra {
    parts: Vec<Decomposition>,
}

impl Spectra {
    /// As many leading singular triplets as `rule` asks for.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn find(task: &Task, rule: &RankRule, compute: Compute) -> Result<Self> {
        let part = |(at, part): (usize, Difference)| decompose(&Streamed(part), rule, compute, seed(&task.name, at));
        Ok(Self { parts: task.parts().into_iter().enumerate().map(part).collect::<Result<_>>()? })
    }

    /// The leading values, at most `most`; of a stack √Σσ² over the experts, since all have one rank.
    pub fn values(&self, most: usize) -> Vec<f64> {
        if let [only] = self.parts.as_slice() {
            return only.values().iter().copied().take(most).collect();
        }
        let longest = self.parts.iter().map(|part| part.values().len()).max().unwrap_or(0).min(most);
        let at =
            |at: usize| self.parts.iter().filter_map(|part| part.values().get(at)).map(|value| value * value).sum();
        (0..longest).map(at).map(f64::sqrt).collect()
    }

    /// Whether there are no others than the first `most` values.
    pub fn has_all(&self, most: usize) -> bool {
        self.parts.iter().all(|part| part.is_complete() && part.values().len() <= most)
    }

    /// The rank `rule` gives; of a stack the largest of any expert.
    pub fn rank_by(&self, rule: &RankRule) -> usize {
        self.parts.iter().map(|part| part.rank_by(rule)).max().unwrap_or(0)
    }

    /// Bytes that are held.
    pub fn bytes(&self, shape: (usize, usize)) -> u64 {
        let values: usize = self.parts.iter().map(|part| part.values().len()).sum();
        ((shape.0 + shape.1) * values * size_of::<f64>()) as u64
    }
}

/// The factors by a rule for this matrix alone.
///
/// # Errors
/// When a file cannot be read any more, or a factor cannot be stored.
pub fn by_rule(task: &Task, rule: &RankRule, form: &Form) -> Result<Factored> {
    let spectra = Spectra::find(task, rule, form.compute)?;
    let rank = spectra.rank_by(rule);
    cut(task, &spectra, rank, form)
}

/// The rule that keeps what noise of the tuned weight's rounding does not explain: a matrix of noise of standard deviation
/// σ has no singular value above σ(√m + √n) in the limit of many rows and columns (Marchenko & Pastur 1967; Bai & Yin 1988).
///
/// # Errors
/// When the file cannot be read any more.
pub fn above_noise(task: &Task, max_rank: Option<usize>) -> Result<RankRule> {
    let deviation = task.difference.rounding_variance(usize::MAX)?.sqrt();
    let (rows, cols) = part_shape(task);
    let edge = deviation * ((rows as f64).sqrt() + (cols as f64).sqrt());
    Ok(RankRule { max_rank, ..RankRule::new(RankPolicy::Above(edge)) })
}

/// The first `rank` triplets as they are stored.
///
/// # Errors
/// When a file cannot be read any more, or a factor cannot be stored.
pub fn cut(task: &Task, spectra: &Spectra, rank: usize, form: &Form) -> Result<Factored> {
    let float = form.stored.unwrap_or_else(|| kept_as(task.difference.tuned_float()));
    let rank = rank.min(spectra.parts.iter().map(|part| part.values().len()).max().unwrap_or(0));
    let alpha = form.alpha.unwrap_or(rank as f64);
    let scale = if rank > 0 { alpha / rank as f64 } else { 1.0 };
    let mut parts = Vec::with_capacity(spectra.parts.len());
    let mut sum = Sum::default();
    for (found, part) in spectra.parts.iter().zip(task.parts()) {
        let (factors, certificate) = scaled(found, rank, scale, float, &Streamed(part))?;
        sum.add(&certificate);
        parts.push(factors);
    }
    let certificate = sum.certificate();
    if !certificate.norm.is_finite() || !certificate.residual_at_most.is_finite() {
        let tensor = &task.difference.tuned().tensor;
        let problem = format!("its change of norm {:e} has factors that {float} cannot hold", certificate.norm);
        return Err(Error::numeric(tensor.path(), &tensor.info.name, problem));
    }
    let (down, up) = lay_out(&parts, part_shape(task), task.layer.is_turned(), rank);
    let elements = task.shape.elements().unwrap_or(0) as f64;
    let factored = Factored {
        rank,
        alpha,
        float,
        down: encoded(&down, float),
        up: encoded(&up, float),
        certificate,
        values: spectra.values(usize::MAX),
        rounding_norm: (task.difference.rounding_variance(SAMPLED)? * elements).sqrt(),
    };
    task.difference.release();
    task.difference.check_unchanged()?;
    Ok(factored)
}

/// Rows and columns of one part as they are stored.
pub fn part_shape(task: &Task) -> (usize, usize) {
    task.parts().first().map_or((0, 0), RowSource::shape)
}

/// The dtype that factors of a weight stored as `float` get: formats that no one serves adapters in are widened or narrowed.
pub fn kept_as(float: Float) -> Float {
    match float {
        Float::F32 | Float::F64 => Float::F32,
        Float::F16 => Float::F16,
        _ => Float::Bf16,
    }
}

/// The seed of one part of a tensor: from its name alone.
fn seed(name: &str, part: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes()).update(&(part as u64).to_le_bytes());
    u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

/// Factors whose product times `scale` is the approximation, and its certificate.
fn scaled(
    found: &Decomposition,
    rank: usize,
    scale: f64,
    float: Float,
    operator: &Streamed<Difference>,
) -> Result<(LowRank, Certificate)> {
    let up_by = |factors: &LowRank| -> Vec<f32> {
        factors.up().iter().map(|value| (f64::from(*value) / scale) as f32).collect()
    };
    if scale == 1.0 {
        let cut = found.cut(rank, float, operator)?;
        return Ok((cut.factors, cut.certificate));
    }
    // Rounded anew, and what that adds is measured apart and added to the bound.
    let exact = found.cut(rank, Float::F32, operator)?;
    let inner = exact.factors.rank();
    let rounded = |values: Vec<f32>| {
        let mut values = values;
        let bytes = encoded(&values, float);
        float.decode(&bytes, &mut values);
        values
    };
    let stored = LowRank::from_rows(rounded(up_by(&exact.factors)), rounded(exact.factors.down()), inner, scale);
    let added = exact.factors.distance(&stored);
    let before = exact.certificate;
    let certificate = Certificate {
        residual: before.residual.hypot(added),
        residual_at_most: before.residual_at_most + added,
        stored_error: added,
        ..before
    };
    Ok((stored, certificate))
}

fn encoded(values: &[f32], float: Float) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * float.bytes()];
    float.encode(values, Rounding::Nearest, &mut bytes);
    bytes
}

/// A and B of all parts together. `shape` is that of one part as stored; where it is `[in, out]` the factors change places.
fn lay_out(parts: &[LowRank], shape: (usize, usize), turned: bool, rank: usize) -> (Vec<f32>, Vec<f32>) {
    let (out, inputs) = if turned { (shape.1, shape.0) } else { shape };
    let count = parts.len();
    let (mut all_down, mut all_up) = (vec![0.0; count * rank * inputs], vec![0.0; out * rank * count]);
    for (expert, part) in parts.iter().enumerate() {
        // A part of lower rank leaves zeros.
        let inner = part.rank();
        let (up, down) = (part.up(), part.down());
        for k in 0..inner {
            let row = &mut all_down[(expert * rank + k) * inputs..][..inputs];
            if turned {
                row.iter_mut().enumerate().for_each(|(at, value)| *value = up[at * inner + k]);
            } else {
                row.copy_from_slice(&down[k * inputs..(k + 1) * inputs]);
            }
        }
        for o in 0..out {
            for k in 0..inner {
                all_up[(o * rank + k) * count + expert] = if turned { down[k * out + o] } else { up[o * inner + k] };
            }
        }
    }
    (all_down, all_up)
}

/// Certificates of parts that lie side by side: squares add.
#[derive(Default)]
struct Sum {
    squares: [f64; 6],
    incomplete: bool,
}

impl Sum {
    fn add(&mut self, part: &Certificate) {
        let optima = [part.optimum_at_least, part.optimum_near];
        let values = [part.norm, part.residual, part.residual_at_most, optima[0], optima[1], part.stored_error];
        self.squares.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
        self.incomplete |= !part.complete;
    }

    fn certificate(&self) -> Certificate {
        let [norm, residual, residual_at_most, optimum_at_least, optimum_near, stored_error] =
            self.squares.map(f64::sqrt);
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
        let (down, up) = lay_out(&[first, second], (2, 3), false, 2);
        assert_eq!(down, [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 13.0, 14.0, 15.0, 0.0, 0.0, 0.0]);
        assert_eq!(up, [1.0, 11.0, 2.0, 0.0, 3.0, 12.0, 4.0, 0.0]);
    }

    #[test]
    fn a_turned_weight_changes_its_factors_places() {
        let stored = LowRank::from_rows(vec![1.0, 2.0, 3.0], vec![4.0, 5.0], 1, 1.0);
        let (down, up) = lay_out(&[stored], (3, 2), true, 1);
        assert_eq!((down, up), (vec![1.0, 2.0, 3.0], vec![4.0, 5.0]));
    }

    #[test]
    fn other_names_and_parts_have_other_seeds() {
        assert_ne!(seed("a", 0), seed("b", 0));
        assert_ne!(seed("a", 0), seed("a", 1));
        assert_eq!(seed("a", 1), seed("a", 1));
    }
}
