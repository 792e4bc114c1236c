//! GGUF, the file of llama.cpp: typed metadata in an order, then tensors in blocks of ggml.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 … 4 | `GGUF` |
//! | 4 … 8 | version, 2 or 3; where its lower half is 0 the whole file is big-endian |
//! | 8 … 24 | number of tensors, number of metadata entries |
//! | then | entries: key, type, value ([`Value`]) |
//! | then | tensors: name, number of dimensions, dimensions, type ([`GgmlType`](crate::tensor::GgmlType)), offset |
//! | then | padding to `general.alignment` (32 where it is not set), data; every tensor begins at a multiple of it |
//!
//! Numbers of things are u64, types u32, a text is its length and its bytes. Source: ggml `docs/gguf.md`, `gguf.cpp`.
//!
//! * A file says the innermost dimension first. Here a shape is what torch has, `[out, in]`: reversed.
//! * Nothing is lost: types, order, NaN and texts that are no UTF-8 are kept, so that a file written again is the same.
//!   Tensors of a type that is not known have the bytes up to the next one.
//! * Big-endian files are read as if they were little-endian, and only the latter are written.
//! * [`View`] shows a checkpoint under the names, and in the order of rows, that Hugging Face has.
//! * `<prefix>-00001-of-0000N.gguf` are one checkpoint ([`Gguf`]).

mod config;
mod cursor;
mod file;
mod file_type;
mod header;
mod hyperparameters;
mod lie;
mod metadata;
mod mix;
mod rotary;
mod set;
mod tokenizer;
mod view;
mod write;

pub use config::{Family, hub_config};
pub use file::GgufFile;
pub use file_type::FileType;
pub use header::{FORMAT, Header, is_gguf_name, looks_like_gguf};
pub use hyperparameters::Hyperparameters;
pub use lie::{Lie, RowOrder};
pub use metadata::{Array, Kind, Metadata, Value};
pub use mix::Mix;
pub use rotary::RotaryFactors;
pub use set::{Gguf, cut, parse_name, split_name, split_prefix};
pub use tokenizer::{Tokenizer, hub_tokenizer};
pub use view::View;
pub use write::{Layout, type_id, write};
