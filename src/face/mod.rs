//! The library's face: every verb as a builder with its everyday options, and an adapter as its modules and their ΔW.
//!
//! A builder starts from what the command line does without options. `run` does the work and gives the report that the program
//! prints; `run_with` takes a flag to stop it and somebody who hears of its progress. What a builder has no method for, the
//! option structs of [`ops`](crate::ops) have a field for.
//!
//! | file | idea |
//! |---|---|
//! | `common` | what the verbs are told alike |
//! | `merge`, `subtract` | into a model and out of it |
//! | `extract`, `stack`, `resize` | new adapters |
//! | `convert`, `inspect` | other forms; what is there |
//! | `adapter` | modules and ΔW of an adapter |

mod adapter;
#[cfg(test)]
mod any_dialect;
mod common;
mod convert;
mod extract;
mod inspect;
mod merge;
mod resize;
mod stack;
mod subtract;
#[cfg(test)]
mod toys;

pub use adapter::Adapter;
pub use convert::Convert;
pub use extract::Extract;
pub use inspect::Inspect;
pub use merge::Merge;
pub use resize::Resize;
pub use stack::Stack;
pub use subtract::{Subtract, Subtracted};
