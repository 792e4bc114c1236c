//! What a merge did, for people and programs. Serialises to the JSON that `docs/reference/json.md` describes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::MergeOptions;
use super::assemble::{Assembled, Counts};
use crate::adapters::{AlphaFrom, Change, named_base};
use crate::dialects::Dialect;
use crate::error::Result;
use crate::io::name_of;
use crate::model::base::Base;
use crate::placement::applied::Applied;
use crate::placement::merged::Merged;
use crate::placement::placer::{Outcome, Placement};
use crate::placement::tile::delta_norm;
use crate::tensor::Survival;

/// How many tensors are listed as the worst.
const WORST: usize = 10;

/// Least share of a change that is left in a tensor without a note.
const LEAST_KEPT: f64 = 0.5;

/// What a merge did, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MergeReport {
    /// The model.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub base: PathBuf,
    /// The result.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Nothing was written.
    pub dry_run: bool,
    /// `I/N` where one slice was done.
    pub part: Option<String>,
    /// What was merged.
    pub adapters: Vec<AdapterSummary>,
    /// Options that change bytes and are not as they are without being said; as in the record.
    pub options: Value,
    /// Tensors of the output by origin.
    pub tensors: Counts,
    /// Names of tensors by what happened to them; what is not listed was copied.
    pub changed: Vec<ChangedTensor>,
    /// What the tensors that deltas land on are stored as: most of them first.
    pub written_as: Vec<String>,
    /// Weight files of the output.
    pub files: usize,
    /// Jobs of the plan.
    pub jobs: usize,
    /// Bytes of the output.
    pub bytes: u64,
    /// Delta survival over all changed tensors; `None` in a dry run.
    pub survival: Option<TensorSurvival>,
    /// The tensors that lost most.
    pub worst: Vec<TensorSurvival>,
    /// Changed tensors in which rounding moved the weights at least as much as the adapters did.
    pub drowned: usize,
    /// Changed tensors that were rounded stochastically, since rounding to nearest would have taken the change back.
    pub by_chance: usize,
    /// The result equals the base.
    pub changes_nothing: bool,
    /// What was corrected in config.json.
    pub config_changes: Vec<String>,
    /// Notes.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Output per second, in 10⁹ bytes.
    pub gb_per_second: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// A tensor that is not the base's own.
#[derive(Debug, Clone, Serialize)]
pub struct ChangedTensor {
    /// Its name.
    pub name: String,
    /// Deltas that land on it; 0 where it is only replaced.
    pub deltas: usize,
    /// It starts from an adapter's tensor.
    pub replaced: bool,
    /// ‖ΔW‖ from the factors, without forming ΔW: in a dry run, where the deltas are low-rank and do not overlap.
    pub delta_norm: Option<f64>,
}

/// One adapter of the merge.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterSummary {
    /// Where it was read.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// `peft_type`.
    pub method: String,
    /// Its weight.
    pub weight: f64,
    /// Modules with a low-rank change.
    pub modules: usize,
    /// Ranks that occur, and in how many modules.
    pub ranks: BTreeMap<u64, usize>,
    /// Smallest and largest scale in front of B·A.
    pub scales: Option<(f64, f64)>,
    /// Where its α stands.
    pub alpha_from: Option<AlphaFrom>,
    /// What became of its tensors, by number.
    pub tensors: BTreeMap<Outcome, usize>,
}

/// What is left of ΔW after rounding, of one tensor or of all.
#[derive(Debug, Clone, Serialize)]
pub struct TensorSurvival {
    /// The tensor, or `total`.
    pub tensor: String,
    /// ‖ΔW‖.
    pub delta_norm: f64,
    /// ‖W′ − W‖.
    pub moved_norm: f64,
    /// ⟨W′ − W, ΔW⟩ / ‖ΔW‖²: 1 where nothing is lost in the direction of ΔW.
    pub retained: f64,
    /// ‖W′ − (W + ΔW)‖: what rounding, or quantising again, did.
    pub error_norm: f64,
    /// ‖W′ − (W + ΔW)‖ / ‖ΔW‖.
    pub relative_error: f64,
    /// Share of the elements ΔW wanted to change that did not move.
    pub lost_share: f64,
    /// Largest |ΔW|.
    pub max_delta: f32,
    /// Share of the codes that moved, of weights that are written back as codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codes_moved: Option<f64>,
}

