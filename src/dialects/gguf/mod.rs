//! LoRA in GGUF, as llama.cpp loads it.
//!
//! A pair of tensors is named after the tensor of the base, with `.lora_a` and `.lora_b`; llama.cpp adds
//! strength · α / r · B A, where α (`adapter.lora.alpha`) is one number for the whole file and r is that of the pair.
//! Scales that no α says are folded into B: f = scale · r / α. Experts are stacked, q and k have the rows of B in the order of
//! [`RowOrder`](crate::llama::RowOrder), and A of an embedding is transposed.
//!
//! Source: llama.cpp `llama-adapter.cpp`; its converter `convert_lora_to_gguf.py` ignores rsLoRA and patterns of alpha.

mod heads;
mod order;
mod plan;
pub mod read;
pub mod rows;
pub mod write;

use super::dialect::{Dialect, Form};
use crate::adapters::config::INVOCATION;
pub use crate::llama::HeadCounts;
pub use plan::{Model, Part, Planned, metadata_of, plan};

/// llama.cpp: a GGUF file, known by its first bytes.
pub const GGUF: Dialect = Dialect {
    name: "gguf",
    title: "llama.cpp",
    form: Form::File("gguf"),
    files: &["adapter.gguf"],
    wants_config: true,
    takes_experts: true,
    says: &[INVOCATION],
    fit: write::fit,
    write: Some(|pieces, facts| write::write(&pieces, facts)),
    ..Dialect::PLAIN
};

/// The tensor that is a table of rows.
pub(super) const EMBEDDING: &str = "token_embd";
