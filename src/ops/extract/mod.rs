//! `extract`: tuned − base → a LoRA adapter, by truncated SVD of every change, with a certified error.
//!
//! Tensors are paired by name; no model class is needed. A change is never held: its bands are subtracted while they are read from
//! both files, as often as the decomposition asks. What has no low-rank form is stored whole, and what is left out is counted.

mod assemble;
mod choice;
mod class;
mod difference;
mod examine;
mod factor;
mod pairing;
mod ranks;
mod summary;

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Map, Value, json};

pub use choice::Choice;
pub use ranks::Spent;
pub use summary::{ExtractReport, ModuleSummary, Total, WholeSummary};

use super::rank_choice::beyond_budget;
use super::{Budgeted, RankChoice, Ranking};
use crate::error::{Error, Result};
use crate::io::Inputs;
use crate::io::name_of;
use crate::linalg::Compute;
use crate::model::base::Base;
use crate::naming::experts;
use crate::output::WriteOptions;
use crate::output::new_adapter::{Origin, ToDialect};
use crate::output::{Run, check_early};
use crate::pairs::NewWhole;
use crate::plan::Quiet;
use crate::tensor::Float;
use examine::{Examined, examine};
use factor::{Factored, Form};
use ranks::Means;

/// Longest entry of a header beside the path of a module: keys, offsets, shape.
const ENTRY_BYTES: usize = 200;

/// Header of a file beside its tensors: length, padding and the recipe's quotes.
const HEADER_BYTES: usize = 1024;

/// What is extracted, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExtractOptions {
    /// The model that was tuned.
    pub base: PathBuf,
    /// What it became.
    pub tuned: PathBuf,
    /// Which modules, and which of them whole.
    pub choice: Choice,
    /// How ranks are chosen.
    pub ranks: RankChoice,
    /// Fill all pairs with zeros up to the largest rank.
    pub uniform_rank: bool,
    /// `None` is the rank: a scale of 1.
    pub alpha: Option<f64>,
    /// How close to the best error.
    pub compute: Compute,
    /// In which dialect.
    pub dialect: ToDialect,
    /// How the result is written.
    pub write: WriteOptions,
}

impl ExtractOptions {
    /// What made `tuned` of `base`; everything else is as on the command line without options.
    pub fn new(base: impl Into<PathBuf>, tuned: impl Into<PathBuf>, ranks: RankChoice, write: WriteOptions) -> Self {
        Self {
            base: base.into(),
            tuned: tuned.into(),
            choice: Choice::default(),
            ranks,
            uniform_rank: false,
            alpha: None,
            compute: Compute::default(),
            dialect: ToDialect::default(),
            write,
        }
    }
}

