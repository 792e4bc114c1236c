//! `resize --remove-intruders`: ΔW less a share of what it adds to the model in directions that the model does not have.
//!
//! PEFT's `reduce_intruder_dimension`: an intruder is a triplet σ·u·vᵀ among the leading ones of W + ΔW whose u is like no left
//! singular vector of W ([`crate::linalg::intruders`]). ΔW becomes ΔW − (1 − λ)·Σ σ·u·vᵀ, which is a sum of products, so it is cut to
//! its rank again without being formed. Rows are those of the weight as it is stored, as in PEFT. One layer is looked at at a time.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Method, Opened, Operation, SumOptions};
use crate::adapters::{Delta, LowRankDelta, Term, Tile};
use crate::error::{Error, Result};
use crate::linalg::{self, Intruder, LowRank, RowSource};
use crate::model::original::Original;
use crate::model::weight::Weight;
use crate::naming::Shift;
use crate::output::Run;
use crate::pairs::PairKind;
use crate::placement::terms::{Slot, Terms};
use crate::plan::map_within;
use crate::tensor::{seed_of, usize_of};
use crate::truncate::{IntruderReport, NewAdapterReport};

/// Matrices in f64 of the shorter side that are held at once: a Gram matrix, its vectors, what the solver works on.
const HELD_SQUARES: usize = 4;

/// Most singular vectors that are looked at.
const MAX_TOP: usize = 4096;

/// What is an intruder, and how much of it stays. The defaults are PEFT's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Intruders {
    /// So many leading singular vectors of W + ΔW are looked at.
    pub top_k: usize,
    /// An intruder's |cos| with every left singular vector of W is below this.
    pub threshold: f64,
    /// The share of an intruder that stays: 0 removes it.
    pub lambda: f64,
}

impl Default for Intruders {
    fn default() -> Self {
        Self { top_k: 10, threshold: 0.5, lambda: 0.75 }
    }
}

impl Intruders {
    /// Options that do not go together, and numbers that make no sense.
    pub(super) fn check(&self, options: &SumOptions) -> Result<()> {
        const OPTION: &str = "--remove-intruders";
        if options.operation != Operation::Resize || options.method != Method::Concat {
            return Err(Error::invalid(OPTION, "belongs to `resize`, which takes adapters one by one"));
        }
        if options.base.is_none() {
            return Err(Error::invalid(OPTION, "compares with the model the adapter was trained on")
                .hint("`--base PATH` names it"));
        }
        if !(1..=MAX_TOP).contains(&self.top_k) {
            return Err(Error::invalid("--top-k", format!("`{}` is not between 1 and {MAX_TOP}", self.top_k)));
        }
        for (option, number) in [("--threshold-epsilon", self.threshold), ("--mitigation-lambda", self.lambda)] {
            if !(0.0..=1.0).contains(&number) {
                return Err(Error::invalid(option, format!("`{number}` is not between 0 and 1")));
            }
        }
        Ok(())
    }

    pub(super) fn recipe(&self) -> Value {
        json!({ "top_k": self.top_k, "threshold_epsilon": self.threshold, "mitigation_lambda": self.lambda })
    }
}

/// What is taken out of one module.
pub struct Foreign {
    intruders: Vec<Intruder>,
    /// (λ − 1)·Σ σ·u·vᵀ, `[out, in]`.
    taken: LowRank,
}

impl Foreign {
    /// What it adds to ΔW, divided by `divisor`.
    pub fn over(&self, divisor: f64) -> LowRank {
        LowRank::from_rows(self.taken.up(), self.taken.down(), self.taken.rank(), self.taken.scale() / divisor)
    }
}

impl Opened {
    /// What is to be taken out of every slot of `terms`; nothing where that was not asked for.
    ///
    /// # Errors
    /// When the base has not the weight of a module, or it is no matrix.
    pub(super) fn intruders(&self, options: &SumOptions, terms: &Terms, run: &Run<'_>) -> Result<Vec<Option<Foreign>>> {
        let (Some(own), Some(original)) = (&options.intruders, &self.original) else { return Ok(Vec::new()) };
        let slots: Vec<&Slot> = terms.slots.values().collect();
        let taken = |slot: &&Slot| options.selection.takes(&slot.path);
        let paths: Vec<&str> = slots.iter().map(|slot| slot.path.as_str()).collect();
        let home = Home { options, original, shift: original.shift(&self.sources[0].adapter, &paths)? };
        let said = self.sources[0].adapter.config.fan_in_fan_out;
        let layers: Vec<Option<Layer<'_>>> =
            slots.iter().map(|slot| taken(slot).then(|| home.layer(slot, said)).transpose()).collect::<Result<_>>()?;
        let held: Vec<u64> = layers.iter().map(|layer| layer.as_ref().map_or(0, |layer| layer.held(own))).collect();
        map_within(&held, &options.write.budget, run.cancel, |at| match &layers[at] {
            Some(layer) => layer.foreign(own),
            None => Ok(None),
        })
    }
}

/// The model, and how the adapter's paths become its own.
struct Home<'a> {
    options: &'a SumOptions,
    original: &'a Arc<Original>,
    shift: Shift,
}

