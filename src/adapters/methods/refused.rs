//! The methods that are not merged, and why: those whose adapters no weight can hold, or whose numbers the files alone do not give.

use std::sync::Arc;

use super::named::Named;
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts};
use crate::error::{Error, Result};
use crate::formats::Stored;

const PROMPT: &str = "a soft prompt is inserted before the input, so no weight can hold it";
const PREFIX: &str = "a prefix is inserted into the keys and values of attention, so no weight can hold it";
const DRAWN: &str = "the places of its coefficients are drawn by torch's generator and are not in the file";
const DECOMPOSED: &str = "its factors come from a decomposition of the base and are not in the file";
const NOT_YET: &str = "it is not merged yet";

/// Those of PEFT.
pub static OF_PEFT: [Kind; 23] = [
    of_peft(&["PROMPT_TUNING"], &[], PROMPT),
    of_peft(&["P_TUNING"], &[], PROMPT),
    of_peft(&["CPT"], &[], PROMPT),
    of_peft(&["MULTITASK_PROMPT_TUNING"], &[], PROMPT),
    of_peft(&["PREFIX_TUNING"], &[], PREFIX),
    of_peft(&["CARTRIDGE"], &[], PREFIX),
    of_peft(&["ADAPTION_PROMPT"], &[], "prompts are inserted into attention behind a gate, so no weight can hold them"),
    of_peft(&["FOURIERFT"], &["fourierft"], DRAWN),
    of_peft(&["WAVEFT"], &["waveft"], DRAWN),
    of_peft(&["LILY"], &["lily"], "a router chooses the factors for every token, so no weight can hold it"),
    of_peft(&["XLORA"], &[], "a router weighs the adapters for every token, so no weight can hold it"),
    of_peft(&["POLY"], &["poly"], "a router weighs the adapters for every task, so no single weight can hold it"),
    Kind { parameters: &["vector_a", "vector_b"], ..of_peft(&["PSOFT"], &["psoft"], DECOMPOSED) },
    of_peft(&["OSF"], &["osf"], "its directions come from a decomposition of the base and are not in the file"),
    of_peft(
        &["TINYLORA"],
        &["tinylora"],
        "its factors come from a decomposition of the base and a generator and are not in the file",
    ),
    of_peft(
        &["UNILORA"],
        &["unilora"],
        "the places of its parameters are drawn by torch's generator and are not in the file",
    ),
    of_peft(&["PEANUT"], &["peanut"], "a small network makes the change out of the weight; it is not merged yet"),
    of_peft(&["FROD"], &["frod"], DECOMPOSED),
    of_peft(&["DEFT"], &["deft"], NOT_YET),
    of_peft(&["BEFT"], &["beft"], NOT_YET),
    of_peft(&["ADAMSS"], &["adamss"], "its parts come from a decomposition of the base and are not in the file"),
    of_peft(&["SUPERTUNING"], &["supertuning"], NOT_YET),
    of_peft(&["SHADOW"], &[], "a second model runs beside the base, so no weight can hold it"),
];

const fn of_peft(peft_types: &'static [&'static str], prefixes: &'static [&'static str], reason: &'static str) -> Kind {
    Kind { refused: Some(reason), ..Kind::of_peft(peft_types[0], peft_types, prefixes, nothing) }
}

fn nothing(_: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    Ok(None)
}

/// Those of PEFT that insert something rather than change a weight: `peft_type`, what it is called, reason.
const INSERTED: [(&str, &str, &str); 8] = [
    ("PROMPT_TUNING", "prompt tuning", VECTORS),
    ("P_TUNING", "p-tuning", VECTORS),
    ("CPT", "context-aware prompt tuning", VECTORS),
    ("MULTITASK_PROMPT_TUNING", "multitask prompt tuning", VECTORS),
    ("PREFIX_TUNING", "prefix tuning", KEYS),
    ("CARTRIDGE", "a cartridge", KEYS),
    ("ADAPTION_PROMPT", "an adaption prompt", "it adds gated attention over its own prompt, which no weight can hold"),
    ("POLY", "a polytropon", "it routes between several adapters at run time, so no weight can hold it"),
];

const VECTORS: &str = "it puts trained vectors in front of the input, which no weight can hold";
const KEYS: &str = "it puts trained keys and values in front of those of every layer, which no weight can hold";

/// Name and reason of what the method of this `peft_type` inserts into a model, if it is one that does.
pub fn inserted(peft_type: &str) -> Option<(&'static str, &'static str)> {
    INSERTED.iter().find(|(method, ..)| *method == peft_type).map(|(_, kind, reason)| (*kind, *reason))
}

/// A weight that is padded first.
pub static RESHAPED: Kind = Kind {
    refused: Some("ComfyUI pads the base's weight to another shape first, which makes it another model"),
    ..Kind::new("reshape_weight", gather)
};

/// What LyCORIS' extraction leaves beside the factors.
pub static SPARSE: Kind = Kind {
    refused: Some(
        "LyCORIS' sparse residuals are added by extraction tools of old versions only, whose rule for the scale is not known",
    ),
    ..Kind::new("sparse residual", gather)
};

/// Their tensors.
static TENSORS: [(&Kind, &[&str]); 2] =
    [(&RESHAPED, &["reshape_weight"]), (&SPARSE, &["bias_indices", "bias_values", "bias_size"])];

/// The tensors of one module.
#[derive(Debug)]
struct Refused {
    named: Named,
    kind: &'static Kind,
}

fn gather(parts: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let found = TENSORS.iter().find(|(_, names)| names.iter().any(|name| parts.has_part(name)));
    Ok(found.map(|(kind, names)| {
        let method: Arc<dyn Method> = Arc::new(Refused { named: Named::take(parts, names), kind });
        method
    }))
}

impl Method for Refused {
    fn kind(&self) -> &'static Kind {
        self.kind
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.named.list()
    }

    fn changes(&self, _target: &Target) -> Result<Vec<ParameterChange>> {
        let reason = self.kind.refused.unwrap_or_default();
        let what = format!("tensor `{}` is {}: {reason}", self.named.first().info.name, self.kind);
        Err(Error::unsupported(self.named.first().path(), what))
    }
}
