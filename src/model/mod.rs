//! What a base *is*: its tensors as logical weights with rows in f32, its config, its head.
//!
//! | file | idea |
//! |---|---|
//! | `base` | the model that is changed: tensors, names, config, ties |
//! | `weight` | one weight as rows of numbers, whatever stores it |
//! | `original` | the model as it was before an initialiser took its factors out |
//! | `heads`, `wrapping` | what a config says of the head; prefixes that wrap all names |
//! | `rounding` | how results are rounded to their dtype |
//! | `values` | whether two tensors hold the same numbers |

pub mod base;
pub mod heads;
pub mod original;
mod rounding;
mod values;
pub mod weight;
pub mod wrapping;

pub use rounding::Rounding;
pub use values::same_values;
