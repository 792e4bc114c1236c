//! Singular values of what an adapter adds, from the factors alone.
//!
//! ΔW = s·B·A with thin QRs B = Q_B·R_B and Aᵀ = Q_A·R_A has the singular values of s·R_B·R_Aᵀ (`linalg::LowRank`), so nothing of the
//! size of W is formed. With σ₁ ≥ σ₂ ≥ … of one module:
//!
//! | word | definition |
//! |---|---|
//! | Frobenius norm | √Σσᵢ² |
//! | spectral norm | σ₁ |
//! | stable rank | Σσᵢ² ∕ σ₁² (Rudelson and Vershynin 2007) |
//! | effective rank | exp(−Σ pᵢ·ln pᵢ) with pᵢ = σᵢ ∕ Σσ (Roy and Vetterli 2007) |
//! | k₉₀, k₉₉ | the least k with Σ_{i ≤ k} σᵢ² ≥ 0.90, 0.99 of Σσᵢ² |
//! | balance | ‖B‖ ∕ ‖A‖ of the factors as they are stored |

use serde::Serialize;

use super::InspectOptions;
use super::pairs::Pair;
use crate::adapters::{Adapter, Change, Factor, Module, Target, Term};

use crate::error::Result;
use crate::formats::Checkpoint;
use crate::linalg::LowRank;
use crate::output::Run;
use crate::plan::map_within;

/// Numbers in f64 that a decomposition holds, for one of the factors: the factors themselves, their squares and vectors.
const HELD_COPIES: u64 = 5;

/// The singular values of one module.
#[derive(Debug, Clone, Serialize)]
pub struct Spectrum {
    /// Path of the module.
    pub path: String,
    /// Inner dimension of the factors.
    pub rank: usize,
    /// Largest first; those that are rounding noise are left out.
    pub singular_values: Vec<f64>,
    /// √Σσ².
    pub frobenius: f64,
    /// σ₁.
    pub spectral: f64,
    /// Σσ² ∕ σ₁²; 0 for a change that is zero.
    pub stable_rank: f64,
    /// exp of the entropy of σ ∕ Σσ; 0 for a change that is zero.
    pub effective_rank: f64,
    /// Values that hold 90 % of Σσ².
    pub k90: usize,
    /// Values that hold 99 % of Σσ².
    pub k99: usize,
    /// ‖B‖ ∕ ‖A‖; `None` where A is zero.
    pub balance: Option<f64>,
}

/// Smallest, middle and largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The one in the middle, the lower of two.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

/// All modules together.
#[derive(Debug, Serialize)]
pub struct Spectra {
    /// Modules with singular values.
    pub modules: usize,
    /// Modules whose change is not known by low-rank factors, or not finite, and why.
    pub skipped: Vec<Skipped>,
    /// Modules whose change is zero.
    pub zero: Vec<String>,
    /// √Σ‖ΔW‖² over the modules.
    pub frobenius: f64,
    /// Over the modules that are not zero, as are the next ones.
    pub spectral: Option<Spread>,
    /// See [`Spectrum::stable_rank`].
    pub stable_rank: Option<Spread>,
    /// See [`Spectrum::effective_rank`].
    pub effective_rank: Option<Spread>,
    /// See [`Spectrum::k90`].
    pub k90: Option<Spread>,
    /// See [`Spectrum::k99`].
    pub k99: Option<Spread>,
    /// See [`Spectrum::balance`].
    pub balance: Option<Spread>,
    /// Each module.
    #[serde(skip)]
    pub each: Vec<Spectrum>,
}

/// A module without singular values.
#[derive(Debug, Clone, Serialize)]
pub struct Skipped {
    /// Its path.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// One product that is to be decomposed.
struct Task {
    path: String,
    term: Term,
}

impl Task {
    fn held_bytes(&self) -> u64 {
        let ((outputs, rank), (_, inputs)) = (self.term.up.shape(), self.term.down.shape());
        ((outputs + inputs) * rank * size_of::<f64>()) as u64 * HELD_COPIES
    }

