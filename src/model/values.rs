//! Whether two tensors hold the same numbers.

use crate::adapters::Factor;
use crate::error::Result;
use crate::formats::Stored;

/// Elements that are compared at once.
const COMPARED: usize = 1 << 16;

/// Bytes that are compared at once.
const COMPARED_BYTES: u64 = 4 << 20;

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
        let same = same_bytes(left, right);
        release(&[left, right]);
        return same;
    }
    let Some(float) = right.info.dtype.float() else { return Ok(false) };
    let ((left_rows, left_cols), wide) = (Factor::new(left)?.shape(), left.info.dtype.float());
    let Some(wide) = wide else { return Ok(false) };
    let (left_data, right_data) = (left.read(0, left.info.bytes)?, right.read(0, right.info.bytes)?);
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

/// Whether two tensors of one dtype have the same bytes.
///
/// # Errors
/// When one of them cannot be read.
pub fn same_bytes(left: &Stored, right: &Stored) -> Result<bool> {
    if left.info.bytes != right.info.bytes {
        return Ok(false);
    }
    let mut done = 0;
    while done < left.info.bytes {
        let count = COMPARED_BYTES.min(left.info.bytes - done);
        if left.read(done, count)? != right.read(done, count)? {
            return Ok(false);
        }
        done += count;
    }
    Ok(true)
}

fn release(tensors: &[&Stored]) {
    tensors.iter().for_each(|tensor| tensor.map.release(tensor.start, tensor.info.bytes));
}
