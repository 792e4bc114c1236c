//! The truncated SVD of an operator: block Krylov iteration on AᵀA with full reorthogonalisation.
//!
//! Musco & Musco 2015 (randomised block Krylov), Halko, Martinsson & Tropp 2011 (randomised range finder). One pass over A gives A·V
//! and AᵀA·V of a block V together, so the matrix is read once per block. From the basis V of all blocks the Ritz values of A
//! are those of A·V: approximations from below, and the projection A·V·Vᵀ needs nothing else.
//!
//! The iteration ends when what one more block could still win is small against the error that stays. That is an
//! estimate: the coming block is added to the projected matrix with the energy of the last one. In accurate mode the kept
//! singular values have to stand still as well. What is certified afterwards is measured (`decomposition`).

use ndarray::{Array1, Array2, Axis, concatenate, s};

use super::decomposition::{Decomposition, Truncated, Vectors};
use super::operator::LinearOperator;
use super::policy::RankRule;
use super::{Matrix, backend, inner};
use crate::error::Result;
use crate::tensor::{Float, random_bits};

/// How close to the best possible error of its rank a result has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// Within 1 %.
    Fast,
    /// Within 0.1 %.
    #[default]
    Accurate,
}

impl Compute {
    /// Accepted excess over the best error, relative. Half of what is promised, since the excess is estimated.
    fn tolerance(self) -> f64 {
        match self {
            Self::Fast => 0.5e-2,
            Self::Accurate => 0.5e-3,
        }
    }
}

/// Accepted relative error of a kept singular value in accurate mode: half of 1e-4, since it is estimated.
const VALUE_TOLERANCE: f64 = 0.5e-4;

/// Columns of a block where the rank is not known beforehand.
const UNKNOWN_RANK_BLOCK: usize = 32;

/// Columns beyond the rank in a block, at least.
const OVERSAMPLING: usize = 8;

/// Blocks are multiples of this: the width of the widest vectors.
const BLOCK_STEP: usize = 16;

/// Share of the smaller side from which the basis would be so large that a full decomposition is less work (measured).
const FULL_SHARE: f64 = 0.4;

/// Blocks the iteration is expected to need, for choosing between it and the full decomposition.
const EXPECTED_BLOCKS: usize = 3;

/// Largest smaller side that is always decomposed in full: below, setting up an iteration costs more.
const ALWAYS_FULL: usize = 64;

/// The best approximation of `operator` that `rule` asks for, up to the tolerance of `compute`, its factors stored as `stored`.
///
/// # Errors
/// When the operator's inputs cannot be read, or the run is interrupted.
pub fn truncated_svd(
    operator: &dyn LinearOperator,
    rule: &RankRule,
    compute: Compute,
    seed: u64,
    stored: Float,
) -> Result<Truncated> {
    let found = decompose(operator, rule, compute, seed)?;
    found.cut(found.rank_by(rule), stored, operator)
}

/// As many leading singular triplets as `rule` needs.
///
/// # Errors
/// When the operator's inputs cannot be read, or the run is interrupted.
pub fn decompose(operator: &dyn LinearOperator, rule: &RankRule, compute: Compute, seed: u64) -> Result<Decomposition> {
    let (rows, cols) = operator.shape();
    let side = rows.min(cols);
    let block = match rule.rank_at_most() {
        Some(rank) => (rank + OVERSAMPLING).next_multiple_of(BLOCK_STEP),
        None => UNKNOWN_RANK_BLOCK,
    };
    let expected = (block * EXPECTED_BLOCKS) as f64;
    if side <= ALWAYS_FULL || rule.needs_all() && rule.max_rank.is_none() || expected > FULL_SHARE * side as f64 {
        return Decomposition::of_whole(operator.dense()?);
    }
    let mut iteration = Iteration::start(operator, block, seed)?;
    if iteration.norm_squared == 0.0 {
        return Ok(Decomposition::zero(rows, cols, 0.0));
    }
    if !iteration.next.iter().all(|value| value.is_finite()) {
        // Beyond the range in which sums of f32 stay finite.
        return Decomposition::of_whole(operator.dense()?);
    }
    loop {
        iteration.step(operator)?;
        if iteration.is_done(rule, compute)
            && let Some(found) = iteration.result()
        {
            return Ok(found);
        }
        if (iteration.width() + block) as f64 > FULL_SHARE * side as f64 {
            return Decomposition::of_whole(operator.dense()?);
        }
    }
}

