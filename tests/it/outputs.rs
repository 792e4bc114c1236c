//! What may be replaced, and what is never lost: strangers' files, inputs, records.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::*;

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";

/// Inputs for every verb, in a directory of their own.
struct World {
    bench: Bench,
}

/// One command line; words such as `{base}` are inputs.
struct Line {
    name: &'static str,
    words: &'static str,
    out: &'static str,
}

const fn line(name: &'static str, words: &'static str, out: &'static str) -> Line {
    Line { name, words, out }
}

/// Every writing verb, dialect of directories and kind of output.
const LINES: [Line; 26] = [
    line("merge", "merge {base} {adapter}", "out"),
    line("merge, cut", "merge {base} {adapter} --max-shard-size 400B", "out"),
    line("merge, initial", "merge {base} {pissa} --init-adapter {init}", "out"),
    line("merge, original", "merge {base} {olora} --base {original}", "out"),
    line("merge, a pipeline", "merge {pipe} {unet}", "out"),
    line("merge, a file", "merge {file} {adapter}", "out.safetensors"),
    line("extract", "extract {base} {tuned} --rank 2", "out"),
    line("extract, mlx", "extract {base} {tuned} --rank 2 --to mlx", "out"),
    line("stack", "stack {adapter} {other}", "out"),
    line("stack, initial", "stack {pissa} {other} --init-adapter {init}", "out"),
    line("stack, cut", "stack {adapter} {other} --rank 2 --base {base}", "out"),
    line("stack, mlx", "stack {adapter} {other} --to mlx", "out"),
    line("subtract, adapters", "subtract {adapter} {other} --base {base}", "out"),
    line("subtract, a model", "subtract {tuned} {adapter}", "out"),
    line("subtract, compared", "subtract {tuned} {adapter} --base {base}", "out"),
    line("resize", "resize {adapter} --rank 1 --base {base}", "out"),
    line("resize, initial", "resize {pissa} --rank 1 --init-adapter {init}", "out"),
    line("resize, mlx", "resize {adapter} --rank 1 --to mlx", "out"),
    line("convert, a model", "convert {base} --dtype bf16", "out"),
    line("convert, a model to a file", "convert {base}", "out.safetensors"),
    line("convert, a model to GGUF", "convert {hub} --to gguf", "out"),
    line("convert, a model to a GGUF file", "convert {hub}", "out.gguf"),
    line("convert, an adapter", "convert {adapter}", "out"),
    line("convert, an adapter to mlx", "convert {adapter} --to mlx --base {base}", "out"),
    line("convert, an adapter to PEFT", "convert {adapter} --to peft --base {base}", "out"),
    line("convert, an adapter to diffusers", "convert {unet} --to diffusers", "out"),
];

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, 1.0))
}

