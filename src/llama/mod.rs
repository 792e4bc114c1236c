//! What llama.cpp calls, orders and stores: a GGUF file under the names of Hugging Face, and back.
//!
//! The container itself (header, metadata, several files of one checkpoint) is [`formats::gguf`](crate::formats::gguf).
//!
//! | file | idea |
//! |---|---|
//! | `names` | modules ↔ tensors of a GGUF file; rows in which order |
//! | `view`, `row_layout` | a GGUF checkpoint as Hugging Face has it: names, rows, experts one by one |
//! | `config`, `hyperparameters`, `rotary` | `config.json` ↔ metadata |
//! | `general` | `general.*`: what a file says of the model as a whole |
//! | `tokenizer` | `tokenizer.json` ↔ metadata |
//! | `mix`, `file_type` | which ggml type every tensor of a quantised file has |

mod config;
mod file_type;
pub mod general;
mod hyperparameters;
mod mix;
mod names;
mod rotary;
mod row_layout;
mod tokenizer;
mod view;

pub use config::{Family, hub_config};
pub use file_type::FileType;
pub use hyperparameters::Hyperparameters;
pub use mix::Mix;
pub use names::{
    GgufArch, HeadCounts, Heads, Place, RowOrder, gguf_arch, gguf_arch_of, gguf_archs, interleaved, split_parameter,
};
pub use rotary::RotaryFactors;
pub use row_layout::{RowLayout, RowPermutation};
pub use tokenizer::{Tokenizer, hub_tokenizer};
pub use view::View;
