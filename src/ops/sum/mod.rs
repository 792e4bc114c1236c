//! Sums of adapters: `stack` (Σ wᵢ·ΔWᵢ), `subtract` (with negative weights), `resize` (of one, which keeps what it does not touch).
//!
//! * `concat` (default) is exact: factors side by side; with a way to choose ranks the sum is truncated, with a certificate.
//! * `ties`, `dare`, `dare-ties`, `magnitude` merge the ΔWᵢ element by element and need ranks.
//! * `factor-average` averages A and B apart, which is no sum of the ΔWᵢ; its distance from it is reported.
//!
//! The sum of one adapter keeps a pair whose rank does not fall bit for bit, with zeros where it rises.

mod average;
mod batch;
mod concat;
mod elementwise;
mod fold;
mod inserted;
mod intruders;
mod kept;
mod keyed;
mod named;
mod noise;
mod options;
mod pairs;
mod parts;
mod recipe;
mod selection;
mod summary;
mod summed;
mod training;
mod whole;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};

use crate::adapters::{Adapter, Change};
use crate::dialects::files::Files;
use crate::dialects::peft::new_adapter::NewAdapter;
use crate::error::{Blame, Error, Result};
use crate::io::{Inputs, name_of};
use crate::model::original::Original;
use crate::output::new_adapter::{Origin, ToDialect};
use crate::output::{Run, check_early};
use crate::placement::terms::{self, Slot, Terms};
use crate::placement::{Applied, Selection};
use crate::tensor::Float;
use crate::truncate::{NewAdapterReport, WholeReport};

use kept::Kept;

pub use batch::resize;
pub use elementwise::{Contribution, Elementwise, Majority, Pruning, Rule};
pub use intruders::Intruders;
pub use options::{Method, Operation, SumOptions};
pub use summary::{AdapterResize, Input, Outcome, ResizeReport, Resized, SumReport};

/// Sums adapters: `stack` and `subtract`.
///
/// # Errors
/// When an input is malformed, adapters have no sum, or the result cannot be written. Nothing is left behind then.
pub fn sum(options: &SumOptions, run: &Run<'_>) -> Result<SumReport> {
    let started = Instant::now();
    if options.keeps_the_rest() {
        return Err(Error::invalid("operation", "`resize` takes adapters one by one, a sum makes one of them"));
    }
    options.check()?;
    let opened = Opened::read(options)?;
    let (made, left_out) = opened.write(options, run)?;
    Ok(SumReport {
        out: options.write.out.clone(),
        to: opened.dialect.name(),
        dry_run: options.write.dry_run,
        method: options.method.name(),
        adapters: opened.sources.iter().map(Input::of).collect(),
        left_out,
        made,
        seconds: started.elapsed().as_secs_f64(),
        peak_resident_bytes: None,
    })
}

/// Adapters that have been read.
struct Opened {
    inputs: Inputs,
    original: Option<Arc<Original>>,
    sources: Vec<Applied>,
    /// They are inserted into the model, or averaged: what they do to weights is not asked.
    inserted: bool,
    /// In which dialect it is written.
    dialect: ToDialect,
    /// Why in that one.
    why: Option<String>,
    /// How their sum is made.
    recipe: Value,
}

impl Opened {
    fn read(options: &SumOptions) -> Result<Self> {
        let inputs = Inputs::watch();
        let original = options.base.as_deref().map(Original::open).transpose()?.map(Arc::new);
        let found = inserted::open(options)?;
        let inserted = found.is_some();
        let mut sources = match found {
            Some(sources) => sources,
            None => terms::open(&options.adapters, &options.init_adapters, original.as_ref(), &options.read)?,
        };
        let adapters: Vec<&Adapter> = sources.iter().map(|source| &source.adapter).collect();
        let (dialect, why) = options.dialect.over(&adapters, &options.write.out);
        if dialect.foreign().is_some_and(|foreign| foreign.pipelines) {
            sources.iter_mut().for_each(|source| parts::name(&mut source.adapter));
        }
        let recipe = recipe::recipe(options, &dialect, &sources)?;
        Ok(Self { inputs, original, sources, inserted, dialect, why, recipe })
    }

