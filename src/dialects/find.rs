//! What a path stands for: one model or adapter, or a folder with some in it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::is_adapter;
use crate::error::{Error, Result};
use crate::formats::gguf::parse_name;
use crate::formats::{Format, WEIGHT_STEMS};

/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 8;

/// Most models and adapters of one folder.
const MAX_FOUND: usize = 20_000;

/// Most entries of folders that are looked at, and most folders: a tree of models has a few hundred.
const MAX_ENTRIES: usize = 200_000;

/// As above.
const MAX_FOLDERS: usize = 10_000;

/// How long is looked for.
const MAX_TIME: Duration = Duration::from_secs(3);

/// Beginnings of the names of files in which trainers keep their own state.
const STATE: [&str; 8] =
    ["optimizer", "scheduler", "training_args", "rng_state", "random_states", "scaler", "trainer_state", "optim"];

/// File that says of a directory that its parts are one pipeline.
const PIPELINE: &str = "model_index.json";

/// Stems of the weights of one model, besides [`WEIGHT_STEMS`].
const OTHER_STEMS: [&str; 4] = ["pytorch_model", "consolidated", "consolidated.00", "adapters"];

/// What lies in a folder.
#[derive(Debug, Default)]
pub struct Found {
    /// Models and adapters in path order: directories and files.
    pub paths: Vec<PathBuf>,
    /// Folders that could not be listed, with the reason.
    pub unreadable: Vec<(PathBuf, Error)>,
    /// Whether there was more than is looked at.
    pub cut: bool,
}

/// The models and adapters in the folder `path`; `None` if it is one itself, or a file.
///
/// # Errors
/// When the folder cannot be listed.
pub fn find(path: &Path) -> Result<Option<Found>> {
    if !path.is_dir() || is_adapter(path) || is_model(path) {
        return Ok(None);
    }
    let mut walk = Walk { found: Found::default(), entries: 0, folders: 0, started: Instant::now() };
    walk.enter(path, 0)?;
    let found = walk.found;
    // Nothing known, or one lone weight file: that is for the reader of directories to say.
    let is_alone = found.paths.len() == 1 && found.paths[0].parent() == Some(path) && found.paths[0].is_file();
    let nothing = found.paths.is_empty() && found.unreadable.is_empty();
    Ok(if nothing || is_alone { None } else { Some(found) })
}

/// Whether the weights in a directory belong to one model, by the names of its files.
fn is_model(path: &Path) -> bool {
    let stems = || WEIGHT_STEMS.iter().chain(&OTHER_STEMS);
    let names = |stem: &str| {
        ["safetensors", "safetensors.index.json", "bin", "bin.index.json", "pth"]
            .map(|end| path.join(format!("{stem}.{end}")))
    };
    // What has such a name and cannot be read is told by its reader, with the reason.
    let is_named = |path: &Path| std::fs::symlink_metadata(path).is_ok();
    is_named(&path.join(PIPELINE)) || stems().any(|stem| names(stem).iter().any(|name| is_named(name)))
}

/// A search, and how far it has come.
struct Walk {
    found: Found,
    entries: usize,
    folders: usize,
    started: Instant,
}

impl Walk {
    /// Whether enough was looked at.
    fn is_over(&mut self) -> bool {
        let over = self.found.paths.len() >= MAX_FOUND
            || self.entries >= MAX_ENTRIES
            || self.folders >= MAX_FOLDERS
            || self.started.elapsed() >= MAX_TIME;
        self.found.cut |= over;
        over
    }

    fn enter(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let cannot = |source| Error::io(folder, "cannot list", source);
        self.folders += 1;
        let mut entries: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(cannot)? {
            entries.push(entry.map_err(cannot)?.path());
            self.entries += 1;
            if self.entries >= MAX_ENTRIES {
                self.found.cut = true;
                break;
            }
        }
        entries.sort();
        for path in entries {
            if self.is_over() {
                return Ok(());
            }
            self.look(path, depth);
        }
        Ok(())
    }

    fn look(&mut self, path: PathBuf, depth: usize) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            return;
        }
        let is_link = path.symlink_metadata().is_ok_and(|kind| kind.is_symlink());
        if path.is_dir() {
            let is_known = is_adapter(&path) || is_model(&path);
            if is_known {
                self.found.paths.push(path);
            } else if is_link {
                // A link can lead back to where it stands.
            } else if depth >= MAX_DEPTH {
                self.found.cut = true;
            } else if let Err(error) = self.enter(&path, depth + 1) {
                self.found.unreadable.push((path, error));
            }
        } else if is_weights(&name) {
            self.found.paths.push(path);
        }
    }
}

/// Whether a file's name is one that weights have.
fn is_weights(name: &str) -> bool {
    // Of the GGUF files that are one model, the first stands for all.
    let is_later = parse_name(name).is_some_and(|(_, number, _)| number > 0);
    Format::is_of_weights(Path::new(&name.to_lowercase()))
        && !is_later
        && !STATE.iter().any(|state| name.starts_with(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            std::fs::write(path, "{}").expect("a file");
        }
        folder
    }

    fn found(files: &[&str]) -> Option<Vec<String>> {
        let folder = folder(files);
        let name = |path: &PathBuf| path.strip_prefix(folder.path()).expect("inside").to_string_lossy().into_owned();
        find(folder.path()).expect("listed").map(|found| found.paths.iter().map(name).collect())
    }

    #[test]
    fn a_folder_shows_what_is_in_it_in_path_order() {
        let files = [
            "b.safetensors",
            "a/adapter_config.json",
            "a/adapter_model.safetensors",
            "a/optimizer.pt",
            "c/model.safetensors",
            "c/deeper/x.safetensors",
            "d/e/f.ckpt",
            "d/training_args.bin",
            "m-00001-of-00002.gguf",
            "m-00002-of-00002.gguf",
            "notes.txt",
            ".hidden/x.safetensors",
        ];
        let wanted = ["a", "b.safetensors", "c", "d/e/f.ckpt", "m-00001-of-00002.gguf"].map(str::to_owned).to_vec();
        assert_eq!(found(&files), Some(wanted));
    }

    #[test]
    fn a_model_and_a_lone_file_stand_for_themselves() {
        assert_eq!(found(&["model.safetensors", "x/y.safetensors"]), None);
        assert_eq!(found(&["odd.safetensors"]), None);
        assert_eq!(found(&["notes.txt"]), None);
        assert_eq!(found(&["c/adapter_config.json", "case.json"]), Some(vec!["c".to_owned()]));
        assert_eq!(found(&["model_index.json", "unet/x.safetensors"]), None);
    }

    #[test]
    fn folders_that_lead_back_do_not_go_on_for_ever() {
        let folder = folder(&["a/x.safetensors", "a/y.safetensors"]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/again")).expect("a link");
        let found = find(folder.path()).expect("listed").expect("a folder");
        assert_eq!(found.paths.len(), 2);
    }
}
