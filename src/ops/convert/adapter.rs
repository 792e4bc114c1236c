//! Adapters in another dialect: any of them → changes by module → names, scales, shapes and config of the target.
//!
//! There is one reader and one writer per dialect, and no pair of dialects has code of its own. What the target cannot express is
//! folded exactly or refused with the reason, never dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::checkpoint::globs;
use super::{ConvertOptions, Target, watch};
use crate::adapters::config::INVOCATION;
use crate::adapters::{Adapter, AlphaFrom, Init, embeddings_note};
use crate::dialects::adapterhub::write as adapterhub;
use crate::dialects::files::{Facts, Files};
use crate::dialects::gguf::write::Wishes;
use crate::dialects::gguf::{rows as gguf_rows, write as gguf};
use crate::dialects::mlx::write as mlx;
use crate::dialects::peft::write as peft;
use crate::dialects::pieces::{Pieces, Stacks};
use crate::dialects::spell::{Respelled, Wanted};
use crate::dialects::torchtune::write as torchtune;
use crate::dialects::{as_lora, denoisers, diffusers, family, files, hashes, kohya, pieces, same, spell, xlabs};
use crate::error::{Error, Result};
use crate::formats::gguf::is_gguf_name;
use crate::formats::hub;
use crate::io::name_of;
use crate::model::ModelConfig;
use crate::model::Rounding;
use crate::model::base::{Base, config_of};
use crate::naming::{arch, components};
use crate::output::new_adapter::refuse_file_name;
use crate::output::recipe::{PROVENANCE, adapter_hashes};
use crate::output::{Expected, Output, Run, check_early, tensors};
use crate::pairs::range::vanished_note;

/// What a conversion of an adapter did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterReport {
    /// The adapter.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub input: PathBuf,
    /// The result.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// The dialect it was in.
    pub from: String,
    /// The dialect it is in.
    pub to: String,
    /// The family of models, where names tell.
    pub family: Option<String>,
    /// What told the family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family_by: Option<String>,
    /// Nothing was written.
    pub dry_run: bool,
    /// Modules that are changed by low-rank pairs.
    pub pairs: usize,
    /// Modules that are changed by other methods.
    pub methods: usize,
    /// Parameters stored whole.
    pub whole: usize,
    /// Modules with another name.
    pub renamed: usize,
    /// Modules that became several.
    pub split: usize,
    /// Modules that were made of several.
    pub fused: usize,
    /// Modules into whose factors a scale went.
    pub folded: usize,
    /// Modules whose rank was filled up with zeros.
    pub padded: usize,
    /// Modules of another method that became pairs.
    pub made_pairs: usize,
    /// Largest error of those, relative to ‖ΔW‖; `None` where there are none.
    pub error: Option<f64>,
    /// Where α of the adapter stands.
    pub alpha_from: Option<AlphaFrom>,
    /// Bytes of the output.
    pub bytes: u64,
    /// Things worth knowing.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// Converts the adapter.
