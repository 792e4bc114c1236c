//! Factors that are stored the other way round, put in order in memory.

use crate::error::Result;
use crate::formats::Stored;
use crate::tensor::{Shape, TensorInfo};

/// `[…, rows, cols]` as `[…, cols, rows]`.
///
/// # Errors
/// When the file is no longer there as it was mapped.
pub(super) fn transposed(stored: &Stored) -> Result<Stored> {
    let shape = stored.info.shape.as_slice();
    let [before @ .., rows, cols] = shape else { return Ok(stored.clone()) };
    let data = stored.view()?.data;
    let elements = stored.info.shape.elements().unwrap_or(0);
    if elements == 0 {
        return Ok(stored.clone());
    }
    let narrow =
        |count: u64| usize::try_from(count).expect("a mapped tensor has fewer elements than the address space");
    let (height, width) = (narrow(*rows), narrow(*cols));
    let item = data.len() / narrow(elements);
    let mut bytes = Vec::with_capacity(data.len());
    for matrix in data.chunks_exact(height * width * item) {
        for col in 0..width {
            for row in 0..height {
                let at = (row * width + col) * item;
                bytes.extend_from_slice(&matrix[at..at + item]);
            }
        }
    }
    let mut turned = before.to_vec();
    turned.extend([*cols, *rows]);
    let info = TensorInfo { shape: Shape::from(turned), ..stored.info.clone() };
    Ok(Stored::held(&stored.map, info, bytes))
}

/// The rows of the first dimension in another order: row `i` of the result is row `source(i)`.
///
/// # Errors
/// When the file is no longer there as it was mapped.
pub(super) fn reordered(stored: &Stored, source: impl Fn(u64) -> u64) -> Result<Stored> {
    let data = stored.view()?.data;
    let rows = stored.info.shape.as_slice().first().copied().unwrap_or(0);
    let narrow = |row: u64| usize::try_from(row).expect("a mapped tensor has fewer rows than the address space");
    if rows == 0 || data.is_empty() {
        return Ok(stored.clone());
    }
    let length = data.len() / narrow(rows);
    let mut bytes = Vec::with_capacity(data.len());
    for row in 0..rows {
        let at = narrow(source(row)) * length;
        bytes.extend_from_slice(&data[at..at + length]);
    }
    Ok(Stored::held(&stored.map, stored.info.clone(), bytes))
}
