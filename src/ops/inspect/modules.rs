//! The modules of an adapter one by one, and sums over them: by method, by component of the model, by what kind of layer they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use foldhash::{HashMap, HashSet};
use serde::Serialize;

use super::adapter::is_whole;
use super::pairs::Pair;
use super::weights::parameters;
use crate::adapters::{Adapter, Change, Lora, Module};
use crate::dialects::Dialect;
use crate::formats::Stored;
use crate::naming::arch::flattened;
use crate::naming::components::{ADAPTED, OTHERS, split};

/// The component of a model that has only one.
const WHOLE_MODEL: &str = "model";

/// Words of a path that say what kind of layer it is; the first row with one of them counts.
const LAYERS: [(&str, &str); 6] = [
    ("norm", "norm norm1 norm2 norm3 layernorm ln ln1 ln2 ln_f rmsnorm groupnorm"),
    ("embedding", "embed embedding embeddings embedder wte wpe lm_head embed_tokens emb"),
    ("attention", "attn attn1 attn2 attention attentions qkv q k v o query key value selfattn crossattn mixer"),
    ("mlp", "mlp ff ffn feedforward feed fc fc1 fc2 gate up down experts w1 w2 w3 linear1 linear2 intermediate dense"),
    ("conv", "conv conv1 conv2 convs conv_in resnets layers_2 op skip shortcut downsamplers upsamplers samplers"),
    ("modulation", "mod modulation adaln time emb guidance vector"),
];

/// A module that is changed.
#[derive(Debug, Clone, Serialize)]
pub struct ModuleFacts {
    /// Its path, or that of its parameter.
    pub path: String,
    /// Part of the model: `unet`, `text_encoder` …, or `model`.
    pub component: &'static str,
    /// What kind of layer: `attention`, `mlp`, `conv`, `norm`, `embedding`, `modulation`, `text encoder` or `other`.
    pub layer: &'static str,
    /// How it is changed.
    pub method: &'static str,
    /// Outputs and inputs, where the tensors tell; all positions of a convolution's kernel count as inputs.
    pub shape: Option<[u64; 2]>,
    /// Sides of a convolution's kernel.
    pub kernel: Vec<u64>,
    /// Rank, of one expert in a stack.
    pub rank: Option<u64>,
    /// Alpha.
    pub alpha: Option<f64>,
    /// The factor in front of the change.
    pub scale: Option<f64>,
    /// Element types of its tensors.
    pub dtype: String,
    /// Elements of its tensors.
    pub parameters: u64,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// Modules that agree in all numbers.
#[derive(Debug, Clone, Serialize)]
pub struct ModuleGroup {
    /// Part of the model.
    pub component: &'static str,
    /// How they are changed.
    pub method: &'static str,
    /// How many.
    pub modules: usize,
    /// What they are called in their layers.
    pub names: BTreeSet<String>,
    /// Outputs and inputs, and how many modules have them; the most frequent first.
    pub shapes: Vec<ShapeCount>,
    /// Rank.
    pub rank: Option<u64>,
    /// Alpha.
    pub alpha: Option<f64>,
    /// The factor in front of the change.
    pub scale: Option<f64>,
    /// Element types.
    pub dtype: String,
    /// Elements of all their tensors.
    pub parameters: u64,
    /// Bytes of all their tensors.
    pub bytes: u64,
}

/// Modules of one shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShapeCount {
    /// Outputs and inputs.
    pub shape: [u64; 2],
    /// How many.
    pub modules: usize,
}

/// A sum over modules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// What they have in common.
    pub name: String,
    /// How many.
    pub modules: usize,
    /// Elements of their tensors.
    pub parameters: u64,
    /// Bytes of their tensors.
    pub bytes: u64,
}

