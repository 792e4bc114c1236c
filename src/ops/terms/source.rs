//! An adapter that is summed with others, and why some cannot be.

use std::path::PathBuf;

use super::lost::{Found, Search};
use crate::adapters::{Adapter, Change, Init, Lora, Module, describe};
use crate::error::{Error, Result};
use crate::ops::initial::initialiser;
use crate::ops::merge::scale_of;

/// An adapter and its weight.
pub struct Source {
    /// The adapter.
    pub adapter: Adapter,
    /// The adapter before training, where its initialiser took its factors out of the base.
    pub init: Option<Adapter>,
    /// What that was, found again where the adapter before training is lost.
    pub found: Option<Found>,
    /// Its weight.
    pub weight: f64,
}

/// Opens adapters that are to be summed, with the untrained factors of those that need them, in order; where these run out,
/// `search` looks for them.
///
/// # Errors
/// When one cannot be read, or changes weights in a way that has no sum.
pub fn open(adapters: &[(PathBuf, f64)], untrained: &[PathBuf], search: Option<&Search<'_>>) -> Result<Vec<Source>> {
    let mut untrained = untrained.iter();
    let mut sources = Vec::new();
    for (path, weight) in adapters {
        let adapter = Adapter::open(path)?;
        if let Some(refusal) = adapter.config.refusal() {
            return Err(refusal);
        }
        refuse_dora(&adapter)?;
        let (mut init, mut found) = (None, None);
        if adapter.config.init.0 != Init::Plain {
            let saved = untrained.next().filter(|_| adapter.config.init.0 == Init::Subtracted);
            match (saved, search) {
                (Some(saved), _) => init = Some(Adapter::open(saved)?),
                (None, Some(search)) => {
                    found = initialiser(&adapter)?.map(|how| search.find(&adapter, how)).transpose()?;
                }
                (None, None) => return Err(changed_base(&adapter)),
            }
        }
        adapter.check_values()?;
        init.iter().try_for_each(Adapter::check_values)?;
        sources.push(Source { adapter, init, found, weight: *weight });
    }
    if let Some(extra) = untrained.next() {
        let problem = format!("`{}` belongs to no adapter: none left needs its untrained factors", extra.display());
        return Err(Error::invalid("--init-adapter", problem));
    }
    Ok(sources)
}

fn refuse_dora(adapter: &Adapter) -> Result<()> {
    let magnitude = adapter.modules.iter().find_map(|module| match &module.change {
        Change::Lora(lora) => lora.magnitude.as_ref(),
        _ => None,
    });
    if magnitude.is_none() && !adapter.config.dora {
        return Ok(());
    }
    let what = "is DoRA (`use_dora`): it multiplies the rows of W + ΔW, so what it adds depends on W and has no sum with \
                other adapters";
    Err(Error::unsupported(&adapter.config.path, what)
        .hint("`merge` applies it to its base, and `extract BASE MERGED` gives an adapter that can be summed"))
}

fn changed_base(adapter: &Adapter) -> Error {
    let (init, name) = &adapter.config.init;
    let what = format!(
        "`init_lora_weights` is `{name}`: the adapter belongs to a base that its initialiser changed, and is no change of the \
         original one"
    );
    let hint = match (init, initialiser(adapter)) {
        (Init::Quantised, _) => {
            "merge it into the model LoftQ left behind, and `extract` the difference from the original"
        }
        (_, Ok(_)) => {
            "`--init-adapter DIR` with the adapter as it was before training gives s(BA − B₀A₀), and so does `--base PATH` with \
             the model training started from, for `stack` and `merge`"
        }
        (_, Err(_)) => "`--init-adapter DIR` with the adapter as it was before training gives s(BA − B₀A₀)",
    };
    Error::unsupported(&adapter.config.path, what).hint(hint)
}

impl Source {
    /// The scale the config gives `path`, whose tensors have rank `rank`.
    ///
    /// # Errors
    /// When the config has another rank.
    pub fn scale(&self, path: &str, rank: u64) -> Result<f64> {
        scale_of(&self.adapter, path, rank)
    }

    /// The untrained pair of the module `module`, whose patterns are held against `path`, and its scale.
    ///
    /// # Errors
    /// When it is missing, or has other outer dimensions.
    pub fn untrained(&self, module: &Module, path: &str, lora: &Lora, experts: u64) -> Result<Option<(&Lora, f64)>> {
        let Some(init) = &self.init else { return Ok(None) };
        let same = |other: &&Module| other.path == module.path && other.nesting == module.nesting;
        let pair = init.modules.iter().filter(same).find_map(|module| match &module.change {
            Change::Lora(pair) => Some(pair.as_ref()),
            _ => None,
        });
        let Some(pair) = pair else {
            let problem = format!("has no factors for module `{}`", module.path);
            let (left, right) = (init.root.display().to_string(), self.adapter.root.display().to_string());
            return Err(Error::mismatch(left, right, problem));
        };
        if (pair.outputs(), pair.inputs()) != (lora.outputs(), lora.inputs()) {
            let problem = "the untrained factors have another shape";
            return Err(Error::mismatch(describe(&pair.up), describe(&lora.up), problem));
        }
        Ok(Some((pair, scale_of(init, path, pair.rank() / experts)?)))
    }
}
