//! `adapter_config.json` → settings, or those of an adapter whose file says everything itself.
//!
//! Rules: PEFT 0.21 `tuners/lora/config.py`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::alpha_from::AlphaFrom;
use super::config::{AdapterConfig, CONFIG_NAME, Init};
use super::fields::Fields;
use super::methods;
use super::scaling::Scaling;
use crate::error::{Error, Result};
use crate::formats::json;
use crate::io::is_there;

/// Initialisers that change the base: an adapter they started belongs to that changed base.
const MUTATING: [(&str, Init); 5] = [
    ("pissa", Init::Subtracted),
    ("olora", Init::Subtracted),
    ("corda", Init::Subtracted),
    ("lora_ga", Init::Subtracted),
    ("loftq", Init::Quantised),
];

impl AdapterConfig {
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
        let kind = methods::of_type(&method);
        let alpha = kind.and_then(|kind| kind.alpha);
        let scaling = alpha.map(|alpha| Scaling::of_fields(&fields, alpha)).transpose()?;
        // Rows alone are a method, rows beside others a setting.
        let rows = ["trainable_token_indices", "token_indices"].into_iter().find(|key| fields.value(key).is_some());
        Ok(Self {
            alpha_from: scaling.as_ref().map(|_| AlphaFrom::File(CONFIG_NAME.to_owned())),
            scaling,
            dora: fields.flag("use_dora")?,
            fan_in_fan_out: fields.flag("fan_in_fan_out")?,
            init: init(&fields),
            modules_to_save: fields.texts("modules_to_save")?,
            target_parameters: fields.texts("target_parameters")?,
            token_indices: rows.map_or(Ok(Vec::new()), |key| token_indices(&fields, key))?,
            ensure_weight_tying: fields.flag("ensure_weight_tying")?,
            base_model: fields.text("base_model_name_or_path")?.map(str::to_owned),
            stacks_merged_by: None,
            llama_cpp: None,
            kind,
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
            kind: methods::of_type(method),
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
}

/// What the initialiser did to the base, and its name.
fn init(fields: &Fields<'_>) -> (Init, String) {
    let Some(name) = fields.value("init_lora_weights").and_then(Value::as_str) else {
        return (Init::Plain, String::new());
    };
    let lower = name.to_lowercase();
    let known = MUTATING.iter().find(|(prefix, _)| lower.starts_with(prefix));
    (known.map_or(Init::Plain, |(_, init)| *init), name.to_owned())
}

fn token_indices(fields: &Fields<'_>, key: &str) -> Result<Vec<(String, Vec<usize>)>> {
    let wrong = |value: &Value| fields.wrong(key, "a list of token numbers", value);
    let id = |item: &Value| item.as_u64().and_then(|id| usize::try_from(id).ok()).ok_or_else(|| wrong(item));
    let ids = |list: &Value| list.as_array().ok_or_else(|| wrong(list))?.iter().map(id).collect::<Result<Vec<usize>>>();
    match fields.value(key) {
        None => Ok(Vec::new()),
        Some(Value::Object(modules)) => modules.iter().map(|(module, list)| Ok((module.clone(), ids(list)?))).collect(),
        Some(list) => Ok(vec![(String::new(), ids(list)?)]),
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