///
/// # Errors
/// When it is malformed, or the target cannot express it; nothing is left behind then.
pub fn convert(options: &ConvertOptions, run: &Run<'_>) -> Result<AdapterReport> {
    let started = Instant::now();
    let inputs = watch(options);
    let Opened { adapter, model, target } = open(options)?;
    options.read.check_needed("--alpha", std::iter::once(&adapter))?;
    adapter.check_values()?;
    if options.write.part.is_some() {
        return Err(Error::invalid("--part", "an adapter is written in one piece"));
    }
    check_early(&options.write, &inputs, &Expected::Planned)?;
    let recipe = recipe(&adapter, options, target)?;
    let (output, mut report) = output(&adapter, options, target, model.as_ref(), &recipe)?;
    output.write(&options.write, run, &inputs)?;
    report.notes.extend(vanished_note(&output.plan.vanished()));
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// What `options` make of an adapter that another verb has just put at their input by `recipe`, and what is worth knowing of it.
/// `made_of` is what people know it by: an input of that verb.
///
/// # Errors
/// When the target cannot express it.
pub fn new_adapter(options: &ConvertOptions, made_of: &Path, recipe: &Value) -> Result<(Output, Vec<String>)> {
    let Opened { mut adapter, model, target } = open(options)?;
    // Where it lies is nothing people know of.
    adapter.root = made_of.to_owned();
    let (output, report) = output(&adapter, options, target, model.as_ref(), recipe)?;
    Ok((output, report.notes))
}

/// The adapter as it will lie on disk.
fn output(
    adapter: &Adapter,
    options: &ConvertOptions,
    target: Target,
    model: Option<&ModelConfig>,
    recipe: &Value,
) -> Result<(Output, AdapterReport)> {
    let to = target.name();
    let mut report = empty_report(options, adapter, to);
    let all = options.include.is_empty()
        && options.exclude.is_empty()
        && !options.as_lora
        && options.component.is_none()
        && same::is_whole(adapter);
    let mut files = if (target == Target::Safetensors || to == adapter.dialect) && all && adapter.dialect != "gguf" {
        same::write(adapter, options.write.dtype)?
    } else {
        translate(adapter, target, options, model, &mut report)?
    };
    report.folded = files.folded;
    report.padded = files.padded;
    report.notes.append(&mut files.notes);
    report.notes.extend(adapter.reading_notes());
    if !files.single {
        refuse_file_name(&options.write.out)?;
    }
    let output = lay_out(files, options, recipe)?;
    report.bytes = output.bytes();
    Ok((output, report))
}

/// An adapter that is to be converted.
struct Opened {
    adapter: Adapter,
    /// `config.json` of its model, where that is needed.
    model: Option<ModelConfig>,
    target: Target,
}

fn open(options: &ConvertOptions) -> Result<Opened> {
    if options.write.rounding != Rounding::Nearest {
        return Err(Error::invalid("--rounding", "the factors of an adapter are rounded to nearest"));
    }
    let model = options.base.as_deref().map(config_of).transpose();
    let (said, _) = Adapter::examine(&options.input, &options.read)?;
    let is_gguf = said.config.llama_cpp.is_some();
    let named = is_gguf_name(&options.write.out);
    let target = options.to.unwrap_or(if is_gguf || named { Target::Gguf } else { Target::Safetensors });
    if let Some(quant) = options.quant.filter(|_| target != Target::Gguf) {
        let problem =
            format!("`{}` is for what llama.cpp loads; factors of other dialects are plain numbers", quant.name);
        return Err(Error::invalid("--quant", problem).hint("`--to gguf`, or `--dtype f16`"));
    }
    if target == Target::Safetensors && is_gguf {
        return Err(Error::unsupported(&said.root, "is in the names of llama.cpp, which only a GGUF file has")
            .hint("--to peft gives safetensors in the names of the model"));
    }
    // The parts of a pipeline have their configs each.
    let needed = wants_config(target);
    let model = if needed || is_gguf { model? } else { None };
    let model = if needed && !is_gguf && options.arch.is_none() {
        model.or_else(|| named_model(&said, options))
    } else {
        model
    };
    if is_gguf && target == Target::Gguf && model.is_none() {
        return Ok(Opened { adapter: Adapter::open_as_it_lies(&options.input, &options.read)?, model, target });
    }
    let mut adapter = Adapter::open_for(&options.input, model.as_ref(), &options.read)?;
    if target == Target::Safetensors {
        // Another container keeps what lies in the file.
        adapter.needed.model = false;
    } else {
        adapter.leave_out_model();
    }
    Ok(Opened { adapter, model, target })
}

/// Whether what is written depends on the config of the model.
fn wants_config(target: Target) -> bool {
    matches!(target, Target::Gguf | Target::AdapterHub | Target::Torchtune)
}

/// The config of the model that the adapter names, if that is at hand.
fn named_model(adapter: &Adapter, options: &ConvertOptions) -> Option<ModelConfig> {
    let name = adapter.config.base_model.as_deref().filter(|name| !name.is_empty() && !options.caches.is_empty())?;
    config_of(&hub::resolve(name, &options.caches).ok()?).ok()
}

fn empty_report(options: &ConvertOptions, adapter: &Adapter, to: &str) -> AdapterReport {
    AdapterReport {
        input: options.input.clone(),
        out: options.write.out.clone(),
        from: adapter.dialect.to_owned(),
        to: if to == "safetensors" { adapter.dialect } else { to }.to_owned(),
        family: None,
        family_by: None,
        dry_run: options.write.dry_run,
        pairs: 0,
        methods: 0,
        whole: 0,
        renamed: 0,
        split: 0,
        fused: 0,
        folded: 0,
        padded: 0,
        made_pairs: 0,
        error: None,
        alpha_from: adapter.config.alpha_from.clone(),
        bytes: 0,
        notes: Vec::new(),
        seconds: 0.0,
        peak_resident_bytes: None,
    }
}

/// The adapter in the names and numbers of another dialect.
fn translate(
    adapter: &Adapter,
    target: Target,
    options: &ConvertOptions,
    model: Option<&ModelConfig>,
    report: &mut AdapterReport,
) -> Result<Files> {
    let (wanted, to) = match target {
        Target::Gguf => (Wanted::Own, "gguf"),
        Target::AdapterHub => (Wanted::Own, "adapterhub"),
        // Split first: the processors hold a part of a fused weight.
        Target::XLabs => (Wanted::Diffusers, "xlabs"),
        Target::Torchtune => (Wanted::Own, "torchtune"),
        Target::Peft => (Wanted::Own, "peft"),
        Target::Kohya => (Wanted::Kohya, "kohya"),
        Target::ComfyUi => (Wanted::Original, "comfyui"),
        Target::Diffusers => (Wanted::Diffusers, "diffusers"),
        Target::Mlx => (Wanted::Own, "mlx"),
        // Another method in the same dialect.
        Target::Safetensors => match Target::NAMES.iter().find(|(name, _)| *name == adapter.dialect) {
            Some((_, own)) if *own != Target::Safetensors => return translate(adapter, *own, options, model, report),
            _ => return Err(Error::unsupported(&adapter.root, format!("{} is not written", adapter.dialect))),
        },
    };
    if adapter.config.init.0 != Init::Plain {
        let what = format!(
            "was started with `{}` and belongs to the base that initialiser left; another dialect cannot say so",
            adapter.config.init.1
        );
        return Err(Error::unsupported(&adapter.root, what)
            .hint("make it one for the original base first: lorakit resize with --init-adapter"));
    }
    let known: &[&str] = if matches!(target, Target::Peft | Target::Gguf) { &[INVOCATION] } else { &[] };
    if let Some(problem) =
        adapter.config.refusal_but(known).filter(|_| !options.as_lora && adapter.config.scaling.is_some())
    {
        return Err(problem);
    }
    let stacks =
        if target == Target::Gguf { Stacks::Apart(model.and_then(|model| model.hidden)) } else { Stacks::Refused };
    let mut pieces = pieces::collect(adapter, stacks)?;
    report.notes.extend(embeddings_note(&pieces.embedded, &format!("the dialect {to}")));
    let base = options.base.as_deref().map(Base::open).transpose();
    // Here the config is enough.
    let names_known = wants_config(target) || adapter.config.llama_cpp.is_some();
    let base = if names_known && !options.as_lora { base.unwrap_or_default() } else { base? };
    let flat = base.as_ref().map(flattened_names).unwrap_or_default();
    if wanted != Wanted::Own {
        family::name_components(&mut pieces);
    }
    // Targets whose models have configs have names of their own for architectures.
    let named = options.arch.as_deref().filter(|_| !wants_config(target));
    let only = (target == Target::XLabs).then_some("flux");
    let asked = family::Asked { adapter, pieces: &pieces, wanted, base: base.as_ref(), flat: &flat, only };
    let chosen = asked.family(named)?;
    spell::unflatten(adapter, &mut pieces, &flat, chosen.table)?;
    if wanted != Wanted::Own {
        // An adapter of PEFT's belongs to one model, and its paths do not say which part of a pipeline that is.
        pieces.paths_mut().for_each(|path| *path = components::with_component(path));
    }
    if let Some(component) = &options.component {
        report.notes.extend(denoisers::mean(&mut pieces, component)?);
    }
    select(&mut pieces, options);
    if options.as_lora {
        let made = as_lora::convert(adapter, &mut pieces, base.as_ref(), options.write.dtype)?;
        report.made_pairs = made.count;
        report.error = made.error;
        report.notes.extend(made.notes);
    }
    let denoisers = denoisers::named(&pieces);
    let mut respelled = spell::respell(adapter, &mut pieces, wanted, chosen.table)?;
    let wishes = Wishes { config: model, arch: options.arch.as_deref(), quant: options.quant.map(|mix| mix.ggml) };
    match &adapter.config.llama_cpp {
        _ if target == Target::Gguf => gguf::fit(adapter, &mut pieces, &wishes, &mut respelled)?,
        _ if target == Target::XLabs => xlabs::fit(adapter, &mut pieces, &mut respelled)?,
        Some(said) => spell::refit(adapter, &mut pieces, |path| said.arch.fuses(path), &mut respelled)?,
        None => {}
    }
    let Respelled { renamed, split, fused, family } = respelled;
    // One of several that give the same names is none.
    let family = family.and(chosen.family);
    report.family_by = family.and(chosen.by);
    report.notes.extend(chosen.notes);
    (report.renamed, report.split, report.fused) = (renamed, split, fused);
    report.family = family.map(|family| family.name().to_owned());
    (report.pairs, report.methods, report.whole) = (pieces.pairs.len(), pieces.methods.len(), pieces.whole.len());
    if report.pairs + report.methods + report.whole == 0 {
        return Err(Error::unsupported(&adapter.root, "nothing is left of the adapter to be written"));
    }
    let rounded = pieces.pairs.iter().filter(|pair| pair.up.rounds()).count();
    report.notes.extend(files::rounded_note(rounded));
    let facts = Facts { adapter, family, float: options.write.dtype };
    let files = match target {
        Target::Peft => peft::write(pieces, &facts)?,
        Target::Diffusers => diffusers::write(&pieces, &facts, &options.write.out)?,
        Target::Mlx => mlx::write(pieces, &facts)?,
        Target::Gguf => gguf::write(&pieces, &facts, &wishes)?,
        Target::AdapterHub => adapterhub::write(&pieces, &facts, &wishes)?,
        Target::XLabs => xlabs::write(&pieces, &facts)?,
        Target::Torchtune => torchtune::write(&pieces, &facts, &wishes)?,
        _ => kohya::write(to, &pieces, &facts)?,
    };
    let mut names: Vec<&str> = files.tensors.iter().map(|(name, ..)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(denoisers::same_name(&adapter.root, pair[0], &denoisers, to)),
        None => Ok(files),
    }
}

fn select(pieces: &mut Pieces, options: &ConvertOptions) {
    let takes = |path: &str| {
        (options.include.is_empty() || options.include.iter().any(|pattern| pattern.is_match(path)))
            && !options.exclude.iter().any(|pattern| pattern.is_match(path))
    };
    pieces.retain(takes);
}

/// Flattened name → path of every module of the base; what no component is told of is a denoiser's.
fn flattened_names(base: &Base) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for info in base.checkpoint.tensors() {
        let Some((module, "weight")) = info.name.rsplit_once('.') else { continue };
        let path = components::with_component(module);
        let path = if components::split(&path).is_some() { path } else { format!("transformer.{module}") };
        for several in [false, true] {
            found.extend(arch::flatten(&path, several).map(|flat| (flat, path.clone())));
        }
    }
    found
}

