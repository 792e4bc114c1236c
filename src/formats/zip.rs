//! The directory of a zip archive, so that what is stored in it can be mapped where it lies.
//!
//! | record | bytes | meaning |
//! |---|---|---|
//! | end (`PK56`) | last 22 + comment | entries u16 @10, directory length u32 @12 and offset u32 @16; all ones: see zip64 |
//! | zip64 locator (`PK67`) | 20 before the end | offset of the zip64 end u64 @8 |
//! | zip64 end (`PK66`) | | entries u64 @32, directory length u64 @40 and offset u64 @48 |
//! | directory entry (`PK12`) | 46 + n + m + k | flags @8, method @10, compressed u32 @20, size u32 @24, n, m, k u16 @28, local header u32 @42, name, extra, comment |
//! | local header (`PK34`) | 30 + n + m | n, m u16 @26, name, extra, then the data |
//!
//! Source: PKWARE APPNOTE 6.3.10. Sizes are those of the directory, as in every reader. Entries that lie over each other are
//! refused, so an archive holds no more stored bytes than its file has.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use miniz_oxide::inflate::decompress_to_vec_with_limit;

use super::held::Budget;
use crate::error::{Error, Result};

/// Longest comment behind the end record.
const MAX_COMMENT: usize = 0xffff;

/// Length of the end record.
const END_BYTES: usize = 22;

/// Length of the zip64 locator.
const LOCATOR_BYTES: usize = 20;

/// Length of a directory entry without its texts.
const ENTRY_BYTES: usize = 46;

/// Length of a local header without its texts.
const LOCAL_BYTES: u64 = 30;

/// Method of entries that are stored as they are.
const STORED: u16 = 0;

/// Method of entries that are compressed with deflate.
const DEFLATED: u16 = 8;

/// The extra field with 64-bit numbers.
const ZIP64_EXTRA: u16 = 1;

/// An archive whose directory was read.
#[derive(Debug)]
pub struct Archive<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    entries: Vec<Entry<'a>>,
    by_name: HashMap<&'a str, usize>,
}

/// One entry as its directory describes it.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Path inside the archive.
    pub name: &'a str,
    /// Bytes when it is decompressed.
    pub size: u64,
    compressed: u64,
    method: u16,
    encrypted: bool,
    header: u64,
    /// No byte of it lies at or behind this one.
    end: u64,
}

impl<'a> Archive<'a> {
    /// Reads the directory of the archive `path` whose bytes are `bytes`. The data are not touched.
    ///
    /// # Errors
    /// `Malformed`, with the place, when the directory does not describe the file.
    pub fn read(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let (count, directory, directory_at) = find_directory(path, bytes)?;
        let mut entries = Vec::new();
        let mut rest = directory;
        while !rest.is_empty() {
            let at = directory_at + (directory.len() - rest.len()) as u64;
            let (entry, used) = read_entry(path, rest, at)?;
            entries.push(entry);
            rest = &rest[used..];
        }
        if entries.len() as u64 != count {
            let problem = format!("the archive has {} entries, its end says {count}", entries.len());
            return Err(Error::malformed(path, format!("byte {directory_at}"), problem));
        }
        keep_apart(path, &mut entries, directory_at)?;
        let mut by_name = HashMap::with_capacity(entries.len());
        for (at, entry) in entries.iter().enumerate() {
            if by_name.insert(entry.name, at).is_some() {
                return Err(Error::malformed(path, entry.place(), "stands in the archive twice"));
            }
        }
        Ok(Self { path, bytes, entries, by_name })
    }

