//! The codes of quantised checkpoints: how they lie in bytes, what they stand for, which is nearest.
//!
//! | file | what |
//! |---|---|
//! | `bits` | codes of one to eight bits ↔ bytes: streams, padded words, planes, halves of bytes, AWQ's order |
//! | `levels` | tables: E2M1, E2M3, NF4, FP4, the dynamic map; powers of two (E8M0) |
//! | `values` | rows of codes → f32: (code − zero) · scale + bias, or level · scale |
//! | `nearest` | f32 → the nearest code on scales that stay as they are |
//! | `requantise` | the same for rows of values at once |
//! | `lanes` | its arithmetic |
//! | `tiles` | where a scale lies in the tiles of cuBLAS |
//! | `hadamard` | the rotation of ComfyUI's `convrot`, which is its own inverse |
//!
//! Everything works on slices. Which tensor holds what is the matter of `model::storage`.

mod bits;
mod hadamard;
mod lanes;
mod levels;
mod nearest;
mod requantise;
mod tiles;
mod values;

pub use bits::{BitOrder, Bits};
pub use hadamard::rotate;
pub use levels::{DYNAMIC_POSITIVE, E2M1, E2M3, FP4, NF4, dynamic_map, power_of_two};
pub use nearest::{Level, Levels};
pub use requantise::{Codebook, Wanted, requantise};
pub use tiles::{TILE, tiled};
pub use values::{Shared, levels as decode_levels, scale as scale_runs, whole as decode_whole};