fn lay_out(files: Files, options: &ConvertOptions, recipe: &Value) -> Result<Output> {
    if let Some((mut metadata, tensors)) = files.gguf {
        let stripped = globs(&options.strip_metadata)?;
        metadata.retain(|key| !stripped.is_match(key));
        metadata.set(PROVENANCE, recipe.to_string().as_str().into());
        let plan = gguf_rows::lay_out(&files.weights, &metadata, tensors, options.write.budget.job_bytes())?;
        return Ok(Output {
            plan,
            written: files.beside,
            copied: Vec::new(),
            record: None,
            single_file: files.single,
            inputs: Vec::new(),
        });
    }
    let mut metadata = files.metadata;
    let stripped = globs(&options.strip_metadata)?;
    metadata.retain(|(key, _)| !stripped.is_match(key));
    metadata.retain(|(key, _)| key != "lorakit");
    metadata.push(("lorakit".into(), recipe.to_string()));
    let mut tensors = files.tensors;
    if files.hashed {
        hashes::refresh(&mut tensors, &mut metadata)?;
    }
    let plan = tensors::lay_out(&files.weights, tensors, &metadata, options.write.budget.job_bytes());
    // A file of its own says it in its header.
    let record = (!files.single).then(|| recipe.clone());
    Ok(Output {
        plan,
        written: files.beside,
        copied: files.copied,
        record,
        single_file: files.single,
        inputs: Vec::new(),
    })
}

fn recipe(adapter: &Adapter, options: &ConvertOptions, target: Target) -> Result<Value> {
    let mut chosen = json!({ "to": target.name() });
    if let Some(float) = options.write.dtype {
        chosen["dtype"] = float.dtype().name().into();
    }
    if options.as_lora {
        chosen["as"] = "lora".into();
    }
    Ok(json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": "convert",
        "adapters": [{ "name": name_of(&options.input), "dialect": adapter.dialect, "blake3": adapter_hashes(adapter)? }],
        "options": chosen,
    }))
}
