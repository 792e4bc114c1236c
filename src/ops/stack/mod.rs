//! `stack`: several adapters as one, Σ wᵢ·ΔWᵢ. `subtract` is the same with negative weights.
//!
//! * `concat` (default) is exact: factors side by side; with a way to choose ranks the sum is cut to fewer, with a certificate.
//! * `ties`, `dare`, `dare-ties`, `magnitude` merge the ΔWᵢ element by element and need ranks.
//! * `factor-average` averages A and B apart, which is no sum of the ΔWᵢ; its distance from it is reported.

mod average;
mod compress;
mod concat;
mod elementwise;
mod fold;
mod pairs;
mod selection;
mod summary;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::rank_choice::{RankChoice, Ranking, beyond_budget};
use crate::adapters::{Change, ReadOptions};
use crate::dialects::peft::new_adapter::NewAdapter;
use crate::error::{Error, Result};
use crate::io::Inputs;
use crate::io::name_of;
use crate::linalg::Compute;
use crate::model::original::Original;
use crate::output::new_adapter::{Origin, ToDialect};
use crate::output::recipe::adapter_hashes;
use crate::output::{Run, WriteOptions, check_early};
use crate::placement::terms;
use crate::placement::{Applied, Selection};

pub use elementwise::{Contribution, Elementwise, Majority, Pruning, Rule};
pub use summary::{Input, StackReport, StackedModule};

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Their sum.
    Concat,
    /// Element by element.
    Elementwise(Pruning),
    /// A and B apart.
    FactorAverage,
}

/// What is stacked, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StackOptions {
    /// `stack` or `subtract`, for the record of how the result was made.
    pub operation: &'static str,
    /// Adapters with their weights, in order.
    pub adapters: Vec<(PathBuf, f64)>,
    /// What the adapters' files leave open.
    pub read: ReadOptions,
    /// Untrained factors for the adapters that need them, in order.
    pub init_adapters: Vec<PathBuf>,
    /// The model the adapters were trained on: for tensors they hold whole, DoRA, and what PiSSA or OLoRA took out of it.
    pub base: Option<PathBuf>,
    /// How they become one.
    pub method: Method,
    /// How ranks are chosen; `None` keeps the sum as it is.
    pub rank: Option<RankChoice>,
    /// How close to the optimum an iteration has to come, where one is needed.
    pub compute: Compute,
    /// Alpha of the result; `None` makes the scale 1.
    pub alpha: Option<f64>,
    /// Which modules.
    pub selection: Selection,
    /// In which dialect.
    pub dialect: ToDialect,
    /// How the result is written.
    pub write: WriteOptions,
}

impl StackOptions {
    /// The exact sum of `adapters`; everything else is as on the command line without options.
    pub fn new(adapters: Vec<(PathBuf, f64)>, write: WriteOptions) -> Self {
        Self {
            operation: "stack",
            adapters,
            read: ReadOptions::default(),
            init_adapters: Vec::new(),
            base: None,
            method: Method::Concat,
            rank: None,
            compute: Compute::default(),
            alpha: None,
            selection: Selection::default(),
            dialect: ToDialect::default(),
            write,
        }
    }
}

