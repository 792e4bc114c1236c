//! A checkpoint in one file or several.
//!
//! `<prefix>-00002-of-00003.gguf` is the second of three; every one has `split.no` (from 0), `split.count` and
//! `split.tensors.count` (of all), and the first has the metadata of the whole. Source: llama.cpp `gguf-split`.

use std::ops::Range;
use std::path::Path;

use foldhash::HashMap;

use super::file::GgufFile;
use super::metadata::{Metadata, Value};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::TensorInfo;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Most files of one checkpoint; five digits name them.
const MAX_FILES: u64 = 99_999;

/// An opened checkpoint.
#[derive(Debug)]
pub struct Gguf {
    files: Vec<GgufFile>,
    metadata: Metadata,
    by_name: HashMap<String, (usize, usize)>,
}

/// The file name of part `number` (from 0) of `count`.
pub fn split_name(prefix: &str, number: u64, count: u64) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", number + 1)
}

/// What the files of a checkpoint have in common in their names; of a single file its stem.
pub fn split_prefix(name: &str) -> &str {
    parse_name(name).map_or_else(|| name.strip_suffix(".gguf").unwrap_or(name), |(prefix, ..)| prefix)
}

/// (prefix, number from 0, count), where a file is named as part of several.
pub fn parse_name(name: &str) -> Option<(&str, u64, u64)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(number) || !digits(count) {
        return None;
    }
    let (number, count): (u64, u64) = (number.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&number).then_some((prefix, number - 1, count))
}

impl Gguf {
    /// Opens `path`, and where it is one of several files all of them.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the files do not belong together.
    pub fn open(path: &Path) -> Result<Self> {
        let named = GgufFile::open(path)?;
        let count = named.header.metadata.number(COUNT).unwrap_or(1);
        if count <= 1 {
            return Self::assemble(vec![named]);
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let number = named.header.metadata.number(NUMBER);
        let parsed = parse_name(&name).filter(|(_, at, of)| Some(*at) == number && *of == count && *of <= MAX_FILES);
        let Some((prefix, at, _)) = parsed else {
            let problem =
                format!("the file is part {} of {count} by its metadata", number.map_or(0, |at| at.saturating_add(1)));
            let hint = format!("such a file is called like `{}`", split_name("model", 0, count));
            return Err(Error::malformed(path, format!("name `{name}`"), problem).hint(hint));
        };
        let mut named = Some(named);
        let mut files = Vec::new();
        for part in 0..count {
            let file = match named.take_if(|_| part == at) {
                Some(file) => file,
                None => GgufFile::open(&path.with_file_name(split_name(prefix, part, count)))?,
            };
            check_part(&file, part, count)?;
            files.push(file);
        }
        Self::assemble(files)
    }

    fn assemble(files: Vec<GgufFile>) -> Result<Self> {
        let mut by_name = HashMap::default();
        for (at, file) in files.iter().enumerate() {
            for (position, tensor) in file.header.tensors.iter().enumerate() {
                if let Some((other, _)) = by_name.insert(tensor.name.clone(), (at, position)) {
                    let problem = format!("lies in {} as well", files[other].map.path().display());
                    return Err(Error::malformed(file.map.path(), format!("tensor `{}`", tensor.name), problem));
                }
            }
        }
        let first = &files[0];
        if let Some(all) = first.header.metadata.number(TENSORS).filter(|all| *all != by_name.len() as u64) {
            let problem = format!("is {all}, the {} files have {} tensors", files.len(), by_name.len());
            return Err(Error::malformed(first.map.path(), format!("key `{TENSORS}`"), problem));
        }
        let mut metadata = first.header.metadata.clone();
        metadata.retain(|key| ![NUMBER, COUNT, TENSORS].contains(&key));
        Ok(Self { files, metadata, by_name })
    }

    /// The metadata of the whole, and the files in order.
    pub fn into_parts(self) -> (Metadata, Vec<GgufFile>) {
        (self.metadata, self.files)
    }

    /// The files in order.
    pub fn files(&self) -> &[GgufFile] {
        &self.files
    }

    /// The metadata of the whole, without what says that it was split.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.text("general.architecture")
    }

    /// All tensors, file by file.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.files.iter().flat_map(|file| &file.header.tensors)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// As [`GgufFile::stored`].
    pub fn find(&self, name: &str) -> Option<Result<Stored>> {
        let &(file, position) = self.by_name.get(name)?;
        Some(self.files[file].stored(position))
    }
}

fn check_part(file: &GgufFile, part: u64, count: u64) -> Result<()> {
    for (key, expected) in [(NUMBER, part), (COUNT, count)] {
        let found = file.header.metadata.number(key);
        if found != Some(expected) {
            let found = found.map_or("missing".into(), |found| found.to_string());
            let problem =
                format!("is {found}, the file is part {} of {count} by its name and needs {expected}", part + 1);
            return Err(Error::malformed(file.map.path(), format!("key `{key}`"), problem));
        }
    }
    Ok(())
}

/// Cuts a checkpoint into files of at most `max_bytes` of tensors each (more where a single tensor has more): for each
/// its metadata and which of `tensors` it has. One file stays as it is.
///
/// # Errors
/// When there would be more files than can be numbered.
pub fn cut(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorInfo],
    max_bytes: u64,
) -> Result<Vec<(Metadata, Range<usize>)>> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0_u64);
    for (at, tensor) in tensors.iter().enumerate() {
        if at > start && bytes.saturating_add(tensor.bytes) > max_bytes {
            ranges.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes = bytes.saturating_add(tensor.bytes);
    }
    ranges.push(start..tensors.len());
    if ranges.len() == 1 {
        return Ok(vec![(metadata.clone(), 0..tensors.len())]);
    }
    let too_many = |what: &str, got: usize, max: u64| Error::limit(path, what, got as u64, max);
    let count = u16::try_from(ranges.len()).map_err(|_| too_many("the number of files", ranges.len(), MAX_FILES))?;
    let all = i32::try_from(tensors.len()).map_err(|_| too_many("the number of tensors", tensors.len(), 1 << 31))?;
    let parts = (0..count).zip(ranges).map(|(number, range)| {
        let mut part = if number == 0 { metadata.clone() } else { Metadata::new() };
        if let Some(alignment) = metadata.get(super::header::ALIGNMENT) {
            part.set(super::header::ALIGNMENT, alignment.clone());
        }
        part.set(NUMBER, Value::U16(number));
        part.set(COUNT, Value::U16(count));
        part.set(TENSORS, Value::I32(all));
        (part, range)
    });
    Ok(parts.collect())
}
