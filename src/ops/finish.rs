//! `finish`: the parts of a run, checked and put in place; or thrown away.
//!
//! Notes and files lie where others may write, and parts may have run at different times on different machines. So nothing is
//! taken on trust: every file is there, no other is, none is a link, and each has the length and the digest that its part noted,
//! of its header (which holds the recipe) or of all of it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::formats::gguf::{Header, looks_like_gguf};
use crate::formats::safetensors::read_header;
use crate::io::{MappedFile, PartsDir, plain_files, sweep_leftovers};
use crate::output::part_note::{NotedFile, discarding, files, read_all};

/// What was put together.
#[derive(Debug, Clone, Serialize)]
pub struct FinishReport {
    /// Where the result lies.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Number of parts.
    pub parts: usize,
    /// Number of weight files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What was thrown away.
#[derive(Debug, Clone, Serialize)]
pub struct DiscardReport {
    /// The output that the parts would have become.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Number of parts that were done.
    pub discarded: usize,
}

/// Checks that all parts of the output `out` are there and belong together, and makes them the output.
///
/// # Errors
/// When a part is missing or of another plan, or a file is not what its part wrote.
pub fn finish(out: &Path, force: bool, durable: bool) -> Result<FinishReport> {
    if let Some(notes) = PartsDir::left_notes(out) {
        // An earlier call was killed between putting the output in place and removing the notes.
        let report = check(&notes, out, out);
        sweep_leftovers(out);
        return report;
    }
    // Or while it removed them: then nothing but the output is left that could be checked.
    sweep_leftovers(out);
    let shared = PartsDir::open_last(out, force)?;
    let report = check(shared.notes(), shared.path(), out)?;
    shared.commit_directory(durable)?;
    Ok(report)
}

/// Throws away the parts of `out` that were done so far.
///
/// # Errors
/// When there are none, or one is being written.
pub fn discard(out: &Path) -> Result<DiscardReport> {
    PartsDir::discard(out).map(|discarded| DiscardReport { out: out.into(), discarded })
}

/// Checks the files in `place` against the notes of all parts.
fn check(notes: &Path, place: &Path, out: &Path) -> Result<FinishReport> {
    let notes = read_all(notes, out)?;
    let noted = files(&notes);
    let found = plain_files(place)?;
    if let Some(strange) = found.iter().find(|path| !noted.contains_key(*path)) {
        let what = format!("holds `{}`, which none of these parts wrote", strange.display());
        return Err(Error::unsupported(place, what).hint(format!("remove it, or {}", discarding(out))));
    }
    for (path, file) in &noted {
        if found.binary_search(path).is_err() {
            let what = format!("lacks `{}`, which a part wrote", path.display());
            return Err(Error::unsupported(place, what).hint(discarding(out)));
        }
        check_file(&place.join(path), file, out)?;
    }
    let weights = || notes.iter().flat_map(|note| &note.weights);
    for file in weights() {
        let file = MappedFile::open(&place.join(&file.name))?;
        if looks_like_gguf(file.bytes()) {
            Header::read(file.path(), file.bytes())?;
        } else {
            read_header(file.path(), file.bytes())?;
        }
    }
    Ok(FinishReport {
        out: out.into(),
        parts: notes.len(),
        files: weights().count(),
        bytes: weights().map(|file| file.bytes).sum(),
    })
}

/// Checks that a file is what its part wrote.
fn check_file(path: &Path, noted: &NotedFile, out: &Path) -> Result<()> {
    let file = MappedFile::open(path)?;
    if file.len() != noted.bytes {
        let problem = format!("has {} bytes, its part wrote {}", file.len(), noted.bytes);
        return Err(Error::malformed(path, "length", problem).hint(discarding(out)));
    }
    let digest = blake3::hash(file.slice(0, noted.hashed)?);
    file.release(0, noted.hashed);
    if digest.to_hex().as_str() == noted.blake3 {
        return Ok(());
    }
    let what = if noted.hashed < noted.bytes { "its header, with the recipe," } else { "it" };
    let problem = format!("{what} is not what its part noted: another run has written it since");
    Err(Error::malformed(path, "contents", problem).hint(discarding(out)))
}
