//! The files an output consists of: names, headers and offsets, all known before anything is computed.

use serde_json::{Map, Value};

use super::safetensors::render_header;
use crate::tensor::TensorInfo;

/// One safetensors file to be written.
#[derive(Debug, Clone)]
pub struct OutputFile {
    /// Path below the output directory.
    pub name: String,
    /// Length and header, as they stand in front of the data.
    pub header: Vec<u8>,
    /// The tensors in file order, offsets counted from the end of the header.
    pub tensors: Vec<TensorInfo>,
    /// Whole length of the file.
    pub bytes: u64,
}

impl OutputFile {
    /// Lays `tensors` out in the order given; their offsets are computed here.
    pub fn new(name: String, metadata: &[(String, String)], mut tensors: Vec<TensorInfo>) -> Self {
        let mut end = 0;
        for tensor in &mut tensors {
            tensor.offset = end;
            end += tensor.bytes;
        }
        let header = render_header(metadata, &tensors);
        let bytes = header.len() as u64 + end;
        Self { name, header, tensors, bytes }
    }

    /// Where the bytes of `tensor` begin in the file.
    pub fn start_of(&self, tensor: &TensorInfo) -> u64 {
        self.header.len() as u64 + tensor.offset
    }
}

/// Name of the index beside shards with this stem.
pub fn index_name(stem: &str) -> String {
    format!("{stem}.safetensors.index.json")
}

/// Cuts `tensors` into files of at most `max_bytes` of data in the order given; a tensor that is larger gets a file of its
/// own. One file is called `{stem}.safetensors`, several are numbered as transformers does.
pub fn shard(tensors: Vec<TensorInfo>, stem: &str, max_bytes: u64) -> Vec<(String, Vec<TensorInfo>)> {
    let mut parts: Vec<Vec<TensorInfo>> = vec![Vec::new()];
    let mut used = 0_u64;
    for tensor in tensors {
        if used > 0 && used.saturating_add(tensor.bytes) > max_bytes {
            parts.push(Vec::new());
            used = 0;
        }
        used += tensor.bytes;
        parts.last_mut().expect("there is always a part").push(tensor);
    }
    let count = parts.len();
    let name = |at: usize| match count {
        1 => format!("{stem}.safetensors"),
        _ => format!("{stem}-{:05}-of-{count:05}.safetensors", at + 1),
    };
    parts.into_iter().enumerate().map(|(at, tensors)| (name(at), tensors)).collect()
}

/// The index of sharded weights: `metadata` with a true `total_size` (bytes of tensor data), and the file of every tensor
/// in file order. `files` come with their paths as seen from the index.
pub fn index(mut metadata: Map<String, Value>, files: &[(&str, &OutputFile)]) -> Value {
    let total: u64 = files.iter().flat_map(|(_, file)| &file.tensors).map(|tensor| tensor.bytes).sum();
    metadata.insert("total_size".into(), total.into());
    let mut map: Vec<(&str, &str)> =
        files.iter().flat_map(|(path, file)| file.tensors.iter().map(|tensor| (tensor.name.as_str(), *path))).collect();
    map.sort_unstable();
    let map: Map<String, Value> = map.into_iter().map(|(tensor, file)| (tensor.into(), file.into())).collect();
    serde_json::json!({ "metadata": metadata, "weight_map": map })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    fn tensor(name: &str, bytes: u64) -> TensorInfo {
        TensorInfo { name: name.into(), dtype: Dtype::U8, shape: Shape::from(vec![bytes]), offset: 0, bytes }
    }

    #[test]
    fn shards_are_cut_in_order_and_numbered_from_one() {
        let files = shard(vec![tensor("a", 4), tensor("b", 4), tensor("c", 9), tensor("d", 1)], "model", 8);
        let names: Vec<(&str, usize)> = files.iter().map(|(name, tensors)| (name.as_str(), tensors.len())).collect();
        assert_eq!(
            names,
            [
                ("model-00001-of-00003.safetensors", 2),
                ("model-00002-of-00003.safetensors", 1),
                ("model-00003-of-00003.safetensors", 1)
            ]
        );
    }

    #[test]
    fn one_file_is_not_numbered() {
        assert_eq!(shard(vec![tensor("a", 4)], "model", 8)[0].0, "model.safetensors");
    }

    #[test]
    fn the_index_counts_data_bytes_only() {
        let file = OutputFile::new("x.safetensors".into(), &[], vec![tensor("b", 3), tensor("a", 5)]);
        let index = index(Map::new(), &[("x.safetensors", &file)]);
        assert_eq!(index["metadata"]["total_size"], 8);
        assert_eq!(index["weight_map"]["a"], "x.safetensors");
    }
}