impl TensorSurvival {
    fn new(tensor: &str, survival: &Survival) -> Self {
        Self {
            tensor: tensor.into(),
            delta_norm: survival.delta_norm(),
            moved_norm: survival.moved_squared.sqrt(),
            retained: survival.retained(),
            error_norm: survival.error_squared.sqrt(),
            relative_error: survival.relative_error(),
            lost_share: survival.lost_share(),
            max_delta: survival.max_delta,
            codes_moved: survival.codes_moved_share(),
        }
    }
}

/// What is known before anything is computed.
///
/// # Errors
/// When factors cannot be read.
pub fn begin(
    options: &MergeOptions,
    applied: &[Applied],
    placement: &Placement,
    assembled: &Assembled,
    base: &Base,
) -> Result<MergeReport> {
    let mut changed = Vec::with_capacity(placement.targets.len());
    for (name, target) in &placement.targets {
        let delta_norm = if options.write.dry_run { delta_norm(&target.pieces)? } else { None };
        let (deltas, replaced) = (target.pieces.len(), target.replacement.is_some());
        changed.push(ChangedTensor { name: name.clone(), deltas, replaced, delta_norm });
    }
    let nothing = |tensor: &ChangedTensor| tensor.delta_norm == Some(0.0) && !tensor.replaced;
    let changes_nothing = changed.iter().all(nothing);
    Ok(MergeReport {
        base: options.base.clone(),
        out: options.write.out.clone(),
        dry_run: options.write.dry_run,
        part: options.write.part.map(|part| format!("{}/{}", part.part, part.parts)),
        adapters: adapters(applied, placement),
        options: Value::Object(Map::new()),
        tensors: assembled.counts,
        changed,
        written_as: written_as(&assembled.merged),
        files: assembled.plan.files.len(),
        jobs: assembled.plan.jobs.len(),
        bytes: 0,
        survival: None,
        worst: Vec::new(),
        drowned: 0,
        by_chance: 0,
        changes_nothing,
        config_changes: Vec::new(),
        notes: notes(base, applied, placement),
        seconds: 0.0,
        gb_per_second: 0.0,
        peak_resident_bytes: None,
    })
}

/// What tensors are stored as, most of them first.
fn written_as(merged: &[Arc<Merged>]) -> Vec<String> {
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in merged {
        let name = tensor.out.to_string().to_lowercase();
        *counted.entry(name).or_default() += 1;
    }
    let mut counted: Vec<(String, usize)> = counted.into_iter().collect();
    counted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counted.into_iter().map(|(name, _)| name).collect()
}

/// What was found in reading and placing.
pub fn notes(base: &Base, applied: &[Applied], placement: &Placement) -> Vec<String> {
    let read = applied.iter().flat_map(|applied| applied.adapter.tensors.notes());
    let named: BTreeSet<&str> =
        applied.iter().filter_map(|applied| applied.adapter.config.base_model.as_deref()).collect();
    let own = own_name(base);
    let quantised = base.view.is_some()
        || base.config.as_ref().is_some_and(|config| config.raw.contains_key("quantization_config"));
    let others: Vec<String> = named.iter().filter_map(|named| named_base::note(named, &own, quantised)).collect();
    let packed = applied.iter().flat_map(|applied| applied.adapter.packing_notes());
    let read = read.cloned().chain(packed);
    base.notes().chain(others).chain(read).chain(placement.notes.iter().cloned()).collect()
}

/// What the model is called: as its config or the Hugging Face cache says, else as its folder.
fn own_name(base: &Base) -> String {
    let said = base.config.as_ref().and_then(|config| config.text("_name_or_path"));
    let cached = base.checkpoint.root().ancestors().find_map(|folder| {
        let name = folder.file_name()?.to_str()?.strip_prefix("models--")?;
        Some(name.replace("--", "/"))
    });
    let said = said.filter(|name| !name.is_empty()).map(str::to_owned);
    said.or(cached).unwrap_or_else(|| name_of(base.checkpoint.root()))
}

/// What is said of every adapter.
pub fn adapters(applied: &[Applied], placement: &Placement) -> Vec<AdapterSummary> {
    applied.iter().zip(&placement.outcomes).map(|(applied, outcomes)| summarise(applied, outcomes.values())).collect()
}

