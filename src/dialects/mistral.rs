//! mistral-finetune: `lora.safetensors` in the names of Mistral's own checkpoint; `lora.scaling` in `params.json` beside it multiplies B A
//! as it is. Source: mistral-finetune `finetune/{args,checkpointing}.py`.

use std::path::Path;

use serde_json::{Map, Value};

use super::dialect::{Dialect, Form};
use super::unaided::{self, Beside};
use crate::error::{Error, Result};
use crate::formats::json;

/// mistral-finetune, which is read only.
pub const MISTRAL: Dialect = Dialect {
    name: "mistral",
    title: "mistral",
    form: Form::File("safetensors"),
    files: &[WEIGHTS],
    read: Some(|mut source| {
        let lora = std::mem::take(&mut source.raw);
        unaided::open(source, Beside::Mistral(lora))
    }),
    ..Dialect::PLAIN
};

/// The config beside the weights.
pub(crate) const CONFIG: &str = "params.json";

/// The weights.
pub(crate) const WEIGHTS: &str = "lora.safetensors";

/// What `params.json` in `directory` says of a LoRA, if it does.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn settings(directory: &Path) -> Result<Option<Map<String, Value>>> {
    let path = directory.join(CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    Ok(match json::read_object(&path)?.remove("lora") {
        Some(Value::Object(lora)) => Some(lora),
        _ => None,
    })
}

/// The factor in front of B A.
///
/// # Errors
/// When it is missing or no number.
pub(crate) fn scale(directory: &Path, lora: &Map<String, Value>) -> Result<f64> {
    let path = directory.join(CONFIG);
    let wrong = |problem: &str| Error::malformed(&path, "`lora.scaling`", problem);
    let value = lora.get("scaling").ok_or_else(|| wrong("is missing, so the scale is unknown"))?;
    value.as_f64().filter(|scale| scale.is_finite()).ok_or_else(|| wrong("must be a finite number"))
}

/// The rank it says, for a pair of rank `rank`.
///
/// # Errors
/// When it is another.
pub(crate) fn check_rank(directory: &Path, lora: &Map<String, Value>, module: &str, rank: u64) -> Result<()> {
    match lora.get("rank").and_then(Value::as_u64).filter(|said| *said > 0) {
        Some(said) if said != rank => {
            let problem = format!("is {said}, the tensors of `{module}` have rank {rank}");
            Err(Error::malformed(directory.join(CONFIG), "`lora.rank`", problem))
        }
        _ => Ok(()),
    }
}
