//! How a sum was made, as its record tells: it depends on the inputs and options alone.

use serde_json::{Map, Value, json};

use super::{Method, Rule, SumOptions};
use crate::error::Result;
use crate::io::name_of;
use crate::linalg::Compute;
use crate::output::new_adapter::ToDialect;
use crate::output::recipe::adapter_hashes;
use crate::placement::Applied;

/// The record of the sum of `sources`, which is written in `dialect`.
///
/// # Errors
/// When a file to be hashed cannot be read.
pub fn recipe(options: &SumOptions, dialect: &ToDialect, sources: &[Applied]) -> Result<Value> {
    let mut recipe = Map::new();
    recipe.insert("lorakit".into(), env!("CARGO_PKG_VERSION").into());
    recipe.insert("operation".into(), options.operation.name().into());
    if !options.keeps_the_rest() {
        recipe.insert("method".into(), options.method.name().into());
    }
    let entries = sources.iter().map(|source| entry(options, source)).collect::<Result<Vec<_>>>()?;
    recipe.insert("adapters".into(), entries.into());
    recipe.insert("options".into(), chosen(options, dialect).into());
    Ok(recipe.into())
}

fn entry(options: &SumOptions, source: &Applied) -> Result<Value> {
    let adapter = &source.adapter;
    let resized = options.keeps_the_rest();
    let (key, value) = match resized {
        true => ("method", json!(adapter.config.method)),
        false => ("weight", json!(source.strength)),
    };
    let mut entry = json!({ "name": name_of(&adapter.root), key: value, "blake3": adapter_hashes(adapter)? });
    if let Some(init) = &source.init {
        entry["init"] = json!({ "name": name_of(&init.root), "blake3": adapter_hashes(init)? });
    }
    if let Some((original, _)) = source.original.as_ref().filter(|_| !resized) {
        entry["init"] = json!({ "base": { "name": name_of(original.base.checkpoint.root()) } });
    }
    Ok(entry)
}

/// The options that differ from their defaults and change bytes.
fn chosen(options: &SumOptions, dialect: &ToDialect) -> Map<String, Value> {
    let mut chosen = Map::new();
    if let Method::Elementwise(pruning) = options.method {
        chosen.insert("density".into(), pruning.density.into());
        chosen.insert("seed".into(), pruning.seed.into());
        if let Rule::Ties(majority) | Rule::DareTies(majority) = pruning.rule {
            chosen.insert("majority".into(), format!("{majority:?}").to_lowercase().into());
        }
    }
    let dtype = options.write.dtype;
    match &options.rank {
        Some(rank) => {
            chosen.insert("ranks".into(), rank.recipe().into());
            // LoRA, which `resize` takes alone, is truncated exactly.
            let compute = if options.keeps_the_rest() { Compute::Accurate } else { options.compute };
            chosen.extend(rank.recipe_of_form(options.alpha, compute, dtype));
        }
        None => {
            chosen.extend(options.alpha.map(|alpha| ("alpha".to_owned(), alpha.into())));
            chosen.extend(dtype.map(|float| ("dtype".to_owned(), float.dtype().name().into())));
        }
    }
    chosen.extend(options.base.as_ref().map(|base| ("base".to_owned(), name_of(base).into())));
    chosen.extend(options.intruders.as_ref().map(|intruders| ("remove_intruders".to_owned(), intruders.recipe())));
    let selection = &options.selection;
    for (key, patterns) in [("include", &selection.include), ("exclude", &selection.exclude)] {
        if !patterns.is_empty() {
            chosen.insert(key.into(), patterns.iter().map(ToString::to_string).collect::<Vec<String>>().into());
        }
    }
    chosen
        .extend(selection.weights.iter().map(|(pattern, weight)| (format!("weight_for {pattern}"), (*weight).into())));
    chosen.extend(selection.blocks.as_ref().map(|blocks| ("lbw".to_owned(), blocks.written().into())));
    dialect.note(&mut chosen);
    chosen
}
