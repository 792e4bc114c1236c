//! `adapter_config.json` of PEFT, and the one place where a scale is computed.
//!
//! Rules: PEFT 0.21 `tuners/lora/config.py` and `utils/other.py` (`get_pattern_key`).

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use foldhash::HashMap;
use serde_json::{Map, Value};

use super::LlamaCpp;
use super::initial::Initialiser;
use super::options::AlphaFrom;
use super::patterns::Patterns;
use crate::error::{Error, Result};
use crate::formats::json::{self, kind};
use crate::io::is_there;
use crate::naming::ends;
use crate::naming::experts::DEFINITION_ORDER;

/// File name of the config.
pub const CONFIG_NAME: &str = "adapter_config.json";

/// Initialisers that change the base: an adapter they started belongs to that changed base.
const MUTATING: [(&str, Init); 5] = [
    ("pissa", Init::Subtracted),
    ("olora", Init::Subtracted),
    ("corda", Init::Subtracted),
    ("lora_ga", Init::Subtracted),
    ("loftq", Init::Quantised),
];

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

/// How alpha and the rank make a scale.
#[derive(Debug, Clone)]
pub struct Scaling {
    rank: u64,
    alpha: f64,
    rslora: bool,
    rank_pattern: Patterns<u64>,
    alpha_pattern: Patterns<f64>,
    /// Rank and α of single modules, by their whole path: what stands beside the factors themselves.
    exact: HashMap<String, (u64, f64)>,
}

impl Scaling {
    /// The scale of PEFT's settings `raw`, as they stand in `path`.
    ///
    /// # Errors
    /// When one of them is missing or of another kind.
    pub fn read(path: &Path, raw: &Map<String, Value>) -> Result<Self> {
        Fields { path, raw }.scaling("lora_alpha")
    }

    /// The scales of modules that bring their own: path → rank and α. Scale is α/r.
    pub fn exact(exact: impl IntoIterator<Item = (String, (u64, f64))>) -> Self {
        let exact: HashMap<String, (u64, f64)> = exact.into_iter().collect();
        let rank = exact.values().map(|(rank, _)| *rank).max().unwrap_or(1);
        let (rank_pattern, alpha_pattern) = (Patterns::default(), Patterns::default());
        Self { rank, alpha: rank as f64, rslora: false, rank_pattern, alpha_pattern, exact }
    }

    /// Rank, alpha and scale of `module`, as [`rank`](Self::rank), [`alpha`](Self::alpha) and [`scale`](Self::scale) give them.
    pub fn of(&self, module: &str) -> (u64, f64, f64) {
        let exact = self.exact.get(module).copied();
        let (rank, alpha) = exact.unwrap_or_else(|| (self.rank(module), self.alpha(module)));
        (rank, alpha, alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// The rank the config gives `module`.
    pub fn rank(&self, module: &str) -> u64 {
        let exact = self.exact.get(module).map(|(rank, _)| *rank);
        exact.or_else(|| self.rank_pattern.find(module)).unwrap_or(self.rank)
    }

    /// The alpha the config gives `module`.
    pub fn alpha(&self, module: &str) -> f64 {
        let exact = self.exact.get(module).map(|(_, alpha)| *alpha);
        exact.or_else(|| self.alpha_pattern.find(module)).unwrap_or(self.alpha)
    }

    /// Whether the scale is α/√r (Kalajdzievski 2023) instead of α/r.
    pub fn is_rslora(&self) -> bool {
        self.rslora
    }

    /// The factor in front of B·A.
    pub fn scale(&self, module: &str) -> f64 {
        self.of(module).2
    }
}

/// The settings of an adapter that change its numbers, and where they were read.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// The file.
    pub path: PathBuf,
    /// `peft_type`, upper case.
    pub method: String,
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
    /// What only a file of llama.cpp says.
    pub llama_cpp: Option<LlamaCpp>,
    /// The whole file, in its order.
    pub raw: Map<String, Value>,
    /// What stands in front of the names of `target_parameters` → their places there, once asked for.
    owners: OnceLock<HashMap<String, Vec<usize>>>,
}

impl AdapterConfig {
    /// The modules that are saved whole: those that the config names, and the heads that PEFT adds by itself for the task, which
    /// old versions did not write into it.
    pub fn saved_modules(&self) -> impl Iterator<Item = &str> {
        let task = self.raw.get("task_type").and_then(Value::as_str).unwrap_or_default();
        let of_task = TASK_HEADS.iter().filter(move |(tasks, _)| tasks.contains(&task)).flat_map(|(_, heads)| *heads);
        self.modules_to_save.iter().map(String::as_str).chain(of_task.copied())
    }

