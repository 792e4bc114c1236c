//! Whether two tensors hold the same numbers.

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
    let (Some(wide), Some(float)) = (left.info.dtype.float(), right.info.dtype.float()) else { return Ok(false) };
    let count = left.elements();
    if count != right.elements() {
        return Ok(false);
    }
    let mut values = vec![0.0; COMPARED.min(count)];
    let mut stored = Vec::new();
    for first in (0..count).step_by(COMPARED) {
        let taken = COMPARED.min(count - first);
        let range = |width: usize| ((first * width) as u64, (taken * width) as u64);
        let ((start, bytes), (other, count)) = (range(wide.bytes()), range(float.bytes()));
        let (piece, wanted) = (left.read(start, bytes)?, right.read(other, count)?);
        wide.decode(&piece, &mut values[..taken]);
        stored.resize(wanted.len(), 0);
        float.encode(&values[..taken], crate::tensor::Rounding::Nearest, &mut stored);
        if *stored != *wanted {
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
