//! A checkpoint of llama.cpp as Hugging Face has it: names, shapes and experts one by one.
//!
//! The tensors of the view are ranges of bytes in those of the file, in its order; how the rows of a range lie is a [`RowLayout`].
//! What has no name there keeps the one it has: `rope_freqs.weight`, everything of an architecture without a table.

use std::collections::HashMap;
use std::sync::Arc;

use super::row_layout::{RowLayout, RowPermutation};
use super::{GgufArch, HeadCounts, gguf_arch, split_parameter};
use crate::error::{Error, Result};
use crate::formats::gguf::{Metadata, Value};
use crate::formats::{Checkpoint, WeightFile};
use crate::tensor::{GgmlType, Shape, TensorInfo};

/// What the tensors of a view are in their files.
#[derive(Debug)]
pub struct View {
    arch: Option<&'static GgufArch>,
    /// By name in the view.
    row_layouts: HashMap<String, RowLayout>,
    /// For each file, for each tensor of the view: which tensor of the file it is, or is part of.
    whole: Vec<Vec<usize>>,
}

impl View {
    /// A GGUF checkpoint under the names of Hugging Face, and how that lies in the files; any other as it is.
    ///
    /// # Errors
    /// When the metadata does not tell how rows are ordered.
    pub fn of(checkpoint: Checkpoint) -> Result<(Checkpoint, Option<Self>)> {
        let Some(metadata) = checkpoint.gguf().cloned() else { return Ok((checkpoint, None)) };
        // A range of bytes cannot be turned.
        let arch = metadata.text("general.architecture").and_then(gguf_arch).filter(|arch| !arch.is_turned());
        let mut view = Self { arch, row_layouts: HashMap::new(), whole: Vec::new() };
        let seen = checkpoint.seen_as(|file| view.see(&metadata, file))?;
        Ok((seen, Some(view)))
    }

    fn see(&mut self, metadata: &Metadata, file: WeightFile) -> Result<WeightFile> {
        let mut tensors = Vec::new();
        for (position, tensor) in file.header.tensors.iter().enumerate() {
            for piece in self.pieces(tensor) {
                if let Some(layout) = self.layout_of(metadata, &file, &piece)? {
                    self.row_layouts.insert(piece.name.clone(), layout);
                }
                tensors.push((position, piece));
            }
        }
        self.whole.push(tensors.iter().map(|(position, _)| *position).collect());
        Ok(file.with_tensors(tensors))
    }

    /// The tensors of the view that lie in one of the file.
    fn pieces(&self, tensor: &TensorInfo) -> Vec<TensorInfo> {
        if !is_sized(tensor) {
            return vec![tensor.clone()];
        }
        let named = |name: String| TensorInfo { name, ..tensor.clone() };
        let Some((arch, (stem, parameter))) = self.arch.zip(split_parameter(&tensor.name)) else {
            return vec![tensor.clone()];
        };
        if let Some(module) = arch.module(stem, None) {
            return vec![named(format!("{module}{parameter}"))];
        }
        let [experts, rest @ ..] = tensor.shape.as_slice() else { return vec![tensor.clone()] };
        if *experts == 0 || rest.is_empty() || arch.module(stem, Some(0)).is_none() {
            return vec![tensor.clone()];
        }
        let bytes = tensor.bytes / experts;
        let one = |expert: u64| {
            let module = arch.module(stem, Some(expert))?;
            let (shape, offset) = (Shape::from(rest.to_vec()), tensor.offset + expert * bytes);
            Some(TensorInfo { name: format!("{module}{parameter}"), shape, offset, bytes, ..tensor.clone() })
        };
        (0..*experts).filter_map(one).collect()
    }

    fn layout_of(&self, metadata: &Metadata, file: &WeightFile, tensor: &TensorInfo) -> Result<Option<RowLayout>> {
        let module = split_parameter(&tensor.name).filter(|_| is_sized(tensor));
        let Some((arch, (module, _))) = self.arch.zip(module) else { return Ok(None) };
        let (added, order) = (arch.added(module), arch.place(module).and_then(|place| place.order));
        let Some(order) = order else { return Ok((added != 0.0).then_some(RowLayout { order: None, added })) };
        let rows = tensor.shape.as_slice().first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(0);
        let key = |key: &str| format!("{}.attention.{key}", arch.name());
        let of = |name: &str| metadata.get(&key(name)).and_then(|value| count(value, layer_of(module)));
        let wrong = |problem: String| Error::malformed(file.map.path(), format!("tensor `{}`", tensor.name), problem);
        let heads = of("head_count").ok_or_else(|| {
            wrong(format!("the order of its rows needs the number of heads, key `{}`", key("head_count")))
        })?;
        let kv_heads = of("head_count_kv").unwrap_or(heads);
        let order = order.rows(rows, HeadCounts { heads, kv_heads }).map_err(wrong)?;
        Ok(Some(RowLayout { order: Some(Arc::new(RowPermutation::new(&order))), added }))
    }

    /// Whether the names of the architecture are known.
    pub fn is_named(&self) -> bool {
        self.arch.is_some()
    }

    /// How the rows of a tensor of the view lie in its file.
    pub fn row_layout(&self, name: &str) -> RowLayout {
        self.row_layouts.get(name).cloned().unwrap_or_default()
    }

    /// Which tensor of file `file` the tensor at `position` of the view is, or is part of.
    pub fn whole(&self, file: usize, position: usize) -> usize {
        self.whole[file][position]
    }

    /// How the file calls a tensor that it does not have yet; `None` where it has no place for it.
    pub fn place_of(&self, name: &str) -> Option<String> {
        let (module, parameter) = split_parameter(name)?;
        let place = self.arch?.place(module)?;
        place.expert.is_none().then(|| format!("{}{parameter}", place.tensor))
    }
}

/// Whether the bytes of a tensor bear out its dimensions: those of one without values, or of a type that is not known, may
/// be anything.
fn is_sized(tensor: &TensorInfo) -> bool {
    tensor.bytes > 0 && GgmlType::of(&tensor.dtype).is_some()
}

/// A number, or the one of a layer where every layer has its own.
fn count(value: &Value, layer: u64) -> Option<usize> {
    let number = match value {
        Value::Array(array) => array.iter().nth(usize::try_from(layer).ok()?)?.as_u64(),
        one => one.as_u64(),
    };
    number.and_then(|number| usize::try_from(number).ok())
}

/// The layer that a module is part of; 0 where it is part of none.
fn layer_of(module: &str) -> u64 {
    module.split('.').find_map(|part| part.parse().ok()).unwrap_or(0)
}
