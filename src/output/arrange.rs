//! Which tensor of an output lies in which file.

use std::path::PathBuf;

use serde_json::Map;

use super::WriteOptions;
use super::gguf;
use super::options::named_like;
use crate::error::Result;
use crate::formats::layout::{self, OutputFile, shard};
use crate::formats::{Component, Container, json};
use crate::model::base::Base;
use crate::tensor::TensorInfo;

/// A tensor of the output and where it comes from.
pub struct Placed<O> {
    /// What it is.
    pub info: TensorInfo,
    /// Where it comes from.
    pub origin: O,
}

/// Puts the tensors into files: the base's own, or new ones of a given size. `outputs` holds the tensors of one file of the
/// base after the other, with the name of the file; the parts of a pipeline are cut by themselves.
///
/// # Errors
/// When a GGUF file has no place for one of them.
pub fn arrange<O>(
    base: &Base,
    options: &WriteOptions,
    outputs: Vec<(String, Vec<Placed<O>>)>,
    metadata: &[(String, String)],
) -> Result<Vec<(OutputFile, Vec<O>)>> {
    if let Some(view) = &base.view {
        return gguf::arrange(base, view, options, outputs);
    }
    let mut outputs = outputs.into_iter();
    let mut files = Vec::new();
    for component in base.checkpoint.components() {
        let own = outputs.by_ref().take(component.files.len()).collect();
        files.extend(arrange_one(base, &component, options, own, metadata));
    }
    Ok(files)
}

fn arrange_one<O>(
    base: &Base,
    component: &Component<'_>,
    options: &WriteOptions,
    outputs: Vec<(String, Vec<Placed<O>>)>,
    metadata: &[(String, String)],
) -> Vec<(OutputFile, Vec<O>)> {
    let info = |output: &Placed<O>| TensorInfo {
        name: base.wrapping.in_files(component.own_name(&output.info.name)),
        ..output.info.clone()
    };
    let single = is_file(options).then(|| options.out.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let outputs = match single {
        Some(name) if outputs.len() > 1 => {
            vec![(name, aligned(outputs.into_iter().flat_map(|(_, own)| own).collect()))]
        }
        _ => outputs,
    };
    let named: Vec<(String, Vec<TensorInfo>)> = match options.max_shard_bytes {
        None => outputs.iter().map(|(name, tensors)| (name.clone(), tensors.iter().map(info).collect())).collect(),
        Some(max_bytes) => {
            let all = outputs.iter().flat_map(|(_, tensors)| tensors.iter().map(info)).collect();
            let cut = shard(all, &component.stem(), max_bytes).into_iter();
            cut.map(|(name, tensors)| (component.place(&name), tensors)).collect()
        }
    };
    let mut origins = outputs.into_iter().flat_map(|(_, tensors)| tensors).map(|output| output.origin);
    let file = |(at, (name, tensors)): (usize, (String, Vec<TensorInfo>))| {
        let count = tensors.len();
        let own = component.files.get(at).or(component.files.first());
        let inherited = own.map(|file| file.header.metadata.as_slice()).unwrap_or_default();
        let file = OutputFile::new(name, &with_provenance(inherited, metadata), tensors);
        (file, origins.by_ref().take(count).collect())
    };
    named.into_iter().enumerate().map(file).collect()
}

/// Whether OUT is called like a file.
fn is_file(options: &WriteOptions) -> bool {
    named_like(&options.out).is_some_and(|format| format.is_written)
}

/// Tensors of several files in one: wide elements in front where a tensor would not begin at a multiple of its elements; else in
/// their order.
pub fn aligned<O>(mut tensors: Vec<Placed<O>>) -> Vec<Placed<O>> {
    let mut at = 0_u64;
    let fit = tensors.iter().all(|tensor| {
        let item = u64::from(tensor.info.dtype.bits().unwrap_or(8)).div_ceil(8);
        let fits = at.is_multiple_of(item);
        at += tensor.info.bytes;
        fits
    });
    if !fit {
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.info.dtype.bits()));
    }
    tensors
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

/// The indexes that tie the shards among `files` together, with their places.
pub fn indexes(base: &Base, options: &WriteOptions, files: &[OutputFile]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    if base.view.is_some() {
        return found;
    }
    for component in base.checkpoint.components() {
        let own = files.iter().filter_map(|file| component.inner_path(&file.name).map(|path| (path, file)));
        let own: Vec<(&str, &OutputFile)> = own.collect();
        let (kept, inherited) = match component.container {
            Container::Sharded { metadata, .. } => (options.max_shard_bytes.is_none(), metadata.clone()),
            _ => (false, Map::new()),
        };
        if own.len() > 1 || kept {
            let place = component.place(&layout::index_name(&component.stem()));
            found.push((PathBuf::from(place), json::render(&layout::index(inherited, &own))));
        }
    }
    found
}