/// Every module of `adapter` that changes something; `pairs` are those of its modules that are LoRA, in order.
pub fn modules(adapter: &Adapter, pairs: &[Pair<'_>]) -> Vec<ModuleFacts> {
    let mut seen = HashSet::default();
    let mut pairs = pairs.iter();
    let facts = |module: &Module| {
        let mut facts = ModuleFacts::of(module, adapter.dialect)?;
        if matches!(module.change, Change::Method(_)) {
            facts.once(module, &mut seen);
        }
        match &module.change {
            Change::Lora(lora) => facts.lora(adapter, lora, pairs.next()),
            Change::Method(method) => {
                facts.method = method.kind().title;
                facts.shape = method.shape().map(|(outputs, inputs)| [outputs, inputs]);
                (facts.rank, facts.scale) = (method.rank(), method.scale());
                facts.alpha = facts.rank.zip(facts.scale).map(|(rank, scale)| scale * rank as f64);
            }
            // Tensors of methods that are not known look like that too.
            Change::Whole(parameter, _) if !is_whole(&adapter.config, &module.path, parameter) => return None,
            Change::Whole(_, tensor) => {
                facts.method = "whole";
                facts.shape = shape(tensor);
            }
            Change::TokenRows(tensor) => {
                facts.method = "token rows";
                facts.shape = shape(tensor);
            }
            Change::Inserted(inserted) => facts.method = inserted.kind,
            Change::Frozen(..) | Change::Unknown(_) => return None,
        }
        Some(facts)
    };
    let mut found = Vec::with_capacity(adapter.modules.len());
    found.extend(adapter.modules.iter().filter_map(facts));
    found
}

impl ModuleFacts {
    fn of(module: &Module, dialect: &str) -> Option<Self> {
        let tensors = module.change.tensors();
        if tensors.is_empty() {
            return None;
        }
        let mut dtypes: Vec<&str> = tensors.iter().map(|tensor| tensor.info.dtype.name()).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        let component = component_of(&module.path, dialect);
        Some(Self {
            path: module.path.clone(),
            layer: layer_of(&module.path, component),
            component,
            method: "",
            shape: None,
            kernel: Vec::new(),
            rank: None,
            alpha: None,
            scale: None,
            dtype: dtypes.join("/"),
            parameters: tensors.iter().map(|tensor| parameters(&tensor.info)).fold(0, u64::saturating_add),
            bytes: tensors.iter().map(|tensor| tensor.info.bytes).sum(),
        })
    }

    /// Counts only the tensors that no module before it has: VeRA's modules share their projections.
    fn once(&mut self, module: &Module, seen: &mut HashSet<String>) {
        let mut own = module.change.tensors();
        own.retain(|tensor| seen.insert(tensor.info.name.clone()));
        self.parameters = own.iter().map(|tensor| parameters(&tensor.info)).fold(0, u64::saturating_add);
        self.bytes = own.iter().map(|tensor| tensor.info.bytes).sum();
    }

    fn lora(&mut self, adapter: &Adapter, lora: &Lora, pair: Option<&Pair<'_>>) {
        let dimensions = lora.down.info.shape.as_slice();
        let each = adapter.experts_of_pair(lora);
        self.kernel = if each.is_some() { Vec::new() } else { dimensions.get(2..).unwrap_or_default().to_vec() };
        let is_conv = self.kernel.iter().any(|side| *side > 1);
        let plain = if is_conv && Dialect::of(adapter.dialect).lycoris { "LoCon" } else { "LoRA" };
        self.method = if lora.magnitude.is_some() { "DoRA" } else { plain };
        self.shape = Some(match (each, lora.embedding) {
            (Some([.., outputs, inputs]), _) => [outputs, inputs],
            (None, true) => [lora.inputs(), lora.outputs()],
            (None, false) => [lora.outputs(), lora.inputs()],
        });
        self.rank = Some(pair.map_or_else(|| lora.rank(), |pair| pair.rank));
        let configured = match pair {
            Some(pair) => pair.configured,
            None => adapter.config.scaling.as_ref().map(|scaling| scaling.of(&self.path)),
        };
        (self.alpha, self.scale) = configured.map(|(_, alpha, scale)| (alpha, scale)).unzip();
        if let Some(pair) = pair {
            self.dtype = pair.dtype();
            self.path.clone_from(&pair.path);
        }
    }
}

fn shape(tensor: &Stored) -> Option<[u64; 2]> {
    let (rows, cols) = tensor.info.shape.rows_cols();
    (tensor.info.shape.as_slice().len() > 1).then_some([rows, cols])
}

/// Modules that agree in all numbers, together; the most frequent first.
pub fn groups(modules: &[ModuleFacts]) -> Vec<ModuleGroup> {
    let mut found: HashMap<_, ModuleGroup> = HashMap::default();
    let mut shapes: HashMap<_, BTreeMap<[u64; 2], usize>> = HashMap::default();
    for module in modules {
        let bits = (module.alpha.map(f64::to_bits), module.scale.map(f64::to_bits));
        let key = (module.component, module.method, module.rank, bits, module.dtype.as_str());
        let group = found.entry(key).or_insert_with(|| ModuleGroup {
            component: module.component,
            method: module.method,
            modules: 0,
            names: BTreeSet::new(),
            shapes: Vec::new(),
            rank: module.rank,
            alpha: module.alpha,
            scale: module.scale,
            dtype: module.dtype.clone(),
            parameters: 0,
            bytes: 0,
        });
        group.modules += 1;
        group.parameters = group.parameters.saturating_add(module.parameters);
        group.bytes += module.bytes;
        let name = name_of(&module.path);
        if !group.names.contains(name) {
            group.names.insert(name.to_owned());
        }
        if let Some(shape) = module.shape {
            *shapes.entry(key).or_default().entry(shape).or_default() += 1;
        }
    }
    for (key, counts) in shapes {
        let mut counts: Vec<ShapeCount> =
            counts.into_iter().map(|(shape, modules)| ShapeCount { shape, modules }).collect();
        counts.sort_by(|left, right| right.modules.cmp(&left.modules).then(left.shape.cmp(&right.shape)));
        found.entry(key).and_modify(|group| group.shapes = counts);
    }
    let mut found: Vec<ModuleGroup> = found.into_values().collect();
    let order = |group: &ModuleGroup| {
        let bits = (group.alpha.map(f64::to_bits), group.scale.map(f64::to_bits));
        (std::cmp::Reverse(group.modules), group.component, group.method, group.rank, bits)
    };
    found.sort_by_cached_key(|group| (order(group), group.dtype.clone()));
    found
}

/// Sums by whatever `name` gives; the one with most bytes first.
pub fn sums<'a>(modules: &'a [ModuleFacts], name: impl Fn(&'a ModuleFacts) -> &'a str) -> Vec<Sum> {
    let mut found: BTreeMap<&str, Sum> = BTreeMap::new();
    for module in modules {
        let sum = found.entry(name(module)).or_default();
        sum.modules += 1;
        sum.parameters = sum.parameters.saturating_add(module.parameters);
        sum.bytes += module.bytes;
    }
    let mut found: Vec<Sum> = found.into_iter().map(|(name, sum)| Sum { name: name.to_owned(), ..sum }).collect();
    found.sort_by_key(|sum| std::cmp::Reverse(sum.bytes));
    found
}

/// The component of the model a path belongs to. `transformer.h.0` is the path of a language model as well, so `dialect` counts.
pub fn component_of(path: &str, dialect: &str) -> &'static str {
    if !Dialect::of(dialect).pipelines {
        return WHOLE_MODEL;
    }
    let known = |component: &str| ADAPTED.iter().chain(&OTHERS).find(|known| **known == component).copied();
    // A name that no table took apart: its prefix tells, the likeliest component first.
    let flat = || flattened(path).map(|(_, components)| components[0]);
    split(path).and_then(|(component, _)| known(component)).or_else(flat).unwrap_or(WHOLE_MODEL)
}

