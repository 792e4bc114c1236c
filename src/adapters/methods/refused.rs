//! What is recognised, described, and refused by merge, each with its reason.

use std::sync::Arc;

use super::named::Named;
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts};
use crate::error::{Error, Result};
use crate::formats::Stored;

/// Name, tensors, reason.
type Entry = (&'static str, &'static [&'static str], &'static str);

const REFUSED: [Entry; 3] = [
    (
        "reshape_weight",
        &["reshape_weight"],
        "ComfyUI pads the base's weight to another shape first, which makes it another model",
    ),
    (
        "sparse residual",
        &["bias_indices", "bias_values", "bias_size"],
        "LyCORIS' sparse residuals are added by extraction tools of old versions only, whose rule for the scale is not known",
    ),
    (
        "T-LoRA",
        &["q_layer", "p_layer", "lambda_layer"],
        "T-LoRA counts from the base's singular vectors and changes with the time step, so no weight can hold it",
    ),
];

/// The tensors of one module.
#[derive(Debug)]
struct Refused {
    named: Named,
    kind: &'static str,
    reason: &'static str,
}

/// Recognises them.
///
/// # Errors
/// Never.
pub fn gather(parts: &mut Parts, _context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let found = REFUSED.iter().find(|(_, names, _)| names.iter().any(|name| parts.has_part(name)));
    Ok(found.map(|(kind, names, reason)| {
        let method: Arc<dyn Method> = Arc::new(Refused { named: Named::take(parts, names), kind, reason });
        method
    }))
}

impl Method for Refused {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.named.list()
    }

    fn changes(&self, _target: &Target) -> Result<Vec<ParameterChange>> {
        let what = format!("tensor `{}` is {}: {}", self.named.first().info.name, self.kind, self.reason);
        Err(Error::unsupported(self.named.first().path(), what))
    }
}
