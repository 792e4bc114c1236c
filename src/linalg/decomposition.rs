//! Singular values with their vectors, cut to a rank, and what is known about the error.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use super::low_rank::LowRank;
use super::operator::LinearOperator;
use super::{F32_ROUNDOFF, INNER_ROWS, Matrix, RankRule, backend, inner};
use crate::error::Result;
use crate::interrupt;
use crate::tensor::Float;

/// Relative rounding of an SVD in f64, with room for its constants.
const F64_SLACK: f64 = 1e-13;

/// m·n·min(m, n) from which a decomposition takes so long (a tenth of a second and more) that an interrupt does not wait for it.
pub(super) const LONG: usize = 1 << 26;

/// The leading singular triplets of a matrix, largest first: all of them that are not zero, or a good approximation of some.
#[derive(Debug, Clone)]
pub struct Decomposition {
    left: Vectors,
    /// Largest first.
    values: Vec<f64>,
    right: Vectors,
    /// ‖A‖².
    norm_squared: f64,
    known: Known,
}

/// What is known of the singular values.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// All of them.
    All,
    /// Approximations from below of the first ones.
    Leading {
        /// So many of them are known to 1e-4: a singular value of the matrix is so near to each.
        settled: usize,
        /// What a longer iteration would add to the squares of the first ones, by an estimate; good for those that were asked for.
        gains: Vec<f64>,
    },
}

/// Singular vectors of one side in columns: `basis · mix`, multiplied when so many of them as are wanted are known.
#[derive(Debug, Clone)]
pub(super) struct Vectors {
    /// `[side, t]`.
    pub basis: Matrix,
    /// `[t, k]`.
    pub mix: Array2<f64>,
    /// Whether the columns of `basis` are far from orthonormal, so that products with them cancel and are formed in f64.
    pub skew: bool,
}

impl Vectors {
    /// The first columns as many as `weights`, each times its weight.
    fn weighted(&self, weights: &Array1<f64>) -> Matrix {
        let mix = &self.mix.slice(s![.., ..weights.len()]) * weights;
        let mut product = Matrix::zeros((self.basis.nrows(), weights.len()));
        if self.skew {
            let chunks = self.basis.axis_chunks_iter(Axis(0), INNER_ROWS);
            for (basis, mut part) in chunks.zip(product.axis_chunks_iter_mut(Axis(0), INNER_ROWS)) {
                let exact = backend::multiply_f64(basis.mapv(f64::from).view(), mix.view());
                part.zip_mut_with(&exact, |to, from| *to = *from as f32);
            }
            return product;
        }
        let mix = mix.mapv(|value| value as f32);
        backend::multiply_into(product.view_mut(), false, self.basis.view(), mix.view());
        product
    }
}

/// What is known about an approximation of a matrix A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Certificate {
    /// ‖A‖ in the Frobenius norm.
    pub norm: f64,
    /// ‖A − result‖, measured on the result as it is stored.
    pub residual: f64,
    /// Never less than the true ‖A − result‖: the measurement and the rounding of its own arithmetic.
    pub residual_at_most: f64,
    /// No matrix of this rank is closer to A than this. Exact after a full decomposition, otherwise a rigorous lower bound:
    /// approximate singular values never exceed the true ones, so √(Σ_{i>k} σ̃ᵢ²) cannot exceed √(Σ_{i>k} σᵢ²).
    pub optimum_at_least: f64,
    /// The smallest error that a matrix of this rank can have: exact after a full decomposition, otherwise an estimate.
    pub optimum_near: f64,
    /// What storing the factors in their dtype added: ‖B·A − stored‖.
    pub stored_error: f64,
    /// Whether all singular values are known.
    pub complete: bool,
}

impl Certificate {
    /// Of a matrix of that norm itself.
    pub fn exact(norm: f64) -> Self {
        let none = 0.0;
        let (residual, residual_at_most, stored_error) = (none, none, none);
        let (optimum_at_least, optimum_near) = (none, none);
        Self { norm, residual, residual_at_most, optimum_at_least, optimum_near, stored_error, complete: true }
    }

    /// ‖A − result‖ ∕ ‖A‖ at most; 0 for a matrix of zeros.
    pub fn relative(&self) -> f64 {
        if self.norm > 0.0 { self.residual_at_most / self.norm } else { 0.0 }
    }

    /// Share of ‖A‖² that the result keeps: 1 − (residual ∕ norm)².
    pub fn kept_energy(&self) -> f64 {
        if self.norm > 0.0 { (1.0 - (self.residual / self.norm).powi(2)).max(0.0) } else { 1.0 }
    }
}

