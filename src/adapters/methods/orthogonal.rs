//! Small orthogonal matrices: the Cayley transform of a skew one, exactly or by its Neumann series.

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

/// (1 − Q)(1 + Q)⁻¹; 1 + Q is never singular for a skew Q. Elimination with pivoting; both factors commute.
pub fn exact(skew: &[f64], n: usize) -> Vec<f64> {
    let one = identity(n);
    let mut left: Vec<f64> = one.iter().zip(skew).map(|(one, q)| one + q).collect();
    let mut right: Vec<f64> = one.iter().zip(skew).map(|(one, q)| one - q).collect();
    for col in 0..n {
        let pivot = (col..n).max_by(|l, r| left[l * n + col].abs().total_cmp(&left[r * n + col].abs())).unwrap_or(col);
        for j in 0..n {
            left.swap(col * n + j, pivot * n + j);
            right.swap(col * n + j, pivot * n + j);
        }
        let scale = 1.0 / left[col * n + col];
        for j in 0..n {
            left[col * n + j] *= scale;
            right[col * n + j] *= scale;
        }
        for row in (0..n).filter(|row| *row != col) {
            let factor = left[row * n + col];
            if factor != 0.0 {
                for j in 0..n {
                    left[row * n + j] -= factor * left[col * n + j];
                    right[row * n + j] -= factor * right[col * n + j];
                }
            }
        }
    }
    right
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_transform_is_orthogonal() {
        let skew = [0.0, 0.5, -0.2, -0.5, 0.0, 1.5, 0.2, -1.5, 0.0];
        let r = exact(&skew, 3);
        let turned: Vec<f64> = (0..9).map(|at| r[at % 3 * 3 + at / 3]).collect();
        let one = product(&r, &turned, 3);
        assert!(one.iter().zip(identity(3)).all(|(l, r)| (l - r).abs() < 1e-14), "{one:?}");
    }
}
