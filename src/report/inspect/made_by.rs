//! What a file that lorakit wrote says of its own making, in one line.

use serde_json::Value;

use super::page::Page;
use crate::formats::Checkpoint;

/// Key of the recipe in the header of a weight file.
const RECIPE: &str = "lorakit";

/// Most inputs that are named.
const SHOWN: usize = 4;

/// The line, if the first file has a recipe.
pub fn line(page: &mut Page, tensors: &Checkpoint) {
    let metadata = tensors.files().first().map(|file| file.header.metadata.as_slice()).unwrap_or_default();
    let recipe = metadata.iter().find(|(key, _)| key == RECIPE).and_then(|(_, text)| serde_json::from_str(text).ok());
    if let Some(said) = recipe.as_ref().and_then(said) {
        page.line("made by", &said);
    }
}

fn said(recipe: &Value) -> Option<String> {
    let operation = recipe.get("operation").and_then(Value::as_str).unwrap_or("merge");
    let version = recipe.get("lorakit")?.as_str()?;
    let name = |entry: &Value| entry.get("name")?.as_str().map(str::to_owned);
    let models = ["base", "tuned", "merged", "input"].into_iter().filter_map(|key| recipe.get(key).and_then(name));
    let adapters = recipe.get("adapters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let adapter = |entry: &Value| {
        let weight = entry.get("weight").and_then(Value::as_f64).map_or(String::new(), |weight| format!(" × {weight}"));
        name(entry).map(|name| format!("{name}{weight}"))
    };
    let inputs: Vec<String> = models.chain(adapters.iter().take(SHOWN).filter_map(adapter)).collect();
    let more = if adapters.len() > SHOWN { " …" } else { "" };
    Some(format!("lorakit {version}: {operation} of {}{more}", inputs.join(" + ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_told_in_one_line() {
        let recipe = serde_json::json!({
            "lorakit": "1.0", "operation": "merge", "base": {"name": "llama"},
            "adapters": [{"name": "style", "weight": 0.5}],
        });
        assert_eq!(said(&recipe).as_deref(), Some("lorakit 1.0: merge of llama + style × 0.5"));
        assert_eq!(said(&Value::Null), None);
    }
}
