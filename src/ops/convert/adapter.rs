//! Adapters in another dialect, dtype or container: open → translate → lay out → write.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::{ConvertOptions, watch};
use crate::adapters::{Adapter, AlphaFrom, Change, Module};
use crate::dialects::files::{Files, Wishes};
use crate::dialects::translate::{Account, Asked, Family, Modules, translate};
use crate::dialects::{Target, same};
use crate::error::{Error, Result};
use crate::formats::gguf::is_gguf_name;
use crate::formats::hub;
use crate::io::name_of;
use crate::model::ModelConfig;
use crate::model::Rounding;
use crate::model::base::config_of;
use crate::output::new_adapter::{lay_out, refuse_file_name};
use crate::output::provenance::globs;
use crate::output::recipe::adapter_hashes;
use crate::output::{Expected, Run, check_early};
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
    /// The family of models.
    #[serde(flatten)]
    pub family: Family,
    /// Nothing was written.
    pub dry_run: bool,
    /// What became of its modules.
    #[serde(flatten)]
    pub modules: Modules,
    /// Where α of the adapter stands.
    pub alpha_from: Option<AlphaFrom>,
    /// Bytes of the output.
    pub bytes: u64,
    /// Notes.
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
    let opened = open(options)?;
    let Opened { adapter, target, .. } = &opened;
    options.read.check_needed("--alpha", std::iter::once(adapter))?;
    adapter.check_values()?;
    if options.write.part.is_some() {
        return Err(Error::invalid("--part", "an adapter is written in one piece"));
    }
    check_early(&options.write, &inputs, &Expected::Planned)?;
    let recipe = recipe(adapter, options, *target)?;
    let (files, done) = opened.files(options)?;
    if !files.single {
        refuse_file_name(&options.write.out)?;
    }
    let stripped = globs("--strip-metadata", &options.strip_metadata)?;
    let output = lay_out(files, &recipe, &options.write, |key| !stripped.is_match(key))?;
    output.write(&options.write, run, &inputs)?;
    let vanished = vanished_note(&output.plan.vanished());
    let notes = done.notes.into_iter().chain(adapter.notes()).chain(vanished);
    Ok(AdapterReport {
        input: options.input.clone(),
        out: options.write.out.clone(),
        from: adapter.dialect.to_owned(),
        to: target.over(adapter.dialect).name.to_owned(),
        family: done.family,
        dry_run: options.write.dry_run,
        modules: done.modules,
        alpha_from: adapter.config.alpha_from.clone(),
        bytes: output.bytes(),
        notes: notes.collect(),
        seconds: started.elapsed().as_secs_f64(),
        peak_resident_bytes: None,
    })
}

/// An adapter that is to be converted.
struct Opened {
    adapter: Adapter,
    /// `config.json` of its model, where that is needed.
    model: Option<ModelConfig>,
    /// The same, where it is at hand: it tells how experts lie and what they are called.
    of_experts: Option<ModelConfig>,
    target: Target,
}

impl Opened {
    /// Whether what PEFT of today reads in the files is not what they mean, and they are asked for in its dialect.
    fn says_otherwise(&self) -> bool {
        let unread = |module: &Module| match &module.change {
            Change::Lora(lora) => lora.stack.as_ref().is_some_and(|stack| !stack.lies_as_today),
            _ => false,
        };
        self.target == Target::PEFT && self.adapter.modules.iter().any(unread)
    }

