//! Time and memory in proportion to the input: every run here has half a gigabyte or so of address space and some seconds of
//! processor time, and would be ended beyond.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::containers::npy;
use crate::support::*;

/// Address space in KiB: 512 MiB, and what programs and their threads map without touching it.
const ADDRESS_SPACE: u32 = 700_000;

/// Seconds of processor time; a debug build takes a tenth of them here.
const SECONDS: u32 = 60;

fn limited(words: &[&dyn AsRef<OsStr>]) -> Outcome {
    let program = assert_cmd::cargo::cargo_bin("lorakit");
    let script = format!("ulimit -t {SECONDS} && ulimit -v {ADDRESS_SPACE} && exec \"$0\" \"$@\"");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).arg(program).args(words.iter().map(|word| word.as_ref())).env("NO_COLOR", "1");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Paths of experts' projections, as DeepSeek-V3 has 44 500.
fn paths(count: usize) -> Vec<String> {
    let part = |at: usize| ["gate_proj", "up_proj", "down_proj"][at % 3];
    let path = |at: usize| format!("model.layers.{}.mlp.experts.{}.{}", at / 768, at / 3 % 256, part(at));
    (0..count).map(path).collect()
}

/// A safetensors file of tensors of f32, written without a copy of each.
fn tensors(path: &Path, names: &[String], shape: [usize; 2], seed: u64) {
    let count = shape[0] * shape[1];
    let mut header = Map::new();
    for (at, name) in names.iter().enumerate() {
        let (begin, end) = (at * count * 4, (at + 1) * count * 4);
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
    }
    raw(path, &Value::Object(header).to_string(), &Tensor::f32(&[], &noise(seed, names.len() * count, 1.0)).data);
}

fn raw(path: &Path, header: &str, data: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    fs::write(path, bytes).unwrap();
}

/// A PEFT adapter of rank 1 of so many modules of [2, 2].
fn adapter(bench: &Bench, name: &str, modules: &[String], config: Value) -> PathBuf {
    let directory = bench.path(name);
    let factors = ["lora_A", "lora_B"];
    let mut header = Map::new();
    for (at, (module, factor)) in modules.iter().flat_map(|module| factors.map(|factor| (module, factor))).enumerate() {
        let shape = if factor == "lora_A" { [1, 2] } else { [2, 1] };
        let key = format!("base_model.model.{module}.{factor}.weight");
        header.insert(key, json!({"dtype": "F32", "shape": shape, "data_offsets": [at * 8, at * 8 + 8]}));
    }
    let data = Tensor::f32(&[], &noise(name.len() as u64, modules.len() * 4, 1.0)).data;
    raw(&directory.join("adapter_model.safetensors"), &Value::Object(header).to_string(), &data);
    let mut whole =
        json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["gate_proj", "up_proj", "down_proj"]});
    whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    fs::write(directory.join("adapter_config.json"), whole.to_string()).unwrap();
    directory
}

