//! Which changes can be taken out of a merged model by itself: sums. What a multiplication or a replacement left behind does not
//! say what was there before.

use std::collections::HashMap;

use crate::adapters::{Adapter, Change};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::placement::applied::Applied;
use crate::placement::placer::Outcome;

/// The way out of every refusal here.
const HINT: &str = "`--base PATH` with the model it was merged into: what was merged is proved, and W taken from there";

/// Everything that is taken out was added.
///
/// # Errors
/// When a change is another one, with the reason.
pub fn check(applied: &[Applied], outcomes: &[HashMap<String, Outcome>]) -> Result<()> {
    for (applied, outcomes) in applied.iter().zip(outcomes) {
        let adapter = &applied.adapter;
        for module in &adapter.modules {
            let outcome = module.change.tensors().first().and_then(|tensor| outcomes.get(&tensor.info.name)).copied();
            let refused = match (&module.change, outcome) {
                (Change::Lora(lora), Some(Outcome::Merged)) => lora.magnitude.as_ref().map(|magnitude| {
                    let what = "is DoRA, whose merge multiplied W + ΔW by numbers that depend on W";
                    refuse(magnitude, what)
                }),
                (Change::Whole(_, tensor), Some(Outcome::Merged)) => {
                    Some(refuse(tensor, "took the place of the base's own, which the merged model does not hold"))
                }
                (Change::Frozen(_, tensor), Some(Outcome::Merged)) => Some(refuse(
                    tensor,
                    "was saved with the adapter: it may be the base's own, or have taken its place",
                )),
                (Change::Frozen(parameter, tensor), Some(Outcome::SameAsBase)) if trains(adapter, parameter) => {
                    Some(refuse(tensor, "was trained, so the base's own is not in the merged model"))
                }
                (Change::TokenRows(tensor), Some(Outcome::Merged)) => {
                    Some(refuse(tensor, "took the place of rows of the base, which the merged model does not hold"))
                }
                (Change::Method(method), Some(Outcome::Merged)) => method.tensors().first().map(|(_, tensor)| {
                    refuse(tensor, &format!("belongs to {}, whose change is not known to be a sum", method.kind()))
                }),
                _ => None,
            };
            if let Some(error) = refused {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn refuse(tensor: &Stored, what: &str) -> Error {
    Error::unsupported(tensor.path(), format!("tensor `{}` {what}: it cannot be taken out", tensor.info.name))
        .hint(HINT)
}

/// Whether the parameter was trained where it lies, under `bias: all` or `lora_only`.
fn trains(adapter: &Adapter, parameter: &str) -> bool {
    let bias = adapter.config.raw.get("bias").and_then(serde_json::Value::as_str);
    parameter == "bias" && bias.is_some_and(|bias| bias != "none")
}
