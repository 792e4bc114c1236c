//! The ggml types: blocks of values that share scales, and the plain numbers beside them.
//!
//! A row of a tensor is a run of blocks of one type ([`GgmlType::block`]). Everything known about a type is one row of
//! the table in `types`; how its blocks are unpacked stands in `unpack` (bits on a scale), `k` (256 values in sixteen or
//! eight parts), `iq` (points of a grid) and `fp4`; how they are made in `pack`, and what `dither`
//! adds before where rounding is left to chance. All arithmetic is in f32 and in the order
//! in which ggml does it, so that values and blocks are ggml's own, bit for bit.
//!
//! Source of the layouts: ggml's `ggml-common.h`; of the choice of scales: `ggml-quants.c`. Integers and halves are
//! little-endian here; [`GgmlType::swap_bytes`] turns the blocks of a big-endian file.

mod dither;
mod fp4;
mod grids;
mod iq;
mod k;
mod pack;
mod types;
mod unpack;
mod values;

pub use types::GgmlType;
