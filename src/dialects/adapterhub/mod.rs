//! AdapterHub's library: everything it inserts or changes, with its config and heads.

mod places;
pub mod read;
pub mod write;
