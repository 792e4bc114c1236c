//! What an adapter file *means*: which module it changes, and how.
//!
//! An [`Adapter`] is a list of [`Change`]s by module path. Where a change lands (which tensor, which rows, which
//! orientation) is decided by `ops` with the base at hand; the result is a [`Delta`], the single home of each method's
//! mathematics.

pub mod config;
mod delta;
mod dora;
mod embedded;
mod factor;
mod gather;
pub mod gguf;
mod initial;
mod low_rank;
mod magnitudes;
mod method;
pub mod methods;
mod parts;
mod pattern;
mod patterns;
mod peft;
mod read;
mod refused;
mod rows;
mod spare;
mod turned;
mod whole;

pub use config::{AdapterConfig, Init};
pub use delta::{BaseRows, Columns, Delta, Tile};
pub use dora::{Axis, Dora, Magnitudes, Manner};
pub use embedded::{embedding_of, embeddings_note};
pub use factor::Factor;
pub use gather::{Gathered, gather};
pub use initial::{Initial, Initialiser};
pub use low_rank::{LowRankDelta, Term};
pub use magnitudes::{decomposed, magnitudes};
pub use method::{Inserted, Method, ParameterChange, Target};
pub use parts::{Context, Parts, number};
pub use peft::{Adapter, Change, Lora, Module, describe};
pub use read::{
    ADAPTERHUB_HEADS, AlphaFrom, Needed, ReadOptions, is_adapter, is_bare_adapter, is_model, is_saved_beside,
    of_a_folder, of_a_model, recognise, torchtune_heads,
};
pub use rows::TokenRows;
pub use turned::{Turned, Window};
pub use whole::{Difference, Whole};