impl World {
    fn new() -> Self {
        let world = Self { bench: Bench::new() };
        let base = world.at("base");
        write(
            &base.join("model.safetensors"),
            &[
                (&format!("{Q}.weight"), matrix(1, 8, 6)),
                (&format!("{DOWN}.weight"), matrix(2, 6, 8)),
                ("model.norm.weight", matrix(3, 1, 6)),
            ],
        );
        fs::write(base.join("config.json"), r#"{"model_type": "llama", "tie_word_embeddings": false}"#).unwrap();
        fs::write(base.join("tokenizer.json"), "{}").unwrap();
        copy(&base, &world.at("original"));
        fs::create_dir(world.at("files")).unwrap();
        fs::copy(base.join("model.safetensors"), world.input("file")).unwrap();
        world.adapter("adapter", 10, &json!({}));
        world.adapter("other", 20, &json!({}));
        for init in ["pissa", "olora"] {
            world.adapter(init, 30, &json!({ "init_lora_weights": init }));
        }
        world.adapter("init", 40, &json!({ "init_lora_weights": "pissa" }));
        fs::write(world.at("adapter").join("README.md"), "about").unwrap();
        let pipe = world.at("pipe");
        write(&pipe.join("unet/diffusion_pytorch_model.safetensors"), &[("down.to_q.weight", matrix(50, 8, 6))]);
        fs::create_dir(pipe.join("tokenizer")).unwrap();
        fs::write(pipe.join("model_index.json"), r#"{"_class_name": "StableDiffusionPipeline"}"#).unwrap();
        fs::write(pipe.join("tokenizer/vocab.json"), "{}").unwrap();
        world.pairs("unet", 60, &["unet.down.to_q"], &json!({}));
        copy(&fixtures().join("gguf/models/llama"), &world.at("hub"));
        merge(&base, &world.at("adapter"), &world.at("tuned"), &[]).ok();
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.bench.path(&format!("in/{name}"))
    }

    fn input(&self, name: &str) -> PathBuf {
        if name == "file" { self.at("files/base.safetensors") } else { self.at(name) }
    }

    fn adapter(&self, name: &str, seed: u64, config: &Value) {
        self.pairs(name, seed, &[Q, DOWN], config);
    }

    fn pairs(&self, name: &str, seed: u64, modules: &[&str], config: &Value) {
        let mut tensors = Vec::new();
        for (at, module) in (seed..).step_by(2).zip(modules) {
            let (rows, cols) = if *module == DOWN { (6, 8) } else { (8, 6) };
            tensors.push((format!("{module}.lora_A.weight"), matrix(at, 2, cols)));
            tensors.push((format!("{module}.lora_B.weight"), matrix(at + 1, rows, 2)));
        }
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        let targets: Vec<&str> = modules.iter().map(|module| module.rsplit('.').next().unwrap()).collect();
        let mut config = config.clone();
        config["target_modules"] = json!(targets);
        fs::create_dir_all(self.bench.path("in")).unwrap();
        self.bench.adapter(&format!("in/{name}"), config, &named);
    }

    /// Runs `words` with `more` behind them, into `out`.
    fn run(&self, words: &str, out: &Path, more: &[&str]) -> Outcome {
        let word = |word: &str| match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
            Some(input) => self.input(input).into_os_string(),
            None => OsString::from(word),
        };
        let mut all: Vec<OsString> = words.split(' ').map(word).collect();
        all.extend(["-o".into(), out.into()]);
        all.extend(more.iter().map(OsString::from));
        let all: Vec<&dyn AsRef<std::ffi::OsStr>> = all.iter().map(|word| word as _).collect();
        lorakit(&all)
    }

    /// All files of the test with their bytes, and the names beside the inputs.
    fn state(&self) -> (std::collections::BTreeMap<PathBuf, Vec<u8>>, Vec<String>) {
        (snapshot(&self.bench.path(".")), self.bench.listing())
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Refused, and no hint offers to replace anything.
#[track_caller]
fn kept(outcome: Outcome, parts: &[&str]) {
    let outcome = outcome.refused(1, parts);
    assert!(!outcome.stderr.contains("--force"), "{}", outcome.stderr);
}

#[test]
fn the_same_command_replaces_its_own_output_and_nothing_else() {
    let world = World::new();
    for Line { name, words, out } in &LINES {
        println!("{name}");
        let out = world.bench.path(out);
        world.run(words, &out, &[]).ok();
        let first = world.state();
        world.run(words, &out, &[]).refused(1, &["already exists", "pass `--force` to replace it"]);
        world.run(words, &out, &["--force", "--dry-run"]).ok();
        assert!(world.state() == first, "{name}");
        world.run(words, &out, &["--force"]).ok();
        assert!(world.state() == first, "{name}: the same bytes");
        if out.is_dir() {
            let listed = read_json(&out.join("lorakit.json"))["files"].clone();
            let mut there: Vec<String> =
                snapshot(&out).keys().map(|path| path.to_string_lossy().into_owned()).collect();
            there.retain(|name| name != "lorakit.json");
            assert_eq!(listed, json!(there), "{name}");
            // As versions before the list wrote it.
            let mut record = read_json(&out.join("lorakit.json"));
            record.as_object_mut().unwrap().shift_remove("files");
            fs::write(out.join("lorakit.json"), record.to_string()).unwrap();
            world.run(words, &out, &["--force"]).ok();
            assert!(world.state() == first, "{name}: the same bytes after a record without a list");
            fs::create_dir_all(out.join("notes/deep")).unwrap();
            for mine in ["thesis.tex", ".hidden", "notes/deep/x"] {
                fs::write(out.join(mine), mine).unwrap();
            }
            let before = world.state();
            let parts = ["holds 3 files that lorakit did not make: `.hidden`, `notes/deep/x`, `thesis.tex`"];
            kept(world.run(words, &out, &["--force"]), &parts);
            kept(world.run(words, &out, &["--force", "--dry-run"]), &parts);
            kept(world.run(words, &out, &[]), &["already exists", "name another output"]);
            assert!(world.state() == before, "{name}");
            fs::remove_dir_all(&out).unwrap();
        } else {
            fs::remove_file(&out).unwrap();
            // The record is left alone.
            world.run(words, &out, &[]).ok();
            assert!(world.state() == first, "{name}: the same bytes beside a stale record");
            fs::remove_file(&out).unwrap();
            let record = out.with_file_name(format!("{}.lorakit.json", out.file_name().unwrap().display()));
            fs::remove_file(record).unwrap();
        }
        assert_eq!(world.bench.listing(), ["in"], "{name}");
    }
}

#[test]
fn a_folder_that_lorakit_did_not_make_is_never_replaced() {
    let world = World::new();
    let models = world.bench.path("models");
    for number in 0..12 {
        fs::create_dir_all(models.join(format!("{number:02}"))).unwrap();
        fs::write(models.join(format!("{number:02}/adapter_model.safetensors")), b"x").unwrap();
    }
    // Somebody else's record, and one that is only beside.
    fs::write(models.join("00/lorakit.json"), r#"{"lorakit": "0.1.0", "operation": "merge"}"#).unwrap();
    symlink("models", world.bench.path("linked")).unwrap();
    let file = world.bench.path("notes.txt");
    fs::write(&file, b"x").unwrap();
    let before = world.state();
    for Line { name, words, out } in &LINES {
        println!("{name}");
        let is_directory = *out == "out";
        for out in [&models, &world.bench.path("linked")] {
            let parts: &[&str] = match is_directory {
                true => &[
                    "is not replaced",
                    "holds 13 files: `00/adapter_model.safetensors`, `00/lorakit.json`",
                    " and 3 more",
                ],
                false => &["models"],
            };
            if is_directory {
                for more in [&["--force"][..], &["--force", "--dry-run"]] {
                    kept(world.run(words, out, more), parts);
                }
                kept(world.run(words, out, &[]), &["already exists", "name another output"]);
            }
        }
        if is_directory {
            kept(world.run(words, &file, &["--force"]), &["notes.txt: is a file, and the output is a directory"]);
        }
    }
    assert!(world.state() == before);
    // An empty folder holds nothing to be lost.
    let empty = world.bench.path("empty");
    fs::create_dir(&empty).unwrap();
    world.run("merge {base} {adapter}", &empty, &["--force"]).ok();
}

#[test]
fn a_file_is_not_put_in_the_place_of_a_directory() {
    let world = World::new();
    let out = world.bench.path("out.safetensors");
    fs::create_dir(&out).unwrap();
    for more in [&[][..], &["--force"]] {
        for words in ["merge {file} {adapter}", "convert {base}"] {
            kept(world.run(words, &out, more), &["is a directory, and the output is a single file"]);
        }
    }
    // A file is replaced, whoever made it.
    fs::remove_dir(&out).unwrap();
    fs::write(&out, b"mine").unwrap();
    kept(world.run("convert {base}", &out, &[]), &["already exists", "name another output"]);
    world.run("convert {base}", &out, &["--force"]).ok();
    assert_eq!(read(&out).len(), 3);
}

#[test]
fn shards_of_another_cut_are_replaced() {
    let world = World::new();
    let out = world.bench.path("out");
    world.run("merge {base} {adapter}", &out, &[]).ok();
    let whole = snapshot(&out);
    world.run("merge {base} {adapter}", &out, &["--force", "--max-shard-size", "200B"]).ok();
    assert!(!out.join("model.safetensors").exists() && out.join("model-00003-of-00003.safetensors").exists());
    // Any verb replaces what another made.
    world.run("resize {adapter} --rank 1", &out, &["--force"]).ok();
    assert!(out.join("README.md").exists() && !out.join("config.json").exists());
    world.run("merge {base} {adapter}", &out, &["--force"]).ok();
    assert!(snapshot(&out) == whole);
}

#[test]
fn parts_and_finish_keep_what_they_did_not_make() {
    let world = World::new();
    let out = world.bench.path("out");
    let words = "merge {base} {adapter} --max-shard-size 200B";
    let parts = |more: &[&str]| {
        for part in ["1/2", "2/2"] {
            world.run(words, &out, &[&["--part", part], more].concat()).ok();
        }
    };
    let finish = |more: &[&str]| {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"finish", &out];
        all.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        lorakit(&all)
    };
    parts(&[]);
    finish(&[]).ok();
    let first = snapshot(&out);
    parts(&["--force"]);
    fs::write(out.join("thesis.tex"), b"x").unwrap();
    let stranger = ["holds 1 file that lorakit did not make: `thesis.tex`"];
    kept(finish(&["--force"]), &stranger);
    kept(world.run(words, &out, &["--part", "1/2", "--force"]), &stranger);
    fs::remove_file(out.join("thesis.tex")).unwrap();
    finish(&["--force"]).ok();
    assert!(snapshot(&out) == first);
    assert_eq!(world.bench.listing(), ["in", "out"]);
    parts(&["--force"]);
    fs::remove_file(out.join("lorakit.json")).unwrap();
    kept(finish(&["--force"]), &["it has no `lorakit.json` that says lorakit made it"]);
}

#[test]
fn several_adapters_are_resized_into_a_folder_of_anything() {
    let world = World::new();
    let out = world.bench.path("out");
    let words = "resize {adapter} {other} --rank 1";
    world.run(words, &out, &[]).ok();
    fs::write(out.join("thesis.tex"), b"x").unwrap();
    let first = snapshot(&out);
    world.run(words, &out, &[]).ok();
    world.run(words, &out, &["--force"]).ok();
    assert!(snapshot(&out) == first);
    fs::write(out.join("other/mine"), b"x").unwrap();
    let outcome = world.run(words, &out, &["--force", "--json"]).refused(1, &["1 of 2 adapters"]);
    let problem = outcome.json()["adapters"][1]["problem"].as_str().unwrap().to_owned();
    assert!(problem.ends_with("holds 1 file that lorakit did not make: `mine`"), "{problem}");
    assert!(out.join("other/mine").exists());
    // Another rank does not offer to replace a folder with strangers in it.
    let found = world.run("resize {adapter} {other} --rank 2", &out, &["--json"]).refused(1, &["2 of 2"]).json();
    assert_eq!(found["adapters"][0]["hint"], "`--force` replaces it");
    assert_eq!(found["adapters"][1]["hint"], "name another output");
    // A dry run makes nothing.
    world.run(words, &world.bench.path("none"), &["--dry-run"]).ok();
    assert_eq!(world.bench.listing(), ["in", "out"]);
}

#[test]
fn no_input_of_any_option_is_replaced() {
    let world = World::new();
    // All of them are ours, so that nothing else keeps them.
    for name in ["base", "original", "adapter", "other", "pissa", "olora", "init", "pipe", "unet", "hub", "tuned"] {
        let files: Vec<String> =
            snapshot(&world.at(name)).keys().map(|path| path.to_string_lossy().into_owned()).collect();
        let record = json!({"lorakit": "0.1.0", "operation": "merge", "files": files});
        fs::write(world.at(name).join("lorakit.json"), record.to_string()).unwrap();
    }
    let before = world.state();
    let takes_place = ["the output would take the place of the input"];
    for Line { name, words, out } in &LINES {
        for input in words.split(' ').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}')) {
            println!("{name}: {input}");
            let place = world.input(input);
            if *out == "out" {
                kept(world.run(words, &place, &["--force"]), &takes_place);
                kept(world.run(words, &place, &["--force", "--dry-run"]), &takes_place);
            }
            kept(world.run(words, &world.bench.path("in"), &["--force"]), &takes_place);
        }
    }
    for words in [
        "convert {adapter} --to mlx --base {base}",
        "convert {adapter} --to peft --base {base}",
        "convert {adapter} --to safetensors --base {base}",
        "convert {adapter} --as lora --base {base}",
        "convert {unet} --to diffusers --base {base}",
        "convert {original} --base {base}",
        "convert {adapter} --to torchtune --base {base}",
        "convert {adapter} --to adapterhub --base {base}",
    ] {
        kept(world.run(words, &world.at("base"), &["--force"]), &takes_place);
    }
    for words in [
        "convert {unet} --to kohya --base {base}",
        "convert {unet} --to diffusers --base {base}",
        "convert {original} --base {base}",
        "merge {file} {adapter} --base {base}",
    ] {
        kept_somehow(world.run(words, &world.at("base/model.safetensors"), &["--force"]));
    }
    assert!(world.state() == before);
}

/// Refused for one reason or another.
#[track_caller]
fn kept_somehow(outcome: Outcome) {
    assert!(outcome.code == 1 || outcome.code == 2, "{}", outcome.stdout);
}

#[test]
fn inputs_that_are_links_into_the_output_keep_it() {
    let world = World::new();
    let (out, store) = (world.bench.path("out"), world.bench.path("out/blobs"));
    for Line { name, words, out: kind } in LINES.iter().filter(|line| line.out == "out") {
        assert_eq!(*kind, "out");
        for input in words.split(' ').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}')) {
            println!("{name}: {input}");
            // The files of one input lie in a store in the output, and are led to by links of both kinds.
            let (place, moved) = (world.input(input), world.bench.path("moved"));
            for hard in [false, true] {
                fs::create_dir_all(&store).unwrap();
                fs::rename(&place, &moved).unwrap();
                let files: Vec<PathBuf> = snapshot(&moved).into_keys().collect();
                let listed: Vec<String> = (0..files.len()).map(|at| format!("blobs/{at}")).collect();
                for (at, file) in files.iter().enumerate() {
                    let blob = store.join(at.to_string());
                    fs::copy(moved.join(file), &blob).unwrap();
                    let link = place.join(file);
                    fs::create_dir_all(link.parent().unwrap()).unwrap();
                    if hard { fs::hard_link(&blob, &link).unwrap() } else { symlink(&blob, &link).unwrap() }
                }
                let record = json!({"lorakit": "0.1.0", "operation": "merge", "files": listed});
                fs::write(out.join("lorakit.json"), record.to_string()).unwrap();
                let before = world.state();
                let takes_place = ["the output would take the place of the input"];
                kept(world.run(words, &out, &["--force"]), &takes_place);
                assert!(world.state() == before, "{name}: {input}");
                fs::remove_dir_all(&out).unwrap();
                fs::remove_dir_all(&place).unwrap();
                fs::rename(&moved, &place).unwrap();
            }
        }
    }
}

