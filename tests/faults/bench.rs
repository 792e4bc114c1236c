//! Small inputs, the command lines that are broken, and directories to break them in.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::tracer::{End, traced};

/// Every file below a directory with its bytes; directories have none.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

pub fn snapshot(directory: &Path) -> Files {
    fn walk(root: &Path, directory: &Path, found: &mut Files) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            if path.is_dir() {
                found.insert(name.join(""), Vec::new());
                walk(root, &path, found);
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut found = Files::new();
    walk(directory, directory, &mut found);
    found
}

/// One command line.
pub struct Line {
    pub words: Vec<&'static str>,
    /// What is run before, without and with an old output.
    pub first: Vec<Vec<&'static str>>,
    /// What makes an old output, for `--force`.
    pub old: Vec<Vec<&'static str>>,
    /// What is run after a fault.
    pub again: Vec<Vec<&'static str>>,
    /// Whether that makes the output, where the line itself does not.
    pub again_makes_output: bool,
    /// All files after that.
    pub whole: Files,
    pub can_force: bool,
    /// The output is a file, and its record another.
    pub single: bool,
    /// The output is a folder of outputs.
    pub is_set: bool,
    /// Inputs that may change during a run.
    pub inputs: Vec<&'static str>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lorakit {}", self.words.join(" "))
    }
}

/// A directory with all inputs.
pub struct Template(tempfile::TempDir);

const SIDE: usize = 16;

fn noise(seed: usize, count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32.wrapping_mul(u32::try_from(seed).unwrap() + 1) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (f64::from(state >> 8) / f64::from(1 << 23) - 1.0) as f32
    };
    (0..count).flat_map(|_| next().to_le_bytes()).collect()
}

