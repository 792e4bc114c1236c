//! A set of tensors behind one list of names: one file, a directory with one file, or shards with an index.

use std::collections::BTreeMap;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;

use foldhash::HashSet;
use serde_json::{Map, Value};

use super::discover::{self, Place, WEIGHT_STEMS};
use super::format::Format;
use super::gguf::{Gguf, Metadata, looks_like_gguf};
use super::json;
use super::pipeline::{self, Component, Folder};
use super::places::Places;
use super::weight_file::{Stored, WeightFile};
use super::{safetensors, side};
use crate::error::{Error, Result};
use crate::io::{MappedFile, is_there, read_start};
use crate::limits::MAX_HELD_BYTES_TOGETHER;
use crate::tensor::TensorInfo;

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
    /// A file that was named itself, and the others that are one checkpoint with it.
    Split,
    /// A directory with the folders of a diffusion pipeline. The names of their tensors begin with the folder and a dot.
    Pipeline(Vec<Folder>),
}

/// An opened checkpoint or adapter: every header read and checked, no data touched.
///
/// ```
/// let model = lorakit::Checkpoint::open("fixtures/tiny/base")?;
/// assert_eq!(model.count(), 21);
/// let head = model.info("lm_head.weight").expect("a tensor of this name");
/// assert_eq!((head.dtype.name(), head.shape.as_slice()), ("BF16", &[128, 64][..]));
/// assert_eq!(model.read_f32("lm_head.weight")?.len(), 128 * 64);
/// # Ok::<(), lorakit::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    container: Container,
    files: Vec<WeightFile>,
    gguf: Option<Metadata>,
    by_name: Places,
}

impl Checkpoint {
    /// Opens `path`: a weight file, or a directory that holds one in a usual layout.
    ///
    /// # Errors
    /// Whatever is wrong with the files or with the index that ties them together, naming file and tensor.
    pub fn open(path: &(impl AsRef<Path> + ?Sized)) -> Result<Self> {
        Self::open_path(path.as_ref())
    }