    /// Writes the sum. Gives what is said of it, and how many tensors were left out by choice.
    fn write(&self, options: &SumOptions, run: &Run<'_>) -> Result<(NewAdapterReport, usize)> {
        let first = &self.sources[0].adapter;
        self.dialect.check_out(&options.write.out)?;
        let copied: Vec<PathBuf> = match options.keeps_the_rest() {
            true => kept::beside(first, &[])?.0.into_iter().map(|(path, _)| path).collect(),
            false => Vec::new(),
        };
        let expected = self.dialect.expected(&options.write.out, copied.into_iter());
        check_early(&options.write, &self.inputs, &expected)?;
        if self.inserted {
            return self.write_inserted(options, run);
        }
        let (terms, notes) = self.gather(options, run)?;
        let form = kept::form(first, &terms, &self.dialect).filter(|_| options.keeps_the_rest());
        let parts_note = if self.dialect.foreign().is_none() { parts::several(&terms) } else { None };
        let (files, mut report) = self.make(options, &terms, form, run)?;
        let became = self.became_lora().filter(|_| options.keeps_the_rest() && form.is_none());
        report.notes.splice(0..0, self.why.iter().cloned().chain(became).chain(parts_note).chain(notes));
        let read = self.sources.iter().flat_map(|source| source.adapter.tensors.files());
        report.bytes_before = Some(read.map(|file| file.map.len()).sum());
        let (input, file) = (&options.adapters[0].0, &first.tensors.files()[0].map);
        let origin = Origin { input, file, base: options.base.as_deref(), component: false };
        // What keeps its form is in its dialect already.
        let dialect = if form.is_some() { &ToDialect::default() } else { &self.dialect };
        let written = dialect.write(files, &self.recipe, origin, &options.write, run, &self.inputs);
        let written = written.map_err(|error| self.with_other_dialect(options, error))?;
        let foreign = dialect.foreign().map(|dialect| dialect.name);
        report.weigh(foreign, (written.bytes, written.weights), options.rank.as_ref());
        report.notes.extend(written.notes);
        report.notes.extend(self.wider(options, &report));
        if self.dialect.is_named_badly(&options.write.out) {
            let out = name_of(&options.write.out);
            report.notes.push(format!(
                "`{out}` is a file without an ending: most programs look for `{out}.{}`",
                self.dialect.ending()
            ));
        }
        Ok((report, terms.left_out))
    }

    /// The same of adapters that are inserted, or averaged, in their own dialect.
    fn write_inserted(&self, options: &SumOptions, run: &Run<'_>) -> Result<(NewAdapterReport, usize)> {
        let first = &self.sources[0].adapter;
        if options.intruders.is_some() {
            let what = "changes no weight, so nothing in it is foreign to one: `--remove-intruders` is for LoRA";
            return Err(Error::unsupported(&first.root, what));
        }
        if self.dialect.name() != first.dialect {
            let what =
                format!("is written as what it is, an adapter of {}, not of {}", first.dialect, self.dialect.name());
            return Err(
                Error::unsupported(&first.root, what).hint("without `--to` it is written; `convert` translates it")
            );
        }
        let (mut files, mut report) = inserted::make(&self.sources, options)?;
        if self.sources.len() == 1 {
            files.copied = kept::beside(first, &files.beside)?.0;
        }
        let read = self.sources.iter().flat_map(|source| source.adapter.tensors.files());
        report.bytes_before = Some(read.map(|file| file.map.len()).sum());
        let mut notes: Vec<String> = Vec::new();
        for note in self.sources.iter().flat_map(|source| source.adapter.notes()) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        report.notes.splice(0..0, notes);
        let origin =
            Origin { input: &options.adapters[0].0, file: &first.tensors.files()[0].map, base: None, component: false };
        let written = ToDialect::default().write(files, &self.recipe, origin, &options.write, run, &self.inputs)?;
        report.weigh(Some(first.dialect), (written.bytes, written.weights), None);
        Ok((report, 0))
    }

