//! One file of weights in any container that can be read, and the tensors in it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::format::{FORMATS, Format};
use super::found::Found;
use super::gguf::{self, GgufFile};
use super::safetensors::{self, Header, looks_like, read_header};
use super::zip::Archive;
use crate::error::{Error, Result};
use crate::io::MappedFile;
use crate::tensor::{Dtype, TensorInfo, TensorView, usize_of};

/// What the text begins with that Git LFS leaves in place of a file.
const GIT_LFS: &[u8] = b"version https://git-lfs";

/// One file of a checkpoint.
#[derive(Debug)]
pub struct WeightFile {
    /// Path below the checkpoint's directory.
    pub name: String,
    /// How it keeps its tensors.
    pub format: &'static Format,
    /// Its mapped bytes.
    pub map: Arc<MappedFile>,
    /// Its tensors and metadata. Other containers than safetensors have no metadata here, and `data_start` is 0 there.
    pub header: Header,
    /// What a GGUF file says before its data.
    pub gguf: Option<Box<gguf::Header>>,
    /// What a user should know of how it was read.
    pub notes: Vec<String>,
    /// By position: what is held of the tensors that do not lie in the file as they are.
    held: HashMap<usize, Arc<MappedFile>>,
    /// The tensors it stores, where it is [seen](Self::seeing) with others.
    own: Option<Vec<Stored>>,
}

/// A tensor that lies in a mapped file. Cheap to clone; keeps the file mapped.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The file.
    pub map: Arc<MappedFile>,
    /// Name, dtype and shape.
    pub info: TensorInfo,
    /// First byte, counted from the start of the file.
    pub start: u64,
}

impl Stored {
    /// A tensor whose bytes were made from what `source` holds and are kept in memory: `info` says what they are.
    pub fn held(source: &MappedFile, info: TensorInfo, bytes: Vec<u8>) -> Self {
        debug_assert_eq!(info.bytes, bytes.len() as u64, "the bytes of tensor `{}`", info.name);
        Self { map: Arc::new(source.held(bytes)), info, start: 0 }
    }

    /// The tensor's bytes with their meaning.
    pub fn view(&self) -> Result<TensorView<'_>> {
        let data = self.map.slice(self.start, self.info.bytes)?;
        Ok(TensorView { dtype: &self.info.dtype, shape: &self.info.shape, data })
    }

    /// Rows and columns: the first dimension against all others.
    pub fn rows_cols(&self) -> (usize, usize) {
        let (rows, cols) = self.info.shape.rows_cols();
        (usize_of(rows), usize_of(cols))
    }

    /// How many elements it has.
    pub fn elements(&self) -> usize {
        let (rows, cols) = self.rows_cols();
        rows * cols
    }

    /// `len` of its bytes from byte `offset` of it, in a buffer of their own where they are made as they are read.
    ///
    /// # Errors
    /// When the file is no longer there as it was mapped, or they cannot be made.
    pub fn read(&self, offset: u64, len: u64) -> Result<Cow<'_, [u8]>> {
        self.map.read(self.start + offset, len)
    }

    /// The file the tensor lies in.
    pub fn path(&self) -> &Path {
        self.map.path()
    }
}

impl WeightFile {
    /// Opens `name` in `directory`. What it is, its first bytes tell; its ending only helps to say what it should be.
    ///
    /// # Errors
    /// When it is none of the containers that can be read, or damaged, or made to do harm.
    pub fn open(directory: &Path, name: &str) -> Result<Self> {
        let map = Arc::new(MappedFile::open(&directory.join(name))?);
        let (format, Found { header, held, notes }) = read(&map)?;
        map.advise_scattered(false);
        map.release(0, if header.data_start > 0 { header.data_start } else { map.len() });
        Ok(Self { name: name.into(), format, map, header, gguf: None, notes, held, own: None })
    }