#[test]
fn an_output_inside_an_input_is_replaced_and_not_copied() {
    let world = World::new();
    let out = world.at("base/out");
    for words in ["merge {base} {adapter}", "convert {base} --dtype bf16"] {
        world.run(words, &out, &[]).ok();
        let first = snapshot(&out);
        world.run(words, &out, &["--force"]).ok();
        assert!(snapshot(&out) == first);
        fs::remove_dir_all(&out).unwrap();
    }
    let gguf = world.at("hub/model.gguf");
    world.run("convert {hub}", &gguf, &[]).ok();
    world.run("convert {hub}", &gguf, &["--force"]).ok();
}

#[test]
fn records_of_two_outputs_have_two_names() {
    let world = World::new();
    let (safe, gguf) = (world.bench.path("x.safetensors"), world.bench.path("x.gguf"));
    world.run("convert {hub}", &gguf, &[]).ok();
    world.run("merge {file} {adapter}", &safe, &[]).ok();
    let wanted = ["in", "x.gguf", "x.gguf.lorakit.json", "x.safetensors", "x.safetensors.lorakit.json"];
    assert_eq!(world.bench.listing(), wanted);
    assert_eq!(read_json(&world.bench.path("x.gguf.lorakit.json"))["operation"], "convert");
    // The record is found again, also under the name it had before.
    let found = |out: &str| {
        let out = world.bench.path(out);
        lorakit(&[&"convert", &safe, &"-o", &out]).ok();
        read_json(&out.join("lorakit.json"))["input"]["lorakit"]["operation"].clone()
    };
    assert_eq!(found("new"), "merge");
    fs::rename(world.bench.path("x.safetensors.lorakit.json"), world.bench.path("x.lorakit.json")).unwrap();
    assert_eq!(found("old"), "merge");
    fs::remove_file(world.bench.path("x.lorakit.json")).unwrap();
    assert_eq!(found("none"), Value::Null);
    // A directory's record travels without its list.
    world.run("convert {tuned}", &world.bench.path("again"), &[]).ok();
    let record = read_json(&world.bench.path("again/lorakit.json"));
    assert_eq!(record["input"]["lorakit"]["operation"], "merge");
    assert_eq!(record["input"]["lorakit"]["files"], Value::Null);
    assert!(record["files"].is_array());
}

