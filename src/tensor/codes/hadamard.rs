//! The rotation of ComfyUI's `convrot`.
//!
//! A group of inputs is multiplied by H ⊗ H ⊗ … ∕ √size, H = [[1, 1, 1, −1], [1, 1, −1, 1], [1, −1, 1, 1], [−1, 1, 1, 1]], the
//! regular Hadamard matrix of order 4. It is symmetric and orthogonal: doing it twice undoes it.

/// Rotates every group of `size` values, a power of four, in place.
///
/// # Panics
/// When `size` is no power of four or does not divide the values.
pub fn rotate(values: &mut [f32], size: usize) {
    assert!(size.is_power_of_two() && size.trailing_zeros().is_multiple_of(2), "{size} is no power of four");
    assert!(values.len().is_multiple_of(size), "groups of {size} do not fit {} values", values.len());
    // √size is a power of two, so dividing by it is exact.
    let norm = (0..size.trailing_zeros() / 2).fold(1.0, |norm, _| norm * 0.5);
    for group in values.chunks_exact_mut(size) {
        let mut step = 1;
        while step < size {
            for block in group.chunks_exact_mut(4 * step) {
                for at in 0..step {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|part| block[at + part * step]);
                    block[at] = a + b + c - d;
                    block[at + step] = a + b - c + d;
                    block[at + 2 * step] = a - b + c + d;
                    block[at + 3 * step] = b - a + c + d;
                }
            }
            step *= 4;
        }
        group.iter_mut().for_each(|value| *value *= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_its_own_inverse() {
        for size in [4, 16, 64] {
            let values: Vec<f32> = (0..128_u8).map(|at| f32::from(at % 7) - f32::from(at % 3)).collect();
            let mut turned = values.clone();
            rotate(&mut turned, size);
            assert_ne!(turned, values);
            rotate(&mut turned, size);
            assert_eq!(turned, values, "whole numbers stay exact");
        }
    }

    #[test]
    fn its_rows_are_those_of_the_product() {
        let mut unit = [0.0; 16];
        unit[0] = 4.0;
        rotate(&mut unit, 16);
        let first = [1.0, 1.0, 1.0, -1.0];
        let expected: Vec<f32> = first.iter().flat_map(|left| first.map(|right| left * right)).collect();
        assert_eq!(unit[..], expected);
    }
}
