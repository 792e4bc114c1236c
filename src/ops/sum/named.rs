//! Which adapters are named, one by one or by the folder they lie in, and what their outputs are called: as the inputs are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::adapters::config::CONFIG_NAME;
use crate::dialects::find::{Found, find};
use crate::dialects::{ALL, is_adapter, recognise};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::io::name_of;

/// What was named.
pub enum Named {
    /// A single adapter.
    One(PathBuf),
    /// Adapters with the names of their outputs, which may lie in folders of their own; and what lies beside them and is none.
    Several(Vec<(PathBuf, PathBuf)>, Vec<PathBuf>),
}

/// The adapters that `paths` name, themselves or by the folder they lie in.
///
/// # Errors
/// When a folder holds no adapters, or one is named twice.
pub fn inputs(paths: &[PathBuf]) -> Result<Named> {
    let (mut all, mut others) = (Vec::new(), Vec::new());
    for path in paths {
        match adapters_in(path)? {
            Some(found) => {
                let (adapters, rest): (Vec<PathBuf>, Vec<PathBuf>) =
                    found.into_iter().partition(|inner| recognise(inner).0);
                if adapters.is_empty() {
                    let what = format!("holds no `{CONFIG_NAME}`, and no file or folder in it is an adapter");
                    return Err(Error::unsupported(path, what)
                        .hint("name the directory of an adapter, or one that holds several"));
                }
                others.extend(rest);
                // Within a folder the way to a file tells it from others of its name.
                let name = |inner: PathBuf| {
                    let below = inner.strip_prefix(path).unwrap_or(&inner);
                    let called = called(&inner, below);
                    let called = if called.as_os_str().is_empty() { name_of(path).into() } else { called };
                    (inner, called)
                };
                all.extend(adapters.into_iter().map(name));
            }
            None if paths.len() == 1 => return Ok(Named::One(path.clone())),
            None => all.push((path.clone(), PathBuf::new())),
        }
    }
    name_listed(&mut all);
    let mut seen: BTreeSet<&Path> = BTreeSet::new();
    for (path, name) in &all {
        if !seen.insert(name) {
            let other = all.iter().find(|(_, other)| other == name).map_or(path, |(other, _)| other);
            let (left, right) = (other.display().to_string(), path.display().to_string());
            let problem = format!("the outputs of both would be called `{}`", name.display());
            return Err(Error::mismatch(left, right, problem).hint("resize one of them on its own"));
        }
    }
    all.sort_by(|left, right| left.1.cmp(&right.1));
    Ok(Named::Several(all, others))
}

/// Models and adapters in a folder; nothing for an adapter.
fn adapters_in(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    if !path.is_dir() || is_adapter(path) {
        return Ok(None);
    }
    match find(path)? {
        Some(Found { mut unreadable, .. }) if !unreadable.is_empty() => Err(unreadable.swap_remove(0).1),
        Some(found) => Ok(Some(found.paths)),
        None => {
            let mut files: Vec<PathBuf> = std::fs::read_dir(path)
                .map_err(|source| Error::io(path, "cannot list", source))?
                .flatten()
                .map(|entry| entry.path())
                .filter(|file| file.is_file() && Format::is_of_weights(file))
                .collect();
            // A lone file with a name of its own is one of a folder of files; one that is called as its dialect has it is the folder.
            let lone = files.len() == 1 && !is_standard(&files[0]) && recognise(&files[0]).0;
            match (lone, recognise(path).0) {
                (true, _) => Ok(Some(files.drain(..).collect())),
                (false, true) => Ok(None),
                (false, false) => Ok(Some(Vec::new())),
            }
        }
    }
}

/// Whether a file is called as every adapter of its dialect is.
fn is_standard(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = |name: &str| name.rsplit_once('.').map_or(name.to_owned(), |(stem, _)| stem.to_owned());
    ALL.iter().flat_map(|dialect| dialect.files).any(|known| stem(known) == stem(&name))
}

/// What the output of `path` is called, `below` being its own name: without the ending of a file, and as its folder where a file is
/// called as all of its dialect are.
fn called(path: &Path, below: &Path) -> PathBuf {
    if path.is_dir() {
        below.to_owned()
    } else if is_standard(path) {
        below.parent().map(Path::to_path_buf).unwrap_or_default()
    } else if Format::is_of_weights(path) {
        below.with_extension("")
    } else {
        below.to_owned()
    }
}

/// Names those that were listed: by their last part, or by as many more as tell them apart.
fn name_listed(all: &mut [(PathBuf, PathBuf)]) {
    let listed: Vec<PathBuf> = all
        .iter()
        .filter(|(_, name)| name.as_os_str().is_empty())
        .map(|(path, _)| {
            // As it is written, unless that is no name, as `.`.
            let whole = if path.file_name().is_some() { path.clone() } else { path.with_file_name(name_of(path)) };
            let called = called(path, &whole);
            if called.as_os_str().is_empty() { name_of(path.parent().unwrap_or(Path::new("."))).into() } else { called }
        })
        .collect();
    let last = |path: &Path, parts: usize| {
        let all: Vec<_> = path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
        all[all.len().saturating_sub(parts)..].iter().collect::<PathBuf>()
    };
    let deepest = listed.iter().map(|path| path.components().count()).max().unwrap_or(1);
    let parts = (1..=deepest).find(|parts| {
        let names: BTreeSet<PathBuf> = listed.iter().map(|path| last(path, *parts)).collect();
        names.len() == listed.len()
    });
    let mut names = listed.iter().map(|path| last(path, parts.unwrap_or(1)));
    for (_, name) in all.iter_mut().filter(|(_, name)| name.as_os_str().is_empty()) {
        *name = names.next().unwrap_or_default();
    }
}