    /// Reads the config in the adapter directory `directory`.
    ///
    /// # Errors
    /// When it is missing, is not PEFT's, or a setting that matters cannot be understood.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG_NAME);
        if !is_there(&path)? {
            let what = format!("has no `{CONFIG_NAME}`, so alpha and with it the scale are unknown");
            return Err(Error::unsupported(directory, what)
                .hint("the file is written beside the weights by PEFT's `save_pretrained`"));
        }
        Self::parse(path.clone(), json::read_object(&path)?)
    }

    /// The settings `raw`, as they stand in `path`.
    ///
    /// # Errors
    /// When one of them is missing, of another kind or contradicts another.
    pub(crate) fn parse(path: PathBuf, raw: Map<String, Value>) -> Result<Self> {
        let fields = Fields { path: &path, raw: &raw };
        let method = match fields.text("peft_type")? {
            Some(method) => method.to_uppercase(),
            None if raw.contains_key("config") => {
                return Err(Error::unsupported(
                    &path,
                    "is an AdapterHub config, not PEFT's; such adapters cannot be read yet",
                ));
            }
            None => return Err(Error::malformed(&path, "`peft_type`", "is missing, so the method is unknown")),
        };
        let scaling = match method.as_str() {
            "LORA" => Some(fields.scaling("lora_alpha")?),
            "LOHA" | "LOKR" => Some(fields.scaling("alpha")?),
            _ => None,
        };
        let token_key = if method == "TRAINABLE_TOKENS" { "token_indices" } else { "trainable_token_indices" };
        Ok(Self {
            alpha_from: scaling.as_ref().map(|_| AlphaFrom::File(CONFIG_NAME.to_owned())),
            scaling,
            dora: fields.flag("use_dora")?,
            fan_in_fan_out: fields.flag("fan_in_fan_out")?,
            init: fields.init(),
            modules_to_save: fields.texts("modules_to_save")?,
            target_parameters: fields.texts("target_parameters")?,
            token_indices: fields.token_indices(token_key)?,
            ensure_weight_tying: fields.flag("ensure_weight_tying")?,
            base_model: fields.text("base_model_name_or_path")?.map(str::to_owned),
            stacks_merged_by: None,
            llama_cpp: None,
            method,
            path,
            raw,
            owners: OnceLock::new(),
        })
    }