impl<'a> Home<'a> {
    /// The layer of a slot.
    fn layer(&self, slot: &'a Slot, said: bool) -> Result<Layer<'a>> {
        let (base, root) = (&self.original.base, self.options.root_of(slot));
        if let PairKind::Parameter { .. } = slot.kind {
            let what = format!("`{}` is a parameter without a layer, whose intruders are not known", slot.name());
            return Err(Error::unsupported(root, what).hint("`--exclude REGEX` leaves it as it is"));
        }
        if !slot.multiplied.is_empty() || slot.shares.is_empty() {
            let what = format!("`{}` is DoRA: `--remove-intruders` weakens a sum of products, as in PEFT", slot.path);
            return Err(Error::unsupported(root, what).hint("`resize --rank N --base PATH` makes it LoRA first"));
        }
        let path = self.shift.apply(&slot.path);
        let path = base.names.located(&path).unwrap_or(path);
        let name = format!("{path}.weight");
        let model = || base.checkpoint.root().display().to_string();
        let Some(own) = base.own_name(&name) else {
            let problem = format!("`{}` has no weight of its own: the base has no tensor `{name}`", slot.path);
            return Err(Error::mismatch(root.display().to_string(), model(), problem)
                .hint("is this the model the adapter was trained on? `--exclude REGEX` leaves a module as it is"));
        };
        let info = base.stored(&own).info.clone();
        let (rows, cols) = info.shape.rows_cols();
        let (rows, cols) = (usize_of(rows), usize_of(cols));
        let (straight, turned) = (slot.shape() == (rows, cols), slot.shape() == (cols, rows));
        let transposed = match (straight, turned && info.shape.as_slice().len() == 2) {
            (true, true) => matches!(slot.kind, PairKind::Embedding) || base.keeps_inputs_in_rows(&path, said),
            (true, false) => false,
            (false, true) => true,
            (false, false) => {
                let (outputs, inputs) = slot.shape();
                let problem = format!("`{}`: ΔW is [{outputs}, {inputs}], `{own}` is {}", slot.path, info.shape);
                return Err(Error::mismatch(root.display().to_string(), model(), problem));
            }
        };
        let weight = base.weight(&own, Some(cols))?;
        Ok(Layer { slot, weight, transposed })
    }
}

/// A weight and its change.
struct Layer<'a> {
    slot: &'a Slot,
    weight: Weight,
    /// The weight is stored the other way round than ΔW.
    transposed: bool,
}

impl Layer<'_> {
    /// Bytes that looking for intruders holds, about.
    fn held(&self, own: &Intruders) -> u64 {
        let side = self.weight.rows.min(self.weight.cols);
        ((HELD_SQUARES * side * side + 2 * (self.weight.rows + self.weight.cols) * own.top_k) * size_of::<f64>()) as u64
    }

    fn foreign(&self, own: &Intruders) -> Result<Option<Foreign>> {
        let term = |share: &crate::placement::terms::Share| {
            let term = Term { scale: share.factor(), ..share.term.clone() };
            if self.transposed { term.transposed() } else { term }
        };
        let delta = LowRankDelta::new(self.slot.shares.iter().map(term).collect());
        let merged = Merged { weight: &self.weight, delta };
        let foreign = linalg::Foreign { top: own.top_k, threshold: own.threshold };
        let tensor = &self.weight.tensor;
        let seed = seed_of(&[self.slot.name().as_bytes()]);
        let found = linalg::intruders(&self.weight, &merged, foreign, seed)?;
        self.weight.release(0..self.weight.rows);
        let intruders = found.ok_or_else(|| {
            Error::numeric(tensor.path(), &tensor.info.name, "it or what is added to it is not finite")
        })?;
        if intruders.is_empty() {
            return Ok(None);
        }
        let products: Vec<LowRank> = intruders.iter().map(|one| one.product.clone()).collect();
        let sum = LowRank::sum(&products);
        let (up, down, rank) = (sum.up(), sum.down(), sum.rank());
        let (up, down) = match self.transposed {
            true => (columns(&down, rank, self.weight.cols), columns(&up, self.weight.rows, rank)),
            false => (up, down),
        };
        Ok(Some(Foreign { intruders, taken: LowRank::from_rows(up, down, rank, own.lambda - 1.0) }))
    }
}

/// A matrix of these rows and columns, turned.
fn columns(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

/// W + ΔW in the orientation of the stored weight, band by band.
struct Merged<'a> {
    weight: &'a Weight,
    delta: LowRankDelta,
}

impl RowSource for Merged<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.weight.rows, self.weight.cols)
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut base = vec![0.0; out.len()];
        RowSource::read(self.weight, rows.clone(), &mut base)?;
        out.copy_from_slice(&base);
        let cols = 0..self.weight.cols;
        let tile = &mut Tile { rows, cols: cols.clone(), base: &base, value: out, fresh: false };
        self.delta.columns(cols)?.add(1.0, tile)
    }
}

/// Says what was found.
pub fn tell(slots: &[&Slot], foreign: &[Option<Foreign>], own: &Intruders, report: &mut NewAdapterReport) {
    let found: Vec<IntruderReport> = slots
        .iter()
        .zip(foreign)
        .filter_map(|(slot, foreign)| {
            let intruders = &foreign.as_ref()?.intruders;
            Some(IntruderReport {
                module: slot.name(),
                at: intruders.iter().map(|one| one.at).collect(),
                values: intruders.iter().map(|one| one.value).collect(),
                cosines: intruders.iter().map(|one| one.cosine).collect(),
            })
        })
        .collect();
    let count: usize = found.iter().map(|module| module.at.len()).sum();
    report.notes.push(match count {
        0 => format!(
            "no intruders: each of the {} largest directions of every W + ΔW is like one of W (|cos| ≥ {})",
            own.top_k, own.threshold
        ),
        _ => format!(
            "{count} {} in {} of {} modules, directions like none of W (|cos| < {}): {} of each is left; shares and errors are those \
             of the change without the rest",
            if count == 1 { "intruder" } else { "intruders" },
            found.len(),
            slots.len(),
            own.threshold,
            own.lambda
        ),
    });
    report.intruders = Some(found);
}
