//! What PEFT saves without a method of its own for the tensors: LoRA pairs, trained rows of embeddings, whole layer norms.

use std::sync::Arc;

use crate::adapters::kind::Kind;
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts};
use crate::error::Result;

/// LoRA.
pub static LORA: Kind = Kind { alpha: Some("lora_alpha"), ..Kind::of_peft("LoRA", &["LORA"], &[], nothing) };

/// Rows of embeddings.
pub static ROWS: Kind = Kind::of_peft("trainable tokens", &["TRAINABLE_TOKENS"], &[], nothing);

/// Layer norms, saved whole.
pub static NORMS: Kind = Kind::of_peft("layer norm tuning", &["LN_TUNING"], &[], nothing);

fn nothing(_: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    Ok(None)
}
