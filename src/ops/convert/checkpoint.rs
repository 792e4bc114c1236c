//! Models: read from any container, written as safetensors, cast and cut anew where that is asked for.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::layout::{Tensor, arrange};
use super::rounded::{Rounded, RoundingError, summarise};
use super::{ConvertOptions, Target, from_gguf, watch};
use crate::error::{Error, Result};
use crate::formats::companions::{self, Left};
use crate::formats::gguf::is_gguf_name;
use crate::formats::layout::{self, OutputFile};
use crate::formats::{Checkpoint, Container, Stored, comfyui, json as files};
use crate::model::Rounding;
use crate::model::base::{Base, Reading};
use crate::model::storage::refused;
use crate::model::weight::Weight;
use crate::output::WriteOptions;
use crate::output::arrange::indexes;
use crate::output::fingerprint::fingerprints;
use crate::output::provenance::{Edits, edited_config, globs, metadata, model_entry};
use crate::output::recipe::SIDECAR;
use crate::output::{Expected, Output, Run, check_early};
use crate::plan::{Compute, Plan};
use crate::tensor::{Float, Packing, TensorInfo};

/// Most names of one shared tensor that a note lists.
const LISTED: usize = 4;

/// What a conversion of a checkpoint did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct CheckpointReport {
    /// The checkpoint.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub input: PathBuf,
    /// The result.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// How the input keeps its tensors.
    pub format: String,
    /// Nothing was written.
    pub dry_run: bool,
    /// `I/N` where one slice was done.
    pub part: Option<String>,
    /// Tensors that are the input's own bytes.
    pub copied: usize,
    /// Tensors that got another dtype.
    pub cast: usize,
    /// Tensors of the output by dtype.
    pub dtypes: BTreeMap<String, usize>,
    /// Weight files of the input.
    pub input_files: usize,
    /// Weight files of the output.
    pub files: usize,
    /// Jobs of the plan.
    pub jobs: usize,
    /// Bytes of the input's tensors.
    pub input_bytes: u64,
    /// Bytes of the output.
    pub bytes: u64,
    /// What rounding did to all tensors that were cast; `None` where there are none, and in a dry run.
    pub rounding: Option<RoundingError>,
    /// The tensor that lost most.
    pub worst: Option<RoundingError>,
    /// What was corrected in config.json.
    pub config_changes: Vec<String>,
    /// Notes.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// Where a tensor of the output comes from.
pub enum Origin {
    /// The input's own bytes.
    Copied(Stored),
    /// A cast.
    Cast(Arc<Rounded>),
}

