//! An adapter: dialect, methods, modules × rank × alpha × scale, where it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::fit::{self, BaseFit};
use super::gguf::GgufFacts;
use super::header::{Header, HeaderFacts};
use super::inserted::{self, InsertedFacts};
use super::modules::{self, ModuleFacts, ModuleGroup, Sum};
use super::pairs::{Pair, pairs};
use super::spectrum::{self, Spectra};
use super::targets::Targets;
use super::values::{self, ValueFacts};
use super::weights::{Weights, elements, parameters};
use super::{InspectOptions, origin, problems};
use crate::adapters::config::{Scaling, saves};
use crate::adapters::{Adapter, AdapterConfig, AlphaFrom, Change, Init, Packing};
use crate::error::Result;
use crate::formats::{Checkpoint, Stored};
use crate::output::Run;

/// An adapter.
#[derive(Debug, Serialize)]
pub struct AdapterFacts {
    /// Where it lies.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub path: PathBuf,
    /// The naming scheme it is written in.
    pub dialect: &'static str,
    /// `peft_type`, or what stands for it in a dialect without a config.
    pub method: String,
    /// What sets it apart from the plain method: `DoRA`, `rsLoRA`, the name of an initialiser that changes the base …
    pub variants: Vec<String>,
    /// The base's name, as the writer knew it.
    pub base_model: Option<String>,
    /// Where the base is named: key and what it says.
    pub base_hints: Vec<Hint>,
    /// Where α stands.
    pub alpha_from: Option<AlphaFrom>,
    /// The program that wrote it.
    pub trainer: Option<String>,
    /// `task_type`.
    pub task_type: Option<String>,
    /// `peft_version`.
    pub peft_version: Option<String>,
    /// How it is stored.
    #[serde(flatten)]
    pub weights: Weights,
    /// Elements that were trained: all but frozen copies.
    pub trainable_parameters: u64,
    /// How many modules are changed in which way, the most frequent first.
    pub methods: Vec<Sum>,
    /// Parts of the model.
    pub components: Vec<Sum>,
    /// Kinds of layers.
    pub layers: Vec<Sum>,
    /// Modules that agree in all numbers, the most frequent first.
    pub module_groups: Vec<ModuleGroup>,
    /// Every module.
    #[serde(skip)]
    pub modules: Vec<ModuleFacts>,
    /// LoRA pairs.
    pub pairs: usize,
    /// The pairs by rank, alpha, scale and dtype, the most frequent first.
    pub groups: Vec<PairGroup>,
    /// Pairs with DoRA magnitudes.
    pub magnitudes: usize,
    /// Pairs whose B has a bias.
    pub biases: usize,
    /// Tensors saved whole.
    pub whole: Share,
    /// Copies of frozen weights, saved along.
    pub frozen: Share,
    /// Rows of embeddings that were trained one by one.
    pub token_rows: u64,
    /// Tensors whose meaning is not known.
    pub unknown: Vec<String>,
    /// `target_modules` as it is written.
    pub target_modules: Value,
    /// `target_parameters`.
    pub target_parameters: Vec<String>,
    /// How stacks of experts lie in the file, and what tells.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<Packing>,
    /// `modules_to_save`.
    pub modules_to_save: Vec<String>,
    /// What is inserted into the model rather than added to a weight.
    pub inserted: Vec<InsertedFacts>,
    /// What the header's free text tells.
    #[serde(flatten)]
    pub header: HeaderFacts,
    /// What a GGUF file says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gguf: Option<GgufFacts>,
    /// The adapter against its base.
    pub base: Option<BaseFit>,
    /// Singular values, where they were asked for.
    pub spectrum: Option<Spectra>,
    /// What the values show, where they were looked at.
    pub values: Option<ValueFacts>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// The adapter itself.
    #[serde(skip)]
    pub adapter: Adapter,
}

/// A place that names the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hint {
    /// Key of the config or of the header's free text.
    pub key: String,
    /// What it says.
    pub says: String,
}

