//! The verbs: options and inputs → a plan, or a plain result.

pub mod convert;
pub mod extract;
pub mod finish;
pub mod inspect;
pub mod merge;
mod rank_choice;
pub mod resize;
pub mod stack;

pub use crate::model::Rounding;
pub use crate::output::new_adapter::ToDialect;
pub use crate::output::{Part, Run, WriteOptions};
pub use merge::unmerge;
pub use rank_choice::{Budgeted, RankChoice, Ranking};
