//! What a target makes of an adapter, before it is laid out on disk.

use std::path::PathBuf;

use super::dialect::{Dialect, Form};
use super::gguf::rows as gguf_rows;
use super::pieces::{Pair, Pieces};
use super::spell::is_of_pipeline;
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::formats::gguf::Metadata;
use crate::model::ModelConfig;
use crate::naming::Role;
use crate::naming::arch::Arch;
use crate::naming::scheme::Scheme;
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
    /// The config of the model, where it is at hand.
    pub model: Option<&'a ModelConfig>,
}

/// What is known of the model, and what is wished for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes<'a> {
    /// `config.json` of the model.
    pub config: Option<&'a ModelConfig>,
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

    /// Adds the factors A and B of the module `path`, in the names of `scheme`.
    pub fn add(&mut self, scheme: &Scheme, path: &str, (down, up): (Grid, Grid), float: Option<Float>) {
        for (role, grid) in [(Role::Down, down), (Role::Up, up)] {
            let key = scheme.print(path, &role).expect("every scheme has the roles of LoRA");
            self.tensors.push(matrix(key, grid, float));
        }
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
            Some(magnitude) if magnitude.per_input => Err(self.refuse(format!(
                "`{}` has a magnitude of DoRA per input; {who} knows only those per output",
                pair.path
            ))),
            own => Ok(own.as_ref().map(|magnitude| magnitude.grid.clone())),
        }
    }

    /// Whether the pairs are DoRA.
    ///
    /// # Errors
    /// When some are and others are not.
    pub fn dora(&self, pairs: &[Pair], who: &str) -> Result<bool> {
        let dora = pairs.iter().filter(|pair| pair.magnitude.is_some()).count();
        if dora > 0 && dora < pairs.len() {
            let what = "some modules have magnitudes of DoRA and others none";
            return Err(self.refuse(format!("{what}; {who} has them everywhere or nowhere")));
        }
        Ok(dora > 0)
    }

    /// Refuses changes that are no pairs, each with the reason.
    ///
    /// # Errors
    /// When there is one.
    pub fn only_pairs(&self, pieces: &Pieces, no_method: &str, no_whole: &str) -> Result<()> {
        if let Some(other) = pieces.methods.first() {
            let what = format!("`{}` is changed by {}, {no_method}", other.path, other.method.kind());
            return Err(self.refuse(what).hint("make it LoRA: --as lora"));
        }
        match pieces.whole.first() {
            Some(whole) => {
                Err(self.refuse(format!("`{}.{}` is stored whole, {no_whole}", whole.path, whole.parameter)))
            }
            None => Ok(()),
        }
    }

    /// Refuses adapters of diffusion pipelines; `who` loads others.
    ///
    /// # Errors
    /// When it is one.
    pub fn no_pipeline(&self, pieces: &Pieces, who: &str) -> Result<()> {
        match pieces.paths().find(|path| is_of_pipeline(self.adapter, path)) {
            Some(path) => Err(self.refuse(format!("`{path}` belongs to a diffusion pipeline; {who}"))),
            None => Ok(()),
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
