//! Which files of a model directory travel with its weights: everything but weights in any container, what belongs to others,
//! and what a link brings in from elsewhere ([`side`](super::side)). What is left out is told, with the reason.

use std::fs::FileType;
use std::path::{Path, PathBuf};

use super::format::endings;
use super::side::Home;
use crate::error::{Error, Result};

/// Deepest folder that is looked into; model repositories have one or two levels.
const MAX_DEPTH: usize = 4;

/// File endings of weights in containers that are not read, and of indexes: a merged model must not lie beside unmerged copies of
/// itself.
const WEIGHTS: [&str; 6] = ["h5", "msgpack", "onnx", "onnx_data", "safetensors.index.json", "bin.index.json"];

/// What people and programs put behind the name of a file they keep, or have not finished.
const KEPT: [&str; 11] =
    [".bak", ".backup", ".old", ".orig", ".save", ".tmp", ".temp", ".part", ".incomplete", ".crdownload", "~"];

/// The config of an adapter: a loader that finds it beside a model looks for the adapter.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The record of an output of lorakit in a directory, and the end of the name of one beside a file.
const RECORD: &str = "lorakit.json";

/// Names of one kind that a note lists.
const LISTED: usize = 3;

/// Why a file or folder that is no weights is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// A link to a file elsewhere.
    LinkOut,
    /// A link to nothing.
    LinkToNothing,
    /// A link to a folder.
    LinkedFolder,
    /// A pipe, a socket or a device.
    NoFile,
    /// A folder below the deepest that is looked into.
    TooDeep,
    /// Its name begins with a dot.
    Hidden,
    /// The config of an adapter that lies in the directory of the model.
    AdapterConfig,
    /// An output of lorakit, or the record of one.
    Output,
}

impl Left {
    fn reason(self) -> &'static str {
        match self {
            Self::LinkOut => "links that lead out of the directory",
            Self::LinkToNothing => "links that lead nowhere",
            Self::LinkedFolder => "links to folders",
            Self::NoFile => "pipes, sockets or devices",
            Self::TooDeep => "folders that lie too deep",
            Self::Hidden => "hidden",
            Self::AdapterConfig => "of an adapter",
            Self::Output => "other outputs of lorakit",
        }
    }
}

/// The files beside the weights of a model.
#[derive(Debug, Default)]
pub struct Companions {
    /// Paths below the directory that are copied.
    pub copied: Vec<PathBuf>,
    /// Weights in other files that are not copied, because they would not be merged.
    pub weights: Vec<PathBuf>,
    /// What else is not copied; a folder stands for all that is in it.
    pub left: Vec<(Left, PathBuf)>,
}

impl Companions {
    /// What is to be said of them: code that is copied, and what is left out. Only paths that `is_meant` count.
    pub fn notes(&self, is_meant: impl Fn(&Path) -> bool) -> Vec<String> {
        let is_code = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "py") && is_meant(path);
        let code: Vec<&PathBuf> = self.copied.iter().filter(is_code).collect();
        let mut notes = Vec::new();
        if !code.is_empty() {
            notes.push(format!("code is copied along, which a loader may run: {}", some(&code)));
        }
        for kind in self.left.chunk_by(|one, other| one.0 == other.0) {
            let paths: Vec<&PathBuf> = kind.iter().map(|(_, path)| path).filter(|path| is_meant(path)).collect();
            if !paths.is_empty() {
                notes.push(format!("not copied, since they are {}: {}", kind[0].0.reason(), some(&paths)));
            }
        }
        notes
    }

    /// Whether `path` is left out for that reason.
    pub fn is_left(&self, path: &Path, reason: Left) -> bool {
        self.left.iter().any(|(why, left)| *why == reason && left == path)
    }
}

