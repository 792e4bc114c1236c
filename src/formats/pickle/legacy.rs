//! Files of `torch.save` before 1.6: pickles one after the other, then the storages.
//!
//! | part | contents |
//! |---|---|
//! | pickle | the number 0x1950a86a20f9469cfc6c |
//! | pickle | the number 1001 |
//! | pickle | a dict about the machine, with `little_endian` |
//! | pickle | the object; its persistent ids name storages |
//! | pickle | the keys of the storages, in file order |
//! | per key | number of elements (i64), then the elements |
//!
//! Source: torch `serialization.py`, `_legacy_save`. How long an element is, only the persistent ids tell.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::collect::{Storage, Storages, collect, stem};
use super::machine::{self, Unpickled};
use super::state;
use super::tensor::storage_id;
use super::value::{Heap, Node, Value};
use crate::error::{Error, Result};
use crate::formats::found::Found;
use crate::formats::held::Budget;
use crate::io::MappedFile;
use crate::tensor::Dtype;

/// The pickle of the magic number behind its protocol, which is 2 to 5.
const MAGIC: &[u8] = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";

/// The number behind the magic one.
const PROTOCOL: i64 = 1001;

/// Whether a file begins as one of these.
fn is_legacy(bytes: &[u8]) -> bool {
    let rest = match bytes {
        [0x80, _, rest @ ..] => rest,
        _ => return false,
    };
    // From protocol 4 on a frame surrounds the number.
    let rest = match rest {
        [0x95, rest @ ..] => rest.get(8..).unwrap_or_default(),
        _ => rest,
    };
    rest.starts_with(MAGIC)
}

/// Reads the tensors of the file `map`; `None` if it is another file.
///
/// # Errors
/// When it is damaged, or asks for something that no weights need.
pub fn read(map: &Arc<MappedFile>) -> Result<Option<Found>> {
    let path = map.path();
    if !is_legacy(map.bytes()) {
        return Ok(None);
    }
    let mut at = 0;
    let mut next = |what: &str| -> Result<(Unpickled<'_>, usize)> {
        let unpickled = machine::read(path, &format!("{what} at byte {at}"), &map.bytes()[at..])?;
        at += unpickled.len;
        Ok((unpickled, at))
    };
    next("magic number")?;
    let (protocol, _) = next("protocol number")?;
    if protocol.root != Value::Int(PROTOCOL) {
        return Err(Error::malformed(path, "protocol number", format!("is not {PROTOCOL}")));
    }
    let (machine, _) = next("machine")?;
    if entry(&machine.heap, machine.root, "little_endian") == Some(Value::Bool(false)) {
        return Err(Error::unsupported(path, "was saved by a big-endian machine, whose numbers cannot be read"));
    }
    let (object, _) = next("object")?;
    let (keys, start) = next("storage keys")?;
    let storages = locate(map, &object.heap, &keys, start)?;
    let state = state::find(path, &object.heap, object.root, &stem(path))?;
    let mut budget = Budget::new(path, map.len());
    collect(map, &object.heap, state, &Located(storages), &mut budget).map(Some)
}

/// Walks over the storages behind byte `start`, in the order of their keys.
fn locate(
    map: &Arc<MappedFile>,
    heap: &Heap<'_>,
    keys: &Unpickled<'_>,
    start: usize,
) -> Result<HashMap<String, Storage>> {
    let path = map.path();
    let wrong = |problem: String| Error::malformed(path, "storages", problem);
    let widths = element_bytes(path, heap)?;
    let listed = keys.heap.sequence(keys.root).ok_or_else(|| wrong("their keys are no list".into()))?;
    let mut storages = HashMap::new();
    let mut at = start as u64;
    for key in listed {
        let key = keys.heap.text(*key).ok_or_else(|| wrong("a key is no text".into()))?;
        // No tensor uses it, so nothing tells how long it is: it can be the last one only.
        let Some(width) = widths.get(key) else {
            return Err(wrong(format!("storage `{key}` belongs to no tensor, so its length is not known")));
        };
        let count = map.slice(at, 8)?.first_chunk().map_or(0, |chunk| i64::from_le_bytes(*chunk));
        let len = u64::try_from(count).ok().and_then(|count| count.checked_mul(*width));
        let end = len.and_then(|len| (at + 8).checked_add(len)).filter(|end| *end <= map.len());
        let (Some(len), Some(end)) = (len, end) else {
            let left = map.len() - at - 8;
            return Err(wrong(format!(
                "storage `{key}` declares {count} elements of {width} bytes, {left} bytes are left"
            ))
            .hint("the file was cut short, or is damaged"));
        };
        storages.insert(key.to_owned(), Storage { held: None, start: at + 8, len });
        at = end;
    }
    Ok(storages)
}

/// Bytes per element of every storage that a persistent id names.
fn element_bytes<'a>(path: &Path, heap: &Heap<'a>) -> Result<HashMap<&'a str, u64>> {
    let mut widths = HashMap::new();
    for (at, node) in heap.nodes().iter().enumerate() {
        if !matches!(node, Node::Persistent(_)) {
            continue;
        }
        let value = Value::Node(u32::try_from(at).expect("the accepted number of values fits 32 bits"));
        let id = storage_id(heap, value)
            .map_err(|problem| Error::malformed(path, "object", format!("a tensor {problem}")))?;
        let width = id.dtype.as_ref().and_then(Dtype::bits).map_or(1, |bits| u64::from(bits / 8));
        if widths.insert(id.key, width).is_some_and(|before| before != width) {
            let problem = format!("storage `{}` holds elements of two lengths", id.key);
            return Err(Error::malformed(path, "object", problem));
        }
    }
    Ok(widths)
}

fn entry(heap: &Heap<'_>, dict: Value, key: &str) -> Option<Value> {
    let Some(Node::Dict(entries)) = heap.node(dict) else { return None };
    entries.iter().find(|(name, _)| heap.text(*name) == Some(key)).map(|(_, value)| *value)
}

struct Located(HashMap<String, Storage>);

impl Storages for Located {
    fn find(&self, key: &str, _: &mut Budget<'_>) -> Result<Option<Storage>> {
        Ok(self.0.get(key).cloned())
    }
}