    /// What the adapters do to every module, and what is to be said of it.
    fn gather(&self, options: &SumOptions, run: &Run<'_>) -> Result<(Terms, Vec<String>)> {
        let mut notes: Vec<String> = self.sources.iter().flat_map(|source| source.adapter.notes()).collect();
        let (everything, family) = (Selection::default(), self.dialect.arch.as_deref());
        let keeps = options.keeps_the_rest();
        let selection = if keeps { &everything } else { &options.selection };
        let family = family.filter(|_| !keeps);
        let mut terms = terms::gather(&self.sources, selection, self.original.as_deref(), family)?;
        notes.append(&mut terms.notes);
        notes.extend(unshared(options, &self.sources, &terms.apart)?);
        notes.extend(terms.resolve(&options.write.budget, run.cancel)?);
        if keeps {
            kept::check(&self.sources[0].adapter, &terms, options, &self.dialect)?;
        }
        Ok((terms, notes))
    }

    /// What to say of a sum that takes more room than its parts, since it would not be exact in their dtype.
    fn wider(&self, options: &SumOptions, report: &NewAdapterReport) -> Option<String> {
        let floats =
            self.sources.iter().flat_map(|source| &source.adapter.modules).filter_map(|module| match &module.change {
                Change::Lora(lora) => lora.up.info.dtype.float(),
                _ => None,
            });
        let widest = floats.max_by_key(|float| float.bytes()).filter(|float| float.bytes() < Float::F32.bytes())?;
        let grew = options.write.dtype.is_none() && report.modules.iter().any(|module| module.dtype == "F32");
        let name = widest.to_string().to_lowercase();
        grew.then(|| {
            format!(
                "no {name} holds this sum exactly, so it is f32: `--dtype {name}` rounds it and takes half of the room"
            )
        })
    }

    /// What to say of an adapter of another method that is LoRA now.
    fn became_lora(&self) -> Option<String> {
        let kind = |change: &Change| match change {
            Change::Method(method) => Some(method.kind().to_string()),
            Change::Lora(lora) => lora.magnitude.is_some().then(|| "DoRA".to_owned()),
            _ => None,
        };
        let modules = self.sources.iter().flat_map(|source| &source.adapter.modules);
        let kinds: BTreeSet<String> = modules.filter_map(|module| kind(&module.change)).collect();
        let kinds: Vec<String> = kinds.into_iter().collect();
        (!kinds.is_empty()).then(|| format!("{} became LoRA, which has ranks", kinds.join(" and ")))
    }

    /// The way out where a dialect that nobody asked for cannot hold the result.
    fn with_other_dialect(&self, options: &SumOptions, error: Error) -> Error {
        let chosen = options.dialect.to.is_none() && self.dialect.foreign().is_some();
        match error.blame() {
            Blame::Unsupported { .. } if chosen && error.way_out().is_none() => {
                error.hint("the result is in the dialect of the adapters; `--to` chooses another, as `--to peft`")
            }
            _ => error,
        }
    }

    fn make(
        &self,
        options: &SumOptions,
        terms: &Terms,
        form: Option<Kept>,
        run: &Run<'_>,
    ) -> Result<(Files, NewAdapterReport)> {
        let (adapter, base) = (&self.sources[0].adapter, self.original.as_ref().map(|original| &original.base));
        if let Some(form) = form {
            let fixed = kept::fixed(adapter, terms, &self.recipe);
            let foreign = self.intruders(options, terms, run)?;
            let (pairs, mut report) = pairs::make(terms, &self.sources, options, (fixed, &foreign), run)?;
            report.whole = kept::whole(terms);
            refuse_nothing(options, pairs.iter().all(Option::is_none), &report)?;
            let (files, notes) = match form {
                Kept::Peft => kept::files(adapter, terms, pairs)?,
                Kept::Keyed => (keyed::files(adapter, terms, pairs)?, Vec::new()),
            };
            report.notes.extend(notes);
            return Ok((files, report));
        }
        let combined = whole::combine(terms, base, options.write.dtype)?;
        let mut new = NewAdapter { whole: combined.tensors, ..NewAdapter::default() };
        let fixed = beside_factors(&new, terms, &self.recipe);
        let foreign = self.intruders(options, terms, run)?;
        let (pairs, mut report) = pairs::make(terms, &self.sources, options, (fixed, &foreign), run)?;
        report.notes.extend(combined.notes);
        report.whole = new.whole.iter().map(WholeReport::of).collect();
        new.inherited = inherited(&self.sources, combined.token_indices, &mut report.notes)?;
        new.pairs = pairs.into_iter().flatten().collect();
        new.open = terms.slots.values().any(Slot::is_open);
        let version = adapter.config.raw.get("peft_version").filter(|_| new.open);
        new.inherited.extend(version.map(|version| ("peft_version".to_owned(), version.clone())));
        let nothing = new.pairs.is_empty() && (new.whole.is_empty() || report.norm > 0.0);
        refuse_nothing(options, nothing, &report)?;
        if self.dialect.foreign().is_none() && parts::are_named(&self.sources) && parts::several(terms).is_none() {
            new.leave_component();
        }
        new.check_readable(&adapter.root)?;
        let mut files = new.into_files();
        if self.dialect.foreign().is_some_and(|foreign| foreign.pipelines) {
            let adapters: Vec<&Adapter> = self.sources.iter().map(|source| &source.adapter).collect();
            report.notes.extend(training::take_along(&adapters, &mut files.metadata));
        }
        Ok((files, report))
    }
}

