//! What a base *is*: its tensors as logical weights with rows in f32, its config, its head.
//!
//! | file | idea |
//! |---|---|
//! | `base` | the model that is changed: tensors, names, config, ties |
//! | `weight` | one weight as rows of numbers, whatever stores it |
//! | `storage` | quantised weights, one file per way of storing them |
//! | `original` | the model as it was before an initialiser took its factors out |
//! | `config` | what the config of a model says, read once |
//! | `wrapping` | prefixes that wrap all names |
//! | `rounding` | how results are rounded to their dtype |
//! | `train_base` | how a base was quantised for training |
//! | `values` | whether two tensors hold the same numbers |

pub mod base;
pub mod config;
pub mod original;
mod rounding;
pub mod storage;
pub mod train_base;
mod values;
pub mod weight;
pub mod wrapping;

pub use config::ModelConfig;
pub use rounding::Rounding;
pub use train_base::{TrainBase, TrainCodes};
pub use values::{same_bytes, same_tensors, same_values};
