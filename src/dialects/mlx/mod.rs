//! mlx-lm: factors the other way round, and a scale that multiplies them as it is.

pub mod read;
pub mod vlm;
pub mod write;
