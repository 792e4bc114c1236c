//! The verbs: options and inputs → a plan, or a plain result.

mod base;
pub mod finish;
pub mod inspect;
pub mod merge;
mod output;
pub mod stack;
mod weight;
mod writing;

pub use output::Run;
pub use writing::{Part, Rounding, WriteOptions};
