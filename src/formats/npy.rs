//! Arrays of numpy: `.npy`, and `.npz`, a zip archive of them.
//!
//! | bytes of a `.npy` | meaning |
//! |---|---|
//! | 0 … 6 | `\x93NUMPY` |
//! | 6, 7 | version: 1.0, 2.0 or 3.0 |
//! | 8 … | length of the header (u16, from 2.0 on u32), header, data |
//!
//! The header is a Python literal, `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`. Source: numpy
//! `lib/format.py`. numpy has no bf16: MLX and ml_dtypes write it as `<V2`, which is read as that; `|V2` is two bytes
//! of anything and is refused, as is everything that numpy keeps as a pickle.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use foldhash::HashMap;
use regex::Regex;

use super::format::Format;
use super::found::Found;
use super::held::{Budget, gather};
use super::zip::{Archive, Entry};
use crate::error::{Error, Result};
use crate::io::MappedFile;
use crate::limits::MAX_DIMENSIONS;
use crate::tensor::{Dtype, Shape, TensorInfo};

/// Archives of arrays.
pub static NPZ: Format = of_numpy("npz", &["npz"], true, read_npz);

/// Single arrays.
pub static NPY: Format = of_numpy("npy", &["npy"], false, read_npy);

const fn of_numpy(
    name: &'static str,
    endings: &'static [&'static str],
    holds_models: bool,
    read: fn(&Arc<MappedFile>) -> Result<Option<Found>>,
) -> Format {
    Format { name, called: "a numpy file", made: "a file of numpy", endings, holds_models, is_written: false, read }
}

/// First bytes of a `.npy`.
const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header that is read; numpy's own limit is 10 000 characters.
const MAX_HEADER: usize = 10_000;

/// File ending of the entries of an archive.
const ENDING: &str = ".npy";

/// numpy's codes without the byte order, and what they hold.
const CODES: [(&str, Dtype); 14] = [
    ("b1", Dtype::Bool),
    ("i1", Dtype::I8),
    ("u1", Dtype::U8),
    ("i2", Dtype::I16),
    ("u2", Dtype::U16),
    ("f2", Dtype::F16),
    ("i4", Dtype::I32),
    ("u4", Dtype::U32),
    ("f4", Dtype::F32),
    ("i8", Dtype::I64),
    ("u8", Dtype::U64),
    ("f8", Dtype::F64),
    ("c8", Dtype::C64),
    ("V2", Dtype::Bf16),
];

/// Reads the array `map`, called as its file.
fn read_npy(map: &Arc<MappedFile>) -> Result<Option<Found>> {
    if !map.bytes().starts_with(MAGIC) {
        return Ok(None);
    }
    let name = map.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut budget = Budget::new(map.path(), map.len());
    let mut found = Found::default();
    let source = Source { name, start: Some(0), bytes: Cow::Borrowed(map.bytes()) };
    add(map, &mut found, source, &mut Headers::default(), &mut budget)?;
    Ok(Some(found))
}

/// Reads the arrays of the archive in `map`, called as their entries.
fn read_npz(map: &Arc<MappedFile>) -> Result<Option<Found>> {
    if !Archive::begins(map.bytes()) {
        return Ok(None);
    }
    let archive = Archive::read(map.path(), map.bytes())?;
    if !archive.entries().iter().any(|entry| entry.name.ends_with(ENDING)) {
        return Ok(None);
    }
    let mut budget = Budget::new(map.path(), map.len());
    let (mut found, mut headers) = (Found::default(), Headers::default());
    for entry in archive.entries() {
        let Some(name) = entry.name.strip_suffix(ENDING) else {
            found.notes.push(format!("{}: {} is no array and was left aside", map.path().display(), entry.place()));
            continue;
        };
        add(map, &mut found, source(&archive, entry, name, &mut budget)?, &mut headers, &mut budget)?;
    }
    Ok(Some(found))
}

/// An array as bytes.
struct Source<'a> {
    name: String,
    /// First byte in the file, where it lies there as it is.
    start: Option<u64>,
    bytes: Cow<'a, [u8]>,
}

fn source<'a>(archive: &Archive<'a>, entry: &Entry<'_>, name: &str, budget: &mut Budget<'_>) -> Result<Source<'a>> {
    let start = archive.start(entry)?;
    Ok(Source { name: name.to_owned(), start, bytes: archive.contents(entry, budget)? })
}

fn add(
    map: &Arc<MappedFile>,
    found: &mut Found,
    source: Source<'_>,
    headers: &mut Headers,
    budget: &mut Budget<'_>,
) -> Result<()> {
    let path = map.path();
    let Source { name, start, bytes } = source;
    let header = Header::read(path, &name, &bytes, headers)?;
    let wrong = |problem: String| Error::malformed(path, format!("array `{name}`"), problem);
    let width = u64::from(header.dtype.bits().unwrap_or(8) / 8);
    let shape = Shape::from(header.shape);
    let elements = shape.elements().and_then(|elements| elements.checked_mul(width));
    let len = elements.ok_or_else(|| wrong(format!("shape {shape} has more elements than can be counted")))?;
    let has = bytes.len() as u64 - header.len as u64;
    if len != has {
        let problem = format!("shape {shape} of {} takes {len} bytes, {has} follow the header", header.dtype);
        return Err(wrong(problem));
    }
    let in_order = !header.fortran || shape.as_slice().iter().filter(|size| **size != 1).count() < 2 || len == 0;
    if let (Some(start), true, false) = (start, in_order, header.swapped) {
        let offset = start + header.len as u64;
        found.push(TensorInfo { name, dtype: header.dtype, shape, offset, bytes: len }, None);
        return Ok(());
    }
    let mut contents = bytes[header.len..].to_vec();
    if !in_order {
        budget.take(len, &format!("array `{name}`, which is in column-major order"))?;
        let size = |number: u64| usize::try_from(number).expect("below the length of bytes in memory");
        let sizes: Vec<usize> = shape.as_slice().iter().map(|dimension| size(*dimension)).collect();
        let strides: Vec<usize> = (0..sizes.len()).map(|at| sizes[..at].iter().product()).collect();
        contents = gather(&contents, size(width), 0, &sizes, &strides);
    } else if start.is_some() {
        budget.take(len, &format!("array `{name}`, whose bytes are in the other order"))?;
    }
    if header.swapped {
        let number = if header.dtype == Dtype::C64 { 4 } else { width.max(1) };
        let number = usize::try_from(number).expect("an element has a few bytes");
        contents.chunks_exact_mut(number).for_each(<[u8]>::reverse);
    }
    let held = Arc::new(map.held(contents));
    found.push(TensorInfo { name, dtype: header.dtype, shape, offset: 0, bytes: len }, Some(held));
    Ok(())
}

