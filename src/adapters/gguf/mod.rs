//! LoRA in GGUF, as llama.cpp loads it: to and from modules with factors.
//!
//! A pair of tensors is named after the tensor of the base, with `.lora_a` and `.lora_b`; llama.cpp adds
//! strength · α / r · B A, where α (`adapter.lora.alpha`) is one number for the whole file and r is that of the pair.
//! Scales that no α says are folded into B: f = scale · r / α. Experts are stacked, q and k have the rows of B in the order of
//! [`interleaved`], and A of an embedding is transposed.
//!
//! Source: llama.cpp `llama-adapter.cpp`; its converter `convert_lora_to_gguf.py` ignores rsLoRA and patterns of alpha.

mod read;
mod write;

pub use read::pairs_of;
pub use write::{GgufLora, lora_tensors, metadata_of};

use crate::naming::gguf::{Heads, Place, interleaved};

/// The factors of one module, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The module as the checkpoint calls it.
    pub module: String,
    /// A: `[rank, inputs]`; of an embedding `[rank, rows of the table]`.
    pub down: Vec<f32>,
    /// B: `[outputs, rank]`; of an embedding `[width, rank]`.
    pub up: Vec<f32>,
    /// r.
    pub rank: usize,
    /// What B A is multiplied by.
    pub scale: f64,
}

/// How many heads a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCounts {
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`, or the same.
    pub kv_heads: usize,
}

/// The tensor that is a table of rows.
const EMBEDDING: &str = "token_embd";

/// For every row in the file the one of the checkpoint, where the order differs.
fn row_order(place: &Place, counts: Option<HeadCounts>, rows: usize) -> Result<Option<Vec<usize>>, String> {
    let Some(rotary) = place.rotary else { return Ok(None) };
    let counts = counts.ok_or("the number of attention heads is not known, and the order of its rows needs it")?;
    let heads = match rotary {
        Heads::Heads => counts.heads,
        Heads::KvHeads => counts.kv_heads,
    };
    let order = interleaved(rows, heads);
    order.map(Some).ok_or_else(|| format!("{rows} outputs are not {heads} heads of an even number of rows"))
}

/// The transpose of a matrix of `rows` rows.
fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len().checked_div(rows).unwrap_or(0);
    (0..values.len()).map(|at| values[at % rows * columns + at / rows]).collect()
}
