//! The verbs: options and inputs → a plan, or a plain result.

mod base;
pub mod convert;
mod dialect;
pub mod extract;
mod fingerprint;
pub mod finish;
mod hashes;
mod heads;
mod initial;
pub mod inspect;
pub mod merge;
pub mod new_adapter;
mod new_config;
mod output;
mod part_note;
mod range;
mod rank_choice;
mod recipe;
pub mod resize;
pub mod stack;
mod terms;
pub mod unmerge;
mod weight;
mod wrapping;
mod writing;

pub use dialect::Dialect;
pub use output::Run;
pub use rank_choice::{Budgeted, RankChoice, Ranking};
pub use writing::{Part, Rounding, WriteOptions};