    fn open_path(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|source| Error::io(path, "cannot open", source))?;
        if !kind.is_dir() {
            return Self::open_file(path);
        }
        match pipeline::folders(path)? {
            Some(folders) => Self::open_pipeline(path, folders),
            None => Self::open_directory(path, &WEIGHT_STEMS),
        }
    }

    fn open_pipeline(root: &Path, names: Vec<String>) -> Result<Self> {
        let (mut folders, mut files) = (Vec::with_capacity(names.len()), Vec::new());
        let mut held = Together::default();
        for name in names {
            let Self { container, files: mut own, .. } = Self::open_directory(&root.join(&name), &WEIGHT_STEMS)?;
            for file in &mut own {
                held.add(file)?;
                file.name = format!("{name}/{}", file.name);
                file.header.tensors.iter_mut().for_each(|tensor| tensor.name.insert_str(0, &format!("{name}.")));
            }
            folders.push(Folder { name, container, files: own.len() });
            files.append(&mut own);
        }
        Self::assemble(root, Container::Pipeline(folders), files)
    }

    /// Opens the weights with one of `stems` in the directory `path`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_directory(path: &Path, stems: &[&str]) -> Result<Self> {
        match discover::locate(path, stems)? {
            Place::Index(index) => Self::open_sharded(path, index),
            Place::File(name) if is_gguf(&path.join(&name))? => {
                Self::open_gguf(path, &path.join(&name), |_| Container::Directory)
            }
            Place::File(name) => Self::assemble(path, Container::Directory, vec![WeightFile::open(path, &name)?]),
        }
    }

    fn open_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension == "json") {
            return Err(Error::unsupported(path, "is not a weight file").hint("name the directory it lies in"));
        }
        if is_gguf(path)? {
            return Self::open_gguf(path, path, |files| if files == 1 { Container::File } else { Container::Split });
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::assemble(path, Container::File, vec![WeightFile::open(directory, &name)?])
    }

    /// Opens the GGUF file `path`, and those that are one checkpoint with it.
    fn open_gguf(root: &Path, path: &Path, container: impl Fn(usize) -> Container) -> Result<Self> {
        let (metadata, files) = Gguf::open(path)?.into_parts();
        let files = files.into_iter().map(WeightFile::of_gguf).collect::<Result<Vec<_>>>()?;
        let opened = Self::assemble(root, container(files.len()), files)?;
        Ok(Self { gguf: Some(metadata), ..opened })
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
        let mut held = Together::default();
        for (name, tensors) in &shards {
            if !is_there(&directory.join(name))? {
                let problem = format!("the shard `{name}` with {} tensors is missing", tensors.len());
                return Err(Error::malformed(&path, "`weight_map`", problem).hint("the download is incomplete"));
            }
            let file = WeightFile::open(directory, name)?;
            held.add(&file)?;
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
        let by_name = Places::of(&files).map_err(|[(file, position), (other, _)]| {
            let (file, other): (&WeightFile, &WeightFile) = (&files[file], &files[other]);
            let there =
                if other.name == file.name { "there twice".into() } else { format!("in `{}` as well", other.name) };
            let at = format!("tensor `{}`", file.header.tensors[position].name);
            Error::malformed(file.map.path(), at, format!("stands {there}"))
        })?;
        Ok(Self { root: root.into(), container, files, gguf: None, by_name })
    }

    /// Tensors that lie in no file yet, with the text of a header. They are known by `root`, and `file` answers what is asked of a
    /// file.
    ///
    /// # Errors
    /// When two of them have one name.
    pub fn of_tensors(
        root: &Path,
        file: &Arc<MappedFile>,
        metadata: Vec<(String, String)>,
        tensors: Vec<Stored>,
    ) -> Result<Self> {
        Self::assemble(root, Container::File, vec![WeightFile::of_tensors(file, metadata, tensors)])
    }

    /// The same with the tensors of the file `name` in `directory`.
    ///
    /// # Errors
    /// When it cannot be read, or holds a tensor of a name that is there.
    pub fn with_file(self, directory: &Path, name: &str) -> Result<Self> {
        let Self { root, container, mut files, gguf, .. } = self;
        files.push(WeightFile::open(directory, name)?);
        let joined = Self::assemble(&root, container, files)?;
        Ok(Self { gguf, ..joined })
    }

    /// The path that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that holds the weights, and with them the config and its companions.
    pub fn directory(&self) -> &Path {
        match self.container {
            Container::File | Container::Split => {
                self.root.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
            }
            _ => &self.root,
        }
    }

    /// The typed metadata of GGUF files, without what says that they are several.
    pub fn gguf(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }

    /// The same with other tensors in its files: what `see` makes of each.
    ///
    /// # Errors
    /// When `see` fails, or two tensors have one name.
    pub fn seen_as(self, see: impl FnMut(WeightFile) -> Result<WeightFile>) -> Result<Self> {
        let files = self.files.into_iter().map(see).collect::<Result<_>>()?;
        let seen = Self::assemble(&self.root, self.container, files)?;
        Ok(Self { gguf: self.gguf, ..seen })
    }

    /// The same tensors under other names: `names` holds one for each, in the order of [`tensors`](Self::tensors), or `None` for a
    /// tensor that is left out.
    ///
    /// # Errors
    /// When two tensors get one name.
    pub fn renamed(self, names: Vec<Option<String>>) -> Result<Self> {
        let mut names = names.into_iter();
        self.seen_as(|file| {
            let tensors = file.header.tensors.clone().into_iter().enumerate();
            let named = tensors.zip(names.by_ref()).filter_map(|((at, info), name)| {
                let name = name?;
                Some((at, TensorInfo { name, ..info }))
            });
            let named: Vec<(usize, TensorInfo)> = named.collect();
            Ok(file.with_tensors(named))
        })
    }

    /// How the weights are stored.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The files in name order.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The parts that are laid out by themselves, in the order of their files.
    pub fn components(&self) -> Vec<Component<'_>> {
        let Container::Pipeline(folders) = &self.container else {
            return vec![Component { folder: "", container: &self.container, files: &self.files }];
        };
        let mut rest = self.files.as_slice();
        let mut found = Vec::with_capacity(folders.len());
        for Folder { name, container, files } in folders {
            let (files, others) = rest.split_at(*files);
            rest = others;
            found.push(Component { folder: name, container, files });
        }
        found
    }

    /// All tensors, file by file, each in offset order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> + Clone {
        self.files.iter().flat_map(|file| &file.header.tensors)
    }

    /// All tensors with their places, in the order of [`tensors`](Self::tensors).
    pub fn all(&self) -> impl Iterator<Item = Stored> + '_ {
        self.files.iter().flat_map(|file| (0..file.header.tensors.len()).map(|position| file.stored(position)))
    }

    /// Number of tensors.
    pub fn count(&self) -> usize {
        self.by_name.count()
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<Stored> {
        let (file, position) = self.by_name.find(&self.files, name)?;
        Some(self.stored(file, position))
    }

    /// What is known of the tensor of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let (file, position) = self.by_name.find(&self.files, name)?;
        Some(&self.files[file].header.tensors[position])
    }

    /// The tensor at `position` of file `file`.
    pub fn stored(&self, file: usize, position: usize) -> Stored {
        self.files[file].stored(position)
    }

    /// Adds something that a user should know of how it was read.
    pub fn note(&mut self, note: String) {
        self.files.iter_mut().take(1).for_each(|file| file.notes.push(note.clone()));
    }

    /// What a user should know of how the files were read.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.files.iter().flat_map(|file| &file.notes)
    }

    /// Lets go of what is held in memory of its tensors, which then can be described and no longer read.
    pub fn let_go(&mut self) {
        self.files.iter_mut().for_each(WeightFile::let_go);
    }

    /// `config.json` beside the weights, where there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be read as a JSON object.
    pub fn config(&self) -> Result<Option<Map<String, Value>>> {
        side::look_up(&self.directory().join("config.json"))
    }
}

