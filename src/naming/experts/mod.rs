//! How mixture-of-experts layers are stored.
//!
//! In memory transformers 5 keeps all experts of a layer in two stacks: `gate_up_proj` `[E, 2·ff, d]`, the gate's rows
//! first, and `down_proj` `[E, d, ff]`; some classes keep them transposed. On disk they lie either like that or as one
//! tensor per expert and projection. Some families have no gate: their stacks are `up_proj` `[E, ff, d]` and `down_proj`.
//! An adapter may follow either form. Every form is a row of a table here; the matching in `placement` knows the tables and
//! no model.

pub mod peft;

/// One projection of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The gate.
    Gate,
    /// The up projection beside the gate.
    Up,
    /// The projection back.
    Down,
}

impl Part {
    /// This part and no other.
    pub fn alone(self) -> &'static [Self] {
        match self {
            Self::Gate => &[Self::Gate],
            Self::Up => &[Self::Up],
            Self::Down => &[Self::Down],
        }
    }
}

/// One tensor per expert and projection.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Path of the list of experts below the layer.
    pub experts: &'static str,
    /// Names of gate, up and down below one expert; the gate's is empty where there is none.
    pub parts: [&'static str; 3],
}

/// All experts in two stacks.
#[derive(Debug, PartialEq, Eq)]
pub struct Fused {
    /// Path of the module that holds the stacks, below the layer.
    pub module: &'static str,
    /// The stack of gate and up, and the stack of down, as they are named on disk below `module`.
    pub stacks: [&'static str; 2],
    /// Whether the first stack has a gate above its up projections.
    pub gated: bool,
}

/// Sources: checkpoints of the families named, and `conversion_mapping.py` of transformers 5.
pub const SPLIT: [Split; 9] = [
    // Qwen2/3-MoE, DeepSeek, OLMoE, GLM-4-MoE, Ernie 4.5
    Split { experts: "mlp.experts", parts: ["gate_proj", "up_proj", "down_proj"] },
    // Mixtral, PhiMoE, MiniMax
    Split { experts: "block_sparse_moe.experts", parts: ["w1", "w3", "w2"] },
    // Jamba
    Split { experts: "feed_forward.experts", parts: ["gate_proj", "up_proj", "down_proj"] },
    // LFM2-MoE
    Split { experts: "feed_forward.experts", parts: ["w1", "w3", "w2"] },
    // Mixtral as transformers 5 names its modules
    Split { experts: "mlp.experts", parts: ["w1", "w3", "w2"] },
    // Nemotron-H
    Split { experts: "mixer.experts", parts: ["", "up_proj", "down_proj"] },
    // Experts of two projections elsewhere
    Split { experts: "mlp.experts", parts: ["", "up_proj", "down_proj"] },
    Split { experts: "block_sparse_moe.experts", parts: ["", "up_proj", "down_proj"] },
    Split { experts: "feed_forward.experts", parts: ["", "up_proj", "down_proj"] },
];

/// Sources as for [`SPLIT`].
pub const FUSED: [Fused; 8] = [
    // Qwen3-VL-MoE, gpt-oss, Aria, and what transformers 5 saves
    Fused { module: "mlp.experts", stacks: ["gate_up_proj", "down_proj"], gated: true },
    // Llama 4
    Fused { module: "feed_forward.experts", stacks: ["gate_up_proj", "down_proj"], gated: true },
    // GraniteMoe
    Fused { module: "block_sparse_moe", stacks: ["input_linear.weight", "output_linear.weight"], gated: true },
    // GraniteMoe as transformers 5 names its modules
    Fused { module: "block_sparse_moe.experts", stacks: ["gate_up_proj", "down_proj"], gated: true },
    // Gemma 4: beside the dense block
    Fused { module: "experts", stacks: ["gate_up_proj", "down_proj"], gated: true },
    // Nemotron-H
    Fused { module: "mixer.experts", stacks: ["up_proj", "down_proj"], gated: false },
    // Experts of two projections elsewhere
    Fused { module: "mlp.experts", stacks: ["up_proj", "down_proj"], gated: false },
    Fused { module: "feed_forward.experts", stacks: ["up_proj", "down_proj"], gated: false },
];

/// Experts whose gate and up are one matrix each, beside each other in lists: gpt-oss as Unsloth quantises it. Its list of the
/// first projections and that of the second, below the layer.
pub const JOINED: [&str; 2] = ["mlp.experts.gate_up_projs", "mlp.experts.down_projs"];

/// One stack for every projection.
#[derive(Debug, PartialEq, Eq)]
pub struct Apart {
    /// Path of the module that holds the stacks, below the layer.
    pub module: &'static str,
    /// Names of gate, up and down below it; the gate's is empty where there is none.
    pub parts: [&'static str; 3],
}

/// Sources: Step 3.7; models as mlx-lm stores them, and its adapters.
pub const APART: [Apart; 7] = [
    Apart { module: "moe", parts: ["gate_proj", "up_proj", "down_proj"] },
    Apart { module: "mlp.switch_mlp", parts: ["gate_proj", "up_proj", "down_proj"] },
    Apart { module: "block_sparse_moe.switch_mlp", parts: ["gate_proj", "up_proj", "down_proj"] },
    Apart { module: "feed_forward.switch_mlp", parts: ["gate_proj", "up_proj", "down_proj"] },
    Apart { module: "mlp.switch_mlp", parts: ["", "fc1", "fc2"] },
    Apart { module: "mixer.switch_mlp", parts: ["", "fc1", "fc2"] },
    // gpt-oss as mlx-lm has it
    Apart { module: "mlp.experts", parts: ["gate_proj", "up_proj", "down_proj"] },
];

impl Apart {
    /// Name of the stack of `part`; `None` where there is no such projection.
    pub fn tensor(&self, layer: &str, part: Part) -> Option<String> {
        let name = self.parts[part as usize];
        (!name.is_empty()).then(|| format!("{layer}{}.{name}.weight", self.module))
    }
}

/// Module classes whose stacks are `[E, in, out]` (`is_transposed` in transformers 5, and Llama 4); where in and out
/// differ the shapes tell, this list decides for square ones.
pub const TRANSPOSED_MODELS: [&str; 5] = ["gpt_oss", "aria", "aria_text", "openai_privacy_filter", "llama4_text"];

/// Classes whose `gate_up_proj` has gate and up in alternating columns.
pub const INTERLEAVED_MODELS: [&str; 1] = ["gpt_oss"];

/// Order in which modules define their parameters; PEFT nests its wrappers in this order, the last one outermost.
pub const DEFINITION_ORDER: [&str; 10] = [
    "weight",
    "gate_up_proj",
    "gate_up_proj_bias",
    "gate_proj",
    "up_proj",
    "w1",
    "down_proj",
    "down_proj_bias",
    "w2",
    "w3",
];

/// Parameters that are stacks of experts wherever they are adapted: their names alone mean no other module's.
pub const STACKS: [&str; 6] =
    ["gate_up_proj", "gate_up_proj_bias", "gate_proj", "up_proj", "down_proj", "down_proj_bias"];

/// Names of one and the same block in memory and on disk.
const ALIASES: [(&str, &str); 2] = [("mlp", "block_sparse_moe"), ("mlp", "feed_forward")];

/// Where the experts of one layer lie in a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// One tensor each; so many experts.
    Split(&'static Split, u64),
    /// In stacks.
    Fused(&'static Fused),
    /// In the lists of [`JOINED`]; so many experts.
    Joined(u64),
    /// In one stack for every projection.
    Apart(&'static Apart),
}

/// What the linear layer of one expert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Single<'a> {
    /// The layer, with its dot.
    pub layer: &'a str,
    /// The expert.
    pub expert: u64,
    /// What its outputs are: of several, one after the other in turn, row by row.
    pub parts: &'static [Part],
}

impl Split {
    /// The projections that every expert has.
    pub fn has(&self) -> &'static [Part] {
        if self.parts[Part::Gate as usize].is_empty() {
            &[Part::Up, Part::Down]
        } else {
            &[Part::Gate, Part::Up, Part::Down]
        }
    }

    /// The projections whose outputs stand in the stack `name` of transformers 5, one over the other.
    pub fn parts_of(&self, name: &str) -> Option<&'static [Part]> {
        match (name, self.has()[0]) {
            ("down_proj", _) => Some(&[Part::Down]),
            ("gate_up_proj", Part::Gate) => Some(&[Part::Gate, Part::Up]),
            ("up_proj", Part::Up) => Some(&[Part::Up]),
            _ => None,
        }
    }

