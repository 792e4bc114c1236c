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
//! The crate is a stack of rooms; a room imports only from rooms below it (`tests/layers.rs` checks it):
//!
//! | layer | room | purpose |
//! |---|---|---|
//! | 0 | [`error`], [`limits`] | words for what goes wrong; numbers that are refused |
//! | 1 | [`interrupt`] | is the work of a thread still wanted? |
//! | 1 | [`tensor`] | what a tensor is, and how its bytes become f32 and back |
//! | 2 | [`io`] | bytes in, bytes out |
//! | 2 | [`linalg`] | matrices known by their factors |
//! | 2 | [`naming`] | strings ↔ module paths |
//! | 3 | [`formats`] | files ↔ tensors |
//! | 4 | [`adapters`] | what an adapter file means |
//! | 4 | [`plan`] | independent jobs within a memory budget |
//! | 5 | [`model`] | what a base is |
//! | 5 | [`pairs`] | low-rank pairs that are to be written |
//! | 6 | [`dialects`] | adapters as each tool writes them |
//! | 7 | [`placement`] | where each change belongs |
//! | 8 | [`output`] | how a result reaches the disk |
//! | 8 | [`truncate`] | changes and a choice of ranks → low-rank pairs |
//! | 9 | [`ops`] | the verbs |
//! | 10 | `face` | the builders and views of this page |
//! | 10 | [`report`] | results as text |

pub mod adapters;
pub mod dialects;
pub mod error;
mod face;
pub mod formats;
pub mod interrupt;
pub mod io;
pub mod limits;
pub mod linalg;
pub mod model;
pub mod naming;
pub mod ops;
pub mod output;
pub mod pairs;
pub mod placement;
pub mod plan;
pub mod report;
pub mod tensor;
pub mod truncate;

pub use error::{Error, Result};
pub use face::{Adapter, Convert, Extract, Inspect, Merge, Resize, Stack, Subtract, Subtracted};
pub use formats::Checkpoint;
pub use ops::Run;
pub use ops::convert::Target;
pub use tensor::Float;
