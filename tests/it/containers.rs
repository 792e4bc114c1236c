//! Writers of the containers that lorakit only reads, as short as they can be.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;

use crate::support::Tensor;

/// A zip archive of stored entries, each beginning at a multiple of 64 as torch has it.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let at = out.len() as u32;
        let unpadded = out.len() + 30 + name.len() + 4;
        let padding = unpadded.next_multiple_of(64) - unpadded;
        out.extend(b"PK\x03\x04");
        out.extend([20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend([0; 4]);
        out.extend((data.len() as u32).to_le_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out.extend((name.len() as u16).to_le_bytes());
        out.extend(((padding + 4) as u16).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(b"FB");
        out.extend((padding as u16).to_le_bytes());
        out.extend(vec![b'Z'; padding]);
        out.extend(data);
        directory.extend(b"PK\x01\x02");
        directory.extend([20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        directory.extend([0; 4]);
        directory.extend((data.len() as u32).to_le_bytes());
        directory.extend((data.len() as u32).to_le_bytes());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let at = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// A tensor of a PyTorch file: which storage, from which element, with which strides.
pub struct View<'a> {
    pub name: &'a str,
    pub storage: usize,
    pub offset: u32,
    pub shape: Vec<u32>,
    pub strides: Vec<u32>,
}

/// What a dict of a PyTorch file holds: the same tensor under a name, or a dict.
pub enum Named<'a> {
    Tensor(&'a str),
    Dict(&'a str, Vec<Named<'a>>),
}

/// A file of `torch.save` with these storages and tensors.
pub fn torch_of(storages: &[Tensor], views: &[View<'_>]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for view in views {
        text(&mut pickle, view.name);
        tensor(&mut pickle, storages, view);
    }
    pickle.extend(b"u.");
    archive(pickle, storages)
}

/// A file of `torch.save` with nested dicts whose tensors are all `storage`.
pub fn torch_tree(storage: &Tensor, entries: &[Named<'_>]) -> Vec<u8> {
    fn dict(pickle: &mut Vec<u8>, storage: &Tensor, entries: &[Named<'_>]) {
        pickle.extend(b"}(");
        for entry in entries {
            match entry {
                Named::Tensor(name) => {
                    let shape: Vec<u32> = storage.shape.iter().map(|size| *size as u32).collect();
                    let strides = vec![1; shape.len()];
                    text(pickle, name);
                    tensor(
                        pickle,
                        std::slice::from_ref(storage),
                        &View { name, storage: 0, offset: 0, shape, strides },
                    );
                }
                Named::Dict(name, entries) => {
                    text(pickle, name);
                    dict(pickle, storage, entries);
                }
            }
        }
        pickle.push(b'u');
    }
    let mut pickle = b"\x80\x02".to_vec();
    dict(&mut pickle, storage, entries);
    pickle.push(b'.');
    archive(pickle, std::slice::from_ref(storage))
}

/// The file with this pickle and these storages.
pub fn archive(pickle: Vec<u8>, storages: &[Tensor]) -> Vec<u8> {
    let data = storages.iter().enumerate().map(|(at, storage)| (format!("x/data/{at}"), storage.data.clone()));
    let entries: Vec<_> = std::iter::once(("x/data.pkl".to_owned(), pickle)).chain(data).collect();
    zip(&entries)
}

/// A text, pushed.
pub fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

/// A number, pushed.
pub fn number(pickle: &mut Vec<u8>, number: u32) {
    pickle.push(b'J');
    pickle.extend(number.to_le_bytes());
}

/// A tensor, rebuilt from its storage and pushed.
pub fn tensor(pickle: &mut Vec<u8>, storages: &[Tensor], view: &View<'_>) {
    let storage = &storages[view.storage];
    let (class, width) = match storage.dtype {
        Dtype::F64 => ("DoubleStorage", 8),
        Dtype::F32 => ("FloatStorage", 4),
        Dtype::F16 => ("HalfStorage", 2),
        Dtype::BF16 => ("BFloat16Storage", 2),
        Dtype::I64 => ("LongStorage", 8),
        other => panic!("{other:?} has no class here"),
    };
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(pickle, "storage");
    pickle.extend(format!("ctorch\n{class}\n").bytes());
    text(pickle, &view.storage.to_string());
    text(pickle, "cpu");
    number(pickle, (storage.data.len() / width) as u32);
    pickle.extend(b"tQ");
    number(pickle, view.offset);
    for numbers in [&view.shape, &view.strides] {
        pickle.push(b'(');
        numbers.iter().for_each(|size| number(pickle, *size));
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

/// A file of `torch.save` with these tensors, each in a storage of its own.
pub fn write_torch(path: &Path, tensors: &[(&str, Tensor)]) {
    let storages: Vec<Tensor> = tensors.iter().map(|(_, tensor)| tensor.clone()).collect();
    let views: Vec<View<'_>> = tensors
        .iter()
        .enumerate()
        .map(|(storage, (name, tensor))| {
            let shape: Vec<u32> = tensor.shape.iter().map(|size| *size as u32).collect();
            let strides = (0..shape.len()).map(|at| shape[at + 1..].iter().product()).collect();
            View { name, storage, offset: 0, shape, strides }
        })
        .collect();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, torch_of(&storages, &views)).unwrap();
}

/// One array of numpy with this dtype and order.
pub fn npy(descr: &str, fortran: bool, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let fortran = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({sizes}), }}");
    header.push_str(&" ".repeat((10 + header.len() + 1).next_multiple_of(64) - 11 - header.len()));
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    out
}
