//! What every set of tensors has: files, dtypes, sizes.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{counted, named};
use crate::formats::{Checkpoint, Container};
use crate::tensor::{Dtype, TensorInfo};

/// The tensors of a checkpoint or adapter as they are stored.
#[derive(Debug, Clone, Serialize)]
pub struct Weights {
    /// `file`, `directory` or `sharded`.
    pub container: &'static str,
    /// File name of the index of a sharded set.
    pub index: Option<String>,
    /// The weight files in name order.
    pub files: Vec<FileFacts>,
    /// Number of tensors.
    pub tensor_count: usize,
    /// Elements of the floating point tensors. Integers are not counted: they are buffers or packed weights, whose
    /// elements are not parameters.
    pub parameters: u64,
    /// Tensors that [`Weights::parameters`] leaves out.
    pub uncounted_tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Element types, the one with most bytes first.
    pub dtypes: Vec<DtypeFacts>,
    /// What should be known of how the files were read.
    pub notes: Vec<String>,
    /// Keys of the headers' free text.
    pub metadata_keys: BTreeSet<String>,
}

/// One weight file.
#[derive(Debug, Clone, Serialize)]
pub struct FileFacts {
    /// Path below the directory.
    pub name: String,
    /// How it keeps its tensors: `safetensors`, `pytorch` …
    pub format: &'static str,
    /// Tensors in it.
    pub tensors: usize,
    /// Its length.
    pub bytes: u64,
}

/// All tensors of one element type.
#[derive(Debug, Clone, Serialize)]
pub struct DtypeFacts {
    /// As safetensors spells it.
    pub dtype: String,
    /// Tensors of this type.
    pub tensors: usize,
    /// Their elements; `None` where the type is not known.
    pub elements: Option<u64>,
    /// Their bytes.
    pub bytes: u64,
}

/// One tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorFacts {
    /// Its name.
    pub name: String,
    /// As safetensors spells it.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Its bytes.
    pub bytes: u64,
    /// Path of its file below the directory.
    pub file: String,
}

impl Weights {
    /// What the headers of `checkpoint` say.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let (container, index) = match checkpoint.container() {
            Container::File => ("file", None),
            Container::Directory => ("directory", None),
            Container::Split => ("split", None),
            Container::Sharded { index, .. } => ("sharded", Some(index.clone())),
            Container::Pipeline(_) => ("pipeline", None),
        };
        let files = checkpoint.files().iter();
        let keys = files.clone().flat_map(|file| file.header.metadata.iter().map(|(key, _)| key.clone()));
        let typed = checkpoint.gguf().into_iter().flat_map(|metadata| metadata.iter().map(|(key, _)| key.to_owned()));
        Self {
            container,
            index,
            files: files
                .clone()
                .map(|file| FileFacts {
                    name: file.name.clone(),
                    format: file.format.name,
                    tensors: file.header.tensors.len(),
                    bytes: file.map.len(),
                })
                .collect(),
            tensor_count: checkpoint.count(),
            parameters: checkpoint.tensors().fold(0, |sum, tensor| sum.saturating_add(parameters(tensor))),
            uncounted_tensors: checkpoint.tensors().filter(|tensor| !holds_parameters(&tensor.dtype)).count(),
            bytes: checkpoint.tensors().map(|tensor| tensor.bytes).sum(),
            dtypes: dtypes(checkpoint),
            notes: checkpoint.notes().cloned().collect(),
            metadata_keys: keys.chain(typed).collect(),
        }
    }

    /// Length of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Every tensor, file by file in offset order.
pub fn listing(checkpoint: &Checkpoint) -> impl Iterator<Item = TensorFacts> + '_ {
    let of = |tensor: &TensorInfo, file: &str| TensorFacts {
        name: tensor.name.clone(),
        dtype: tensor.dtype.name().to_owned(),
        shape: tensor.shape.as_slice().to_vec(),
        bytes: tensor.bytes,
        file: file.to_owned(),
    };
    checkpoint.files().iter().flat_map(move |file| file.header.tensors.iter().map(move |tensor| of(tensor, &file.name)))
}

