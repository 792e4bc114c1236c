//! Metadata that tells more about people and machines than about the weights: found by key and by what the values look like.

use std::sync::OnceLock;

use regex::Regex;
use serde::Serialize;
use serde_json::Value;

/// Keys that tell something by their nature, and what.
const KEYS: [(&str, &str); 12] = [
    ("ss_dataset_dirs", "names of dataset folders"),
    ("ss_reg_dataset_dirs", "names of dataset folders"),
    ("ss_datasets", "names of dataset folders and captions"),
    ("ss_tag_frequency", "words of the captions"),
    ("ss_tag_strings", "captions"),
    ("ss_training_comment", "a comment"),
    ("ss_session_id", "an identifier of the training session"),
    ("ss_output_name", "a name given by its trainer"),
    ("modelspec.author", "its author"),
    ("modelspec.thumbnail", "a picture"),
    ("training_info", "settings of the training run"),
    ("ot_config", "the whole configuration of the training run"),
];

/// Longest value that is searched for paths and addresses, in bytes.
const MAX_SEARCHED: usize = 1 << 20;

/// Metadata that should be thought about before a file is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Telling {
    /// Its key, after `config:` where it stands in the config.
    pub key: String,
    /// What it tells.
    pub tells: &'static str,
}

/// The telling ones among the texts of a header and the settings of a config.
pub fn find<'a>(
    metadata: impl Iterator<Item = (&'a str, &'a str)>,
    config: &serde_json::Map<String, Value>,
) -> Vec<Telling> {
    let mut found: Vec<Telling> = Vec::new();
    for (key, text) in metadata.filter(|(_, text)| !["", "None", "{}", "[]", "null"].contains(&text.trim())) {
        let known = KEYS.iter().find(|(known, _)| *known == key).map(|(_, tells)| *tells);
        let tells = known.or_else(|| key.contains("wandb").then_some("an account of a logging service"));
        if let Some(tells) = tells.or_else(|| looks_like(text)) {
            found.push(Telling { key: key.to_owned(), tells });
        }
    }
    let settings = config.iter().filter(|(key, _)| key.as_str() != "base_model_name_or_path");
    for (key, value) in settings {
        if let Some(tells) = in_value(value) {
            found.push(Telling { key: format!("config:{key}"), tells });
        }
    }
    found.sort_by(|left, right| left.key.cmp(&right.key));
    found.dedup();
    found
}

fn in_value(value: &Value) -> Option<&'static str> {
    match value {
        Value::String(text) => looks_like(text),
        Value::Array(list) => list.iter().find_map(in_value),
        Value::Object(object) => object.values().find_map(in_value),
        _ => None,
    }
}

/// What a text gives away by its form.
fn looks_like(text: &str) -> Option<&'static str> {
    static FORMS: OnceLock<[(Regex, &str); 3]> = OnceLock::new();
    let forms = FORMS.get_or_init(|| {
        let regex = |pattern| Regex::new(pattern).expect("because the pattern is written here and tested");
        [
            (regex(r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}"), "an e-mail address"),
            (
                regex(r"(?:/home|/Users|/root|/mnt|/media|/workspace|/content|\\Users|\\\\\w+)[/\\]\w"),
                "a path on a machine",
            ),
            (regex(r"\b[A-Za-z]:[/\\]{1,2}\w"), "a path on a machine"),
        ]
    });
    let end = (0..=text.len().min(MAX_SEARCHED)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    forms.iter().find(|(form, _)| form.is_match(&text[..end])).map(|(_, tells)| *tells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_gives_people_away_is_found_by_key_or_form() {
        let metadata = [
            ("format", "pt"),
            ("ss_dataset_dirs", r#"{"10_someone": {}}"#),
            ("ss_training_comment", "None"),
            ("ss_sd_model_name", "/home/me/sd.safetensors"),
            ("note", "write to someone@example.org"),
            ("ss_vae_name", "D:\\models\\vae.pt"),
            ("wandb_run", "x"),
            ("ss_base_model_version", "sdxl_base_v1-0"),
        ];
        let config =
            json!({"r": 4, "data": "/Users/me/set", "model": "org/name", "base_model_name_or_path": "/home/x"});
        let found = find(metadata.into_iter(), config.as_object().expect("an object"));
        let keys: Vec<&str> = found.iter().map(|telling| telling.key.as_str()).collect();
        let wanted = ["config:data", "note", "ss_dataset_dirs", "ss_sd_model_name", "ss_vae_name", "wandb_run"];
        assert_eq!(keys, wanted);
    }

    #[test]
    fn names_and_numbers_give_nobody_away() {
        for text in ["org/name", "runwayml/stable-diffusion-v1-5", "1e-4", "(512, 512)", "sha256:ab@c", "networks.lora"]
        {
            assert_eq!(looks_like(text), None, "{text}");
        }
    }
}
