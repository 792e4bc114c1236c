//! A new PEFT adapter: pairs and whole tensors → `adapter_config.json`, `adapter_model.safetensors`, `lorakit.json`.
//!
//! Keys and config as PEFT 0.21 reads them (`utils/save_and_load.py`, `tuners/lora/config.py`); the config is made in `new_config`.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::new_config;
use super::output::Output;
use super::range::beyond;
use super::writing::{WriteOptions, named_like};
use crate::adapters::AdapterConfig;
use crate::adapters::config::CONFIG_NAME;
use crate::error::{Error, Result};
use crate::formats::layout::OutputFile;
use crate::formats::{Stored, json};
use crate::naming::peft;
use crate::plan::{Compute, Plan};
use crate::tensor::{Dtype, Float, Shape, TensorInfo};

/// The weight file of a PEFT adapter.
const WEIGHTS_NAME: &str = "adapter_model.safetensors";

/// What PEFT puts in front of every key.
const PREFIX: &str = "base_model.model";

/// The wrapper of a layer that is adapted.
const FROZEN: &str = "base_layer";

/// What kind of layer a pair belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairKind {
    /// A matrix `[out, in]`, or its transpose in a `Conv1D`.
    Linear,
    /// A convolution `[out, in, k …]`.
    Conv {
        /// The dimensions after `[out, in]`.
        kernel: Vec<u64>,
    },
    /// A table of rows `[vocabulary, dim]`.
    Embedding,
    /// A parameter without a layer of its own, for which `target_parameters` stands in the config.
    Parameter {
        /// As in `gate_up_proj`.
        name: String,
        /// How many other parameters of the module lie deeper than this one.
        nesting: usize,
        /// Experts of the stack: A is `[experts · r, in]`, B `[out, r · experts]`.
        experts: u64,
    },
}

/// Where the bytes of a tensor come from.
#[derive(Clone)]
pub enum Bytes {
    /// They were computed.
    Held {
        /// Row-major, little-endian.
        bytes: Vec<u8>,
        /// Their dtype.
        float: Float,
    },
    /// They are those of an input.
    Stored(Stored),
    /// They are computed when they are written.
    Computed {
        /// Who computes them, by rows of the first dimension against the others.
        compute: Arc<dyn Compute>,
        /// Their dtype.
        float: Float,
        /// Their number.
        count: u64,
    },
}

impl Bytes {
    /// `values` rounded to `float`; `path` and `tensor` say whose they are.
    ///
    /// # Errors
    /// When one is beyond the range of `float`.
    pub fn held(values: &[f32], float: Float, (path, tensor): (&Path, &str)) -> Result<Self> {
        let mut bytes = vec![0; values.len() * float.bytes()];
        float.encode_finite(values, &mut bytes).map_err(|found| beyond(path, tensor, 0, &found))?;
        Ok(Self::Held { bytes, float })
    }

    /// Number of bytes.
    pub fn count(&self) -> u64 {
        match self {
            Self::Held { bytes, .. } => bytes.len() as u64,
            Self::Stored(stored) => stored.info.bytes,
            Self::Computed { count, .. } => *count,
        }
    }

    /// Their dtype.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Held { float, .. } | Self::Computed { float, .. } => float.dtype(),
            Self::Stored(stored) => stored.info.dtype.clone(),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.count(), self.dtype())
    }
}

/// A low-rank change of one module.
#[derive(Debug, Clone)]
pub struct NewPair {
    /// Module path without wrappers.
    pub path: String,
    /// The kind of layer.
    pub kind: PairKind,
    /// r; of a stack that of one expert.
    pub rank: usize,
    /// α; the scale is α/r, or α/√r if [`NewAdapter::rslora`].
    pub alpha: f64,
    /// A, `[r, in]`; of a convolution `[r, in, k …]`, of an embedding `[r, vocabulary]`.
    pub down: Bytes,
    /// B, `[out, r]`; of an embedding `[dim, r]`.
    pub up: Bytes,
    /// Outputs and inputs, a convolution's without its kernel; of an embedding `(dim, vocabulary)`.
    pub outer: (u64, u64),
    /// Bias of B, `[out]`.
    pub up_bias: Option<Bytes>,
}

/// A parameter that is stored whole.
#[derive(Debug, Clone)]
pub struct NewWhole {
    /// Module path.
    pub module: String,
    /// As in `weight`.
    pub parameter: String,
    /// Its shape.
    pub shape: Shape,
    /// Its values.
    pub bytes: Bytes,
    /// The bias of a frozen layer (`bias="all"`), not part of a module that is saved whole.
    pub frozen_bias: bool,
}

