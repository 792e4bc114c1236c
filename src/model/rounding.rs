//! How results are rounded to their dtype.

use crate::tensor;

/// How results are rounded to their dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// To nearest, ties to even, once: what PEFT's `merge_and_unload()` does.
    #[default]
    Nearest,
    /// Up or down at random, so that small changes survive on average.
    Stochastic {
        /// Other seeds give other choices.
        seed: u64,
    },
    /// The delta first, then the sum: what PEFT's `safe_merge=True` does.
    PeftSafe,
}

impl Rounding {
    /// The rounding of the elements of tensor `name` from `index` on.
    pub fn at(self, name: &str, index: u64) -> tensor::Rounding {
        match self {
            Self::Nearest | Self::PeftSafe => tensor::Rounding::Nearest,
            Self::Stochastic { seed } => {
                let seed = tensor::seed_of(&[&seed.to_le_bytes(), name.as_bytes()]);
                tensor::Rounding::Stochastic { seed, index }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_draw_different_numbers() {
        let rounding = Rounding::Stochastic { seed: 1 };
        let seed = |name: &str| match rounding.at(name, 0) {
            tensor::Rounding::Stochastic { seed, .. } => seed,
            tensor::Rounding::Nearest => panic!("stochastic rounding draws"),
        };
        assert_ne!(seed("a"), seed("b"));
        assert_eq!(seed("a"), seed("a"));
    }
}
