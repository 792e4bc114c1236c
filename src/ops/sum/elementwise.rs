//! Merging of several ΔWᵢ element by element: magnitude pruning, TIES, DARE.
//!
//! With ΔWᵢ = scaleᵢ · Bᵢ·Aᵢ and weights wᵢ, for every element:
//! * **magnitude**: each ΔWᵢ keeps its ⌊density · elements⌋ largest by magnitude; the result is Σ wᵢ·ΔWᵢ.
//! * **TIES** (Yadav et al. 2023): kept as above; the sign of the majority is elected from the ΔWᵢ *without* their weights, by their
//!   sum (`total`) or their number (`frequency`), zero counting as plus; the result is Σ wᵢ·ΔWᵢ over those of that sign, divided
//!   by their number.
//! * **DARE** (Yu et al. 2023): each element of each ΔWᵢ stays with probability density, and is divided by it; the result is the
//!   weighted sum, or what TIES' election makes of it (**DARE-TIES**).
//!
//! That is what `*_svd` of PEFT 0.21 does (`utils/merge_utils.py`, `LoraModel.add_weighted_adapter`), in the same order and in
//! f32. The result has full rank and is never held: bands of it are computed from the factors whenever they are asked for. An
//! element of B·A has one accumulator (`tensor::add_low_rank`), so its bits do not depend on the band, and neither do the elements
//! chosen. Chance is drawn by seed, module, adapter and index alone.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::selection::Largest;
use crate::error::{Error, Result};
use crate::linalg::{LinearOperator, LowRank, RowSource};
use crate::tensor::{self, add_low_rank, random_bits};

/// Elements of a band while the elements to keep are looked for.
const BAND_ELEMENTS: usize = 128 << 10;

/// How many elements are kept, of what they elect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Majority {
    /// The sign of the sum.
    Total,
    /// The sign that occurs more often.
    Frequency,
}

/// What is done to the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The largest, summed.
    Magnitude,
    /// The largest, merged by sign.
    Ties(Majority),
    /// A random share of each, summed.
    Dare,
    /// A random share of each, merged by sign.
    DareTies(Majority),
}

impl Rule {
    fn majority(self) -> Option<Majority> {
        match self {
            Self::Ties(majority) | Self::DareTies(majority) => Some(majority),
            Self::Magnitude | Self::Dare => None,
        }
    }

    fn is_random(self) -> bool {
        matches!(self, Self::Dare | Self::DareTies(_))
    }
}

/// A rule and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pruning {
    /// What is done.
    pub rule: Rule,
    /// The share of elements that is kept: above 0, at most 1.
    pub density: f64,
    /// Other seeds draw other elements.
    pub seed: u64,
}

impl Pruning {
    /// Checks the numbers.
    ///
    /// # Errors
    /// When the density is not a share.
    pub fn check(&self) -> Result<()> {
        if self.density > 0.0 && self.density <= 1.0 {
            return Ok(());
        }
        Err(Error::invalid("--density", format!("{} is not above 0 and at most 1", self.density)))
    }
}

/// One adapter's change of a module.
pub struct Contribution {
    /// Which of the adapters it is, as they were given: chance is drawn by it.
    pub adapter: usize,
    /// Where it lies, for messages.
    pub root: PathBuf,
    /// Its weight.
    pub weight: f64,
    /// ΔW, its scale apart.
    pub delta: LowRank,
}

/// The merged ΔW of one module, `[out, in]`, computed band by band.
pub struct Elementwise {
    module: String,
    pruning: Pruning,
    shape: (usize, usize),
    parts: Vec<Part>,
}

/// One ΔWᵢ and which of its elements stay.
struct Part {
    module: String,
    root: PathBuf,
    weight: f32,
    scale: f32,
    rank: usize,
    up: Vec<f32>,
    down: Vec<f32>,
    kept: Kept,
}