fn write(path: &Path, tensors: &[(String, [usize; 2], usize)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, shape, seed)| noise(*seed, shape[0] * shape[1])).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape, _), data)| (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

fn weight(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.q_proj.weight")
}

impl Template {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (model, seed) in [("base", 1), ("tuned", 11)] {
            let mut map = serde_json::Map::new();
            for layer in 0..2 {
                let file = format!("model-{:05}-of-00002.safetensors", layer + 1);
                let norm = format!("model.layers.{layer}.input_layernorm.weight");
                let tensors = [(weight(layer), [SIDE, SIDE], seed + layer), (norm.clone(), [1, SIDE], 7)];
                write(&at(model).join(&file), &tensors);
                map.insert(weight(layer), file.clone().into());
                map.insert(norm, file.into());
            }
            let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
            fs::write(at(model).join("model.safetensors.index.json"), index.to_string()).unwrap();
            fs::write(at(model).join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
            fs::write(at(model).join("tokenizer.json"), "{}").unwrap();
        }
        write(&at("one.safetensors"), &[(weight(0), [SIDE, SIDE], 1), (weight(1), [SIDE, SIDE], 2)]);
        let image: Vec<_> = [("attn1.to_q", 320), ("attn2.to_k", 768)]
            .iter()
            .flat_map(|(layer, inputs)| {
                let layer = format!("unet.down_blocks.0.attentions.0.transformer_blocks.0.{layer}");
                [(format!("{layer}.lora_A.weight"), [2, *inputs], 41), (format!("{layer}.lora_B.weight"), [320, 2], 42)]
            })
            .collect();
        write(&at("image.safetensors"), &image);
        for (adapter, seed) in [("ad", 21), ("other", 31)] {
            let tensors: Vec<_> = (0..2)
                .flat_map(|layer| {
                    let of = |what: &str, shape: [usize; 2], seed: usize| {
                        let module = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
                        (format!("{module}.lora_{what}.weight"), shape, seed + layer)
                    };
                    [of("A", [2, SIDE], seed), of("B", [SIDE, 2], seed + 5)]
                })
                .collect();
            write(&at(adapter).join("adapter_model.safetensors"), &tensors);
            let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
            fs::write(at(adapter).join("adapter_config.json"), config.to_string()).unwrap();
        }
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Another directory with the same files.
    pub fn copy(&self) -> Self {
        fn walk(from: &Path, to: &Path) {
            for entry in fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                let place = to.join(path.file_name().unwrap());
                if path.is_dir() {
                    fs::create_dir(&place).unwrap();
                    walk(&path, &place);
                } else {
                    fs::copy(&path, &place).unwrap();
                }
            }
        }
        let directory = tempfile::tempdir().unwrap();
        walk(self.path(), directory.path());
        Self(directory)
    }

    /// A directory in which `line` can be run, over an old output if `force`.
    pub fn start(&self, line: &Line, force: bool) -> Self {
        let start = self.copy();
        let old = if force { &line.old[..] } else { &[] };
        for words in old.iter().chain(&line.first) {
            start.run(words);
        }
        start
    }

    fn run(&self, words: &[&str]) {
        let run = traced(self.path(), words, None);
        assert!(matches!(run.end, End::Code(0)), "{}: {}: {}", words.join(" "), run.end, run.stderr);
    }
}

/// Every verb that writes, with each kind of output.
pub fn lines(template: &Template) -> Vec<Line> {
    const SHARD: &str = "base/model-00001-of-00002.safetensors";
    const OTHER_SHARD: &str = "base/model-00002-of-00002.safetensors";
    const FACTORS: &str = "ad/adapter_model.safetensors";
    const ONE: &str = "one.safetensors";
    const IMAGE: &str = "image.safetensors";
    let words = |text: &'static str| -> Vec<&'static str> { text.split(' ').collect() };
    let line = |text: &'static str, old: &'static str, inputs: &[&'static str]| {
        let mut again = words(text);
        again.push("--force");
        let single = text.contains("-o out.safetensors");
        Line {
            words: words(text),
            first: Vec::new(),
            old: vec![words(old)],
            again: vec![again],
            again_makes_output: false,
            whole: Files::new(),
            can_force: true,
            single,
            is_set: false,
            inputs: inputs.to_vec(),
        }
    };
    let mut all = vec![
        line(
            "merge base ad -o out -j 1",
            "merge base ad:0.5 -o out",
            &[SHARD, OTHER_SHARD, FACTORS, "base/tokenizer.json"],
        ),
        line("merge base ad -o out -j 1 --sync", "merge base ad:0.5 -o out", &[]),
        line(
            "merge one.safetensors ad -o out.safetensors -j 1",
            "merge one.safetensors other -o out.safetensors",
            &[ONE],
        ),
        line("extract base tuned --rank 2 -o out -j 1", "extract base tuned --rank 1 -o out", &[SHARD]),
        line("stack ad other -o out -j 1", "stack ad other:2 -o out", &[FACTORS]),
        line("stack ad other --rank 2 -o out -j 1", "stack ad other -o out", &[FACTORS]),
        line(
            "stack image.safetensors image.safetensors:0.5 --to kohya -o out.safetensors -j 1",
            "convert image.safetensors --to kohya --arch sd1 -o out.safetensors",
            &[IMAGE],
        ),
        line("subtract ad other -o out -j 1", "subtract other ad -o out", &[FACTORS]),
        line(
            "subtract tuned ad -o out -j 1",
            "subtract tuned other -o out",
            &["tuned/model-00001-of-00002.safetensors"],
        ),
        line("resize ad --rank 1 -o out -j 1", "resize other --rank 1 -o out", &[FACTORS]),
        line("convert base --dtype f16 -o out -j 1", "convert base -o out", &[SHARD]),
        line(
            "convert base -o out.safetensors -j 1 --sync",
            "convert one.safetensors -o out.safetensors",
            &[OTHER_SHARD],
        ),
        line("convert ad --to mlx -o out -j 1", "convert other --to mlx -o out", &[FACTORS]),
        line(
            "convert image.safetensors --to kohya --arch sd1 -o out.safetensors -j 1",
            "stack image.safetensors image.safetensors --to kohya -o out.safetensors",
            &[IMAGE],
        ),
    ];
    let mut folder = line("resize ad other --rank 1 -o out -j 1", "resize ad other --rank 2 -o out", &[]);
    folder.is_set = true;
    all.push(folder);

    let mut part = line("merge base ad -o out -j 1 --part 1/2", "", &[]);
    part.can_force = false;
    part.first = vec![words("merge base ad -o out --part 2/2")];
    part.again = vec![words("merge base ad -o out -j 1 --part 1/2"), words("finish out")];
    part.again_makes_output = true;
    let whole = template.start(&part, false);
    part.again.iter().for_each(|words| whole.run(words));
    part.whole = snapshot(whole.path());
    let mut repeated = line("merge base ad -o out -j 1 --part 1/2", "", &[]);
    repeated.can_force = false;
    repeated.first = vec![words("merge base ad:0.5 -o out --part 1/2"), words("merge base ad -o out --part 2/2")];
    (repeated.again, repeated.again_makes_output, repeated.whole) = (part.again.clone(), true, part.whole.clone());
    let mut finish = line("finish out", "merge base ad:0.5 -o out", &[]);
    finish.first =
        vec![words("merge base ad -o out --part 1/2 --force"), words("merge base ad -o out --part 2/2 --force")];
    let mut synced = line("finish out --sync", "merge base ad:0.5 -o out", &[]);
    synced.first = finish.first.clone();
    let mut discard = line("finish out --discard", "", &[]);
    discard.can_force = false;
    discard.first = part.first.clone();
    discard.again = vec![words("finish out --discard")];
    all.extend([part, repeated, finish, synced, discard]);
    all
}