    /// The files it becomes: those that it is, where nothing but the container or dtype is another.
    fn files(&self, options: &ConvertOptions) -> Result<(Files, Account)> {
        let adapter = &self.adapter;
        let dialect = self.target.over(adapter.dialect);
        let all = options.include.is_empty()
            && options.exclude.is_empty()
            && !options.as_lora
            && options.component.is_none()
            && options.experts.is_none()
            && !self.says_otherwise()
            && same::is_whole(adapter);
        if dialect.name == adapter.dialect && all && adapter.config.llama_cpp.is_none() {
            return Ok((same::write(adapter, options.write.dtype)?, Account::default()));
        }
        let takes = |path: &str| {
            (options.include.is_empty() || options.include.iter().any(|pattern| pattern.is_match(path)))
                && !options.exclude.iter().any(|pattern| pattern.is_match(path))
        };
        let arch = options.arch.as_deref();
        let wishes = Wishes { config: self.model.as_ref(), arch, quant: options.quant.map(|mix| mix.ggml) };
        let asked = Asked {
            dialect,
            base: options.base.as_deref(),
            wishes,
            component: options.component.as_deref(),
            as_lora: options.as_lora,
            experts: options.experts,
            model: self.of_experts.as_ref(),
            takes: &takes,
            float: options.write.dtype,
            out: &options.write.out,
        };
        translate(adapter, &asked)
    }
}

fn open(options: &ConvertOptions) -> Result<Opened> {
    if options.write.rounding != Rounding::Nearest {
        return Err(Error::invalid("--rounding", "the factors of an adapter are rounded to nearest"));
    }
    let model = options.base.as_deref().map(config_of).transpose();
    let (said, _) = Adapter::examine(&options.input, &options.read)?;
    let holds_experts = !said.config.target_parameters.is_empty() || options.experts.is_some();
    let near = || named_model(&said, options).filter(|_| holds_experts && options.base.is_none());
    let of_experts = model.as_ref().ok().cloned().flatten().or_else(near);
    let is_gguf = said.config.llama_cpp.is_some();
    let named = is_gguf_name(&options.write.out);
    let target = options.to.unwrap_or(if is_gguf || named { Target::GGUF } else { Target::SAFETENSORS });
    if let Some(quant) = options.quant.filter(|_| target != Target::GGUF) {
        let problem =
            format!("`{}` is for what llama.cpp loads; factors of other dialects are plain numbers", quant.name);
        return Err(Error::invalid("--quant", problem).hint("`--to gguf`, or `--dtype f16`"));
    }
    let keeps_dialect = target == Target::SAFETENSORS;
    if keeps_dialect && is_gguf {
        return Err(Error::unsupported(&said.root, "is in the names of llama.cpp, which only a GGUF file has")
            .hint("--to peft gives safetensors in the names of the model"));
    }
    // The parts of a pipeline have their configs each.
    let needed = target.dialect().wants_config;
    let model = if needed || is_gguf { model? } else { None };
    let model = if needed && !is_gguf && options.arch.is_none() {
        model.or_else(|| named_model(&said, options))
    } else {
        model
    };
    if is_gguf && target == Target::GGUF && model.is_none() {
        let adapter = Adapter::open_as_it_lies(&options.input, &options.read)?;
        return Ok(Opened { adapter, model, of_experts, target });
    }
    let known = model.as_ref().or(of_experts.as_ref().filter(|_| !is_gguf));
    let mut adapter = Adapter::open_for(&options.input, known, &options.read)?;
    if keeps_dialect {
        // Another container keeps what lies in the file.
        adapter.needed.model = false;
    } else {
        adapter.leave_out_model();
    }
    Ok(Opened { adapter, model, of_experts, target })
}

/// The config of the model that the adapter names, if that is at hand.
fn named_model(adapter: &Adapter, options: &ConvertOptions) -> Option<ModelConfig> {
    let name = adapter.config.base_model.as_deref().filter(|name| !name.is_empty() && !options.caches.is_empty())?;
    config_of(&hub::resolve(name, &options.caches).ok()?).ok()
}

fn recipe(adapter: &Adapter, options: &ConvertOptions, target: Target) -> Result<Value> {
    let mut chosen = json!({ "to": target.name() });
    if let Some(float) = options.write.dtype {
        chosen["dtype"] = float.dtype().name().into();
    }
    if let Some(form) = options.experts {
        chosen["experts"] = form.name().into();
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
