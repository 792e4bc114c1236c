//! The model that is changed: its tensors, names and config.

use std::path::Path;

use serde_json::{Map, Value};

use super::weight::{ScaleGrid, Weight};
use crate::error::{Error, Result};
use crate::formats::comfyui;
use crate::formats::gguf::{Metadata, View, hub_config};
use crate::formats::{Checkpoint, Format, Stored, json};
use crate::naming::gguf::gguf_arch;
use crate::naming::head::{Tie, find_stored_pair, find_tie};
use crate::naming::{Names, conv1d};
use crate::tensor::Packing;

/// Endings of architecture names whose models have an output head over the vocabulary.
const WITH_HEAD: [&str; 5] =
    ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining"];

/// Names of a weight's FP8 scales, as endings to put in place of `.weight`.
/// Sources: compressed-tensors and ModelOpt, DeepSeek-V3, ComfyUI's scaled FP8.
pub const SCALE_NAMES: [&str; 3] = [".weight_scale", ".weight_scale_inv", ".scale_weight"];

/// Endings under which scales were seen whose use is not known.
const UNKNOWN_SCALES: [&str; 6] = ["_scale", "_scale_inv", "_scale_2", ".scale", ".scales", ".scale_inv"];

/// Endings that betray a packed weight, and who packs like that.
pub const PACKED: [(&str, &str); 10] = [
    (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".weight.quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
    (".weight.absmax", "bitsandbytes 4-bit"),
    (".SCB", "bitsandbytes LLM.int8"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight._data", "quanto"),
    ("._weight_qdata", "torchao"),
    (".W_q", "HQQ"),
    (".trellis", "EXL3"),
];

/// The base of a merge.
pub struct Base {
    /// Its tensors.
    pub checkpoint: Checkpoint,
    /// How a checkpoint of llama.cpp, whose tensors have the names of Hugging Face here, lies in its files.
    pub view: Option<View>,
    /// Their names.
    pub names: Names,
    /// `config.json`, where there is one, or what the metadata of a file of llama.cpp says in its terms.
    pub config: Option<Map<String, Value>>,
    /// What headers say of the formats of quantised weights.
    pub formats: comfyui::Formats,
    /// The head that shares the embedding's tensor, if one does.
    pub tie: Option<Tie>,
    /// Head and embedding that are both stored, although the config says that they are one.
    pub stored_tie: Option<Tie>,
}

impl Base {
    /// Opens a model and finds out what its config says about it.
    ///
    /// # Errors
    /// When weights or config cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        if checkpoint.gguf().and_then(|metadata| metadata.text("general.type")) == Some("adapter") {
            return Err(Error::unsupported(path, "is an adapter, and the base must be a model"));
        }
        let (checkpoint, view) = checkpoint.in_hub_names()?;
        let config = match checkpoint.gguf() {
            Some(metadata) => told(metadata, has_output(&checkpoint)),
            None => checkpoint.config()?,
        };
        let names = Names::new(checkpoint.tensors().map(|tensor| tensor.name.clone()));
        let tied = config.as_ref().is_some_and(is_tied);
        let tie = if tied { find_tie(|name| names.has(name)) } else { None };
        let declared = config.as_ref().and_then(declared_tie) == Some(true);
        let stored_tie = if declared { find_stored_pair(|name| names.has(name)) } else { None };
        let formats = comfyui::Formats::of(&checkpoint);
        Ok(Self { checkpoint, view, names, config, formats, tie, stored_tie })
    }

    /// What a user should know of how it was read, and of how it is written.
    pub fn reading_notes(&self) -> impl Iterator<Item = String> {
        let foreign =
            self.checkpoint.files().iter().find(|file| ![Format::Safetensors, Format::Gguf].contains(&file.format));
        let written = foreign
            .map(|file| format!("`{}` is read as {}, and written as safetensors", file.name, file.format.name()));
        self.checkpoint.notes().cloned().chain(written)
    }

    /// Whether the model is of one of these types, in its own config or that of its text part.
    pub fn is_one_of(&self, types: &[&str]) -> bool {
        let of = |config: &Map<String, Value>| {
            config.get("model_type").and_then(Value::as_str).is_some_and(|found| types.contains(&found))
        };
        let text = |config: &Map<String, Value>| config.get("text_config").and_then(Value::as_object).is_some_and(of);
        self.config.as_ref().is_some_and(|config| of(config) || text(config))
    }

    /// Whether the layer `path` keeps its weight as `[in, out]`; `said` is what its adapter's config says of that.
    pub fn keeps_inputs_in_rows(&self, path: &str, said: bool) -> bool {
        if self.view.is_some() {
            // llama.cpp keeps every weight as `[out, in]`.
            return false;
        }
        if self.is_one_of(&conv1d::MODELS) { conv1d::is_layer(path) } else { said }
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

    /// The weight `name` as rows of `cols` elements, with its scales if it has some.
    ///
    /// # Errors
    /// When it is quantised in a way that no delta can be added to.
    pub fn weight(&self, name: &str, cols: Option<usize>) -> Result<Weight> {
        let tensor = self.stored(name);
        if let Some(error) = name.strip_suffix(".weight").and_then(|module| self.packed(module)) {
            return Err(error);
        }
        if tensor.info.dtype.float().is_none()
            && Packing::of(&tensor.info.dtype).is_none()
            && let Some(scale) = self.scale_beside(name)
        {
            let what = format!(
                "tensor `{name}` holds codes ({}) that `{scale}` scales, in a format that is not known, so no delta can be \
                 added to it",
                tensor.info.dtype
            );
            return Err(Error::unsupported(self.checkpoint.root(), what)
                .hint("merge into the model the quantised one was made from, then quantise the result"));
        }
        let lie = self.view.as_ref().map(|view| view.lie(name)).unwrap_or_default();
        // The rows of a bias are its values.
        let is_bias = lie.order.is_some() && tensor.info.shape.as_slice().len() == 1;
        let mut weight = Weight::new(tensor, if is_bias { Some(1) } else { cols })?;
        weight.lie = lie;
        if let Some(scale) = self.scale_of(name, weight.packing) {
            weight.scale = Some(ScaleGrid::read(self.stored(&scale), weight.rows, weight.cols)?);
        } else if let Some(scale) = self.unknown_scale_of(name, weight.packing) {
            let what = format!("tensor `{name}` is FP8, and how `{scale}` scales it is not known");
            return Err(Error::unsupported(self.checkpoint.root(), what));
        }
        Ok(weight)
    }

    /// Name of the scales of an FP8 weight.
    pub fn scale_of(&self, name: &str, packing: impl Into<Packing>) -> Option<String> {
        let module = name.strip_suffix(".weight").filter(|_| is_fp8(packing.into()))?;
        SCALE_NAMES.iter().map(|ending| format!("{module}{ending}")).find(|scale| self.names.has(scale))
    }

    /// A tensor that looks like the scales of an FP8 weight, in a place that no known format puts them.
    fn unknown_scale_of(&self, name: &str, packing: Packing) -> Option<String> {
        self.scale_beside(name).filter(|_| is_fp8(packing))
    }

    /// A tensor beside a weight that is called like its scales.
    fn scale_beside(&self, name: &str) -> Option<String> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let known = SCALE_NAMES.iter().map(|ending| format!("{module}{ending}"));
        let places = UNKNOWN_SCALES.iter().flat_map(|ending| [format!("{name}{ending}"), format!("{module}{ending}")]);
        known.chain(places).find(|scale| self.names.has(scale))
    }

    /// The refusal of a packed weight, naming the tensors that show it.
    pub fn packed(&self, module: &str) -> Option<Error> {
        let by_name = || {
            let mut known = PACKED.iter().map(|(ending, who)| (format!("{module}{ending}"), (*who).to_owned()));
            known.find(|(name, _)| self.names.has(name))
        };
        let by_mark = || {
            let format =
                self.formats.of_module(&self.checkpoint, module).filter(|format| !comfyui::is_plain(format))?;
            let mark = format!("{module}{}", comfyui::LAYER);
            let tensor = if self.names.has(&mark) { mark } else { format!("{module}.weight") };
            Some((tensor, format!("ComfyUI as {format}")))
        };
        let (tensor, who) = by_name().or_else(by_mark)?;
        let what = format!(
            "the weight of `{module}` is quantised by {who} (tensor `{tensor}`), so no delta can be added to it"
        );
        Some(
            Error::unsupported(self.checkpoint.root(), what)
                .hint("merge into the model the quantised one was made from, then quantise the result"),
        )
    }
}

