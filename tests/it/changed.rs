//! Inputs that change while they are read: nothing is written then, in any verb, whichever of its inputs it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use lorakit::Target;
use lorakit::error::{Error, Result};
use lorakit::ops::convert::{ConvertOptions, convert};
use lorakit::ops::extract::{ExtractOptions, extract};
use lorakit::ops::merge::{MergeOptions, merge};
use lorakit::ops::sum::{SumOptions, resize, sum};
use lorakit::ops::unmerge::{UnmergeOptions, unmerge};
use lorakit::ops::{Part, RankChoice, Run, ToDialect, WriteOptions};
use lorakit::plan::{Budget, Progress};
use serde_json::json;

use crate::support::{Bench, Tensor, noise, write};

/// Does something once, when the run has opened its inputs and begins to work.
struct Once(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Once {
    fn new(act: impl FnOnce() + Send + 'static) -> Self {
        Self(Mutex::new(Some(Box::new(act))))
    }
}

impl Progress for Once {
    fn begin(&self, _bytes: u64) {
        if let Some(act) = self.0.lock().unwrap().take() {
            act();
        }
    }

    fn advance(&self, _bytes: u64) {}

    fn finish(&self) {}
}

struct World {
    bench: Bench,
}

impl World {
    fn new() -> Self {
        let world = Self { bench: Bench::new() };
        let matrix = |seed| Tensor::f32(&[8, 6], &noise(seed, 48, 1.0));
        for (name, seed) in [("base", 1), ("tuned", 2)] {
            let tensors = [("a.q_proj.weight", matrix(seed)), ("a.norm.weight", matrix(9))];
            write(&world.at(name).join("model.safetensors"), &tensors);
            fs::write(world.at(name).join("config.json"), "{}").unwrap();
            fs::write(world.at(name).join("tokenizer.json"), "{}").unwrap();
        }
        for (name, seed) in [("one", 11), ("two", 21)] {
            let pair = [
                ("a.q_proj.lora_A.weight", Tensor::f32(&[2, 6], &noise(seed, 12, 1.0))),
                ("a.q_proj.lora_B.weight", Tensor::f32(&[8, 2], &noise(seed + 1, 16, 1.0))),
            ];
            world.bench.adapter(name, json!({}), &pair);
            fs::write(world.at(name).join("README.md"), "about").unwrap();
        }
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    fn write(&self, part: Option<Part>) -> WriteOptions {
        let mut options = WriteOptions::new(self.at("out"));
        options.budget = Budget { threads: 2, max_bytes: 64 << 20 };
        options.part = part;
        options
    }

    fn merge(&self, write: WriteOptions, run: &Run<'_>) -> Result<()> {
        let mut options = MergeOptions::new(self.at("base"), vec![(self.at("one"), 1.0)], write);
        options.keep_change = true;
        merge(&options, run).map(drop)
    }

    /// The verb `name` on the inputs.
    fn perform(&self, name: &str, run: &Run<'_>) -> Result<()> {
        let rank = RankChoice::rank(1);
        let write = self.write(None);
        let both = || vec![(self.at("one"), 1.0), (self.at("two"), 1.0)];
        match name {
            "merge" => self.merge(write, run),
            "part" => self.merge(self.write(Some(Part { part: 1, parts: 1 })), run),
            "subtract" | "subtract, compared" => {
                let mut options = UnmergeOptions::new(self.at("tuned"), vec![(self.at("one"), 1.0)], write);
                options.base = (name != "subtract").then(|| self.at("base"));
                unmerge(&options, run).map(drop)
            }
            "extract" | "extract, mlx" => {
                let mut options = ExtractOptions::new(self.at("base"), self.at("tuned"), write);
                options.ranks = Some(rank);
                options.dialect = dialect(name);
                extract(&options, run).map(drop)
            }
            "stack" | "stack, mlx" | "stack, cut" => {
                let mut options = SumOptions::new(both(), write);
                options.base = Some(self.at("base"));
                options.rank = (name == "stack, cut").then_some(rank);
                options.dialect = dialect(name);
                sum(&options, run).map(drop)
            }
            "resize" | "resize, mlx" => {
                let mut options = SumOptions::resize(vec![self.at("one")], rank, write);
                options.base = Some(self.at("base"));
                options.dialect = dialect(name);
                resize(&options, run).map(drop)
            }
            _ => {
                let (input, to) = match name {
                    "convert" => ("base", None),
                    "convert, an adapter" => ("one", None),
                    _ => ("one", Some(Target::MLX)),
                };
                let mut options = ConvertOptions::new(self.at(input), write);
                options.to = to;
                options.base = (input == "one").then(|| self.at("base"));
                convert(&options, run).map(drop)
            }
        }
    }
}

fn dialect(name: &str) -> ToDialect {
    ToDialect { to: name.ends_with("mlx").then_some(Target::MLX), arch: None }
}

/// Verbs and the inputs they read: also those that are copied as they are, and companions.
const VERBS: [(&str, &[&str]); 14] = [
    ("merge", &["base/model.safetensors", "base/tokenizer.json", "base/config.json", "one/adapter_model.safetensors"]),
    ("part", &["base/model.safetensors", "base/tokenizer.json", "one/adapter_config.json"]),
    ("subtract", &["tuned/model.safetensors", "tuned/tokenizer.json", "one/adapter_model.safetensors"]),
    ("subtract, compared", &["tuned/model.safetensors", "base/model.safetensors", "base/tokenizer.json"]),
    ("extract", &["base/model.safetensors", "tuned/model.safetensors", "base/config.json"]),
    ("extract, mlx", &["base/model.safetensors", "tuned/model.safetensors"]),
    ("stack", &["one/adapter_model.safetensors", "two/adapter_model.safetensors", "base/model.safetensors"]),
    ("stack, mlx", &["one/adapter_model.safetensors", "two/adapter_config.json", "base/config.json"]),
    ("stack, cut", &["one/adapter_model.safetensors", "two/adapter_model.safetensors"]),
    ("resize", &["one/adapter_model.safetensors", "one/README.md", "base/model.safetensors"]),
    ("resize, mlx", &["one/adapter_model.safetensors", "one/adapter_config.json"]),
    ("convert", &["base/model.safetensors", "base/tokenizer.json", "base/config.json"]),
    ("convert, an adapter", &["one/adapter_model.safetensors", "one/adapter_config.json"]),
    ("convert, mlx", &["one/adapter_model.safetensors", "base/config.json"]),
];

/// A way to change a file, and what is said of it.
type Way = (&'static str, fn(&Path));

fn ways() -> [Way; 3] {
    [
        ("written to since", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, bytes).unwrap();
            let later = SystemTime::now() + Duration::from_secs(60);
            fs::File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
        }),
        ("was replaced by another file", |path| {
            let other = path.with_extension("new");
            fs::copy(path, &other).unwrap();
            fs::rename(&other, path).unwrap();
        }),
        ("bytes at open", |path| {
            use std::io::Write;
            fs::File::options().append(true).open(path).unwrap().write_all(b" ").unwrap();
        }),
    ]
}

#[test]
fn an_input_that_changes_during_the_run_leaves_no_output() {
    let cancel = AtomicBool::new(false);
    for (verb, inputs) in VERBS {
        let world = World::new();
        let quiet = Once::new(|| {});
        world.perform(verb, &Run { cancel: &cancel, progress: &quiet }).unwrap();
        assert!(quiet.0.lock().unwrap().is_none(), "{verb}: the hook was not reached");
        for input in inputs {
            for (text, change) in ways() {
                let world = World::new();
                let before = world.bench.listing();
                let path = world.at(input);
                let hook = Once::new(move || change(&path));
                let error: Error = world.perform(verb, &Run { cancel: &cancel, progress: &hook }).expect_err(verb);
                let said = error.to_string();
                assert!(said.contains("while it was being read"), "{verb} {input}: {said}");
                assert!(
                    said.starts_with(&world.at(input).display().to_string()) && said.contains(text),
                    "{verb}: {said}"
                );
                let mut after = world.bench.listing();
                after.retain(|name| name != ".out.lorakit-parts");
                assert_eq!(after, before, "{verb} {input}");
            }
        }
    }
}

#[test]
fn the_old_output_stays_when_an_input_changes() {
    let (world, cancel) = (World::new(), AtomicBool::new(false));
    let run = |act: Box<dyn FnOnce() + Send>| {
        let hook = Once(Mutex::new(Some(act)));
        let mut write = world.write(None);
        write.force = true;
        world.merge(write, &Run { cancel: &cancel, progress: &hook })
    };
    run(Box::new(|| {})).unwrap();
    let old = crate::support::snapshot(&world.at("out"));
    let path = world.at("one/adapter_model.safetensors");
    run(Box::new(move || ways()[0].1(&path))).unwrap_err();
    assert!(crate::support::snapshot(&world.at("out")) == old);
    // A file that somebody puts there meanwhile.
    let path = world.at("out/thesis.tex");
    let error = run(Box::new(move || fs::write(path, b"x").unwrap())).unwrap_err().to_string();
    assert!(error.ends_with("holds 1 file that lorakit did not make: `thesis.tex`"), "{error}");
    assert!(world.at("out/thesis.tex").exists());
    assert_eq!(world.bench.listing(), ["base", "one", "out", "tuned", "two"]);
}

#[test]
fn runs_at_once_in_one_process_do_not_see_the_inputs_of_each_other() {
    let (ours, theirs) = (World::new(), World::new());
    let cancel = AtomicBool::new(false);
    let path = theirs.at("base/model.safetensors");
    let outer = Once::new(move || ways()[0].1(&path));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let hook = Once::new(|| std::thread::sleep(Duration::from_millis(1)));
            theirs.perform("convert, an adapter", &Run { cancel: &cancel, progress: &hook })
        });
        ours.perform("merge", &Run { cancel: &cancel, progress: &outer }).unwrap();
        drop(other.join().unwrap());
    });
    assert!(ours.at("out/model.safetensors").exists());
}
