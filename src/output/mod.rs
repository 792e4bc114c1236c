//! How a result reaches the disk: files, companions, recipe, parts; and the guard against inputs.
//!
//! | file | idea |
//! |---|---|
//! | `options` | what every writing verb is told |
//! | `files` | a planned output on disk, whole or in parts |
//! | `arrange`, `gguf` | which tensor of an output lies in which file |
//! | `sides` | config, companions, index and record beside the weights |
//! | `tensors`, `new_adapter` | weight files of what was computed; a new PEFT adapter |
//! | `part_note`, `fingerprint` | what a part says of itself and of the inputs it was made from |
//! | `provenance`, `recipe` | what an output says about its own making |

pub mod arrange;
pub mod files;
pub mod fingerprint;
pub mod gguf;
pub mod new_adapter;
pub mod options;
mod own_dialect;
pub mod part_note;
pub mod provenance;
pub mod recipe;
pub mod sides;
pub mod tensors;

pub use files::{Expected, Output, Run, check_early};
pub use options::{Part, WriteOptions};