/// An adapter that is to be written.
#[derive(Debug, Clone, Default)]
pub struct NewAdapter {
    /// Settings kept from an input, as [`inherited`](Self::inherited) picks them.
    pub inherited: Map<String, Value>,
    /// Low-rank changes, one per module and parameter.
    pub pairs: Vec<NewPair>,
    /// Parameters stored whole.
    pub whole: Vec<NewWhole>,
    /// The scale is α/√r. For pairs that keep their input's scale; what is computed has it folded in.
    pub rslora: bool,
}

impl NewAdapter {
    /// The settings of the config `raw` that stay true for whatever is made of its adapter.
    pub fn inherited(raw: &Map<String, Value>) -> Map<String, Value> {
        let kept = new_config::INHERITED.iter().filter_map(|key| raw.get_key_value(*key));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The settings of an adapter of any dialect that stay true: only PEFT's own config is taken over by key.
    pub fn inherited_from(config: &AdapterConfig, dialect: &str) -> Map<String, Value> {
        if dialect == "peft" {
            return Self::inherited(&config.raw);
        }
        let base = config.base_model.as_ref().map(|name| ("base_model_name_or_path".to_owned(), name.as_str().into()));
        base.into_iter().collect()
    }

    /// Makes sure that every key says the module it was made of when it is read again.
    ///
    /// # Errors
    /// When one does not, naming `root` as the adapter it comes from.
    pub fn check_readable(&self, root: &Path) -> Result<()> {
        for pair in self.pairs.iter().filter(|pair| matches!(pair.kind, PairKind::Linear | PairKind::Conv { .. })) {
            let key = format!("{PREFIX}.{}.lora_A.weight", pair.path);
            if peft::parse(&key).module != pair.path {
                let what = format!("module `{}` has no key in PEFT's dialect that means it", pair.path);
                return Err(Error::unsupported(root, what).hint("`convert --to` writes adapters of diffusion models"));
            }
        }
        Ok(())
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        let pairs = self.pairs.iter().flat_map(|pair| [Some(&pair.down), Some(&pair.up), pair.up_bias.as_ref()]);
        pairs.flatten().chain(self.whole.iter().map(|whole| &whole.bytes)).map(Bytes::count).sum()
    }

    /// The output in a directory. `recipe` tells how the adapter was made.
    pub fn output(self, options: &WriteOptions, recipe: &Value) -> Output {
        let config = json::render(&new_config::render(&self));
        let metadata = [("format".to_owned(), "pt".to_owned()), ("lorakit".to_owned(), recipe.to_string())];
        let plan = lay_out(self.into_tensors(), &metadata, options.budget.job_bytes());
        let written = vec![(PathBuf::from(CONFIG_NAME), config)];
        Output {
            plan,
            written,
            copied: Vec::new(),
            record: Some(recipe.clone()),
            single_file: false,
            inputs: Vec::new(),
        }
    }

    /// Keys, shapes, values.
    pub(super) fn into_tensors(self) -> Vec<(String, Shape, Bytes)> {
        let mut tensors = Vec::new();
        // Each adapted parameter of a module puts a wrapper of its own around it.
        let mut wrappers: HashMap<String, usize> = HashMap::new();
        self.pairs.iter().for_each(|pair| *wrappers.entry(pair.path.clone()).or_default() += 1);
        let adapted: HashSet<String> = wrappers.keys().cloned().collect();
        for pair in self.pairs {
            let module = format!("{PREFIX}.{}{}", wrapped(&pair.path, &adapted), nested(&pair.kind));
            let (down, up) = pair.shapes();
            let (down_key, up_key) = match pair.kind {
                PairKind::Embedding => ("lora_embedding_A", "lora_embedding_B"),
                _ => ("lora_A.weight", "lora_B.weight"),
            };
            tensors.push((format!("{module}.{down_key}"), down, pair.down));
            tensors.push((format!("{module}.{up_key}"), up, pair.up));
            if let Some(bias) = pair.up_bias {
                tensors.push((format!("{module}.lora_B.bias"), Shape::from([pair.outer.0]), bias));
            }
        }
        for whole in self.whole {
            let layer = match wrappers.get(&whole.module) {
                Some(count) if whole.frozen_bias => format!("{}{}", whole.module, format!(".{FROZEN}").repeat(*count)),
                _ => whole.module.clone(),
            };
            let path: Vec<&str> =
                [PREFIX, &layer, &whole.parameter].into_iter().filter(|part| !part.is_empty()).collect();
            tensors.push((path.join("."), whole.shape, whole.bytes));
        }
        tensors
    }
}

impl NewPair {
    /// Shapes of A and B.
    fn shapes(&self) -> (Shape, Shape) {
        let rank = self.rank as u64;
        let (out, inputs) = self.outer;
        match &self.kind {
            PairKind::Linear | PairKind::Embedding => (Shape::from([rank, inputs]), Shape::from([out, rank])),
            PairKind::Conv { kernel } => {
                let down: Vec<u64> = [rank, inputs].iter().chain(kernel).copied().collect();
                let ones = std::iter::repeat_n(1, kernel.len());
                (Shape::from(down), Shape::from([out, rank].into_iter().chain(ones).collect::<Vec<u64>>()))
            }
            PairKind::Parameter { experts, .. } => {
                (Shape::from([rank * experts, inputs]), Shape::from([out, rank * experts]))
            }
        }
    }
}

/// `path` with a wrapper after every layer on the way that is adapted itself, as in the output projection of a
/// `MultiheadAttention`.
fn wrapped(path: &str, adapted: &HashSet<String>) -> String {
    let mut key = String::with_capacity(path.len());
    for (at, letter) in path.char_indices() {
        if letter == '.' && adapted.contains(&path[..at]) {
            key.push('.');
            key.push_str(FROZEN);
        }
        key.push(letter);
    }
    key
}

fn nested(kind: &PairKind) -> String {
    match kind {
        PairKind::Parameter { nesting, .. } => format!(".{FROZEN}").repeat(*nesting),
        _ => String::new(),
    }
}

/// A PEFT adapter is a directory.
///
/// # Errors
/// When `out` is named like a file.
pub(super) fn refuse_file_name(out: &Path) -> Result<()> {
    if named_like(out).is_some() {
        let problem = format!("`{}` is named like a file, a PEFT adapter is a directory", out.display());
        return Err(Error::invalid("--out", problem).hint("name a directory"));
    }
    Ok(())
}

/// One weight file that holds `tensors`.
pub(super) fn lay_out(tensors: Vec<(String, Shape, Bytes)>, metadata: &[(String, String)], job_bytes: u64) -> Plan {
    lay_out_as(WEIGHTS_NAME, tensors, metadata, job_bytes)
}

/// As [`lay_out`], under another name.
pub(super) fn lay_out_as(
    name: &str,
    mut tensors: Vec<(String, Shape, Bytes)>,
    metadata: &[(String, String)],
    job_bytes: u64,
) -> Plan {
    for (name, shape, bytes) in &tensors {
        let bits = shape.elements().zip(bytes.dtype().bits()).map(|(count, bits)| count * u64::from(bits));
        assert!(
            bits.is_none_or(|bits| bits == bytes.count() * 8),
            "`{name}` has as many bytes as its shape {shape} needs"
        );
    }
    // Wide elements first, so that every tensor lies at a multiple of its element's width.
    tensors.sort_by(|(left, _, left_bytes), (right, _, right_bytes)| {
        (right_bytes.dtype().bits(), left).cmp(&(left_bytes.dtype().bits(), right))
    });
    let infos = tensors.iter().map(|(name, shape, bytes)| TensorInfo {
        name: name.clone(),
        dtype: bytes.dtype(),
        shape: shape.clone(),
        offset: 0,
        bytes: bytes.count(),
    });
    let file = OutputFile::new(name.into(), metadata, infos.collect());
    let mut plan = Plan::default();
    for (info, (_, _, bytes)) in file.tensors.iter().zip(tensors) {
        schedule(&mut plan, file.start_of(info), info, bytes, job_bytes);
    }
    plan.files.push(file);
    plan
}

fn schedule(plan: &mut Plan, offset: u64, info: &TensorInfo, bytes: Bytes, job_bytes: u64) {
    let count = bytes.count();
    let rows = info.shape.rows_cols().0;
    let row_bytes = count.checked_div(rows).unwrap_or(0);
    let compute: Arc<dyn Compute> = match bytes {
        Bytes::Stored(stored) => return plan.copy(0, offset, &stored.map, stored.start, count),
        Bytes::Held { bytes, .. } => Arc::new(Held { bytes, row_bytes: usize::try_from(row_bytes).unwrap_or(0) }),
        Bytes::Computed { compute, .. } => compute,
    };
    if count > 0 {
        let rows = usize::try_from(rows).expect("a tensor with so many rows was never read");
        plan.compute(0, offset, &compute, 0..rows, row_bytes, job_bytes);
        plan.computed.push(compute);
    }
}

/// A tensor that is in memory.
struct Held {
    bytes: Vec<u8>,
    row_bytes: usize,
}

impl Compute for Held {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{Adapter, Change};
    use crate::io::Inputs;
    use crate::ops::{Rounding, Run};
    use crate::plan::{Budget, Quiet};
    use std::sync::atomic::AtomicBool;

