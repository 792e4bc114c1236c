//! The adapters of a merge, opened, with what tells their ΔW from what an initialiser took out of the base.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Selection;
use crate::adapters::{Adapter, Init, Initialiser, ReadOptions};
use crate::dialects::{is_model, recognise};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
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

impl Applied {
    /// Its weight at the module `path`.
    ///
    /// # Errors
    /// When changes, which are computed in f32, cannot be multiplied by it.
    pub fn strength_at(&self, selection: &Selection, path: &str) -> Result<f64> {
        self.within_range(selection.strength(path), path)
    }

    /// Its weight times `further`, for the module `path`.
    ///
    /// # Errors
    /// When that is beyond f32.
    pub fn within_range(&self, further: f64, path: &str) -> Result<f64> {
        let strength = self.strength * further;
        if strength.abs() <= f64::from(f32::MAX) {
            return Ok(strength);
        }
        let problem =
            format!("the weight {strength:e} of `{path}` is beyond the range of f32, in which changes are computed");
        Err(Error::invalid("ADAPTER[:W]", problem))
    }
}

/// What is opened, and what tells where it started from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Adapters with their weights, in order.
    pub adapters: &'a [(PathBuf, f64)],
    /// What their files leave open.
    pub read: &'a ReadOptions,
    /// Untrained factors for the adapters that need them, in order.
    pub untrained: &'a [PathBuf],
    /// The model that PiSSA or OLoRA started from.
    pub original: Option<&'a Path>,
    /// The base is the one an adapter's initialiser left behind.
    pub residual_base: bool,
}

impl Sources<'_> {
    /// Why the base cannot be opened: `problem`, unless the arguments are the wrong way round.
    pub fn swapped(&self, base: &Path, problem: Error) -> Error {
        let shown = base.display();
        let model = self.adapters.iter().find(|(path, _)| is_model(path)).filter(|_| recognise(base).0);
        let Some((model, _)) = model else { return problem };
        let what =
            format!("is an adapter, and `{}` is a model: the arguments are the wrong way round", model.display());
        Error::unsupported(base, what).hint(format!("`lorakit merge {} {shown} -o OUT`", model.display()))
    }
}

/// Opens all adapters, for the model with the config `model`.
///
/// # Errors
/// When one cannot be read, or cannot be merged, or belongs to a base that its initialiser changed and nothing tells how.
pub fn open(sources: Sources<'_>, model: Option<&ModelConfig>) -> Result<Vec<Applied>> {
    let original = sources.original.map(Original::open).transpose()?.map(Arc::new);
    let untold = sources.read.of_untrained();
    let mut untrained = sources.untrained.iter();
    let mut all = Vec::new();
    for (path, strength) in sources.adapters {
        let adapter = Adapter::open_for(path, model, sources.read)?;
        if let Some(refusal) = adapter.config.refusal() {
            return Err(refusal);
        }
        let (mut init, mut taken) = (None, None);
        if adapter.config.init.0 != Init::Plain && !sources.residual_base {
            let saved = untrained.next().filter(|_| adapter.config.init.0 == Init::Subtracted);
            match (saved, &original) {
                (Some(saved), _) => init = Some(Adapter::open_for(saved, model, &untold)?),
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
    sources.read.check_needed("--alpha", all.iter().map(|applied: &Applied| &applied.adapter))?;
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