    /// The settings of an adapter whose file says everything itself: `path` is that file.
    pub fn synthetic(path: &Path, method: &str, scaling: Option<Scaling>) -> Self {
        Self {
            path: path.to_path_buf(),
            method: method.to_owned(),
            scaling,
            alpha_from: None,
            dora: false,
            fan_in_fan_out: false,
            init: (Init::Plain, String::new()),
            modules_to_save: Vec::new(),
            target_parameters: Vec::new(),
            token_indices: Vec::new(),
            ensure_weight_tying: false,
            base_model: None,
            stacks_merged_by: None,
            llama_cpp: None,
            raw: Map::new(),
            owners: OnceLock::new(),
        }
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
        for at in serving {
            let target = self.target_parameters[at].as_str();
            let name = target.rsplit_once('.').map_or(target, |(_, name)| name);
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
        if let Some(reason) = super::refused::reason(&self.method) {
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

/// Typed access that names file, key and the value found.
struct Fields<'a> {
    path: &'a Path,
    raw: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn wrong(&self, key: &str, wanted: &str, found: &Value) -> Error {
        let is = match found.as_str().filter(|text| json::NOT_FINITE.contains(text)) {
            Some(number) => number.to_owned(),
            None => format!("{} ({})", kind(found), shorten(found)),
        };
        Error::malformed(self.path, format!("`{key}`"), format!("must be {wanted}, is {is}"))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.raw.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.value(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a text", value))).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.value(key)
            .map_or(Ok(false), |value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value)))
    }

    fn texts(&self, key: &str) -> Result<Vec<String>> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(list)) => {
                let text = |item: &Value| {
                    item.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a list of texts", item))
                };
                list.iter().map(text).collect()
            }
            Some(other) => Err(self.wrong(key, "a list of texts", other)),
        }
    }

    fn rank(&self, key: &str, value: &Value) -> Result<u64> {
        let text = || value.as_str().and_then(|text| text.trim().parse().ok());
        value
            .as_u64()
            .or_else(text)
            .filter(|rank| *rank > 0)
            .ok_or_else(|| self.wrong(key, "a whole number above zero", value))
    }

    fn alpha(&self, key: &str, value: &Value) -> Result<f64> {
        let text = || value.as_str().and_then(|text| text.trim().parse().ok());
        value
            .as_f64()
            .or_else(text)
            .filter(|alpha: &f64| alpha.is_finite())
            .ok_or_else(|| self.wrong(key, "a finite number", value))
    }

    fn scaling(&self, alpha: &str) -> Result<Scaling> {
        let required = |key: &str| {
            let missing = || Error::malformed(self.path, format!("`{key}`"), "is missing, so the scale is unknown");
            self.value(key).ok_or_else(missing)
        };
        Ok(Scaling {
            rank: self.rank("r", required("r")?)?,
            alpha: self.alpha(alpha, required(alpha)?)?,
            rslora: self.flag("use_rslora")?,
            rank_pattern: self.pattern("rank_pattern", |key, value| self.rank(key, value))?,
            alpha_pattern: self.pattern("alpha_pattern", |key, value| self.alpha(key, value))?,
            exact: HashMap::default(),
        })
    }

    /// Patterns in file order.
    fn pattern<T: Copy>(&self, key: &str, read: impl Fn(&str, &Value) -> Result<T>) -> Result<Patterns<T>> {
        let object = match self.value(key) {
            None => return Ok(Patterns::default()),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(self.wrong(key, "an object of patterns", other)),
        };
        let one = |(pattern, value): (&'_ String, &Value)| read(&format!("{key}: {pattern}"), value);
        let values = object.iter().map(one).collect::<Result<Vec<T>>>()?;
        Patterns::read(self.path, key, object.keys().map(String::as_str).zip(values))
    }

    fn init(&self) -> (Init, String) {
        let Some(name) = self.value("init_lora_weights").and_then(Value::as_str) else {
            return (Init::Plain, String::new());
        };
        let lower = name.to_lowercase();
        let known = MUTATING.iter().find(|(prefix, _)| lower.starts_with(prefix));
        (known.map_or(Init::Plain, |(_, init)| *init), name.to_owned())
    }

    fn token_indices(&self, key: &str) -> Result<Vec<(String, Vec<usize>)>> {
        let ids = |list: &Value| {
            let list = list.as_array().ok_or_else(|| self.wrong(key, "a list of token numbers", list))?;
            let id = |item: &Value| {
                let id = item.as_u64().and_then(|id| usize::try_from(id).ok());
                id.ok_or_else(|| self.wrong(key, "a list of token numbers", item))
            };
            list.iter().map(id).collect::<Result<Vec<usize>>>()
        };
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Object(modules)) => {
                modules.iter().map(|(module, list)| Ok((module.clone(), ids(list)?))).collect()
            }
            Some(list) => Ok(vec![(String::new(), ids(list)?)]),
        }
    }
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