    /// Name of one projection's weight in the layer `layer` (its path with a dot, or empty).
    pub fn tensor(&self, layer: &str, expert: u64, part: Part) -> String {
        format!("{layer}{}.{expert}.{}.weight", self.experts, self.parts[part as usize])
    }
}

impl Fused {
    /// Whether one of the stacks is the parameter `name` of transformers 5.
    pub fn holds(&self, name: &str) -> bool {
        name == "down_proj" || name == if self.gated { "gate_up_proj" } else { "up_proj" }
    }

    /// Name of the stack that holds `part`.
    pub fn tensor(&self, layer: &str, part: Part) -> String {
        format!("{layer}{}.{}", self.module, self.stacks[usize::from(part == Part::Down)])
    }
}

/// The layer whose list or stack of experts `module` is, with its dot.
pub fn layer_of_stack(module: &str) -> Option<&str> {
    let stacks = FUSED.iter().map(|fused| fused.module).chain(SPLIT.iter().map(|split| split.experts));
    stacks.filter(|suffix| suffix.ends_with("experts")).find_map(|suffix| layer_before(module, suffix))
}

/// What the path of one expert's linear layer says.
pub fn expert_of(module: &str) -> Option<Single<'_>> {
    let (rest, name) = module.rsplit_once('.')?;
    if let Ok(expert) = name.parse() {
        let parts: [&[Part]; 2] = [&[Part::Gate, Part::Up], &[Part::Down]];
        let lists = JOINED.iter().zip(parts);
        return lists
            .into_iter()
            .find_map(|(list, parts)| Some(Single { layer: layer_before(rest, list)?, expert, parts }));
    }
    let (list, expert) = rest.rsplit_once('.')?;
    let expert = expert.parse().ok()?;
    SPLIT.iter().find_map(|split| {
        let part = split.has().iter().find(|part| split.parts[**part as usize] == name)?;
        Some(Single { layer: layer_before(list, split.experts)?, expert, parts: part.alone() })
    })
}

