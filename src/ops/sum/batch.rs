//! `resize`: adapters, or folders of them, each on its own: what is to be done, and what is done already.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::named::{Named, inputs};
use super::summary::{AdapterResize, Outcome, ResizeReport, Resized};
use super::{Method, Opened, SumOptions};
use crate::error::{Blame, Error, Result};
use crate::formats::Checkpoint;
use crate::io::{is_replaceable, sweep_leftovers, unwatched};
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
    let (mut adapters, mut failed, mut skipped) = (Vec::new(), 0, Vec::new());
    let mut dialects: Vec<&'static str> = Vec::new();
    let paths: Vec<PathBuf> = options.adapters.iter().map(|(path, _)| path.clone()).collect();
    match inputs(&paths)? {
        Named::One(path) => {
            let own = SumOptions { adapters: vec![(path.clone(), 1.0)], ..options.clone() };
            let opened = Opened::read(&own)?;
            let outcome = one(&own, &opened, false, run)?;
            dialects.push(opened.dialect.name());
            adapters.push(AdapterResize { path, out: options.write.out.clone(), outcome });
        }
        Named::Several(inputs, others) => {
            skipped = others;
            if let Some(extra) = options.init_adapters.first() {
                let problem = format!("`{}`: untrained factors are for a single adapter", extra.display());
                return Err(Error::invalid("--init-adapter", problem));
            }
            let mut folder = OutFolder::make(&options.write)?;
            for (path, name) in inputs {
                let (out, outcome) = match several(options, &path, &name, &mut folder, &mut dialects, run) {
                    Ok(done) => done,
                    Err(error) if matches!(error.blame(), Blame::Interrupted) => return Err(error),
                    Err(error) => {
                        failed += 1;
                        let hint = error.way_out().map(str::to_owned);
                        (options.write.out.join(&name), Outcome::Failed { problem: error.to_string(), hint })
                    }
                };
                adapters.push(AdapterResize { path, out, outcome });
            }
        }
    }
    dialects.dedup();
    Ok(ResizeReport {
        out: options.write.out.clone(),
        to: match dialects.as_slice() {
            [] => options.dialect.name(),
            [one] => one,
            _ => "several dialects",
        },
        dry_run: options.write.dry_run,
        adapters,
        failed,
        skipped,
        seconds: started.elapsed().as_secs_f64(),
        peak_resident_bytes: None,
    })
}

/// Resizes one of several: where it goes, and what became of it.
fn several(
    options: &SumOptions,
    path: &Path,
    name: &Path,
    folder: &mut OutFolder<'_>,
    dialects: &mut Vec<&'static str>,
    run: &Run<'_>,
) -> Result<(PathBuf, Outcome)> {
    let write = WriteOptions { out: options.write.out.join(name), ..options.write.clone() };
    let mut own = SumOptions { adapters: vec![(path.to_owned(), 1.0)], write, ..options.clone() };
    let opened = Opened::read(&own)?;
    let text = name.to_string_lossy();
    let out = options.write.out.join(opened.dialect.file_name_of(&text, path.is_file()));
    // A dry run makes no folder: there is a place in it if there is one for it.
    own.write.out = match out.parent().is_some_and(Path::is_dir) {
        true => out.clone(),
        false if own.write.dry_run => options.write.out.clone(),
        false => {
            folder.make_for(&out)?;
            out.clone()
        }
    };
    if !own.write.dry_run {
        // Of a run that was killed after this one was done, which is then not written again.
        sweep_leftovers(&out);
    }
    let outcome = one(&own, &opened, !own.write.force, run)?;
    dialects.push(opened.dialect.name());
    Ok((out, outcome))
}

/// Resizes the only adapter, unless it may be `done` and is.
fn one(options: &SumOptions, opened: &Opened, done: bool, run: &Run<'_>) -> Result<Outcome> {
    if done && is_done(&options.write.out, &opened.recipe)? {
        return Ok(Outcome::Done);
    }
    let (made, _) = opened.write(options, run)?;
    let alpha_from = opened.sources[0].adapter.config.alpha_from.clone();
    Ok(Outcome::Resized(Box::new(Resized { to: opened.dialect.name(), alpha_from, made })))
}

/// The folder that the outputs of several adapters lie in. Where it was made for them and none came, it goes again.
struct OutFolder<'a> {
    /// The folder, if it was made here.
    made: Option<&'a Path>,
    /// Folders that were made in it.
    inner: Vec<PathBuf>,
}

impl<'a> OutFolder<'a> {
    /// Makes the folder, unless it is there.
    ///
    /// # Errors
    /// When it cannot be made.
    fn make(write: &'a WriteOptions) -> Result<Self> {
        let out = &write.out;
        if write.dry_run || out.is_dir() {
            return Ok(Self { made: None, inner: Vec::new() });
        }
        fs::create_dir_all(out).map_err(|source| Error::io(out, "cannot create", source))?;
        Ok(Self { made: Some(out), inner: Vec::new() })
    }

    /// Makes the folder that `out` lies in.
    ///
    /// # Errors
    /// When it cannot be made.
    fn make_for(&mut self, out: &Path) -> Result<()> {
        let missing: Vec<PathBuf> =
            out.ancestors().skip(1).take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect();
        if let Some(folder) = missing.first() {
            fs::create_dir_all(folder).map_err(|source| Error::io(folder, "cannot create", source))?;
        }
        self.inner.extend(missing.into_iter().rev());
        Ok(())
    }
}

impl Drop for OutFolder<'_> {
    fn drop(&mut self) {
        // Only an empty folder can be removed like this.
        self.inner.iter().rev().for_each(|folder| {
            let _ = fs::remove_dir(folder);
        });
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