/// The `most` largest tensors.
pub(super) fn largest(checkpoint: &Checkpoint, most: usize) -> Vec<TensorFacts> {
    let all = || checkpoint.files().iter().flat_map(|file| &file.header.tensors);
    let mut order: Vec<(u64, usize)> = all().enumerate().map(|(at, tensor)| (tensor.bytes, at)).collect();
    let rank = |entry: &(u64, usize)| (std::cmp::Reverse(entry.0), entry.1);
    if order.len() > most {
        order.select_nth_unstable_by_key(most, rank);
        order.truncate(most);
    }
    order.sort_by_key(rank);
    order.into_iter().filter_map(|(_, at)| listing(checkpoint).nth(at)).collect()
}

/// Number of elements; what a header that was read can hold never overflows but for unknown dtypes.
pub(super) fn elements(tensor: &TensorInfo) -> u64 {
    tensor.shape.elements().unwrap_or(u64::MAX)
}

/// Elements that are parameters.
pub(super) fn parameters(tensor: &TensorInfo) -> u64 {
    if holds_parameters(&tensor.dtype) { elements(tensor) } else { 0 }
}

/// What is wrong with any set of tensors: dtypes that are not known, tensors without elements but those that are `meant` to have
/// none.
pub(super) fn problems(checkpoint: &Checkpoint, meant: impl Fn(&TensorInfo) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    let unknown: BTreeSet<&str> =
        checkpoint.tensors().filter(|tensor| !is_known(&tensor.dtype)).map(|tensor| tensor.dtype.name()).collect();
    if !unknown.is_empty() {
        let what = named(unknown.iter().copied());
        problems.push(format!("holds tensors of unknown dtype {what}: they can be copied, not computed with"));
    }
    let empty: Vec<&str> =
        checkpoint.tensors().filter(|info| info.bytes == 0 && !meant(info)).map(|info| info.name.as_str()).collect();
    if !empty.is_empty() {
        let count = counted(empty.len(), "tensor");
        problems.push(format!("{count} without elements, as ZeRO-3 and FSDP leave them: {}", named(empty)));
    }
    problems
}

/// Whether it is known what elements of this type are.
fn is_known(dtype: &Dtype) -> bool {
    dtype.bits().is_some() || matches!(dtype, Dtype::Ggml(_))
}

/// Whether every element is one parameter.
fn holds_parameters(dtype: &Dtype) -> bool {
    dtype.float().is_some()
        || matches!(dtype, Dtype::Ggml(_))
        || matches!(dtype, Dtype::F4 | Dtype::F6E2M3 | Dtype::F6E3M2)
}

fn dtypes(checkpoint: &Checkpoint) -> Vec<DtypeFacts> {
    let mut found: Vec<(&Dtype, DtypeFacts)> = Vec::new();
    for tensor in checkpoint.tensors() {
        let at = found.iter().position(|(dtype, _)| **dtype == tensor.dtype).unwrap_or_else(|| {
            let elements = is_known(&tensor.dtype).then_some(0);
            let dtype = tensor.dtype.name().to_owned();
            found.push((&tensor.dtype, DtypeFacts { dtype, tensors: 0, elements, bytes: 0 }));
            found.len() - 1
        });
        let facts = &mut found[at].1;
        facts.tensors += 1;
        facts.elements = facts.elements.map(|sum: u64| sum.saturating_add(elements(tensor)));
        facts.bytes += tensor.bytes;
    }
    let mut found: Vec<DtypeFacts> = found.into_iter().map(|(_, facts)| facts).collect();
    found.sort_by(|left, right| right.bytes.cmp(&left.bytes).then_with(|| left.dtype.cmp(&right.dtype)));
    found
}
