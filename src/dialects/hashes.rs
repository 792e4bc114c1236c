//! The hashes of `metadata_hashes.rs`, of tensors that are about to be written.

use sha2::{Digest, Sha256};

use super::files::Tensor;
use super::metadata_hashes::{LEGACY, LEGACY_DIGITS, digits, kept, library_order};
use crate::error::Result;
use crate::formats::safetensors;
use crate::pairs::Bytes;
use crate::tensor::TensorInfo;

/// Rows of a tensor that are computed at once.
const ROWS: usize = 1024;

/// Bytes of a tensor that are made at once.
const PIECE_BYTES: usize = 1 << 20;

/// Sets `sshs_model_hash` and `sshs_legacy_hash`, and `modelspec.hash_sha256` where it is there.
///
/// # Errors
/// When a tensor cannot be computed.
pub fn refresh(tensors: &mut [Tensor], metadata: &mut Vec<(String, String)>) -> Result<()> {
    tensors.sort_by(|(left, _, left_bytes), (right, _, right_bytes)| {
        library_order((&left_bytes.dtype(), left), (&right_bytes.dtype(), right))
    });
    let mut offset = 0;
    let infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            let info = TensorInfo {
                name: name.clone(),
                dtype: bytes.dtype(),
                shape: shape.clone(),
                offset,
                bytes: bytes.count(),
            };
            offset += info.bytes;
            info
        })
        .collect();
    let mut place = safetensors::render_header(&kept(metadata), &infos).len() as u64;
    let (mut whole, mut legacy) = (Sha256::new(), Sha256::new());
    for (_, shape, bytes) in tensors.iter() {
        each(bytes, shape.rows_cols().0, |piece| {
            whole.update(piece);
            let end = place + piece.len() as u64;
            let (first, last) = (place.max(LEGACY.start), end.min(LEGACY.end));
            if first < last {
                let at = |byte: u64| usize::try_from(byte - place).expect("it lies within the piece");
                legacy.update(&piece[at(first)..at(last)]);
            }
            place = end;
        })?;
    }
    let (whole, legacy) = (digits(whole), digits(legacy));
    metadata.retain(|(key, _)| !key.starts_with("sshs_"));
    metadata
        .iter_mut()
        .filter(|(key, _)| key == "modelspec.hash_sha256")
        .for_each(|(_, old)| *old = format!("0x{whole}"));
    metadata.push(("sshs_legacy_hash".into(), legacy[..LEGACY_DIGITS].to_owned()));
    metadata.push(("sshs_model_hash".into(), whole));
    Ok(())
}

fn each(bytes: &Bytes, rows: u64, mut take: impl FnMut(&[u8])) -> Result<()> {
    match bytes {
        Bytes::Held { bytes, .. } => take(bytes),
        Bytes::Stored(stored) => {
            for first in (0..stored.info.bytes).step_by(PIECE_BYTES) {
                take(&stored.read(first, (stored.info.bytes - first).min(PIECE_BYTES as u64))?);
            }
        }
        Bytes::Computed { compute, count, .. } => {
            let rows = usize::try_from(rows).expect("a mapped tensor fits the address space");
            let row_bytes = usize::try_from(*count).expect("a mapped tensor fits the address space").checked_div(rows);
            let mut buffer = Vec::new();
            for first in (0..rows).step_by(ROWS) {
                let last = (first + ROWS).min(rows);
                buffer.resize((last - first) * row_bytes.unwrap_or(0), 0);
                compute.rows(first..last, &mut buffer)?;
                take(&buffer);
            }
        }
    }
    Ok(())
}
