//! What a resized adapter says about its own making.

use serde_json::{Map, Value, json};

use super::ResizeOptions;
use crate::error::Result;
use crate::io::name_of;
use crate::output::recipe::adapter_hashes;
use crate::placement::Applied;

/// How the output is made. Depends on the inputs and options alone.
///
/// # Errors
/// When a file to be hashed cannot be read.
pub fn recipe(source: &Applied, options: &ResizeOptions) -> Result<Value> {
    let adapter = &source.adapter;
    let mut entry = json!({
        "name": name_of(&adapter.root),
        "method": adapter.config.method,
        "blake3": adapter_hashes(adapter)?,
    });
    if let Some(init) = &source.init {
        entry["init"] = json!({ "name": name_of(&init.root), "blake3": adapter_hashes(init)? });
    }
    Ok(json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": "resize",
        "adapters": [entry],
        "options": chosen(options),
    }))
}

fn chosen(options: &ResizeOptions) -> Value {
    let mut chosen = Map::new();
    let mut set = |key: &str, value: Value| chosen.insert(key.into(), value);
    let patterns = |patterns: &[regex::Regex]| patterns.iter().map(ToString::to_string).collect::<Vec<String>>();
    set("ranks", options.ranks.recipe());
    if let Some(alpha) = options.alpha {
        set("alpha", alpha.into());
    }
    if options.uniform_rank {
        set("uniform_rank", true.into());
    }
    if options.kohya {
        set("compat", "kohya".into());
    }
    if let Some(float) = options.write.dtype {
        set("dtype", float.dtype().name().into());
    }
    if let Some(base) = &options.base {
        set("base", name_of(base).into());
    }
    if !options.selection.include.is_empty() {
        set("include", patterns(&options.selection.include).into());
    }
    if !options.selection.exclude.is_empty() {
        set("exclude", patterns(&options.selection.exclude).into());
    }
    options.dialect.note(&mut chosen);
    chosen.into()
}
