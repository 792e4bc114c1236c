//! What tells an input of one part from that of another: its length and a digest of its header and of blocks of all its tensors.
//!
//! Reading all of a model in every part would cost as much as the merge. A model that was trained on, merged or cast differs in
//! every tensor; so a block of each tensor is looked at, and of large ones a block of every stretch. What changed elsewhere in a file
//! is told by its time of modification, where parts read the same file and not copies of it
//! (`docs/inside/decisions/0014-what-joins-parts.md`).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::Part;
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, WeightFile};
use crate::interrupt;
use crate::io::MappedFile;
use crate::limits::MAX_HEADER_BYTES;

/// Bytes of a block that is looked at.
const BLOCK_BYTES: u64 = 4 << 10;

/// One block is looked at in every stretch of a tensor of this length.
const STRETCH_BYTES: u64 = 64 << 20;

/// Blocks of a file whose tensors do not lie in it as they are.
const BLOCKS_OF_PACKED: u64 = 256;

/// Bytes at the end of a file that are looked at: zip archives have their list of contents there.
const TAIL_BYTES: u64 = 64 << 10;

/// Bytes around what was looked at whose pages are let go: the system maps more than was asked for.
const AROUND_BYTES: u64 = 128 << 10;

/// Bytes that are hashed before their pages are let go.
const HASHED_BYTES: u64 = 16 << 20;

/// An input as one part found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Name of the file.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Digest of what was looked at.
    pub blake3: String,
    /// (device, inode): the same pair is the same file on one machine.
    pub identity: (u64, u64),
    /// When it was written to last, in seconds and nanoseconds.
    pub modified: (i64, i64),
}

impl Fingerprint {
    /// Whether both are of equal contents, as far as was looked.
    pub fn agrees(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.blake3 == other.blake3
    }

    /// Whether both are of one file, which was written to in between.
    pub fn was_written_to(&self, other: &Self) -> bool {
        self.identity == other.identity && self.modified != other.modified
    }
}

/// The fingerprints of `models` and their configs, for the notes of `part`; none where the output is written in one piece.
///
/// # Errors
/// When a file cannot be read, or the run is interrupted.
pub fn fingerprints<'a>(
    part: Option<Part>,
    models: impl IntoIterator<Item = &'a Checkpoint>,
) -> Result<Vec<Fingerprint>> {
    let mut found = Vec::new();
    for model in models.into_iter().filter(|_| part.is_some()) {
        found.extend(model.files().iter().map(of_weights).collect::<Result<Vec<_>>>()?);
        let config = model.directory().join("config.json");
        if config.is_file() {
            found.push(of_whole(&config)?);
        }
    }
    Ok(found)
}

