//! Whether two tensors hold the same numbers.

use crate::adapters::Factor;
use crate::error::Result;
use crate::formats::Stored;

/// Elements that are compared at once.
const COMPARED: usize = 1 << 16;

/// Whether two tensors have one dtype, one shape and the same bytes.
///
/// # Errors
/// When one of them cannot be read.
pub fn same_tensors(left: &Stored, right: &Stored) -> Result<bool> {
    Ok(left.info.dtype == right.info.dtype && left.info.shape == right.info.shape && same_values(left, right)?)
}

/// Whether two tensors hold the same numbers once the left one is stored as the right one is.
///
/// # Errors
/// When one of them cannot be read.
pub fn same_values(left: &Stored, right: &Stored) -> Result<bool> {
    if left.info.dtype == right.info.dtype {
        let same = left.view()?.data == right.view()?.data;
        release(&[left, right]);
        return Ok(same);
    }
    let Some(float) = right.info.dtype.float() else { return Ok(false) };
    let ((left_rows, left_cols), wide) = (Factor::new(left)?.shape(), left.info.dtype.float());
    let Some(wide) = wide else { return Ok(false) };
    let (left_data, right_data) = (left.view()?.data, right.view()?.data);
    let mut values = vec![0.0; COMPARED.min(left_rows * left_cols)];
    let mut stored = vec![0; values.len() * float.bytes()];
    let pieces = left_data.chunks(COMPARED * wide.bytes()).zip(right_data.chunks(COMPARED * float.bytes()));
    for (piece, wanted) in pieces {
        let count = piece.len() / wide.bytes();
        wide.decode(piece, &mut values[..count]);
        float.encode(&values[..count], crate::tensor::Rounding::Nearest, &mut stored[..wanted.len()]);
        if stored[..wanted.len()] != *wanted {
            return Ok(false);
        }
    }
    release(&[left, right]);
    Ok(true)
}

fn release(tensors: &[&Stored]) {
    tensors.iter().for_each(|tensor| tensor.map.release(tensor.start, tensor.info.bytes));
}
