//! What shapes tell of a quantised weight.

use serde_json::Value;

use super::files::Files;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::{Shape, TensorInfo, usize_of};

/// What belongs to a layer's activations and means nothing once its weight is a plain one.
const ACTIVATIONS: [&str; 5] =
    [".input_scale", ".input_global_scale", ".input_zero_point", ".output_scale", ".output_zero_point"];

/// A matrix, or a stack of matrices seen as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// All dimensions but the last, as they are.
    pub front: Vec<usize>,
    /// Rows of all matrices.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl Sizes {
    /// The dimensions of a tensor that holds something.
    ///
    /// # Errors
    /// When it has none, or no elements.
    pub fn of(files: &Files<'_>, info: &TensorInfo) -> Result<Self> {
        let sizes: Vec<usize> = info.shape.as_slice().iter().map(|size| usize_of(*size)).collect();
        Self::new(&sizes).ok_or_else(|| {
            files.malformed(&info.name, format!("is {}, and a matrix of codes belongs there", info.shape))
        })
    }

    /// The same of sizes; `None` for less than two, for nothing, and for more than an address holds.
    pub fn new(sizes: &[usize]) -> Option<Self> {
        let (cols, front) = sizes.split_last()?;
        let rows = front.iter().try_fold(1_usize, |rows, size| rows.checked_mul(*size))?;
        let is_something = !front.is_empty() && rows.checked_mul(*cols)?.checked_mul(8)? > 0;
        is_something.then(|| Self { front: front.to_vec(), rows, cols: *cols })
    }

    /// The same with other columns.
    pub fn with_cols(&self, cols: usize) -> Option<Self> {
        let sizes: Vec<usize> = self.front.iter().copied().chain([cols]).collect();
        Self::new(&sizes)
    }

    /// As a shape.
    pub fn shape(&self) -> Shape {
        self.front.iter().chain([&self.cols]).map(|size| *size as u64).collect()
    }

    /// Rows of one matrix.
    pub fn matrix_rows(&self) -> usize {
        self.front.last().copied().unwrap_or(1)
    }

    /// How many runs of columns have a number of their own in a tensor of one number per row and run, or one for all; `None`
    /// where it is neither.
    pub fn runs_in(&self, shape: &Shape) -> Option<usize> {
        let sizes: Vec<usize> = shape.as_slice().iter().map(|size| usize_of(*size)).collect();
        if sizes == self.front || sizes.iter().all(|size| *size == 1) {
            return Some(1);
        }
        let (runs, front) = sizes.split_last()?;
        (front == self.front && *runs > 0).then_some(*runs)
    }
}

/// Columns that share numbers: what the config says, where that gives `runs` of them; equal parts otherwise.
pub fn group(cols: usize, runs: usize, said: &[usize]) -> Option<usize> {
    let said = said.iter().copied().find(|group| *group > 0 && cols.div_ceil(*group) == runs);
    said.or_else(|| cols.is_multiple_of(runs).then(|| cols / runs))
}

/// The numbers that the config has under `key` for the weights of its groups, or for all; each once.
pub fn said(files: &Files<'_>, key: &str) -> Vec<usize> {
    let settings = files.settings();
    let groups = settings.get("config_groups").and_then(Value::as_object);
    let weights = groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("weights"));
    let all = weights.filter_map(|weights| weights.get(key)).chain(settings.get(key));
    let mut numbers: Vec<usize> = all.filter_map(|value| usize::try_from(value.as_u64()?).ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The tensors `module` + `ends` that are there, and those that belong to its activations.
pub fn tensors(files: &Files<'_>, module: &str, codes: &str, ends: &[&str]) -> Vec<String> {
    let names = ends.iter().chain(&ACTIVATIONS).map(|end| format!("{module}{end}"));
    let mut tensors = vec![codes.to_owned()];
    tensors.extend(files.present(names));
    tensors
}

/// The tensor `module` + `end`.
///
/// # Errors
/// When it is missing.
pub fn needed(files: &Files<'_>, info: &TensorInfo, module: &str, end: &str) -> Result<Stored> {
    files.find(&format!("{module}{end}")).ok_or_else(|| {
        files
            .malformed(&info.name, format!("has codes, and `{module}{end}`, which gives them their values, is missing"))
    })
}

/// The refusal of a tensor that does not fit the codes `codes`.
pub fn misfit(stored: &Stored, codes: &TensorInfo) -> Error {
    let (own, shape) = (&stored.info, &codes.shape);
    let problem = format!("is {} {}, which does not fit `{}` {shape}", own.dtype, own.shape, codes.name);
    Error::malformed(stored.path(), format!("tensor `{}`", own.name), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_per_row_and_run_are_counted() {
        let sizes = Sizes::new(&[64, 96]).expect("a matrix");
        let runs = |shape: &[u64]| sizes.runs_in(&shape.iter().copied().collect());
        assert_eq!(
            (runs(&[]), runs(&[1]), runs(&[64]), runs(&[64, 1]), runs(&[64, 3])),
            (Some(1), Some(1), Some(1), Some(1), Some(3))
        );
        assert_eq!((runs(&[63, 3]), runs(&[64, 0]), runs(&[3]), runs(&[2, 64, 3])), (None, None, None, None));
        let stack = Sizes::new(&[4, 64, 96]).expect("a stack");
        assert_eq!((stack.rows, stack.matrix_rows()), (256, 64));
        assert_eq!(stack.runs_in(&Shape::from([4, 64, 3])), Some(3));
        assert_eq!(Sizes::new(&[64]), None);
        assert_eq!(Sizes::new(&[64, 0]), None);
        assert_eq!(Sizes::new(&[usize::MAX, 2]), None);
    }

    #[test]
    fn groups_follow_the_config_where_it_fits() {
        assert_eq!(group(96, 3, &[]), Some(32));
        assert_eq!(group(96, 2, &[64]), Some(64));
        assert_eq!(group(96, 2, &[128, 32]), Some(48));
        assert_eq!(group(96, 5, &[32]), None);
    }
}
