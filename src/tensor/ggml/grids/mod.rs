//! The tables of the IQ types.

pub(super) mod one;
pub(super) mod three;
pub(super) mod two;
