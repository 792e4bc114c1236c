//! What trainers wrote about the adapters that are summed: it is taken along, as far as it is true of the sum.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::adapters::Adapter;

/// Beginnings of the keys of training metadata.
const PREFIXES: [&str; 2] = ["ss_", "modelspec."];

/// Tags of captions with their numbers, folder by folder.
const TAGS: &str = "ss_tag_frequency";

/// Words that call what was trained.
const TRIGGER: &str = "modelspec.trigger_phrase";

/// Most keys that a note names.
const NAMED: usize = 4;

/// Adds to `metadata` what is said of `adapters`: what all that say it agree on; tags and trigger words of all. Gives what is to be
/// said of the rest.
pub fn take_along(adapters: &[&Adapter], metadata: &mut Vec<(String, String)>) -> Option<String> {
    let all = adapters.iter().flat_map(|adapter| &adapter.tensors.files()[0].header.metadata);
    // In the order they come; a header may hold very many keys.
    let mut said: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (key, text) in all.filter(|(key, _)| PREFIXES.iter().any(|prefix| key.starts_with(prefix))) {
        let at = *places.entry(key).or_insert(said.len());
        if at == said.len() {
            said.push((key, Vec::new()));
        }
        said[at].1.push(text);
    }
    let mut left = Vec::new();
    for (key, mut values) in said {
        values.dedup();
        let value = match (values.as_slice(), key) {
            ([one], _) => Some((*one).to_owned()),
            (several, TAGS) => tags(several),
            (several, TRIGGER) => Some(several.join(", ")),
            _ => None,
        };
        match value {
            Some(value) => metadata.push((key.to_owned(), value)),
            None => left.push(format!("`{key}`")),
        }
    }
    let shown = left.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = left.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!left.is_empty()).then(|| format!("metadata in which the adapters differ are left out: {shown}{more}"))
}

/// The tags of all folders; of folders of one name the sums.
fn tags(texts: &[&str]) -> Option<String> {
    let mut sum: Map<String, Value> = Map::new();
    for text in texts {
        let folders: Map<String, Value> = serde_json::from_str(text).ok()?;
        for (folder, tags) in folders {
            let tags = tags.as_object()?.clone();
            let known = sum.entry(folder).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
            for (tag, count) in tags {
                let before = known.get(&tag).and_then(Value::as_u64).unwrap_or(0);
                known.insert(tag, count.as_u64()?.saturating_add(before).into());
            }
        }
    }
    Some(Value::Object(sum).to_string())
}
