//! What a trainer wrote about its run into the free text of a header, sorted by topic.
//!
//! Facts: sd-scripts `library/train_util.py` (the `ss_` keys), `library/sai_model_spec.py` (ModelSpec 1.0). All values are texts;
//! numbers, truth values and JSON are read as what they are, `None` and empty ones left out, seconds since 1970 become dates.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::dates;

/// How many of the most frequent tags are told.
const TOP_TAGS: usize = 20;

/// Prefixes of keys that trainers write; others are left as they are.
const PREFIXES: [&str; 3] = ["ss_", "modelspec.", "ot_"];

/// Where the keys belong, without their prefix. What is in no row is in [`Training::other`].
const BASE: &str = "\
    base_model_version sd_model_name sd_model_hash new_sd_model_hash vae_name vae_hash new_vae_hash v2 architecture \
    prediction_type resolution timestep_range encoder_layer zero_terminal_snr";
const NETWORK: &str = "\
    network_module network_dim network_alpha network_args network_dropout scale_weight_norms implementation";
const DATASET: &str = "\
    num_train_images num_reg_images num_batches_per_epoch batch_size_per_device total_batch_size resolution \
    enable_bucket bucket_info bucket_no_upscale min_bucket_reso max_bucket_reso dataset_dirs reg_dataset_dirs \
    datasets shuffle_caption keep_tokens caption_dropout_rate caption_tag_dropout_rate cache_latents color_aug \
    flip_aug random_crop";
const OPTIMISER: &str = "\
    optimizer learning_rate unet_lr text_encoder_lr lr_scheduler lr_warmup_steps max_grad_norm prior_loss_weight \
    min_snr_gamma loss_type";
const RUN: &str = "\
    output_name training_started_at training_finished_at session_id epoch num_epochs steps max_train_steps \
    gradient_accumulation_steps gradient_checkpointing mixed_precision full_fp16 seed clip_skip max_token_length \
    noise_offset training_comment title author date description license tags trigger_phrase";

/// What is known of a training run, by the key that says it.
#[derive(Debug, Default, Serialize)]
pub struct Training {
    /// The model it started from.
    pub base: Map<String, Value>,
    /// The kind of adapter and its size.
    pub network: Map<String, Value>,
    /// When, how long, with what settings, and how the result is called.
    pub run: Map<String, Value>,
    /// The images and their preparation.
    pub dataset: Map<String, Value>,
    /// Optimiser and learning rates.
    pub optimiser: Map<String, Value>,
    /// Whatever else the trainer wrote.
    pub other: Map<String, Value>,
    /// The most frequent tags of the captions.
    pub tags: Vec<Tag>,
    /// Different tags.
    pub tag_count: usize,
}

/// A word or phrase of the captions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tag {
    /// As it is written.
    pub tag: String,
    /// How many captions have it, in all datasets.
    pub count: u64,
}

impl Training {
    /// Sorts what `metadata` says; `None` where no trainer wrote anything.
    pub fn of<'a>(metadata: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let mut found = Self::default();
        let mut any = false;
        for (key, text) in metadata {
            let Some(name) = PREFIXES.iter().find_map(|prefix| key.strip_prefix(prefix)) else { continue };
            any = true;
            if key == "ss_tag_frequency" {
                found.count_tags(text);
                continue;
            }
            if let Some(value) = read(name, text) {
                found.topic(key, name).insert(key.to_owned(), value);
            }
        }
        any.then_some(found)
    }

    fn topic(&mut self, key: &str, name: &str) -> &mut Map<String, Value> {
        // The resolution of a model, and that of a dataset.
        let is_spec = key.starts_with("modelspec.");
        let has = |topic: &str| topic.split(' ').any(|known| known == name);
        if has(BASE) && (is_spec || name != "resolution") {
            &mut self.base
        } else if has(NETWORK) {
            &mut self.network
        } else if has(DATASET) {
            &mut self.dataset
        } else if has(OPTIMISER) {
            &mut self.optimiser
        } else if has(RUN) {
            &mut self.run
        } else {
            &mut self.other
        }
    }

    fn count_tags(&mut self, text: &str) {
        let Ok(Value::Object(datasets)) = serde_json::from_str(text) else { return };
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (tag, count) in datasets.values().filter_map(Value::as_object).flatten() {
            let sum = counts.entry(tag.trim()).or_default();
            *sum = sum.saturating_add(count.as_u64().unwrap_or(0));
        }
        self.tag_count = counts.len();
        let mut counts: Vec<(&str, u64)> = counts.into_iter().collect();
        counts.sort_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(right.0)));
        let tag = |(tag, count): (&str, u64)| Tag { tag: tag.to_owned(), count };
        self.tags = counts.into_iter().take(TOP_TAGS).map(tag).collect();
    }
}

/// A value as what it is.
fn read(name: &str, text: &str) -> Option<Value> {
    let trimmed = text.trim();
    match trimmed {
        "" | "None" | "null" => return None,
        "True" | "true" => return Some(true.into()),
        "False" | "false" => return Some(false.into()),
        _ => {}
    }
    if name.ends_with("_at") {
        let date = trimmed.parse().ok().and_then(dates::utc);
        return Some(date.map_or_else(|| text.into(), Value::String));
    }
    // Names and hashes of digits are no numbers.
    let is_text = name.ends_with("hash") || name.ends_with("name") || name.ends_with("_id") || name.ends_with("title");
    match serde_json::from_str(trimmed) {
        Ok(Value::Number(number)) if !is_text => Some(Value::Number(number)),
        Ok(value @ (Value::Object(_) | Value::Array(_))) => Some(value),
        _ => Some(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_topic_gets_its_keys_and_values_are_what_they_are() {
        let found = Training::of(
            [
                ("format", "pt"),
                ("ss_sd_model_name", "123"),
                ("modelspec.resolution", "1024x1024"),
                ("ss_resolution", "(512, 512)"),
                ("ss_network_dim", "16"),
                ("ss_network_args", r#"{"conv_dim": "4"}"#),
                ("ss_unet_lr", "1e-4"),
                ("ss_text_encoder_lr", "None"),
                ("ss_training_started_at", "1709164800.25"),
                ("ss_flip_aug", "False"),
                ("ss_new_thing", "x"),
                ("ss_tag_frequency", r#"{"a": {"cat": 3, "dog ": 1}, "b": {"dog": 4, "bird": 4}}"#),
            ]
            .into_iter(),
        )
        .expect("a trainer wrote this");
        assert_eq!(Value::from(found.base), json!({"ss_sd_model_name": "123", "modelspec.resolution": "1024x1024"}));
        assert_eq!(Value::from(found.network), json!({"ss_network_dim": 16, "ss_network_args": {"conv_dim": "4"}}));
        assert_eq!(Value::from(found.run), json!({"ss_training_started_at": "2024-02-29 00:00:00 UTC"}));
        assert_eq!(Value::from(found.dataset), json!({"ss_resolution": "(512, 512)", "ss_flip_aug": false}));
        assert_eq!(Value::from(found.optimiser), json!({"ss_unet_lr": 1e-4}));
        assert_eq!(Value::from(found.other), json!({"ss_new_thing": "x"}));
        let tags: Vec<(&str, u64)> = found.tags.iter().map(|tag| (tag.tag.as_str(), tag.count)).collect();
        assert_eq!((tags, found.tag_count), (vec![("dog", 5), ("bird", 4), ("cat", 3)], 3));
    }

    #[test]
    fn a_header_without_a_trainer_has_no_training() {
        assert!(Training::of([("format", "pt")].into_iter()).is_none());
    }
}
