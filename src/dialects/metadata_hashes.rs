//! The hashes that trainers of diffusion adapters write into a header.
//!
//! Facts: sd-scripts `library/train_util.py` (`precalculate_safetensors_hashes`). The tensors are thought of as written anew by the
//! `safetensors` library with the `ss_` keys alone in the header: `sshs_model_hash` is SHA-256 of that file's data, `sshs_legacy_hash`
//! the first digits of SHA-256 of the bytes [`LEGACY`] of it.

use std::cmp::Ordering;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::tensor::Dtype;

/// The bytes of the legacy hash.
pub const LEGACY: Range<u64> = 0x10_0000..0x11_0000;

/// Digits of it.
pub const LEGACY_DIGITS: usize = 8;

/// The order in which the library writes tensors: by element type, the last of its list first, then by name.
pub fn library_order(left: (&Dtype, &str), right: (&Dtype, &str)) -> Ordering {
    right.0.library_place().cmp(&left.0.library_place()).then_with(|| left.1.cmp(right.1))
}

/// The metadata that counts.
pub fn kept(metadata: &[(String, String)]) -> Vec<(String, String)> {
    metadata.iter().filter(|(key, _)| key.starts_with("ss_")).cloned().collect()
}

/// A hash as it is written.
pub fn digits(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
