//! The adapters of a merge, opened, with what tells their ΔW from what an initialiser took out of the base.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::adapters::{Adapter, Init, Initialiser};
use crate::error::{Error, Result};
use crate::model::original::{Original, initialiser};

/// An adapter and how strongly it is applied.
pub struct Applied {
    /// The adapter.
    pub adapter: Adapter,
    /// The untrained factors, for an adapter whose initialiser took them out of the base.
    pub init: Option<Adapter>,
    /// Where they are lost: the model they were taken from, and how.
    pub original: Option<(Arc<Original>, Initialiser)>,
    /// Its weight.
    pub strength: f64,
}

/// What is opened, and what tells where it started from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Adapters with their weights, in order.
    pub adapters: &'a [(PathBuf, f64)],
    /// Untrained factors for the adapters that need them, in order.
    pub untrained: &'a [PathBuf],
    /// The model that PiSSA or OLoRA started from.
    pub original: Option<&'a Path>,
    /// The base is the one an adapter's initialiser left behind.
    pub residual_base: bool,
}

/// Opens all adapters, for the model with the config `model`.
///
/// # Errors
/// When one cannot be read, or cannot be merged, or belongs to a base that its initialiser changed and nothing tells how.
pub fn open(sources: Sources<'_>, model: Option<&Map<String, Value>>) -> Result<Vec<Applied>> {
    let original = sources.original.map(Original::open).transpose()?.map(Arc::new);
    let mut untrained = sources.untrained.iter();
    let mut all = Vec::new();
    for (path, strength) in sources.adapters {
        let adapter = Adapter::open_for(path, model)?;
        if let Some(refusal) = adapter.config.refusal() {
            return Err(refusal);
        }
        let (mut init, mut taken) = (None, None);
        if adapter.config.init.0 != Init::Plain && !sources.residual_base {
            let saved = untrained.next().filter(|_| adapter.config.init.0 == Init::Subtracted);
            match (saved, &original) {
                (Some(saved), _) => init = Some(Adapter::open_for(saved, model)?),
                (None, Some(original)) => taken = initialiser(&adapter)?.map(|how| (Arc::clone(original), how)),
                (None, None) => return Err(changed_base(&adapter)),
            }
        }
        adapter.check_values()?;
        init.iter().try_for_each(Adapter::check_values)?;
        all.push(Applied { adapter, init, original: taken, strength: *strength });
    }
    if let Some(extra) = untrained.next() {
        let problem = format!("`{}` belongs to no adapter: none left needs its untrained factors", extra.display());
        return Err(Error::invalid("--init-adapter", problem));
    }
    if original.is_some() && all.iter().all(|applied| applied.original.is_none()) {
        return Err(Error::invalid("--base", "none of the adapters was started by PiSSA or OLoRA: nothing needs it"));
    }
    Ok(all)
}

fn changed_base(adapter: &Adapter) -> Error {
    let (kind, init) = &adapter.config.init;
    let what = format!(
        "`init_lora_weights` is `{init}`: the adapter belongs to a base that its initialiser changed, merged into the original \
         one the result would be wrong"
    );
    let residual = "with BASE being the residual model itself, pass `--residual-base`";
    let saved = "`--init-adapter DIR` with the adapter as it was before training gives s(BA − B₀A₀)";
    let hint = match (kind, initialiser(adapter)) {
        (Init::Quantised, _) => "with BASE being the model LoftQ left behind, pass `--residual-base`".into(),
        (_, Ok(_)) => format!("{saved}, and so does `--base PATH` with the model training started from; {residual}"),
        (_, Err(_)) => format!("{saved}; {residual}"),
    };
    Error::unsupported(&adapter.config.path, what).hint(hint)
}
