//! From named values to tensors: every storage is found and every range of bytes checked before it is used.

use std::path::Path;
use std::sync::Arc;

use foldhash::HashMap;

use super::state::State;
use super::tensor::{Described, StorageId, describe, tensor_call};
use super::value::Heap;
use crate::error::{Error, Result};
use crate::formats::found::Found;
use crate::formats::held::{Budget, gather};
use crate::io::MappedFile;
use crate::limits::MAX_SHARING;
use crate::tensor::{Dtype, TensorInfo};

/// Where a storage lies.
#[derive(Debug, Clone)]
pub struct Storage {
    /// What holds it, where the file does not as it is.
    pub held: Option<Arc<MappedFile>>,
    /// First byte, in the file or in what is held.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

/// A container of storages.
pub trait Storages {
    /// The storage of this key, unless there is none.
    ///
    /// # Errors
    /// When the container is damaged there.
    fn find(&self, key: &str, budget: &mut Budget<'_>) -> Result<Option<Storage>>;
}

/// Finds the bytes of all tensors of `state`.
///
/// # Errors
/// `Malformed`, naming the tensor, or `Limit`.
pub fn collect(
    map: &Arc<MappedFile>,
    heap: &Heap<'_>,
    state: State,
    storages: &dyn Storages,
    budget: &mut Budget<'_>,
) -> Result<Found> {
    let mut found = Found { notes: state.notes, ..Found::default() };
    let mut known: HashMap<&str, Storage> = HashMap::default();
    let mut total = 0_u64;
    let most = map.len().saturating_mul(MAX_SHARING);
    for (name, value) in state.tensors {
        let wrong = |problem: String| Error::malformed(map.path(), format!("tensor `{name}`"), problem);
        let call = tensor_call(heap, value).ok_or_else(|| wrong("is not a tensor".into()))?;
        let tensor = describe(heap, call).map_err(wrong)?;
        let elements = tensor.elements().map_err(wrong)?;
        let bytes = elements * item_bytes(&tensor.dtype);
        total = total.saturating_add(bytes);
        if total > most {
            let what = format!("the bytes of its tensors, up to `{name}`,");
            return Err(Error::limit(map.path(), what, total, most)
                .hint("its tensors share or repeat their storages far more often than a model does"));
        }
        let storage = match known.get(tensor.storage.key) {
            Some(storage) => storage.clone(),
            None => match look_up(storages, &tensor.storage, budget)? {
                Some(storage) => {
                    known.insert(tensor.storage.key, storage.clone());
                    storage
                }
                None if elements == 0 => Storage { held: None, start: 0, len: 0 },
                None => return Err(wrong(format!("its storage `{}` is not in the file", short(tensor.storage.key)))),
            },
        };
        check(&tensor, elements, &storage).map_err(wrong)?;
        let (held, offset) = place(map, &name, &tensor, bytes, &storage, budget)?;
        found.push(TensorInfo { name, dtype: tensor.dtype, shape: tensor.shape, offset, bytes }, held);
    }
    Ok(found)
}

fn look_up(storages: &dyn Storages, id: &StorageId<'_>, budget: &mut Budget<'_>) -> Result<Option<Storage>> {
    // A key is a file name in the archive, never a path.
    if id.key.contains(['/', '\\']) || id.key.starts_with('.') { Ok(None) } else { storages.find(id.key, budget) }
}

/// The elements of a tensor lie in its storage, and that in the file.
fn check(tensor: &Described<'_>, elements: u64, storage: &Storage) -> Result<(), String> {
    let id = &tensor.storage;
    let (key, has) = (short(id.key), storage.len);
    let declared = id.elements.checked_mul(id.dtype.as_ref().map_or(1, item_bytes));
    match declared {
        Some(declared) if declared <= has || elements == 0 => {}
        Some(declared) => return Err(format!("its storage `{key}` declares {declared} bytes, the file has {has}")),
        None => return Err(format!("its storage `{key}` declares {} elements, the file has {has} bytes", id.elements)),
    }
    if elements == 0 {
        return Ok(());
    }
    let end = tensor.end()?;
    match end.checked_mul(item_bytes(&tensor.dtype)) {
        Some(end) if end <= has => Ok(()),
        _ => Err(format!("reaches element {end} of its storage `{key}`, which has {has} bytes of {}", tensor.dtype)),
    }
}

/// Where the tensor lies: what holds it, if the file does not, and its first byte there.
fn place(
    map: &Arc<MappedFile>,
    name: &str,
    tensor: &Described<'_>,
    bytes: u64,
    storage: &Storage,
    budget: &mut Budget<'_>,
) -> Result<(Option<Arc<MappedFile>>, u64)> {
    if bytes == 0 {
        return Ok((None, 0));
    }
    let item = item_bytes(&tensor.dtype);
    let first = tensor.offset + tensor.storage.view_offset;
    if tensor.is_in_order() {
        return Ok((storage.held.clone(), storage.start + first * item));
    }
    budget.take(bytes, &format!("tensor `{name}`, whose elements do not follow each other"))?;
    let source = Arc::clone(storage.held.as_ref().unwrap_or(map));
    source.slice(storage.start, storage.len)?;
    // All of it was checked against the storage, which is in memory.
    let size = |number: u64| usize::try_from(number).expect("below the length of a mapped file");
    let shape: Vec<usize> = tensor.shape.as_slice().iter().map(|dimension| size(*dimension)).collect();
    // Where a dimension has one element, its stride is never used and can be anything.
    let strides = tensor.shape.as_slice().iter().zip(&tensor.strides);
    let strides: Vec<usize> = strides.map(|(size_of, stride)| if *size_of == 1 { 1 } else { size(*stride) }).collect();
    let (start, len) = (storage.start, storage.len);
    let make = move || {
        let bytes = source.slice(start, len).unwrap_or_default();
        let gathered = gather(bytes, size(item), size(first), &shape, &strides);
        source.release(start, len);
        gathered
    };
    Ok((Some(Arc::new(map.held_lazily(bytes, make))), 0))
}

/// Bytes of one element: all dtypes of torch that can be read fill whole bytes.
fn item_bytes(dtype: &Dtype) -> u64 {
    u64::from(dtype.bits().unwrap_or(8) / 8)
}

fn short(key: &str) -> String {
    key.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The name of a tensor that stands alone in a file: that of the file.
pub fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