/// A low-rank approximation with its proof.
#[derive(Debug, Clone)]
pub struct Truncated {
    /// √σ in both factors, scale 1; rounded to the dtype they are stored in.
    pub factors: LowRank,
    /// All singular values that are known, largest first; the first [`Truncated::rank`] are in the factors.
    pub singular_values: Vec<f64>,
    /// To each of the first so many of them a singular value of the matrix is as near as 1e-4; the rest may be larger in truth.
    pub settled: usize,
    /// What is known about the error.
    pub certificate: Certificate,
}

impl Truncated {
    /// The inner dimension of the factors.
    pub fn rank(&self) -> usize {
        self.factors.rank()
    }
}

impl Decomposition {
    /// Puts together what an iteration found.
    pub(super) fn new(left: Vectors, values: Vec<f64>, right: Vectors, norm_squared: f64, known: Known) -> Self {
        Self { left, values, right, norm_squared, known }
    }

    /// The full decomposition of a matrix that is held, in f64. Singular values that are rounding noise are left out.
    ///
    /// A matrix whose values are not finite has no decomposition and is described as zero; readers refuse such values first.
    pub fn of_dense(matrix: &Array2<f64>) -> Self {
        let (rows, cols) = matrix.dim();
        let norm_squared = matrix.iter().map(|value| value * value).sum();
        let Some((left, values, right)) = svd(matrix) else { return Self::zero(rows, cols, norm_squared) };
        let floor = values.first().copied().unwrap_or(0.0) * f64::EPSILON * rows.max(cols) as f64;
        let count = values.iter().take_while(|value| **value > floor).count();
        let vectors = |columns: ArrayView2<'_, f64>| Vectors {
            basis: columns.slice(s![.., ..count]).mapv(|value| value as f32),
            mix: Array2::eye(count),
            skew: false,
        };
        let (left, right) = (vectors(left.view()), vectors(right.t()));
        Self::new(left, values.iter().take(count).copied().collect(), right, norm_squared, Known::All)
    }

    /// As [`of_dense`](Self::of_dense), given up when the run is interrupted.
    ///
    /// # Errors
    /// When it is.
    pub fn of_whole(matrix: Array2<f64>) -> Result<Self> {
        let (rows, cols) = matrix.dim();
        if rows.saturating_mul(cols).saturating_mul(rows.min(cols)) < LONG {
            interrupt::check()?;
            return Ok(Self::of_dense(&matrix));
        }
        interrupt::while_wanted(move || Self::of_dense(&matrix))
    }

    /// A decomposition without singular values.
    pub fn zero(rows: usize, cols: usize, norm_squared: f64) -> Self {
        let none = |side| Vectors { basis: Matrix::zeros((side, 0)), mix: Array2::zeros((0, 0)), skew: false };
        Self::new(none(rows), Vec::new(), none(cols), norm_squared, Known::All)
    }

    /// The decomposition of left · self · rightᵀ for orthonormal columns `left` and `right`.
    pub(super) fn rotated(self, left: &Array2<f64>, right: &Array2<f64>) -> Self {
        let turned = |outer: &Array2<f64>, inner: Vectors| Vectors {
            basis: outer.mapv(|value| value as f32),
            mix: backend::multiply_f64(inner.basis.mapv(f64::from).view(), inner.mix.view()),
            skew: false,
        };
        Self { left: turned(left, self.left), right: turned(right, self.right), ..self }
    }

    /// As [`Decomposition::rotated`] for `left · left_mix` and `right · right_mix`.
    pub(super) fn turned(self, left: Matrix, left_mix: &Array2<f64>, right: Matrix, right_mix: &Array2<f64>) -> Self {
        let turned = |basis: Matrix, mix: &Array2<f64>, inner: Vectors| {
            let inner = backend::multiply_f64(inner.basis.mapv(f64::from).view(), inner.mix.view());
            Vectors { basis, mix: backend::multiply_f64(mix.view(), inner.view()), skew: true }
        };
        Self { left: turned(left, left_mix, self.left), right: turned(right, right_mix, self.right), ..self }
    }

    /// The singular values, largest first.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// ‖A‖².
    pub fn norm_squared(&self) -> f64 {
        self.norm_squared
    }

    /// Whether all singular values are known.
    pub fn is_complete(&self) -> bool {
        matches!(self.known, Known::All)
    }

    /// How many of the leading values are known to 1e-4; all of them after a full decomposition.
    pub fn settled(&self) -> usize {
        match &self.known {
            Known::All => self.values.len(),
            Known::Leading { settled, .. } => *settled,
        }
    }

    /// The rank `rule` gives.
    pub fn rank_by(&self, rule: &RankRule) -> usize {
        rule.choose(&self.values, self.norm_squared)
    }

    /// U·√σ and √σ·Vᵀ of the first `rank` triplets.
    fn factors(&self, rank: usize) -> (Matrix, Matrix) {
        let root: Array1<f64> = self.values[..rank].iter().map(|value| value.sqrt()).collect();
        let down = self.right.weighted(&root);
        (self.left.weighted(&root), down.t().as_standard_layout().into_owned())
    }

    /// The first `rank` triplets as factors stored as `stored`, with a certificate measured against `operator`, the matrix
    /// that was decomposed.
    ///
    /// # Errors
    /// When the operator's inputs cannot be read.
    pub fn cut(&self, rank: usize, stored: Float, operator: &dyn LinearOperator) -> Result<Truncated> {
        let rank = rank.min(self.values.len());
        let (mut up, mut down) = self.factors(rank);
        let mut stored_error = 0.0;
        if stored != Float::F32 && stored != Float::F64 {
            let exact = (up.clone(), down.clone());
            round(&mut up, stored);
            round(&mut down, stored);
            stored_error = product_distance((&exact.0, &exact.1), (&up, &down));
        }
        let norm = self.norm_squared.sqrt();
        let residual = operator.residual_squared(up.view(), down.view())?.sqrt();
        // |fl(Σ bᵢaᵢ) − Σ bᵢaᵢ| ≤ γ_k Σ|bᵢaᵢ| for every element (Higham 2002, 3.5), and ‖|B|·|A|‖ ≤ ‖B‖·‖A‖.
        let size = |matrix: &Matrix| matrix.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let slack = (rank + 2) as f64 * F32_ROUNDOFF * (size(&up) * size(&down) + norm * f64::from(u8::from(rank > 0)));
        let tail: f64 = self.values[rank..].iter().rev().map(|value| value * value).sum();
        let uncertainty = if self.is_complete() { F64_SLACK } else { F32_ROUNDOFF * 4.0 };
        let optimum_at_least = (tail - uncertainty * self.norm_squared).max(0.0).sqrt();
        let optimum_near = match &self.known {
            Known::All => tail,
            Known::Leading { gains, .. } => {
                let gain: f64 = gains.iter().take(rank).sum();
                (residual.powi(2) - stored_error.powi(2) - gain).max(optimum_at_least.powi(2))
            }
        }
        .sqrt();
        let certificate = Certificate {
            norm,
            residual,
            residual_at_most: residual + slack,
            optimum_at_least,
            optimum_near,
            stored_error,
            complete: self.is_complete(),
        };
        let factors = LowRank::new(up, down, 1.0);
        Ok(Truncated { factors, singular_values: self.values.clone(), settled: self.settled(), certificate })
    }
}

