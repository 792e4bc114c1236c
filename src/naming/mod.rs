//! Strings ↔ module paths. Tables and rules only: nothing here ever touches a tensor.
//!
//! The canonical *module path* is the base model's own key without its last component, as in
//! `model.layers.0.self_attn.q_proj`.
//!
//! * [`Key`]: a key taken apart into module path and [`Role`]; [`scheme`]: how each tool writes both, as tables.
//! * [`conv1d`]: layers that keep their weight as `[in, out]`.
//! * [`embeddings`]: modules that are tables of rows.
//! * [`buffers`]: tensors that are no parameters.
//! * [`arch`]: families of models, their names in the original and in diffusers, fused and split weights, as tables.
//! * [`adapterhub`]: where AdapterHub's library can put factors, as a table.
//! * [`head`]: output heads and the embeddings they share, by class, as a table.
//! * [`Endings`]: lists of names that mean the ends of paths.
//! * [`experts`]: the ways mixture-of-experts layers are stored, as a table.
//! * [`blocks`]: weights block by block.
//! * [`Forms`]: what is judged once for all names that differ in numbers alone.
//! * [`Names`]: the keys of a base, what resembles them, and how an adapter's paths map onto them.

pub mod adapterhub;
pub mod arch;
pub mod blocks;
pub mod buffers;
pub mod components;
pub mod conv1d;
pub mod embeddings;
mod endings;
pub mod experts;
mod forms;
pub mod head;
mod names;
mod nesting;
pub mod renamed;
pub mod scheme;

pub use endings::{Endings, ends};
pub use forms::{Forms, layer_of};
pub use names::{Names, Shift};
pub use nesting::layers_within_layers;

/// A key, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Module path without wrappers.
    pub module: String,
    /// How many wrappers stood at the end of the path: nested parameter adapters of one module differ in nothing else.
    pub nesting: usize,
    /// What the tensor is.
    pub role: Role,
}

/// What a tensor is to its module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// LoRA's down projection A, `[r, in]`.
    Down,
    /// LoRA's up projection B, `[out, r]`.
    Up,
    /// The bias of B, `[out]`.
    UpBias,
    /// A of an embedding, `[r, vocabulary]`.
    EmbeddingDown,
    /// B of an embedding, `[dim, r]`.
    EmbeddingUp,
    /// DoRA's magnitudes, one per output.
    Magnitude,
    /// Whole rows that replace rows of an embedding.
    TokenRows,
    /// A parameter of the frozen layer that was saved along, as `weight` or `bias`.
    Frozen(String),
    /// A parameter saved whole, as `weight` or `bias`.
    Whole(String),
    /// α of one module, a scalar beside its factors.
    Alpha,
    /// A tensor of a method other than LoRA, by the suffix that its own tool gives it: `hada_w1_a`, `oft_R`, `diff` …
    Part(String),
    /// Something of LoRA that this crate does not know.
    Unknown(String),
}

impl Role {
    /// What the role is called in messages, and in [`Role::Part`] for the same tensor of another method.
    pub fn label(&self) -> &str {
        match self {
            Self::Down => "lora_A",
            Self::Up => "lora_B",
            Self::UpBias => "lora_B.bias",
            Self::EmbeddingDown => "lora_embedding_A",
            Self::EmbeddingUp => "lora_embedding_B",
            Self::Magnitude => "lora_magnitude_vector",
            Self::TokenRows => "trainable_tokens_delta",
            Self::Alpha => "alpha",
            Self::Frozen(name) | Self::Whole(name) | Self::Part(name) | Self::Unknown(name) => name,
        }
    }
}