#[derive(Clone, Copy)]
enum Kept {
    Largest(Largest),
    /// An element stays if its random bits are below the bound.
    ByChance {
        seed: u64,
        bound: u64,
        density: f32,
    },
}

impl Elementwise {
    /// The merge of `contributions`, which have one outer shape, for the module of that name. Looks through every ΔWᵢ for the
    /// elements to keep.
    pub fn new(pruning: Pruning, module: &str, contributions: &[Contribution]) -> Result<Self> {
        pruning.check()?;
        let shape = contributions.first().map_or((0, 0), |first| first.delta.shape());
        let part = |contribution: &Contribution| {
            let delta = &contribution.delta;
            assert_eq!(delta.shape(), shape, "contributions have one outer shape");
            let mut part = Part {
                module: module.to_owned(),
                root: contribution.root.clone(),
                weight: contribution.weight as f32,
                scale: delta.scale() as f32,
                rank: delta.rank(),
                up: delta.up(),
                down: delta.down(),
                kept: Kept::Largest(Largest::ALL),
            };
            part.kept = part.choose(&pruning, shape, seed_of(pruning.seed, module, contribution.adapter))?;
            Ok(part)
        };
        let parts = contributions.iter().map(part).collect::<Result<_>>()?;
        Ok(Self { module: module.to_owned(), pruning, shape, parts })
    }
}

impl RowSource for Elementwise {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.shape.1;
        let pruned = self.parts.iter().map(|part| part.pruned(rows.clone(), cols));
        let pruned: Vec<Vec<f32>> = pruned.collect::<Result<_>>()?;
        let Some(majority) = self.pruning.rule.majority() else {
            out.fill(0.0);
            for (part, values) in self.parts.iter().zip(&pruned) {
                out.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * part.weight);
            }
            return self.check(out);
        };
        for (at, out) in out.iter_mut().enumerate() {
            let values = || pruned.iter().map(|values| values[at]);
            let balance: f32 = match majority {
                Majority::Total => values().sum(),
                Majority::Frequency => values().map(sign).sum(),
            };
            let elected = if balance >= 0.0 { 1.0 } else { -1.0 };
            let (mut sum, mut count) = (0.0, 0.0_f32);
            for (part, value) in self.parts.iter().zip(values()) {
                if sign(value) == elected {
                    sum += value * part.weight;
                    count += 1.0;
                }
            }
            *out = sum / count.max(1.0);
        }
        self.check(out)
    }
}

impl Elementwise {
    /// Sums of values that are finite may not be.
    fn check(&self, sums: &[f32]) -> Result<()> {
        let root = self.parts.first().map_or(Path::new(""), |part| part.root.as_path());
        finite(sums, root, &self.module)
    }
}

/// An element that is infinite or NaN would be elected or left out as if it were a number.
fn finite(values: &[f32], root: &Path, module: &str) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(Error::numeric(root, module, "its change is beyond the range of F32, in which it is merged")
        .hint("a weight, an alpha or a factor is too large"))
}

impl Part {
    fn choose(&self, pruning: &Pruning, shape: (usize, usize), seed: u64) -> Result<Kept> {
        if pruning.density >= 1.0 {
            return Ok(Kept::Largest(Largest::ALL));
        }
        if pruning.rule.is_random() {
            let bound = (pruning.density * (u64::from(u32::MAX) + 1) as f64).round() as u64;
            return Ok(Kept::ByChance { seed, bound, density: pruning.density as f32 });
        }
        let (rows, cols) = shape;
        let count = (pruning.density * (rows * cols) as f64) as u64;
        let step = (BAND_ELEMENTS / cols.max(1)).max(1);
        let largest = Largest::select(count, &|each| {
            for first in (0..rows).step_by(step) {
                let band = first..rows.min(first + step);
                each((first * cols) as u64, &self.values(band, cols)?);
            }
            Ok(())
        })?;
        Ok(Kept::Largest(largest))
    }