/// Name of the weight of one expert of the lists of [`JOINED`].
pub fn joined(layer: &str, expert: u64, part: Part) -> String {
    format!("{layer}{}.{expert}.weight", JOINED[usize::from(part == Part::Down)])
}

/// Whether the module `path` chooses experts and is a class of its own, not a linear layer: adapters reach its weight as a
/// parameter only (gpt-oss; a linear layer of that name can be reached like that as well).
pub fn is_router(path: &str) -> bool {
    path.rsplit('.').next() == Some("router")
}

/// How the base stores the experts of `layer`.
pub fn find(layer: &str, has: impl Fn(&str) -> bool) -> Option<Place> {
    let split = SPLIT.iter().find(|split| has(&split.tensor(layer, 0, split.has()[0])));
    if let Some(split) = split {
        let count = (0..).take_while(|expert| has(&split.tensor(layer, *expert, split.has()[0]))).count();
        return Some(Place::Split(split, count as u64));
    }
    if has(&joined(layer, 0, Part::Gate)) {
        let count = (0..).take_while(|expert| has(&joined(layer, *expert, Part::Gate))).count();
        return Some(Place::Joined(count as u64));
    }
    let fused = FUSED.iter().find(|fused| has(&fused.tensor(layer, Part::Gate))).map(Place::Fused);
    let is_there = |apart: &&Apart| apart.tensor(layer, Part::Up).is_some_and(|name| has(&name));
    fused.or_else(|| APART.iter().find(is_there).map(Place::Apart))
}

