//! What an adapter file *means*: which module it changes, and how.
//!
//! An [`Adapter`] is a list of [`Change`]s by module path. Where a change lands (which tensor, which rows, which
//! orientation) is decided by `ops` with the base at hand; the result is a [`Delta`], the single home of each method's
//! mathematics.

mod adapter;
mod alpha_from;
pub mod config;
mod config_file;
mod delta;
mod dora;
mod embedded;
mod factor;
mod fields;
pub(crate) mod frozen;
mod gather;
mod initial;
pub mod keys;
pub mod kind;
mod llama_cpp;
mod low_rank;
mod magnitudes;
mod method;
pub mod methods;
pub mod named_base;
pub mod options;
mod parts;
mod pattern;
mod patterns;
pub mod peft_keys;
mod rows;
mod scaling;
mod spare;
mod stack;
mod turned;
mod whole;
pub mod wrappers;

pub use adapter::{Adapter, Change, Lora, Module, scale_of};
pub use alpha_from::AlphaFrom;
pub use config::{AdapterConfig, Init};
pub use delta::{BaseRows, Columns, Delta, Tile};
pub use dora::{Axis, Dora, Magnitudes, Manner};
pub use embedded::{embedding_of, embeddings_note};
pub use factor::Factor;
pub use frozen::is_saved_beside;
pub use gather::{Gathered, gather, gather_with, has_magnitudes};
pub use initial::{Initial, Initialiser};
pub use keys::is_bare_adapter;
pub use kind::Kind;
pub use llama_cpp::LlamaCpp;
pub use low_rank::{LowRankDelta, Term};
pub use magnitudes::{decomposed, magnitudes};
pub use method::{Inserted, Method, ParameterChange, Target};
pub use options::{Needed, ReadOptions};
pub use parts::{Context, Fallback, Parts, describe, number};
pub use rows::TokenRows;
pub use spare::Spare;
pub use stack::{Lies, Packing, Stack};
pub use turned::{Turned, Window};
pub use whole::{Difference, Whole};
