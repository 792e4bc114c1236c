//! A tensor as its pickle describes it, and the bytes it stands for.
//!
//! `_rebuild_tensor_v2(storage, offset, size, stride, …)`: element (i, j, …) is element offset + i·stride₀ + j·stride₁ + …
//! of the storage. What lies in row-major order is used where it is; the rest is put in order in memory.

use super::globals::Known;
use super::value::{Heap, Node, Value};
use crate::limits::MAX_DIMENSIONS;
use crate::tensor::{Dtype, Shape};

/// Deepest chain of wrappers around a tensor: a parameter of a subclass.
const MAX_WRAPPERS: usize = 8;

/// A storage as a persistent id names it.
#[derive(Debug, Clone, PartialEq)]
pub struct StorageId<'a> {
    /// Its name in the file.
    pub key: &'a str,
    /// What it holds; `None` for plain bytes.
    pub dtype: Option<Dtype>,
    /// Number of elements (bytes, where there is no dtype).
    pub elements: u64,
    /// Legacy files: first element of the part that is meant.
    pub view_offset: u64,
}

/// A tensor that was not looked up yet.
#[derive(Debug)]
pub struct Described<'a> {
    /// Where its bytes are.
    pub storage: StorageId<'a>,
    /// Element type.
    pub dtype: Dtype,
    /// Index of its first element in the storage.
    pub offset: u64,
    /// Dimensions.
    pub shape: Shape,
    /// Distance between neighbours of each dimension, in elements.
    pub strides: Vec<u64>,
}

/// The call behind a value that is a tensor: the function that builds it, its arguments.
pub fn tensor_call<'h>(heap: &'h Heap<'_>, mut value: Value) -> Option<(&'h Known, &'h [Value])> {
    for _ in 0..MAX_WRAPPERS {
        let (function, arguments) = heap.call(value)?;
        match function {
            Known::Tensor | Known::TensorOfDtype => return Some((function, arguments)),
            Known::Parameter => value = *arguments.first()?,
            Known::FromType => {
                let (Value::Node(_), [_, _, inner, ..]) = (*arguments.first()?, arguments) else { return None };
                let Some(Node::Global(function)) = heap.node(arguments[0]) else { return None };
                match function {
                    Known::Parameter => value = *heap.sequence(*inner)?.first()?,
                    Known::Tensor | Known::TensorOfDtype => return Some((function, heap.sequence(*inner)?)),
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    None
}

/// Reads what a persistent id says.
///
/// # Errors
/// What is wrong with it.
pub fn storage_id<'a>(heap: &Heap<'a>, value: Value) -> Result<StorageId<'a>, String> {
    let Some(Node::Persistent(id)) = heap.node(value) else { return Err("has no storage".into()) };
    let id = heap.sequence(*id).unwrap_or_default();
    let [tag, class, key, _location, elements, view @ ..] = id else {
        return Err(format!("has a storage with {} facts instead of 5", id.len()));
    };
    if heap.text(*tag) != Some("storage") {
        return Err("has a persistent id that is no storage".into());
    }
    let dtype = match heap.node(*class) {
        Some(Node::Global(Known::Storage(dtype))) => Some(dtype.clone()),
        Some(Node::Global(Known::Bytes)) => None,
        _ => return Err("has a storage of an unknown class".into()),
    };
    let key = heap.text(*key).ok_or("has a storage whose key is no text")?;
    let elements = whole(*elements).ok_or("has a storage with a number of elements that is none")?;
    let view_offset = match view.first().and_then(|view| heap.sequence(*view)) {
        Some([_, offset, ..]) => whole(*offset).ok_or("has a view whose offset is no number")?,
        _ => 0,
    };
    Ok(StorageId { key, dtype, elements, view_offset })
}

/// Reads what the call of [`tensor_call`] says.
///
/// # Errors
/// What is wrong with it.
pub fn describe<'a>(heap: &Heap<'a>, call: (&Known, &[Value])) -> Result<Described<'a>, String> {
    let (function, arguments) = call;
    let [storage, offset, size, stride, others @ ..] = arguments else {
        return Err(format!("is built from {} values instead of 4 or more", arguments.len()));
    };
    let storage = storage_id(heap, *storage)?;
    let dtype = match (function, others) {
        (Known::TensorOfDtype, [_, _, dtype, ..]) => match heap.node(*dtype) {
            Some(Node::Global(Known::Dtype(dtype))) => dtype.clone(),
            _ => return Err("has no dtype".into()),
        },
        (Known::TensorOfDtype, _) => return Err("has no dtype".into()),
        _ => storage.dtype.clone().ok_or("has a storage of bytes and no dtype")?,
    };
    refuse_lazy(heap, function, others)?;
    let offset = whole(*offset).ok_or("begins at an offset that is negative or no number")?;
    let shape = wholes(heap, *size).ok_or("has a shape that is not of numbers from 0 on")?;
    let strides = wholes(heap, *stride).ok_or("has strides that are not numbers from 0 on")?;
    if shape.len() != strides.len() {
        return Err(format!("has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    if shape.len() > MAX_DIMENSIONS {
        return Err(format!("has {} dimensions, more than the accepted {MAX_DIMENSIONS}", shape.len()));
    }
    Ok(Described { storage, dtype, offset, shape: Shape::from(shape), strides })
}

/// torch notes that a tensor is to be read with its sign turned or conjugated, instead of doing it.
fn refuse_lazy(heap: &Heap<'_>, function: &Known, others: &[Value]) -> Result<(), String> {
    let at = if *function == Known::TensorOfDtype { 3 } else { 2 };
    let Some(Node::Dict(notes)) = others.get(at).and_then(|notes| heap.node(*notes)) else { return Ok(()) };
    match notes.iter().find(|(_, value)| *value != Value::Bool(false)) {
        Some((key, _)) => {
            Err(format!("is a lazy view (`{}`): its values are not those in the file", heap.text(*key).unwrap_or("?")))
        }
        None => Ok(()),
    }
}

impl Described<'_> {
    /// Whether its elements follow each other in row-major order.
    pub fn is_in_order(&self) -> bool {
        let mut expected = 1_u64;
        for (size, stride) in self.shape.as_slice().iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            expected = expected.saturating_mul(*size);
        }
        true
    }

    /// Number of elements.
    ///
    /// # Errors
    /// When they cannot be counted.
    pub fn elements(&self) -> Result<u64, String> {
        let count = self.shape.elements().filter(|count| count.checked_mul(16).is_some());
        count.ok_or_else(|| format!("has shape {}, more elements than can be counted", self.shape))
    }

    /// Index behind its last element, counted in the storage; it has elements.
    ///
    /// # Errors
    /// When it cannot be counted.
    pub fn end(&self) -> Result<u64, String> {
        let reach = self
            .shape
            .as_slice()
            .iter()
            .zip(&self.strides)
            .try_fold(0_u64, |sum, (size, stride)| sum.checked_add(size.saturating_sub(1).checked_mul(*stride)?));
        let end = reach
            .and_then(|reach| reach.checked_add(self.offset)?.checked_add(self.storage.view_offset)?.checked_add(1));
        end.ok_or_else(|| format!("has shape {}, whose strides reach beyond 64 bits", self.shape))
    }
}

fn whole(value: Value) -> Option<u64> {
    match value {
        Value::Int(value) => u64::try_from(value).ok(),
        _ => None,
    }
}

fn wholes(heap: &Heap<'_>, value: Value) -> Option<Vec<u64>> {
    heap.sequence(value)?.iter().map(|value| whole(*value)).collect()
}