/// Pairs that agree in all numbers.
#[derive(Debug, Clone, Serialize)]
pub struct PairGroup {
    /// How many.
    pub pairs: usize,
    /// What the modules are called in their layers.
    pub names: BTreeSet<String>,
    /// Rank, per expert in a stack.
    pub rank: u64,
    /// Alpha by the config; `None` for a method without.
    pub alpha: Option<f64>,
    /// The factor in front of B·A.
    pub scale: Option<f64>,
    /// Element type of the factors.
    pub dtype: String,
    /// Experts that one pair holds; 1 for layers.
    pub experts: u64,
    /// The weights are tables of rows.
    pub embedding: bool,
}

/// Some tensors of the file.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Share {
    /// How many.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their names as parameters of the model.
    pub names: Vec<String>,
}

impl AdapterFacts {
    /// Reads header and config of the adapter at `path`, and as much more as `options` ask for. `file` is that file, if it is
    /// open already.
    ///
    /// # Errors
    /// When one of them cannot be read. What else is wrong becomes a problem.
    pub fn read(path: &Path, file: Option<Checkpoint>, options: &InspectOptions, run: &Run<'_>) -> Result<Self> {
        let (mut adapter, refused) = Adapter::examine_opened(path, file, &options.read)?;
        let refused = match refused {
            None => adapter.read_stacks(None, &options.read, options.check || options.spectrum).err(),
            refused => refused,
        };
        let config = &adapter.config;
        let header = Header(&adapter.tensors);
        let targets = Targets::of(config);
        let pairs = pairs(&adapter, &targets);
        let text = |key: &str| config.raw.get(key).and_then(Value::as_str).map(str::to_owned);
        let weights = Weights::of(&adapter.tensors);
        let modules = modules::modules(&adapter, &pairs);
        let hints = origin::base_hints(&adapter, |key| header.get(key)).into_iter();
        let told = HeaderFacts::of(&adapter.tensors, &config.raw, &weights, options)?;
        let mut problems = problems::find(&adapter, &pairs, &targets, refused);
        problems.extend(told.problems());
        problems.extend(problems::of_header(&adapter, &pairs));
        let gguf = GgufFacts::of(&adapter.tensors);
        problems.extend(gguf.iter().flat_map(|gguf| gguf.problems(&adapter.tensors)));
        let mut facts = Self {
            path: path.to_path_buf(),
            dialect: adapter.dialect,
            method: config.method.clone(),
            variants: variants(config),
            base_model: config.base_model.clone(),
            base_hints: hints.map(|(key, says)| Hint { key, says }).collect(),
            alpha_from: config.alpha_from.clone(),
            trainer: origin::trainer(&adapter, |key| header.get(key)),
            task_type: text("task_type"),
            peft_version: text("peft_version"),
            trainable_parameters: 0,
            methods: methods(&modules),
            components: modules::sums(&modules, |module| module.component),
            layers: modules::sums(&modules, |module| module.layer),
            module_groups: modules::groups(&modules),
            modules,
            pairs: pairs.len(),
            groups: groups(&pairs),
            magnitudes: pairs.iter().filter(|pair| pair.lora.magnitude.is_some()).count(),
            biases: pairs.iter().filter(|pair| pair.lora.bias.is_some()).count(),
            whole: Share::default(),
            frozen: Share::default(),
            token_rows: 0,
            unknown: Vec::new(),
            target_modules: config.raw.get("target_modules").cloned().unwrap_or_default(),
            target_parameters: config.target_parameters.clone(),
            experts: adapter.packings.clone(),
            modules_to_save: config.modules_to_save.clone(),
            inserted: inserted::inserted(&adapter),
            gguf,
            base: None,
            values: options.check.then(|| values::values(&adapter, &pairs, options, run)).transpose()?,
            spectrum: options.spectrum.then(|| spectrum::spectra(&adapter, &pairs, options, run)).transpose()?,
            header: told,
            problems,
            weights,
            adapter,
        };
        facts.trainable_parameters = facts.weights.parameters;
        facts.count_others();
        facts.base = fit::fit(path, &facts.adapter, facts.trainable_parameters, options, run)?;
        facts.problems.extend(problems::of_values(&facts));
        Ok(facts)
    }