fn shorten(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<AdapterConfig> {
        let Value::Object(raw) = serde_json::from_str(text).expect("JSON") else { panic!("an object") };
        AdapterConfig::parse(PathBuf::from("adapter_config.json"), raw)
    }

    fn scaling(text: &str) -> Scaling {
        config(text).expect("a config").scaling.expect("LoRA has a scale")
    }

    #[test]
    fn plain_and_rank_stabilised_scales() {
        assert_eq!(scaling(r#"{"peft_type":"LORA","r":16,"lora_alpha":32}"#).scale("x"), 2.0);
        assert_eq!(scaling(r#"{"peft_type":"LORA","r":16,"lora_alpha":32,"use_rslora":true}"#).scale("x"), 8.0);
    }

    #[test]
    fn patterns_follow_pefts_rules() {
        let scaling = scaling(
            r#"{"peft_type":"LORA","r":8,"lora_alpha":8,
                "rank_pattern":{"q_proj":4, "model.layers.1.k_proj":2, "layers.0.q_proj":16, "^top":32, "a|b":64}}"#,
        );
        for (module, rank) in [
            ("model.layers.0.q_proj", 4), // the first pattern in file order wins
            ("model.layers.1.k_proj", 2), // a full path is a pattern
            ("model.layers.1xk_proj", 2), // a dot is any character
            ("model.layers.10.k_proj", 8),
            ("my_q_proj", 8), // anchored at a dot
            ("q_proj", 4),
            ("q_proj.x", 8), // anchored at the end
            ("top", 32),
            ("x.top", 8), // `^` is the start of the path
            ("x.b", 64),
        ] {
            assert_eq!(scaling.rank(module), rank, "{module}");
        }
    }

    #[test]
    fn mutating_initialisers_are_told_from_harmless_ones() {
        for (value, init) in [
            ("true", Init::Plain),
            ("\"gaussian\"", Init::Plain),
            ("\"eva\"", Init::Plain),
            ("\"pissa\"", Init::Subtracted),
            ("\"pissa_niter_16\"", Init::Subtracted),
            ("\"olora\"", Init::Subtracted),
            ("\"loftq\"", Init::Quantised),
        ] {
            let text = format!(r#"{{"peft_type":"LORA","r":1,"lora_alpha":1,"init_lora_weights":{value}}}"#);
            assert_eq!(config(&text).expect(value).init.0, init, "{value}");
        }
    }

    #[test]
    fn refusals_name_the_setting() {
        for (key, value) in [
            ("alora_invocation_tokens", "[3, 5]"),
            ("arrow_config", r#"{"arrow_top_k": 2}"#),
            ("use_qalora", "true"),
            ("layer_replication", "[[0, 2], [1, 2]]"),
        ] {
            let text = format!(r#"{{"peft_type":"LORA","r":1,"lora_alpha":1,"{key}":{value}}}"#);
            let refusal = config(&text).expect(key).refusal().expect("refused");
            assert!(refusal.to_string().contains(key), "{refusal}");
        }
        assert!(
            config(r#"{"peft_type":"LORA","r":1,"lora_alpha":1,"layer_replication":null}"#)
                .expect("ok")
                .refusal()
                .is_none()
        );
    }

    #[test]
    fn unusable_values_name_the_key_and_the_value() {
        for (text, parts) in [
            (r#"{"r":1}"#, ["peft_type", "missing"]),
            (r#"{"peft_type":"LORA","r":0,"lora_alpha":1}"#, ["`r`", "(0)"]),
            (r#"{"peft_type":"LORA","r":4}"#, ["`lora_alpha`", "missing"]),
            (r#"{"peft_type":"LORA","r":4,"lora_alpha":"x"}"#, ["`lora_alpha`", "(\"x\")"]),
            (
                r#"{"peft_type":"LORA","r":4,"lora_alpha":1,"rank_pattern":{"(":1}}"#,
                ["rank_pattern: (", "unclosed group"],
            ),
            (r#"{"peft_type":"LORA","r":4,"lora_alpha":1,"use_dora":1}"#, ["`use_dora`", "(1)"]),
        ] {
            let message = config(text).expect_err(text).to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        }
    }
}
