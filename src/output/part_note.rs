//! What a part of an output leaves for `finish`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::options::Part;
use crate::error::{Error, Result};
use crate::formats::json;
use crate::io::{plain_files, stays_inside};

/// Parts that a message names.
const LISTED: usize = 10;

/// What a part wrote, of which plan and from which inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartNote {
    /// Digest of the whole plan: parts of different plans do not fit together.
    pub plan: String,
    /// Which part, from 1.
    pub part: u32,
    /// Of how many.
    pub parts: u32,
    /// Weight files this part wrote, each with the digest of its header.
    pub weights: Vec<NotedFile>,
    /// Files beside the weights, which every part writes, each with the digest of all of it.
    pub beside: Vec<NotedFile>,
    /// What the output is made from, beside what its headers tell.
    pub inputs: Vec<Fingerprint>,
}

/// A file that a part wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotedFile {
    /// Path below the output.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// How many of its first bytes the digest is of.
    pub hashed: u64,
    /// The digest.
    pub blake3: String,
}

impl NotedFile {
    /// A file of `bytes` bytes that begins with `start`.
    pub fn of(name: String, bytes: u64, start: &[u8]) -> Self {
        Self { name, bytes, hashed: start.len() as u64, blake3: blake3::hash(start).to_hex().to_string() }
    }
}

/// Name of a part.
pub fn part_name(part: Part) -> String {
    format!("{}-of-{}", part.part, part.parts)
}

/// File name of its note.
pub fn note_name(part: Part) -> String {
    format!("{}.json", part_name(part))
}

/// The notes in `directory` for the output `out`, all of one run and none missing, in order.
///
/// # Errors
/// When there are none, one is malformed or missing, or they do not belong together.
pub fn read_all(directory: &Path, out: &Path) -> Result<Vec<PartNote>> {
    let mut notes = Vec::new();
    for name in plain_files(directory)? {
        notes.push(read(&directory.join(&name), &name).map_err(|error| error.hint(discarding(out)))?);
    }
    notes.sort_by_key(|note| (note.parts, note.part));
    let Some(first) = notes.first() else {
        return Err(Error::unsupported(out, "no part of this output has been done"));
    };
    if let Some(other) = notes.iter().find(|note| note.parts != first.parts) {
        let what = format!("holds notes of a run in {} parts and of one in {}", first.parts, other.parts);
        return Err(Error::unsupported(directory, what).hint(discarding(out)));
    }
    notes.iter().try_for_each(|note| check_pair(first, note, out))?;
    let done = |number: &u32| notes.iter().any(|note| note.part == *number);
    let missing: Vec<String> =
        (1..=first.parts).filter(|number| !done(number)).map(|part| format!("{part}/{}", first.parts)).collect();
    if !missing.is_empty() {
        let more = if missing.len() > LISTED { " …" } else { "" };
        let listed = missing.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let what = format!("{} of {} parts have not been done: {listed}{more}", missing.len(), first.parts);
        return Err(Error::unsupported(out, what).hint("run each of them with `--part`, then finish again"));
    }
    check_files(&notes, directory)?;
    Ok(notes)
}

/// The way out of parts that do not belong together.
pub fn discarding(out: &Path) -> String {
    format!(
        "run the parts again with the same inputs and options; `lorakit finish {} --discard` throws away what there is",
        out.display()
    )
}

fn read(path: &Path, name: &Path) -> Result<PartNote> {
    let malformed = |at: &str, problem: String| Error::malformed(path, at, problem);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().replace("-of-", "/");
    let part = stem.parse::<Part>().ok().filter(|part| Path::new(&note_name(*part)) == name);
    let part = part.ok_or_else(|| malformed("name", "is not the note of a part".into()))?;
    let note: PartNote = serde_json::from_value(json::read_object(path)?.into())
        .map_err(|problem| malformed("JSON", format!("is not the note of a part: {problem}")))?;
    if (note.part, note.parts) != (part.part, part.parts) {
        let problem =
            format!("says part {} of {}, and its name says {} of {}", note.part, note.parts, part.part, part.parts);
        return Err(malformed("JSON", problem));
    }
    Ok(note)
}

/// Fails when two notes are of different outputs.
fn check_pair(first: &PartNote, other: &PartNote, out: &Path) -> Result<()> {
    let mismatch = |problem: String| {
        let name = |note: &PartNote| format!("part {}", part_name(Part { part: note.part, parts: note.parts }));
        Err(Error::mismatch(name(other), name(first), problem).hint(discarding(out)))
    };
    let pairs = || first.inputs.iter().zip(&other.inputs);
    if other.plan != first.plan {
        let differs = pairs().find(|(left, right)| !left.agrees(right));
        let why = differs.map_or(String::new(), |(left, right)| match left.bytes == right.bytes {
            true => format!(": `{}` has other contents", right.name),
            false => format!(": `{}` had {} bytes, then {}", right.name, left.bytes, right.bytes),
        });
        return mismatch(format!("they were made from different inputs or options{why}"));
    }
    if let Some((input, _)) = pairs().find(|(left, right)| left.was_written_to(right)) {
        return mismatch(format!("the input `{}` was written to between them", input.name));
    }
    Ok(())
}

/// Fails when the files of the notes are none of an output, or two parts claim one of them.
fn check_files(notes: &[PartNote], directory: &Path) -> Result<()> {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for note in notes {
        for file in note.weights.iter().chain(&note.beside) {
            if !stays_inside(Path::new(&file.name)) {
                let path = directory.join(note_name(Part { part: note.part, parts: note.parts }));
                return Err(Error::malformed(path, "file name", format!("`{}` is not inside the output", file.name)));
            }
        }
        for file in &note.weights {
            if let Some(other) = seen.insert(&file.name, note.part) {
                let (left, right) = (format!("part {other}"), format!("part {}", note.part));
                return Err(Error::mismatch(left, right, format!("both claim to have written `{}`", file.name)));
            }
        }
    }
    if let Some(note) = notes.iter().find(|note| note.beside != notes[0].beside) {
        let (left, right) = (format!("part {}", note.part), format!("part {}", notes[0].part));
        return Err(Error::mismatch(left, right, "they wrote different files beside the weights"));
    }
    Ok(())
}

/// All files of the output, by path.
pub fn files(notes: &[PartNote]) -> BTreeMap<PathBuf, &NotedFile> {
    let beside = notes.first().map_or(&[][..], |note| &note.beside);
    notes.iter().flat_map(|note| &note.weights).chain(beside).map(|file| (PathBuf::from(&file.name), file)).collect()
}
