//! What an adapter's config says of the base it was trained on, where that is quantised.

use std::sync::LazyLock;

use regex::Regex;

use crate::error::{Error, Result};
use crate::model::base::Base;
use crate::placement::Applied;

/// Words of the names of quantised models.
static QUANTISED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let words = "bnb|4bit|8bit|int[48]|nf4|fp[48]|mxfp[48]|nvfp4|gptq|awq|autoround|w[48]a(?:8|16)|quantized";
    Regex::new(&format!("(?i)(?:^|[-_./])(?:{words})(?:$|[-_./])")).ok()
});

/// Setting of an adapter that was trained for a merge with fresh NVFP4 scales (Axolotl).
const MERGE_AWARE: &str = "nvfp4_merge_aware";

/// Refuses adapters that only another way of merging is right for.
///
/// # Errors
/// When one of them says so.
pub fn check(applied: &[Applied]) -> Result<()> {
    let aware = applied.iter().map(|applied| &applied.adapter.config).find(|config| {
        config.raw.get(MERGE_AWARE).is_some_and(|said| !said.is_null() && said != &serde_json::Value::Bool(false))
    });
    let Some(config) = aware else { return Ok(()) };
    let what = format!(
        "`{MERGE_AWARE}` is set: the adapter was trained for a base that is quantised to NVFP4 anew after the merge, with fresh \
         scales, which is not done"
    );
    Err(Error::unsupported(&config.path, what).hint("merge it with the tool that trained it"))
}

/// What a user should know of the base that an adapter names.
pub fn notes(base: &Base, applied: &[Applied]) -> Vec<String> {
    let named = applied.iter().filter_map(|applied| applied.adapter.config.base_model.as_deref());
    let is_quantised = |name: &&str| QUANTISED.as_ref().is_some_and(|words| words.is_match(name));
    let mut notes: Vec<String> = Vec::new();
    let is_plain = base.quantised.is_empty() && base.view.is_none() && !base.is_simulated();
    if let Some(name) = named.into_iter().find(is_quantised).filter(|_| is_plain) {
        notes.push(format!(
            "the adapter names `{name}` as its base, which is quantised, and BASE is not: training saw the dequantised weights. \
             Merge into that model, or give `--train-base` (`nf4`, `nf4,double`, `fp4`, `int8`), for what it saw"
        ));
    }
    let rescaled = base.quantised.weights().any(|weight| weight.storage.facts().format.contains("AWQ"));
    if rescaled {
        notes.push(
            "BASE is quantised by AWQ, which rescales layers before: an adapter trained on this model fits it, one trained on the \
             16-bit model does not"
                .into(),
        );
    }
    notes
}