/// Bytes of an entry in the header of a file beside its name: dtype, shape, offsets.
const ENTRY_BYTES: u64 = 128;

/// Bytes of a header beside its entries and the recipe: its length, braces, padding.
const HEADER_BYTES: u64 = 128;

/// What the weight file of `new` holds beside the factors of its pairs, at most: bytes, and numbers.
fn beside_factors(new: &NewAdapter, terms: &Terms, recipe: &Value) -> (u64, u64) {
    let entry = |name: usize| name as u64 + ENTRY_BYTES;
    let biased = |slot: &&Slot| slot.shares.iter().any(|share| share.bias.is_some());
    let biases: u64 = terms.slots.values().filter(biased).map(|slot| slot.outer.0).sum();
    let keys: u64 = terms.slots.values().map(|slot| entry(slot.name().len()) * (2 + u64::from(biased(&slot)))).sum();
    let wholes: u64 = new.whole.iter().map(|whole| entry(whole.module.len() + whole.parameter.len())).sum();
    // The header repeats the recipe as a text. Several biases are summed in f32.
    let header = Value::from(recipe.to_string()).to_string().len() as u64 + HEADER_BYTES + keys + wholes;
    let numbers = new.whole.iter().filter_map(|whole| whole.shape.elements()).sum::<u64>();
    (new.tensor_bytes() + header + biases * size_of::<f32>() as u64, numbers + biases)
}

/// What to say of adapters that have no module in common with another: only a sum of those means something.
fn unshared(options: &SumOptions, sources: &[Applied], apart: &[usize]) -> Result<Vec<String>> {
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
                format!("they have no module in common, and `{}` compares changes of one module", method.name());
            Err(Error::mismatch(root(*first).to_string(), root(others).to_string(), problem).hint(
                "`--method concat` unites them; if both are for one model, `--base PATH` tells which modules are one",
            ))
        }
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

/// Refuses a result that holds nothing.
fn refuse_nothing(options: &SumOptions, nothing: bool, report: &NewAdapterReport) -> Result<()> {
    if !nothing {
        return Ok(());
    }
    let input = &options.adapters[0].0;
    if options.rank.is_some() && report.norm > 0.0 {
        let what = "nothing of any module is worth keeping by that rule";
        return Err(Error::unsupported(input, what).hint("allow a larger error or budget"));
    }
    let problem = match report.vanished.len() {
        0 => "nothing is left to write: no module has a change".to_owned(),
        count => format!("nothing is left to write: the sum is zero in all {count} modules"),
    };
    Err(Error::unsupported(input, problem))
}

impl SumOptions {
    /// The first adapter that changes `slot`, for messages.
    fn root_of(&self, slot: &Slot) -> &Path {
        let products = slot.shares.iter().map(|share| share.source);
        let first = products.chain(slot.multiplied.iter().map(|multiplied| multiplied.source)).next().unwrap_or(0);
        self.adapters.get(first).map_or(Path::new(""), |(path, _)| path)
    }
}
