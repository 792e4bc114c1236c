//! What lies beside the weights: config, companions, index and sidecar; and where an output may not lie.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::WriteOptions;
use super::arrange::indexes;
use super::files::{Expected, Output, check_early};
use super::options::named_like;
use super::provenance::{Edits, edited_config};
use super::recipe::SIDECAR;
use crate::error::{Error, Result};
use crate::formats::Container;
use crate::formats::companions::{self, Left};
use crate::formats::gguf::is_gguf_name;
use crate::io::Inputs;
use crate::model::base::Base;
use crate::plan::Plan;

/// What the owner of the config has to do.
const UNTIED: &str = "the head has its own tensor now: `tie_word_embeddings` must be false in the config of the model";

/// What a single file of a model that was a directory lacks.
const ALONE: &str =
    "one file holds the weights alone: config, tokenizer and the other files of BASE stay where they are";

/// What was said while the side files were put together.
#[derive(Debug, Default)]
pub struct Added {
    /// What was corrected in config.json.
    pub config_changes: Vec<String>,
    /// Notes.
    pub notes: Vec<String>,
}

/// The output must be none of the `inputs`, nor hold one, nor lie where its kind does not fit. `base` gives it its layout.
///
/// # Errors
/// When it does, naming both.
pub fn check_out(write: &WriteOptions, base: &Base, inputs: &Inputs) -> Result<()> {
    let out = write.out.as_path();
    check_format(out, base)?;
    if let Some(named) = named_like(out).filter(|named| !named.is_written) {
        let problem = format!("`{}` is named like {}, which is read and not written", out.display(), named.called);
        let other = if base.view.is_some() { "gguf" } else { "safetensors" };
        return Err(Error::invalid("--out", problem).hint(format!("`-o {}`", out.with_extension(other).display())));
    }
    if matches!(base.checkpoint.container(), Container::Pipeline(_)) && has_weight_name(out) {
        let problem = format!("`{}` is named like a file, the base is a pipeline of several models", out.display());
        return Err(Error::invalid("--out", problem).hint("name a directory"));
    }
    check_early(write, inputs, &Expected::Planned)
}

fn has_weight_name(path: &Path) -> bool {
    named_like(path).is_some_and(|format| format.is_written)
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
    let is_pipeline = matches!(base.checkpoint.container(), Container::Pipeline(_));
    let single_file = !is_pipeline && has_weight_name(&write.out);
    Output { plan, written: Vec::new(), copied: Vec::new(), record: None, single_file, inputs: Vec::new() }
}

/// Adds config, companions, index and sidecar.
///
/// # Errors
/// When the base's directory cannot be read, or the output cannot be what the options ask for.
pub fn add(output: &mut Output, write: &WriteOptions, base: &Base, edits: &Edits, recipe: &Value) -> Result<Added> {
    let mut added = Added::default();
    output.record = Some(recipe.clone());
    if output.single_file {
        if write.part.is_some() || output.plan.files.len() > 1 {
            write.fits_one_file()?;
        }
        // llama.cpp looks whether there is a head.
        if edits.untied && base.view.is_none() {
            added.notes.push(UNTIED.into());
        }
        if base.view.is_none() && !matches!(base.checkpoint.container(), Container::File | Container::Split) {
            added.notes.push(ALONE.into());
        }
        return Ok(added);
    }
    output.written.extend(indexes(base, write, &output.plan.files));
    if matches!(base.checkpoint.container(), Container::File | Container::Split) {
        return Ok(added);
    }
    let found = companions::list(base.checkpoint.directory())?;
    let config_left = found.is_left(Path::new("config.json"), Left::LinkOut);
    let config = edited_config(base, write, edits).filter(|_| base.view.is_none() && !config_left);
    let written = |path: &Path| output.written.iter().any(|(other, _)| other == path);
    added.notes.extend(found.notes(|path| !written(path)));
    if config_left && edits.untied {
        added.notes.push(UNTIED.into());
    }
    for path in found.copied {
        let written = output.written.iter().any(|(other, _)| *other == path);
        if path == Path::new("config.json") && config.is_some()
            || path == Path::new(SIDECAR)
            || written
            || base.is_said_in(&path) && !edits.keeps_format
        {
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
        .weights
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
