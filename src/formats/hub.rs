//! The local Hugging Face cache: `org/name[@rev]` → the snapshot directory. Nothing is ever downloaded.
//!
//! Layout (huggingface_hub): `<root>/models--{org}--{name}/refs/{rev}` holds a commit, `snapshots/{commit}/` the files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::Format;
use crate::error::{Error, Result};
use crate::io::{is_there, read_small};

/// Longest `refs/` file that is read; it holds one 40-digit commit.
const MAX_REF_BYTES: u64 = 4096;

/// The revision that is meant when none is given.
const DEFAULT_REVISION: &str = "main";

/// Turns what a user wrote into a path: an existing path as it is, `org/name[@rev]` looked up in `caches`.
///
/// # Errors
/// When it is neither; the message says where it was looked for.
pub fn resolve(written: impl AsRef<OsStr>, caches: &[PathBuf]) -> Result<PathBuf> {
    let path = Path::new(&written);
    if is_there(path)? {
        return Ok(path.into());
    }
    let nothing = || {
        let reason = std::fs::symlink_metadata(path).err().unwrap_or_else(|| std::io::ErrorKind::NotFound.into());
        let error = Error::io(path, "cannot open", reason);
        match near(path) {
            Some(near) => error.hint(format!("did you mean `{}`?", near.display())),
            None => error,
        }
    };
    let Some((org, name, revision)) = path.to_str().and_then(parse) else { return Err(nothing()) };
    for cache in caches {
        let repository = cache.join(format!("models--{org}--{name}"));
        if is_there(&repository)? {
            return snapshot(&repository, revision);
        }
    }
    // What lies in a folder that is there, or is called like a file, is meant as a path.
    if Path::new(org).is_dir() || Format::named(Path::new(name)).is_some() {
        return Err(nothing());
    }
    let places = caches.iter().map(|cache| format!("`{}`", cache.display())).collect::<Vec<_>>().join(", ");
    let what =
        if places.is_empty() { "no Hugging Face cache is known".into() } else { format!("it is not in {places}") };
    Err(Error::unsupported(path, format!("no such path, and as a model of the Hugging Face cache {what}"))
        .hint(format!("lorakit never downloads; `hf download {org}/{name}` fetches it")))
}

/// What is called almost like the missing `path`, in its folder.
fn near(path: &Path) -> Option<PathBuf> {
    const FAR: usize = 2;
    /// One letter in so many may differ.
    const SHARE: usize = 3;
    const LOOKED_AT: usize = 4096;
    /// Longest name that is compared, and most bytes by which two differ.
    const LONGEST: usize = 100;
    const LONG: usize = 8;
    let name = path.file_name()?.to_str().filter(|name| name.len() <= LONGEST)?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = std::fs::read_dir(folder.unwrap_or(Path::new("."))).ok()?.flatten().take(LOOKED_AT);
    let distance = |entry: &std::fs::DirEntry| {
        let other = entry.file_name();
        let other = other.to_str().filter(|other| other.len().abs_diff(name.len()) <= LONG)?;
        Some((strsim::damerau_levenshtein(name, other), other.to_owned()))
    };
    let (far, other) = entries.filter_map(|entry| distance(&entry)).min()?;
    (far <= FAR && far * SHARE <= name.chars().count())
        .then(|| folder.map_or_else(|| other.clone().into(), |folder| folder.join(&other)))
}

fn parse(written: &str) -> Option<(&str, &str, &str)> {
    let (repository, revision) = written.split_once('@').unwrap_or((written, DEFAULT_REVISION));
    let (org, name) = repository.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let revision_ok = !revision.is_empty() && revision.split('/').all(plain);
    (plain(org) && plain(name) && revision_ok).then_some((org, name, revision))
}

fn snapshot(repository: &Path, revision: &str) -> Result<PathBuf> {
    let snapshots = repository.join("snapshots");
    let named = repository.join("refs").join(revision);
    let commit = if is_there(&named)? {
        String::from_utf8_lossy(&read_small(&named, MAX_REF_BYTES)?).trim().to_owned()
    } else {
        revision.to_owned()
    };
    let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    let directory = snapshots.join(&commit);
    if plain && is_there(&directory)? {
        return Ok(directory);
    }
    let known = std::fs::read_dir(repository.join("refs")).into_iter().flatten().flatten();
    let known: Vec<String> = known.map(|entry| format!("`{}`", entry.file_name().to_string_lossy())).collect();
    Err(Error::unsupported(repository, format!("the cache holds no snapshot of revision `{revision}`"))
        .hint(format!("revisions in the cache: {}", if known.is_empty() { "none".into() } else { known.join(", ") })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let repository = cache.path().join("models--org--name");
        std::fs::create_dir_all(repository.join("refs")).expect("refs");
        std::fs::create_dir_all(repository.join("snapshots/0123abcd")).expect("snapshots");
        std::fs::write(repository.join("refs/main"), "0123abcd\n").expect("a ref");
        cache
    }

    #[test]
    fn a_cached_model_is_found_by_name_by_ref_and_by_commit() {
        let cache = cache();
        let caches = [cache.path().to_path_buf()];
        for written in ["org/name", "org/name@main", "org/name@0123abcd"] {
            assert!(resolve(written, &caches).expect(written).ends_with("snapshots/0123abcd"), "{written}");
        }
    }

    #[test]
    fn an_unknown_revision_names_the_known_ones() {
        let cache = cache();
        let error = resolve("org/name@dev", &[cache.path().to_path_buf()]).expect_err("no such revision");
        assert!(error.to_string().contains("revision `dev`"), "{error}");
        assert_eq!(error.way_out(), Some("revisions in the cache: `main`"));
    }

    #[test]
    fn a_model_that_is_not_cached_is_refused_without_a_download() {
        let cache = cache();
        let error = resolve("org/other", &[cache.path().to_path_buf()]).expect_err("not there");
        assert!(error.to_string().contains("Hugging Face cache"), "{error}");
    }

    #[test]
    fn what_lies_in_a_folder_or_is_called_like_a_file_is_a_path() {
        let place = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(place.path().join("base")).expect("a directory");
        let error = resolve(place.path().join("bsae"), &[]).expect_err("not there");
        assert!(error.to_string().contains("cannot open"), "{error}");
        assert_eq!(error.way_out(), Some(format!("did you mean `{}`?", place.path().join("base").display()).as_str()));
        for written in ["src/nothing", "nowhere/cat.safetensors", "nowhere/m.gguf"] {
            let error = resolve(written, &[]).expect_err("not there");
            assert!(error.to_string().contains("cannot open"), "{error}");
        }
    }

    #[test]
    fn a_name_cannot_leave_the_cache() {
        for written in ["../name", "org/..", "org/name@../../x", "a/b/c"] {
            assert_eq!(parse(written), None, "{written}");
        }
    }
}