    /// Rows of ΔW.
    fn values(&self, rows: Range<usize>, cols: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; rows.len() * cols];
        let up = &self.up[rows.start * self.rank..rows.end * self.rank];
        add_low_rank(&mut values, cols, up, &self.down, cols, self.rank, self.scale);
        finite(&values, &self.root, &self.module)?;
        Ok(values)
    }

    /// Rows of ΔW with what does not stay set to zero.
    fn pruned(&self, rows: Range<usize>, cols: usize) -> Result<Vec<f32>> {
        let mut values = self.values(rows.clone(), cols)?;
        let elements = values.iter_mut().zip((rows.start * cols) as u64..);
        match self.kept {
            Kept::Largest(Largest::ALL) => {}
            Kept::Largest(largest) => elements.for_each(|(value, index)| {
                *value = if largest.holds(*value, index) { *value } else { 0.0 };
            }),
            Kept::ByChance { seed, bound, density } => elements.for_each(|(value, index)| {
                let stays = u64::from(random_bits(seed, index)) < bound;
                *value = if stays { *value / density } else { 0.0 };
            }),
        }
        Ok(values)
    }
}

/// −1, 0 or 1.
fn sign(value: f32) -> f32 {
    if value > 0.0 {
        1.0
    } else if value < 0.0 {
        -1.0
    } else {
        0.0
    }
}

