//! The model that is changed: its tensors, names and config.

use std::path::Path;

use serde_json::{Map, Value};

use super::config::ModelConfig;
use super::storage::refused::{self, Refused};
use super::storage::view::View as Quantised;
use super::storage::{SIDE_FILES, fp8};
use super::train_base::TrainBase;
use super::weight::Weight;
use super::wrapping::Wrapping;
use crate::adapters::is_bare_adapter;
use crate::error::{Error, Result};
use crate::formats::comfyui;
use crate::formats::gguf::Metadata;
use crate::formats::{Checkpoint, Stored, side};
use crate::llama::{View, gguf_arch, hub_config};
use crate::naming::head::{Heads, Tie};
use crate::naming::{Names, conv1d};
use crate::tensor::{Dtype, Float, Packing};

/// Endings under which scales were seen whose use is not known.
const UNKNOWN_SCALES: [&str; 6] = ["_scale", "_scale_inv", "_scale_2", ".scale", ".scales", ".scale_inv"];

/// Words in the names of what scales a weight.
const SCALE_WORDS: [&str; 4] = ["scale", "amax", "absmax", "inv"];

/// The base of a merge.
pub struct Base {
    /// Its tensors.
    pub checkpoint: Checkpoint,
    /// How a checkpoint of llama.cpp, whose tensors have the names of Hugging Face here, lies in its files.
    pub view: Option<View>,
    /// Their names.
    pub names: Names,
    /// `config.json`, where there is one, or what the metadata of a GGUF file says in its terms.
    pub config: Option<ModelConfig>,
    /// What headers say of the formats of quantised weights.
    pub formats: comfyui::Formats,
    /// Quantised weights, which are plain tensors here.
    pub quantised: Quantised,
    /// The head that shares the embedding's tensor, if one does.
    pub tie: Option<Tie>,
    /// Head and embedding that are both stored, although the config says that they are one.
    pub stored_tie: Option<Tie>,
    /// What is known of its head.
    pub heads: Heads,
    /// The embedding that a head of an unknown name may share.
    pub unnamed: Option<String>,
    /// What training tools put around it.
    pub wrapping: Wrapping,
}

/// How quantised weights are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// What they are rounded to; what the model computes with, where this is `None`.
    pub float: Option<Float>,
    /// They are written back in their own format, and what says so stays.
    pub keeps_format: bool,
    /// Plain weights are what training on a base quantised so saw.
    pub train: Option<TrainBase>,
}