/// Stacks adapters.
///
/// # Errors
/// When an input is malformed, adapters have no sum, or the result cannot be written. Nothing is left behind then.
pub fn stack(options: &StackOptions, run: &Run<'_>) -> Result<StackReport> {
    let started = Instant::now();
    check(options)?;
    let inputs = Inputs::watch();
    let original = options.base.as_deref().map(Original::open).transpose()?.map(Arc::new);
    let sources = terms::open(&options.adapters, &options.init_adapters, original.as_ref(), &options.read)?;
    let base = original.as_ref().map(|original| &original.base);
    check_early(&options.write, &inputs, &options.dialect.expected(&options.write.out, std::iter::empty()))?;
    let family = options.dialect.arch.as_deref();
    let mut gathered = terms::gather(&sources, &options.selection, original.as_deref(), family)?;
    let mut report = begin(options, &sources, gathered.left_out);
    report.notes.append(&mut gathered.notes);
    report.notes.extend(unshared(options, &sources, &gathered.apart)?);
    report.notes.extend(gathered.resolve(&options.write.budget, run.cancel)?);
    let combined = whole::combine(&gathered, base, options.write.dtype)?;
    let mut adapter = NewAdapter { whole: combined.tensors, ..NewAdapter::default() };
    report.whole = adapter.whole.len();
    report.notes.extend(combined.notes);
    adapter.inherited = inherited(&sources, combined.token_indices, &mut report.notes)?;
    let recipe = recipe(options, &sources)?;
    // The header of the weight file repeats the recipe as a text.
    let header = Value::from(recipe.to_string()).to_string().len() as u64;
    let fixed =
        (adapter.tensor_bytes() + header, adapter.whole.iter().filter_map(|whole| whole.shape.elements()).sum());
    let slots: Vec<_> = gathered.slots.values().collect();
    let made = pairs::make(&slots, &sources, options, fixed, run)?;
    adapter.pairs = made.pairs;
    report.modules = made.modules;
    report.vanished = made.vanished;
    report.parameters = made.parameters;
    report.add_up();
    if adapter.pairs.is_empty() && adapter.whole.is_empty() {
        return Err(nothing_left(options, &report));
    }
    adapter.check_readable(first_input(options))?;
    let file = &sources[0].adapter.tensors.files()[0].map;
    let origin = Origin { input: first_input(options), file, base: options.base.as_deref(), component: false };
    let written = options.dialect.write(adapter.into_files(), &recipe, origin, &options.write, run, &inputs)?;
    report.notes.extend(options.rank.as_ref().and_then(|rank| beyond_budget(rank, &options.dialect, written.bytes)));
    report.notes.extend(written.notes);
    report.bytes = written.bytes;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// What to say of adapters that have no module in common with another: only a sum of those means something.
fn unshared(options: &StackOptions, sources: &[Applied], apart: &[usize]) -> Result<Vec<String>> {
    let root = |at: usize| sources[at].adapter.root.display();
    match (options.method, apart) {
        (_, []) => Ok(Vec::new()),
        (Method::Concat, _) => {
            let note = |at: &usize| {
                format!("`{}` has no module in common with the others: what it changes is only its own", root(*at))
            };
            Ok(apart.iter().map(note).collect())
        }
        (method, [first, ..]) => {
            let others = if *first == 0 { 1 } else { 0 };
            let problem =
                format!("they have no module in common, and `{}` compares changes of one module", method_name(method));
            Err(Error::mismatch(root(*first).to_string(), root(others).to_string(), problem).hint(
                "`--method concat` unites them; if both are for one model, `--base PATH` tells which modules are one",
            ))
        }
    }
}

impl StackOptions {
    /// The first adapter that changes `slot`, for messages.
    fn root_of(&self, slot: &terms::Slot) -> &Path {
        let products = slot.shares.iter().map(|share| share.source);
        let first = products.chain(slot.multiplied.iter().map(|multiplied| multiplied.source)).next().unwrap_or(0);
        self.adapters.get(first).map_or(Path::new(""), |(path, _)| path)
    }
}

/// Options that do not go together.
fn check(options: &StackOptions) -> Result<()> {
    options.dialect.check_out(&options.write.out)?;
    let needed =
        "needs a way to choose ranks: --rank, --energy, --max-error, --max-size, --max-params or --rank-method";
    match (options.method, &options.rank) {
        (Method::Elementwise(pruning), rank) => {
            pruning.check()?;
            if rank.is_none() {
                return Err(Error::invalid("--method", format!("`{}` {needed}", method_name(options.method)))
                    .hint("what it makes of ΔW has full rank"));
            }
        }
        (Method::FactorAverage, Some(_)) => {
            let problem = "`factor-average` keeps the rank of its inputs";
            return Err(
                Error::invalid("--method", problem).hint("`--method concat` with the same options cuts the true sum")
            );
        }
        _ => {}
    }
    if options.rank.is_some_and(|rank| rank.ranking == Ranking::Noise) {
        let problem = "an adapter is no difference of rounded weights, so nothing says how much of it is noise";
        return Err(Error::invalid("--noise", problem).hint("`extract BASE TUNED --noise` knows both"));
    }
    if let Some(alpha) = options.alpha {
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(Error::invalid("--alpha", format!("`{alpha}` is not a finite number above 0")));
        }
        if options.method != Method::Concat || options.rank.is_some() {
            let problem = "can be chosen for an exact sum only; what is computed has alpha = rank";
            return Err(Error::invalid("--alpha", problem));
        }
    }
    Ok(())
}

fn begin(options: &StackOptions, sources: &[Applied], left_out: usize) -> StackReport {
    let input = |source: &Applied| {
        let mut ranks = std::collections::BTreeMap::new();
        for module in &source.adapter.modules {
            let rank = match &module.change {
                Change::Lora(lora) => Some(lora.rank()),
                Change::Method(method) => method.rank(),
                _ => None,
            };
            rank.into_iter().for_each(|rank| *ranks.entry(rank).or_default() += 1);
        }
        Input {
            path: source.adapter.root.clone(),
            weight: source.strength,
            modules: ranks.values().sum(),
            ranks,
            alpha_from: source.adapter.config.alpha_from.clone(),
        }
    };
    let files = sources.iter().flat_map(|source| source.adapter.tensors.files());
    StackReport {
        out: options.write.out.clone(),
        to: options.dialect.name(),
        dry_run: options.write.dry_run,
        method: method_name(options.method).into(),
        adapters: sources.iter().map(input).collect(),
        modules: Vec::new(),
        vanished: Vec::new(),
        whole: 0,
        left_out,
        exact: false,
        norm: 0.0,
        kept_energy: 1.0,
        relative_error: 0.0,
        parameters: 0,
        bytes_before: files.map(|file| file.map.len()).sum(),
        bytes: 0,
        notes: sources.iter().flat_map(|source| source.adapter.reading_notes()).collect(),
        seconds: 0.0,
        peak_resident_bytes: None,
    }
}

