//! The truncated SVD of an operator: block Krylov iteration on AᵀA with full reorthogonalisation.
//!
//! Musco & Musco 2015 (randomised block Krylov), Halko, Martinsson & Tropp 2011 (randomised range finder). One pass over A gives A·V
//! and AᵀA·V of a block V together, so the matrix is read once per block. From the basis V of all blocks the Ritz values of A
//! are those of A·V: approximations from below, and the projection A·V·Vᵀ needs nothing else.
//!
//! Blocks are narrower than the rank: for one width of the basis the polynomials are of higher degree then (Meyer, Musco & Musco
//! 2024), and every block is an occasion to end.
//!
//! The iteration ends when what the blocks to come could still win is small against the error that stays. That is an
//! estimate: the coming block is added to the projected matrix with the energy of the last one. Which of the singular values
//! are known well is told (`settled`); waiting for those of a flat tail would buy nothing. What is certified
//! afterwards is measured (`decomposition`).

use ndarray::{Array1, Array2, ArrayView2, ShapeBuilder, s};

use super::decomposition::{Decomposition, Known, Truncated, Vectors};
use super::operator::LinearOperator;
use super::policy::{RankPolicy, RankRule};
use super::{Matrix, MatrixView, backend, inner};
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
    /// Accepted excess over the best error, relative. Less than what is promised, since the excess is estimated.
    fn tolerance(self) -> f64 {
        match self {
            Self::Fast => 0.5e-2,
            Self::Accurate => 0.8e-3,
        }
    }
}

/// Relative error of a singular value that is called settled, at most.
const VALUE_TOLERANCE: f64 = 1e-4;

/// Share of the smaller side from which the basis would be so large that a full decomposition is less work (measured).
const FULL_SHARE: f64 = 0.6;

/// Blocks beyond the rank that the iteration is expected to need, for choosing between it and the full decomposition.
const EXPECTED_BLOCKS: usize = 3;

/// Blocks beyond the rank that the basis has at least in the end.
const BEYOND_RANK: usize = 2;

/// Looks at the eigenvalues that are left out one after the other, at most: forecasts reach no further.
const MOST_UNSEEN: usize = 3;

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
    let rank = rule.rank_at_most();
    // Multiples of the widest vectors. A narrower block reads the matrix more often, a wider one multiplies more.
    let block = match rank {
        Some(..=32) => 16,
        None | Some(..=96) => 32,
        Some(_) => 48,
    };
    let expected = rank.unwrap_or(0).saturating_add(block * EXPECTED_BLOCKS) as f64;
    if side <= ALWAYS_FULL || rule.needs_all() && rule.max_rank.is_none() || expected > FULL_SHARE * side as f64 {
        return Decomposition::of_whole(operator.dense()?);
    }
    let held = operator.held()?;
    let operator = held.as_ref().map_or(operator, |held| held as &dyn LinearOperator);
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
        if let Some(gains) = iteration.look(rule, compute)
            && let Some(found) = iteration.result(gains)
        {
            return Ok(found);
        }
        if (iteration.width() + block) as f64 > FULL_SHARE * side as f64 {
            return Decomposition::of_whole(operator.dense()?);
        }
    }
}

/// Columns one after the other: a block is added at the end.
struct Columns {
    rows: usize,
    values: Vec<f32>,
}

impl Columns {
    fn new(rows: usize) -> Self {
        Self { rows, values: Vec::new() }
    }

    fn push(&mut self, block: MatrixView<'_>) {
        block.columns().into_iter().for_each(|column| self.values.extend(column));
    }

    fn width(&self) -> usize {
        self.values.len() / self.rows.max(1)
    }

    fn view(&self) -> MatrixView<'_> {
        ArrayView2::from_shape((self.rows, self.width()).f(), &self.values).expect("blocks have equal heights")
    }

    fn take(&mut self) -> Matrix {
        let shape = (self.rows, self.width()).f();
        Array2::from_shape_vec(shape, std::mem::take(&mut self.values)).expect("blocks have equal heights")
    }
}

/// The state of an iteration. Everything but ‖A‖² is of the matrix scaled to a norm near 1.
struct Iteration {
    /// ‖A‖².
    norm_squared: f64,
    /// A power of two.
    scale: f32,
    /// Orthonormal columns, `[in, ·]`.
    basis: Columns,
    /// The block to come.
    next: Matrix,
    /// A·basis, `[out, ·]`.
    images: Columns,
    /// basisᵀ·AᵀA·basis.
    projected: Array2<f64>,
    /// What the last block's AᵀA·V is beyond the basis, in the coordinates of `next`.
    coupling: Array2<f64>,
    /// The Ritz values (squares of singular values) one block ago, if they were looked at.
    before: Option<Vec<f64>>,
    /// The coming looks that are left out: a look costs as much as a block of a small matrix.
    unseen: usize,
}

