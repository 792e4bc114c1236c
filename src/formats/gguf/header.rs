//! Everything in front of the data, read and checked.

use std::path::Path;

use foldhash::HashSet;

use super::cursor::Cursor;
use super::metadata::{MAX_KEY, Metadata};
use crate::error::{Error, Result};
use crate::formats::format::Format;
use crate::limits::MAX_DIMENSIONS;
use crate::tensor::{Dtype, GgmlType, Shape, TensorInfo};

/// First bytes of a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Where tensors begin if nothing else is said.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// The key that says something else.
pub(super) const ALIGNMENT: &str = "general.alignment";

/// What an unknown type is called, before its number.
pub(super) const UNKNOWN: &str = "ggml type ";

/// Fewest bytes of an entry: length of a key, one byte of it, type, one byte.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;

/// Fewest bytes of a tensor: length of a name, one byte of it, number of dimensions, type, offset.
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

/// What a file says before its data.
#[derive(Debug, Clone)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Whether the file has the highest byte of a number first.
    pub big_endian: bool,
    /// The entries.
    pub metadata: Metadata,
    /// The tensors in the order of the header; offsets count from `data_start`.
    pub tensors: Vec<TensorInfo>,
    /// What offsets are multiples of.
    pub alignment: u64,
    /// First byte of the data.
    pub data_start: u64,
}

/// GGUF. Several files can be one checkpoint, so all of them are opened together, by [`super::Gguf`].
pub static FORMAT: Format = Format {
    name: "gguf",
    called: "gguf",
    made: "a GGUF file",
    endings: &["gguf"],
    holds_models: true,
    is_written: true,
    read: |_| Ok(None),
};

/// Whether a file begins as GGUF.
pub fn looks_like_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Whether a path is named like a GGUF file.
pub fn is_gguf_name(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "gguf")
}

impl Header {
    /// Reads the header of the file `path` with these bytes, and holds its offsets against them.
    ///
    /// # Errors
    /// When it is damaged, made to do harm, or of a version that is not read.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(path, bytes);
        if !looks_like_gguf(bytes) {
            return Err(cursor.wrong("the file does not begin with `GGUF`"));
        }
        cursor.take(4, "the mark of the format")?;
        let version = read_version(path, &mut cursor)?;
        // The number of tensors stands before that of the entries, and both before what they count.
        let count = cursor.count(LEAST_TENSOR, "the number of tensors")?;
        let entries = cursor.count(LEAST_ENTRY, "the number of metadata entries")?;
        let metadata = Metadata::read(&mut cursor, entries)?;
        let alignment = alignment(path, &metadata)?;
        let mut raw = Vec::new();
        let mut names = HashSet::default();
        for _ in 0..count {
            let tensor = Raw::read(&mut cursor)?;
            if !names.insert(tensor.name) {
                return Err(cursor.wrong(format!("the tensor `{}` stands there twice", tensor.name)));
            }
            raw.push(tensor);
        }
        let data_start = cursor.position().next_multiple_of(alignment);
        let data = (bytes.len() as u64).saturating_sub(data_start);
        let tensors = placed(path, &raw, data, alignment)?;
        Ok(Self { version, big_endian: cursor.big, metadata, tensors, alignment, data_start })
    }
}

fn read_version(path: &Path, cursor: &mut Cursor<'_>) -> Result<u32> {
    let mut version = cursor.u32("the version")?;
    if version & 0xFFFF == 0 && version != 0 {
        cursor.big = true;
        version = version.swap_bytes();
    }
    match version {
        2 | 3 => Ok(version),
        1 => Err(Error::unsupported(path, "is GGUF version 1, as llama.cpp wrote it for some weeks of August 2023")
            .hint("llama.cpp of that autumn turns it into a later version: `gguf-convert`, or quantise it again")),
        _ => Err(Error::unsupported(path, format!("is GGUF version {version}; 2 and 3 are read"))),
    }
}

