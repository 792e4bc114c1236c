//! `finish`: the parts of a run, checked and put in place.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::formats::gguf::{Header, looks_like_gguf};
use crate::formats::json;
use crate::formats::safetensors::read_header;
use crate::io::{MappedFile, PartsDir};
use crate::output::Part;
use crate::output::files::{PartNote, note_name};

/// What was put together.
#[derive(Debug, Clone, Serialize)]
pub struct FinishReport {
    /// Where the result lies.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: std::path::PathBuf,
    /// Number of parts.
    pub parts: u32,
    /// Number of weight files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Checks that all parts of the output `out` are there and belong together, and makes them the output.
///
/// # Errors
/// When a part is missing or of another plan, or a file is not what its part wrote.
pub fn finish(out: &Path, force: bool, durable: bool) -> Result<FinishReport> {
    let shared = PartsDir::open_existing(out, "finish", force)?;
    let notes = read_notes(shared.notes(), out)?;
    let first = &notes[0].1;
    for (part, note) in &notes {
        if note.plan != first.plan || note.parts != first.parts {
            let (left, right) = (format!("part {}", note_name(*part)), format!("part {}", note_name(notes[0].0)));
            let problem = "they were made from different inputs or options";
            return Err(
                Error::mismatch(left, right, problem).hint("run the parts again with the same inputs and options")
            );
        }
    }
    let missing: Vec<String> = (1..=first.parts)
        .filter(|number| !notes.iter().any(|(part, _)| part.part == *number))
        .map(|part| format!("{part}/{}", first.parts))
        .collect();
    if !missing.is_empty() {
        let what = format!("{} of {} parts have not been done: {}", missing.len(), first.parts, missing.join(", "));
        return Err(Error::unsupported(out, what).hint("run each of them with `--part`, then finish again"));
    }
    let mut report = FinishReport { out: out.into(), parts: first.parts, files: 0, bytes: 0 };
    for (name, bytes) in notes.iter().flat_map(|(_, note)| &note.files) {
        let file = MappedFile::open(&shared.path().join(name))?;
        if file.len() != *bytes {
            let problem = format!("has {} bytes, its part wrote {bytes}", file.len());
            return Err(Error::malformed(file.path(), "length", problem));
        }
        if looks_like_gguf(file.bytes()) {
            Header::read(file.path(), file.bytes())?;
        } else {
            read_header(file.path(), file.bytes())?;
        }
        report.files += 1;
        report.bytes += bytes;
    }
    shared.commit_directory(durable)?;
    Ok(report)
}

fn read_notes(directory: &Path, out: &Path) -> Result<Vec<(Part, PartNote)>> {
    let cannot = |source| Error::io(directory, "cannot list", source);
    let mut notes = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().replace("-of-", "/");
        let part: Part = stem.parse().map_err(|_| Error::malformed(&path, "name", "is not the note of a part"))?;
        let object = json::read_object(&path)?;
        let note = serde_json::from_value(object.into())
            .map_err(|problem| Error::malformed(&path, "JSON", problem.to_string()))?;
        notes.push((part, note));
    }
    notes.sort_by_key(|(part, _)| (part.parts, part.part));
    if notes.is_empty() {
        return Err(Error::unsupported(out, "no part of this output has been done"));
    }
    Ok(notes)
}
