//! Side files of a model or an adapter: whether they are there, whether they may be taken along, and how they are read.
//!
//! Repositories come from strangers, and archives and clones keep links: `vocab.txt` can lead to a private key. A link is
//! followed where its target lies in the directory itself, or in the `blobs` of the Hugging Face cache repository that the
//! directory is a snapshot of (huggingface_hub: `models--{org}--{name}/snapshots/{commit}/config.json → ../../blobs/{hash}`).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::json::read_object;
use crate::error::{Error, Result};
use crate::io::is_there;

/// How the names of repositories in the cache begin.
const REPOSITORIES: [&str; 3] = ["models--", "datasets--", "spaces--"];

/// A directory, and where links in it may lead.
#[derive(Debug)]
pub struct Home {
    places: Vec<PathBuf>,
}

impl Home {
    /// The directory `directory`.
    ///
    /// # Errors
    /// When it cannot be found.
    pub fn of(directory: &Path) -> Result<Self> {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let own = std::fs::canonicalize(directory).map_err(|source| Error::io(directory, "cannot open", source))?;
        let blobs = own.ancestors().find_map(blobs);
        Ok(Self { places: std::iter::once(own).chain(blobs).collect() })
    }

    /// Whether `path`, where links end, lies in it. What leads nowhere does not.
    pub fn holds(&self, path: &Path) -> bool {
        std::fs::canonicalize(path).is_ok_and(|end| self.places.iter().any(|place| end.starts_with(place)))
    }
}

/// The blobs of the repository that has `path` for its snapshots.
fn blobs(path: &Path) -> Option<PathBuf> {
    let repository = path.parent().filter(|_| path.ends_with("snapshots"))?;
    let name = repository.file_name()?.to_str()?;
    REPOSITORIES.iter().any(|begin| name.starts_with(begin)).then(|| repository.join("blobs"))
}

/// The file `name` in `directory`, whose contents go into the output; `None` where nothing has that name.
///
/// # Errors
/// When it is there and cannot be read, or is a link out of the directory.
pub fn find(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = directory.join(name);
    if !is_there(&path)? {
        return Ok(None);
    }
    if !Home::of(directory)?.holds(&path) {
        let what = "is a link out of its directory, and its contents would go into the output";
        return Err(Error::unsupported(&path, what).hint("put a copy of the file there, if it belongs to the model"));
    }
    Ok(Some(path))
}

/// The JSON object in the file `name` of `directory`, which goes into the output; `None` where nothing has that name.
///
/// # Errors
/// As [`find`], and when it holds no JSON object.
pub fn read(directory: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    find(directory, name)?.map(|path| read_object(&path)).transpose()
}

/// The JSON object at `path`, of which only facts are taken; `None` where nothing has that name.
///
/// # Errors
/// When it is there and cannot be read, or holds no JSON object.
pub fn look_up(path: &Path) -> Result<Option<Map<String, Value>>> {
    if is_there(path)? { read_object(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_directory_or_lead_to_the_blobs_of_its_repository() {
        let root = tempfile::tempdir().expect("a directory");
        let snapshot = root.path().join("models--o--n/snapshots/0a");
        for folder in [&snapshot, &root.path().join("models--o--n/blobs"), &root.path().join("models--o--n2/blobs")] {
            fs::create_dir_all(folder).expect("a folder");
        }
        for file in ["models--o--n/blobs/b", "models--o--n2/blobs/b", "secret", "models--o--n/snapshots/0a/own"] {
            fs::write(root.path().join(file), "{}").expect("a file");
        }
        let home = Home::of(&snapshot).expect("there");
        for (at, (target, held)) in [
            ("../../blobs/b", true),
            ("own", true),
            ("../../../models--o--n2/blobs/b", false),
            ("../../../secret", false),
            ("nowhere", false),
        ]
        .into_iter()
        .enumerate()
        {
            let link = snapshot.join(at.to_string());
            symlink(target, &link).expect("a link");
            assert_eq!(home.holds(&link), held, "{target}");
        }
        assert!(find(&snapshot, "3").expect_err("leads out").to_string().contains("is a link out of its directory"));
        assert!(find(&snapshot, "none").expect("nothing").is_none());
    }
}