/// The state of an iteration. Everything but ‖A‖² is of the matrix scaled to a norm near 1.
struct Iteration {
    /// ‖A‖².
    norm_squared: f64,
    /// A power of two.
    scale: f32,
    /// Blocks of orthonormal columns, `[in, ·]`.
    basis: Vec<Matrix>,
    /// The block to come.
    next: Matrix,
    /// A·basis, block by block, `[out, ·]`.
    images: Vec<Matrix>,
    /// basisᵀ·AᵀA·basis.
    projected: Array2<f64>,
    /// What the last block's AᵀA·V is beyond the basis, in the coordinates of `next`.
    coupling: Array2<f64>,
    /// Σ of the leading Ritz values (squares of singular values) after the step before.
    captured_before: f64,
}

impl Iteration {
    fn start(operator: &dyn LinearOperator, block: usize, seed: u64) -> Result<Self> {
        let (rows, cols) = operator.shape();
        let signs = Matrix::from_shape_fn((rows, block), |(row, col)| sign(seed, row, col));
        let (norm_squared, sketch) = operator.sketch(signs.view())?;
        let scale = (-(norm_squared.max(f64::MIN_POSITIVE).log2() / 2.0).round()).clamp(-120.0, 120.0).exp2() as f32;
        let next = if norm_squared == 0.0 { Matrix::zeros((cols, 0)) } else { orthonormal(&[], sketch * scale).0 };
        Ok(Self {
            norm_squared,
            scale,
            basis: Vec::new(),
            next,
            images: Vec::new(),
            projected: Array2::zeros((0, 0)),
            coupling: Array2::zeros((0, 0)),
            captured_before: 0.0,
        })
    }

    fn width(&self) -> usize {
        self.projected.nrows()
    }

    /// One pass over the operator: takes the coming block into the basis and finds the one after it.
    fn step(&mut self, operator: &dyn LinearOperator) -> Result<()> {
        let block = std::mem::replace(&mut self.next, Matrix::zeros((0, 0)));
        let (image, back) = operator.apply_gram(block.view(), self.scale)?;
        self.images.push(image);
        self.grow();
        self.basis.push(block);
        (self.next, self.coupling) = orthonormal(&self.basis, back);
        Ok(())
    }

    /// Extends the projected matrix by the last image.
    fn grow(&mut self) {
        let last = self.images.last().expect("a step has just added it").view();
        let (old, new) = (self.width(), last.ncols());
        let mut grown = Array2::zeros((old + new, old + new));
        grown.slice_mut(s![..old, ..old]).assign(&self.projected);
        let mut at = 0;
        for image in &self.images {
            let corner = inner(last, image.view());
            let end = at + image.ncols();
            grown.slice_mut(s![old.., at..end]).assign(&corner);
            grown.slice_mut(s![at..end, old..]).assign(&corner.t());
            at = end;
        }
        self.projected = grown;
    }

    fn is_done(&mut self, rule: &RankRule, compute: Compute) -> bool {
        let squares = descending(&self.projected);
        let scale = f64::from(self.scale);
        let values: Vec<f64> = squares.iter().map(|square| square.sqrt() / scale).collect();
        if !rule.is_settled(&values, self.norm_squared) {
            self.captured_before = squares.iter().sum();
            return false;
        }
        let rank = rule.choose(&values, self.norm_squared);
        let total = self.norm_squared * scale * scale;
        let captured: f64 = squares.iter().take(rank).sum();
        let coming = self.values_with_next();
        let gain = (coming.iter().take(rank).sum::<f64>() - captured).max(0.0);
        let before = std::mem::replace(&mut self.captured_before, captured);
        let gained = (captured - before).max(gain);
        // Gains of later blocks shrink about as the last two did.
        let rate = if gained > 0.0 { (gain / gained).min(MOST_RATE) } else { 0.0 };
        let to_come = gain / (1.0 - rate);
        let residual = (total - captured - to_come).max(0.0);
        // (r² − opt²) ∕ opt² = 2·(r − opt) ∕ opt to first order.
        let close = to_come <= (2.0 * compute.tolerance() * residual).max(total * NOISE);
        let moves =
            |(now, then): (&f64, &f64)| (then - now) / (1.0 - rate) > (2.0 * VALUE_TOLERANCE * now).max(total * NOISE);
        let settled = compute == Compute::Fast || !squares.iter().zip(&coming).take(rank).any(moves);
        self.basis.len() > 1 && close && settled
    }