impl Base {
    /// Opens a model and finds out what its config says about it. Quantised weights are what the model computes with.
    ///
    /// # Errors
    /// When weights or config cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_in(path, None)
    }

    /// The same with quantised weights rounded to `float`, as if the model was loaded in that type.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn open_in(path: &Path, float: Option<Float>) -> Result<Self> {
        Self::open_read(path, Reading { float, ..Reading::default() })
    }

    /// The same, read as `reading` says.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn open_read(path: &Path, reading: Reading) -> Result<Self> {
        let (checkpoint, wrapping) = Wrapping::off(Checkpoint::open(path)?)?;
        Self::of(checkpoint, wrapping, path)?.seen_in(reading, &|_| true)
    }

    /// The same, with all tensors and their names as the files have them.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn open_as_it_is(path: &Path) -> Result<Self> {
        Self::of(Checkpoint::open(path)?, Wrapping::default(), path)
    }

    /// The same with those quantised weights as plain tensors that are `chosen`.
    ///
    /// # Errors
    /// When a quantised weight contradicts itself.
    pub fn seen_in(self, reading: Reading, chosen: &dyn Fn(&str) -> bool) -> Result<Self> {
        if self.view.is_some() {
            let what = "is a GGUF file, and training on those is not known";
            let refused = Error::unsupported(self.checkpoint.root(), what).hint("leave `--train-base` away");
            return if reading.train.is_some() { Err(refused) } else { Ok(self) };
        }
        let config = self.config.as_ref().map(|config| &config.raw);
        let found = Quantised::find(&self.checkpoint, config, reading.float)?;
        let found = match reading.train {
            None => found,
            Some(spec) if found.is_empty() => Quantised::trained(&self.checkpoint, config, spec, reading.float)?,
            Some(_) => {
                let what = "is quantised itself, so nothing else is what training saw";
                return Err(Error::unsupported(self.checkpoint.root(), what).hint("leave `--train-base` away"));
            }
        };
        if found.is_empty() {
            return Ok(self);
        }
        let Self { checkpoint, view, config, formats, wrapping, .. } = self;
        let (checkpoint, quantised) = found.see(checkpoint, chosen, reading.keeps_format)?;
        Ok(Self::described(checkpoint, view, config, formats, wrapping, quantised))
    }

    fn of(checkpoint: Checkpoint, wrapping: Wrapping, path: &Path) -> Result<Self> {
        if checkpoint.gguf().and_then(|metadata| metadata.text("general.type")) == Some("adapter") {
            return Err(Error::unsupported(path, "is an adapter, and the base must be a model"));
        }
        if is_bare_adapter(&checkpoint) {
            return Err(Error::unsupported(path, "is an adapter, and a model is expected here")
                .hint("`merge MODEL ADAPTER` puts it into a model, `stack` adds adapters"));
        }
        let (checkpoint, view) = View::of(checkpoint)?;
        let config = match checkpoint.gguf() {
            Some(metadata) => told(metadata, has_output(&checkpoint)),
            None => checkpoint.config()?,
        };
        let config = config.map(ModelConfig::of);
        let formats = comfyui::Formats::of(&checkpoint);
        Ok(Self::described(checkpoint, view, config, formats, wrapping, Quantised::default()))
    }

    fn described(
        checkpoint: Checkpoint,
        view: Option<View>,
        config: Option<ModelConfig>,
        formats: comfyui::Formats,
        wrapping: Wrapping,
        quantised: Quantised,
    ) -> Self {
        let names = Names::new(checkpoint.tensors().map(|tensor| tensor.name.clone()));
        let heads = config.as_ref().map_or(Heads::Conventional, ModelConfig::head);
        let tied = config.as_ref().is_some_and(ModelConfig::is_tied);
        let tie = if tied { heads.tie(&names) } else { None };
        let declared = config.as_ref().and_then(|config| config.tied) == Some(true);
        let stored_tie = if declared { heads.stored(&names) } else { None };
        let is_open = config.is_none() || tied && heads == Heads::Unknown;
        let unnamed = (is_open && heads.stored(&names).is_none()).then(|| Heads::any_embedding(&names)).flatten();
        let base = Self {
            checkpoint,
            view,
            names,
            config,
            formats,
            quantised,
            tie: None,
            stored_tie,
            heads,
            unnamed,
            wrapping,
        };
        base.with_tie(tie)
    }

    /// The same model, whose head is its embedding if `tie` says so.
    fn with_tie(mut self, tie: Option<Tie>) -> Self {
        if let Some(module) = tie.as_ref().and_then(|tie| tie.head.strip_suffix(".weight")) {
            self.names = self.names.with_module(module);
        }
        self.tie = tie;
        self
    }

    /// The same model with its head, where its class is not known and one of `paths`, modules that adapters change, is a head
    /// that it has no tensor for: the adapters were made on the class itself.
    #[must_use]
    pub fn with_head_named_by<'a>(self, mut paths: impl Iterator<Item = &'a str>) -> Self {
        if self.unnamed.is_none() || self.config.is_none() {
            return self;
        }
        match paths.find_map(|path| Heads::named(path, &self.names)) {
            Some(tie) => Self { unnamed: None, ..self }.with_tie(Some(tie)),
            None => self,
        }
    }

    /// Whether `path` is the head that shares the embedding's tensor.
    pub fn is_tied_head(&self, path: &str) -> bool {
        self.tie.as_ref().is_some_and(|tie| tie.head.strip_suffix(".weight") == Some(path))
    }

    /// What a user should know of how it was read, and of how it is written.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let foreign = self.checkpoint.files().iter().find(|file| !file.format.is_written);
        let written =
            foreign.map(|file| format!("`{}` is read as {}, and written as safetensors", file.name, file.format.name));
        self.checkpoint.notes().cloned().chain(written).chain(self.wrapping.notes())
    }

    /// Whether the model is of one of these types, in its own config or that of its text part.
    pub fn is_one_of(&self, types: &[&str]) -> bool {
        self.config.as_ref().is_some_and(|config| config.types().any(|found| types.contains(&found)))
    }

    /// Whether the layer `path` keeps its weight as `[in, out]`; `said` is what its adapter's config says of that.
    pub fn keeps_inputs_in_rows(&self, path: &str, said: bool) -> bool {
        if self.view.is_some() {
            // llama.cpp keeps every weight as `[out, in]`.
            return false;
        }
        if self.is_one_of(&conv1d::MODELS) { conv1d::is_layer(path) } else { said }
    }

    /// Whether the file `path` beside the weights says how they are quantised, and they no longer are.
    pub fn is_said_in(&self, path: &Path) -> bool {
        self.quantised.is_whole() && SIDE_FILES.iter().any(|(file, _)| path == Path::new(file))
    }

    /// A tensor that is known to be there.
    pub fn stored(&self, name: &str) -> Stored {
        self.checkpoint.find(name).expect("names are the checkpoint's own")
    }

    /// The name under which the tensor `name` is stored: a tied head is the embedding.
    pub fn own_name(&self, name: &str) -> Option<String> {
        let tied = self.tie.as_ref().filter(|tie| tie.head == name).map(|tie| tie.embedding.clone());
        tied.or_else(|| self.names.has(name).then(|| name.to_owned()))
    }

    /// The weight `name` as rows of `cols` elements.
    ///
    /// # Errors
    /// When it is quantised in a way that no delta can be added to.
    pub fn weight(&self, name: &str, cols: Option<usize>) -> Result<Weight> {
        let tensor = self.stored(name);
        if let Some(quantised) = self.quantised.weight(name) {
            return Ok(Weight { quantised: Some(quantised.clone()), ..Weight::new(tensor, cols)? });
        }
        if let Some(error) = name.strip_suffix(".weight").and_then(|module| self.packed(module)) {
            return Err(error);
        }
        if let Some(error) = self.unknown_codes(name) {
            return Err(error);
        }
        let layout = self.view.as_ref().map(|view| view.row_layout(name)).unwrap_or_default();
        // The rows of a bias are its values.
        let is_bias = layout.order.is_some() && tensor.info.shape.as_slice().len() == 1;
        let mut weight = Weight::new(tensor, if is_bias { Some(1) } else { cols })?;
        weight.layout = layout;
        if let Some(scale) = self.unknown_scale_of(name, weight.packing) {
            let what = format!("tensor `{name}` is FP8, and how `{scale}` scales it is not known");
            return Err(Error::unsupported(self.checkpoint.root(), what));
        }
        Ok(weight)
    }

    /// The refusal of the tensor `name`, if it holds codes that something scales in a way that is not known.
    pub fn unknown_codes(&self, name: &str) -> Option<Error> {
        let info = self.checkpoint.info(name)?;
        if Packing::of(&info.dtype).is_some() || info.shape.as_slice().len() < 2 {
            return None;
        }
        let said = self.config.as_ref().and_then(|config| config.raw.get("quantization_config")?.as_object());
        if let Some(Refused { who, why, .. }) = said.and_then(refused::of_settings) {
            let what = format!(
                "tensor `{name}` holds codes ({}), and the model is quantised by {who} (`quant_method` of its config), which {why}",
                info.dtype
            );
            let error = Error::unsupported(self.checkpoint.root(), what);
            return Some(error.hint("take the model the quantised one was made from, then quantise the result"));
        }
        let scale = self.scale_beside(name)?;
        let what = format!(
            "tensor `{name}` holds codes ({}) that `{scale}` scales, in a format that is not known, so no delta can be added \
             to it",
            info.dtype
        );
        let error = Error::unsupported(self.checkpoint.root(), what);
        Some(error.hint("take the model the quantised one was made from, then quantise the result"))
    }

    /// A tensor that looks like the scales of an FP8 weight, in a place that no known format puts them.
    fn unknown_scale_of(&self, name: &str, packing: Packing) -> Option<String> {
        is_fp8(packing).then(|| self.scale_beside(name).or_else(|| self.like_a_scale(name))).flatten()
    }

    /// A tensor of numbers beside the weight `name` that may scale it by its own name: `weight_amax`.
    fn like_a_scale(&self, name: &str) -> Option<String> {
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        let holds_numbers = |key: &str| {
            let dtype = self.checkpoint.info(key).map(|info| &info.dtype);
            dtype.is_some_and(|dtype| *dtype == Dtype::F8E8M0 || dtype.float().is_some_and(|float| float.bytes() > 1))
        };
        let mut beside = self.names.beginning_with(stem).filter(|key| *key != name);
        beside.find(|key| may_scale(&key[stem.len()..]) && holds_numbers(key)).map(str::to_owned)
    }

    /// A tensor beside a weight that is called like its scales.
    fn scale_beside(&self, name: &str) -> Option<String> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let known = fp8::SCALES.iter().map(|ending| format!("{module}{ending}"));
        let places = UNKNOWN_SCALES.iter().flat_map(|ending| [format!("{name}{ending}"), format!("{module}{ending}")]);
        known.chain(places).find(|scale| self.names.has(scale))
    }

    /// The refusal of a packed weight, naming the tensors that show it.
    pub fn packed(&self, module: &str) -> Option<Error> {
        let by_name = || refused::of_module(module, |name| self.names.has(name));
        let by_mark = || {
            let format =
                self.formats.of_module(&self.checkpoint, module).filter(|format| !comfyui::is_plain(format))?;
            let mark = format!("{module}{}", comfyui::LAYER);
            let tensor = if self.names.has(&mark) { mark } else { format!("{module}.weight") };
            Some((tensor, format!("ComfyUI as {format}"), None))
        };
        let by_name = by_name().map(|(tensor, who, why)| (tensor, who.to_owned(), why));
        let (tensor, who, why) = by_name.or_else(by_mark)?;
        let which = why.map_or_else(String::new, |why| format!(", which {why}"));
        let what = format!(
            "the weight of `{module}` is quantised by {who}{which} (tensor `{tensor}`), so no delta can be added to it"
        );
        Some(
            Error::unsupported(self.checkpoint.root(), what)
                .hint("merge into the model the quantised one was made from, then quantise the result"),
        )
    }
}

