//! What an output says about its own making: depends on inputs and options alone, on no time, path or machine.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::Result;
use crate::io::{MappedFile, name_of};

/// File that tells how an output was made.
pub const SIDECAR: &str = "lorakit.json";

/// The name of that file beside the output `out`, where the output is one file.
pub fn sidecar_beside(out: &Path) -> PathBuf {
    PathBuf::from(format!("{}.{SIDECAR}", out.file_stem().unwrap_or_default().to_string_lossy()))
}

/// Bytes that are hashed before their pages are let go.
const HASHED_BYTES: u64 = 16 << 20;

/// BLAKE3 digests of files by name.
///
/// # Errors
/// When a file cannot be read.
pub fn hashes(paths: &[PathBuf]) -> Result<Value> {
    let mut digests = Map::new();
    for path in paths {
        let file = MappedFile::open(path)?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < file.len() {
            let bytes = HASHED_BYTES.min(file.len() - offset);
            hasher.update(file.slice(offset, bytes)?);
            file.release(offset, bytes);
            offset += bytes;
        }
        digests.insert(name_of(path), hasher.finalize().to_hex().to_string().into());
    }
    Ok(digests.into())
}
