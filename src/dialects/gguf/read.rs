//! llama.cpp: everything in one GGUF file, under the names and in the order that the tensors of its models have. What that
//! means, `dialects::gguf` tells.
//!
//! Nothing is copied that can stay in the file. Rows of q and k are left as they lie here, since their order depends on the
//! model: [`Adapter::open_for`](crate::adapters::Adapter::open_for).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{EMBEDDING, GGUF};
use crate::adapters::LlamaCpp;
use crate::adapters::config::{AdapterConfig, INVOCATION as TOKENS, Scaling};
use crate::adapters::{Change, Lora, Module};
use crate::dialects::opened::Opened;
use crate::dialects::turn;
use crate::error::{Error, Result};
use crate::formats::gguf::{GgufFile, Metadata, looks_like_gguf};
use crate::formats::{Checkpoint, Stored};
use crate::io::read_start;
use crate::llama::{GgufArch, gguf_arch};
use crate::tensor::{Shape, TensorInfo};

/// Ending of such files.
const ENDING: &str = "gguf";

/// Ends of the names of the factors.
const FACTORS: [&str; 2] = [".weight.lora_a", ".weight.lora_b"];

/// End of the names of norms; they are the only tensors that may stand in a file as they are.
const NORM: &str = "_norm.weight";

/// Tokens after which an activated LoRA begins to act.
const INVOCATION: &str = "adapter.alora.invocation_tokens";

/// What is said to people and programs, and changes no number.
const PROSE: [(&str, &str); 2] =
    [("adapter.lora.task_name", "the task"), ("adapter.lora.prompt_prefix", "the prefix of prompts")];

/// The GGUF file at `path`, or the only one in that directory.
pub(crate) fn file_of(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        // A pipe is not waited for.
        let start = read_start(path, 4).ok()?;
        return looks_like_gguf(&start).then(|| path.to_path_buf());
    }
    let entries = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    let mut files = entries.filter(|path| path.extension().is_some_and(|ending| ending == ENDING));
    let first = files.next()?;
    if files.next().is_some() { None } else { Some(first) }
}

/// Whether there is a GGUF file at `path` that says it is an adapter.
pub(crate) fn is_adapter(path: &Path) -> bool {
    let file = file_of(path).and_then(|path| GgufFile::open(&path).ok());
    file.is_some_and(|file| file.header.metadata.text("general.type") == Some("adapter"))
}

/// Whether an opened file says so.
pub(crate) fn says_so(tensors: &Checkpoint) -> bool {
    tensors.gguf().and_then(|metadata| metadata.text("general.type")) == Some("adapter")
}

pub(crate) fn open(mut tensors: Checkpoint) -> Result<Opened> {
    let path = tensors.files().first().map_or(tensors.root(), |file| file.map.path()).to_path_buf();
    let metadata = tensors.gguf().cloned().unwrap_or_default();
    let arch = architecture(&path, &metadata)?;
    let mut config = AdapterConfig::synthetic(&path, "LORA", None);
    config.base_model = base_model(&metadata);
    if let Some(value) = metadata.get(INVOCATION) {
        let tokens =
            value.as_array().map(|tokens| tokens.iter().filter_map(|token| token.as_u64()).collect::<Vec<_>>());
        let tokens = tokens.filter(|tokens| !tokens.is_empty());
        let wrong = || Error::malformed(&path, format!("key `{INVOCATION}`"), "must be a list of token numbers");
        config.raw.insert(TOKENS.into(), tokens.ok_or_else(wrong)?.into());
    }
    for (key, what) in PROSE {
        if let Some(text) = metadata.text(key) {
            tensors.note(format!("`{key}`, {what}, is `{text}`; nothing but llama.cpp has a place for it"));
        }
    }
    let read = Reader { path: &path, tensors: &tensors, arch, alpha: alpha(&path, &metadata)? };
    let modules = read.modules().map(|(modules, scales)| {
        config.scaling = Some(Scaling::exact(scales));
        modules
    });
    let norms = tensors.tensors().filter(|info| info.name.ends_with(NORM)).count();
    if norms > 0 {
        tensors.note(format!("{norms} norms are stored whole in it: they are read, and llama.cpp ignores them"));
    }
    let ordered = |module: &Module| arch.place(&module.path).is_none_or(|place| place.order.is_none());
    let unordered = modules.as_ref().is_ok_and(|modules| !modules.iter().all(ordered));
    config.llama_cpp = Some(LlamaCpp { arch, unordered, metadata });
    let root = tensors.root().to_path_buf();
    Ok(Opened::new(&root, &GGUF, config, tensors, modules))
}

fn architecture(path: &Path, metadata: &Metadata) -> Result<&'static GgufArch> {
    let kind = (metadata.text("general.type"), metadata.text("adapter.type"));
    if kind != (Some("adapter"), Some("lora")) {
        let found = format!("they are {} and {}", said(kind.0), said(kind.1));
        let what = format!("is no LoRA: `general.type` must be adapter and `adapter.type` lora, {found}");
        return Err(Error::unsupported(path, what));
    }
    let name = metadata.text("general.architecture").unwrap_or_default();
    gguf_arch(name).ok_or_else(|| {
        let what = format!("is for a model of architecture `{name}`, and how its modules are called is not known");
        Error::unsupported(path, what)
    })
}

fn said(text: Option<&str>) -> String {
    text.map_or("not said".into(), |text| format!("`{text}`"))
}

