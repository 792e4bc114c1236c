//! A file, written: header, then the tensors in its order.

use std::io::{self, Write};
use std::path::Path;

use super::header::{MAGIC, UNKNOWN, alignment};
use super::metadata::{Metadata, render_text};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, GgmlType, TensorInfo};

/// The version that is written.
const VERSION: u32 = 3;

/// Where everything of a file lies, before anything is written.
#[derive(Debug, Clone)]
pub struct Layout {
    /// All bytes up to the data.
    pub head: Vec<u8>,
    /// The tensors; offsets count from the end of `head`.
    pub tensors: Vec<TensorInfo>,
    /// Length of the file.
    pub bytes: u64,
    /// What offsets are multiples of.
    pub alignment: u64,
}

/// The number of a type: that of [`GgmlType`], or the one it was read with.
pub fn type_id(dtype: &Dtype) -> Option<u32> {
    match dtype {
        Dtype::Other(name) => name.strip_prefix(UNKNOWN)?.parse().ok(),
        known => GgmlType::of(known).map(GgmlType::id),
    }
}

impl Layout {
    /// Lays out a file at `path` with this metadata and these tensors, in the order given; their offsets are set anew.
    ///
    /// # Errors
    /// When a tensor is of a type that ggml does not have, or `general.alignment` is none.
    pub fn new(path: &Path, metadata: &Metadata, mut tensors: Vec<TensorInfo>) -> Result<Self> {
        let alignment = alignment(path, metadata)?;
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((metadata.len() as u64).to_le_bytes());
        metadata.render(&mut head);
        let mut end: u64 = 0;
        for tensor in &mut tensors {
            let id = type_id(&tensor.dtype).ok_or_else(|| {
                let what = format!("tensor `{}`: ggml has no type for {}", tensor.name, tensor.dtype);
                Error::unsupported(path, what)
            })?;
            tensor.offset = end;
            let padded = tensor.bytes.checked_next_multiple_of(alignment).and_then(|bytes| end.checked_add(bytes));
            end = padded.ok_or_else(|| {
                Error::malformed(
                    path,
                    format!("tensor `{}`", tensor.name),
                    "the file would be longer than can be counted",
                )
            })?;
            render_text(tensor.name.as_bytes(), &mut head);
            let dimensions = tensor.shape.as_slice();
            head.extend(u32::try_from(dimensions.len()).unwrap_or(u32::MAX).to_le_bytes());
            head.extend(dimensions.iter().rev().flat_map(|dimension| dimension.to_le_bytes()));
            head.extend(id.to_le_bytes());
            head.extend(tensor.offset.to_le_bytes());
        }
        let padded = head.len().next_multiple_of(usize::try_from(alignment).unwrap_or(usize::MAX));
        head.resize(padded, 0);
        Ok(Self { bytes: head.len() as u64 + end, head, tensors, alignment })
    }
}

/// Writes a whole file: `data` gives the bytes of the tensors, in the order of the layout.
///
/// # Errors
/// When `out` does, or a tensor has another number of bytes than its place.
pub fn write<'a>(out: &mut impl Write, layout: &Layout, data: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
    out.write_all(&layout.head)?;
    let mut data = data.into_iter();
    for tensor in &layout.tensors {
        let bytes = data.next().filter(|bytes| bytes.len() as u64 == tensor.bytes);
        let bytes = bytes.ok_or_else(|| {
            io::Error::other(format!("tensor `{}` does not have the {} bytes of its place", tensor.name, tensor.bytes))
        })?;
        out.write_all(bytes)?;
        let mut padding = tensor.bytes.next_multiple_of(layout.alignment) - tensor.bytes;
        while padding > 0 {
            let zeros = [0; 64];
            let count = padding.min(64);
            out.write_all(&zeros[..usize::try_from(count).unwrap_or(64)])?;
            padding -= count;
        }
    }
    Ok(())
}