#[test]
fn what_cannot_be_written_is_told_before_the_work_and_by_a_dry_run() {
    let world = World::new();
    let pipe = world.bench.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for Line { name, words, out } in &LINES {
        println!("{name}");
        for more in [&[][..], &["--force"], &["--dry-run"], &["--dry-run", "--force"]] {
            for (place, part) in [
                (pipe.clone(), "is a device or a pipe, and is never replaced"),
                (PathBuf::from("/dev/null"), "is a device or a pipe, and is never replaced"),
                (world.bench.path("no/such").join(out), "mkdir -p"),
                (world.bench.path(".."), "the path ends without a name"),
            ] {
                if *out == "out"
                    || !["pipe", "null"].contains(&place.file_name().and_then(|n| n.to_str()).unwrap_or(""))
                {
                    kept(world.run(words, &place, more), &[part]);
                }
            }
            for ending in ["bin", "pt", "pth", "ckpt", "npz", "safetensors", "gguf"] {
                let place = world.bench.path(&format!("named.{ending}"));
                // What `convert` and a model become is told by these names.
                let cut = name.ends_with("cut") || *name == "merge, a pipeline";
                let of_model =
                    (name.starts_with("merge") || *name == "subtract, a model" || name.ends_with("compared"))
                        && ending == "safetensors"
                        && !cut;
                // A sum is one for llama.cpp by this name, which wants to know of which model.
                let sums = ["stack", "resize", "subtract, adapters"];
                let for_llama =
                    ending == "gguf" && sums.iter().any(|verb| name.starts_with(verb)) && !name.ends_with("mlx");
                let right = for_llama
                    || name.starts_with("convert") && ["safetensors", "gguf"].contains(&ending)
                    || *name == "merge, a file"
                    || of_model;
                if !right {
                    let outcome = world.run(words, &place, more);
                    assert!(outcome.code == 2, "{name} {ending}: {} {}", outcome.stdout, outcome.stderr);
                    assert!(outcome.stderr.contains("--out"), "{name} {ending}: {}", outcome.stderr);
                }
            }
        }
    }
    assert_eq!(world.bench.listing(), ["in", "pipe"]);
}

#[test]
fn what_stands_behind_the_name_of_an_output_does_not_count() {
    let world = World::new();
    let out = world.bench.path("out");
    for Line { name, words, .. } in LINES.iter().filter(|line| line.out == "out") {
        for behind in ["", "."] {
            let place = PathBuf::from(format!("{}/{behind}", out.display()));
            world.run(words, &place, &[]).ok();
            assert!(out.join("lorakit.json").is_file(), "{name}");
            world.run(words, &place, &["--force"]).ok();
            fs::remove_dir_all(&out).unwrap();
            assert_eq!(world.bench.listing(), ["in"], "{name}");
        }
    }
}

#[test]
fn two_runs_that_replace_one_output_both_succeed() {
    let world = World::new();
    let out = world.bench.path("out");
    for _ in 0..10 {
        let start = || {
            std::process::Command::new(assert_cmd::cargo::cargo_bin("lorakit"))
                .args([&"merge".into(), &world.at("base"), &world.at("adapter"), &"-o".into(), &out])
                .args(["--force", "-q"])
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let both = [start(), start()];
        for child in both {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        fs::remove_dir_all(&out).unwrap();
    }
    assert_eq!(world.bench.listing(), ["in"]);
}
