//! A set of tensors behind one list of names: one file, a directory with one file, or shards with an index.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::json;
use super::safetensors::{Header, read_header};
use crate::error::{Error, Result};
use crate::io::MappedFile;
use crate::tensor::{TensorInfo, TensorView};

/// File stems under which Hugging Face libraries store weights, in the order they are looked for.
pub const WEIGHT_STEMS: [&str; 3] = ["model", "diffusion_pytorch_model", "adapter_model"];

/// Weights in containers that are recognised and cannot be read yet.
const FOREIGN_WEIGHTS: [&str; 6] = ["bin", "pt", "pth", "ckpt", "gguf", "npz"];

/// How the tensors were found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    /// A file that was named itself.
    File,
    /// A directory with one weight file.
    Directory,
    /// A directory with shards and an index of this file name.
    Sharded {
        /// As in `model.safetensors.index.json`.
        index: String,
        /// `metadata` of the index.
        metadata: Map<String, Value>,
    },
}

/// An opened checkpoint or adapter: every header read and checked, no data touched.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    container: Container,
    files: Vec<WeightFile>,
    by_name: HashMap<String, (usize, usize)>,
}

/// One file of a checkpoint.
#[derive(Debug)]
pub struct WeightFile {
    /// Path below the checkpoint's directory.
    pub name: String,
    /// Its mapped bytes.
    pub map: Arc<MappedFile>,
    /// Its header.
    pub header: Header,
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

    /// The file the tensor lies in.
    pub fn path(&self) -> &Path {
        self.map.path()
    }
}

impl Checkpoint {
    /// Opens `path`: a safetensors file, or a directory that holds one in a usual layout.
    ///
    /// # Errors
    /// Whatever is wrong with the files or with the index that ties them together, naming file and tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|source| Error::io(path, "cannot open", source))?;
        if kind.is_dir() { Self::open_directory(path, &WEIGHT_STEMS) } else { Self::open_file(path) }
    }

    /// Opens the weights with one of `stems` in the directory `path`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_directory(path: &Path, stems: &[&str]) -> Result<Self> {
        for stem in stems {
            let index = format!("{stem}.safetensors.index.json");
            if path.join(&index).exists() {
                return Self::open_sharded(path, index);
            }
            let name = format!("{stem}.safetensors");
            if path.join(&name).exists() {
                return Self::assemble(path, Container::Directory, vec![open_weights(path, &name)?]);
            }
        }
        let listing = list_weights(path)?;
        match listing.safetensors.as_slice() {
            [name] => Self::assemble(path, Container::Directory, vec![open_weights(path, name)?]),
            [] => Err(no_weights(path, &listing.foreign)),
            names => Err(Error::unsupported(
                path,
                format!(
                    "holds {} safetensors files and no index that ties them together: {}",
                    names.len(),
                    join(names)
                ),
            )
            .hint("name one of the files, or restore `model.safetensors.index.json`")),
        }
    }

    fn open_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension == "json") {
            return Err(Error::unsupported(path, "is not a weight file").hint("name the directory it lies in"));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::assemble(path, Container::File, vec![open_weights(directory, &name)?])
    }

    fn open_sharded(directory: &Path, index: String) -> Result<Self> {
        let path = directory.join(&index);
        let mut object = json::read_object(&path)?;
        let map = match object.get("weight_map") {
            Some(Value::Object(map)) => map,
            _ => {
                return Err(Error::malformed(
                    &path,
                    "`weight_map`",
                    "must be an object of tensor names and file names",
                ));
            }
        };
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            let at = || format!("`weight_map`, tensor `{tensor}`");
            let file = file.as_str().ok_or_else(|| Error::malformed(&path, at(), "its file must be a text"))?;
            if !stays_inside(file) {
                return Err(Error::malformed(&path, at(), format!("the file `{file}` lies outside the directory")));
            }
            shards.entry(file).or_default().push(tensor);
        }
        if shards.is_empty() {
            return Err(Error::malformed(&path, "`weight_map`", "names no tensors"));
        }
        let mut files = Vec::with_capacity(shards.len());
        for (name, tensors) in &shards {
            if !directory.join(name).exists() {
                let problem = format!("the shard `{name}` with {} tensors is missing", tensors.len());
                return Err(Error::malformed(&path, "`weight_map`", problem).hint("the download is incomplete"));
            }
            let file = open_weights(directory, name)?;
            check_index(&path, &file, tensors)?;
            files.push(file);
        }
        let metadata = match object.remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        Self::assemble(directory, Container::Sharded { index, metadata }, files)
    }

    fn assemble(root: &Path, container: Container, files: Vec<WeightFile>) -> Result<Self> {
        let mut by_name = HashMap::with_capacity(files.iter().map(|file| file.header.tensors.len()).sum());
        for (at, file) in files.iter().enumerate() {
            for (position, tensor) in file.header.tensors.iter().enumerate() {
                if let Some((other, _)) = by_name.insert(tensor.name.clone(), (at, position)) {
                    let other: &WeightFile = &files[other];
                    let problem = format!("stands in `{}` as well", other.name);
                    return Err(Error::malformed(file.map.path(), format!("tensor `{}`", tensor.name), problem));
                }
            }
        }
        Ok(Self { root: root.into(), container, files, by_name })
    }

    /// The path that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that holds the weights, and with them the config and its companions.
    pub fn directory(&self) -> &Path {
        match self.container {
            Container::File => self.root.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")),
            _ => &self.root,
        }
    }

    /// How the weights are stored.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The files in name order.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// All tensors, file by file, each in offset order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> + Clone {
        self.files.iter().flat_map(|file| &file.header.tensors)
    }

    /// Number of tensors.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<Stored> {
        let &(file, position) = self.by_name.get(name)?;
        Some(self.stored(file, position))
    }

    /// What is known of the tensor of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&(file, position)| &self.files[file].header.tensors[position])
    }

    /// The tensor at `position` of file `file`.
    pub fn stored(&self, file: usize, position: usize) -> Stored {
        let file = &self.files[file];
        let info = file.header.tensors[position].clone();
        let start = file.header.data_start + info.offset;
        Stored { map: Arc::clone(&file.map), info, start }
    }

    /// `config.json` beside the weights, where there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be read as a JSON object.
    pub fn config(&self) -> Result<Option<Map<String, Value>>> {
        let path = self.directory().join("config.json");
        if path.is_file() { json::read_object(&path).map(Some) } else { Ok(None) }
    }
}

