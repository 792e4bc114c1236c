//! lorakit merges LoRA adapters into the weights of a model, streamed at about the cost of a file copy, and accounts for
//! every tensor and every rounding.
//!
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
//! | 9 | [`ops`] | the verbs |
//! | 10 | [`report`] | results as text |
//!
//! # A merge
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use lorakit::ops::merge::{MergeOptions, Selection, merge};
//! use lorakit::ops::{Rounding, Run, WriteOptions};
//! use lorakit::plan::{Budget, Quiet};
//!
//! let write = WriteOptions {
//!     out: "merged".into(),
//!     force: false,
//!     dtype: None,
//!     cast_all: false,
//!     rounding: Rounding::Nearest,
//!     max_shard_bytes: None,
//!     budget: Budget { threads: 2, max_bytes: 2 << 30 },
//!     dry_run: false,
//!     part: None,
//!     durable: true,
//! };
//! let options = MergeOptions {
//!     base: "base".into(),
//!     adapters: vec![("adapter".into(), 1.0)],
//!     read: lorakit::adapters::ReadOptions::default(),
//!     init_adapters: Vec::new(),
//!     original: None,
//!     residual_base: false,
//!     selection: Selection::default(),
//!     allow_unused: Vec::new(),
//!     component: None,
//!     quant: None,
//!     keep_change: true,
//!     hash_base: false,
//!     resize_vocabulary: false,
//!     write,
//! };
//! let report = merge(&options, &Run { cancel: &AtomicBool::new(false), progress: &Quiet })?;
//! println!("{} tensors changed", report.tensors.changed);
//! # Ok::<(), lorakit::error::Error>(())
//! ```

pub mod adapters;
pub mod dialects;
pub mod error;
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
