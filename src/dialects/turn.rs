//! Factors that are stored the other way round, put in order in memory.

use std::sync::Arc;

use crate::error::Result;
use crate::formats::Stored;
use crate::tensor::{Dtype, Float, Rounding, Shape, TensorInfo};

/// `[…, rows, cols]` as `[…, cols, rows]`.
///
/// # Errors
/// When the file is no longer there as it was mapped.
pub(crate) fn transposed(stored: &Stored) -> Result<Stored> {
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

/// Row `i` of the tensor becomes row `order[i]` of the result, which is made when it is first looked at. `order` has every row
/// once.
pub(crate) fn scattered(stored: &Stored, order: Vec<usize>) -> Stored {
    let info = stored.info.clone();
    lazily(stored, info, move |data| {
        let length = data.len() / order.len().max(1);
        let mut bytes = vec![0; data.len()];
        for (row, to) in data.chunks_exact(length.max(1)).zip(&order) {
            bytes[to * length..(to + 1) * length].copy_from_slice(row);
        }
        bytes
    })
}

/// A tensor in blocks of ggml as f32, made when it is first looked at; `None` where it is of another type.
pub(crate) fn as_f32(stored: &Stored) -> Option<Stored> {
    let Dtype::Ggml(ggml) = stored.info.dtype else { return None };
    let elements = stored.info.shape.elements()?;
    let count = usize::try_from(elements).ok()?;
    let info = TensorInfo { dtype: Dtype::F32, bytes: elements.checked_mul(4)?, ..stored.info.clone() };
    Some(lazily(stored, info, move |data| {
        let mut values = vec![0.0; count];
        ggml.decode(data, &mut values);
        let mut bytes = vec![0; count * 4];
        Float::F32.encode(&values, Rounding::Nearest, &mut bytes);
        bytes
    }))
}

fn lazily(stored: &Stored, info: TensorInfo, make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Stored {
    let (map, start, bytes, len) = (Arc::clone(&stored.map), stored.start, stored.info.bytes, info.bytes);
    let held = stored.map.held_lazily(len, move || {
        // The header was held against the file when it was read.
        let data = map.slice(start, bytes).unwrap_or_default();
        if data.is_empty() { vec![0; usize::try_from(len).unwrap_or(0)] } else { make(data) }
    });
    Stored { map: Arc::new(held), info, start: 0 }
}