/// What a module is called in its layer: the last component of its path that is no number.
fn name_of(path: &str) -> &str {
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    match path.rsplit_once('.') {
        // `to_out.0`, `net.2`
        Some((before, last)) if is_number(last) => {
            let start = before.rfind('.').map_or(0, |dot| dot + 1);
            &path[start..]
        }
        Some((_, last)) => last,
        None => path,
    }
}

/// What kind of layer a path leads to; the words nearest to its end count most.
pub fn layer_of(path: &str, component: &str) -> &'static str {
    if component.starts_with("text_encoder") {
        return "text encoder";
    }
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let words = words();
    let kind = |part: &str| std::iter::once(part).chain(part.split('_')).filter_map(|word| words.get(word)).min();
    let lower = path.to_lowercase();
    let row = lower.rsplit('.').filter(|part| !is_number(part)).find_map(kind);
    row.map_or("other", |row| LAYERS[*row].0)
}

/// Word → the first row of [`LAYERS`] that has it.
fn words() -> &'static HashMap<&'static str, usize> {
    static WORDS: LazyLock<HashMap<&'static str, usize>> = LazyLock::new(|| {
        let rows = LAYERS.iter().enumerate().rev();
        rows.flat_map(|(row, (_, words))| words.split(' ').map(move |word| (word, row))).collect()
    });
    &WORDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_known_by_their_words() {
        for (path, kind) in [
            ("model.layers.0.self_attn.q_proj", "attention"),
            ("model.layers.0.mlp.down_proj", "mlp"),
            ("model.layers.0.mlp.experts.3.w1", "mlp"),
            ("transformer.h.0.attn.c_proj", "attention"),
            ("transformer.h.0.mlp.c_proj", "mlp"),
            ("model.norm", "norm"),
            ("model.layers.1.post_attention_layernorm", "norm"),
            ("model.embed_tokens", "embedding"),
            ("lm_head", "embedding"),
            ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0", "attention"),
            ("unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj", "mlp"),
            ("unet.down_blocks.0.resnets.0.conv1", "conv"),
            ("unet.down_blocks.0.downsamplers.0.conv", "conv"),
            ("transformer.single_blocks.0.modulation.lin", "modulation"),
            ("transformer.double_blocks.0.img_attn.qkv", "attention"),
            ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "text encoder"),
            ("something.odd", "other"),
        ] {
            assert_eq!(layer_of(path, component_of(path, "kohya")), kind, "{path}");
        }
    }

    #[test]
    fn components_stand_in_front() {
        for (path, component) in [
            ("unet.mid_block", "unet"),
            ("text_encoder_2.x.y", "text_encoder_2"),
            ("lora_te2_text_model_x", "text_encoder_2"),
            ("lora_unet_foo_bar", "unet"),
            ("model.layers.0", "model"),
            ("unet", "model"),
        ] {
            assert_eq!(component_of(path, "kohya"), component, "{path}");
        }
        assert_eq!(component_of("transformer.h.0.attn", "peft"), "model");
    }

    #[test]
    fn names_keep_the_number_they_end_with() {
        for (path, name) in
            [("a.b.q_proj", "q_proj"), ("a.to_out.0", "to_out.0"), ("x", "x"), ("3", "3"), ("a.0", "a.0")]
        {
            assert_eq!(name_of(path), name, "{path}");
        }
    }
}
