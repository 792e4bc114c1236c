//! The safetensors container.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 … 8 | `n`: length of the header, u64 little endian, at most 100 000 000 |
//! | 8 … 8+n | header: one JSON object, `{"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}}`, padded with spaces |
//! | 8+n … | data: the tensors without gaps or overlap, offsets counted from here |
//!
//! Source: the format's specification and the `safetensors` crate 0.8. The crate's own reader stops at the first dtype it does
//! not know, keeps one of two entries with the same name and reports neither tensor nor numbers, so headers are
//! read here (`docs/inside/decisions/0002`); tests hold this reader against the crate's.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use foldhash::HashSet;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::format::Format;
use super::found::Found;
use crate::error::{Error, Result};
use crate::io::MappedFile;
use crate::limits::{MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_TENSORS};
use crate::tensor::{Dtype, Shape, TensorInfo};

/// Safetensors.
pub static FORMAT: Format = Format {
    name: "safetensors",
    called: "safetensors",
    made: "safetensors",
    endings: &["safetensors"],
    holds_models: true,
    is_written: true,
    read,
};

/// Bytes in front of the header: its length.
pub const PREFIX_BYTES: u64 = 8;

/// The key of the free text in a header.
const METADATA: &str = "__metadata__";

/// What the front of a safetensors file says.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// `__metadata__` in file order.
    pub metadata: Vec<(String, String)>,
    /// The tensors by offset; `offset` counts from [`Header::data_start`].
    pub tensors: Vec<TensorInfo>,
    /// Where the data section begins, in bytes from the start of the file.
    pub data_start: u64,
}

/// A file with the ending is read as nothing else; under another ending its begin tells.
fn read(map: &Arc<MappedFile>) -> Result<Option<Found>> {
    let begins = matches!(map.bytes(), [_, _, _, _, _, 0, 0, 0, b'{', ..]);
    if Format::named(map.path()) != Some(&FORMAT) && !begins {
        return Ok(None);
    }
    Ok(Some(Found { header: read_header(map.path(), map.bytes())?, ..Found::default() }))
}

/// Reads and checks the header of the file `path` whose bytes are `file`.
///
/// # Errors
/// `Malformed` or `Limit`, naming the tensor and both numbers, unless the header describes exactly the bytes that follow it.
pub fn read_header(path: &Path, file: &[u8]) -> Result<Header> {
    let file_bytes = u64::try_from(file.len()).map_err(|_| Error::limit(path, "file length", u64::MAX, u64::MAX))?;
    let Some(prefix) = file.first_chunk::<8>() else {
        return Err(Error::malformed(
            path,
            "byte 0",
            format!("the file has {file_bytes} bytes, a header needs at least 8"),
        )
        .hint("the file is not safetensors, or its download was cut short"));
    };
    let header_bytes = u64::from_le_bytes(*prefix);
    if header_bytes > MAX_HEADER_BYTES {
        let is_text = file.iter().take(TEXT).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        if is_text && looks_like(file) == UNKNOWN {
            return Err(Error::unsupported(path, "is no weight file: it begins with text"));
        }
        return Err(Error::limit(path, "header length in bytes", header_bytes, MAX_HEADER_BYTES).hint(looks_like(file)));
    }
    let data_start = PREFIX_BYTES + header_bytes;
    let text = usize::try_from(data_start).ok().and_then(|end| file.get(8..end)).ok_or_else(|| {
        Error::malformed(
            path,
            "byte 0",
            format!("the header should take {header_bytes} bytes, the file has {} after its length", file_bytes - 8),
        )
        .hint("the file was cut short, or is not safetensors")
    })?;
    let raw = parse(path, text)?;
    let tensors = check_tensors(path, raw.tensors, file_bytes - data_start)?;
    Ok(Header { metadata: raw.metadata, tensors, data_start })
}

/// The bytes in front of the data of a new file: length and header, padded so that the data begins at a multiple of 8.
///
/// Order is kept as given, so the same tensors always give the same bytes.
pub fn render_header(metadata: &[(String, String)], tensors: &[TensorInfo]) -> Vec<u8> {
    let mut object = serde_json::Map::new();
    if !metadata.is_empty() {
        let texts = metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        object.insert(METADATA.into(), serde_json::Value::Object(texts));
    }
    for tensor in tensors {
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape.as_slice(),
            "data_offsets": [tensor.offset, tensor.offset + tensor.bytes],
        });
        object.insert(tensor.name.clone(), entry);
    }
    let mut text = serde_json::Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let length = text.len() as u64;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.append(&mut text);
    bytes
}

/// What is said where the first bytes tell nothing.
const UNKNOWN: &str = "the file is not safetensors";

/// First bytes that are looked at for text.
const TEXT: usize = 64;

