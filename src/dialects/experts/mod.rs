//! Adapters of mixture-of-experts layers: every form they come in, read as one.
//!
//! | file | idea |
//! |---|---|
//! | `stacked` | factors of three dimensions, one matrix per expert → pairs of single experts |
//! | `read` | pairs of PEFT's `target_parameters` → how they lie, decided once, when an adapter is opened |
//! | `sides` | which of A and B lies on the input |
//! | `order` | in which order the columns of B stand, by what the config says |
//! | `opinion` | the same, by the values |
//! | `packed` | factors in the form of today, computed as they are read |
//! | `form` | the forms that are written, and what families call their layers |
//! | `apart` | the pairs of single experts that a stack stands for |
//! | `together` | the stack that pairs of single experts make |
//!
//! Facts, measured with PEFT 0.17 – 0.21, unsloth_zoo 2026.9 and 2026.10, vLLM 0.33, mlx-lm 0.32: `docs/experts.md`.

pub mod apart;
pub mod form;
mod opinion;
pub mod order;
mod packed;
mod read;
pub mod sides;
pub(super) mod stacked;
pub mod together;

pub use form::ExpertForm;
