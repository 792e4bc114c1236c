//! The verbs: options and inputs → a plan, or a plain result.

pub mod convert;
pub mod extract;
pub mod finish;
pub mod inspect;
pub mod merge;
pub mod sum;

pub use crate::model::Rounding;
pub use crate::output::new_adapter::ToDialect;
pub use crate::output::{Part, Run, WriteOptions};
pub use crate::truncate::{Budgeted, RankChoice, Ranking};
pub use merge::unmerge;