/// The config that the metadata of a GGUF file tells, or as much as is needed here of an architecture without a table.
fn told(metadata: &Metadata, has_output: bool) -> Option<Map<String, Value>> {
    let whole = hub_config(metadata, has_output);
    if whole.is_some() {
        return whole;
    }
    let arch = gguf_arch(metadata.text("general.architecture")?)?;
    let mut facts = Map::new();
    facts.insert("model_type".into(), arch.model_types().next()?.into());
    facts.insert("tie_word_embeddings".into(), (!has_output).into());
    for (key, name) in [
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("expert_count", "num_local_experts"),
    ] {
        let number = metadata.number(&format!("{}.{key}", arch.name()));
        facts.extend(number.map(|number| (name.to_owned(), number.into())));
    }
    Some(facts)
}

/// Whether a checkpoint of llama.cpp has a head of its own.
fn has_output(checkpoint: &Checkpoint) -> bool {
    ["lm_head.weight", "embed_out.weight", "output.weight"].iter().any(|name| checkpoint.info(name).is_some())
}

/// Whether what follows the path of a module in a tensor's name may be that of scales of its weight.
fn may_scale(rest: &str) -> bool {
    let (parameter, is_own) = match rest.strip_prefix('.') {
        Some(own) => (own, true),
        None => (rest.strip_prefix('_').unwrap_or_default(), false),
    };
    // `weight_amax`, `weight.amax`
    let of_weight = parameter.strip_prefix("weight").filter(|rest| rest.starts_with(['.', '_']));
    if parameter.contains("bias") || of_weight.map_or(parameter, |rest| &rest[1..]).contains('.') {
        return false;
    }
    let has = |word: &&str| if is_own { parameter.contains(*word) } else { parameter.starts_with(*word) };
    of_weight.is_some() || SCALE_WORDS.iter().any(has)
}

fn is_fp8(packing: Packing) -> bool {
    packing.float().is_some_and(|float| float.bytes() == 1)
}

/// The config of the model at `path`, whose weights need not be there.
///
/// # Errors
/// When it cannot be read, or there is none.
pub fn config_of(path: &Path) -> Result<ModelConfig> {
    if let Some(config) = side::look_up(&path.join("config.json"))? {
        return Ok(ModelConfig::of(config));
    }
    let none = || Error::unsupported(path, "has no `config.json`, so nothing is known of the model");
    Base::open(path)?.config.ok_or_else(none)
}
