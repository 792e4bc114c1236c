//! Changes that take the model to be known: DoRA, and adapters that PiSSA or OLoRA started and whose untrained factors are lost.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Share, Terms};
use crate::adapters::{Adapter, Change, Delta, Dora, Lora, LowRankDelta, Method, Target, Term, Tile, describe};
use crate::error::{Error, Result};
use crate::linalg::RowSource;
use crate::model::base::Base;
use crate::model::original::Original;
use crate::model::weight::Weight;
use crate::naming::Shift;
use crate::placement::{Placeable, Prepared, is_transposed, prepare};
use crate::plan::{Budget, map_within};
use crate::tensor::usize_of;

/// A change that waits for the weight it belongs to.
pub struct Pending {
    slot: (String, String),
    source: usize,
    strength: f64,
    rank: usize,
    prepared: Prepared,
    transposed: bool,
    weight: Arc<Weight>,
}

/// W′ − W of a DoRA, in the orientation of the stored weight.
pub struct Multiplied {
    /// Which adapter it comes from.
    pub source: usize,
    /// The adapter's weight here.
    pub strength: f64,
    /// r.
    pub rank: usize,
    dora: Dora,
    /// The weight keeps its inputs in rows.
    pub transposed: bool,
    weight: Arc<Weight>,
}

/// Whether the pair means nothing without the model.
pub fn needs_weight(job: &Placeable<'_>, lora: &Lora) -> bool {
    lora.magnitude.is_some() || job.applied.adapter.config.dora || job.applied.original.is_some()
}

/// The model, and how an adapter's paths become its own.
pub struct Home<'a> {
    base: &'a Base,
    shift: Shift,
}

impl<'a> Home<'a> {
    /// Finds out how the paths of `adapter` become those of `original`.
    ///
    /// # Errors
    /// When there is more than one way.
    pub fn of(original: &'a Original, adapter: &Adapter) -> Result<Self> {
        let pairs =
            adapter.modules.iter().filter(|module| matches!(module.change, Change::Lora(_) | Change::Method(_)));
        let paths: Vec<&str> = pairs.map(|module| module.path.as_str()).collect();
        Ok(Self { base: &original.base, shift: original.shift(adapter, &paths)? })
    }

    fn path(&self, job: &Placeable<'_>) -> String {
        let path = self.shift.apply(&job.module.path);
        self.base.names.located(&path).unwrap_or(path)
    }

    /// The layer that a change belongs to, if the model has it under that path.
    pub fn target(&self, job: &Placeable<'_>, method: &dyn Method) -> Option<Target> {
        let path = self.path(job);
        let stored = self.base.stored(&self.base.own_name(&format!("{path}.weight"))?);
        let said = self.base.keeps_inputs_in_rows(&path, job.applied.adapter.config.fan_in_fan_out);
        let (rows, cols) = stored.info.shape.rows_cols();
        let transposed = stored.info.shape.as_slice().len() == 2
            && method.shape().filter(|_| rows != cols).map_or(said, |shape| shape == (cols, rows));
        Some(Target::of(&stored, transposed, false))
    }

    /// Finds the weight of a pair that means nothing without it.
    ///
    /// # Errors
    /// When the model has no such weight, or shapes disagree.
    pub fn find(&self, job: &Placeable<'_>, lora: &Lora, source: usize, slot: (String, String)) -> Result<Pending> {
        let base = self.base;
        let path = self.path(job);
        let names = [format!("{path}.weight"), format!("{path}.in_proj_weight")];
        let Some(name) = names.iter().find_map(|name| base.own_name(name)) else {
            let model = base.checkpoint.root().display().to_string();
            return Err(Error::mismatch(describe(&lora.down), model, format!("the base has no tensor `{}`", names[0]))
                .hint("is this the model the adapter was trained on?"));
        };
        let target = base.stored(&name);
        let transposed = is_transposed(base, job, lora, &target)?;
        let prepared = prepare(base, job, lora, &target)?;
        let rank = usize_of(lora.rank());
        let weight = Arc::new(base.weight(&name, None)?);
        Ok(Pending { slot, source, strength: job.strength, rank, prepared, transposed, weight })
    }
}

