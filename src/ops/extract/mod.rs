//! `extract`: tuned − base → a LoRA adapter, by truncated SVD of every change, with a certified error.
//!
//! Tensors are paired by name; no model class is needed. A change is never held: its bands are subtracted while they are read from
//! both files, as often as the decomposition asks. What has no low-rank form is stored whole, and what is left out is counted.

mod assemble;
mod choice;
mod class;
mod difference;
mod examine;
mod pairing;
mod summary;
mod task;

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

pub use choice::Choice;
pub use summary::ExtractReport;

use crate::dialects::Target;
use crate::dialects::peft::write::one_model;
use crate::error::{Error, Result};
use crate::formats::Container;
use crate::io::{Inputs, name_of};
use crate::linalg::Compute;
use crate::model::base::Base;
use crate::naming::{components, experts};
use crate::output::WriteOptions;
use crate::output::new_adapter::{Origin, ToDialect};
use crate::output::options::named_like;
use crate::output::{Run, check_early};
use crate::pairs::NewWhole;
use crate::plan::Quiet;
use crate::tensor::{Float, Shape, TensorInfo};
use crate::truncate::{Means, NewAdapterReport, RankChoice, Ranking, Truncatable, WholeReport, check_alpha, truncate};
use examine::{Examined, examine};
use task::Task;

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
    /// How ranks are chosen; if nothing is said, they end where nothing but the rounding of TUNED is left.
    pub ranks: Option<RankChoice>,
    /// `None` is the rank: a scale of 1.
    pub alpha: Option<f64>,
    /// How close to the best error.
    pub compute: Compute,
    /// In which dialect.
    pub dialect: ToDialect,
    /// What the config of the adapter calls its base; what BASE calls itself, or is called, if nothing is said.
    pub base_name: Option<String>,
    /// How the result is written.
    pub write: WriteOptions,
}

