//! Which files of a model directory travel with its weights: everything but weights in any container.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Deepest folder that is looked into; model repositories have one or two levels.
const MAX_DEPTH: usize = 4;

/// File endings of weights in any container: a merged model must not lie beside unmerged copies of itself.
const WEIGHTS: [&str; 13] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".npz",
];

/// The files beside the weights of a model.
#[derive(Debug, Default)]
pub struct Companions {
    /// Paths below the directory that are copied.
    pub copied: Vec<PathBuf>,
    /// Weights in other files that are not copied, because they would not be merged.
    pub left: Vec<PathBuf>,
}

/// Lists what lies in `directory`. Hidden files and folders (`.git`, `.cache`) do not count; links to files are followed,
/// links to folders are not.
///
/// # Errors
/// When the directory cannot be listed.
pub fn list(directory: &Path) -> Result<Companions> {
    let mut found = Companions::default();
    walk(directory, Path::new(""), 0, &mut found)?;
    found.copied.sort();
    found.left.sort();
    Ok(found)
}

fn walk(root: &Path, below: &Path, depth: usize, found: &mut Companions) -> Result<()> {
    let directory = root.join(below);
    let cannot = |source| Error::io(&directory, "cannot list", source);
    for entry in std::fs::read_dir(&directory).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text.starts_with('.') {
            continue;
        }
        let path = below.join(&name);
        let kind = entry.file_type().map_err(cannot)?;
        if kind.is_dir() {
            if depth < MAX_DEPTH {
                walk(root, &path, depth + 1, found)?;
            }
        } else if WEIGHTS.iter().any(|ending| text.ends_with(ending)) || text.contains(".safetensors.index.") {
            found.left.push(path);
        } else if root.join(&path).is_file() {
            found.copied.push(path);
        }
    }
    Ok(())
}
