//! The hashes that trainers write into a header, computed again from the file.
//!
//! Which bytes they cover: `dialects/metadata_hashes.rs`; `modelspec.hash_sha256` (sd-scripts `library/sai_model_spec.py`) is SHA-256 of the data as it lies
//! in the file.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::dialects::metadata_hashes::{LEGACY, LEGACY_DIGITS, digits, kept, library_order};
use crate::error::Result;
use crate::formats::Checkpoint;
use crate::io::MappedFile;
use crate::tensor::TensorInfo;

/// Bytes that are read before they are let go.
const RELEASED_BYTES: u64 = 16 << 20;

/// A hash the header holds, or the one of the whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HashFacts {
    /// Its key in the header; `sha256` for the file.
    pub key: String,
    /// As the header has it.
    pub stored: Option<String>,
    /// As the tensors give it; `None` if it was not computed.
    pub computed: Option<String>,
    /// Whether the two agree; `None` where that cannot be told.
    pub matches: Option<bool>,
}

/// The hashes of a single file that has some; computed from its bytes only with `read`.
///
/// # Errors
/// When the file is no longer there as it was opened.
pub fn find(checkpoint: &Checkpoint, read: bool) -> Result<Vec<HashFacts>> {
    let [file] = checkpoint.files() else { return Ok(Vec::new()) };
    let (header, map) = (&file.header, file.map.as_ref());
    let mut found = Vec::new();
    let stored = |key: &str| header.metadata.iter().find(|(own, _)| own == key).map(|(_, text)| text.trim().to_owned());
    let data = Data { map, start: header.data_start };
    if let Some(stored) = stored("sshs_model_hash") {
        let computed = read.then(|| data.hash(&canonical(&header.tensors))).transpose()?;
        found.push(compare("sshs_model_hash", stored, computed));
    }
    if let Some(stored) = stored("sshs_legacy_hash") {
        let computed = if read { data.legacy(&header.metadata, &header.tensors)? } else { None };
        found.push(compare("sshs_legacy_hash", stored, computed));
    }
    if let Some(stored) = stored("modelspec.hash_sha256") {
        let order: Vec<&TensorInfo> = header.tensors.iter().collect();
        let computed = read.then(|| data.hash(&order)).transpose()?;
        found.push(compare("modelspec.hash_sha256", stored, computed));
    }
    if read && !found.is_empty() {
        let mut whole = Sha256::new();
        feed(map, 0, map.len(), &mut whole)?;
        found.push(HashFacts { key: "sha256".into(), stored: None, computed: Some(digits(whole)), matches: None });
    }
    Ok(found)
}

fn compare(key: &str, stored: String, computed: Option<String>) -> HashFacts {
    let plain = stored.trim_start_matches("0x").to_lowercase();
    // Written with `0x` it may be the hash of the tensors in the order of a dictionary (LyCORIS, ModelSpec in sd-scripts), which the
    // file does not keep: then only a match tells.
    let is_open = stored.starts_with("0x");
    let matches = computed.as_ref().map(|computed| *computed == plain).filter(|same| *same || !is_open);
    HashFacts { key: key.to_owned(), stored: Some(stored), computed, matches }
}

/// The order in which the library writes tensors.
fn canonical(tensors: &[TensorInfo]) -> Vec<&TensorInfo> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by(|left, right| library_order((&left.dtype, &left.name), (&right.dtype, &right.name)));
    order
}

struct Data<'a> {
    map: &'a MappedFile,
    start: u64,
}

impl Data<'_> {
    fn hash(&self, order: &[&TensorInfo]) -> Result<String> {
        let mut hash = Sha256::new();
        for tensor in order {
            feed(self.map, self.start + tensor.offset, tensor.bytes, &mut hash)?;
        }
        Ok(digits(hash))
    }

    /// `None` where the header alone would reach into the bytes that are hashed.
    fn legacy(&self, metadata: &[(String, String)], tensors: &[TensorInfo]) -> Result<Option<String>> {
        let order = canonical(tensors);
        let mut offset = 0;
        let written: Vec<TensorInfo> = order
            .iter()
            .map(|tensor| {
                let written = TensorInfo { offset, ..(*tensor).clone() };
                offset += tensor.bytes;
                written
            })
            .collect();
        let front = crate::formats::safetensors::render_header(&kept(metadata), &written).len() as u64;
        if front > LEGACY.start {
            return Ok(None);
        }
        let (first, last) = (LEGACY.start - front, LEGACY.end - front);
        let mut hash = Sha256::new();
        for (tensor, written) in order.iter().zip(&written) {
            let (begin, end) = (written.offset.max(first), (written.offset + written.bytes).min(last));
            if begin < end {
                feed(self.map, self.start + tensor.offset + (begin - written.offset), end - begin, &mut hash)?;
            }
        }
        Ok(Some(digits(hash)[..LEGACY_DIGITS].to_owned()))
    }
}

fn feed(map: &MappedFile, start: u64, bytes: u64, hash: &mut Sha256) -> Result<()> {
    let mut done = 0;
    while done < bytes {
        let piece = (bytes - done).min(RELEASED_BYTES);
        hash.update(map.slice(start + done, piece)?);
        if piece == RELEASED_BYTES {
            map.release(start + done, piece);
        }
        done += piece;
    }
    Ok(())
}