/// The digest of all of a file, as text.
///
/// # Errors
/// When it cannot be read, or the run is interrupted.
pub fn digest_of(file: &MappedFile) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    while offset < file.len() {
        interrupt::check()?;
        let bytes = HASHED_BYTES.min(file.len() - offset);
        hasher.update(file.slice(offset, bytes)?);
        file.release(offset, bytes);
        offset += bytes;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn of_whole(path: &Path) -> Result<Fingerprint> {
    let file = MappedFile::open(path)?;
    let digest = digest_of(&file)?;
    fingerprint(&file, digest)
}

fn of_weights(file: &WeightFile) -> Result<Fingerprint> {
    let map = &file.map;
    let mut hasher = blake3::Hasher::new();
    for (start, bytes) in looked_at(file) {
        interrupt::check()?;
        hasher.update(&start.to_le_bytes()).update(map.slice(start, bytes)?);
        let first = start.saturating_sub(AROUND_BYTES);
        map.release(first, start + bytes + AROUND_BYTES - first);
    }
    fingerprint(map, hasher.finalize().to_hex().to_string())
}

fn fingerprint(file: &MappedFile, blake3: String) -> Result<Fingerprint> {
    let found = file.file().metadata().map_err(|source| Error::io(file.path(), "cannot examine", source))?;
    Ok(Fingerprint {
        name: file.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        bytes: found.len(),
        blake3,
        identity: (found.dev(), found.ino()),
        modified: (found.mtime(), found.mtime_nsec()),
    })
}

/// The places of a file that are looked at, start and length, in order.
fn looked_at(file: &WeightFile) -> Vec<(u64, u64)> {
    let length = file.map.len();
    let tensors = file.own().into_iter();
    let mut spans: Vec<(u64, u64)> =
        tensors.filter(|stored| !stored.map.is_held()).map(|stored| (stored.start, stored.info.bytes)).collect();
    if spans.is_empty() {
        let step = length.div_ceil(BLOCKS_OF_PACKED).max(BLOCK_BYTES);
        spans = (0..BLOCKS_OF_PACKED).map(|at| (at * step, step)).collect();
    }
    let head = spans.iter().map(|(start, _)| *start).min().unwrap_or(length).clamp(BLOCK_BYTES, MAX_HEADER_BYTES);
    let mut places = BTreeMap::from([(0, head)]);
    let tail = length.saturating_sub(TAIL_BYTES);
    places.insert(tail.max(1), length);
    for (start, bytes) in spans {
        for stretch in (0..bytes).step_by(usize::try_from(STRETCH_BYTES).unwrap_or(usize::MAX)) {
            // The middle, so that neither the zeros of padding nor the first rows alone are seen.
            let long = STRETCH_BYTES.min(bytes - stretch);
            let first = start + stretch + (long / 2).saturating_sub(BLOCK_BYTES / 2);
            places.insert(first, first + BLOCK_BYTES.min(long));
        }
    }
    let within = |(start, end): (u64, u64)| (start < end.min(length)).then(|| (start, end.min(length) - start));
    places.into_iter().filter_map(within).collect()
}

/// The digests of the files `sources`, which are copied whole.
///
/// # Errors
/// When one cannot be read, or the run is interrupted.
pub fn of_copied(sources: &[(PathBuf, PathBuf)]) -> Result<Vec<(u64, String)>> {
    let each = |(_, source): &(PathBuf, PathBuf)| {
        let file = MappedFile::open(source)?;
        Ok((file.len(), digest_of(&file)?))
    };
    sources.iter().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::layout::OutputFile;
    use crate::tensor::{Dtype, Shape, TensorInfo};

    const LENGTHS: [u64; 4] = [100_000, 3, 0, 20_000];

    fn model(directory: &Path, change: Option<u64>) -> Fingerprint {
        let tensors = LENGTHS.iter().enumerate().map(|(at, bytes)| TensorInfo {
            name: format!("t{at}"),
            dtype: Dtype::U8,
            shape: Shape::from(vec![*bytes]),
            offset: 0,
            bytes: *bytes,
        });
        let file = OutputFile::new("model.safetensors".into(), &[], tensors.collect());
        let mut contents = file.header.clone();
        contents.extend((0..LENGTHS.iter().sum::<u64>()).map(|at| (at % 251).to_le_bytes()[0]));
        if let Some(at) = change {
            contents[file.header.len() + usize::try_from(at).expect("small")] ^= 1;
        }
        std::fs::write(directory.join("model.safetensors"), contents).expect("written");
        let checkpoint = Checkpoint::open(directory).expect("a model");
        let part = Some(Part { part: 1, parts: 2 });
        let found = fingerprints(part, [&checkpoint]).expect("readable");
        assert_eq!(found.len(), 1);
        assert!(fingerprints(None, [&checkpoint]).expect("not read").is_empty());
        found.into_iter().next().expect("one")
    }

    #[test]
    fn a_tensor_that_differs_is_seen_and_copies_agree() {
        let (left, right) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        let whole = model(left.path(), None);
        let copy = model(right.path(), None);
        assert!(whole.agrees(&copy) && !whole.was_written_to(&copy));
        // The middle of the first tensor, the second, the middle of the last, the end.
        for at in [50_000, 100_001, 110_003, 120_002] {
            assert!(!whole.agrees(&model(right.path(), Some(at))), "byte {at}");
        }
        std::fs::write(right.path().join("model.safetensors"), b"").expect("written");
    }

    #[test]
    fn a_file_that_was_written_to_is_known_by_its_time() {
        let directory = tempfile::tempdir().expect("made");
        let before = model(directory.path(), None);
        let file = std::fs::File::options().write(true).open(directory.path().join("model.safetensors"));
        file.expect("open").set_modified(std::time::SystemTime::UNIX_EPOCH).expect("set");
        let checkpoint = Checkpoint::open(directory.path()).expect("a model");
        let after = fingerprints(Some(Part { part: 1, parts: 1 }), [&checkpoint]).expect("readable").remove(0);
        assert!(before.agrees(&after) && before.was_written_to(&after));
    }
}
