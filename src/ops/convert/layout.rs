//! Which tensor of a converted checkpoint lies in which file.

use super::checkpoint::Origin;
use crate::formats::layout::{OutputFile, shard};
use crate::formats::{Component, WeightFile};
use crate::model::base::Base;
use crate::output::WriteOptions;
use crate::output::arrange::{Placed, aligned, with_provenance};
use crate::tensor::TensorInfo;

/// Whether an entry of the metadata of a file is taken along.
pub type Kept<'a> = dyn Fn(&(String, String)) -> bool + 'a;

/// A tensor of the output.
pub type Tensor = Placed<Origin>;

/// The files of the output: one called `single`, or the input's own, or new ones of a given size. The parts of a pipeline are
/// cut by themselves. `kept` tells what is taken along of their headers.
pub fn arrange(
    base: &Base,
    options: &WriteOptions,
    single: Option<String>,
    outputs: Vec<Vec<Tensor>>,
    kept: &Kept<'_>,
    more: &[(String, String)],
) -> Vec<(OutputFile, Vec<Origin>)> {
    let mut outputs = outputs.into_iter();
    let mut arranged = Vec::new();
    for component in base.checkpoint.components() {
        let own = outputs.by_ref().take(component.files.len()).collect();
        let named = name_files(&component, options, single.clone(), own);
        let same = named.len() == component.files.len();
        for (at, (name, tensors)) in named.into_iter().enumerate() {
            let tensors = aligned(tensors);
            let own = component.files.get(at).filter(|_| same).or(component.files.first());
            let inherited = own.map(|file| file.header.metadata.as_slice()).unwrap_or_default();
            let kept: Vec<_> = inherited.iter().filter(|entry| kept(entry)).cloned().collect();
            let infos = tensors.iter().map(|tensor| tensor.info.clone()).collect();
            let origins = tensors.into_iter().map(|tensor| tensor.origin).collect();
            arranged.push((OutputFile::new(name, &with_provenance(&kept, more), infos), origins));
        }
    }
    arranged
}

/// The tensors of one component by the name of their file, each under the name it has there.
fn name_files(
    component: &Component<'_>,
    options: &WriteOptions,
    single: Option<String>,
    outputs: Vec<Vec<Tensor>>,
) -> Vec<(String, Vec<Tensor>)> {
    let counts: Vec<usize> = outputs.iter().map(Vec::len).collect();
    let mut tensors = outputs.into_iter().flatten().map(|tensor| {
        let name = component.own_name(&tensor.info.name).to_owned();
        Tensor { info: TensorInfo { name, ..tensor.info }, ..tensor }
    });
    match (single, options.max_shard_bytes) {
        (Some(name), _) => vec![(name, tensors.collect())],
        (None, None) => {
            let own = component.files.iter().map(WeightFile::safetensors_name).zip(counts);
            own.map(|(name, count)| (name, tensors.by_ref().take(count).collect())).collect()
        }
        (None, Some(max_bytes)) => {
            let all: Vec<Tensor> = tensors.collect();
            let infos = all.iter().map(|tensor| tensor.info.clone()).collect();
            let mut all = all.into_iter();
            let cut = shard(infos, &component.stem(), max_bytes).into_iter();
            cut.map(|(name, infos)| (component.place(&name), all.by_ref().take(infos.len()).collect())).collect()
        }
    }
}