    /// An opened GGUF file.
    ///
    /// # Errors
    /// When a tensor lies outside the file.
    pub fn of_gguf(file: GgufFile) -> Result<Self> {
        let name = file.map.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut found = Found::default();
        let mut left = 0;
        for (position, info) in file.header.tensors.iter().enumerate() {
            if info.bytes == 0 {
                // Its place may be behind the end, where the data would be aligned to.
                found.push(TensorInfo { offset: 0, ..info.clone() }, None);
                continue;
            }
            match file.stored(position) {
                Ok(stored) => {
                    let info = TensorInfo { offset: stored.start, ..stored.info };
                    found.push(info, stored.map.is_held().then_some(stored.map));
                }
                // Blocks that cannot be turned are known by name only.
                Err(_) => {
                    left += 1;
                    let dtype = Dtype::Other(format!("big-endian {}", info.dtype).into());
                    found
                        .push(TensorInfo { dtype, offset: file.header.data_start + info.offset, ..info.clone() }, None);
                }
            }
        }
        if file.header.big_endian {
            let blocks = if left > 0 { format!("; blocks of {left} tensors cannot be read") } else { String::new() };
            found.notes.push(format!("`{name}` has the highest byte of every number first{blocks}"));
        }
        let Found { header, held, notes } = found;
        Ok(Self {
            name,
            format: &gguf::FORMAT,
            map: file.map,
            header,
            gguf: Some(Box::new(file.header)),
            notes,
            held,
            own: None,
        })
    }

    /// Tensors that lie in no file yet. What is asked of a file, `file` answers.
    pub(super) fn of_tensors(file: &Arc<MappedFile>, metadata: Vec<(String, String)>, tensors: Vec<Stored>) -> Self {
        let held = tensors.iter().enumerate().map(|(at, stored)| (at, Arc::clone(&stored.map))).collect();
        let tensors = tensors.into_iter().map(|stored| TensorInfo { offset: stored.start, ..stored.info }).collect();
        let header = Header { metadata, tensors, data_start: 0 };
        let (format, map) = (&safetensors::FORMAT, Arc::clone(file));
        Self { name: String::new(), format, map, header, gguf: None, notes: Vec::new(), held, own: None }
    }

    /// Bytes that are held in memory for it.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held.values().map(|held| held.len()).sum()
    }

    /// Lets go of what is held in memory for it: its tensors can be described, and no longer read.
    pub(super) fn let_go(&mut self) {
        self.held.clear();
    }

    /// The same file with other tensors: each lies in one of those it has, at a byte of it.
    pub fn with_tensors(mut self, tensors: Vec<(usize, TensorInfo)>) -> Self {
        let held = std::mem::take(&mut self.held);
        let of = |(at, (position, _)): (usize, &(usize, TensorInfo))| Some((at, Arc::clone(held.get(position)?)));
        self.held = tensors.iter().enumerate().filter_map(of).collect();
        self.header.tensors = tensors.into_iter().map(|(_, info)| info).collect();
        self
    }

    /// The same file with `tensors` in place of those it stores: these, or what is made of them.
    #[must_use]
    pub fn seeing(mut self, tensors: Vec<Stored>) -> Self {
        self.own = Some((0..self.header.tensors.len()).map(|at| self.stored(at)).collect());
        let made = tensors.iter().enumerate().filter(|(_, stored)| !Arc::ptr_eq(&stored.map, &self.map));
        self.held = made.map(|(at, stored)| (at, Arc::clone(&stored.map))).collect();
        let start = self.header.data_start;
        let info = |(at, stored): (usize, Stored)| {
            let front = if self.held.contains_key(&at) { 0 } else { start };
            TensorInfo { offset: stored.start - front, ..stored.info }
        };
        self.header.tensors = tensors.into_iter().enumerate().map(info).collect();
        self
    }

    /// The tensors it stores, however it is seen.
    pub fn own(&self) -> Vec<Stored> {
        match &self.own {
            Some(own) => own.clone(),
            None => (0..self.header.tensors.len()).map(|at| self.stored(at)).collect(),
        }
    }

    /// The tensor at `position` of the header.
    pub fn stored(&self, position: usize) -> Stored {
        let info = self.header.tensors[position].clone();
        let (map, front) = match self.held.get(&position) {
            // What is held has no header.
            Some(held) => (held, 0),
            None => (&self.map, self.header.data_start),
        };
        Stored { map: Arc::clone(map), start: front + info.offset, info }
    }

    /// The name of the file when it is written as safetensors.
    pub fn safetensors_name(&self) -> String {
        safetensors_name(&self.name)
    }
}

