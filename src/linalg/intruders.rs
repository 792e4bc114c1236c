//! Intruder dimensions (Shuttleworth et al. 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence"): leading singular vectors of
//! W + ΔW on the side of its rows that are like none of W's.
//!
//! Likeness is the largest |cos| with any left singular vector of W, as PEFT's `reduce_intruder_dimension` has it. The vectors of W
//! come from the Gram matrix of its shorter side, in f64; where that is the side of the columns, u = W·v ∕ σ is never formed, and
//! ⟨uᵢ, uⱼ⟩ = (uᵢᵀ·W)·vⱼ ∕ σⱼ. W and W + ΔW are read a band of rows at a time. Directions in which W is zero are not its own.

use ndarray::{Array1, Array2, Axis};

use super::leading::{gram_of_columns, gram_of_rows, leading, projected};
use super::operator::RowSource;
use super::{LowRank, backend};
use crate::error::Result;
use crate::interrupt;

/// What counts as an intruder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Foreign {
    /// So many singular vectors of W + ΔW are looked at, the largest first.
    pub top: usize,
    /// An intruder's cosine with every one of W is below this.
    pub threshold: f64,
}

/// A singular triplet of W + ΔW whose left vector is foreign to W.
#[derive(Debug, Clone)]
pub struct Intruder {
    /// Which one it is, the largest being 0.
    pub at: usize,
    /// Its singular value.
    pub value: f64,
    /// The largest |cos| with a left singular vector of W.
    pub cosine: f64,
    /// σ·u·vᵀ.
    pub product: LowRank,
}

/// The intruders of `merged` = W + ΔW in `base` = W; `None` where values are not finite. `seed` starts the iteration on large
/// matrices.
///
/// # Errors
/// When a matrix cannot be read.
pub fn intruders(
    base: &dyn RowSource,
    merged: &dyn RowSource,
    foreign: Foreign,
    seed: u64,
) -> Result<Option<Vec<Intruder>>> {
    let (rows, cols) = base.shape();
    let Some(part) = leading(merged, foreign.top, seed)? else { return Ok(None) };
    let rank = part.factors.rank();
    let matrix = |shape, values: Vec<f32>| Array2::from_shape_vec(shape, values).expect("factors have their shape");
    let (up, down) = (matrix((rows, rank), part.factors.up()), matrix((rank, cols), part.factors.down()));
    let mut left = up.mapv(f64::from);
    for mut vector in left.axis_iter_mut(Axis(1)) {
        let norm = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
        vector /= norm.max(f64::MIN_POSITIVE);
    }
    let Some(cosines) = cosines(base, left)? else { return Ok(None) };
    let norm = |values: ndarray::ArrayView1<'_, f32>| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let found = cosines.iter().enumerate().filter_map(|(at, cosine)| {
        let (up, down) = (up.column(at), down.row(at));
        let value = norm(up) * norm(down);
        (value > 0.0 && *cosine < foreign.threshold).then(|| Intruder {
            at,
            value,
            cosine: *cosine,
            product: LowRank::from_rows(up.to_vec(), down.to_vec(), 1, 1.0),
        })
    });
    Ok(Some(found.collect()))
}

/// The largest |cos| of every column of `left`, of norm 1, with a left singular vector of `base`.
fn cosines(base: &dyn RowSource, left: Array2<f64>) -> Result<Option<Vec<f64>>> {
    let (rows, cols) = base.shape();
    let tall = rows >= cols;
    let gram = if tall { gram_of_columns(base)? } else { gram_of_rows(base)? };
    if !gram.iter().all(|value| value.is_finite()) {
        return Ok(None);
    }
    // uᵢᵀ·W, or uᵢᵀ itself.
    let images = if tall { projected(base, left.view())? } else { left.reversed_axes() };
    interrupt::while_wanted(move || {
        let (squares, vectors) = backend::symmetric_eigen(gram.view())?;
        let floor = squares.iter().copied().fold(0.0, f64::max) * f64::EPSILON * rows.max(cols) as f64;
        let weights: Array1<f64> = squares
            .iter()
            .map(|square| match (*square > floor, tall) {
                (false, _) => 0.0,
                (true, true) => square.sqrt().recip(),
                (true, false) => 1.0,
            })
            .collect();
        let products = backend::multiply_f64(images.view(), vectors.view()) * &weights;
        Some(products.axis_iter(Axis(0)).map(|row| row.iter().fold(0.0, |most, x| f64::max(most, x.abs()))).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{Held, Matrix};
    use crate::tensor::random_bits;

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let value =
            |at: u64| (0..4).map(move |part| f64::from(random_bits(seed, 4 * at + part)) / f64::from(u32::MAX) - 0.5);
        Matrix::from_shape_fn((rows, cols), |(row, col)| value((row * cols + col) as u64).sum::<f64>() as f32)
    }

    /// By the definition: two full decompositions.
    fn by_definition(base: &Matrix, merged: &Matrix, foreign: Foreign) -> Vec<(usize, f64)> {
        let left = |matrix: &Matrix| backend::svd(matrix.mapv(f64::from).view()).expect("finite").0;
        let likeness = left(merged).t().dot(&left(base)).mapv(f64::abs);
        let most = likeness.axis_iter(Axis(0)).map(|row| row.iter().copied().fold(0.0, f64::max));
        most.take(foreign.top).enumerate().filter(|(_, cosine)| *cosine < foreign.threshold).collect()
    }

    #[test]
    fn intruders_are_those_of_two_full_decompositions_on_either_shape() {
        for (rows, cols) in [(24, 24), (40, 18), (18, 40)] {
            let base = random(rows, cols, 1);
            let change = random(rows, 3, 2).dot(&random(3, cols, 3));
            let merged = &base + &change;
            let foreign = Foreign { top: 10, threshold: 0.6 };
            let wanted = by_definition(&base, &merged, foreign);
            assert!(!wanted.is_empty() && wanted.len() < 10, "{wanted:?}");
            let found = intruders(&Held::of(base), &Held::of(merged), foreign, 7).expect("read").expect("finite");
            assert_eq!(
                found.iter().map(|one| one.at).collect::<Vec<_>>(),
                wanted.iter().map(|one| one.0).collect::<Vec<_>>()
            );
            for (one, (_, cosine)) in found.iter().zip(wanted) {
                assert!((one.cosine - cosine).abs() < 1e-5, "{} {cosine}", one.cosine);
            }
        }
    }

    #[test]
    fn a_weight_of_zeros_has_no_directions_and_values_that_are_not_finite_are_told() {
        let change = random(12, 2, 2).dot(&random(2, 9, 3));
        let foreign = Foreign { top: 10, threshold: 0.5 };
        let found = intruders(&Held::of(Matrix::zeros((12, 9))), &Held::of(change.clone()), foreign, 1);
        let found = found.expect("read").expect("finite");
        assert!(found.len() >= 2 && found.iter().all(|one| one.cosine == 0.0));
        let mut broken = Matrix::zeros((12, 9));
        broken[[3, 3]] = f32::NAN;
        assert!(intruders(&Held::of(broken.clone()), &Held::of(change), foreign, 1).expect("read").is_none());
    }
}
