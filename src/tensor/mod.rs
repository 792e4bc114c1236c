//! What a tensor is, and how its bytes become rows of f32 and back.
//!
//! This room knows element types, shapes, roundings and the arithmetic of a merge on plain slices. It may not know
//! where a tensor lives (files, maps), what it is for (adapters, modules), or who runs the work (threads, plans).
//!
//! Sources: the dtype names and widths are those of `safetensors` 0.8, the fp8 casts those of torch
//! (`c10/util/Float8_*.h`), the order of operations in [`add_low_rank`] that of PEFT's merge.

mod cells;
mod code;
mod codec;
pub mod codes;
mod dtype;
mod f16c;
mod ggml;
mod info;
mod low_rank;
mod noise;
mod norm;
mod one_pass;
mod packing;
mod random;
mod range;
mod scan;
mod simd;
mod survey;
mod survival;

pub use codec::Rounding;
pub use dtype::{Dtype, Float};
pub use ggml::GgmlType;
pub use info::{Shape, TensorInfo, TensorView, usize_of};
pub use low_rank::add_low_rank;
pub use noise::rounding_variance;
pub use norm::{sum_of_squared_differences, sum_of_squares};
pub use one_pass::{OnePass, Product};
pub use packing::Packing;
pub use random::{bits as random_bits, seed_of};
pub use range::Beyond;
pub use scan::{all_zero, first_not_finite, first_odd_value};
pub use survey::{NotFinite, Tally, add_to_f64, encode_surveyed, encode_values, survey_values};
pub use survival::Survival;
