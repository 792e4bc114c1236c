//! The part of a matrix that lies in a subspace known by name: its best approximation of a rank, or what its first columns span.
//!
//! Unlike a truncated SVD, which is judged by its error, these are needed as the very matrices another program took: the
//! *subspace* has to be right. It comes from the Gram matrix of the shorter side, formed in f64, whose leading eigenvectors
//! are good to 10⁻¹⁶·σ₁² ∕ (σ_r² − σ_{r+1}²). Small ones are decomposed in full; of large ones a block Krylov iteration
//! goes on until every residual ‖G·v − σ²·v‖ is small against the gap. W is read a band of rows at a time.

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use super::low_rank::LowRank;
use super::operator::RowSource;
use super::{F32_ROUNDOFF, backend};
use crate::error::Result;
use crate::interrupt;
use crate::tensor::random_bits;

/// Shorter sides up to this are decomposed in full.
const FULL_SIDE: usize = 1024;

/// Columns of a block beyond those wanted, at least; blocks are multiples of [`BLOCK_STEP`].
const OVERSAMPLING: usize = 16;

/// Width of the widest vectors.
const BLOCK_STEP: usize = 16;

/// Largest accepted residual, as a share of the gap.
const OF_GAP: f64 = 1e-8;

/// Residuals below this share of the largest eigenvalue are rounding.
const NOISE: f64 = 1e-13;

/// Growth of the basis between two looks at the residuals.
const GROWTH: f64 = 1.2;

/// Elements of a band of rows that is held: 16 MiB in f64.
const BAND_ELEMENTS: usize = 2 << 20;

/// Unit roundoffs of f32, as shares of σ₁, within which a decomposition in f32 cannot tell two directions apart. LAPACK's
/// backward errors are a few.
const BLURRED: f64 = 64.0;

/// A part of a matrix, and how well it is defined.
#[derive(Debug, Clone)]
pub struct Part {
    /// The part as a product, scale 1.
    pub factors: LowRank,
    /// The largest singular value of the matrix (of its first columns).
    pub largest: f64,
    /// The smallest singular value that is in the part.
    pub kept: f64,
    /// The largest one that is not; `None` where the part is not chosen by its size.
    pub next: Option<f64>,
}

impl Part {
    /// How far an error of one unit roundoff of f32 in the matrix turns the subspace, as an angle.
    pub fn blur(&self) -> f64 {
        F32_ROUNDOFF * self.largest / (self.kept - self.next.unwrap_or(0.0)).max(f64::MIN_POSITIVE)
    }

    /// Whether a computation in f32 finds this part and no other. Directions whose own size is rounding do not matter.
    pub fn is_defined(&self) -> bool {
        let rounding = self.next.is_some() && self.kept <= BLURRED * F32_ROUNDOFF * self.largest;
        rounding || self.blur() * BLURRED <= 1.0
    }
}

/// The best approximation of rank `rank`; `None` where values are not finite. `seed` starts the iteration on large matrices.
///
/// # Errors
/// When the matrix cannot be read.
pub fn leading(matrix: &dyn RowSource, rank: usize, seed: u64) -> Result<Option<Part>> {
    leading_by(matrix, rank, seed, FULL_SIDE)
}

fn leading_by(matrix: &dyn RowSource, rank: usize, seed: u64, full_side: usize) -> Result<Option<Part>> {
    let (rows, cols) = matrix.shape();
    let rank = rank.min(rows).min(cols);
    let tall = rows >= cols;
    let gram = if tall { gram_of_columns(matrix)? } else { gram_of_rows(matrix)? };
    let found = interrupt::while_wanted(move || top(&gram, rank + 1, seed, full_side))?;
    let Some((squares, vectors)) = found else { return Ok(None) };
    let value = |at: usize| squares.get(at).map_or(0.0, |square| square.max(0.0).sqrt());
    let vectors = vectors.slice(s![.., ..rank]);
    let factors = if tall {
        let mut up = Array2::zeros((rows, rank));
        bands(matrix, |first, band| {
            let image = backend::multiply_f64(band, vectors);
            up.slice_mut(s![first..first + band.nrows(), ..]).assign(&image);
            Ok(())
        })?;
        narrow(&up, &vectors.t().to_owned())
    } else {
        narrow(&vectors.to_owned(), &projected(matrix, vectors)?)
    };
    let kept = if rank == 0 { 0.0 } else { value(rank - 1) };
    Ok(Some(Part { factors, largest: value(0), kept, next: Some(value(rank)) }))
}