/// Whether a file name of an index stays inside its directory.
fn stays_inside(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some() && components.all(|component| matches!(component, Component::Normal(_)))
}

fn open_weights(directory: &Path, name: &str) -> Result<WeightFile> {
    let map = MappedFile::open(&directory.join(name))?;
    let header = read_header(map.path(), map.bytes())?;
    map.release(0, header.data_start);
    Ok(WeightFile { name: name.into(), map: Arc::new(map), header })
}

/// The index and a shard must agree on what the shard holds.
fn check_index(index: &Path, file: &WeightFile, listed: &[&str]) -> Result<()> {
    let held: std::collections::HashSet<&str> = file.header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    if let Some(missing) = listed.iter().find(|name| !held.contains(**name)) {
        let problem = format!("the index puts it into `{}`, which does not hold it", file.name);
        return Err(Error::malformed(index, format!("tensor `{missing}`"), problem));
    }
    let listed: std::collections::HashSet<&str> = listed.iter().copied().collect();
    match file.header.tensors.iter().find(|tensor| !listed.contains(tensor.name.as_str())) {
        None => Ok(()),
        Some(extra) => {
            let problem = format!("lies in `{}`, the index does not put it there", file.name);
            Err(Error::malformed(index, format!("tensor `{}`", extra.name), problem).hint("the index is out of date"))
        }
    }
}

struct Listing {
    safetensors: Vec<String>,
    foreign: Vec<String>,
}

fn list_weights(directory: &Path) -> Result<Listing> {
    let mut listing = Listing { safetensors: Vec::new(), foreign: Vec::new() };
    let entries = std::fs::read_dir(directory).map_err(|source| Error::io(directory, "cannot list", source))?;
    for entry in entries {
        let entry = entry.map_err(|source| Error::io(directory, "cannot list", source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if extension == "safetensors" {
            listing.safetensors.push(name);
        } else if FOREIGN_WEIGHTS.contains(&extension) {
            listing.foreign.push(name);
        }
    }
    listing.safetensors.sort();
    listing.foreign.sort();
    Ok(listing)
}

fn no_weights(directory: &Path, foreign: &[String]) -> Error {
    if foreign.is_empty() {
        return Error::unsupported(directory, "holds no safetensors weights");
    }
    let what = format!("holds no safetensors weights; {} cannot be read", join(foreign));
    Error::unsupported(directory, what).hint("save the weights as safetensors (`save_pretrained` does by default)")
}

fn join(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(4).map(|name| format!("`{name}`")).collect();
    if names.len() > shown.len() { format!("{} …", shown.join(", ")) } else { shown.join(", ") }
}
