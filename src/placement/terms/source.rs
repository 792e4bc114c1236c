//! Adapters that are summed with others, and why some cannot be.

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapters::{Adapter, Change, Init, ReadOptions};
use crate::dialects::experts::sides::Family;
use crate::dialects::experts::together::{Model, fused};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::original::{Original, initialiser};
use crate::naming::experts::expert_of;
use crate::placement::Applied;

/// Opens adapters that are to be summed, with what tells their ΔW from what an initialiser took out of the base: untrained factors,
/// in order, for those that need them, or else the model they started from.
///
/// # Errors
/// When one cannot be read, or changes weights in a way that has no sum.
pub fn open(
    adapters: &[(PathBuf, f64)],
    untrained: &[PathBuf],
    base: Option<&Arc<Original>>,
    read: &ReadOptions,
) -> Result<Vec<Applied>> {
    let model = base.and_then(|original| original.base.config.clone());
    let model = model.as_ref();
    let mut untrained = untrained.iter();
    let mut sources = Vec::new();
    for (path, weight) in adapters {
        let mut adapter = Adapter::open_for(path, model, read)?;
        adapter.leave_out_model();
        if let Some(refusal) = adapter.config.refusal() {
            return Err(refusal);
        }
        if base.is_none() {
            refuse_dora(&adapter)?;
        }
        let (mut init, mut original) = (None, None);
        if adapter.config.init.0 != Init::Plain {
            let saved = untrained.next().filter(|_| adapter.config.init.0 == Init::Subtracted);
            match (saved, base) {
                (Some(saved), _) => init = Some(Adapter::open_for(saved, model, &read.of_untrained())?),
                (None, Some(base)) => original = initialiser(&adapter)?.map(|how| (Arc::clone(base), how)),
                (None, None) => return Err(changed_base(&adapter)),
            }
        }
        adapter.check_values()?;
        init.iter().try_for_each(Adapter::check_values)?;
        sources.push(Applied { adapter, init, original, strength: *weight });
    }
    if let Some(extra) = untrained.next() {
        let problem = format!("`{}` belongs to no adapter: none left needs its untrained factors", extra.display());
        return Err(Error::invalid("--init-adapter", problem));
    }
    read.check_needed("--input-alpha", sources.iter().map(|applied: &Applied| &applied.adapter))?;
    one_form(&mut sources, model)?;
    Ok(sources)
}

/// Where some adapters have experts in stacks and others one by one, all get stacks: a file holds one form.
fn one_form(sources: &mut [Applied], model: Option<&ModelConfig>) -> Result<()> {
    let stacks = |adapter: &Adapter| {
        adapter.modules.iter().find_map(|module| match &module.change {
            Change::Lora(lora) => lora.stack.as_ref().map(|stack| stack.experts).filter(|experts| *experts > 1),
            _ => None,
        })
    };
    let Some(experts) = sources.iter().find_map(|source| stacks(&source.adapter)) else { return Ok(()) };
    let family = sources.iter().map(|source| Family::of(&source.adapter.config, model));
    let Some(family) = family.max_by_key(|family| !family.is_unknown()) else { return Ok(()) };
    for source in sources {
        if source.adapter.modules.iter().any(|module| expert_of(&module.path).is_some()) {
            source.adapter = fused(&source.adapter, Model { family: &family, experts: Some(experts) }, model)?;
        }
    }
    Ok(())
}

fn refuse_dora(adapter: &Adapter) -> Result<()> {
    let magnitude = adapter.modules.iter().any(|module| match &module.change {
        Change::Lora(lora) => lora.magnitude.is_some(),
        _ => false,
    });
    if !magnitude && !adapter.config.dora {
        return Ok(());
    }
    let what = "is DoRA (`use_dora`): what it adds depends on the weights of the model, and has no rank of its own";
    Err(Error::unsupported(&adapter.config.path, what).hint(
        "`--base PATH` (the model it was trained on) with `--rank N` writes the nearest LoRA and says how near; `merge` \
         applies it exactly",
    ))
}

fn changed_base(adapter: &Adapter) -> Error {
    let (init, name) = &adapter.config.init;
    let what = format!(
        "`init_lora_weights` is `{name}`: the adapter belongs to a base that its initialiser changed, and is no change of the \
         original one"
    );
    let saved = "`--init-adapter DIR` with the adapter as it was before training gives s(BA − B₀A₀)";
    let hint = match (init, initialiser(adapter)) {
        (Init::Quantised, _) => {
            "merge it into the model LoftQ left behind, and `extract` the difference from the original".into()
        }
        (_, Ok(_)) => format!("{saved}, and so does `--base PATH` with the model training started from"),
        (_, Err(_)) => saved.into(),
    };
    Error::unsupported(&adapter.config.path, what).hint(hint)
}