/// Converts the checkpoint `options.input`.
///
/// # Errors
/// When it is malformed, cannot be cast, or cannot be written; nothing is left behind then.
pub fn convert(options: &ConvertOptions, run: &Run<'_>) -> Result<CheckpointReport> {
    let started = Instant::now();
    check(options)?;
    let inputs = watch(options);
    let write = &WriteOptions { cast_all: options.write.dtype.is_some(), ..options.write.clone() };
    let base = open(options)?;
    check_early(write, &inputs, &Expected::Planned)?;
    let Sorted { outputs, cast } = sort(&base, options)?;
    let mut dtypes = BTreeMap::new();
    let infos = || outputs.iter().flatten().map(|tensor| &tensor.info);
    infos().for_each(|info| *dtypes.entry(info.dtype.name().to_owned()).or_insert(0) += 1);
    let count = infos().count();

    let recipe = recipe(options, &base)?;
    let single = single_name(write)?;
    if single.is_some() && matches!(base.checkpoint.container(), Container::Pipeline(_)) {
        let problem = "the input is a pipeline, whose parts are files of their own";
        return Err(Error::invalid("--out", problem).hint("name a directory"));
    }
    let is_single = single.is_some();
    let stripped = globs("--strip-metadata", &options.strip_metadata)?;
    let kept = |entry: &(String, String)| !stripped.is_match(&entry.0);
    let arranged = arrange(&base, write, single, outputs, &kept, &metadata(&recipe));
    let plan = schedule(arranged, write, &cast);
    let record = Some(recipe.clone());
    let fingerprints = fingerprints(write.part, [&base.checkpoint])?;
    let mut output =
        Output { plan, written: Vec::new(), copied: Vec::new(), record, single_file: is_single, inputs: fingerprints };
    let mut report = CheckpointReport {
        input: options.input.clone(),
        out: write.out.clone(),
        format: base.checkpoint.files().first().map_or("", |file| file.format.name).into(),
        dry_run: write.dry_run,
        part: write.part.map(|part| format!("{}/{}", part.part, part.parts)),
        copied: count - cast.len(),
        cast: cast.len(),
        dtypes,
        input_files: base.checkpoint.files().len(),
        files: output.plan.files.len(),
        jobs: output.plan.jobs.len(),
        input_bytes: base.checkpoint.files().iter().flat_map(|file| file.own()).map(|own| own.info.bytes).sum(),
        bytes: 0,
        rounding: None,
        worst: None,
        config_changes: Vec::new(),
        notes: base.notes().chain(shared(&base)).collect(),
        seconds: 0.0,
        peak_resident_bytes: None,
    };
    report.notes.extend(base.quantised.note());
    let edits = Edits::default();
    let made = from_gguf::beside(&base, write.dtype)?;
    report.notes.extend(made.notes);
    if !is_single {
        output.written.extend(made.written);
    }
    beside(&mut output, &mut report, write, &base, &edits)?;
    report.bytes = output.bytes();
    output.write(write, run, &inputs)?;
    if !write.dry_run {
        (report.rounding, report.worst) = summarise(cast.iter().map(Arc::as_ref)).unzip();
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Opens the input: with its quantised weights as plain numbers, where those get another dtype.
fn open(options: &ConvertOptions) -> Result<Base> {
    let base = Base::open_as_it_is(&options.input)?;
    let Some(wanted) = options.write.dtype else { return Ok(base) };
    let formats = comfyui::Formats::of(&base.checkpoint);
    // Rounded once, from f32 to what is wanted.
    let base =
        base.seen_in(Reading { float: Some(Float::F32), ..Reading::default() }, &|name| chosen(options, name))?;
    let Some(first) = base.quantised.first() else { return Ok(base) };
    if wanted.bytes() == 1 {
        let what = format!("tensor `{first}` is {} with scales, and cannot become {wanted}", format_of(&base, first));
        return Err(Error::unsupported(base.checkpoint.root(), what).hint("leave `--dtype` away"));
    }
    let by_itself = |name: &String| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        formats.of_module(&base.checkpoint, module).is_some()
    };
    if let Some(other) = base.quantised.kept().iter().find(|name| !by_itself(name)) {
        let what = format!(
            "`{first}` would be dequantised and `{other}` stay {}: no config tells loaders of both",
            format_of(&base, first)
        );
        return Err(
            Error::unsupported(base.checkpoint.root(), what).hint("cast all quantised weights, or none of them")
        );
    }
    Ok(base)
}

/// What people call the format of a quantised weight.
fn format_of(base: &Base, name: &str) -> String {
    base.quantised.weight(name).map_or_else(String::new, |weight| weight.storage.facts().format)
}

/// Whether the tensor of this name is to be cast.
fn chosen(options: &ConvertOptions, name: &str) -> bool {
    options.write.dtype.is_some()
        && (options.include.is_empty() || options.include.iter().any(|pattern| pattern.is_match(name)))
        && !options.exclude.iter().any(|pattern| pattern.is_match(name))
}

/// What a checkpoint cannot be made into.
fn check(options: &ConvertOptions) -> Result<()> {
    if options.to.is_some_and(|to| to != Target::SAFETENSORS) {
        // A file that cannot be read is none of both, and says why.
        Checkpoint::open(&options.input)?;
        let what = "is a checkpoint, and `--to` names a dialect of adapters";
        return Err(Error::unsupported(&options.input, what)
            .hint("`--to safetensors`; `lorakit extract` makes an adapter of two checkpoints"));
    }
    if let Some(quant) = options.quant {
        return Err(Error::invalid("--quant", format!("`{}` is about GGUF, and safetensors are written", quant.name))
            .hint("`--to gguf`, or `--dtype` for another type of numbers"));
    }
    if is_gguf_name(&options.write.out) {
        return Err(Error::invalid("--out", "the output is safetensors, and the path ends in `.gguf`"));
    }
    if options.write.rounding == Rounding::PeftSafe {
        return Err(Error::invalid("--rounding", "`peft-safe` is about merges; a cast rounds once"));
    }
    Ok(())
}

/// What becomes of the tensors.
struct Sorted {
    /// Those of the output, file by file of the input.
    outputs: Vec<Vec<Tensor>>,
    cast: Vec<Arc<Rounded>>,
}

/// Decides for every tensor.
fn sort(base: &Base, options: &ConvertOptions) -> Result<Sorted> {
    let chosen = |name: &str| chosen(options, name);
    if let Some(wanted) = options.write.dtype {
        refuse_packed(base, wanted)?;
    }
    let unmatched = |pattern: &&Regex| !base.checkpoint.tensors().any(|tensor| pattern.is_match(&tensor.name));
    if let Some(pattern) = options.include.iter().find(unmatched) {
        let problem = format!("`{pattern}` matches none of the {} tensors", base.checkpoint.count());
        return Err(Error::invalid("--include", problem));
    }
    let mut cast = Vec::new();
    let mut one = |stored: Stored| -> Result<Option<Tensor>> {
        let name = &stored.info.name;
        if from_gguf::is_said(base, name) {
            return Ok(None);
        }
        let wanted = options.write.dtype.filter(|_| stored.info.bytes > 0 && chosen(name));
        let plain = from_gguf::plain(base, &stored)?;
        let change = wanted.or(plain).zip(Packing::of(&stored.info.dtype));
        let change = change.filter(|(wanted, own)| Packing::Float(*wanted) != *own || plain.is_some());
        let Some((wanted, own)) = change else {
            return Ok(Some(Tensor { info: stored.info.clone(), origin: Origin::Copied(stored) }));
        };
        let values = usize::try_from(stored.info.bytes).map(|bytes| own.values_in(bytes)).unwrap_or(usize::MAX);
        let bytes = (values as u64).saturating_mul(wanted.bytes() as u64);
        let info = TensorInfo { dtype: wanted.dtype(), bytes, ..stored.info.clone() };
        // A plain weight has one element to a row: jobs are cut anywhere.
        let quantised = base.quantised.weight(name);
        let cols = Some(quantised.map_or(1, |weight| weight.cols));
        let weight = match own {
            _ if quantised.is_some() => base.weight(name, cols)?,
            _ if plain.is_some() => {
                base.weight(name, stored.info.shape.as_slice().last().and_then(|row| usize::try_from(*row).ok()))?
            }
            Packing::Float(own) if own.bytes() == 1 => base.weight(name, cols)?,
            _ => Weight::new(stored.clone(), cols)?,
        };
        let rounded = Arc::new(Rounded::new(name.clone(), weight, wanted, options.write.rounding));
        cast.push(Arc::clone(&rounded));
        Ok(Some(Tensor { info, origin: Origin::Cast(rounded) }))
    };
    let files = base.checkpoint.files().iter();
    let outputs =
        files.map(|file| (0..file.header.tensors.len()).filter_map(|at| one(file.stored(at)).transpose()).collect());
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    Ok(Sorted { outputs, cast })
}

/// A quantised model is more than its dtypes: its floating point tensors belong to codes that are not cast.
fn refuse_packed(base: &Base, wanted: Float) -> Result<()> {
    for tensor in base.checkpoint.tensors() {
        if let Some(error) = base.unknown_codes(&tensor.name) {
            return Err(error);
        }
        if let Some((_, who)) = refused::ends().find(|(end, _)| tensor.name.ends_with(end)) {
            let what = format!("is quantised by {who} (tensor `{}`), so it cannot be cast to {wanted}", tensor.name);
            return Err(Error::unsupported(base.checkpoint.root(), what)
                .hint("convert the model the quantised one was made from, or leave `--dtype` away"));
        }
    }
    Ok(())
}

/// The name of the one file that is to be written.
fn single_name(write: &WriteOptions) -> Result<Option<String>> {
    if write.out.extension().is_none_or(|extension| extension != "safetensors") {
        return Ok(None);
    }
    write.fits_one_file()?;
    Ok(write.out.file_name().map(|name| name.to_string_lossy().into_owned()))
}

fn schedule(files: Vec<(OutputFile, Vec<Origin>)>, write: &WriteOptions, cast: &[Arc<Rounded>]) -> Plan {
    let mut plan = Plan::default();
    for (at, (file, origins)) in files.into_iter().enumerate() {
        for (info, origin) in file.tensors.iter().zip(origins).filter(|(info, _)| info.bytes > 0) {
            let offset = file.start_of(info);
            match origin {
                Origin::Copied(source) => plan.copy(at, offset, &source.map, source.start, info.bytes),
                Origin::Cast(rounded) => {
                    let (rows, row_bytes) = rounded.rows_of();
                    let compute = rounded as Arc<dyn Compute>;
                    plan.compute(at, offset, &compute, rows, row_bytes, write.budget.job_bytes());
                }
            }
        }
        plan.files.push(file);
    }
    plan.computed = cast.iter().map(|rounded| Arc::clone(rounded) as Arc<dyn Compute>).collect();
    plan
}

/// Adds index, config and companions.
fn beside(
    output: &mut Output,
    report: &mut CheckpointReport,
    write: &WriteOptions,
    base: &Base,
    edits: &Edits,
) -> Result<()> {
    if output.single_file {
        return Ok(());
    }
    let container = base.checkpoint.container();
    output.written.extend(indexes(base, write, &output.plan.files));
    if base.view.is_some() && output.plan.files.len() > 1 {
        let files_of: Vec<(&str, &OutputFile)> =
            output.plan.files.iter().map(|file| (file.name.as_str(), file)).collect();
        let index = layout::index(Map::new(), &files_of);
        output.written.push((PathBuf::from(layout::index_name("model")), files::render(&index)));
    }
    if [Container::File, Container::Split].contains(container) {
        return Ok(());
    }
    let found = companions::list(base.checkpoint.directory())?;
    if base.view.is_none()
        && !found.is_left(Path::new("config.json"), Left::LinkOut)
        && let Some((contents, changes)) = edited_config(base, write, edits)
    {
        output.written.push((PathBuf::from("config.json"), contents));
        report.config_changes = changes;
    }
    report.notes.extend(found.notes(|path| !output.written.iter().any(|(written, _)| written == path)));
    for path in found.copied {
        if path != Path::new(SIDECAR)
            && !base.is_said_in(&path)
            && !output.written.iter().any(|(written, _)| *written == path)
        {
            let source = base.checkpoint.directory().join(&path);
            output.copied.push((path, source));
        }
    }
    let own = |path: &Path| base.checkpoint.files().iter().any(|file| Path::new(&file.name) == path);
    let left = found.weights.iter().filter(|path| !own(path) && !path.to_string_lossy().ends_with(".index.json"));
    let left: Vec<String> = left.map(|path| format!("`{}`", path.display())).collect();
    if !left.is_empty() {
        report.notes.push(format!("not copied, since they are other weights: {}", left.join(", ")));
    }
    Ok(())
}

/// Which names stand for the same bytes: each gets its own, as safetensors has it.
fn shared(base: &Base) -> Vec<String> {
    let mut places: HashMap<(*const u8, u64, u64), Vec<String>> = HashMap::new();
    for file in base.checkpoint.files() {
        for position in 0..file.header.tensors.len() {
            let stored = file.stored(position);
            if stored.info.bytes == 0 {
                continue;
            }
            let place = (stored.map.bytes().as_ptr(), stored.start, stored.info.bytes);
            places.entry(place).or_default().push(stored.info.name);
        }
    }
    let mut notes: Vec<String> = places
        .into_values()
        .filter(|names| names.len() > 1)
        .map(|names| {
            let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
            let more = if names.len() > LISTED { " …" } else { "" };
            format!("{}{more} share their values in the input; each is written with its own", shown.join(", "))
        })
        .collect();
    notes.sort();
    let more = notes.len().saturating_sub(LISTED);
    notes.truncate(LISTED);
    notes.extend((more > 0).then(|| format!("{more} more tensors were shared")));
    notes
}

/// How the output was made: from the input and the options alone.
fn recipe(options: &ConvertOptions, base: &Base) -> Result<Value> {
    let mut chosen = Map::new();
    if let Some(float) = options.write.dtype {
        chosen.insert("dtype".into(), float.dtype().name().into());
    }
    if let Rounding::Stochastic { seed } = options.write.rounding {
        chosen.insert("rounding".into(), json!({ "stochastic": seed }));
    }
    for (key, patterns) in [("include", &options.include), ("exclude", &options.exclude)] {
        if !patterns.is_empty() {
            chosen.insert(key.into(), patterns.iter().map(ToString::to_string).collect::<Vec<String>>().into());
        }
    }
    if !options.strip_metadata.is_empty() {
        chosen.insert("strip_metadata".into(), options.strip_metadata.clone().into());
    }
    Ok(json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": "convert",
        "input": model_entry(base, false)?,
        "options": chosen,
    }))
}
