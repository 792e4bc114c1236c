//! Several adapters, or folders of them: what is to be done, and what is done already.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ResizeOptions;
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::{is_adapter, recognise};
use crate::error::{Error, Result};
use crate::formats::Checkpoint;
use crate::io::name_of;
use crate::io::{is_replaceable, unwatched};
use crate::output::files::record_of;
use crate::output::recipe::PROVENANCE;

/// What was named.
pub enum Named {
    /// A single adapter.
    One(PathBuf),
    /// Adapters with the names of their outputs.
    Several(Vec<(PathBuf, String)>),
}

/// The adapters that `paths` name, themselves or by the folder they lie in.
///
/// # Errors
/// When a folder holds no adapters, or two adapters have one name.
pub fn inputs(paths: &[PathBuf]) -> Result<Named> {
    let mut all = Vec::new();
    for path in paths {
        let folder = if path.is_dir() && !is_adapter(path) { Some(adapters_in(path)) } else { None };
        // Without adapters below it, a folder may hold the weights of one.
        let folder = folder.filter(|below| below.is_ok() || !recognise(path).0);
        if let Some(below) = folder {
            all.extend(below?);
        } else if paths.len() == 1 {
            return Ok(Named::One(path.clone()));
        } else {
            all.push(path.clone());
        }
    }
    let mut named: BTreeMap<String, &PathBuf> = BTreeMap::new();
    for path in &all {
        let directory = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        // As it is written, unless that is no name, as `.`.
        let written = directory.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = written.unwrap_or_else(|| name_of(directory));
        if let Some(other) = named.insert(name.clone(), path) {
            let (left, right) = (other.display().to_string(), path.display().to_string());
            let problem = format!("the outputs of both would be called `{name}`");
            return Err(Error::mismatch(left, right, problem).hint("resize one of them on its own"));
        }
    }
    Ok(Named::Several(named.into_iter().map(|(name, path)| (path.clone(), name)).collect()))
}

fn adapters_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let cannot = |source| Error::io(folder, "cannot list", source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden && is_adapter(&path) {
            found.push(path);
        }
    }
    if found.is_empty() {
        let what = format!("holds no `{CONFIG_NAME}`, and no folder in it does");
        return Err(
            Error::unsupported(folder, what).hint("name the directory of an adapter, or one that holds several")
        );
    }
    found.sort();
    Ok(found)
}

/// The folder that the outputs of several adapters lie in. Where it was made for them and none came, it goes again.
pub struct OutFolder<'a> {
    made: Option<&'a Path>,
}

impl<'a> OutFolder<'a> {
    /// Makes the folder, unless it is there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(options: &'a ResizeOptions) -> Result<Self> {
        let out = &options.write.out;
        if options.write.dry_run || out.is_dir() {
            return Ok(Self { made: None });
        }
        fs::create_dir_all(out).map_err(|source| Error::io(out, "cannot create", source))?;
        Ok(Self { made: Some(out) })
    }
}

impl Drop for OutFolder<'_> {
    fn drop(&mut self) {
        // Only an empty folder can be removed like this.
        let _ = self.made.map(fs::remove_dir);
    }
}

/// Whether `out` is what `recipe` makes.
///
/// # Errors
/// When something else is there.
pub fn is_done(out: &Path, recipe: &Value) -> Result<bool> {
    if fs::symlink_metadata(out).is_err() {
        return Ok(false);
    }
    if recipe_of(out).is_some_and(|found| found == *recipe) {
        return Ok(true);
    }
    let hint = if is_replaceable(out) { "`--force` replaces it" } else { "name another output" };
    Err(Error::unsupported(out, "exists, and was not made from this adapter with these options").hint(hint))
}

/// How what lies at `out` was made, if it says so: beside its weights, or a single file in its header.
fn recipe_of(out: &Path) -> Option<Value> {
    if out.is_dir() {
        return record_of(out);
    }
    let file = unwatched(|| Checkpoint::open(out)).ok()?;
    let text = match file.gguf() {
        Some(metadata) => metadata.text(PROVENANCE)?,
        None => file.files().first()?.header.metadata.iter().find(|(key, _)| key == "lorakit").map(|(_, text)| text)?,
    };
    serde_json::from_str(text).ok()
}
