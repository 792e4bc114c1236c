//! The settings of an adapter, in the terms of PEFT's `adapter_config.json`.

use std::path::PathBuf;
use std::sync::OnceLock;

use foldhash::HashMap;
use serde_json::{Map, Value};

use super::LlamaCpp;
use super::alpha_from::AlphaFrom;
use super::fields::{Fields, shorten};
use super::initial::Initialiser;
use super::kind::Kind;
pub use super::scaling::Scaling;
use crate::error::Error;
use crate::naming::ends;
use crate::naming::experts::{DEFINITION_ORDER, STACKS};

/// File name of the config.
pub const CONFIG_NAME: &str = "adapter_config.json";

/// Settings under which a module's contribution is not a fixed ΔW, or not one that is implemented: refused by name.
const REFUSED: [(&str, &str); 7] = [
    (INVOCATION, "an activated LoRA acts only after its invocation tokens, so no weight can hold it"),
    ("arrow_config", "Arrow routes between several adapters at run time, so no weight can hold it"),
    ("use_qalora", "QALoRA adapters belong to a group-quantised base, and PEFT cannot merge them either"),
    ("layer_replication", "the adapter belongs to a deeper model made of repeated layers, which this base is not"),
    ("use_bdlora", "block-diagonal LoRA is not merged yet"),
    ("kasa_config", "KaSA removes singular components of the base as well, which is not merged yet"),
    ("monteclora_config", "MonteCLoRA keeps parameters beyond A and B, which are not merged yet"),
];

/// The tokens after which an activated LoRA begins to act.
pub const INVOCATION: &str = "alora_invocation_tokens";

/// What the initialiser did to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Nothing: B started at zero, or the base was left alone.
    Plain,
    /// s·B₀·A₀ was taken out of the base.
    Subtracted,
    /// The base was quantised anew.
    Quantised,
}

/// The settings of an adapter that change its numbers, and where they were read.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// The file.
    pub path: PathBuf,
    /// `peft_type`, upper case.
    pub method: String,
    /// Which method that is, if it is known.
    pub kind: Option<&'static Kind>,
    /// Rank, alpha and the patterns over them; `None` for methods without.
    pub scaling: Option<Scaling>,
    /// Where α stands, for methods that have one.
    pub alpha_from: Option<AlphaFrom>,
    /// Magnitudes are expected.
    pub dora: bool,
    /// The base keeps its weights as `[in, out]`, as far as the writer knew.
    pub fan_in_fan_out: bool,
    /// What the initialiser did to the base, and its name.
    pub init: (Init, String),
    /// Modules saved whole.
    pub modules_to_save: Vec<String>,
    /// Parameters that are adapted without a layer of their own.
    pub target_parameters: Vec<String>,
    /// Embedding rows that were trained, by module suffix; an empty suffix means the input embedding.
    pub token_indices: Vec<(String, Vec<usize>)>,
    /// Whether head and embedding were trained as one.
    pub ensure_weight_tying: bool,
    /// The base's name, as the writer knew it.
    pub base_model: Option<String>,
    /// Factors of three dimensions hold a pair for each expert, and this merges them.
    pub stacks_merged_by: Option<&'static str>,
    /// What only a GGUF file says.
    pub llama_cpp: Option<LlamaCpp>,
    /// The whole file, in its order.
    pub raw: Map<String, Value>,
    /// What stands in front of the names of `target_parameters` → their places there, once asked for.
    pub(super) owners: OnceLock<HashMap<String, Vec<usize>>>,
}

impl AdapterConfig {
    /// All settings by key and type.
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields { path: &self.path, raw: &self.raw }
    }

    /// The modules that are saved whole: those that the config names, and the heads that PEFT adds by itself for the task, which
    /// old versions did not write into it.
    pub fn saved_modules(&self) -> impl Iterator<Item = &str> {
        let task = self.raw.get("task_type").and_then(Value::as_str).unwrap_or_default();
        let of_task = TASK_HEADS.iter().filter(move |(tasks, _)| tasks.contains(&task)).flat_map(|(_, heads)| *heads);
        self.modules_to_save.iter().map(String::as_str).chain(of_task.copied())
    }

    /// The initialiser, if what it took out of the base follows from the base alone.
    pub fn initialiser(&self) -> Option<Initialiser> {
        let known = [("pissa", Initialiser::Pissa), ("olora", Initialiser::Olora)];
        known.into_iter().find(|(name, _)| self.init.1.eq_ignore_ascii_case(name)).map(|(_, initialiser)| initialiser)
    }

    /// The parameters of `module` that are adapted without a layer of their own, in the order the module defines them.
    pub fn parameters_of(&self, module: &str) -> Vec<&str> {
        if self.target_parameters.is_empty() {
            return Vec::new();
        }
        let owners = self.owners.get_or_init(|| {
            let mut owners: HashMap<String, Vec<usize>> = HashMap::default();
            for (at, target) in self.target_parameters.iter().enumerate() {
                let owner = target.rsplit_once('.').map_or("", |(owner, _)| owner);
                owners.entry(owner.to_owned()).or_default().push(at);
            }
            owners
        });
        // An entry without an owner means any module.
        let ends = ends(module).filter(|end| !end.is_empty()).chain([""]);
        let mut serving: Vec<usize> = ends.filter_map(|end| owners.get(end)).flatten().copied().collect();
        serving.sort_unstable();
        let mut names: Vec<&str> = Vec::new();
        let holds_experts = module.rsplit('.').next().is_some_and(|end| end.contains("expert") || end.contains("moe"));
        for at in serving {
            let target = self.target_parameters[at].as_str();
            let (owner, name) = target.rsplit_once('.').unwrap_or(("", target));
            // A module has the parameter only if it is one of experts.
            if owner.is_empty() && STACKS.contains(&name) && !holds_experts {
                continue;
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.sort_by_key(|name| DEFINITION_ORDER.iter().position(|known| known == name).unwrap_or(usize::MAX));
        names
    }

    /// Why this adapter cannot be merged into any weight, if it cannot.
    pub fn refusal(&self) -> Option<Error> {
        self.refusal_but(&[])
    }

    /// The same, but for the settings `except`, which whoever asks can express.
    pub fn refusal_but(&self, except: &[&str]) -> Option<Error> {
        let refuse = |what: String| Some(Error::unsupported(&self.path, what));
        if let Some(reason) = self.kind.map_or(Some("the method is not known"), |kind| kind.refused) {
            return refuse(format!("`peft_type` is `{}`: {reason}", self.method));
        }
        let set = |key: &str| self.raw.get(key).is_some_and(is_set) && !except.contains(&key);
        REFUSED.iter().find(|(key, _)| set(key)).and_then(|(key, reason)| {
            let value = shorten(&self.raw[*key]);
            refuse(format!("`{key}` is set ({value}): {reason}"))
        })
    }
}

/// Tasks, and the heads that PEFT saves whole for them. Source: PEFT, `PeftModelFor…` in `peft_model.py`.
const TASK_HEADS: [(&[&str], &[&str]); 2] =
    [(&["SEQ_CLS", "TOKEN_CLS"], &["classifier", "score"]), (&["QUESTION_ANS"], &["qa_outputs"])];

/// Whether the module or parameter `name` belongs to the entry `saved` of `modules_to_save`: the module of that name and
/// everything below it, as PEFT matches it.
pub fn saves(saved: &str, name: &str) -> bool {
    format!(".{name}.").contains(&format!(".{saved}."))
}

/// Whether a setting is there and not switched off.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        _ => true,
    }
}
