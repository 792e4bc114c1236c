//! Who trained an adapter, and on what, as far as header and config tell.

use serde_json::{Map, Value};

use crate::adapters::Adapter;

/// The program that wrote an adapter; `None` where nothing tells.
pub fn trainer<'a>(adapter: &Adapter, metadata: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let config = &adapter.config.raw;
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let software = metadata("software").map(software);
    let module = metadata("ss_network_module").map(|module| match module.split('.').next().unwrap_or_default() {
        "lycoris" => format!("LyCORIS ({module})"),
        _ if ["_wan", "_hunyuan", "_qwen", "_framepack", "_flux_kontext"].iter().any(|end| module.contains(end)) => {
            format!("musubi-tuner ({module})")
        }
        _ => format!("sd-scripts ({module})"),
    });
    let is_onetrainer = ["ot_branch", "ot_revision", "ot_config"].iter().any(|key| metadata(key).is_some());
    let onetrainer = is_onetrainer.then(|| {
        let revision = metadata("ot_revision").map(|revision| format!(" {}", short(revision)));
        format!("OneTrainer{}", revision.unwrap_or_default())
    });
    let peft = text("peft_version").map(|version| format!("PEFT {version}"));
    let adapterhub = config.get("config").and(text("version")).map(|version| {
        let number = version.strip_prefix("adapters.").unwrap_or(version);
        format!("AdapterHub adapters {number}")
    });
    let mlx = config.contains_key("fine_tune_type").then(|| "mlx-lm".to_owned());
    let found = software.or(onetrainer).or(module).or(peft).or(adapterhub).or(mlx);
    found.or_else(|| metadata("modelspec.implementation").map(str::to_owned)).or_else(|| {
        let diffusers = metadata("lora_adapter_metadata").map(|_| "diffusers".to_owned());
        diffusers.or_else(|| metadata("training_info").map(|_| "ai-toolkit".to_owned()))
    })
}

/// Where the base is named, in the order of trust: key and what it says.
pub fn base_hints<'a>(adapter: &Adapter, metadata: impl Fn(&str) -> Option<&'a str>) -> Vec<(String, String)> {
    let config: &Map<String, Value> = &adapter.config.raw;
    let mut found: Vec<(String, String)> = Vec::new();
    let mut add = |key: &str, value: Option<&str>| {
        let value = value.map(str::trim).filter(|value| !value.is_empty() && *value != "None");
        found.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    };
    for key in ["base_model_name_or_path", "model", "model_name", "hf_model"] {
        add(key, config.get(key).and_then(Value::as_str));
    }
    for key in ["ss_sd_model_name", "ss_base_model_version", "modelspec.architecture", "ss_sd_model_hash"] {
        add(key, metadata(key));
    }
    found
}

/// `{"name": "ai-toolkit", "version": "0.5.3"}`, or a plain name.
fn software(text: &str) -> String {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return text.to_owned() };
    let part = |key: &str| object.get(key).and_then(Value::as_str);
    [part("name"), part("version")].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The beginning of a commit.
fn short(revision: &str) -> &str {
    const SHOWN: usize = 10;
    revision.char_indices().nth(SHOWN).map_or(revision, |(end, _)| &revision[..end])
}
