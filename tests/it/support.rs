//! Small files, runs of the program, and an independent reader of its output.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

/// A tensor in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn new(dtype: Dtype, shape: &[usize], values: &[f32]) -> Self {
        let data = match dtype {
            Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            other => panic!("{other:?} is written as raw bytes"),
        };
        Self { dtype, shape: shape.to_vec(), data }
    }

    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self::new(Dtype::F32, shape, values)
    }

    pub fn values(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::F64 => self.data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => self.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::BF16 => self.data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).into()).collect(),
            Dtype::F16 => self.data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).into()).collect(),
            other => panic!("{other:?} has no values"),
        }
    }
}

/// Numbers that look random and are the same everywhere.
pub fn noise(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next() * size).collect()
}

pub type Tensors = BTreeMap<String, Tensor>;

pub fn write(path: &Path, tensors: &[(&str, Tensor)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let views = tensors.iter().map(|(name, t)| (*name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

pub fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensor = |view: &TensorView<'_>| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect()
}

/// All tensors of a directory, shards together.
pub fn read_model(directory: &Path) -> Tensors {
    let mut all = Tensors::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            all.extend(read(&path));
        }
    }
    all
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

/// Every file below a directory with its bytes.
pub fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(directory, directory, &mut found);
    found
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The reference data beside the checkout. A test that asks for it has
/// `#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]`: build.rs.
pub fn reference() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    assert!(cfg!(reference) && path.is_dir(), "the test has to be ignored where ../shared/reference is not");
    path
}

/// One folder of the reference data.
pub fn reference_part(name: &str) -> PathBuf {
    reference().join(name)
}

/// The folders in `root`, in the order of their names, that hold a `case.json`.
pub fn cases(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| root.join(name).join("case.json").is_file());
    names.sort();
    names
}

/// The largest difference, and the largest number of `wanted`.
#[track_caller]
pub fn off_by(got: &Tensor, wanted: &Tensor) -> (f64, f64) {
    assert_eq!(got.shape, wanted.shape);
    let (got, wanted) = (got.values(), wanted.values());
    let size = wanted.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
    (got.iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max), size)
}

/// A directory of its own for one test.
pub struct Bench(pub tempfile::TempDir);

impl Bench {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A base of one file with a config.
    pub fn base(&self, tensors: &[(&str, Tensor)], config: &Value) -> PathBuf {
        let directory = self.path("base");
        write(&directory.join("model.safetensors"), tensors);
        fs::write(directory.join("config.json"), config.to_string()).unwrap();
        directory
    }

    /// A PEFT adapter; keys get PEFT's prefix.
    pub fn adapter(&self, name: &str, config: Value, tensors: &[(&str, Tensor)]) -> PathBuf {
        let directory = self.path(name);
        let named: Vec<(String, Tensor)> =
            tensors.iter().map(|(key, tensor)| (format!("base_model.model.{key}"), tensor.clone())).collect();
        let named: Vec<(&str, Tensor)> = named.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        write(&directory.join("adapter_model.safetensors"), &named);
        let mut whole = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
        whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        fs::write(directory.join("adapter_config.json"), whole.to_string()).unwrap();
        directory
    }

    /// What lies in the directory of the test, hidden files included.
    pub fn listing(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// What a run of the program gave.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stderr: {}", self.stderr);
        self
    }

    /// Failed with exit code `code` and a message that names all of `parts`.
    #[track_caller]
    pub fn refused(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout: {} stderr: {}", self.stdout, self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

pub fn lorakit(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
    let mut command = Command::cargo_bin("lorakit").unwrap();
    command
        .args(words.iter().map(|word| word.as_ref()))
        .env_remove("HF_HOME")
        .env_remove("HF_HUB_CACHE")
        .env("NO_COLOR", "1");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `lorakit merge BASE ADAPTER -o OUT …`
pub fn merge(base: &Path, adapter: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"merge", &base, &adapter, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

/// W + scale · B·A in f64, for matrices given row by row.
pub fn dense(weight: &[f64], up: &[f64], down: &[f64], rank: usize, scale: f64) -> Vec<f64> {
    let (rows, cols) = (up.len() / rank, down.len() / rank);
    assert_eq!(weight.len(), rows * cols);
    let product = |at: usize| (0..rank).map(|k| up[at / cols * rank + k] * down[k * cols + at % cols]).sum::<f64>();
    (0..weight.len()).map(|at| weight[at] + scale * product(at)).collect()
}

#[track_caller]
pub fn assert_close(left: &[f64], right: &[f64], tolerance: f64) {
    assert_eq!(left.len(), right.len());
    let size = right.iter().fold(f64::MIN_POSITIVE, |size, value| size.max(value.abs()));
    let worst = left.iter().zip(right).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance * size, "off by {worst:e}, allowed are {:e}", tolerance * size);
}