fn some(paths: &[&PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().take(LISTED).map(|path| format!("`{}`", path.display())).collect();
    match paths.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Lists what lies in `directory`.
///
/// # Errors
/// When the directory cannot be listed.
pub fn list(directory: &Path) -> Result<Companions> {
    let mut walk = Walk { root: directory, home: Home::of(directory)?, found: Companions::default() };
    walk.folder(Path::new(""), 0)?;
    let mut found = walk.found;
    found.copied.sort();
    found.weights.sort();
    found.left.sort();
    Ok(found)
}

struct Walk<'a> {
    root: &'a Path,
    home: Home,
    found: Companions,
}

impl Walk<'_> {
    fn folder(&mut self, below: &Path, depth: usize) -> Result<()> {
        let directory = self.root.join(below);
        let cannot = |source| Error::io(&directory, "cannot list", source);
        for entry in std::fs::read_dir(&directory).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let kind = entry.file_type().map_err(cannot)?;
            self.entry(below.join(entry.file_name()), kind, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, kind: FileType, depth: usize) -> Result<()> {
        let full = self.root.join(&path);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let why = if name.starts_with('.') {
            Left::Hidden
        } else if kind.is_dir() {
            if depth >= MAX_DEPTH {
                Left::TooDeep
            } else if std::fs::symlink_metadata(full.join(RECORD)).is_ok() {
                Left::Output
            } else {
                return self.folder(&path, depth + 1);
            }
        } else if is_weights(&name) {
            self.found.weights.push(path);
            return Ok(());
        } else if name.eq_ignore_ascii_case(ADAPTER_CONFIG) {
            Left::AdapterConfig
        } else if name != RECORD && name.ends_with(&format!(".{RECORD}")) {
            Left::Output
        } else {
            match std::fs::metadata(&full) {
                Err(_) if kind.is_symlink() => Left::LinkToNothing,
                Ok(found) if found.is_dir() => Left::LinkedFolder,
                Ok(found) if !found.is_file() => Left::NoFile,
                Ok(_) if kind.is_symlink() && !self.home.holds(&full) => Left::LinkOut,
                // What cannot be looked at is refused when it is copied, with the system's words.
                _ => {
                    self.found.copied.push(path);
                    return Ok(());
                }
            }
        };
        self.found.left.push((why, path));
        Ok(())
    }
}

/// Whether a name is one of weights, of copies of them that somebody keeps, or of their index.
fn is_weights(name: &str) -> bool {
    let name = name.to_lowercase();
    let mut own = name.as_str();
    while let Some(rest) = KEPT.iter().find_map(|end| own.strip_suffix(end)) {
        own = rest;
    }
    let mut known = endings().chain(WEIGHTS);
    known.any(|ending| own.strip_suffix(ending).is_some_and(|rest| rest.ends_with('.')))
        || own.contains(".safetensors.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_known_under_all_their_names() {
        for name in [
            "model.safetensors",
            "X.SAFETENSORS",
            "old.safetensors.bak",
            "model.safetensors~",
            "model.safetensors.old.bak",
            "model.safetensors.2024-01-01",
            "model.safetensors.index.fp16.json",
            "pytorch_model.bin.tmp",
            "m.gguf.part",
        ] {
            assert!(is_weights(name), "{name}");
        }
        for name in ["config.json", "tokenizer.model", "vocab.txt.bak", "safetensors.md", "README.md~", "a.py"] {
            assert!(!is_weights(name), "{name}");
        }
    }

    #[test]
    fn notes_count_and_name_the_first() {
        let path = |name: &str| PathBuf::from(name);
        let found = Companions {
            copied: vec![path("a.txt"), path("modeling.py")],
            weights: Vec::new(),
            left: ["1", "2", "3", "4", "5"].map(|name| (Left::LinkOut, path(name))).to_vec(),
        };
        assert_eq!(
            found.notes(|_| true),
            [
                "code is copied along, which a loader may run: `modeling.py`",
                "not copied, since they are links that lead out of the directory: `1`, `2`, `3` and 2 more",
            ]
        );
        assert!(found.notes(|_| false).is_empty());
    }
}
