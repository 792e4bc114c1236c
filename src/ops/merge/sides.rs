//! What lies beside the weights: config, companions, index and sidecar; and where an output may not lie.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::applied::Applied;
use super::arrange::indexes;
use super::provenance::{Edits, edited_config};
use crate::error::{Error, Result};
use crate::formats::gguf::is_gguf_name;
use crate::formats::{Container, companions, json};
use crate::io::MappedFile;
use crate::ops::WriteOptions;
use crate::ops::base::Base;
use crate::ops::output::Output;
use crate::ops::recipe::{SIDECAR, sidecar_beside};
use crate::plan::Plan;

/// What was said while the side files were put together.
#[derive(Debug, Default)]
pub struct Added {
    /// What was corrected in config.json.
    pub config_changes: Vec<String>,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

/// The output must be none of the inputs, nor hold one, nor lie where its kind does not fit. The first of `models` gives it its
/// layout.
///
/// # Errors
/// When it does, naming both.
pub fn check_out(out: &Path, models: &[&Base], applied: &[Applied]) -> Result<()> {
    check_format(out, models[0])?;
    if models[0].view.is_none() && models[0].checkpoint.container() != &Container::File && has_weight_name(out) {
        return Err(Error::invalid(
            "--out",
            format!("`{}` is named like a file, the base is a directory", out.display()),
        )
        .hint("the output has the layout of the base: name a directory"));
    }
    let Ok(place) = std::fs::canonicalize(out) else { return Ok(()) };
    let of_adapter = |applied: &'_ Applied| {
        let original = applied.original.as_ref().map(|(original, _)| original.base.checkpoint.root().to_path_buf());
        [Some(applied.adapter.root.clone()), applied.init.as_ref().map(|init| init.root.clone()), original]
    };
    let roots = models.iter().map(|model| model.checkpoint.root().to_path_buf());
    for input in roots.chain(applied.iter().flat_map(of_adapter).flatten()) {
        let Ok(input_place) = std::fs::canonicalize(&input) else { continue };
        if input_place.starts_with(&place) {
            let what = format!("the output would take the place of the input `{}`", input.display());
            return Err(Error::unsupported(out, what).hint("name another output"));
        }
    }
    let held = models.iter().flat_map(|model| model.checkpoint.files()).map(|file| &file.map);
    let mut held = held.chain(applied.iter().flat_map(|applied| applied.adapter.tensors.files()).map(|file| &file.map));
    if out.is_file()
        && let Ok(existing) = MappedFile::open(out)
        && let Some(same) = held.find(|map| map.identity() == existing.identity())
    {
        let what = format!("the output is the input `{}` under another name", same.path().display());
        return Err(Error::unsupported(out, what).hint("name another output"));
    }
    Ok(())
}

fn has_weight_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors") || is_gguf_name(path)
}

/// The output is of the base's format, and must not be called something else.
fn check_format(out: &Path, base: &Base) -> Result<()> {
    let (is, named) = (base.view.is_some(), is_gguf_name(out));
    if is == named || !has_weight_name(out) {
        return Ok(());
    }
    let (format, other) = if is { ("gguf", "safetensors") } else { ("safetensors", "gguf") };
    let problem = format!("`{}` is named like {other}, the base is {format}", out.display());
    Err(Error::invalid("--out", problem)
        .hint(format!("the output has the format of the base; `lorakit convert --to {other}` changes it")))
}

/// An output of the kind of `base`, with nothing beside its weights yet: a single file where the base is one.
pub fn output(plan: Plan, write: &WriteOptions, base: &Base) -> Output {
    let single = base.view.is_some() || base.checkpoint.container() == &Container::File;
    let single_file = single && has_weight_name(&write.out);
    Output { plan, written: Vec::new(), copied: Vec::new(), single_file, inputs: Vec::new() }
}

/// Adds config, companions, index and sidecar.
///
/// # Errors
/// When the base's directory cannot be read, or the output cannot be what the options ask for.
pub fn add(output: &mut Output, write: &WriteOptions, base: &Base, edits: &Edits, recipe: &Value) -> Result<Added> {
    let mut added = Added::default();
    let sidecar = json::render(recipe);
    if output.single_file {
        if write.part.is_some() || output.plan.files.len() > 1 {
            write.fits_one_file()?;
        }
        output.written.push((sidecar_beside(&write.out), sidecar));
        // llama.cpp looks whether there is a head.
        if edits.untied && base.view.is_none() {
            added.notes.push(
                "the head has its own tensor now: `tie_word_embeddings` must be false in the config of the model"
                    .into(),
            );
        }
        return Ok(added);
    }
    output.written.extend(indexes(base, write, &output.plan.files));
    output.written.push((PathBuf::from(SIDECAR), sidecar));
    if matches!(base.checkpoint.container(), Container::File | Container::Split) {
        return Ok(added);
    }
    let found = companions::list(base.checkpoint.directory())?;
    let config = edited_config(base, write, edits).filter(|_| base.view.is_none());
    for path in found.copied {
        let written = output.written.iter().any(|(other, _)| *other == path);
        if path == Path::new("config.json") && config.is_some() || written {
            continue;
        }
        let source = base.checkpoint.directory().join(&path);
        output.copied.push((path, source));
    }
    if let Some((contents, changes)) = config {
        output.written.push((PathBuf::from("config.json"), contents));
        added.config_changes = changes;
    }
    let own: Vec<PathBuf> = base.checkpoint.files().iter().map(|file| PathBuf::from(&file.name)).collect();
    let left: Vec<String> = found
        .left
        .iter()
        .filter(|path| !own.contains(path) && !path.to_string_lossy().ends_with(".index.json"))
        .map(|path| format!("`{}`", path.display()))
        .collect();
    if !left.is_empty() {
        let note = format!("not copied, since they are other weights that would not be merged: {}", left.join(", "));
        added.notes.push(note);
    }
    Ok(added)
}
