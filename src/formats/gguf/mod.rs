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
//! * What llama.cpp means by names, keys and the order of rows is [`llama`](crate::llama).
//! * `<prefix>-00001-of-0000N.gguf` are one checkpoint ([`Gguf`]).

mod cursor;
mod file;
mod header;
mod metadata;
mod set;
mod write;

pub use file::GgufFile;
pub use header::{FORMAT, Header, is_gguf_name, looks_like_gguf};
pub use metadata::{Array, Kind, Metadata, Value};
pub use set::{Gguf, cut, parse_name, split_name, split_prefix};
pub use write::{Layout, type_id, write};