/// Name of the weight of one expert of the list `list` whose projection is the parameter `name` of the stack.
pub fn of_list(list: &str, expert: u64, name: &str) -> String {
    format!("{list}.{expert}.{name}.weight")
}

/// What a router is called: a layer of its own, one within a class, or the class.
const ROUTERS: [&str; 4] = ["gate", "router", "router.layer", "router.linear"];

/// Other paths the same module may have in the base: blocks and routers are renamed between memory and disk.
pub fn aliases(module: &str) -> Vec<String> {
    let segments: Vec<&str> = module.split('.').collect();
    let swaps = ALIASES.iter().flat_map(|(left, right)| [(*left, *right), (*right, *left)]);
    let renamed = swaps.filter_map(|(from, to)| {
        let at = segments.iter().position(|segment| *segment == from)?;
        let mut path = segments.clone();
        path[at] = to;
        Some(path.join("."))
    });
    let mut found: Vec<String> = renamed.collect();
    let block = ROUTERS.iter().rev().find_map(|name| layer_before(module, name)).filter(|block| !block.is_empty());
    if block.is_some() {
        let blocks = std::iter::once(module.to_owned()).chain(found.clone());
        let others = blocks.flat_map(|path| {
            let block = ROUTERS.iter().rev().find_map(|name| layer_before(&path, name)).map(str::to_owned);
            ROUTERS.iter().filter_map(move |name| Some(format!("{}{name}", block.as_ref()?))).collect::<Vec<_>>()
        });
        let others: Vec<String> = others.filter(|path| path != module && !found.contains(path)).collect();
        found.extend(others);
    }
    found
}

fn layer_before<'a>(module: &'a str, suffix: &str) -> Option<&'a str> {
    let layer = module.strip_suffix(suffix)?;
    // Experts that stand beside the block do so in a layer, which has a number.
    let is_layer =
        |layer: &str| layer.trim_end_matches('.').rsplit('.').next().is_some_and(|end| end.parse::<u64>().is_ok());
    (layer.is_empty() || layer.ends_with('.') && (suffix != "experts" || is_layer(layer))).then_some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_row_is_taken_apart_as_it_is_put_together() {
        for split in &SPLIT {
            for part in split.has().iter().copied() {
                let tensor = split.tensor("model.layers.3.", 7, part);
                let module = tensor.strip_suffix(".weight").expect("a weight");
                let single = Single { layer: "model.layers.3.", expert: 7, parts: part.alone() };
                assert_eq!(expert_of(module), Some(single), "{tensor}");
            }
        }
        for (part, parts) in [(Part::Up, &[Part::Gate, Part::Up][..]), (Part::Down, &[Part::Down])] {
            let tensor = joined("l.", 3, part);
            let single = Single { layer: "l.", expert: 3, parts };
            assert_eq!(expert_of(tensor.trim_end_matches(".weight")), Some(single));
        }
    }

    #[test]
    fn every_row_is_found_by_its_own_names() {
        for split in &SPLIT {
            let names: Vec<String> = (0..4).map(|expert| split.tensor("l.", expert, split.has()[0])).collect();
            match find("l.", |name| names.iter().any(|known| known == name)) {
                Some(Place::Split(found, 4)) => assert_eq!(found, split),
                other => panic!("{split:?}: {other:?}"),
            }
        }
        for fused in &FUSED {
            let name = fused.tensor("l.", Part::Up);
            assert_eq!(find("l.", |known| known == name), Some(Place::Fused(fused)));
        }
    }

    #[test]
    fn a_stack_is_told_from_a_plain_module() {
        assert_eq!(layer_of_stack("model.layers.0.mlp.experts"), Some("model.layers.0."));
        assert_eq!(layer_of_stack("model.layers.0.block_sparse_moe.experts"), Some("model.layers.0."));
        assert_eq!(layer_of_stack("model.layers.0.mlp.up_proj"), None);
        assert_eq!(layer_of_stack("model.layers.0.my_mlp.experts"), None);
    }

    #[test]
    fn a_router_is_known_under_both_names() {
        assert!(aliases("model.layers.0.mlp.gate").contains(&"model.layers.0.block_sparse_moe.gate".to_owned()));
    }
}
