//! What an output says about its own making: depends on inputs and options alone, on no time, path or machine.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::adapters::Adapter;
use crate::error::Result;
use crate::formats::{Checkpoint, Container, side};
use crate::io::{MappedFile, RECORDED_FILES, name_of, old_record_beside, record_beside};

/// Key under which the metadata of a GGUF file tells how it was made.
pub const PROVENANCE: &str = "lorakit.recipe";

/// File that tells how an output was made.
pub use crate::io::RECORD as SIDECAR;

/// The name of that file beside the output `out`, where the output is one file.
pub fn sidecar_beside(out: &Path) -> PathBuf {
    record_beside(out).file_name().map(PathBuf::from).unwrap_or_default()
}

/// Whether `path` is called like the record of an output that is one file.
pub fn is_record_beside(path: &Path) -> bool {
    path.to_string_lossy().ends_with(&format!(".{SIDECAR}"))
}

/// Bytes that are hashed before their pages are let go.
const HASHED_BYTES: u64 = 16 << 20;

/// BLAKE3 digests of the files of an adapter by name: of its config, and of its weights as they were opened.
///
/// # Errors
/// When a file cannot be read.
pub fn adapter_hashes(adapter: &Adapter) -> Result<Value> {
    let weights: Vec<&MappedFile> = adapter.tensors.files().iter().map(|file| file.map.as_ref()).collect();
    let config = &adapter.config.path;
    let config = if weights.iter().any(|map| map.path() == config) || !config.is_file() {
        None
    } else {
        Some(MappedFile::open(config)?)
    };
    hashes(config.iter().chain(weights))
}

/// The same of the weights of a checkpoint.
///
/// # Errors
/// When a file cannot be read.
pub fn checkpoint_hashes(checkpoint: &Checkpoint) -> Result<Value> {
    hashes(checkpoint.files().iter().map(|file| file.map.as_ref()))
}

fn hashes<'a>(files: impl Iterator<Item = &'a MappedFile>) -> Result<Value> {
    let mut digests = Map::new();
    for file in files {
        let whole = file.whole()?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < whole.len() {
            let bytes = HASHED_BYTES.min(whole.len() - offset);
            hasher.update(whole.slice(offset, bytes)?);
            whole.release(offset, bytes);
            offset += bytes;
        }
        digests.insert(name_of(file.path()), hasher.finalize().to_hex().to_string().into());
    }
    Ok(digests.into())
}

/// The record of the output that the model `checkpoint` is, if it is one, without the list of its files.
///
/// # Errors
/// When it is there and cannot be read.
pub fn earlier_record(checkpoint: &Checkpoint) -> Result<Option<Value>> {
    let mut places = vec![checkpoint.directory().join(SIDECAR)];
    if *checkpoint.container() == Container::File {
        // A file of its own has a record beside it, an older one under a name that it may share with another.
        places.splice(0..0, [record_beside(checkpoint.root()), old_record_beside(checkpoint.root())]);
    }
    for path in places {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(mut record) = side::read(path.parent().unwrap_or(Path::new("")), &name)? {
            record.shift_remove(RECORDED_FILES);
            return Ok(Some(record.into()));
        }
    }
    Ok(None)
}
