//! What an adapter's config says of the base it was trained on, where that is quantised.

use std::sync::{Arc, LazyLock};

use regex::Regex;

use crate::error::{Error, Result};
use crate::model::base::Base;
use crate::model::storage::error_squared;
use crate::model::{TrainBase, TrainCodes};
use crate::naming::conv1d;
use crate::placement::Applied;
use crate::placement::merged::Merged;

/// Words of the names of quantised models.
static QUANTISED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let words = "bnb|4bit|8bit|int[48]|nf4|fp[48]|mxfp[48]|nvfp4|gptq|awq|autoround|w[48]a(?:8|16)|quantized";
    Regex::new(&format!("(?i)(?:^|[-_./])(?:{words})(?:$|[-_./])")).ok()
});

/// Share of ‖ΔW‖ below which ‖q‖ makes no difference.
const LITTLE: f64 = 0.25;

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

/// The name of the quantised base that an adapter for a plain one was trained on.
fn quantised_name<'a>(base: &Base, applied: &'a [Applied]) -> Option<&'a str> {
    let mut named = applied.iter().filter_map(|applied| applied.adapter.config.base_model.as_deref());
    let is_quantised = |name: &&str| QUANTISED.as_ref().is_some_and(|words| words.is_match(name));
    let is_plain = base.quantised.is_empty() && base.view.is_none();
    named.find(is_quantised).filter(|_| is_plain)
}

/// How far the changed weights are from what training saw, against the change: q = W − dq(Q(W)). `None` where training saw them as
/// they are.
///
/// # Errors
/// When a weight cannot be read.
pub fn distance(
    base: &Base,
    applied: &[Applied],
    merged: &[Arc<Merged>],
    asked: Option<TrainBase>,
    delta_norm: f64,
) -> Result<Option<String>> {
    let name = quantised_name(base, applied);
    // Which codes they were is not said: those of most such adapters.
    let usual = TrainBase { codes: TrainCodes::Nf4, double: false, block: 64, dtype: None };
    let Some(spec) = asked.or(name.map(|_| usual)).filter(|_| delta_norm > 0.0) else { return Ok(None) };
    let mut squared = 0.0;
    for weight in merged {
        let source = match base.quantised.weight(&weight.name) {
            Some(quantised) => quantised.tensors[0].clone(),
            None => weight.source.tensor.clone(),
        };
        let module = weight.name.strip_suffix(".weight").filter(|_| source.info.shape.as_slice().len() == 2);
        if let Some(module) = module.filter(|_| asked.is_none() || base.quantised.weight(&weight.name).is_some()) {
            let turned = base.is_one_of(&conv1d::MODELS) && conv1d::is_layer(module);
            squared += error_squared(&source, spec, turned)?;
        }
    }
    let share = squared.sqrt() / delta_norm;
    let what = match share {
        _ if share < LITTLE => format!("q is {share:.2} of ‖ΔW‖: either base will do"),
        _ if share < 1.0 => format!("q is {share:.2} of ‖ΔW‖: the base that training saw is nearer to it"),
        _ => format!("q is {share:.1} × ‖ΔW‖: take the base that training saw"),
    };
    Ok((share > 0.0)
        .then(|| format!("{what} (q = W − dq(Q(W)) of the changed weights, for `{spec}`, from some of their rows)")))
}

/// What a user should know of the base that an adapter names.
pub fn notes(base: &Base, applied: &[Applied]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    if let Some(name) = quantised_name(base, applied) {
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
