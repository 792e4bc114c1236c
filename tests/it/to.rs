//! `--to` of the verbs that make adapters: the result is what the verb and `convert` after it give.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use lorakit::formats::gguf::Gguf;
use safetensors::tensor::SafeTensors;
use serde_json::Value;

use crate::support::*;

/// The verb with `words`, and `more` behind them.
fn run(words: &[&dyn AsRef<OsStr>], out: &Path, more: &[&str]) -> Outcome {
    let mut all = words.to_vec();
    all.extend([&"-o" as &dyn AsRef<OsStr>, &out]);
    all.extend(more.iter().map(|word| word as &dyn AsRef<OsStr>));
    lorakit(&all)
}

fn place(bench: &Bench, name: &str, dialect: &str) -> PathBuf {
    let single = ["kohya", "comfyui"].contains(&dialect);
    bench.path(&format!("{name}-{dialect}{}", if single { ".safetensors" } else { "" }))
}

/// What a file holds: tensors and the free text of their header, or settings.
type Contents = (Tensors, BTreeMap<String, String>, Option<Value>);

/// Everything in the files of an adapter but the record of how it was made.
fn contents(root: &Path) -> BTreeMap<String, Contents> {
    let files = match root.is_dir() {
        true => fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect(),
        false => vec![root.to_path_buf()],
    };
    let mut found = BTreeMap::new();
    for path in files {
        let name = if root.is_dir() { path.file_name().unwrap().to_str().unwrap().to_owned() } else { "file".into() };
        let all = match path.extension().and_then(OsStr::to_str) {
            Some("json") if name == "lorakit.json" => continue,
            Some("json") => (Tensors::new(), BTreeMap::new(), Some(read_json(&path))),
            _ => {
                let bytes = fs::read(&path).unwrap();
                let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
                let mut metadata: BTreeMap<String, String> = header.metadata().clone().unwrap().into_iter().collect();
                let recipe: Value = serde_json::from_str(&metadata.remove("lorakit").unwrap()).unwrap();
                assert!(recipe["operation"].is_string(), "{recipe}");
                // The hash of the first kind covers a piece of the file that begins within the header.
                metadata.remove("sshs_legacy_hash");
                // PEFT's form, through which the other way goes, has no place for what a trainer wrote.
                metadata.retain(|key, _| !key.starts_with("ss_") && !key.starts_with("modelspec."));
                (read(&path), metadata, None)
            }
        };
        found.insert(name, all);
    }
    found
}

/// `words --to dialect` for every one of `dialects` against `words` and `convert --to dialect`.
#[track_caller]
fn assert_as_converted(words: &[&dyn AsRef<OsStr>], dialects: &[&str], more: &[&str], names: &[&str]) {
    let bench = Bench::new();
    let peft = bench.path("peft");
    run(words, &peft, &[more, &["--to", "peft"]].concat()).ok();
    for dialect in dialects {
        let (direct, by_way) = (place(&bench, "direct", dialect), place(&bench, "by-way", dialect));
        let to: Vec<&str> = more.iter().copied().chain(["--to", dialect]).chain(names.iter().copied()).collect();
        run(words, &direct, &to).ok();
        let convert: Vec<&str> = ["--to", dialect].into_iter().chain(names.iter().copied()).collect();
        run(&[&"convert", &peft], &by_way, &convert).ok();
        let (direct, by_way) = (contents(&direct), contents(&by_way));
        assert!(direct.values().any(|(tensors, ..)| !tensors.is_empty()), "{dialect}");
        assert_eq!(direct, by_way, "{dialect}");
    }
    let left: Vec<String> = bench.listing().into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(left, [""; 0], "nothing is left of what was staged");
}

/// A pipeline with two of its adapters.
fn pipeline() -> (PathBuf, PathBuf, PathBuf) {
    let root = reference_part("kohya");
    let adapter = |name: &str| root.join(name).join("lora.safetensors");
    (root.join("base"), adapter("kohya-lora-r4"), adapter("kohya-lora-r4-b"))
}

