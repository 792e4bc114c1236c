//! What the reader of a container gives back: tensors, and where each lies.

use std::collections::HashMap;
use std::sync::Arc;

use super::safetensors::Header;
use crate::io::MappedFile;
use crate::tensor::TensorInfo;

/// The tensors of a file.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of the file; `offset` counts from `data_start`, which is 0 for all but safetensors, or from the start of what
    /// is held.
    pub header: Header,
    /// By position: what is held of the tensors that do not lie in the file as they are.
    pub held: HashMap<usize, Arc<MappedFile>>,
    /// What a user should know of how it was read.
    pub notes: Vec<String>,
}

impl Found {
    /// Adds a tensor that lies in the file, or in `held`.
    pub fn push(&mut self, info: TensorInfo, held: Option<Arc<MappedFile>>) {
        if let Some(held) = held {
            self.held.insert(self.header.tensors.len(), held);
        }
        self.header.tensors.push(info);
    }

    /// Puts tensors of wide elements in front, else in the order they have: written one behind the other as safetensors,
    /// every one of them begins at a multiple of its element.
    pub fn align(&mut self) {
        let mut order: Vec<usize> = (0..self.header.tensors.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(self.header.tensors[*at].dtype.bits()));
        let mut held = std::mem::take(&mut self.held);
        self.held = order.iter().enumerate().filter_map(|(to, from)| Some((to, held.remove(from)?))).collect();
        let mut tensors: Vec<Option<TensorInfo>> =
            std::mem::take(&mut self.header.tensors).into_iter().map(Some).collect();
        self.header.tensors = order.iter().filter_map(|from| tensors[*from].take()).collect();
    }
}
