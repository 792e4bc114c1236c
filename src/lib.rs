//! lorakit merges LoRA adapters into the weights of a model, streamed at about the cost of a file copy, and accounts for
//! every tensor and every rounding.
//!
//! ```
//! # let folder = tempfile::tempdir()?;
//! # let out = folder.path().join("merged");
//! let merge = lorakit::Merge::new("fixtures/tiny/base").adapter("fixtures/tiny/adapter", 1.0);
//! let report = merge.out(&out).run()?;
//! println!("{} tensors changed, {} copied", report.tensors.changed, report.tensors.copied);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A tour
//! | to | begin with |
//! |---|---|
//! | merge, and take out again | [`Merge`], [`Subtract`] |
//! | make an adapter of a fine-tune, of adapters, of another rank | [`Extract`], [`Stack`], [`Resize`] |
//! | bring it into another form | [`Convert`], [`Target`] |
//! | know what a file is | [`Inspect`] |
//! | read modules, ranks, scales and ΔW | [`Adapter`] |
//! | read tensors | [`Checkpoint`] |
//! | stop a run, hear of its progress | [`Run`] |
//!
//! Every verb is a builder with the everyday options; for the others there are the option structs of [`ops`]. `examples/` holds
//! programs that run.
//!
//! The feature `cli`, on by default, belongs to the program: a library takes `lorakit` with `default-features = false`.
//!
//! # The rooms
//! The crate is a stack of rooms; a room imports only from rooms below it (`docs/inside/architecture.md`, `tests/layers.rs`). Those of
//! this page are [`error`], [`ops`] and [`plan`]; the others are hidden, and change without notice.

#[doc(hidden)]
pub mod adapters;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod dialects;
pub mod error;
mod face;
#[doc(hidden)]
pub mod formats;
#[doc(hidden)]
pub mod inserted;
#[doc(hidden)]
pub mod interrupt;
#[doc(hidden)]
pub mod io;
#[doc(hidden)]
pub mod limits;
#[doc(hidden)]
pub mod linalg;
#[doc(hidden)]
pub mod llama;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod naming;
pub mod ops;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod pairs;
#[doc(hidden)]
pub mod placement;
pub mod plan;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod tensor;
pub mod truncate;

pub use dialects::Target;
pub use error::{Error, Result};
pub use face::{Adapter, Convert, Extract, Inspect, Merge, Resize, Stack, Subtract, Subtracted};
pub use formats::Checkpoint;
pub use ops::Run;
pub use ops::sum::Intruders;
pub use tensor::Float;