impl Terms {
    /// Looks at the weights that changes wait for. Gives what people should know.
    ///
    /// # Errors
    /// When a weight cannot be read, or makes a change meaningless.
    pub fn resolve(&mut self, budget: &Budget, cancel: &AtomicBool) -> Result<Vec<String>> {
        let pending = std::mem::take(&mut self.pending);
        let held: Vec<u64> = pending.iter().map(|pending| pending.delta().measure_bytes()).collect();
        map_within(&held, budget, cancel, |at| pending[at].delta().measure(pending[at].weight.as_ref()))?;
        let notes = pending.iter().filter_map(|pending| pending.delta().notes().map(str::to_owned)).collect();
        for Pending { slot, source, strength, rank, prepared, transposed, weight } in pending {
            let slot = self.slots.get_mut(&slot).expect("a change waits for the sum it belongs to");
            match prepared {
                Prepared::Plain(delta) => slot.insert(shares(&delta, source, strength, transposed)),
                Prepared::Dora(dora) => {
                    slot.multiplied.push(Multiplied { source, strength, rank, dora, transposed, weight });
                }
            }
        }
        Ok(notes)
    }
}

/// The products of a change, turned back to `[out, in]`.
fn shares(delta: &LowRankDelta, source: usize, weight: f64, transposed: bool) -> Vec<Share> {
    let share = |term: &Term| {
        let term = if transposed { term.clone().transposed() } else { term.clone() };
        let rank = term.down.shape().0;
        Share { source, weight, term, rank, float: None, stored: None, bias: None, stack: None }
    };
    delta.terms().map(share).collect()
}

impl Pending {
    fn delta(&self) -> &dyn Delta {
        match &self.prepared {
            Prepared::Plain(delta) => delta,
            Prepared::Dora(dora) => dora,
        }
    }
}

/// Σ wᵢ·(W′ᵢ − W) + Σ fⱼ·Bⱼ·Aⱼ in the orientation of the stored weight, computed band by band.
pub struct Moved<'a> {
    multiplied: &'a [Multiplied],
    products: Option<LowRankDelta>,
    weight: &'a Weight,
}

impl<'a> Moved<'a> {
    /// The sum over `multiplied`, of which there is at least one, and `shares`.
    pub fn new(multiplied: &'a [Multiplied], shares: &[Share]) -> Self {
        let first = &multiplied[0];
        let term = |share: &Share| {
            let term = Term { scale: share.factor(), ..share.term.clone() };
            if first.transposed { term.transposed() } else { term }
        };
        let products = (!shares.is_empty()).then(|| LowRankDelta::new(shares.iter().map(term).collect()));
        Self { multiplied, products, weight: &first.weight }
    }

    /// Whether the weight keeps its inputs in rows.
    pub fn is_transposed(&self) -> bool {
        self.multiplied[0].transposed
    }
}

impl RowSource for Moved<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.weight.rows, self.weight.cols)
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut base = vec![0.0; out.len()];
        RowSource::read(self.weight, rows.clone(), &mut base)?;
        out.fill(0.0);
        let cols = 0..self.weight.cols;
        let mut add = |delta: &dyn Delta, strength: f64| {
            let tile =
                &mut Tile { rows: rows.clone(), cols: cols.clone(), base: &base, value: &mut *out, fresh: false };
            delta.columns(cols.clone())?.add(strength, tile)
        };
        self.multiplied.iter().try_for_each(|multiplied| add(&multiplied.dora, multiplied.strength))?;
        self.products.iter().try_for_each(|products| add(products, 1.0))
    }
}

impl Multiplied {
    /// ‖W′‖: every output has its magnitude as norm.
    pub fn norm(&self) -> f64 {
        self.dora.magnitude().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
    }
}