    fn held(values: &[f32], float: Float) -> Bytes {
        Bytes::held(values, float, (Path::new("a"), "x")).expect("finite")
    }

    fn options(out: PathBuf) -> WriteOptions {
        WriteOptions {
            out,
            force: false,
            dtype: None,
            cast_all: false,
            rounding: Rounding::Nearest,
            max_shard_bytes: None,
            budget: Budget { threads: 2, max_bytes: 64 << 20 },
            dry_run: false,
            part: None,
            durable: false,
        }
    }

    fn pair(path: &str, kind: PairKind, rank: usize, outer: (u64, u64), per_input: u64) -> NewPair {
        let values = |count: u64| (0..count).map(|at| at as f32).collect::<Vec<f32>>();
        NewPair {
            path: path.into(),
            kind,
            rank,
            alpha: rank as f64,
            down: held(&values(rank as u64 * outer.1 * per_input), Float::Bf16),
            up: held(&values(rank as u64 * outer.0), Float::F32),
            outer,
            up_bias: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let place = tempfile::tempdir().expect("a directory");
        let out = place.path().join("new");
        let mut attention = pair("net.attn", PairKind::Linear, 2, (12, 4), 1);
        attention.up_bias = Some(held(&[1.0; 12], Float::F32));
        let adapter = NewAdapter {
            pairs: vec![
                attention,
                pair("net.attn.out_proj", PairKind::Linear, 2, (4, 4), 1),
                pair("net.conv", PairKind::Conv { kernel: vec![3, 3] }, 1, (5, 2), 9),
                pair("net.embed", PairKind::Embedding, 3, (4, 7), 1),
            ],
            whole: vec![NewWhole {
                module: "net.attn".into(),
                parameter: "bias".into(),
                shape: Shape::from([3]),
                bytes: held(&[1.0, 2.0, 3.0], Float::F16),
                frozen_bias: true,
            }],
            ..NewAdapter::default()
        };
        let options = options(out.clone());
        let output = adapter.output(&options, &serde_json::json!({"operation": "test"}));
        let run = Run { cancel: &AtomicBool::new(false), progress: &Quiet };
        output.write(&options, &run, &Inputs::watch()).expect("written");
        let read = Adapter::open(&out).expect("an adapter");
        let names: Vec<&str> = read.tensors.tensors().map(|info| info.name.as_str()).collect();
        assert!(names.contains(&"base_model.model.net.attn.base_layer.out_proj.lora_A.weight"), "{names:?}");
        assert!(names.contains(&"base_model.model.net.attn.base_layer.bias"), "{names:?}");
        let shapes: Vec<String> = read
            .modules
            .iter()
            .filter_map(|module| match &module.change {
                Change::Lora(lora) => Some(format!("{} {} {}", module.path, lora.down.info.shape, lora.up.info.shape)),
                _ => None,
            })
            .collect();
        assert_eq!(
            shapes,
            [
                "net.attn [2, 4] [12, 2]",
                "net.attn.out_proj [2, 4] [4, 2]",
                "net.conv [1, 2, 3, 3] [5, 1, 1, 1]",
                "net.embed [3, 7] [4, 3]",
            ]
        );
        let scaling = read.config.scaling.as_ref().expect("LoRA has a scale");
        assert!(read.modules.iter().all(|module| scaling.scale(&module.path) == 1.0));
    }

    #[test]
    fn a_file_is_no_place_for_an_adapter() {
        let message = refuse_file_name(Path::new("new.safetensors")).expect_err("refused").to_string();
        assert_eq!(message, "--out: `new.safetensors` is named like a file, a PEFT adapter is a directory");
    }
}
