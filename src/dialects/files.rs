//! What a target makes of an adapter, before it is laid out on disk.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::dialect::{Dialect, Form};
use super::gguf::rows as gguf_rows;
use super::pieces::{Magnitude, Pair};
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::formats::gguf::Metadata;
use crate::naming::arch::Arch;
use crate::pairs::Bytes;
use crate::pairs::matrix::Grid;
use crate::tensor::{Float, GgmlType, Shape};

/// Key, shape, values.
pub type Tensor = (String, Shape, Bytes);

/// What a writer is told beside the changes.
pub struct Facts<'a> {
    /// The adapter that is converted.
    pub adapter: &'a Adapter,
    /// The family of models its names belong to.
    pub family: Option<&'static Arch>,
    /// The dtype of what is written; that of every tensor if not given.
    pub float: Option<Float>,
    /// What is known of the model, and what is wished for.
    pub wishes: Wishes<'a>,
    /// One file is written.
    pub is_file: bool,
}

/// What is known of the model, and what is wished for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes<'a> {
    /// `config.json` of the model.
    pub config: Option<&'a Map<String, Value>>,
    /// `--arch`.
    pub arch: Option<&'a str>,
    /// `--quant`.
    pub quant: Option<GgmlType>,
}

/// Files of an output.
#[derive(Default)]
pub struct Files {
    /// Name of the weight file.
    pub weights: String,
    /// What is in it.
    pub tensors: Vec<Tensor>,
    /// Free text of its header.
    pub metadata: Vec<(String, String)>,
    /// A file for llama.cpp instead: metadata and tensors.
    pub gguf: Option<(Metadata, Vec<gguf_rows::Tensor>)>,
    /// Small files: name, contents.
    pub beside: Vec<(PathBuf, Vec<u8>)>,
    /// Files that are copied: name, source.
    pub copied: Vec<(PathBuf, PathBuf)>,
    /// There is one file and no directory.
    pub single: bool,
    /// The header names the hashes that trainers write.
    pub hashed: bool,
    /// Pairs into whose factors a scale went.
    pub folded: usize,
    /// Pairs that were filled up with zeros.
    pub padded: usize,
    /// What the reader of the report should know.
    pub notes: Vec<String>,
}

impl Files {
    /// Nothing yet; called as in `dialect`, with `metadata` in the header.
    pub fn of(dialect: &Dialect, metadata: &[(&str, &str)]) -> Self {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let weights = dialect.files.first().copied().unwrap_or_default().into();
        Self { weights, metadata, single: matches!(dialect.form, Form::File(_)), ..Self::default() }
    }
}

impl Facts<'_> {
    /// The target cannot express this.
    pub fn refuse(&self, what: impl Into<String>) -> Error {
        Error::unsupported(&self.adapter.root, what)
    }

    /// The magnitudes of a pair, one per output.
    ///
    /// # Errors
    /// When there is one per input.
    pub fn magnitude(&self, pair: &Pair, who: &str) -> Result<Option<Grid>> {
        match &pair.magnitude {
            None => Ok(None),
            Some(Magnitude::Outputs(grid)) => Ok(Some(grid.clone())),
            Some(Magnitude::Inputs(_)) => Err(self.refuse(format!(
                "`{}` has a magnitude of DoRA per input; {who} knows only those per output",
                pair.path
            ))),
        }
    }
}

/// What is said of so many modules whose scale B could not take exactly.
pub fn rounded_note(modules: usize) -> Option<String> {
    (modules > 0).then(|| format!("B of {modules} modules was multiplied by no power of two and rounded once"))
}

/// A column under the shape it is written with.
pub fn column(name: String, grid: Grid, shape: &[u64], float: Option<Float>) -> Tensor {
    (name, Shape::from(shape.to_vec()), grid.bytes(float))
}

/// A matrix.
pub fn matrix(name: String, grid: Grid, float: Option<Float>) -> Tensor {
    (name, grid.shape(), grid.bytes(float))
}
