//! Small rotations, the Cayley transforms of skew matrices, in f64. sd-scripts and LyCORIS: Q = X − Xᵀ, R = (I + Q)(I − Q)⁻¹. PEFT has
//! the other sign of Q, and a Neumann series beside the exact transform.

use crate::adapters::factor::Factor;
use crate::adapters::parts::wrong;
use crate::error::Result;
use crate::formats::Stored;

/// What LyCORIS and sd-scripts add to ‖Q‖ before they compare it.
const NORM_EPSILON: f64 = 1e-8;

/// R − I of every block of `stored` `[…, b, b]`, one after the other. With a `constraint` above zero Q is shrunk to that norm over
/// all blocks together.
///
/// # Errors
/// When the blocks are not square, or a block cannot be inverted.
pub fn rotations(stored: &Stored, constraint: f64) -> Result<Vec<f64>> {
    let size = block_size(stored)?;
    let mut blocks: Vec<f64> = Factor::new(stored)?.to_vec()?.into_iter().map(f64::from).collect();
    for block in blocks.chunks_exact_mut(size * size) {
        for row in 0..size {
            for col in 0..=row {
                let value = block[row * size + col] - block[col * size + row];
                block[row * size + col] = value;
                block[col * size + row] = -value;
            }
        }
    }
    let norm = blocks.iter().map(|value| value * value).sum::<f64>().sqrt() + NORM_EPSILON;
    if constraint > 0.0 && norm > constraint {
        blocks.iter_mut().for_each(|value| *value *= constraint / norm);
    }
    for block in blocks.chunks_exact_mut(size * size) {
        if !cayley(block, size) {
            return Err(wrong(stored, "has a block whose rotation is not a number"));
        }
    }
    Ok(blocks)
}

/// b of blocks `[…, b, b]`.
///
/// # Errors
/// When they are not square.
pub fn block_size(stored: &Stored) -> Result<usize> {
    match stored.info.shape.as_slice() {
        [.., rows, cols] if rows == cols && *rows > 0 => {
            Ok(usize::try_from(*rows).expect("a mapped tensor fits memory"))
        }
        _ => Err(wrong(stored, format!("has shape {}, square blocks were expected", stored.info.shape))),
    }
}

/// Q → R − I = 2 · (I − Q)⁻¹ · Q, in place, by elimination with pivots. I − Q of a skew Q is never singular.
fn cayley(block: &mut [f64], size: usize) -> bool {
    let mut left: Vec<f64> = block.iter().map(|value| -value).collect();
    left.iter_mut().step_by(size + 1).for_each(|value| *value += 1.0);
    block.iter_mut().for_each(|value| *value *= 2.0);
    for at in 0..size {
        let best = (at..size).max_by(|a, b| left[a * size + at].abs().total_cmp(&left[b * size + at].abs()));
        let best = best.expect("there is a row left");
        for col in 0..size {
            left.swap(at * size + col, best * size + col);
            block.swap(at * size + col, best * size + col);
        }
        let pivot = left[at * size + at];
        let scale = |line: &mut [f64]| line.iter_mut().for_each(|value| *value /= pivot);
        scale(&mut left[at * size..][..size]);
        scale(&mut block[at * size..][..size]);
        for row in (0..size).filter(|row| *row != at) {
            let factor = left[row * size + at];
            if factor == 0.0 {
                continue;
            }
            for col in 0..size {
                left[row * size + col] -= factor * left[at * size + col];
                block[row * size + col] -= factor * block[at * size + col];
            }
        }
    }
    block.iter().all(|value| value.is_finite())
}

/// (1 − Q)(1 + Q)⁻¹, PEFT's form.
pub fn exact(skew: &[f64], n: usize) -> Vec<f64> {
    let mut out: Vec<f64> = skew.iter().map(|value| -value).collect();
    // What is not finite stays so, and is found in the weight.
    cayley(&mut out, n);
    out.iter_mut().step_by(n + 1).for_each(|value| *value += 1.0);
    out
}

/// 1 + 2Q + 2Q² + … + 2Qᵗ⁻² + Qᵗ⁻¹ for t terms, as PEFT sums it: its sign of Q is the other one.
pub fn neumann(skew: &[f64], n: usize, terms: usize) -> Vec<f64> {
    let mut out = identity(n);
    if terms <= 1 {
        return out;
    }
    let mut power = skew.to_vec();
    let mut add = |power: &[f64], factor: f64| out.iter_mut().zip(power).for_each(|(o, p)| *o += factor * p);
    add(&power, 2.0);
    if terms > 2 {
        power = product(&power, skew, n);
        add(&power, 2.0);
        for _ in 3..terms - 1 {
            power = product(&power, skew, n);
            add(&power, 2.0);
        }
        power = product(&power, skew, n);
        add(&power, 1.0);
    }
    out
}

/// C = A · B of n × n.
fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for k in 0..n {
            let factor = a[i * n + k];
            (0..n).for_each(|j| out[i * n + j] += factor * b[k * n + j]);
        }
    }
    out
}

fn identity(n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    (0..n).for_each(|i| out[i * n + i] = 1.0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_is_turned_by_twice_the_angle_whose_tangent_is_q() {
        let mut block = [0.0, 0.5, -0.5, 0.0];
        assert!(cayley(&mut block, 2));
        let angle = 2.0 * 0.5_f64.atan();
        let wanted = [angle.cos() - 1.0, angle.sin(), -angle.sin(), angle.cos() - 1.0];
        assert!(block.iter().zip(wanted).all(|(have, wanted)| (have - wanted).abs() < 1e-14), "{block:?}");
    }

    #[test]
    fn the_exact_transform_is_orthogonal() {
        let skew = [0.0, 0.5, -0.2, -0.5, 0.0, 1.5, 0.2, -1.5, 0.0];
        let r = exact(&skew, 3);
        let turned: Vec<f64> = (0..9).map(|at| r[at % 3 * 3 + at / 3]).collect();
        let one = product(&r, &turned, 3);
        assert!(one.iter().zip(identity(3)).all(|(l, r)| (l - r).abs() < 1e-14), "{one:?}");
    }
}