/// Extracts the change between two models as an adapter.
///
/// # Errors
/// When the models do not fit each other, a change has no place in an adapter, or the result cannot be written. Nothing is left
/// behind then.
pub fn extract(options: &ExtractOptions, run: &Run<'_>) -> Result<ExtractReport> {
    let started = Instant::now();
    check_dtype(options.write.dtype)?;
    options.dialect.check_out(&options.write.out)?;
    let inputs = Inputs::watch();
    let (base, tuned) = (Base::open(&options.base)?, Base::open(&options.tuned)?);
    tuned.wrapping.refuse_inside(&tuned.checkpoint, "TUNED")?;
    options.dialect.check(&options.base, base.checkpoint.tensors().map(|info| info.name.as_str()))?;
    check_early(&options.write, &inputs, &options.dialect.expected(&options.write.out, std::iter::empty()))?;
    let pairing = pairing::pair(&base, &tuned, &options.choice)?;
    let budget = options.write.budget;
    let examined = examine(&base, &tuned, pairing, &options.choice, &budget, run)?;
    if examined.tasks.is_empty() && examined.whole.is_empty() {
        let problem = format!(
            "{} tensors are equal, {} are left out: there is nothing to extract",
            examined.unchanged,
            examined.skipped.len()
        );
        return Err(Error::mismatch(options.tuned.display().to_string(), options.base.display().to_string(), problem));
    }
    let whole = assemble::whole(&tuned, &examined.whole)?;
    let mut report = begin(options, &tuned, &examined, &whole);
    let recipe = recipe(options, &base, &tuned);
    // Within a budget every change is looked at before the ranks are known, and cut afterwards.
    let passes = if matches!(options.ranks.ranking, Ranking::Budget(_)) && !options.uniform_rank { 2 } else { 1 };
    let bytes: u64 = examined.tasks.iter().map(|task| task.difference.tuned().tensor.info.bytes).sum();
    run.progress.begin(passes * bytes);
    let means = Means {
        choice: &options.ranks,
        uniform: options.uniform_rank,
        form: Form { stored: options.write.dtype, alpha: options.alpha, compute: options.compute },
        budget,
        spent: spent(options, &examined, &whole, &recipe),
    };
    let (factored, spent) = ranks::factor(&examined.tasks, &means, run)?;
    run.progress.finish();
    complete(&mut report, &examined, &factored, spent, options);
    let adapter = assemble::assemble(&base, &examined, factored, whole, options.uniform_rank);
    let quiet = Run { cancel: run.cancel, progress: &Quiet };
    let file = &tuned.checkpoint.files()[0].map;
    let origin = Origin { input: &options.tuned, file, base: Some(&options.base), component: true };
    let written = options.dialect.write(adapter.into_files(), &recipe, origin, &options.write, &quiet, &inputs)?;
    report.notes.extend(beyond_budget(&options.ranks, &options.dialect, written.bytes));
    report.notes.extend(written.notes);
    report.bytes = written.bytes;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Factors are served as f32, f16 or bf16.
fn check_dtype(dtype: Option<Float>) -> Result<()> {
    match dtype {
        None | Some(Float::F32 | Float::F16 | Float::Bf16) => Ok(()),
        Some(other) => {
            let problem = format!(
                "`{}` is not one of keep, f32, f16, bf16, the dtypes adapters are served in",
                other.torch_name()
            );
            Err(Error::invalid("--dtype", problem))
        }
    }
}

/// What of a budget goes to tensors stored whole and to the header, at most.
fn spent(options: &ExtractOptions, examined: &Examined, whole: &[NewWhole], recipe: &Value) -> u64 {
    match options.ranks.ranking {
        Ranking::Budget(Budgeted::Parameters(_)) => whole.iter().map(|whole| summary::elements(&whole.shape)).sum(),
        Ranking::Budget(Budgeted::Bytes(_)) => {
            let pairs = examined.tasks.iter().map(|task| {
                let head = task.tied_head.as_ref().map_or(0, |head| head.len() + ENTRY_BYTES);
                2 * (task.name.len() + ENTRY_BYTES + head)
            });
            let names = whole.iter().map(|whole| whole.module.len() + whole.parameter.len() + ENTRY_BYTES);
            let header = pairs.chain(names).sum::<usize>() + 2 * recipe.to_string().len() + HEADER_BYTES;
            header as u64 + whole.iter().map(|whole| whole.bytes.count()).sum::<u64>()
        }
        _ => 0,
    }
}

fn begin(options: &ExtractOptions, tuned: &Base, examined: &Examined, whole: &[NewWhole]) -> ExtractReport {
    let mut notes = examined.notes.clone();
    let grown = examined.whole.iter().filter(|whole| whole.why.starts_with("grew"));
    notes.extend(grown.map(|whole| {
        format!("`{}` {}: stored whole; resize BASE before the adapter is loaded", whole.module, whole.why)
    }));
    let in_groups = examined.whole.iter().filter(|whole| whole.why.contains("groups"));
    notes.extend(in_groups.map(|whole| format!("`{}` {}: stored whole", whole.module, whole.why)));
    if options.uniform_rank && !whole.is_empty() {
        let problem = "tensors are stored whole, which vLLM refuses; `--skip` leaves their modules out";
        notes.push(format!("{} {problem}", whole.len()));
    }
    let sizes = whole.iter().map(|whole| whole.bytes.count());
    ExtractReport {
        base: options.base.clone(),
        tuned: options.tuned.clone(),
        out: options.write.out.clone(),
        to: options.dialect.name(),
        dry_run: options.write.dry_run,
        whole: examined.whole.iter().zip(sizes).map(|(whole, bytes)| summary::whole(whole, bytes)).collect(),
        unchanged: examined.unchanged,
        skipped: examined.skipped.clone(),
        tuned_bytes: tuned.checkpoint.tensors().map(|info| info.bytes).sum(),
        notes,
        ..ExtractReport::default()
    }
}

/// Adds what was measured.
fn complete(
    report: &mut ExtractReport,
    examined: &Examined,
    factored: &[Factored],
    spent: Option<Spent>,
    options: &ExtractOptions,
) {
    let mut total = Total::default();
    for (task, factored) in examined.tasks.iter().zip(factored) {
        let summary = summary::module(task, factored);
        total.add(factored, summary.parameters);
        report.modules.push(summary);
    }
    let none = total.ranks.get(&0).copied().unwrap_or(0);
    if none > 0 {
        report.notes.push(format!("{none} changed modules get no rank and are left out of the adapter"));
    }
    let widest = total.ranks.keys().last().copied().unwrap_or(0);
    if options.uniform_rank && total.ranks.len() > 1 {
        report.notes.push(format!("all pairs are filled with zeros up to rank {widest}"));
    }
    let single = examined.tasks.iter().any(|task| experts::expert_of(&task.path).is_some());
    if single && total.ranks.len() > 1 && !options.uniform_rank {
        report
            .notes
            .push("PEFT fuses pairs of single experts and gives them one rank: `--uniform-rank` makes it so".into());
    }
    if total.at_rounding_floor > 0 {
        report.notes.push(format!(
            "in {} of {} modules the error is no larger than what rounding TUNED to its dtype added: a higher rank would keep noise",
            total.at_rounding_floor,
            report.modules.len()
        ));
    }
    if let Some(Spent { short_at_most, .. }) = spent.filter(|spent| spent.short_at_most > 0.0) {
        let share = short_at_most / (total.norm * total.norm).max(f64::MIN_POSITIVE);
        report.notes.push(format!("other ranks within the budget could keep up to {share:.1e} of ‖ΔW‖² more"));
    }
    report.total = total;
    report.budget = spent;
}

/// How the adapter was made. Depends on inputs and options alone.
fn recipe(options: &ExtractOptions, base: &Base, tuned: &Base) -> Value {
    json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": "extract",
        "base": { "name": name_of(base.checkpoint.root()) },
        "tuned": { "name": name_of(tuned.checkpoint.root()) },
        "options": chosen(options),
    })
}

/// The options that differ from their defaults and change bytes.
fn chosen(options: &ExtractOptions) -> Value {
    let mut chosen = match options.ranks.recipe() {
        Value::Object(chosen) => chosen,
        _ => Map::new(),
    };
    let mut set = |key: &str, value: Value| chosen.insert(key.into(), value);
    if options.uniform_rank {
        set("uniform_rank", true.into());
    }
    if let Some(alpha) = options.alpha {
        set("alpha", alpha.into());
    }
    if options.compute == Compute::Fast {
        set("compute", "fast".into());
    }
    if let Some(float) = options.write.dtype {
        set("dtype", float.dtype().name().into());
    }
    let choice = &options.choice;
    for (key, patterns) in [("include", &choice.include), ("skip", &choice.skip), ("full", &choice.full)] {
        if !patterns.is_empty() {
            set(key, patterns.iter().map(ToString::to_string).collect::<Vec<String>>().into());
        }
    }
    options.dialect.note(&mut chosen);
    chosen.into()
}