/// The config that the metadata of a file of llama.cpp tells, or as much as is needed here of an architecture without a table.
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

fn is_fp8(packing: Packing) -> bool {
    packing.float().is_some_and(|float| float.bytes() == 1)
}

/// The config of the model at `path`, whose weights need not be there.
///
/// # Errors
/// When it cannot be read, or there is none.
pub fn config_of(path: &Path) -> Result<Map<String, Value>> {
    let beside = path.join("config.json");
    if beside.is_file() {
        return json::read_object(&beside);
    }
    let none = || Error::unsupported(path, "has no `config.json`, so nothing is known of the model");
    Base::open(path)?.config.ok_or_else(none)
}

/// What the config, or that of its text part, says of the tie.
fn declared_tie(config: &Map<String, Value>) -> Option<bool> {
    let text = config.get("text_config").and_then(Value::as_object);
    let flag = |config: &Map<String, Value>| config.get("tie_word_embeddings").and_then(Value::as_bool);
    flag(config).or_else(|| text.and_then(flag))
}

/// Whether the head of a model with this config, where it is not stored, is its embedding.
pub fn is_tied(config: &Map<String, Value>) -> bool {
    // A head that is neither stored nor declared tied is tied by the default of its class; a class without a head is not.
    declared_tie(config).unwrap_or(true) && has_head(config)
}

fn has_head(config: &Map<String, Value>) -> bool {
    let names = config.get("architectures").and_then(Value::as_array);
    names.is_none_or(|names| {
        names.iter().filter_map(Value::as_str).any(|name| WITH_HEAD.iter().any(|ending| name.ends_with(ending)))
    })
}