/// `pytorch_model-00001-of-00002.bin` is `model-00001-of-00002.safetensors`, and the index of such files likewise; of a GGUF file
/// only the number is kept.
pub fn safetensors_name(name: &str) -> String {
    const INDEX: &str = ".index.json";
    if let Some((_, number, count)) = gguf::parse_name(name) {
        return format!("model-{:05}-of-{count:05}.safetensors", number + 1);
    }
    if name.ends_with(".gguf") {
        return "model.safetensors".into();
    }
    let (stem, index) = name.strip_suffix(INDEX).map_or((name, ""), |stem| (stem, INDEX));
    let foreign = FORMATS.iter().filter(|format| !format.is_written).flat_map(|format| format.endings);
    let foreign = foreign.copied().find_map(|ending| stem.strip_suffix(ending)?.strip_suffix('.'));
    let Some(stem) = foreign else { return name.to_owned() };
    let (folder, file) = stem.rsplit_once('/').map_or(("", stem), |(_, file)| (&stem[..stem.len() - file.len()], file));
    let file = file.strip_prefix("pytorch_model").map_or(file.to_owned(), |rest| format!("model{rest}"));
    let file = if file == "consolidated.00" { "consolidated".to_owned() } else { file };
    format!("{folder}{file}.safetensors{index}")
}

fn read(map: &Arc<MappedFile>) -> Result<(&'static Format, Found)> {
    let (path, bytes) = (map.path(), map.bytes());
    if bytes.starts_with(GIT_LFS) {
        return Err(Error::unsupported(path, "is a Git LFS pointer, not the file itself")
            .hint("fetch the real file with `git lfs pull`"));
    }
    let named = Format::named(path);
    if named != Some(&safetensors::FORMAT) {
        // Headers lie in front of every tensor.
        map.advise_scattered(true);
    }
    for format in FORMATS {
        if let Some(mut found) = (format.read)(map)? {
            if !format.is_written {
                found.align();
            }
            return Ok((format, found));
        }
    }
    if Archive::begins(bytes) {
        let what = "is a zip archive without `data.pkl`, not a file of `torch.save`";
        return Err(Error::unsupported(path, what));
    }
    match named.filter(|format| !format.is_written) {
        Some(format) => Err(unknown(path, bytes, format.made)),
        None => Ok((&safetensors::FORMAT, Found { header: read_header(path, bytes)?, ..Found::default() })),
    }
}

fn unknown(path: &Path, bytes: &[u8], wanted: &str) -> Error {
    if bytes.is_empty() {
        return Error::malformed(path, "byte 0", format!("the file is empty, not {wanted}"));
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Error::unsupported(
            path,
            "is a tar archive, as PyTorch wrote before 0.1.10 and NeMo does: it cannot be read",
        );
    }
    let seen = match bytes {
        [0x80, ..] => "it is a bare pickle, without the frame that PyTorch puts around its tensors",
        [0, 0, 0, 0, ..] => "it begins with zeros",
        _ => looks_like(bytes).strip_suffix("not safetensors").map_or(looks_like(bytes), |_| "nothing in it is known"),
    };
    Error::malformed(path, "byte 0", format!("the file is not {wanted}: {seen}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_foreign_files_become_those_of_safetensors() {
        for (name, written) in [
            ("pytorch_model.bin", "model.safetensors"),
            ("pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"),
            ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
            ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
            ("adapter_model.bin", "adapter_model.safetensors"),
            ("consolidated.00.pth", "consolidated.safetensors"),
            ("v1-5-pruned.ckpt", "v1-5-pruned.safetensors"),
            ("weights.npz", "weights.safetensors"),
            ("tiny-q4_k_m.gguf", "model.safetensors"),
            ("tiny-00002-of-00003.gguf", "model-00002-of-00003.safetensors"),
            ("model.safetensors", "model.safetensors"),
            ("model.safetensors.index.json", "model.safetensors.index.json"),
        ] {
            assert_eq!(safetensors_name(name), written);
        }
    }
}
