//! torchtune: its own names and order of rows.

pub mod read;
pub mod write;