impl ExtractOptions {
    /// What made `tuned` of `base`; everything else is as on the command line without options.
    pub fn new(base: impl Into<PathBuf>, tuned: impl Into<PathBuf>, write: WriteOptions) -> Self {
        Self {
            base: base.into(),
            tuned: tuned.into(),
            choice: Choice::default(),
            ranks: None,
            alpha: None,
            compute: Compute::default(),
            dialect: ToDialect::default(),
            base_name: None,
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
    options.ranks.map_or(Ok(()), |ranks| ranks.check())?;
    options.alpha.map_or(Ok(()), check_alpha)?;
    let inputs = Inputs::watch();
    // Exactly what the files hold: a difference is no larger than what rounding would do to it.
    let exact = Some(Float::F32);
    let (base, tuned) = (Base::open_in(&options.base, exact)?, Base::open_in(&options.tuned, exact)?);
    let options = &ExtractOptions { dialect: dialect(options, &base), ..options.clone() };
    options.dialect.check_out(&options.write.out)?;
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
    let paths = examined.tasks.iter().map(|task| task.path.as_str());
    let parts = components::two_of(paths.chain(examined.whole.iter().map(|whole| whole.module.as_str())));
    let pefts = matches!(base.checkpoint.container(), Container::Pipeline(_)) && options.dialect.foreign().is_none();
    let whole = assemble::whole(&tuned, &examined.whole)?;
    let ranks = options.ranks.map_or_else(|| until_rounding(&examined), Ok)?;
    let recipe = recipe(options, &ranks, &base, &tuned);
    let changes: Vec<&dyn Truncatable> = examined.tasks.iter().map(|task| task as &dyn Truncatable).collect();
    let means = Means {
        choice: &ranks,
        alpha: options.alpha,
        compute: options.compute,
        dtype: options.write.dtype,
        raises: false,
        fixed: ranks
            .fixed(|| header(&examined, &whole, &recipe), || whole.iter().map(|whole| elements(&whole.shape)).sum()),
        budget: &budget,
        cancel: run.cancel,
        progress: run.progress,
    };
    let made = truncate(&changes, &means)?;
    let mut report = describe(options, &ranks, &tuned, &examined, &whole, made.report);
    let mut adapter = assemble::assemble(&base, &examined, made.pairs, whole, options.base_name.as_deref());
    match parts.filter(|_| pefts).map(|(one, other)| one_model(one, other)) {
        Some((what, way)) => report.made.notes.push(format!("{what}: `lorakit convert` makes {way}")),
        None if pefts => adapter.leave_component(),
        None => {}
    }
    let quiet = Run { cancel: run.cancel, progress: &Quiet };
    let file = &tuned.checkpoint.files()[0].map;
    let origin = Origin { input: &options.tuned, file, base: Some(&options.base), component: true };
    let written = options.dialect.write(adapter.into_files(), &recipe, origin, &options.write, &quiet, &inputs)?;
    let foreign = options.dialect.foreign().map(|dialect| dialect.name);
    report.made.weigh(foreign, (written.bytes, written.weights), Some(&ranks));
    report.made.notes.extend(written.notes);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// What an adapter of a pipeline is: diffusers', and of one file of a whole one sd-scripts', if OUT is called like a file. Of any other
/// model it is PEFT's.
fn dialect(options: &ExtractOptions, base: &Base) -> ToDialect {
    if options.dialect.to.is_some() {
        return options.dialect.clone();
    }
    let is_pipeline = matches!(base.checkpoint.container(), Container::Pipeline(_));
    let is_file = named_like(&options.write.out).is_some_and(|format| format.name == "safetensors");
    let of_denoiser = |info: &TensorInfo| components::of_prefix(&info.name).is_some();
    let to = if is_pipeline {
        Some(Target::DIFFUSERS)
    } else if is_file && base.checkpoint.tensors().any(of_denoiser) {
        Some(Target::KOHYA)
    } else {
        None
    };
    ToDialect { to, ..options.dialect.clone() }
}

/// Ranks that end where nothing but the rounding of TUNED is left.
fn until_rounding(examined: &Examined) -> Result<RankChoice> {
    let wide = |task: &&Task| matches!(task.difference.tuned_float(), Some(Float::F32 | Float::F64));
    let Some(task) = examined.tasks.iter().find(wide) else { return Ok(RankChoice::new(Ranking::Noise)) };
    let tensor = &task.difference.tuned().tensor;
    let problem = format!("tensor `{}` is {}, whose rounding ends no rank", tensor.info.name, tensor.info.dtype);
    Err(Error::invalid(tensor.path().display().to_string(), problem).hint(RankChoice::WAYS))
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

/// Bytes of the weight file beside its factors, at most: tensors stored whole, and the header.
fn header(examined: &Examined, whole: &[NewWhole], recipe: &Value) -> u64 {
    let pairs = examined.tasks.iter().map(|task| {
        let head = task.tied_head.as_ref().map_or(0, |head| head.len() + ENTRY_BYTES);
        2 * (task.name.len() + ENTRY_BYTES + head)
    });
    let names = whole.iter().map(|whole| whole.module.len() + whole.parameter.len() + ENTRY_BYTES);
    let header = pairs.chain(names).sum::<usize>() + 2 * recipe.to_string().len() + HEADER_BYTES;
    header as u64 + whole.iter().map(|whole| whole.bytes.count()).sum::<u64>()
}

/// Elements of a shape that is known to be countable.
fn elements(shape: &Shape) -> u64 {
    shape.elements().unwrap_or(u64::MAX)
}

/// What is said of the adapter `made`.
fn describe(
    options: &ExtractOptions,
    ranks: &RankChoice,
    tuned: &Base,
    examined: &Examined,
    whole: &[NewWhole],
    mut made: NewAdapterReport,
) -> ExtractReport {
    let described = examined.whole.iter().zip(whole);
    made.whole =
        described.map(|(why, whole)| WholeReport { why: Some(why.why.clone()), ..WholeReport::of(whole) }).collect();
    let uniform = ranks.uniform;
    let mut notes = examined.notes.clone();
    let grown = examined.whole.iter().filter(|whole| whole.why.starts_with("grew"));
    notes.extend(grown.map(|whole| {
        format!("`{}` {}: stored whole; resize BASE before the adapter is loaded", whole.module, whole.why)
    }));
    let in_groups = examined.whole.iter().filter(|whole| whole.why.contains("groups"));
    notes.extend(in_groups.map(|whole| format!("`{}` {}: stored whole", whole.module, whole.why)));
    if uniform && !whole.is_empty() {
        let problem = "tensors are stored whole, which vLLM refuses; `--skip` leaves their modules out";
        notes.push(format!("{} {problem}", whole.len()));
    }
    let single = examined.tasks.iter().any(|task| experts::expert_of(&task.path).is_some());
    if single && made.ranks.len() + usize::from(!made.vanished.is_empty()) > 1 && !uniform {
        notes.push("PEFT fuses pairs of single experts and gives them one rank: `--uniform-rank` makes it so".into());
    }
    let at_rounding_floor = made.modules.iter().filter(|module| module.at_rounding_floor == Some(true)).count();
    if options.ranks.is_none() {
        notes.push(
            "no rank was asked for: each ends where nothing but the rounding of TUNED is left, as with `--noise`"
                .into(),
        );
    } else if at_rounding_floor > 0 {
        let mut enough: Vec<usize> = made.modules.iter().filter_map(|module| module.rank_above_rounding).collect();
        enough.sort_unstable();
        let most = enough.get((enough.len() * 9).div_ceil(10).saturating_sub(1)).map(|rank| *rank.max(&1));
        let cut = made.modules.iter().map(|module| module.rank).max();
        let lower = most.filter(|rank| Some(*rank) < cut);
        let lower = lower.map(|rank| format!("; in nine of ten `--rank {rank}` would do"));
        notes.push(format!(
            "in {at_rounding_floor} of {} modules the error is no larger than what rounding TUNED to its dtype added: a higher rank \
             would keep noise{}",
            made.modules.len(),
            lower.unwrap_or_default()
        ));
    }
    made.notes.splice(0..0, notes);
    ExtractReport {
        base: options.base.clone(),
        tuned: options.tuned.clone(),
        out: options.write.out.clone(),
        to: options.dialect.name(),
        dry_run: options.write.dry_run,
        made,
        at_rounding_floor,
        unchanged: examined.unchanged,
        skipped: examined.skipped.clone(),
        tuned_bytes: tuned.checkpoint.tensors().map(|info| info.bytes).sum(),
        ..ExtractReport::default()
    }
}

/// How the adapter was made. Depends on inputs and options alone.
fn recipe(options: &ExtractOptions, ranks: &RankChoice, base: &Base, tuned: &Base) -> Value {
    json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": "extract",
        "base": { "name": name_of(base.checkpoint.root()) },
        "tuned": { "name": name_of(tuned.checkpoint.root()) },
        "options": chosen(options, ranks),
    })
}

/// The options that differ from their defaults and change bytes.
fn chosen(options: &ExtractOptions, ranks: &RankChoice) -> Value {
    let mut chosen = ranks.recipe();
    chosen.extend(ranks.recipe_of_form(options.alpha, options.compute, options.write.dtype));
    let choice = &options.choice;
    for (key, patterns) in [("include", &choice.include), ("skip", &choice.skip), ("full", &choice.full)] {
        if !patterns.is_empty() {
            chosen.insert(key.into(), patterns.iter().map(ToString::to_string).collect::<Vec<String>>().into());
        }
    }
    if let Some(name) = &options.base_name {
        chosen.insert("base_name".into(), name.as_str().into());
    }
    options.dialect.note(&mut chosen);
    chosen.into()
}