    fn run(&self) -> Result<Result<Spectrum, String>> {
        let Term { up, down, scale } = &self.term;
        let rank = down.shape().0;
        let values = |factor: &Factor| factor.to_vec().inspect(|_| factor.release());
        let (up, down) = (values(up)?, values(down)?);
        if !up.iter().chain(&down).all(|value| value.is_finite()) || !scale.is_finite() {
            return Ok(Err("its factors are not finite".to_owned()));
        }
        let (left, right) = (norm(&up), norm(&down));
        let found = LowRank::from_rows(up, down, rank, *scale).decompose()?;
        let balance = (right > 0.0).then(|| left / right);
        Ok(Ok(Spectrum::new(self.path.clone(), rank, found.values().to_vec(), balance)))
    }
}

impl Spectrum {
    /// What follows from singular values, largest first.
    fn new(path: String, rank: usize, values: Vec<f64>, balance: Option<f64>) -> Self {
        let squared: f64 = values.iter().rev().map(|value| value * value).sum();
        let spectral = values.first().copied().unwrap_or(0.0);
        let sum: f64 = values.iter().sum();
        let entropy: f64 = values.iter().map(|value| value / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        let holding = |share: f64| {
            let mut held = 0.0;
            let enough = values.iter().position(|value| {
                held += value * value;
                held >= share * squared
            });
            enough.map_or(values.len(), |at| at + 1)
        };
        Self {
            rank,
            frobenius: squared.sqrt(),
            spectral,
            stable_rank: if spectral > 0.0 { values.iter().map(|value| (value / spectral).powi(2)).sum() } else { 0.0 },
            effective_rank: if sum > 0.0 { entropy.exp() } else { 0.0 },
            k90: holding(0.90),
            k99: holding(0.99),
            balance,
            singular_values: values,
            path,
        }
    }
}

/// The singular values of every change of `adapter` that is a product of two factors.
///
/// # Errors
/// When the file is no longer there as it was opened, or the run is stopped.
pub fn spectra(adapter: &Adapter, pairs: &[Pair<'_>], options: &InspectOptions, run: &Run<'_>) -> Result<Spectra> {
    // The sizes of the layers, which some methods leave to the base.
    let base = options.base.as_deref().map(Checkpoint::open).transpose()?;
    let mut skipped = Vec::new();
    let mut tasks = Vec::new();
    let mut skip = |path: &str, reason: String| skipped.push(Skipped { path: path.to_owned(), reason });
    for pair in pairs {
        match of_pair(adapter, pair) {
            Ok(term) => tasks.push(Task { path: pair.path.clone(), term }),
            Err(reason) => skip(&pair.path, reason),
        }
    }
    for Module { path, change, .. } in &adapter.modules {
        let Change::Method(method) = change else { continue };
        let weight = base.as_ref().and_then(|base| base.find(&format!("{path}.weight")));
        let layer = weight.map(|weight| Target::of(&weight, false, false));
        match method.low_rank(layer.as_ref()) {
            Ok(Some(term)) => tasks.push(Task { path: path.clone(), term }),
            Ok(None) => skip(path, format!("{} is no product of two factors", method.kind())),
            Err(error) => skip(path, error.to_string()),
        }
    }
    let held: Vec<u64> = tasks.iter().map(Task::held_bytes).collect();
    let found = map_within(&held, &options.budget, run.cancel, |at| tasks[at].run())?;
    let mut each = Vec::new();
    for (task, found) in tasks.iter().zip(found) {
        match found {
            Ok(spectrum) => each.push(spectrum),
            Err(reason) => skip(&task.path, reason),
        }
    }
    Ok(Spectra::of(each, skipped))
}

fn of_pair(adapter: &Adapter, pair: &Pair<'_>) -> Result<Term, String> {
    if pair.experts > 1 {
        return Err(format!("it holds {} experts in one pair of factors", pair.experts));
    }
    let scale = adapter.config.scaling.as_ref().map_or(1.0, |scaling| scaling.scale(&pair.path));
    let term = pair.lora.term(scale).map_err(|error| error.to_string())?;
    if term.up.shape().1 != term.down.shape().0 {
        return Err("its factors do not fit each other".to_owned());
    }
    Ok(if pair.lora.embedding { term.transposed() } else { term })
}

impl Spectra {
    fn of(each: Vec<Spectrum>, skipped: Vec<Skipped>) -> Self {
        let (alive, zero): (Vec<&Spectrum>, Vec<&Spectrum>) = each.iter().partition(|one| one.spectral > 0.0);
        let spread = |number: &dyn Fn(&Spectrum) -> Option<f64>| {
            Spread::of(alive.iter().filter_map(|spectrum| number(spectrum)).collect())
        };
        Self {
            modules: each.len(),
            zero: zero.iter().map(|spectrum| spectrum.path.clone()).collect(),
            frobenius: each.iter().map(|spectrum| spectrum.frobenius.powi(2)).sum::<f64>().sqrt(),
            spectral: spread(&|one| Some(one.spectral)),
            stable_rank: spread(&|one| Some(one.stable_rank)),
            effective_rank: spread(&|one| Some(one.effective_rank)),
            k90: spread(&|one| Some(one.k90 as f64)),
            k99: spread(&|one| Some(one.k99 as f64)),
            balance: spread(&|one| one.balance),
            skipped,
            each,
        }
    }
}

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len().checked_sub(1)? / 2;
        Some(Self { min: numbers[0], median: numbers[middle], max: *numbers.last()? })
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::Decomposition;

    /// Numbers of no pattern in −1 … 1.
    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        (0..count).map(|at| crate::tensor::random_bits(seed, at as u64) as f32 / 2_f32.powi(31) - 1.0).collect()
    }

