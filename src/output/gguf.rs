//! Where the tensors of an output lie in GGUF files: in those of the base, in one, or in new ones of a given size.
//!
//! The base's metadata is kept as it is; only `general.file_type` follows where most of the bytes changed their type.

use std::ops::Range;

use super::WriteOptions;
use super::arrange::Placed;
use crate::error::{Error, Result};
use crate::formats::gguf::{Layout, Metadata, Value, cut, is_gguf_name, split_name, split_prefix};
use crate::formats::layout::OutputFile;
use crate::llama::{FileType, View};
use crate::model::base::Base;
use crate::tensor::{Shape, TensorInfo};

/// The key that counts the tensors of all files.
const TENSORS: &str = "split.tensors.count";

/// A tensor as the file has it, and those of the view that are in it.
struct Whole {
    info: TensorInfo,
    pieces: Range<usize>,
}

/// Puts the tensors into files. `outputs` holds those of one file of the base after the other.
///
/// # Errors
/// When a tensor has no place in a file of this architecture, or no type there.
pub fn arrange<O>(
    base: &Base,
    view: &View,
    options: &WriteOptions,
    outputs: Vec<(String, Vec<Placed<O>>)>,
) -> Result<Vec<(OutputFile, Vec<O>)>> {
    let files = base.checkpoint.files();
    let (mut infos, mut origins, mut wholes, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (file, (_, tensors)) in outputs.into_iter().enumerate() {
        let own = files[file].gguf.as_ref().map_or(&[][..], |header| header.tensors.as_slice());
        let known = files[file].header.tensors.len();
        let mut last = None;
        for (position, Placed { info, origin }) in tensors.into_iter().enumerate() {
            let at = (position < known).then(|| view.whole(file, position));
            match (at, wholes.last_mut()) {
                (Some(at), Some(Whole { info: whole, pieces })) if last == Some(at) => {
                    whole.bytes += info.bytes;
                    pieces.end += 1;
                }
                _ => wholes.push(whole_of(base, view, at.map(|at| &own[at]), &info, infos.len())?),
            }
            last = at;
            infos.push(info);
            origins.push(origin);
        }
        ends.push(wholes.len());
    }
    let cut = cuts(base, options, &wholes, &ends)?;
    let mut origins = origins.into_iter();
    let mut arranged = Vec::with_capacity(cut.len());
    for (name, metadata, range) in cut {
        let wholes = &wholes[range];
        let path = base.checkpoint.root().join(&name);
        let layout = Layout::new(&path, &metadata, wholes.iter().map(|whole| whole.info.clone()).collect())?;
        let mut tensors = Vec::new();
        for (whole, place) in wholes.iter().zip(&layout.tensors) {
            let mut offset = place.offset;
            for info in &infos[whole.pieces.clone()] {
                tensors.push(TensorInfo { offset, ..info.clone() });
                offset += info.bytes;
            }
        }
        let own = origins.by_ref().take(tensors.len()).collect();
        arranged.push((OutputFile { name, header: layout.head, tensors, bytes: layout.bytes }, own));
    }
    Ok(arranged)
}

fn whole_of(base: &Base, view: &View, own: Option<&TensorInfo>, info: &TensorInfo, at: usize) -> Result<Whole> {
    let (name, shape): (String, Shape) = match own {
        Some(own) => (own.name.clone(), own.shape.clone()),
        None => {
            let name = view.place_of(&info.name).ok_or_else(|| {
                let what = format!("has no tensor for `{}`, and its architecture has no place for one", info.name);
                Error::unsupported(base.checkpoint.root(), what)
            })?;
            (name, info.shape.clone())
        }
    };
    Ok(Whole { info: TensorInfo { name, shape, ..info.clone() }, pieces: at..at + 1 })
}

/// The files: name, metadata, and which tensors.
fn cuts(
    base: &Base,
    options: &WriteOptions,
    wholes: &[Whole],
    ends: &[usize],
) -> Result<Vec<(String, Metadata, Range<usize>)>> {
    let files = base.checkpoint.files();
    let mut metadata = base.checkpoint.gguf().cloned().unwrap_or_default();
    let before = files.iter().filter_map(|file| file.gguf.as_ref()).flat_map(|header| &header.tensors);
    FileType::follow(&mut metadata, before, wholes.iter().map(|whole| &whole.info));
    let first = &files[0].name;
    let prefix = split_prefix(first);
    let one = |name: String, metadata| Ok(vec![(name, metadata, 0..wholes.len())]);
    let kept = options.max_shard_bytes.is_none();
    if files.len() == 1 && kept {
        return one(first.clone(), metadata);
    }
    let whole_name = format!("{prefix}.gguf");
    if is_gguf_name(&options.out) && kept {
        return one(whole_name, metadata);
    }
    if let Some(max_bytes) = options.max_shard_bytes {
        let infos: Vec<TensorInfo> = wholes.iter().map(|whole| whole.info.clone()).collect();
        let parts = cut(base.checkpoint.root(), &metadata, &infos, max_bytes)?;
        if let [_] = parts.as_slice() {
            return one(whole_name, metadata);
        }
        let count = parts.len() as u64;
        let parts = (0..count).zip(parts).map(|(at, (own, range))| (split_name(prefix, at, count), own, range));
        return Ok(parts.collect());
    }
    let mut start = 0;
    let parts = files.iter().zip(ends).map(|(file, end)| {
        let mut own = file.gguf.as_ref().map(|header| header.metadata.clone()).unwrap_or_default();
        if own.get(FileType::KEY).is_some()
            && let Some(said) = metadata.get(FileType::KEY)
        {
            own.set(FileType::KEY, said.clone());
        }
        own.set(TENSORS, Value::I32(i32::try_from(wholes.len()).unwrap_or(i32::MAX)));
        let range = start..*end;
        start = *end;
        (file.name.clone(), own, range)
    });
    Ok(parts.collect())
}
