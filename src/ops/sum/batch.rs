//! `resize`: adapters, or folders of them, each on its own: what is to be done, and what is done already.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::summary::{AdapterResize, Outcome, ResizeReport, Resized};
use super::{Method, Opened, SumOptions};
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::{is_adapter, recognise};
use crate::error::{Blame, Error, Result};
use crate::formats::Checkpoint;
use crate::io::{is_replaceable, name_of, sweep_leftovers, unwatched};
use crate::output::files::record_of;
use crate::output::new_adapter::RECIPE;
use crate::output::recipe::PROVENANCE;
use crate::output::{Run, WriteOptions};

/// Resizes adapters. With several, one that fails does not keep the others from being done.
///
/// # Errors
/// When the options make no sense, the only adapter cannot be resized, or the run is interrupted.
pub fn resize(options: &SumOptions, run: &Run<'_>) -> Result<ResizeReport> {
    let started = Instant::now();
    if !options.keeps_the_rest() || options.method != Method::Concat {
        return Err(Error::invalid("operation", "a sum is no `resize`, which takes adapters one by one"));
    }
    options.check()?;
    let (mut adapters, mut failed) = (Vec::new(), 0);
    let paths: Vec<PathBuf> = options.adapters.iter().map(|(path, _)| path.clone()).collect();
    match inputs(&paths)? {
        Named::One(path) => {
            let out = options.write.out.clone();
            let outcome = one(&SumOptions { adapters: vec![(path.clone(), 1.0)], ..options.clone() }, false, run)?;
            adapters.push(AdapterResize { path, out, outcome });
        }
        Named::Several(inputs) => {
            if let Some(extra) = options.init_adapters.first() {
                let problem = format!("`{}`: untrained factors are for a single adapter", extra.display());
                return Err(Error::invalid("--init-adapter", problem));
            }
            let _folder = OutFolder::make(&options.write)?;
            for (path, name) in inputs {
                let out = options.write.out.join(options.dialect.file_name(&name));
                // A dry run makes no folder: there is a place in it if there is one for it.
                let place = if options.write.out.is_dir() { &out } else { &options.write.out };
                let write = WriteOptions { out: place.clone(), ..options.write.clone() };
                let own = SumOptions { adapters: vec![(path.clone(), 1.0)], write, ..options.clone() };
                if !own.write.dry_run {
                    // Of a run that was killed after this one was done, which is then not written again.
                    sweep_leftovers(&out);
                }
                let outcome = match one(&own, !own.write.force, run) {
                    Ok(outcome) => outcome,
                    Err(error) if matches!(error.blame(), Blame::Interrupted) => return Err(error),
                    Err(error) => {
                        failed += 1;
                        Outcome::Failed { problem: error.to_string(), hint: error.way_out().map(str::to_owned) }
                    }
                };
                adapters.push(AdapterResize { path, out, outcome });
            }
        }
    }
    Ok(ResizeReport {
        out: options.write.out.clone(),
        to: options.dialect.name(),
        dry_run: options.write.dry_run,
        adapters,
        failed,
        seconds: started.elapsed().as_secs_f64(),
        peak_resident_bytes: None,
    })
}

/// Resizes the only adapter, unless it may be `done` and is.
fn one(options: &SumOptions, done: bool, run: &Run<'_>) -> Result<Outcome> {
    let opened = Opened::read(options)?;
    if done && is_done(&options.write.out, &opened.recipe)? {
        return Ok(Outcome::Done);
    }
    let (made, _) = opened.write(options, run)?;
    let alpha_from = opened.sources[0].adapter.config.alpha_from.clone();
    Ok(Outcome::Resized(Box::new(Resized { alpha_from, made })))
}

/// What was named.
enum Named {
    /// A single adapter.
    One(PathBuf),
    /// Adapters with the names of their outputs.
    Several(Vec<(PathBuf, String)>),
}

/// The adapters that `paths` name, themselves or by the folder they lie in.
///
/// # Errors
/// When a folder holds no adapters, or two adapters have one name.
fn inputs(paths: &[PathBuf]) -> Result<Named> {
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
struct OutFolder<'a> {
    made: Option<&'a Path>,
}

impl<'a> OutFolder<'a> {
    /// Makes the folder, unless it is there.
    ///
    /// # Errors
    /// When it cannot be made.
    fn make(write: &'a WriteOptions) -> Result<Self> {
        let out = &write.out;
        if write.dry_run || out.is_dir() {
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
fn is_done(out: &Path, recipe: &Value) -> Result<bool> {
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
        None => file.files().first()?.header.metadata.iter().find(|(key, _)| key == RECIPE).map(|(_, text)| text)?,
    };
    serde_json::from_str(text).ok()
}