/// The projection Q·Qᵀ·W onto the span of the first `count` columns, the factors being Q and Qᵀ·W; `None` where values are not
/// finite.
///
/// # Errors
/// When the matrix cannot be read.
pub fn first_columns(matrix: &dyn RowSource, count: usize) -> Result<Option<Part>> {
    let (rows, cols) = matrix.shape();
    let count = count.min(rows).min(cols);
    let mut columns = Array2::zeros((rows, count));
    bands(matrix, |first, band| {
        columns.slice_mut(s![first..first + band.nrows(), ..]).assign(&band.slice(s![.., ..count]));
        Ok(())
    })?;
    if !columns.iter().all(|value| value.is_finite()) {
        return Ok(None);
    }
    let (q, values) = interrupt::while_wanted(move || {
        let (q, r) = backend::qr(columns.view());
        (q, backend::svd(r.view()).map(|(_, values, _)| values))
    })?;
    let Some(values) = values else { return Ok(None) };
    let down = projected(matrix, q.view())?;
    if !down.iter().all(|value| value.is_finite()) {
        return Ok(None);
    }
    let (largest, kept) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0));
    Ok(Some(Part { factors: narrow(&q, &down), largest, kept, next: None }))
}

fn narrow(up: &Array2<f64>, down: &Array2<f64>) -> LowRank {
    LowRank::new(up.mapv(|value| value as f32), down.mapv(|value| value as f32), 1.0)
}