    /// The Ritz values that the coming block would give, if its own energy were that of the last one.
    fn values_with_next(&self) -> Vec<f64> {
        let (old, new) = (self.width(), self.next.ncols());
        let last = self.coupling.ncols();
        let mut grown = Array2::zeros((old + new, old + new));
        grown.slice_mut(s![..old, ..old]).assign(&self.projected);
        grown.slice_mut(s![old.., old - last..old]).assign(&self.coupling);
        grown.slice_mut(s![old - last..old, old..]).assign(&self.coupling.t());
        let energy = self.projected.diag().slice(s![old - last..]).mean().unwrap_or(0.0);
        grown.diag_mut().slice_mut(s![old..]).fill(energy);
        descending(&grown)
    }

    /// The Ritz triplets; `None` if they cannot be had.
    fn result(&self) -> Option<Decomposition> {
        let (squares, vectors) = backend::symmetric_eigen(self.projected.view())?;
        let count = squares.iter().filter(|square| **square > 0.0).count();
        let mix = vectors.slice(s![.., vectors.ncols() - count..; -1]).to_owned();
        let roots: Array1<f64> = squares.iter().rev().take(count).map(|square| square.sqrt()).collect();
        let joined = |blocks: &[Matrix]| {
            let views: Vec<_> = blocks.iter().map(|block| block.view()).collect();
            concatenate(Axis(1), &views).expect("blocks have equal heights")
        };
        let left = Vectors { basis: joined(&self.images), mix: &mix / &roots, skew: false };
        let right = Vectors { basis: joined(&self.basis), mix, skew: false };
        let scale = f64::from(self.scale);
        let values = roots.iter().map(|root| root / scale).collect();
        Some(Decomposition::new(left, values, right, self.norm_squared, false))
    }
}

/// Gains are never taken to shrink slower than by this factor: a slower iteration is not near its end anyway.
const MOST_RATE: f64 = 0.8;

/// Share of ‖A‖² below which a gain is rounding of the f32 products.
const NOISE: f64 = 1e-12;

/// +1 or −1, from the seed and the place alone.
fn sign(seed: u64, row: usize, col: usize) -> f32 {
    const BITS: usize = 32;
    /// More than any block has.
    const WORDS: usize = 1 << 12;
    let word = random_bits(seed, (row * WORDS + col / BITS) as u64);
    if word >> (col % BITS) & 1 == 0 { 1.0 } else { -1.0 }
}

/// Orthonormal columns that with `basis` span what `basis` and `block` span, and the block in their coordinates.
fn orthonormal(basis: &[Matrix], mut block: Matrix) -> (Matrix, Array2<f64>) {
    let clear = |block: &mut Matrix| {
        for known in basis {
            let mut inside = Matrix::zeros((known.ncols(), block.ncols()));
            backend::multiply_into(inside.view_mut(), false, known.t(), block.view());
            inside.mapv_inplace(|value| -value);
            backend::multiply_into(block.view_mut(), true, known.view(), inside.view());
        }
    };
    clear(&mut block);
    let (mut first, coordinates) = backend::qr_f32(block.view());
    if basis.is_empty() {
        return (first, coordinates.mapv(f64::from));
    }
    // Twice is enough (Giraud, Langou & Rozložník 2005); also where a column was nothing but rounding.
    clear(&mut first);
    let (second, more) = backend::qr_f32(first.view());
    (second, backend::multiply_f64(more.mapv(f64::from).view(), coordinates.mapv(f64::from).view()))
}

/// Eigenvalues of a symmetric matrix, largest first, none below zero.
fn descending(matrix: &Array2<f64>) -> Vec<f64> {
    let values = backend::symmetric_values(matrix.view()).unwrap_or_default();
    values.into_iter().rev().map(|value| value.max(0.0)).collect()
}