/// What a file that is not safetensors could be, from its first bytes.
pub(super) fn looks_like(file: &[u8]) -> &'static str {
    match file {
        [b'P', b'K', ..] => "this is a zip archive, probably a PyTorch checkpoint",
        [0x80, ..] => "this looks like a Python pickle",
        [b'G', b'G', b'U', b'F', ..] => "this is a GGUF file",
        [b'<', ..] => "this looks like a web page, not a model file",
        _ => UNKNOWN,
    }
}

/// One entry as written.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A header as written, in JSON order.
#[derive(Default)]
struct Raw<'a> {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, Entry<'a>)>,
}

fn parse<'a>(path: &Path, text: &'a [u8]) -> Result<Raw<'a>> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let raw = json.deserialize_map(RawVisitor).and_then(|raw| json.end().map(|()| raw));
    raw.map_err(|problem| Error::malformed(path, "header", format!("not a safetensors header: {problem}")))
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Raw<'de>, M::Error> {
        let twice = |name: &str| -> M::Error { de::Error::custom(format!("the name `{name}` stands there twice")) };
        let mut raw = Raw::default();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if has_metadata {
                    return Err(twice(METADATA));
                }
                has_metadata = true;
                raw.metadata = map.next_value_seed(Texts)?;
            } else {
                let entry = map.next_value().map_err(|problem| de::Error::custom(format!("`{name}`: {problem}")))?;
                raw.tensors.push((name, entry));
                if raw.tensors.len() > MAX_TENSORS {
                    return Err(de::Error::custom(format!("it holds more than the accepted {MAX_TENSORS} tensors")));
                }
            }
        }
        let mut seen = HashSet::default();
        seen.reserve(raw.tensors.len());
        if let Some((name, _)) = raw.tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            return Err(twice(name));
        }
        Ok(raw)
    }
}

/// An object of texts whose order is kept.
struct Texts;

impl<'de> DeserializeSeed<'de> for Texts {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Texts {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`__metadata__` as an object of texts")
    }

    /// MLX writes `null` where it has nothing to say.
    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Self::Value, M::Error> {
        let mut texts = Vec::new();
        while let Some((key, value)) = map.next_entry()? {
            texts.push((key, value));
        }
        Ok(texts)
    }
}

/// Checks every entry against its own shape and all of them against the data section.
fn check_tensors(path: &Path, entries: Vec<(String, Entry<'_>)>, data_bytes: u64) -> Result<Vec<TensorInfo>> {
    let mut tensors =
        entries.into_iter().map(|(name, entry)| check_entry(path, name, entry)).collect::<Result<Vec<_>>>()?;
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut end = 0;
    for tensor in &tensors {
        if tensor.offset != end {
            let what = if tensor.offset < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            let problem = format!("begins at data byte {} and {what}, which ends at {end}", tensor.offset);
            return Err(Error::malformed(path, format!("tensor `{}`", tensor.name), problem));
        }
        end = tensor.offset + tensor.bytes;
    }
    if end != data_bytes {
        let problem = format!("the tensors take {end} bytes, the file holds {data_bytes} bytes of data");
        let hint = if end > data_bytes { "the file was cut short" } else { "bytes follow that belong to no tensor" };
        return Err(Error::malformed(path, "data section", problem).hint(hint));
    }
    Ok(tensors)
}

fn check_entry(path: &Path, name: String, entry: Entry<'_>) -> Result<TensorInfo> {
    let malformed = |problem: String| Error::malformed(path, format!("tensor `{name}`"), problem);
    let (begin, end) = entry.data_offsets;
    let bytes =
        end.checked_sub(begin).ok_or_else(|| malformed(format!("ends at byte {end}, before its begin {begin}")))?;
    if entry.shape.as_slice().len() > MAX_DIMENSIONS {
        let (got, max) = (entry.shape.as_slice().len() as u64, MAX_DIMENSIONS as u64);
        return Err(Error::limit(path, format!("number of dimensions of tensor `{name}`"), got, max));
    }
    let dtype = Dtype::from_name(&entry.dtype);
    let shape = entry.shape;
    if let Some(bits) = dtype.bits() {
        let wanted = shape.elements().and_then(|elements| elements.checked_mul(u64::from(bits)));
        match wanted {
            None => return Err(malformed(format!("shape {shape} has more elements than can be counted"))),
            Some(wanted) if wanted % 8 != 0 => {
                return Err(malformed(format!("shape {shape} of {dtype} takes {wanted} bits, not a number of bytes")));
            }
            Some(wanted) if wanted / 8 != bytes => {
                let wanted = wanted / 8;
                return Err(malformed(format!(
                    "shape {shape} of {dtype} takes {wanted} bytes, its offsets span {bytes}"
                )));
            }
            Some(_) => {}
        }
    }
    Ok(TensorInfo { name, dtype, shape, offset: begin, bytes })
}
