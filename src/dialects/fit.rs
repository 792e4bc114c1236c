//! Modules as most dialects have them.

use super::files::Facts;
use super::pieces::Pieces;
use super::spell::{self, Respelled};
use crate::error::Result;

/// Modules of a GGUF file are fused and split as its architecture has them; all others stay.
///
/// # Errors
/// When a change cannot be split or fused.
pub(super) fn fit(pieces: &mut Pieces, facts: &Facts<'_>, done: &mut Respelled) -> Result<()> {
    match &facts.adapter.config.llama_cpp {
        Some(said) => spell::refit(facts.adapter, pieces, |path| said.arch.fuses(path), done),
        None => Ok(()),
    }
}