    /// All entries, in the order of the directory.
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    /// The entry of this name.
    pub fn find(&self, name: &str) -> Option<&Entry<'a>> {
        self.by_name.get(name).map(|at| &self.entries[*at])
    }

    /// First byte of an entry's data, where they lie in the file as they are.
    ///
    /// # Errors
    /// `Malformed` or `Unsupported`, naming the entry.
    pub fn start(&self, entry: &Entry<'_>) -> Result<Option<u64>> {
        let start = self.data_start(entry)?;
        match entry.method {
            STORED if entry.compressed != entry.size => {
                let problem = format!("is stored in {} bytes and has {}", entry.compressed, entry.size);
                Err(Error::malformed(self.path, entry.place(), problem))
            }
            STORED => Ok(Some(start)),
            DEFLATED => Ok(None),
            other => {
                let what = format!(
                    "{} is compressed by method {other}; deflate is the only one that can be read",
                    entry.place()
                );
                Err(Error::unsupported(self.path, what))
            }
        }
    }

    /// The contents of an entry: borrowed where they are stored, else decompressed within `budget`.
    ///
    /// # Errors
    /// As [`Archive::start`], and when decompressing does not give exactly as many bytes as were declared.
    pub fn contents(&self, entry: &Entry<'_>, budget: &mut Budget<'_>) -> Result<Cow<'a, [u8]>> {
        let stored = self.start(entry)?;
        let start = self.data_start(entry)?;
        let data = self.bytes.get(range(start, entry.compressed)).unwrap_or_default();
        if stored.is_some() {
            return Ok(Cow::Borrowed(data));
        }
        let size = budget.take(entry.size, &entry.place())?;
        let problem = |text: String| Error::malformed(self.path, entry.place(), text);
        let contents = decompress_to_vec_with_limit(data, size).map_err(|error| match error.status {
            miniz_oxide::inflate::TINFLStatus::HasMoreOutput => {
                problem(format!("holds more than the {size} bytes that are declared"))
            }
            status => problem(format!("cannot be decompressed: {status:?}")),
        })?;
        if contents.len() != size {
            return Err(problem(format!("holds {} bytes, {size} are declared", contents.len())));
        }
        Ok(Cow::Owned(contents))
    }

    fn data_start(&self, entry: &Entry<'_>) -> Result<u64> {
        let problem = |text: &str| Error::malformed(self.path, entry.place(), text);
        if entry.encrypted {
            return Err(Error::unsupported(self.path, format!("{} is encrypted", entry.place())));
        }
        let header = self.bytes.get(range(entry.header, LOCAL_BYTES)).unwrap_or_default();
        if !header.starts_with(b"PK\x03\x04") {
            return Err(problem(&format!("has no local header at byte {}", entry.header)));
        }
        let texts = u64::from(u16_at(header, 26)) + u64::from(u16_at(header, 28));
        let start = entry.header + LOCAL_BYTES + texts;
        if start.saturating_add(entry.compressed) > entry.end {
            return Err(problem(&format!("has {} bytes, and lies over what follows it", entry.compressed)));
        }
        Ok(start)
    }
}

impl Entry<'_> {
    /// The entry as a place in a message.
    pub fn place(&self) -> String {
        let shown: String = self.name.chars().take(100).map(|c| if c.is_control() { '?' } else { c }).collect();
        format!("entry `{shown}`")
    }
}

/// Number of entries, the directory, and where it lies.
fn find_directory<'a>(path: &Path, bytes: &'a [u8]) -> Result<(u64, &'a [u8], u64)> {
    let from = bytes.len().saturating_sub(END_BYTES + MAX_COMMENT);
    let tail = &bytes[from..];
    let fits = |at: &usize| {
        let end = &tail[*at..];
        end.starts_with(b"PK\x05\x06") && at + END_BYTES + usize::from(u16_at(end, 20)) == tail.len()
    };
    let last = tail.len().checked_sub(END_BYTES).and_then(|last| (0..=last).rev().find(fits));
    let Some(at) = last else {
        return Err(Error::malformed(path, "end of file", "the zip archive has no directory")
            .hint("the file was cut short, or is damaged"));
    };
    let end = &tail[at..];
    let mut count = u64::from(u16_at(end, 10));
    let mut len = u64::from(u32_at(end, 12));
    let mut offset = u64::from(u32_at(end, 16));
    if count == 0xffff || len == 0xffff_ffff || offset == 0xffff_ffff {
        let locator = at.checked_sub(LOCATOR_BYTES).map(|locator| &tail[locator..at]);
        if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
            let place = u64_at(locator, 8);
            let end = bytes.get(range(place, 56)).filter(|end| end.starts_with(b"PK\x06\x06"));
            let end =
                end.ok_or_else(|| Error::malformed(path, format!("byte {place}"), "no zip64 end stands there"))?;
            (count, len, offset) = (u64_at(end, 32), u64_at(end, 40), u64_at(end, 48));
        }
    }
    let directory = bytes.get(range(offset, len)).ok_or_else(|| {
        let problem = format!("the zip directory has {len} bytes, the file ends at byte {}", bytes.len());
        Error::malformed(path, format!("byte {offset}"), problem).hint("the file was cut short, or is damaged")
    })?;
    Ok((count, directory, offset))
}

