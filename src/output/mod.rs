//! How a result reaches the disk: files, companions, recipe, parts; and the guard against inputs.
//!
//! | file | idea |
//! |---|---|
//! | `options` | what every writing verb is told |
//! | `files` | a planned output on disk, whole or in parts |
//! | `arrange`, `gguf` | which tensor of an output lies in which file |
//! | `sides` | config, companions, index and record beside the weights |
//! | `provenance`, `recipe` | what an output says about its own making |

pub mod arrange;
pub mod files;
pub mod gguf;
mod options;
pub mod provenance;
pub mod recipe;
pub mod sides;

pub use files::{Output, Run, refuse_inputs};
pub use options::{Part, WriteOptions};
