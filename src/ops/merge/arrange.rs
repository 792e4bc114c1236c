//! Which tensor of an output lies in which file.

use crate::formats::layout::{OutputFile, shard};
use crate::formats::{Container, WEIGHT_STEMS, WeightFile, safetensors_name};
use crate::ops::WriteOptions;
use crate::ops::base::Base;
use crate::tensor::TensorInfo;

/// A tensor of the output and where it comes from.
pub struct Placed<O> {
    /// What it is.
    pub info: TensorInfo,
    /// Where it comes from.
    pub origin: O,
}

/// Puts the tensors into files: the base's own, or new ones of a given size.
pub fn arrange<O>(
    base: &Base,
    options: &WriteOptions,
    outputs: Vec<(String, Vec<Placed<O>>)>,
    metadata: &[(String, String)],
) -> Vec<(OutputFile, Vec<O>)> {
    let named: Vec<(String, Vec<TensorInfo>)> = match options.max_shard_bytes {
        None => outputs
            .iter()
            .map(|(name, tensors)| (name.clone(), tensors.iter().map(|output| output.info.clone()).collect()))
            .collect(),
        Some(max_bytes) => {
            let all =
                outputs.iter().flat_map(|(_, tensors)| tensors.iter().map(|output| output.info.clone())).collect();
            shard(all, &stem(base), max_bytes)
        }
    };
    let mut origins = outputs.into_iter().flat_map(|(_, tensors)| tensors).map(|output| output.origin);
    let file = |(at, (name, tensors)): (usize, (String, Vec<TensorInfo>))| {
        let count = tensors.len();
        let own = base.checkpoint.files().get(at).or(base.checkpoint.files().first());
        let inherited = own.map(|file| file.header.metadata.as_slice()).unwrap_or_default();
        let file = OutputFile::new(name, &with_provenance(inherited, metadata), tensors);
        (file, origins.by_ref().take(count).collect())
    };
    named.into_iter().enumerate().map(file).collect()
}

/// The base's own metadata, `format` if it lacks it (transformers refuses files without), and `more`.
pub fn with_provenance(inherited: &[(String, String)], more: &[(String, String)]) -> Vec<(String, String)> {
    let replaced = |key: &String| more.iter().any(|(other, _)| other == key);
    let mut metadata: Vec<(String, String)> = inherited.iter().filter(|(key, _)| !replaced(key)).cloned().collect();
    if !metadata.iter().any(|(key, _)| key == "format") {
        metadata.insert(0, ("format".into(), "pt".into()));
    }
    metadata.extend_from_slice(more);
    metadata
}

/// The file stem of the base's weights.
pub fn stem(base: &Base) -> String {
    if let Container::Sharded { index, .. } = base.checkpoint.container() {
        return safetensors_name(index).trim_end_matches(".safetensors.index.json").to_owned();
    }
    let name = base.checkpoint.files().first().map_or(WEIGHT_STEMS[0].to_owned(), WeightFile::safetensors_name);
    name.trim_end_matches(".safetensors").to_owned()
}