#[test]
fn twenty_thousand_modules_are_a_matter_of_seconds_in_every_verb() {
    let bench = Bench::new();
    let modules = paths(20_000);
    let names: Vec<String> = modules.iter().map(|module| format!("{module}.weight")).collect();
    for (seed, model) in [(1, "base"), (2, "tuned")] {
        tensors(&bench.path(model).join("model.safetensors"), &names, [2, 2], seed);
        fs::write(bench.path(model).join("config.json"), "{}").unwrap();
    }
    let a = adapter(&bench, "a", &modules, json!({}));
    let b = adapter(&bench, "bb", &modules, json!({}));
    // The same modules by another prefix, and targets that are listed one by one.
    let other: Vec<String> = modules.iter().map(|path| path.replacen("model.", "model.language_model.", 1)).collect();
    let c = adapter(&bench, "ccc", &other, json!({"target_modules": other}));
    let (base, tuned, out) = (bench.path("base"), bench.path("tuned"), bench.path("out"));
    let runs: [&[&dyn AsRef<OsStr>]; 8] = [
        &[&"merge", &base, &a, &"-o", &out],
        &[&"stack", &a, &c, &"-o", &out],
        &[&"stack", &a, &b, &"-o", &out, &"--rank", &"1"],
        &[&"resize", &a, &"-o", &out, &"--energy", &"0.9"],
        &[&"extract", &base, &tuned, &"-o", &out, &"--rank", &"1"],
        &[&"convert", &a, &"-o", &out, &"--to", &"mlx"],
        &[&"inspect", &a, &"--json"],
        &[&"inspect", &c, &"--json"],
    ];
    for words in runs {
        limited(words).ok();
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn patterns_cost_what_they_are_long() {
    let bench = Bench::new();
    let modules = paths(3_000);
    let patterns = |pattern: &dyn Fn(usize) -> String, count: usize| -> Value {
        (0..count).map(|at| (pattern(at), json!(1))).collect::<Map<String, Value>>().into()
    };
    let wide =
        adapter(&bench, "wide", &modules, json!({"rank_pattern": patterns(&|at| format!("x{at}a{{0,600}}"), 20_000)}));
    limited(&[&"inspect", &wide]).refused(1, &["rank_pattern", "more than paths is 1001"]);
    let plain = patterns(&|at| format!("model.layers.{at}.self_attn.q_proj"), 40_000);
    let long = adapter(&bench, "long", &modules, json!({"rank_pattern": plain, "alpha_pattern": plain}));
    let out = bench.path("out");
    limited(&[&"inspect", &long, &"--json"]).ok();
    limited(&[&"resize", &long, &"-o", &out, &"--rank", &"1"]).ok();
    // Dots at other places in each of them: no table of outlines holds them all.
    let dotted = |at: usize| (0..16).map(|bit| if at >> bit & 1 == 1 { '.' } else { 'a' }).collect::<String>();
    let sparse = adapter(&bench, "sparse", &modules, json!({"rank_pattern": patterns(&dotted, 10_000)}));
    limited(&[&"inspect", &sparse]).refused(1, &["rank_pattern", "more than paths is 1001"]);
    let few = patterns(&|at| format!("layers.{at}[0-9].mlp.*"), 900);
    let expressions = adapter(&bench, "few", &modules, json!({"alpha_pattern": few}));
    limited(&[&"inspect", &expressions, &"--json"]).ok();
}

#[test]
fn a_config_of_many_small_values_is_refused_before_it_is_read() {
    let bench = Bench::new();
    let many =
        format!("{{\"peft_type\": \"LORA\", \"r\": 1, \"lora_alpha\": 1, \"x\": [{}0]}}", "[0],".repeat(10_000_000));
    let a = adapter(&bench, "a", &paths(3), json!({}));
    let base = bench.path("base");
    tensors(&base.join("model.safetensors"), &["x.weight".to_owned()], [2, 2], 1);
    fs::write(a.join("adapter_config.json"), &many).unwrap();
    fs::write(base.join("config.json"), &many).unwrap();
    let out = bench.path("out");
    limited(&[&"inspect", &a]).refused(1, &["adapter_config.json", "number of values in it is 2000", "1000000"]);
    limited(&[&"resize", &a, &"-o", &out, &"--rank", &"1"]).refused(1, &["adapter_config.json", "number of values"]);
    limited(&[&"convert", &base, &"-o", &out, &"--dtype", &"bf16"]).refused(1, &["config.json", "number of values"]);
}

#[test]
fn a_header_of_more_tensors_than_any_model_has_is_refused() {
    let bench = Bench::new();
    let entry = |at: usize| format!("\"t{at}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let header = |count: usize| format!("{{{}}}", (0..count).map(entry).collect::<Vec<String>>().join(","));
    let (many, most) = (bench.path("many.safetensors"), bench.path("most.safetensors"));
    raw(&many, &header(900_000), &[]);
    limited(&[&"inspect", &many, &"--check", &"--tensors", &"--json"])
        .refused(1, &["many.safetensors", "200000 tensors"]);
    raw(&most, &header(100_000), &[]);
    limited(&[&"inspect", &most, &"--json"]).ok();
}

/// A zip archive with one compressed entry.
fn deflated(name: &str, data: &[u8]) -> Vec<u8> {
    let packed = miniz_oxide::deflate::compress_to_vec(data, 6);
    let sizes = [(packed.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    let length = (name.len() as u16).to_le_bytes();
    let mut out = b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([&sizes[..], &length, &[0, 0], name.as_bytes(), &packed].concat());
    let at = out.len() as u32;
    let mut directory = b"PK\x01\x02\x14\0\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0".to_vec();
    directory.extend([&sizes[..], &length, &[0; 16], name.as_bytes()].concat());
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    out.extend([&(directory.len() as u32).to_le_bytes()[..], &at.to_le_bytes(), &[0, 0]].concat());
    out
}

#[test]
fn compressed_files_hold_no_more_together_than_a_few() {
    let bench = Bench::new();
    let data = vec![0; 60 << 20];
    let zeros = deflated("w.npy", &npy("<f4", false, &[15 << 20], &data));
    let folder = bench.path("folder");
    fs::create_dir_all(&folder).unwrap();
    let named = |at: usize| deflated(&format!("w{at}.npy"), &npy("<f4", false, &[15 << 20], &data));
    for at in 0..20 {
        fs::write(folder.join(format!("{at}.npz")), &zeros).unwrap();
    }
    let told = limited(&[&"inspect", &folder, &"--json", &"-j", &"2", &"--max-memory", &"128MiB"]).ok();
    assert!(!told.stdout.contains("\"error\""), "{}", told.stdout);
    let shards = bench.path("shards");
    fs::create_dir_all(&shards).unwrap();
    let mut map = Map::new();
    for at in 0..8 {
        let name = format!("model-{at}.npz");
        fs::write(shards.join(&name), named(at)).unwrap();
        map.insert(format!("w{at}"), name.into());
    }
    fs::write(shards.join("pytorch_model.bin.index.json"), json!({"metadata": {}, "weight_map": map}).to_string())
        .unwrap();
    let out = bench.path("out");
    let refused = ["model-4.npz", "held in memory for the files up to this one"];
    limited(&[&"inspect", &shards]).refused(1, &refused);
    limited(&[&"convert", &shards, &"-o", &out, &"--dtype", &"bf16"]).refused(1, &refused);
}