    /// The product by its definition, decomposed as a dense matrix.
    fn dense(up: &[f32], down: &[f32], rank: usize, scale: f64) -> Vec<f64> {
        let (rows, cols) = (up.len() / rank, down.len() / rank);
        let product = ndarray_of(rows, cols, |row, col| {
            let terms = (0..rank).map(|k| f64::from(up[row * rank + k]) * f64::from(down[k * cols + col]));
            scale * terms.sum::<f64>()
        });
        Decomposition::of_dense(&product).values().to_vec()
    }

    fn ndarray_of(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f64) -> crate::linalg::Dense {
        crate::linalg::Dense::from_shape_fn((rows, cols), |(row, col)| value(row, col))
    }

    #[test]
    fn factors_give_the_singular_values_of_their_product() {
        for (rows, cols, rank, scale) in
            [(40, 30, 4, 2.0), (30, 40, 8, -0.5), (64, 9, 9, 1.0), (5, 70, 1, 1e-3), (6, 6, 12, 1.0)]
        {
            let (up, down) = (numbers(1, rows * rank), numbers(2, rank * cols));
            let wanted = dense(&up, &down, rank, scale);
            let term = Term { up: Factor::held(up, rank), down: Factor::held(down, cols), scale };
            let found = Task { path: "x".into(), term }.run().expect("held").expect("finite");
            assert_eq!(found.singular_values.len(), rank.min(rows).min(cols));
            for (got, wanted) in found.singular_values.iter().zip(&wanted) {
                assert!(
                    (got - wanted).abs() <= 1e-7 * wanted.max(wanted.abs()),
                    "{rows}×{cols} r={rank}: {got} {wanted}"
                );
            }
        }
    }

    #[test]
    fn equal_values_have_their_number_as_rank_and_one_value_rank_one() {
        let flat = Spectrum::new("x".into(), 8, vec![2.0; 8], None);
        assert!((flat.stable_rank - 8.0).abs() < 1e-12 && (flat.effective_rank - 8.0).abs() < 1e-12);
        assert_eq!((flat.k90, flat.k99), (8, 8));
        let one = Spectrum::new("x".into(), 8, vec![3.0], None);
        assert_eq!((one.stable_rank, one.effective_rank, one.k90, one.k99, one.frobenius), (1.0, 1.0, 1, 1, 3.0));
        // p = 2/3, 1/3: exp(ln 3 − 2/3·ln 2).
        let two = Spectrum::new("x".into(), 2, vec![2.0, 1.0], None);
        assert!((two.effective_rank - 3.0 / 2_f64.powf(2.0 / 3.0)).abs() < 1e-12);
        assert_eq!((two.stable_rank, two.k90), (1.25, 2));
    }

    #[test]
    fn a_change_of_nothing_has_no_ranks() {
        let none = Spectrum::new("x".into(), 4, Vec::new(), Some(0.0));
        assert_eq!((none.stable_rank, none.effective_rank, none.k90, none.frobenius), (0.0, 0.0, 0, 0.0));
        let all = Spectra::of(vec![none], Vec::new());
        assert_eq!((all.zero.as_slice(), all.spectral), (["x".to_owned()].as_slice(), None));
    }

    #[test]
    fn what_is_not_finite_is_skipped_with_its_reason() {
        let (up, down) = (Factor::held(vec![f32::NAN; 4], 1), Factor::held(vec![1.0; 4], 4));
        let found = Task { path: "x".into(), term: Term { up, down, scale: 1.0 } }.run().expect("held");
        assert_eq!(found.expect_err("not finite"), "its factors are not finite");
    }
}