/// What is held in memory for several files.
#[derive(Default)]
struct Together {
    held: u64,
    bytes: u64,
}

impl Together {
    /// Counts one more.
    ///
    /// # Errors
    /// `Limit`, when all together hold more than they can reasonably need.
    fn add(&mut self, file: &WeightFile) -> Result<()> {
        self.held = self.held.saturating_add(file.held_bytes());
        self.bytes = self.bytes.saturating_add(file.map.len());
        let most = MAX_HELD_BYTES_TOGETHER.saturating_add(self.bytes);
        if self.held <= most {
            return Ok(());
        }
        let quantity = "what is held in memory for the files up to this one, in bytes,";
        Err(Error::limit(file.map.path(), quantity, self.held, most)
            .hint("they are compressed far beyond their own sizes; unpacked, they are mapped where they lie"))
    }
}

/// Whether a file begins as those of llama.cpp do.
fn is_gguf(path: &Path) -> Result<bool> {
    if Format::named(path) == Some(&safetensors::FORMAT) {
        return Ok(false);
    }
    Ok(looks_like_gguf(&read_start(path, 4)?))
}

/// Whether a file name of an index stays inside its directory.
fn stays_inside(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some() && components.all(|component| matches!(component, path::Component::Normal(_)))
}

/// The index and a shard must agree on what the shard holds.
fn check_index(index: &Path, file: &WeightFile, listed: &[&str]) -> Result<()> {
    let held: HashSet<&str> = file.header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    if let Some(missing) = listed.iter().find(|name| !held.contains(**name)) {
        let problem = format!("the index puts it into `{}`, which does not hold it", file.name);
        return Err(Error::malformed(index, format!("tensor `{missing}`"), problem));
    }
    let listed: HashSet<&str> = listed.iter().copied().collect();
    match file.header.tensors.iter().find(|tensor| !listed.contains(tensor.name.as_str())) {
        None => Ok(()),
        Some(extra) => {
            let problem = format!("lies in `{}`, the index does not put it there", file.name);
            Err(Error::malformed(index, format!("tensor `{}`", extra.name), problem).hint("the index is out of date"))
        }
    }
}