    fn count_others(&mut self) {
        let adapter = &self.adapter;
        for module in &adapter.modules {
            match &module.change {
                Change::Lora(_) | Change::Method(_) | Change::Inserted(_) => {}
                Change::Whole(parameter, tensor) if is_whole(&adapter.config, &module.path, parameter) => {
                    self.whole.add(&module.path, parameter, tensor);
                }
                Change::Whole(_, tensor) => self.unknown.push(tensor.info.name.clone()),
                // A layer's own bias keeps its place below the frozen layer when it is trained.
                Change::Frozen(parameter, tensor) if parameter == "bias" && trains_biases(&adapter.config) => {
                    self.whole.add(&module.path, parameter, tensor);
                }
                Change::Frozen(parameter, tensor) => {
                    self.frozen.add(&module.path, parameter, tensor);
                    self.trainable_parameters = self.trainable_parameters.saturating_sub(parameters(&tensor.info));
                }
                Change::TokenRows(tensor) => self.token_rows += tensor.info.shape.rows_cols().0,
                Change::Unknown(tensor) => self.unknown.push(tensor.info.name.clone()),
            }
        }
    }
}

impl Share {
    fn add(&mut self, module: &str, parameter: &str, tensor: &Stored) {
        self.tensors += 1;
        self.elements = self.elements.saturating_add(elements(&tensor.info));
        self.bytes += tensor.info.bytes;
        self.names.push(parameter_name(module, parameter));
    }
}

fn methods(modules: &[ModuleFacts]) -> Vec<Sum> {
    let mut found = modules::sums(modules, |module| module.method);
    found.sort_by_key(|sum| std::cmp::Reverse(sum.modules));
    found
}

/// Whether a parameter without a role is a weight of the model: tensors of methods other than LoRA look like that too.
pub(super) fn is_whole(config: &AdapterConfig, module: &str, parameter: &str) -> bool {
    let name = parameter_name(module, parameter);
    config.scaling.is_some() || config.modules_to_save.iter().any(|saved| saves(saved, &name))
}

/// Whether `bias` is `all` or `lora_only`.
pub(super) fn trains_biases(config: &AdapterConfig) -> bool {
    config.raw.get("bias").and_then(Value::as_str).is_some_and(|bias| bias != "none")
}

/// The name of a parameter in the model.
pub(super) fn parameter_name(module: &str, parameter: &str) -> String {
    if module.is_empty() { parameter.to_owned() } else { format!("{module}.{parameter}") }
}

fn variants(config: &AdapterConfig) -> Vec<String> {
    let rslora = config.scaling.as_ref().is_some_and(Scaling::is_rslora);
    let (init, name) = &config.init;
    let flags = [
        (config.dora, "DoRA"),
        (rslora, "rsLoRA"),
        (*init != Init::Plain, name.as_str()),
        (!config.target_parameters.is_empty(), "target_parameters"),
        (!config.token_indices.is_empty(), "trainable tokens"),
    ];
    flags.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned()).collect()
}

fn groups(pairs: &[Pair<'_>]) -> Vec<PairGroup> {
    let mut found: BTreeMap<_, PairGroup> = BTreeMap::new();
    for pair in pairs {
        let (alpha, scale) = pair.configured.map(|(_, alpha, scale)| (alpha, scale)).unzip();
        let bits = (alpha.map(f64::to_bits), scale.map(f64::to_bits));
        let (rank, experts, embedding) = (pair.rank, pair.experts, pair.lora.embedding);
        let new = || PairGroup {
            pairs: 0,
            names: BTreeSet::new(),
            rank,
            alpha,
            scale,
            dtype: pair.dtype(),
            experts,
            embedding,
        };
        let group = found.entry((rank, bits, pair.dtypes(), experts, embedding)).or_insert_with(new);
        group.pairs += 1;
        if !group.names.contains(pair.name()) {
            group.names.insert(pair.name().to_owned());
        }
    }
    let mut found: Vec<PairGroup> = found.into_values().collect();
    found.sort_by_key(|group| std::cmp::Reverse(group.pairs));
    found
}