/// Calls `each` with every band of rows in f64 and its first row.
fn bands(matrix: &dyn RowSource, mut each: impl FnMut(usize, ArrayView2<'_, f64>) -> Result<()>) -> Result<()> {
    let (rows, cols) = matrix.shape();
    let step = (BAND_ELEMENTS / cols.max(1)).clamp(1, rows.max(1));
    for first in (0..rows).step_by(step) {
        interrupt::check()?;
        each(first, band(matrix, first..rows.min(first + step))?.view())?;
    }
    Ok(())
}

fn band(matrix: &dyn RowSource, rows: std::ops::Range<usize>) -> Result<Array2<f64>> {
    let shape = (rows.len(), matrix.shape().1);
    let mut values = vec![0.0_f32; shape.0 * shape.1];
    matrix.read(rows, &mut values)?;
    Ok(Array2::from_shape_vec(shape, values).expect("the buffer was cut to size").mapv(f64::from))
}

/// WᵀW.
pub(super) fn gram_of_columns(matrix: &dyn RowSource) -> Result<Array2<f64>> {
    let side = matrix.shape().1;
    let mut gram = Array2::zeros((side, side));
    bands(matrix, |_, band| {
        gram += &backend::multiply_f64(band.t(), band);
        Ok(())
    })?;
    Ok(gram)
}

/// W·Wᵀ, its lower half by pairs of bands.
pub(super) fn gram_of_rows(matrix: &dyn RowSource) -> Result<Array2<f64>> {
    let side = matrix.shape().0;
    let mut gram = Array2::zeros((side, side));
    bands(matrix, |left, outer| {
        bands(matrix, |right, inner| {
            if right <= left {
                let block = backend::multiply_f64(outer, inner.t());
                let (rows, cols) = (left..left + outer.nrows(), right..right + inner.nrows());
                gram.slice_mut(s![cols.clone(), rows.clone()]).assign(&block.t());
                gram.slice_mut(s![rows, cols]).assign(&block);
            }
            Ok(())
        })
    })?;
    Ok(gram)
}

/// Qᵀ·W.
pub(super) fn projected(matrix: &dyn RowSource, q: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    let mut down = Array2::zeros((q.ncols(), matrix.shape().1));
    bands(matrix, |first, band| {
        down += &backend::multiply_f64(q.slice(s![first..first + band.nrows(), ..]).t(), band);
        Ok(())
    })?;
    Ok(down)
}

/// The `count` largest eigenvalues of a symmetric matrix (fewer if it has fewer), largest first, and their vectors in columns.
fn top(gram: &Array2<f64>, count: usize, seed: u64, full_side: usize) -> Option<(Vec<f64>, Array2<f64>)> {
    let side = gram.nrows();
    let count = count.min(side);
    if !gram.iter().all(|value| value.is_finite()) {
        return None;
    }
    let block = (count + OVERSAMPLING).next_multiple_of(BLOCK_STEP);
    let found = if side <= full_side { None } else { iterate(gram, count, block, seed) };
    found.or_else(|| largest(gram, count))
}

/// Block Krylov iteration with full reorthogonalisation; `None` if half of the space does not hold what is looked for.
fn iterate(gram: &Array2<f64>, count: usize, block: usize, seed: u64) -> Option<(Vec<f64>, Array2<f64>)> {
    let side = gram.nrows();
    if 2 * block > side {
        return None;
    }
    let signs = Array2::from_shape_fn((side, block), |(row, col)| {
        if random_bits(seed, (row * block + col) as u64) & 1 == 0 { 1.0 } else { -1.0 }
    });
    let mut basis = backend::qr(signs.view()).0;
    let mut images = backend::multiply_f64(gram.view(), basis.view());
    let mut looked_at = 0.0;
    loop {
        let width = basis.ncols();
        if width as f64 > GROWTH * looked_at {
            looked_at = width as f64;
            let small = backend::multiply_f64(basis.t(), images.view());
            let (squares, turns) = largest(&small, count)?;
            let vectors = backend::multiply_f64(basis.view(), turns.view());
            if are_found(&squares, &vectors, &backend::multiply_f64(images.view(), turns.view())) {
                return Some((squares, vectors));
            }
        }
        if width + block > side / 2 {
            return None;
        }
        let next = beyond(&basis, images.slice(s![.., width - block..]));
        let image = backend::multiply_f64(gram.view(), next.view());
        basis = concatenate(Axis(1), &[basis.view(), next.view()]).expect("heights agree");
        images = concatenate(Axis(1), &[images.view(), image.view()]).expect("heights agree");
    }
}

/// All eigenvalues, of which the `count` largest are given.
fn largest(matrix: &Array2<f64>, count: usize) -> Option<(Vec<f64>, Array2<f64>)> {
    let (values, vectors) = backend::symmetric_eigen(matrix.view())?;
    let rest = values.len() - count.min(values.len());
    Some((values.iter().skip(rest).rev().copied().collect(), vectors.slice(s![.., rest..;-1]).to_owned()))
}

/// Whether the residuals say that all but the last of these eigenvectors span what they should.
fn are_found(squares: &[f64], vectors: &Array2<f64>, images: &Array2<f64>) -> bool {
    let last = squares.len() - 1;
    let gap = if last > 0 { squares[last - 1] - squares[last] } else { squares[0] };
    let accepted = (OF_GAP * gap).max(NOISE * squares[0]);
    let residual = |at: usize| {
        let pairs = images.column(at).into_iter().zip(vectors.column(at));
        pairs.map(|(image, vector)| (image - squares[at] * vector).powi(2)).sum::<f64>().sqrt()
    };
    (0..squares.len()).all(|at| residual(at) <= accepted)
}

/// Orthonormal columns for what `block` has beyond `basis`. Twice is enough (Giraud, Langou & Rozložník 2005).
fn beyond(basis: &Array2<f64>, block: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut block = block.to_owned();
    for _ in 0..2 {
        let inside = backend::multiply_f64(basis.t(), block.view());
        block -= &backend::multiply_f64(basis.view(), inside.view());
        block = backend::qr(block.view()).0;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::LinearOperator;

    struct Held(Array2<f32>);

    impl RowSource for Held {
        fn shape(&self) -> (usize, usize) {
            self.0.dim()
        }

        fn read(&self, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
            out.iter_mut().zip(self.0.slice(s![rows, ..]).iter()).for_each(|(to, from)| *to = *from);
            Ok(())
        }
    }

    fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
        let value = |(row, col)| f64::from(random_bits(seed, (row * cols + col) as u64)) / f64::from(u32::MAX) - 0.5;
        Array2::from_shape_fn((rows, cols), value)
    }

    /// A matrix with these singular values.
    fn with_values(rows: usize, cols: usize, values: &[f64]) -> Held {
        let left = backend::qr(random(rows, values.len(), 1).view()).0;
        let right = backend::qr(random(cols, values.len(), 2).view()).0;
        let scaled = &left * &ndarray::Array1::from(values.to_vec());
        Held(backend::multiply_f64(scaled.view(), right.t()).mapv(|value| value as f32))
    }

    /// The best approximation by a full SVD in f64.
    fn best(matrix: &Held, rank: usize) -> Array2<f64> {
        let (u, values, vt) = backend::svd(matrix.0.mapv(f64::from).view()).expect("finite");
        let scaled = &u.slice(s![.., ..rank]) * &values.slice(s![..rank]);
        backend::multiply_f64(scaled.view(), vt.slice(s![..rank, ..]))
    }

    fn off(part: &Part, wanted: &Array2<f64>) -> f64 {
        let got = part.factors.dense().expect("held");
        let size = wanted.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
        got.iter().zip(wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max) / size
    }

    #[test]
    fn the_part_is_that_of_a_full_decomposition() {
        for (rows, cols, full_side) in [(90, 70, 1024), (70, 90, 1024), (300, 200, 10), (200, 300, 10), (150, 150, 10)]
        {
            let matrix = Held(random(rows, cols, 3).mapv(|value| value as f32));
            for rank in [1, 5, 16] {
                let part = leading_by(&matrix, rank, 7, full_side).expect("read").expect("finite");
                let worst = off(&part, &best(&matrix, rank));
                assert!(worst < 1e-6, "[{rows}, {cols}] rank {rank}: {worst:e}");
                assert!(part.is_defined());
            }
        }
    }

    #[test]
    fn the_iteration_finds_a_subspace_between_close_values() {
        let values: Vec<f64> = (0..400).map(|at| 1.0 / (1.0 + 0.05 * f64::from(at))).collect();
        for (rows, cols) in [(900, 800), (800, 900)] {
            let matrix = with_values(rows, cols, &values);
            let gram = if rows >= cols { gram_of_columns(&matrix) } else { gram_of_rows(&matrix) }.expect("read");
            assert!(iterate(&gram, 9, 32, 3).is_some(), "[{rows}, {cols}]: the iteration gave up");
            let worst = off(&leading_by(&matrix, 8, 3, 10).expect("read").expect("finite"), &best(&matrix, 8));
            assert!(worst < 1e-6, "[{rows}, {cols}]: {worst:e}");
        }
    }

    #[test]
    fn two_equal_singular_values_leave_the_part_open() {
        let matrix = with_values(40, 30, &[4.0, 3.0, 2.0, 2.0, 1.0]);
        let open = leading(&matrix, 3, 0).expect("read").expect("finite");
        assert!(!open.is_defined());
        assert!((open.kept - 2.0).abs() < 1e-6 && (open.next.expect("by size") - 2.0).abs() < 1e-6);
        assert!(leading(&matrix, 4, 0).expect("read").expect("finite").is_defined());
    }

    #[test]
    fn what_has_no_more_rank_is_taken_whole() {
        let matrix = with_values(40, 30, &[4.0, 3.0]);
        let part = leading(&matrix, 8, 0).expect("read").expect("finite");
        assert!(part.is_defined());
        assert!(off(&part, &matrix.0.mapv(f64::from)) < 1e-6);
        assert!(leading(&Held(Array2::zeros((9, 5))), 2, 0).expect("read").expect("finite").is_defined());
    }

    #[test]
    fn the_first_columns_are_kept_as_they_are() {
        let matrix = Held(random(60, 40, 5).mapv(|value| value as f32));
        let part = first_columns(&matrix, 6).expect("read").expect("finite");
        let got = part.factors.dense().expect("held");
        let (same, rest) = (s![.., ..6], s![.., 6..]);
        let kept = &got.slice(same) - &matrix.0.mapv(f64::from).slice(same);
        assert!(kept.iter().all(|value| value.abs() < 1e-6));
        let left = &matrix.0.mapv(f64::from).slice(rest) - &got.slice(rest);
        let inside = backend::multiply_f64(matrix.0.mapv(f64::from).slice(same).t(), left.view());
        assert!(inside.iter().all(|value| value.abs() < 1e-5), "what is left is not orthogonal to the columns");
        assert!(part.is_defined());
    }

    #[test]
    fn columns_that_depend_on_each_other_leave_the_part_open() {
        let mut matrix = random(60, 40, 5).mapv(|value| value as f32);
        let double = matrix.column(0).mapv(|value| 2.0 * value);
        matrix.column_mut(1).assign(&double);
        assert!(!first_columns(&Held(matrix), 3).expect("read").expect("finite").is_defined());
    }

    #[test]
    fn values_that_are_not_finite_have_no_part() {
        let mut matrix = Array2::<f32>::zeros((5, 4));
        matrix[[3, 3]] = f32::NAN;
        assert!(leading(&Held(matrix.clone()), 2, 0).expect("read").is_none());
        assert!(first_columns(&Held(matrix), 2).expect("read").is_none());
    }
}
