//! An adapter against the model it is for: its share of the parameters, whether every module has a place, ‖ΔW‖ ∕ ‖W‖.

use std::path::{Path, PathBuf};

use globset::{Glob, GlobSet};
use serde::Serialize;

use super::weights::Weights;
use super::{InspectOptions, size};
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, hub, json};
use crate::linalg::{LinearOperator, Streamed};
use crate::model::ModelConfig;
use crate::model::base::Base;
use crate::output::Run;
use crate::placement::Applied;
use crate::placement::Selection;
use crate::placement::placer::{Outcome, Placer, Target};
use crate::placement::tile::delta_norm;
use crate::plan::map_within;

/// Bytes that reading a weight in bands holds.
const BAND_BYTES: u64 = 4 << 20;

/// How an adapter and a model fit.
#[derive(Debug, Serialize)]
pub struct BaseFit {
    /// The model.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// Whether it was named, or found by the name the adapter gives.
    pub named: bool,
    /// Its parameters.
    pub parameters: u64,
    /// Whether they follow from config.json alone, without norms of heads and biases.
    pub estimated: bool,
    /// The trained ones in relation to them.
    pub share: f64,
    /// Tensors of the model that are changed; `None` if places were not looked for.
    pub changed_tensors: Option<usize>,
    /// Tensors of the adapter that have no place in it.
    pub unplaced: Vec<String>,
    /// Why the two do not fit.
    pub misfit: Option<String>,
    /// The head shares its tensor with this embedding, and only one of them is changed or both.
    pub tied_change: Option<String>,
    /// ‖ΔW‖ ∕ ‖W‖ over all changed tensors together.
    pub relative: Option<f64>,
    /// ‖ΔW‖ and ‖W‖ tensor by tensor, the largest quotient first.
    pub norms: Vec<TensorNorms>,
}

/// ‖ΔW‖ and ‖W‖ of one tensor of the model.
#[derive(Debug, Clone, Serialize)]
pub struct TensorNorms {
    /// Its name.
    pub tensor: String,
    /// ‖ΔW‖.
    pub delta: f64,
    /// ‖W‖.
    pub weight: f64,
    /// The quotient; `None` for a weight of zeros.
    pub relative: Option<f64>,
}

/// The adapter at `path` against the model that was named, or else the one that the adapter names, if it is at hand.
///
/// # Errors
/// When the named model cannot be read, or the run is stopped.
pub fn fit(
    path: &Path,
    adapter: &Adapter,
    trained: u64,
    options: &InspectOptions,
    run: &Run<'_>,
) -> Result<Option<BaseFit>> {
    if let Some(named) = &options.base {
        let base = Base::open(named)?;
        let parameters = Weights::of(&base.checkpoint).parameters;
        let mut found = BaseFit::new(named, true, parameters, trained);
        found.place(path, &base, options, run)?;
        return Ok(Some(found));
    }
    let Some(name) = adapter.config.base_model.as_deref().filter(|name| !name.is_empty()) else { return Ok(None) };
    let Ok(model) = hub::resolve(name, &options.caches) else { return Ok(None) };
    if let Ok(checkpoint) = Checkpoint::open(&model) {
        return Ok(Some(BaseFit::new(&model, false, Weights::of(&checkpoint).parameters, trained)));
    }
    let config = model.join("config.json");
    let Some(parameters) =
        json::read_object(&config).ok().and_then(|config| size::parameters(&ModelConfig::of(config)))
    else {
        return Ok(None);
    };
    Ok(Some(BaseFit { estimated: true, ..BaseFit::new(&model, false, parameters, trained) }))
}

impl BaseFit {
    fn new(path: &Path, named: bool, parameters: u64, trained: u64) -> Self {
        Self {
            path: path.to_path_buf(),
            named,
            parameters,
            estimated: false,
            share: trained as f64 / parameters.max(1) as f64,
            changed_tensors: None,
            unplaced: Vec::new(),
            misfit: None,
            tied_change: None,
            relative: None,
            norms: Vec::new(),
        }
    }

    fn place(&mut self, path: &Path, base: &Base, options: &InspectOptions, run: &Run<'_>) -> Result<()> {
        let adapter = match Adapter::open_for(path, base.config.as_ref(), &options.read) {
            Ok(adapter) => adapter,
            Err(error) => {
                self.misfit = Some(error.to_string());
                return Ok(());
            }
        };
        let applied = Applied { adapter, init: None, original: None, strength: 1.0 };
        let (selection, any) = (Selection::default(), everything());
        let mut placer = Placer::new(base, &selection, &any).resizing(true);
        if let Err(error) = placer.place(&applied) {
            self.misfit = Some(error.to_string());
            return Ok(());
        }
        let placement = placer.placement;
        let outcomes = placement.outcomes.iter().flatten();
        let unplaced =
            outcomes.filter(|(_, outcome)| **outcome == Outcome::AllowedUnused).map(|(name, _)| name.clone());
        self.unplaced = unplaced.collect();
        self.unplaced.sort();
        self.changed_tensors = Some(placement.targets.len());
        self.tied_change = base.tie.as_ref().and_then(|tie| {
            let touched = [&tie.head, &tie.embedding].map(|name| placement.targets.contains_key(name));
            touched.contains(&true).then(|| tie.embedding.clone())
        });
        if options.spectrum {
            let targets: Vec<(&String, &Target)> = placement.targets.iter().collect();
            self.measure(base, &targets, options, run)?;
        }
        Ok(())
    }

    fn measure(
        &mut self,
        base: &Base,
        targets: &[(&String, &Target)],
        options: &InspectOptions,
        run: &Run<'_>,
    ) -> Result<()> {
        let held: Vec<u64> = targets.iter().map(|_| BAND_BYTES).collect();
        let norms = map_within(&held, &options.budget, run.cancel, |at| norms(base, targets[at]))?;
        self.norms = norms.into_iter().flatten().collect();
        let total = |number: fn(&TensorNorms) -> f64| self.norms.iter().map(|norms| number(norms).powi(2)).sum::<f64>();
        let (delta, weight) = (total(|norms| norms.delta), total(|norms| norms.weight));
        self.relative = (weight > 0.0).then(|| (delta / weight).sqrt());
        self.norms.sort_by(|left, right| {
            let (left, right) = (left.relative.unwrap_or(f64::INFINITY), right.relative.unwrap_or(f64::INFINITY));
            right.total_cmp(&left)
        });
        Ok(())
    }
}

/// `None` where the change is not known by low-rank factors, or the weight cannot be read as numbers.
fn norms(base: &Base, (name, target): (&String, &Target)) -> Result<Option<TensorNorms>> {
    if target.replacement.is_some() || !base.names.has(name) {
        return Ok(None);
    }
    let Some(delta) = delta_norm(&target.pieces)? else { return Ok(None) };
    let Ok(weight) = base.weight(name, target.cols) else { return Ok(None) };
    let weight = Streamed(weight).frobenius_squared()?.sqrt();
    let relative = (weight > 0.0).then(|| delta / weight);
    Ok(Some(TensorNorms { tensor: name.clone(), delta, weight, relative }))
}

fn everything() -> GlobSet {
    let any = Glob::new("*").map_err(|problem| Error::invalid("*", problem.to_string()));
    any.ok().and_then(|any| GlobSet::builder().add(any).build().ok()).unwrap_or_else(GlobSet::empty)
}