const PIPELINES: [&str; 3] = ["kohya", "comfyui", "diffusers"];

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_is_extracted_from_a_language_model_is_written_for_mlx() {
    let root = reference();
    let (base, tuned) = (root.join("peft/bases/llama-bf16"), root.join("extract/tiny-f32/tuned"));
    let more = ["--rank", "4", "--include", "proj", "--exclude", "bias"];
    assert_as_converted(&[&"extract", &base, &tuned], &["mlx", "peft", "safetensors"], &more, &[]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_is_extracted_from_a_pipeline_is_written_for_pipelines() {
    let (base, adapter, _) = pipeline();
    let bench = Bench::new();
    let tuned = bench.path("tuned");
    merge(&base, &adapter, &tuned, &[]).ok();
    let more = ["--rank", "4", "--include", "attn"];
    for part in ["", "unet"] {
        assert_as_converted(&[&"extract", &base.join(part), &tuned.join(part)], &PIPELINES, &more, &[]);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn sums_of_adapters_are_written_for_pipelines() {
    let (_, left, right) = pipeline();
    assert_as_converted(&[&"stack", &left, &right], &PIPELINES, &[], &[]);
    assert_as_converted(&[&"subtract", &left, &right], &PIPELINES, &["--rank", "3"], &[]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn resized_adapters_are_written_for_pipelines_and_mlx() {
    let (_, adapter, _) = pipeline();
    // A file of sd-scripts stays one, key by key: `defaults`.
    assert_as_converted(&[&"resize", &adapter], &["comfyui", "diffusers"], &["--rank", "2"], &[]);
    let peft = reference_part("peft/lora-patterns/adapter");
    assert_as_converted(&[&"resize", &peft], &["mlx"], &["--rank", "2"], &[]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_language_model_is_refused_for_pipelines_before_the_work() {
    let root = reference();
    let (base, tuned) = (root.join("peft/bases/llama-bf16"), root.join("extract/tiny-f32/tuned"));
    let bench = Bench::new();
    let refuse = |words: &[&dyn AsRef<OsStr>], more: &[&str], code: i32, text: &str| {
        run(words, &bench.path("out"), more).refused(code, &[text]);
        assert_eq!(bench.listing(), [""; 0], "{more:?}");
    };
    let extract: [&dyn AsRef<OsStr>; 3] = [&"extract", &base, &tuned];
    refuse(&extract, &["--rank", "2", "--to", "kohya"], 1, "is no part of a diffusion pipeline");
    refuse(&extract, &["--rank", "2", "--to", "mlx"], 1, "mlx-lm takes nothing beside factors");
    refuse(&extract, &["--rank", "2", "--to", "mlx", "--dry-run"], 1, "mlx-lm takes nothing beside factors");
    refuse(&extract, &["--rank", "2", "--to", "peft2"], 2, "`peft2` is not one of peft, kohya, comfyui");
    let adapter = root.join("peft/lora-all-r4/adapter");
    refuse(&[&"stack", &adapter], &["--to", "diffusers"], 1, "adapter: `model.layers.0.mlp.down_proj` is no part of a");
    refuse(&[&"subtract", &base, &adapter], &["--to", "mlx"], 2, "dialects belong to adapters");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_dry_run_tells_the_bytes_and_leaves_nothing() {
    let (_, adapter, _) = pipeline();
    let bench = Bench::new();
    let out = bench.path("out.safetensors");
    let report = |more: &[&str]| run(&[&"resize", &adapter, &"--json"], &out, more).ok().json();
    let planned = report(&["--rank", "2", "--to", "kohya", "--dry-run"]);
    assert_eq!(bench.listing(), [""; 0]);
    let done = report(&["--rank", "2", "--to", "kohya"]);
    assert_eq!((&done["to"], &planned["to"]), (&"kohya".into(), &"kohya".into()));
    assert_eq!(planned["adapters"][0]["bytes"], done["adapters"][0]["bytes"]);
    assert_eq!(done["adapters"][0]["bytes"], fs::metadata(&out).unwrap().len());
    run(&[&"resize", &adapter], &out, &["--rank", "2", "--to", "kohya"]).refused(1, &["already exists"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_folder_becomes_a_folder_of_the_dialects_files_and_is_done_once() {
    let root = reference();
    let bench = Bench::new();
    let adapters = ["lora-all-r4", "rslora-r4"].map(|name| root.join("peft").join(name).join("adapter"));
    let inputs: Vec<PathBuf> = ["one", "two"].iter().map(|name| bench.path("in").join(name)).collect();
    fs::create_dir_all(bench.path("in")).unwrap();
    adapters.iter().zip(&inputs).for_each(|(adapter, input)| std::os::unix::fs::symlink(adapter, input).unwrap());
    let out = bench.path("out");
    let outcomes = || {
        let report = run(&[&"resize", &bench.path("in"), &"--json"], &out, &["--rank", "2", "--to", "mlx"]).ok().json();
        let outcome = |entry: &Value| entry["outcome"].as_str().unwrap().to_owned();
        report["adapters"].as_array().unwrap().iter().map(outcome).collect::<Vec<String>>()
    };
    assert_eq!(outcomes(), ["resized", "resized"]);
    assert!(out.join("one/adapters.safetensors").is_file() && out.join("two/adapters.safetensors").is_file());
    assert_eq!(outcomes(), ["done", "done"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_folder_of_pipelines_adapters_becomes_a_folder_of_files_and_is_done_once() {
    let bench = Bench::new();
    let (_, left, right) = pipeline();
    for (name, adapter) in [("a", left), ("b", right)] {
        let folder = bench.path("files").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(adapter, folder.join("pytorch_lora_weights.safetensors")).unwrap();
    }
    let out = bench.path("kohya");
    let again = || run(&[&"resize", &bench.path("files")], &out, &["--rank", "2", "--to", "kohya"]).ok();
    again();
    assert!(out.join("a.safetensors").is_file() && out.join("b.safetensors").is_file());
    assert!(again().stdout.contains("done before"));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn more_bytes_than_a_budget_are_told() {
    let root = reference();
    let adapter = root.join("peft/lora-patterns/adapter");
    let bench = Bench::new();
    let more = ["--max-size", "20kB", "--to", "mlx", "--json"];
    let report = run(&[&"resize", &adapter], &bench.path("out"), &more).ok().json();
    let (bytes, notes) = (report["adapters"][0]["bytes"].as_u64().unwrap(), &report["adapters"][0]["notes"]);
    assert!(bytes > 20_000 && notes.to_string().contains("of the budget"), "{bytes} {notes}");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn resizing_takes_the_base_where_a_method_needs_it() {
    let root = reference();
    for name in ["vera-r16", "miss-r8", "pissa-r4"] {
        let case = root.join("peft").join(name);
        let base = root.join("peft/bases").join(read_json(&case.join("case.json"))["base"].as_str().unwrap());
        let adapter = case.join("adapter");
        let bench = Bench::new();
        run(&[&"resize", &adapter], &bench.path("out"), &["--rank", "2"]).refused(1, &["--base"]);
        let more = ["--rank", "64", "--base", base.to_str().unwrap()];
        run(&[&"resize", &adapter], &bench.path("out"), &more).ok();
        let mut plain = vec!["--dtype", "f32"];
        plain.extend(name.starts_with("pissa").then_some(["--base", base.to_str().unwrap()]).into_iter().flatten());
        merge(&base, &adapter, &bench.path("wanted"), &plain).ok();
        merge(&base, &bench.path("out"), &bench.path("got"), &["--dtype", "f32"]).ok();
        let (wanted, got) = (read_model(&bench.path("wanted")), read_model(&bench.path("got")));
        wanted.iter().for_each(|(name, tensor)| assert_close(&tensor.values(), &got[name].values(), 1e-6));
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn adapters_are_written_for_llama_cpp() {
    let root = reference();
    let (base, tuned) = (root.join("peft/bases/llama-bf16"), root.join("extract/tiny-f32/tuned"));
    let [one, other] = ["lora-all-r4", "lora-all-r4-b"].map(|name| root.join("peft").join(name).join("adapter"));
    let contents = |path: &Path| {
        let file = Gguf::open(path).unwrap();
        let mut metadata = file.metadata().clone();
        metadata.retain(|key| !["lorakit.recipe", "general.name"].contains(&key));
        let bytes = |name: &str| file.find(name).unwrap().unwrap().view().unwrap().data.to_vec();
        let tensors: Vec<(String, Vec<u8>)> =
            file.tensors().map(|info| (info.name.clone(), bytes(&info.name))).collect();
        assert!(!tensors.is_empty());
        (metadata, tensors)
    };
    let model = base.to_str().unwrap();
    let named: &[&str] = &["--base", model];
    type Case<'a> = (Vec<&'a dyn AsRef<OsStr>>, &'a [&'a str], &'a [&'a str]);
    let cases: [Case<'_>; 4] = [
        (vec![&"extract", &base, &tuned], &["--rank", "4", "--include", "proj", "--exclude", "bias"], &[]),
        (vec![&"stack", &one, &other], &[], named),
        (vec![&"subtract", &one, &other], &["--rank", "3"], named),
        (vec![&"resize", &one], &["--rank", "2"], named),
    ];
    for (words, more, names) in cases {
        let bench = Bench::new();
        let (peft, by_way, direct) = (bench.path("peft"), bench.path("way.gguf"), bench.path("direct.gguf"));
        run(&words, &peft, more).ok();
        run(&[&"convert", &peft], &by_way, &["--to", "gguf", "--base", model]).ok();
        run(&words, &direct, &[more, &["--to", "gguf"], names].concat()).ok();
        assert_eq!(contents(&direct), contents(&by_way));
    }
    let bench = Bench::new();
    fs::create_dir_all(bench.path("in")).unwrap();
    std::os::unix::fs::symlink(&one, bench.path("in").join("one")).unwrap();
    let resize = || {
        let more = [&["--rank", "2", "--to", "gguf"], named].concat();
        run(&[&"resize", &bench.path("in")], &bench.path("out"), &more).ok().stdout
    };
    assert!(!resize().contains("done before") && bench.path("out").join("one.gguf").is_file());
    assert!(resize().contains("done before"));
}