/// α; `None` where there is none: then nothing but the strength multiplies B A.
fn alpha(path: &Path, metadata: &Metadata) -> Result<Option<f64>> {
    const KEY: &str = "adapter.lora.alpha";
    let Some(value) = metadata.get(KEY) else { return Ok(None) };
    match value.as_f64().filter(|alpha| alpha.is_finite()) {
        Some(0.0) => Ok(None),
        Some(alpha) => Ok(Some(alpha)),
        None => Err(Error::malformed(path, format!("key `{KEY}`"), "must be a finite number")),
    }
}

/// The model that the metadata names, as `org/name` where it stands on the hub.
fn base_model(metadata: &Metadata) -> Option<String> {
    let own = |key: &str| metadata.text(&format!("general.base_model.0.{key}"));
    let hub = own("repo_url").and_then(|url| url.strip_prefix("https://huggingface.co/"));
    hub.or_else(|| own("name")).map(str::to_owned)
}

type Scales = BTreeMap<String, (u64, f64)>;

struct Reader<'a> {
    path: &'a Path,
    tensors: &'a Checkpoint,
    arch: &'static GgufArch,
    alpha: Option<f64>,
}

impl Reader<'_> {
    /// The changes in path order, and rank and α of the pairs.
    fn modules(&self) -> Result<(Vec<Module>, Scales)> {
        let (mut modules, mut scales) = (Vec::new(), Scales::new());
        let mut bases = BTreeSet::new();
        for stored in self.tensors.all() {
            let name = &stored.info.name;
            if let Some(base) = FACTORS.iter().find_map(|end| name.strip_suffix(end)) {
                bases.insert(base.to_owned());
            } else if name.ends_with(NORM) {
                let module = self.module(name.trim_end_matches(".weight"), None)?;
                let change = Change::Whole("weight".into(), stored);
                modules.push(Module { path: module, nesting: 0, change });
            } else {
                let what = format!("tensor `{name}` is no factor, and llama.cpp loads no other kind");
                return Err(Error::unsupported(self.path, what));
            }
        }
        for base in bases {
            let factor = |end: &str| self.tensors.find(&format!("{base}{end}"));
            let (Some(down), Some(up)) = (factor(FACTORS[0]), factor(FACTORS[1])) else {
                let problem = "has one factor, and needs `lora_a` and `lora_b`";
                return Err(Error::malformed(self.path, format!("tensor `{base}.weight`"), problem));
            };
            for (path, lora) in self.pairs(&base, &down, &up)? {
                scales.insert(path.clone(), (lora.rank(), self.alpha.unwrap_or(lora.rank() as f64)));
                modules.push(Module { path, nesting: 0, change: Change::Lora(Box::new(lora)) });
            }
        }
        modules.sort_by(|left, right| left.path.cmp(&right.path));
        Ok((modules, scales))
    }

    fn module(&self, tensor: &str, expert: Option<u64>) -> Result<String> {
        self.arch.module(tensor, expert).ok_or_else(|| {
            let what = format!("tensor `{tensor}.weight` is of no module known in architecture {}", self.arch.name());
            Error::unsupported(self.path, what)
        })
    }

    /// The pair of a layer, or those of its experts.
    fn pairs(&self, base: &str, down: &Stored, up: &Stored) -> Result<Vec<(String, Lora)>> {
        let shapes = (down.info.shape.as_slice(), up.info.shape.as_slice());
        let wrong = |what: &str| {
            let problem = format!("factors of shapes {} and {} {what}", down.info.shape, up.info.shape);
            Error::malformed(self.path, format!("tensor `{base}.weight`"), problem)
        };
        let experts = match shapes {
            ([_, a], [_, b]) if base == EMBEDDING && a == b => None,
            ([a, _], [_, b]) if base != EMBEDDING && a == b => None,
            ([e, a, _], [f, _, b]) if e == f && a == b => Some(*e),
            _ => return Err(wrong("do not fit each other")),
        };
        if down.info.bytes == 0 || up.info.bytes == 0 {
            return Err(wrong("are empty"));
        }
        let (down, up) = (unpacked(down)?, unpacked(up)?);
        let lora = |down, up, embedding| Lora { down, up, bias: None, magnitude: None, embedding, stack: None };
        let Some(experts) = experts else {
            let embedding = base == EMBEDDING;
            let down = if embedding { turn::transposed(&down)? } else { down };
            return Ok(vec![(self.module(base, None)?, lora(down, up, embedding))]);
        };
        let pair = |expert| {
            let (down, up) = (slice(&down, experts, expert), slice(&up, experts, expert));
            Ok((self.module(base, Some(expert))?, lora(down, up, false)))
        };
        (0..experts).map(pair).collect()
    }
}

/// The tensor as plain numbers.
fn unpacked(stored: &Stored) -> Result<Stored> {
    if stored.info.dtype.float().is_some() {
        return Ok(stored.clone());
    }
    let unknown = || {
        let what = format!("tensor `{}` is stored as {}, which holds no factors", stored.info.name, stored.info.dtype);
        Error::unsupported(stored.path(), what)
    };
    turn::as_f32(stored).ok_or_else(unknown)
}

/// One expert's matrix in a stack.
fn slice(stack: &Stored, experts: u64, expert: u64) -> Stored {
    let bytes = stack.info.bytes / experts;
    let shape = Shape::from(stack.info.shape.as_slice()[1..].to_vec());
    let info = TensorInfo { shape, bytes, ..stack.info.clone() };
    Stored { info, start: stack.start + expert * bytes, map: std::sync::Arc::clone(&stack.map) }
}
