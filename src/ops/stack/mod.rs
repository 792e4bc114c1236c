//! `stack`: several adapters as one.

mod elementwise;
mod selection;

pub use elementwise::{Contribution, Elementwise, Majority, Pruning, Rule};