/// The thin SVD, of the triangle of a QR first where that is less work.
fn svd(matrix: &Array2<f64>) -> Option<(Array2<f64>, Array1<f64>, Array2<f64>)> {
    /// Ratio of sides from which LAPACK, too, takes the detour.
    const TALL: usize = 2;
    let (rows, cols) = matrix.dim();
    if rows == 0 || cols == 0 || !matrix.iter().all(|value| value.is_finite()) {
        return None;
    }
    if rows >= TALL * cols {
        let (q, r) = backend::qr(matrix.view());
        let (left, values, right) = backend::svd(r.view())?;
        return Some((backend::multiply_f64(q.view(), left.view()), values, right));
    }
    if cols >= TALL * rows {
        let (q, r) = backend::qr(matrix.t());
        let (left, values, right) = backend::svd(r.t())?;
        return Some((left, values, backend::multiply_f64(right.view(), q.t())));
    }
    backend::svd(matrix.view())
}

/// ‖B·A − B̃·Ã‖ for factors that are nearly the same: of (B − B̃)·A + B̃·(A − Ã), by the Gram identity, so that nothing cancels.
fn product_distance((up, down): (&Matrix, &Matrix), (up_stored, down_stored): (&Matrix, &Matrix)) -> f64 {
    let columns = |left: &Matrix, right: &Matrix| inner(left.view(), right.view());
    let rows = |left: &Matrix, right: &Matrix| inner(left.t(), right.t());
    let (up_error, down_error) = (up - up_stored, down - down_stored);
    let first = (columns(&up_error, &up_error) * rows(down, down)).sum();
    let second = (columns(up_stored, up_stored) * rows(&down_error, &down_error)).sum();
    let both = (columns(&up_error, up_stored) * rows(down, &down_error)).sum();
    (first + second + 2.0 * both).max(0.0).sqrt()
}

fn round(matrix: &mut Matrix, stored: Float) {
    stored.round(matrix.as_slice_mut().expect("factors are made in row order"));
}
