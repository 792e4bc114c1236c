//! A diffusion pipeline: a directory whose folders hold the weights of one model each.
//!
//! Layout (diffusers `pipelines/pipeline_utils.py`): `model_index.json` names the folders, `unet/`, `text_encoder/`, `vae/` … hold
//! the weights, each with a config of its own and cut into shards by itself. Training tools leave the same folders without
//! `model_index.json`.

use std::path::Path;

use super::checkpoint::Container;
use super::discover::{WEIGHT_STEMS, holds_weights, stem_of_index};
use super::weight_file::{WeightFile, safetensors_name};
use crate::error::{Error, Result};
use crate::io::is_there;
use crate::naming::components::{ADAPTED, OTHERS};

/// Names the folders of a pipeline.
const MODEL_INDEX: &str = "model_index.json";

/// The folders of the pipeline in `root` that hold weights, in name order; `None` where `root` is no pipeline.
///
/// # Errors
/// When a directory cannot be listed.
pub fn folders(root: &Path) -> Result<Option<Vec<String>>> {
    let declared = is_there(&root.join(MODEL_INDEX))?;
    if !declared && holds_weights(root)? {
        return Ok(None);
    }
    let cannot = |source| Error::io(root, "cannot list", source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = ADAPTED.iter().chain(&OTHERS).any(|folder| name == *folder);
        // A component that a link leads nowhere to is missing, not absent.
        let known = known && is_there(&entry.path())?;
        let wanted = declared && !name.starts_with('.') || known;
        if wanted && entry.path().is_dir() && holds_weights(&entry.path())? {
            found.push(name);
        }
    }
    found.sort();
    let is_one = found.iter().any(|name| declared || ADAPTED.contains(&name.as_str()));
    Ok(is_one.then_some(found))
}

/// One folder of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Its name: `unet`, `text_encoder` …
    pub name: String,
    /// How its weights are stored.
    pub container: Container,
    /// The number of its files.
    pub files: usize,
}

/// Weights that lie in one folder and are cut into shards by themselves: all of them, or one component of a pipeline.
#[derive(Debug, Clone, Copy)]
pub struct Component<'a> {
    /// Name of the folder, empty where there are no components.
    pub folder: &'a str,
    /// How they are stored.
    pub container: &'a Container,
    /// Their files.
    pub files: &'a [WeightFile],
}

impl Component<'_> {
    /// The path of the file `name` below the directory of the checkpoint.
    pub fn place(&self, name: &str) -> String {
        if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) }
    }

    /// The path of a file below the folder, if it lies there.
    pub fn inner_path<'p>(&self, path: &'p str) -> Option<&'p str> {
        if self.folder.is_empty() { Some(path) } else { path.strip_prefix(self.folder)?.strip_prefix('/') }
    }

    /// The name that a tensor has in its file.
    pub fn own_name<'n>(&self, name: &'n str) -> &'n str {
        let below = || name.strip_prefix(self.folder)?.strip_prefix('.');
        if self.folder.is_empty() { name } else { below().unwrap_or(name) }
    }

    /// The stem of the files when they are written as safetensors.
    pub fn stem(&self) -> String {
        if let Container::Sharded { index, .. } = self.container {
            return stem_of_index(&safetensors_name(index));
        }
        let name = self.files.first().map_or(WEIGHT_STEMS[0].to_owned(), WeightFile::safetensors_name);
        self.inner_path(&name).unwrap_or(&name).trim_end_matches(".safetensors").to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[&str]) -> Option<Vec<String>> {
        let root = tempfile::tempdir().expect("a directory");
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            std::fs::write(path, b"{}").expect("a file");
        }
        folders(root.path()).expect("listed")
    }

    #[test]
    fn folders_with_weights_are_components() {
        let unet = "unet/diffusion_pytorch_model.safetensors";
        let listed = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        for (files, wanted) in [
            (&[unet, "text_encoder/model.safetensors", "tokenizer/vocab.json"][..], listed(&["text_encoder", "unet"])),
            (&[unet, "model_index.json", "adapter_x/model.safetensors"], listed(&["adapter_x", "unet"])),
            (&[unet, "other/model.safetensors"], listed(&["unet"])),
            (&[unet, "model_index.json", "v1-5-pruned.safetensors"], listed(&["unet"])),
            (&[unet, "model.safetensors"], None),
            (&["vae/diffusion_pytorch_model.safetensors"], None),
            (&["checkpoint-5/model.safetensors"], None),
        ] {
            assert_eq!(found(files), wanted, "{files:?}");
        }
    }
}
