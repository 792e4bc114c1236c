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
use std::path::Path;

use foldhash::HashMap;
use foldhash::fast::RandomState;
use miniz_oxide::inflate::decompress_to_vec_with_limit;

use super::held::Budget;
use crate::error::{Error, Result};
use crate::limits::MAX_HEADER_BYTES;

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
        let mut by_name = HashMap::with_capacity_and_hasher(entries.len(), RandomState::default());
        for (at, entry) in entries.iter().enumerate() {
            if by_name.insert(entry.name, at).is_some() {
                return Err(Error::malformed(path, entry.place(), "stands in the archive twice"));
            }
        }
        Ok(Self { path, bytes, entries, by_name })
    }

    /// Whether a file begins as an archive.
    pub fn begins(bytes: &[u8]) -> bool {
        matches!(bytes, [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..])
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
    if len > MAX_HEADER_BYTES {
        return Err(Error::limit(path, "length of its zip directory in bytes", len, MAX_HEADER_BYTES));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts of an entry in an archive that a test makes.
    #[derive(Clone)]
    struct Made {
        name: &'static str,
        data: Vec<u8>,
        size: u32,
        method: u16,
        flags: u16,
        zip64: bool,
        /// Points to the local header of another entry.
        alias: Option<usize>,
    }

    fn made(name: &'static str, data: &[u8]) -> Made {
        let size = data.len() as u32;
        Made { name, data: data.to_vec(), size, method: STORED, flags: 0, zip64: false, alias: None }
    }

    fn archive(entries: &[Made], zip64_end: bool) -> Vec<u8> {
        let (mut out, mut directory, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            places.push(out.len() as u64);
            out.extend(b"PK\x03\x04\x14\0");
            out.extend([0; 20]);
            out.extend((entry.name.len() as u16).to_le_bytes());
            out.extend(5_u16.to_le_bytes());
            out.extend(entry.name.as_bytes());
            out.extend([0; 5]);
            out.extend(&entry.data);
            let at = places[entry.alias.unwrap_or(places.len() - 1)];
            let numbers = [u64::from(entry.size), entry.data.len() as u64, at];
            directory.extend(b"PK\x01\x02\x14\0\x14\0");
            directory.extend(entry.flags.to_le_bytes());
            directory.extend(entry.method.to_le_bytes());
            directory.extend([0; 8]);
            let short = |number: u64| if entry.zip64 { u32::MAX } else { number as u32 };
            directory.extend(short(numbers[1]).to_le_bytes());
            directory.extend(short(numbers[0]).to_le_bytes());
            directory.extend((entry.name.len() as u16).to_le_bytes());
            directory.extend(if entry.zip64 { 34_u16 } else { 0 }.to_le_bytes());
            directory.extend([0; 10]);
            directory.extend(short(numbers[2]).to_le_bytes());
            directory.extend(entry.name.as_bytes());
            if entry.zip64 {
                // Another field in front.
                directory.extend([9, 9, 2, 0, 7, 7, 1, 0, 24, 0]);
                numbers.iter().for_each(|number| directory.extend(number.to_le_bytes()));
            }
        }
        let (at, count) = (out.len() as u64, entries.len() as u64);
        out.extend(&directory);
        if zip64_end {
            let place = out.len() as u64;
            out.extend(b"PK\x06\x06");
            out.extend([0; 28]);
            for number in [count, directory.len() as u64, at] {
                out.extend(number.to_le_bytes());
            }
            out.extend(b"PK\x06\x07\0\0\0\0");
            out.extend(place.to_le_bytes());
            out.extend([1, 0, 0, 0]);
        }
        let end = if zip64_end { [u64::MAX; 3] } else { [count, directory.len() as u64, at] };
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([end[0] as u16, end[0] as u16].map(u16::to_le_bytes).concat());
        out.extend([end[1] as u32, end[2] as u32].map(u32::to_le_bytes).concat());
        out.extend([3, 0]);
        out.extend(b"...");
        out
    }

    fn contents(bytes: &[u8], name: &str) -> Result<Vec<u8>> {
        let path = Path::new("x.bin");
        let archive = Archive::read(path, bytes)?;
        let entry = archive.find(name).expect("the entry is there");
        Ok(archive.contents(entry, &mut Budget::new(path, 0))?.into_owned())
    }

    fn refused(entries: &[Made], name: &str, part: &str) {
        let error = contents(&archive(entries, false), name).unwrap_err().to_string();
        assert!(error.starts_with("x.bin: ") && error.contains(part), "{error}");
    }

    #[test]
    fn stored_entries_are_found_where_they_lie() {
        for (zip64, zip64_end) in [(false, false), (true, false), (true, true)] {
            let mut entries = [made("a", b"first"), made("b/c", b""), made("d", b"third")];
            entries.iter_mut().for_each(|entry| entry.zip64 = zip64);
            let bytes = archive(&entries, zip64_end);
            let read = Archive::read(Path::new("x.bin"), &bytes).unwrap();
            assert_eq!(read.entries().len(), 3);
            for entry in &entries {
                assert_eq!(contents(&bytes, entry.name).unwrap(), entry.data);
                let start = read.start(read.find(entry.name).unwrap()).unwrap().unwrap() as usize;
                assert_eq!(&bytes[start..start + entry.data.len()], entry.data);
            }
        }
    }

    #[test]
    fn deflated_entries_hold_what_they_declare_and_no_more() {
        let data = miniz_oxide::deflate::compress_to_vec(&[7; 1000], 6);
        let deflated = |size: u32| [Made { size, method: DEFLATED, ..made("a", &data) }];
        assert_eq!(contents(&archive(&deflated(1000), false), "a").unwrap(), [7; 1000]);
        refused(&deflated(999), "a", "entry `a`: holds more than the 999 bytes that are declared");
        refused(&deflated(1001), "a", "entry `a`: holds 1000 bytes, 1001 are declared");
        refused(&deflated(u32::MAX - 1), "a", "with entry `a` is 4294967294, more than the accepted");
        refused(&[Made { size: 9, method: DEFLATED, ..made("a", &[0xff; 9]) }], "a", "cannot be decompressed");
    }

    #[test]
    fn entries_that_lie_are_refused() {
        let two = [made("a", b"first"), made("b", b"second")];
        let alias = Made { alias: Some(0), ..made("b", b"first") };
        refused(&[two[0].clone(), alias], "a", "lie over what follows");
        refused(&[two[0].clone(), two[0].clone()], "a", "stands in the archive twice");
        refused(&[Made { size: 6, ..two[0].clone() }, two[1].clone()], "a", "is stored in 5 bytes and has 6");
        refused(&[Made { flags: 1, ..two[0].clone() }], "a", "is encrypted");
        refused(&[Made { method: 93, ..two[0].clone() }], "a", "is compressed by method 93");
    }

    #[test]
    fn an_archive_that_ends_early_is_refused_wherever_that_is() {
        let bytes = archive(&[made("a", b"first"), made("b", b"second")], true);
        for end in 0..bytes.len() {
            assert!(Archive::read(Path::new("x.bin"), &bytes[..end]).is_err(), "{end}");
        }
    }
}