/// What texts mean: arrays of one kind repeat theirs.
type Headers = HashMap<String, Header>;

/// The most that are kept.
const MOST_HEADERS: usize = 1000;

#[derive(Clone)]
struct Header {
    dtype: Dtype,
    shape: Vec<u64>,
    fortran: bool,
    /// Big-endian.
    swapped: bool,
    /// Bytes in front of the data.
    len: usize,
}

impl Header {
    fn read(path: &Path, name: &str, bytes: &[u8], known: &mut Headers) -> Result<Self> {
        let wrong = |problem: String| Error::malformed(path, format!("array `{name}`"), problem);
        let (prefix, length): (usize, usize) = match bytes.strip_prefix(MAGIC) {
            Some([1, _, low, high, ..]) => (10, u16::from_le_bytes([*low, *high]).into()),
            Some([2 | 3, _, a, b, c, d, ..]) => {
                (12, usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX))
            }
            Some([version, ..]) if *version > 3 => return Err(wrong(format!("version {version} is not known"))),
            _ => return Err(wrong("is no array of numpy".into())),
        };
        if length > MAX_HEADER {
            return Err(Error::limit(
                path,
                format!("header length of array `{name}`"),
                length as u64,
                MAX_HEADER as u64,
            ));
        }
        let text = bytes.get(prefix..prefix + length).and_then(|text| std::str::from_utf8(text).ok());
        let text = text.ok_or_else(|| wrong("its header is cut short or is no text".into()))?;
        if let Some(known) = known.get(text) {
            return Ok(Self { len: prefix + length, ..known.clone() });
        }
        let (descr, fortran, shape) =
            parse(text).ok_or_else(|| wrong(format!("its header cannot be read: {}", brief(text))))?;
        let (dtype, swapped) = dtype_of(&descr)
            .map_err(|why| Error::unsupported(path, format!("array `{name}` has dtype `{}`: {why}", brief(&descr))))?;
        if shape.len() > MAX_DIMENSIONS {
            let what = format!("number of dimensions of array `{name}`");
            return Err(Error::limit(path, what, shape.len() as u64, MAX_DIMENSIONS as u64));
        }
        let header = Self { dtype, shape, fortran, swapped, len: prefix + length };
        if known.len() < MOST_HEADERS {
            known.insert(text.to_owned(), header.clone());
        }
        Ok(header)
    }
}

/// The parts of a header. Where the dtype is a list of fields instead of a text, the list is found.
static PARTS: LazyLock<[Regex; 4]> = LazyLock::new(|| {
    [
        r"'descr'\s*:\s*'([^']*)'",
        r"'descr'\s*:\s*(\[.*\])",
        r"'fortran_order'\s*:\s*(True|False)",
        r"'shape'\s*:\s*\(([0-9,\sL]*)\)",
    ]
    .map(|pattern| Regex::new(pattern).expect("a pattern that is written here"))
});

/// descr, fortran_order and shape of a header.
fn parse(text: &str) -> Option<(String, bool, Vec<u64>)> {
    let [descr, fields, fortran, shape] = &*PARTS;
    let find = |part: &Regex| part.captures(text).and_then(|found| found.get(1)).map(|found| found.as_str().trim());
    let descr = find(descr).or_else(|| find(fields))?;
    let fortran = find(fortran)? == "True";
    let sizes = find(shape)?.split(',').map(|size| size.trim().trim_end_matches('L')).filter(|size| !size.is_empty());
    let sizes: Option<Vec<u64>> = sizes.map(|size| size.parse().ok()).collect();
    Some((descr.to_owned(), fortran, sizes?))
}

/// The dtype, and whether its bytes are in big-endian order.
fn dtype_of(descr: &str) -> Result<(Dtype, bool), &'static str> {
    if descr.starts_with('[') {
        return Err("records of several fields are no tensor");
    }
    if descr.contains('O') {
        return Err("Python objects are kept as a pickle, which is not run");
    }
    let mut letters = descr.chars();
    let order = letters.next().ok_or("it is empty")?;
    let code = letters.as_str();
    let row = CODES.iter().find(|(known, _)| *known == code).ok_or("no tensor holds such elements")?;
    match (order, code) {
        ('<', _) | ('|', "b1" | "i1" | "u1") => Ok((row.1.clone(), false)),
        ('|', "V2") => Err("two bytes of anything; bf16 would be `<V2`"),
        ('>', "V2") => Err("two bytes of anything"),
        ('>', _) => Ok((row.1.clone(), !matches!(code, "b1" | "i1" | "u1"))),
        _ => Err("its byte order is not told"),
    }
}

fn brief(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}