impl Iteration {
    fn start(operator: &dyn LinearOperator, block: usize, seed: u64) -> Result<Self> {
        let (rows, cols) = operator.shape();
        let signs = Matrix::from_shape_fn((rows, block), |(row, col)| sign(seed, row, col));
        let (norm_squared, sketch) = operator.sketch(signs.view())?;
        let scale = (-(norm_squared.max(f64::MIN_POSITIVE).log2() / 2.0).round()).clamp(-120.0, 120.0).exp2() as f32;
        let next =
            if norm_squared == 0.0 { Matrix::zeros((cols, 0)) } else { backend::qr_f32((sketch * scale).view()).0 };
        Ok(Self {
            norm_squared,
            scale,
            basis: Columns::new(cols),
            next,
            images: Columns::new(rows),
            projected: Array2::zeros((0, 0)),
            coupling: Array2::zeros((0, 0)),
            before: None,
            unseen: 0,
        })
    }

    fn width(&self) -> usize {
        self.projected.nrows()
    }

    /// One pass over the operator: takes the coming block into the basis and finds the one after it.
    fn step(&mut self, operator: &dyn LinearOperator) -> Result<()> {
        let block = std::mem::replace(&mut self.next, Matrix::zeros((0, 0)));
        let (image, back) = operator.apply_gram(block.view(), self.scale)?;
        self.images.push(image.view());
        self.basis.push(block.view());
        self.grow(image.view());
        let last = self.projected.slice(s![.., self.width() - block.ncols()..]);
        (self.next, self.coupling) = beyond(self.basis.view(), back, last.mapv(|value| -value as f32));
        Ok(())
    }

    /// Extends the projected matrix by the last image.
    fn grow(&mut self, last: MatrixView<'_>) {
        let corner = inner(last, self.images.view());
        let (old, all) = (self.width(), corner.ncols());
        let mut grown = Array2::zeros((all, all));
        grown.slice_mut(s![..old, ..old]).assign(&self.projected);
        grown.slice_mut(s![.., old..]).assign(&corner.t());
        grown.slice_mut(s![old.., ..]).assign(&corner);
        self.projected = grown;
    }

    /// What later blocks would add to the squares of the leading singular values, where they are not worth the work.
    fn look(&mut self, rule: &RankRule, compute: Compute) -> Option<Vec<f64>> {
        let before = self.before.take();
        let block = self.next.ncols();
        // Of a cluster that one block cannot hold, the next ones find the rest before anything tells of it.
        let ripe = |rank: usize| self.width() >= rank + BEYOND_RANK * block;
        let wanted = rule.rank_at_most().filter(|_| matches!(rule.policy, RankPolicy::Rank(_)));
        if self.unseen > 0 || wanted.is_some_and(|rank| !ripe(rank)) {
            self.unseen = self.unseen.saturating_sub(1);
            return None;
        }
        let squares = descending(&self.projected)?;
        let scale = f64::from(self.scale);
        let roots = |squares: &[f64]| squares.iter().map(|square| square.sqrt() / scale).collect::<Vec<f64>>();
        let values = roots(&squares);
        let rank = rule.is_settled(&values, self.norm_squared).then(|| rule.choose(&values, self.norm_squared));
        let Some(rank) = rank.filter(|rank| ripe(*rank)) else {
            self.before = Some(squares);
            return None;
        };
        let before = before.or_else(|| self.values_before())?;
        let coming = self.values_with_next()?;
        // Where nothing is kept, the first value tells how fast the others change.
        let sum = |squares: &[f64]| squares.iter().take(rank.max(1)).sum::<f64>();
        let gain = (sum(&coming) - sum(&squares)).max(0.0);
        let gained = (sum(&squares) - sum(&before)).max(gain);
        // Gains of later blocks shrink about as the last two did.
        let rate = if gained > 0.0 { (gain / gained).min(MOST_RATE) } else { 0.0 };
        let now = squares.iter().copied().chain(std::iter::repeat(0.0));
        let gains: Vec<f64> =
            coming.iter().zip(now.clone()).map(|(then, now)| (then - now).max(0.0) / (1.0 - rate)).collect();
        let total = self.norm_squared * scale * scale;
        let captured: f64 = squares.iter().take(rank).sum();
        let to_come = gain / (1.0 - rate);
        let residual = (total - captured - to_come).max(0.0);
        // (r² − opt²) ∕ opt² = 2·(r − opt) ∕ opt to first order.
        let accepted = (2.0 * compute.tolerance() * residual).max(total * NOISE);
        // A rule about single values holds only if none is on its way across.
        let forecast: Vec<f64> = gains.iter().zip(now).map(|(gain, now)| now + gain).collect();
        let holds = !rule.looks_at_single_values() || rule.choose(&roots(&forecast), self.norm_squared) == rank;
        let done = to_come <= accepted && holds;
        // As many blocks as the gain to come needs to shrink to what is accepted, but for the last.
        let blocks = (to_come / accepted).ln() / rate.recip().ln();
        self.unseen = if blocks >= 1.0 { MOST_UNSEEN.min(blocks as usize) } else { 0 };
        self.before = Some(squares);
        done.then(|| gains.into_iter().map(|gain| gain / scale / scale).collect())
    }

