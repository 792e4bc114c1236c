//! What lies below a folder without weights: often one level too high was named, a folder of several models or of the cache.

use std::fs;
use std::path::{Path, PathBuf};

use super::discover::holds_weights;
use crate::error::Error;

/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 3;

/// Most entries of folders that are looked at.
const MAX_ENTRIES: usize = 4096;

/// How many names are shown.
const SHOWN: usize = 3;

/// What makes a folder an adapter's.
const ADAPTER: &str = "adapter_config.json";

/// The refusal of a folder without weights.
pub fn nothing(directory: &Path) -> Error {
    let (mut found, mut left) = (Vec::new(), MAX_ENTRIES);
    walk(directory, 0, &mut left, &mut found);
    found.sort();
    let is_adapter = |folder: &PathBuf| folder.join(ADAPTER).is_file();
    let (adapters, models): (Vec<PathBuf>, Vec<PathBuf>) = found.into_iter().partition(is_adapter);
    let (kind, shown) = if models.is_empty() { ("adapters", &adapters) } else { ("weights", &models) };
    if shown.is_empty() {
        return Error::unsupported(directory, "holds no weights that can be read: safetensors, PyTorch, numpy or GGUF");
    }
    let name = |folder: &PathBuf| format!("`{}`", folder.strip_prefix(directory).unwrap_or(folder).display());
    let names: Vec<String> = shown.iter().take(SHOWN).map(name).collect();
    let more = if shown.len() > SHOWN { " …" } else { "" };
    let what = format!("holds no weights itself, but {kind} lie below it: {}{more}", names.join(", "));
    let error = Error::unsupported(directory, what);
    match models.as_slice() {
        [] => error,
        [one] => error.hint(format!("name that folder: `{}`", one.display())),
        [first, ..] => error.hint(format!("name one of them, as `{}`", first.display())),
    }
}

fn walk(folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(rest) = left.checked_sub(1) else { return };
        *left = rest;
        // Links can lead back.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let inner = entry.path();
        if holds_weights(&inner).unwrap_or(false) {
            found.push(inner);
        } else if depth + 1 < MAX_DEPTH {
            walk(&inner, depth + 1, left, found);
        }
    }
}