/// The entry at the front of `rest`, which lies at byte `at`, and its length.
fn read_entry<'a>(path: &Path, rest: &'a [u8], at: u64) -> Result<(Entry<'a>, usize)> {
    let broken = |problem: &str| Error::malformed(path, format!("byte {at}"), problem);
    if rest.len() < ENTRY_BYTES || !rest.starts_with(b"PK\x01\x02") {
        return Err(broken("no entry of a zip directory stands there"));
    }
    let texts = [28, 30, 32].map(|place| usize::from(u16_at(rest, place)));
    let used = ENTRY_BYTES + texts.iter().sum::<usize>();
    let name_end = ENTRY_BYTES + texts[0];
    let (Some(name), Some(extra)) = (rest.get(ENTRY_BYTES..name_end), rest.get(name_end..name_end + texts[1])) else {
        return Err(broken("the zip directory ends inside an entry"));
    };
    if used > rest.len() {
        return Err(broken("the zip directory ends inside an entry"));
    }
    let name = std::str::from_utf8(name).map_err(|_| broken("the name of the entry is no text"))?;
    // In this order the 64-bit numbers follow each other, where the short ones are all ones.
    let mut numbers = [u32_at(rest, 24), u32_at(rest, 20), u32_at(rest, 42)].map(u64::from);
    let mut long = zip64_numbers(extra);
    for number in numbers.iter_mut().filter(|number| **number == 0xffff_ffff) {
        let Some((first, others)) = long.split_first_chunk::<8>() else {
            return Err(broken("the entry lacks its zip64 numbers"));
        };
        *number = u64::from_le_bytes(*first);
        long = others;
    }
    let [size, compressed, header] = numbers;
    let encrypted = u16_at(rest, 8) & 1 != 0;
    let entry = Entry { name, size, compressed, method: u16_at(rest, 10), encrypted, header, end: 0 };
    Ok((entry, used))
}

fn zip64_numbers(mut extra: &[u8]) -> &[u8] {
    while let [first, second, low, high, rest @ ..] = extra {
        let len = usize::from(u16::from_le_bytes([*low, *high]));
        let Some(field) = rest.get(..len) else { return &[] };
        if u16::from_le_bytes([*first, *second]) == ZIP64_EXTRA {
            return field;
        }
        extra = &rest[len..];
    }
    &[]
}

/// Gives every entry the begin of the next one as its end.
fn keep_apart(path: &Path, entries: &mut [Entry<'_>], directory_at: u64) -> Result<()> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|at| entries[*at].header);
    let mut end = directory_at;
    for at in order.into_iter().rev() {
        let entry = &mut entries[at];
        let least = entry.header.saturating_add(LOCAL_BYTES).saturating_add(entry.compressed);
        if least > end {
            let problem = format!("its {} bytes at byte {} lie over what follows", entry.compressed, entry.header);
            return Err(Error::malformed(path, entry.place(), problem));
        }
        entry.end = end;
        end = entry.header;
    }
    Ok(())
}

/// A range of bytes that is empty and beyond every file where its numbers are.
fn range(start: u64, len: u64) -> std::ops::Range<usize> {
    let end = start.checked_add(len).and_then(|end| usize::try_from(end).ok());
    match (usize::try_from(start), end) {
        (Ok(start), Some(end)) => start..end,
        _ => usize::MAX..usize::MAX,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