fn summarise<'a>(applied: &Applied, outcomes: impl Iterator<Item = &'a Outcome>) -> AdapterSummary {
    let adapter = &applied.adapter;
    let mut ranks = BTreeMap::new();
    let mut scales: Option<(f64, f64)> = None;
    let mut modules = 0;
    let mut kinds = BTreeSet::new();
    for module in &adapter.modules {
        let (kind, rank, scale) = match &module.change {
            Change::Lora(lora) => {
                let scaling = adapter.config.scaling.as_ref();
                ("LORA", Some(lora.rank()), scaling.map(|scaling| scaling.scale(&module.path)))
            }
            Change::Method(method) => (method.kind().title, method.rank(), method.scale()),
            _ => continue,
        };
        modules += 1;
        kinds.insert(kind);
        rank.into_iter().for_each(|rank| *ranks.entry(rank).or_default() += 1);
        if let Some(scale) = scale {
            scales = Some(scales.map_or((scale, scale), |(low, high)| (low.min(scale), high.max(scale))));
        }
    }
    let mut tensors = BTreeMap::new();
    outcomes.for_each(|outcome| *tensors.entry(*outcome).or_default() += 1);
    // PEFT says it; elsewhere it is what the modules are.
    let said = Dialect::of(adapter.dialect).declares || kinds.is_empty();
    let method = if said { adapter.config.method.clone() } else { kinds.into_iter().collect::<Vec<_>>().join(" + ") };
    let path = adapter.root.clone();
    let alpha_from = adapter.config.alpha_from.clone();
    AdapterSummary { path, method, weight: applied.strength, modules, ranks, scales, alpha_from, tensors }
}

/// What the deltas found while they were measured, once each, and not more than people read.
fn merged_notes(merged: &[Arc<Merged>]) -> Vec<String> {
    let found = merged.iter().flat_map(|tensor| &tensor.pieces).filter_map(|piece| piece.delta.notes());
    let found: BTreeSet<&str> = found.collect();
    let more = found.len().saturating_sub(WORST);
    let shown = found.iter().take(WORST).map(|note| (*note).to_owned());
    shown.chain((more > 0).then(|| format!("{more} more tensors are as close"))).collect()
}

/// Adds what was measured while the plan ran; `codes` were rounded to the nearest of those that a quantised base has.
pub fn complete(report: &mut MergeReport, merged: &[Arc<Merged>], codes: bool, elapsed: Duration) {
    let mut total = Survival::default();
    let mut each = Vec::with_capacity(merged.len());
    for tensor in merged {
        let survival = tensor.survival();
        total.add(&survival);
        if survival.wanted > 0 {
            each.push(TensorSurvival::new(&tensor.name, &survival));
        }
    }
    report.notes.extend(merged_notes(merged));
    let by_chance = merged.iter().filter_map(|tensor| tensor.by_chance.get());
    let least = by_chance.clone().copied().fold(f64::INFINITY, f64::min);
    report.by_chance = by_chance.count();
    if report.by_chance > 0 {
        report.notes.push(format!(
            "plain rounding would undo most of the change in {} tensor(s) (down to {:.0} % of it left), so they were rounded \
             stochastically: the change is there on average; `--rounding nearest` does without",
            report.by_chance,
            100.0 * least
        ));
    }
    let faint = each.iter().filter(|tensor| tensor.retained < LEAST_KEPT).count();
    if codes && faint > 0 {
        report.notes.push(format!(
            "rounding to the nearest code leaves {:.0} % of the change, and less than half in {faint} tensor(s): `--rounding stochastic` \
             keeps it on average, a plain result (without `--keep-format`) keeps all of it",
            100.0 * total.retained()
        ));
    }
    each.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error));
    report.drowned = each.iter().filter(|tensor| tensor.relative_error >= 1.0).count();
    each.truncate(WORST);
    let moved = total.moved_squared > 0.0;
    report.changes_nothing =
        !moved && report.tensors.replaced == 0 && report.tensors.added == 0 && report.part.is_none();
    report.survival = Some(TensorSurvival::new("total", &total));
    report.worst = each;
    report.seconds = elapsed.as_secs_f64();
    report.gb_per_second = report.bytes as f64 / 1e9 / report.seconds.max(f64::MIN_POSITIVE);
}
