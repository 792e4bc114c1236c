//! `lora_adapter_metadata` of diffusers: PEFT's settings, component by component, as JSON in the header of the file.

use std::collections::BTreeSet;

use foldhash::HashMap;
use serde_json::{Map, Value};

use crate::adapters::config::Scaling;
use crate::error::{Error, Result};
use crate::formats::Checkpoint;

/// Key of the header's metadata.
const KEY: &str = "lora_adapter_metadata";

/// Puts the scales that the metadata gives in place of the ones the tensors gave.
///
/// # Errors
/// When the metadata cannot be read.
pub(crate) fn rescale(tensors: &Checkpoint, scales: &mut HashMap<String, (u64, f64)>) -> Result<()> {
    for file in tensors.files() {
        let Some((_, text)) = file.header.metadata.iter().find(|(key, _)| key == KEY) else { continue };
        let at = format!("metadata `{KEY}`");
        let wrong = |problem: String| Error::malformed(file.map.path(), &at, problem);
        let all: Map<String, Value> =
            serde_json::from_str(text).map_err(|problem| wrong(format!("is not a JSON object: {problem}")))?;
        let components: BTreeSet<&str> =
            all.keys().filter_map(|key| key.split_once('.')).map(|(name, _)| name).collect();
        for component in components {
            let prefix = format!("{component}.");
            let own =
                all.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone())));
            let own: Map<String, Value> = own.collect();
            if !own.contains_key("r") || !own.contains_key("lora_alpha") {
                continue;
            }
            let scaling = Scaling::read(file.map.path(), &own)?;
            for (path, (rank, alpha)) in scales.iter_mut() {
                let Some(module) = path.strip_prefix(&prefix) else { continue };
                let wanted = scaling.alpha(module);
                *alpha = if scaling.is_rslora() { wanted * (*rank as f64).sqrt() } else { wanted };
            }
        }
    }
    Ok(())
}