/// What offsets are multiples of.
pub(super) fn alignment(path: &Path, metadata: &Metadata) -> Result<u64> {
    let Some(value) = metadata.get(ALIGNMENT) else { return Ok(DEFAULT_ALIGNMENT) };
    let wrong = |problem: String| Error::malformed(path, format!("key `{ALIGNMENT}`"), problem);
    let super::Value::U32(alignment) = value else {
        return Err(wrong(format!("must be of type u32, not {}", value.kind().name())));
    };
    if !alignment.is_power_of_two() {
        return Err(wrong(format!("must be a power of two, not {alignment}")));
    }
    Ok(u64::from(*alignment))
}

/// A tensor as the header has it.
struct Raw<'a> {
    name: &'a str,
    shape: Shape,
    id: u32,
    offset: u64,
}

impl<'a> Raw<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        let name = cursor.name(MAX_KEY, "the name of a tensor")?;
        let count = cursor.u32("a number of dimensions")?;
        if usize::try_from(count).is_ok_and(|count| count > MAX_DIMENSIONS) {
            return Err(cursor.wrong(format!("tensor `{name}` has {count} dimensions, more than {MAX_DIMENSIONS}")));
        }
        let mut shape = Vec::new();
        for _ in 0..count {
            shape.push(cursor.u64("a dimension")?);
        }
        shape.reverse();
        Ok(Self { name, shape: Shape::from(shape), id: cursor.u32("a type")?, offset: cursor.u64("an offset")? })
    }

    /// Its bytes, where its type is known.
    fn bytes(&self, path: &Path) -> Result<Option<u64>> {
        let wrong = |problem: String| Error::malformed(path, format!("tensor `{}`", self.name), problem);
        let too_many = || wrong(format!("shape {} has more elements than can be counted", self.shape));
        let elements = self.shape.elements().ok_or_else(too_many)?;
        let Some(ggml) = GgmlType::from_id(self.id) else { return Ok(None) };
        let row = self.shape.as_slice().last().copied().unwrap_or(1);
        if !row.is_multiple_of(ggml.block().0 as u64) {
            let problem = format!("rows of {row} values are no whole number of blocks of {ggml}, {}", ggml.block().0);
            return Err(wrong(problem));
        }
        ggml.bytes_of(elements).ok_or_else(too_many).map(Some)
    }

    fn dtype(&self) -> Dtype {
        let unknown = || Dtype::Other(format!("{UNKNOWN}{}", self.id).into());
        GgmlType::from_id(self.id).map_or_else(unknown, GgmlType::dtype)
    }
}

/// The tensors with the bytes they have among `data`.
fn placed(path: &Path, raw: &[Raw<'_>], data: u64, alignment: u64) -> Result<Vec<TensorInfo>> {
    let mut order: Vec<usize> = (0..raw.len()).collect();
    order.sort_by_key(|at| raw[*at].offset);
    let mut bytes = vec![0; raw.len()];
    for (place, &at) in order.iter().enumerate() {
        let tensor = &raw[at];
        let wrong = |problem: String| Error::malformed(path, format!("tensor `{}`", tensor.name), problem);
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(wrong(format!(
                "begins at byte {} of the data, which is no multiple of {alignment}",
                tensor.offset
            )));
        }
        let next = order.get(place + 1).map(|next| &raw[*next]);
        let limit = next.map_or(data, |next| next.offset.min(data));
        let room = limit
            .checked_sub(tensor.offset)
            .ok_or_else(|| wrong(format!("begins at byte {} of the data, and there are {data}", tensor.offset)))?;
        // A type that is not known has all that lies before the next tensor.
        let size = tensor.bytes(path)?.unwrap_or(room);
        if size > room {
            let what =
                format!("shape {} of {} takes {size} bytes from {}", tensor.shape, tensor.dtype(), tensor.offset);
            return Err(match next.filter(|next| next.offset <= data) {
                Some(next) => wrong(format!("{what}, tensor `{}` begins at {}", next.name, next.offset)),
                None => wrong(format!("{what}, the file has {data} bytes of data")).hint("the file was cut short"),
            });
        }
        bytes[at] = size;
    }
    let info = |(tensor, bytes): (&Raw<'_>, u64)| TensorInfo {
        name: tensor.name.to_owned(),
        dtype: tensor.dtype(),
        shape: tensor.shape.clone(),
        offset: tensor.offset,
        bytes,
    };
    Ok(raw.iter().zip(bytes).map(info).collect())
}
