//! What a trainer wrote about its run, topic by topic.

use serde_json::{Map, Value};

use super::page::{Page, shorten};
use crate::ops::inspect::{HashFacts, HeaderFacts};

/// Most columns of one value.
const MAX_VALUE: usize = 56;

/// Most tags that are shown.
const MAX_TAGS: usize = 12;

/// What is told of each topic: the key without its prefix, and the words in front of its value.
const NETWORK: [(&str, &str); 5] = [
    ("network_module", ""),
    ("network_dim", "dim"),
    ("network_alpha", "alpha"),
    ("network_dropout", "dropout"),
    ("network_args", ""),
];
const RUN: [(&str, &str); 13] = [
    ("output_name", ""),
    ("title", ""),
    ("author", "by"),
    ("num_epochs", "epochs"),
    ("steps", "steps"),
    ("max_train_steps", "of"),
    ("seed", "seed"),
    ("mixed_precision", ""),
    ("clip_skip", "clip skip"),
    ("training_started_at", "from"),
    ("training_finished_at", "to"),
    ("training_comment", "comment"),
    ("trigger_phrase", "trigger"),
];
const DATASET: [(&str, &str); 5] = [
    ("num_train_images", "images"),
    ("num_reg_images", "regularisation images"),
    ("resolution", "resolution"),
    ("total_batch_size", "batch"),
    ("batch_size_per_device", "batch per device"),
];
const OPTIMISER: [(&str, &str); 6] = [
    ("optimizer", ""),
    ("learning_rate", "lr"),
    ("unet_lr", "unet lr"),
    ("text_encoder_lr", "text encoder lr"),
    ("lr_scheduler", ""),
    ("lr_warmup_steps", "warmup"),
];

/// Whether a metadata key is told here, or stands for nothing.
pub fn is_told(key: &str) -> bool {
    key == "format"
        || key == "lorakit"
        || ["ss_", "sshs_", "modelspec.", "ot_"].iter().any(|prefix| key.starts_with(prefix))
}

/// The topics, tags and hashes.
pub fn describe(page: &mut Page, facts: &HeaderFacts) {
    if let Some(training) = &facts.training {
        page.line("network", &topic(&training.network, &NETWORK));
        page.line("run", &topic(&training.run, &RUN));
        page.line("dataset", &topic(&training.dataset, &DATASET));
        page.line("optimiser", &topic(&training.optimiser, &OPTIMISER));
        let tags: Vec<String> =
            training.tags.iter().take(MAX_TAGS).map(|tag| format!("{} ({})", tag.tag, tag.count)).collect();
        let more = match training.tag_count.saturating_sub(tags.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        page.line("tags", &format!("{}{more}", tags.join(", ")));
    }
    for HashFacts { key, stored, computed, matches } in &facts.hashes {
        let text = match (matches, stored, computed) {
            (Some(true), Some(stored), _) => format!("{stored} (matches)"),
            (Some(false), Some(stored), Some(computed)) => format!("{stored}, but the tensors give {computed}"),
            (_, Some(stored), Some(_)) => format!("{stored} (of the tensors in an order the file does not keep)"),
            (_, Some(stored), None) => format!("{stored} (not checked: `--check` reads the file)"),
            (_, None, computed) => computed.clone().unwrap_or_default(),
        };
        page.line("hash", &format!("{key} {text}"));
    }
}

fn topic(values: &Map<String, Value>, told: &[(&str, &str)]) -> String {
    let value = |(name, words): &(&str, &str)| {
        let ends = |key: &str| key.strip_prefix("ss_").or_else(|| key.strip_prefix("modelspec.")) == Some(*name);
        let (_, value) = values.iter().find(|(key, _)| ends(key))?;
        let value = text(value)?;
        Some(if words.is_empty() { value } else { format!("{words} {value}") })
    };
    told.iter().filter_map(value).collect::<Vec<_>>().join(", ")
}

fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Object(object) => {
            let pairs = object.iter().filter_map(|(key, value)| Some(format!("{key}={}", text(value)?)));
            pairs.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    (!text.is_empty()).then(|| shorten(&text, MAX_VALUE))
}