/// Where the random numbers of one adapter's change of one module are drawn from.
fn seed_of(seed: u64, module: &str, adapter: usize) -> u64 {
    tensor::seed_of(&[&seed.to_le_bytes(), &(adapter as u64).to_le_bytes(), module.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uniform(seed: u64, count: usize) -> Vec<f32> {
        (0..count).map(|at| random_bits(seed, at as u64) as f32 / 2.0_f32.powi(31) - 1.0).collect()
    }

    fn contribution(adapter: usize, weight: f64, rows: usize, cols: usize) -> Contribution {
        let rank = adapter + 2;
        let seed = adapter as u64 * 2;
        let (up, down) = (uniform(seed, rows * rank), uniform(seed + 1, rank * cols));
        Contribution {
            adapter,
            root: "adapter".into(),
            weight,
            delta: LowRank::from_rows(up, down, rank, 0.5 + weight),
        }
    }

    /// ΔWᵢ without its weight, in f32 as PEFT has it.
    fn dense(contribution: &Contribution) -> Vec<f32> {
        let delta = &contribution.delta;
        let (rows, cols) = delta.shape();
        let mut values = vec![0.0; rows * cols];
        add_low_rank(&mut values, cols, &delta.up(), &delta.down(), cols, delta.rank(), delta.scale() as f32);
        values
    }

    /// The largest by sorting, the others zero.
    fn trimmed(values: &[f32], density: f64) -> Vec<f32> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|left, right| values[*right].abs().total_cmp(&values[*left].abs()));
        let mut kept = vec![0.0; values.len()];
        let count = (density * values.len() as f64) as usize;
        order[..count].iter().for_each(|at| kept[*at] = values[*at]);
        kept
    }

    fn read_in(bands: usize, source: &Elementwise) -> Vec<f32> {
        let (rows, cols) = source.shape();
        let mut all = vec![0.0; rows * cols];
        for first in (0..rows).step_by(bands) {
            let band = first..rows.min(first + bands);
            source.read(band.clone(), &mut all[band.start * cols..band.end * cols]).unwrap();
        }
        all
    }

    fn merged(rule: Rule, density: f64, seed: u64, contributions: &[Contribution]) -> Elementwise {
        Elementwise::new(Pruning { rule, density, seed }, "model.q_proj", contributions).unwrap()
    }

    proptest! {
        #[test]
        fn the_largest_are_merged_as_defined(rows in 1_usize..30, cols in 1_usize..30, density in 0.01..1.0, bands in 1_usize..9) {
            let contributions: Vec<_> = [0.7, -0.4, 1.5].into_iter().enumerate().map(|(at, weight)| contribution(at, weight, rows, cols)).collect();
            let kept: Vec<Vec<f32>> = contributions.iter().map(|one| trimmed(&dense(one), density)).collect();
            for rule in [Rule::Magnitude, Rule::Ties(Majority::Total), Rule::Ties(Majority::Frequency)] {
                let expected: Vec<f32> = (0..rows * cols).map(|at| {
                    let values: Vec<f32> = kept.iter().map(|values| values[at]).collect();
                    let balance: f32 = match rule {
                        Rule::Ties(Majority::Total) => values.iter().sum(),
                        _ => values.iter().filter(|value| **value != 0.0).map(|value| value.signum()).sum(),
                    };
                    let chosen = |value: f32| rule == Rule::Magnitude || value != 0.0 && (value > 0.0) == (balance >= 0.0);
                    let pairs = contributions.iter().zip(&values).filter(|(_, value)| chosen(**value));
                    let sum: f32 = pairs.clone().map(|(one, value)| one.weight as f32 * value).sum();
                    if rule == Rule::Magnitude { sum } else { sum / pairs.count().max(1) as f32 }
                }).collect();
                prop_assert_eq!(read_in(bands, &merged(rule, density, 0, &contributions)), expected);
            }
        }
    }

    #[test]
    fn chance_keeps_the_share_the_mean_and_depends_on_the_place_alone() {
        const SIDE: usize = 300;
        const DENSITY: f64 = 0.3;
        let one = [contribution(0, 1.0, SIDE, SIDE)];
        let source = merged(Rule::Dare, DENSITY, 7, &one);
        let (got, all) = (read_in(64, &source), dense(&one[0]));
        assert_eq!(got, read_in(1, &source));
        assert_ne!(got, read_in(64, &merged(Rule::Dare, DENSITY, 8, &one)));
        let count = (SIDE * SIDE) as f64;
        let kept = got.iter().filter(|value| **value != 0.0).count() as f64;
        // Five standard deviations of a binomial.
        assert!((kept / count - DENSITY).abs() < 5.0 * (DENSITY * (1.0 - DENSITY) / count).sqrt());
        let scaled = all.iter().zip(&got).filter(|(_, got)| **got != 0.0);
        scaled.for_each(|(value, got)| assert_eq!(*got, value / DENSITY as f32));
        // E(Σ x·x′) = Σ x², with variance Σ x⁴·(1 − d) ∕ d.
        let squares: f64 = all.iter().map(|value| f64::from(*value).powi(2)).sum();
        let inner: f64 = all.iter().zip(&got).map(|(value, got)| f64::from(*value) * f64::from(*got)).sum();
        let variance: f64 = all.iter().map(|value| f64::from(*value).powi(4)).sum::<f64>() * (1.0 - DENSITY) / DENSITY;
        assert!((inner - squares).abs() < 5.0 * variance.sqrt());
    }

    #[test]
    fn a_density_of_one_changes_nothing() {
        let pair = [contribution(0, 0.5, 9, 7), contribution(1, 2.0, 9, 7)];
        let sum: Vec<f32> = dense(&pair[0]).iter().zip(dense(&pair[1])).map(|(a, b)| 0.5 * a + 2.0 * b).collect();
        for rule in [Rule::Magnitude, Rule::Dare] {
            assert_eq!(read_in(4, &merged(rule, 1.0, 0, &pair)), sum);
        }
    }

    #[test]
    fn adapters_and_modules_draw_different_numbers() {
        assert_ne!(seed_of(0, "a", 0), seed_of(0, "a", 1));
        assert_ne!(seed_of(0, "a", 0), seed_of(0, "b", 0));
    }

    #[test]
    fn a_density_is_a_share() {
        for density in [0.0, -1.0, 1.1, f64::NAN] {
            let problem = Pruning { rule: Rule::Dare, density, seed: 0 }.check().expect_err("refused");
            assert!(problem.to_string().starts_with("--density: "), "{problem}");
        }
    }
}