    /// The Ritz values one block ago.
    fn values_before(&self) -> Option<Vec<f64>> {
        let old = self.width() - self.coupling.ncols();
        descending(&self.projected.slice(s![..old, ..old]).to_owned())
    }

    /// The Ritz values that the coming block would give, if its own energy were that of the last one.
    fn values_with_next(&self) -> Option<Vec<f64>> {
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

    /// How many leading values are known: an eigenvalue of G = AᵀA is within ‖G·v − θ·v‖ of θ, and within its square over the gap to
    /// the neighbours (Parlett 1980, 11.7). G·v leaves the basis by the coupling alone.
    fn settled(&self, roots: &Array1<f64>, mix: &Array2<f64>) -> usize {
        let last = self.width() - self.coupling.ncols();
        let beyond = backend::multiply_f64(self.coupling.view(), mix.slice(s![last.., ..]));
        let square = |at: usize| roots.get(at).map_or(0.0, |root| root * root);
        let is_settled = |at: usize| {
            let off_squared: f64 = beyond.column(at).iter().map(|value| value * value).sum();
            let above = if at == 0 { f64::INFINITY } else { square(at - 1) - square(at) };
            let gap = above.min(square(at) - square(at + 1));
            let off = off_squared.sqrt().min(off_squared / gap);
            off <= 2.0 * VALUE_TOLERANCE * square(at)
        };
        (0..roots.len()).take_while(|at| is_settled(*at)).count()
    }

    /// The Ritz triplets; `None` if they cannot be had.
    fn result(&mut self, gains: Vec<f64>) -> Option<Decomposition> {
        let (squares, vectors) = backend::symmetric_eigen(self.projected.view())?;
        let count = squares.iter().filter(|square| **square > 0.0).count();
        let mix = vectors.slice(s![.., vectors.ncols() - count..; -1]).to_owned();
        let roots: Array1<f64> = squares.iter().rev().take(count).map(|square| square.sqrt()).collect();
        let values = roots.iter().map(|root| root / f64::from(self.scale)).collect();
        let left = Vectors { basis: self.images.take(), mix: &mix / &roots, skew: false };
        let known = Known::Leading { settled: self.settled(&roots, &mix), gains };
        let right = Vectors { basis: self.basis.take(), mix, skew: false };
        Some(Decomposition::new(left, values, right, self.norm_squared, known))
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

/// Orthonormal columns that with `basis` span what `basis` and `block` span, and the block beyond the basis in their coordinates.
/// `inside` is the part of the block within the basis, negative.
fn beyond(basis: MatrixView<'_>, mut block: Matrix, inside: Matrix) -> (Matrix, Array2<f64>) {
    backend::multiply_into(block.view_mut(), true, basis, inside.view());
    let (mut columns, coordinates) = backend::qr_f32(block.view());
    let mut coordinates = coordinates.mapv(f64::from);
    // Twice is enough (Giraud, Langou & Rozložník 2005), but for columns that were nothing but rounding.
    for _ in 0..MOST_ROUNDS {
        let mut again = Matrix::zeros(inside.dim());
        backend::multiply_into(again.view_mut(), false, basis.t(), columns.view());
        again.mapv_inplace(|value| -value);
        backend::multiply_into(columns.view_mut(), true, basis, again.view());
        let (next, more) = backend::qr_f32(columns.view());
        columns = next;
        coordinates = backend::multiply_f64(more.mapv(f64::from).view(), coordinates.view());
        if more.diag().iter().all(|left| left.abs() >= MOST_LOST) {
            break;
        }
    }
    (columns, coordinates)
}

/// Rounds of taking the basis out of new columns, after the first.
const MOST_ROUNDS: usize = 3;

/// Length that a column of length 1 must keep for the round to be the last.
const MOST_LOST: f32 = 0.7;

/// Eigenvalues of a symmetric matrix, largest first, none below zero; `None` if they cannot be had.
fn descending(matrix: &Array2<f64>) -> Option<Vec<f64>> {
    let values = backend::symmetric_values(matrix.view())?;
    Some(values.into_iter().rev().map(|value| value.max(0.0)).collect())
}