/// The method as it is written on the command line.
fn method_name(method: Method) -> &'static str {
    match method {
        Method::Concat => "concat",
        Method::FactorAverage => "factor-average",
        Method::Elementwise(pruning) => match pruning.rule {
            Rule::Magnitude => "magnitude",
            Rule::Ties(_) => "ties",
            Rule::Dare => "dare",
            Rule::DareTies(_) => "dare-ties",
        },
    }
}

/// Settings of the result that come from the inputs.
fn inherited(sources: &[Applied], tokens: Option<Value>, notes: &mut Vec<String>) -> Result<Map<String, Value>> {
    const TYING: &str = "ensure_weight_tying";
    let first = &sources[0].adapter.config;
    let mut kept = NewAdapter::inherited_from(first, sources[0].adapter.dialect);
    for source in &sources[1..] {
        let config = &source.adapter.config;
        if config.ensure_weight_tying != first.ensure_weight_tying {
            let problem = format!("only one of them sets `{TYING}`, which adapts the head together with the embedding");
            let (left, right) = (config.path.display().to_string(), first.path.display().to_string());
            return Err(Error::mismatch(left, right, problem));
        }
        for key in ["base_model_name_or_path", "task_type"] {
            let (own, other) = (first.raw.get(key), config.raw.get(key));
            if own != other {
                let shown = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
                notes.push(format!("`{key}` is {} in the first adapter, {} in another", shown(own), shown(other)));
            }
        }
    }
    if first.ensure_weight_tying {
        kept.insert(TYING.into(), true.into());
    }
    kept.extend(tokens.map(|tokens| ("trainable_token_indices".to_owned(), tokens)));
    Ok(kept)
}

fn nothing_left(options: &StackOptions, report: &StackReport) -> Error {
    let problem = match report.vanished.len() {
        0 => "nothing is left to write: no module has a change".to_owned(),
        count => format!("nothing is left to write: the sum is zero in all {count} modules"),
    };
    Error::unsupported(first_input(options), problem)
}

fn first_input(options: &StackOptions) -> &Path {
    options.adapters.first().map_or(Path::new(""), |(path, _)| path)
}

/// How the output was made.
fn recipe(options: &StackOptions, sources: &[Applied]) -> Result<Value> {
    let entry = |source: &Applied| -> Result<Value> {
        let mut entry = json!({
            "name": name_of(&source.adapter.root),
            "weight": source.strength,
            "blake3": adapter_hashes(&source.adapter)?,
        });
        if let Some(init) = &source.init {
            entry["init"] = json!({ "name": name_of(&init.root), "blake3": adapter_hashes(init)? });
        }
        if let Some((original, _)) = &source.original {
            entry["init"] = json!({ "base": { "name": name_of(original.base.checkpoint.root()) } });
        }
        Ok(entry)
    };
    let mut chosen = Map::new();
    let mut set = |key: &str, value: Value| chosen.insert(key.into(), value);
    if let Method::Elementwise(pruning) = options.method {
        set("density", pruning.density.into());
        set("seed", pruning.seed.into());
        if let Rule::Ties(majority) | Rule::DareTies(majority) = pruning.rule {
            set("majority", format!("{majority:?}").to_lowercase().into());
        }
    }
    if let Some(rank) = options.rank {
        set("ranks", rank.recipe());
    }
    if let Some(alpha) = options.alpha {
        set("alpha", alpha.into());
    }
    if let Some(float) = options.write.dtype {
        set("dtype", float.dtype().name().into());
    }
    if let Some(base) = &options.base {
        set("base", name_of(base).into());
    }
    let patterns = |patterns: &[regex::Regex]| patterns.iter().map(ToString::to_string).collect::<Vec<String>>();
    for (key, found) in [("include", &options.selection.include), ("exclude", &options.selection.exclude)] {
        if !found.is_empty() {
            set(key, patterns(found).into());
        }
    }
    for (pattern, weight) in &options.selection.weights {
        set(&format!("weight_for {pattern}"), (*weight).into());
    }
    if let Some(blocks) = &options.selection.blocks {
        set("lbw", blocks.written().into());
    }
    options.dialect.note(&mut chosen);
    Ok(json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": options.operation,
        "method": method_name(options.method),
        "adapters": sources.iter().map(entry).collect::<Result<Vec<_>>>()?,
        "options": chosen,
    }))
}
