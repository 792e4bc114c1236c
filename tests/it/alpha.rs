//! Where α stands: in a config, beside the factors, in the header of a single file, on the command line. Two that disagree are refused.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::support::*;

const D: usize = 8;
const RANK: usize = 4;
const MODULES: [&str; 2] = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"];

fn factor(seed: u64, shape: [usize; 2]) -> Tensor {
    Tensor::f32(&shape, &noise(seed, shape[0] * shape[1], 0.1))
}

fn down(at: usize) -> Tensor {
    factor(at as u64 + 10, [RANK, D])
}

fn up(at: usize) -> Tensor {
    factor(at as u64 + 20, [D, RANK])
}

fn write_with(path: &Path, tensors: &[(String, Tensor)], metadata: &[(&str, &str)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let views = tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

fn base(bench: &Bench, modules: &[&str]) -> PathBuf {
    let path = bench.path("base.safetensors");
    let tensors: Vec<(String, Tensor)> =
        (0..2).map(|at| (format!("{}.weight", modules[at]), factor(at as u64, [D, D]))).collect();
    write_with(&path, &tensors, &[]);
    path
}

fn factors(prefix: &str, modules: &[&str]) -> Vec<(String, Tensor)> {
    (0..2)
        .flat_map(|at| {
            let name = |factor: &str| format!("{prefix}{}.lora_{factor}.weight", modules[at]);
            [(name("A"), down(at)), (name("B"), up(at))]
        })
        .collect()
}

#[track_caller]
fn assert_scales(out: &Path, modules: &[&str], scales: [f64; 2]) {
    let got = if out.is_dir() { read_model(out) } else { read(out) };
    for at in 0..2 {
        let weight = factor(at as u64, [D, D]).values();
        let wanted = dense(&weight, &up(at).values(), &down(at).values(), RANK, scales[at]);
        assert_close(&got[&format!("{}.weight", modules[at])].values(), &wanted, 1e-6);
    }
}

fn settings(component: &str) -> String {
    let all = json!({"r": 4, "lora_alpha": 8, "alpha_pattern": {"transformer_blocks.0.attn.to_k": 6}, "rank_pattern": {},
        "use_rslora": false, "use_dora": false, "target_modules": ["to_q", "to_k"], "peft_type": "LORA", "lora_dropout": 0.0});
    let named = all.as_object().unwrap().iter().map(|(key, value)| (format!("{component}{key}"), value.clone()));
    Value::Object(named.collect()).to_string()
}

/// A prefix, entries of the header, the scales of both modules, the key that tells them.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], [f64; 2], &'a str);

#[test]
fn alpha_in_the_header_counts_in_every_spelling() {
    let (plain, with_component) = (settings(""), settings("transformer."));
    let cases: [Case<'_>; 11] = [
        ("", &[("alpha", "8"), ("rank", "4")], [2.0; 2], "alpha"),
        ("diffusion_model.", &[("alpha", "8.0")], [2.0; 2], "alpha"),
        ("transformer.", &[("lora_alpha", "8"), ("r", "4")], [2.0; 2], "lora_alpha"),
        ("transformer.", &[("network_alpha", "8")], [2.0; 2], "network_alpha"),
        ("transformer.", &[("ss_network_alpha", "8"), ("ss_network_dim", "4")], [2.0; 2], "ss_network_alpha"),
        (
            "transformer.",
            &[("transformer.lora_alpha", "8"), ("transformer.r", "4")],
            [2.0; 2],
            "transformer.lora_alpha",
        ),
        ("", &[("transformer.alpha", "8")], [2.0; 2], "transformer.alpha"),
        ("transformer.", &[("transformer.alpha", "8"), ("alpha", "2")], [2.0; 2], "transformer.alpha"),
        ("", &[("lora_adapter_metadata", &plain)], [2.0, 1.5], "lora_adapter_metadata"),
        ("transformer.", &[("lora_adapter_metadata", &with_component)], [2.0, 1.5], "lora_adapter_metadata"),
        ("transformer.", &[("ss_network_alpha", "Dynamic")], [1.0; 2], ""),
    ];
    for (prefix, metadata, scales, key) in cases {
        let bench = Bench::new();
        let (base, adapter, out) = (base(&bench, &MODULES), bench.path("a.safetensors"), bench.path("out.safetensors"));
        write_with(&adapter, &factors(prefix, &MODULES), metadata);
        let report = merge(&base, &adapter, &out, &["--json"]).ok().json();
        assert_scales(&out, &MODULES, scales);
        let from = if key.is_empty() { "rank, as nothing says it".to_owned() } else { format!("header, {key}") };
        assert_eq!(report["adapters"][0]["alpha_from"], from.as_str(), "{metadata:?}");
        let text = merge(&base, &adapter, &bench.path("again.safetensors"), &[]).ok().stdout;
        assert!(text.contains(&format!("alpha from {from}")), "{text}");
    }
}

#[test]
fn a_component_of_another_part_says_nothing() {
    let bench = Bench::new();
    let (base, adapter, out) = (base(&bench, &MODULES), bench.path("a.safetensors"), bench.path("out.safetensors"));
    write_with(&adapter, &factors("transformer.", &MODULES), &[("text_encoder.lora_alpha", "8")]);
    merge(&base, &adapter, &out, &[]).ok();
    assert_scales(&out, &MODULES, [1.0; 2]);
}

#[test]
fn a_config_beside_the_file_counts_for_folder_and_file() {
    let bench = Bench::new();
    let base = base(&bench, &MODULES);
    for (at, name) in
        ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "mine.safetensors"].iter().enumerate()
    {
        let folder = bench.path(&format!("adapter-{at}"));
        write_with(&folder.join(name), &factors("transformer.", &MODULES), &[]);
        let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"]});
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        for (path, out) in [(folder.clone(), "of-folder"), (folder.join(name), "of-file")] {
            let out = bench.path(&format!("{out}-{at}.safetensors"));
            let report = merge(&base, &path, &out, &["--json"]).ok().json();
            assert_eq!(report["adapters"][0]["alpha_from"], "adapter_config.json");
            assert_scales(&out, &MODULES, [2.0; 2]);
        }
    }
}

#[test]
fn a_config_beside_other_spellings_counts_too() {
    let bench = Bench::new();
    let base = base(&bench, &MODULES);
    let folder = bench.path("adapter");
    let old: Vec<(String, Tensor)> = factors("transformer.", &MODULES)
        .into_iter()
        .map(|(name, tensor)| (name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"), tensor))
        .collect();
    write_with(&folder.join("adapter_model.safetensors"), &old, &[]);
    let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    merge(&base, &folder, &bench.path("out.safetensors"), &[]).ok();
    assert_scales(&bench.path("out.safetensors"), &MODULES, [2.0; 2]);
}

#[test]
fn two_that_disagree_are_refused_with_both_numbers_and_told_apart() {
    let bench = Bench::new();
    let base = base(&bench, &MODULES);
    // Config against header.
    let folder = bench.path("adapter");
    write_with(&folder.join("adapter_model.safetensors"), &factors("transformer.", &MODULES), &[("lora_alpha", "8")]);
    let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_q"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    // Header against tensors, and against itself.
    let (tensors, header, ranks) =
        (bench.path("tensors.safetensors"), bench.path("header.safetensors"), bench.path("rank.safetensors"));
    let mut with_alpha = factors("transformer.", &MODULES);
    with_alpha.extend(MODULES.map(|module| (format!("transformer.{module}.alpha"), Tensor::f32(&[], &[4.0]))));
    write_with(&tensors, &with_alpha, &[("alpha", "8")]);
    write_with(&header, &factors("transformer.", &MODULES), &[("alpha", "8"), ("network_alpha", "4")]);
    write_with(&ranks, &factors("transformer.", &MODULES), &[("alpha", "8"), ("rank", "16")]);
    for (path, parts) in [
        (folder.clone(), ["adapter_config.json says 4", "`lora_alpha`) 8"]),
        (folder.join("adapter_model.safetensors"), ["adapter_config.json says 4", "`lora_alpha`) 8"]),
        (tensors, ["`alpha`) says 8", "its own tensor 4"]),
        (header, ["`alpha`", "`network_alpha`"]),
        (ranks, ["have rank 4", "says 16"]),
    ] {
        let out = bench.path("out.safetensors");
        merge(&base, &path, &out, &[]).refused(1, &[parts[0], parts[1], "--alpha"]);
        merge(&base, &path, &out, &["--alpha", "6", "-q"]).ok();
        assert_scales(&out, &MODULES, [1.5; 2]);
        fs::remove_file(&out).unwrap();
        fs::remove_file(bench.path("out.lorakit.json")).ok();
        fs::remove_file(bench.path("out.safetensors.lorakit.json")).ok();
    }
}

#[test]
fn one_alpha_for_pairs_of_several_ranks_is_ambiguous() {
    let bench = Bench::new();
    let base = base(&bench, &MODULES);
    let path = bench.path("a.safetensors");
    let tensors: Vec<(String, Tensor)> = vec![
        (format!("{}.lora_A.weight", MODULES[0]), factor(1, [2, D])),
        (format!("{}.lora_B.weight", MODULES[0]), factor(2, [D, 2])),
        (format!("{}.lora_A.weight", MODULES[1]), factor(3, [4, D])),
        (format!("{}.lora_B.weight", MODULES[1]), factor(4, [D, 4])),
    ];
    write_with(&path, &tensors, &[("alpha", "8")]);
    merge(&base, &path, &bench.path("out.safetensors"), &[]).refused(1, &["ranks 2, 4", "--alpha"]);
    merge(&base, &path, &bench.path("out.safetensors"), &["--alpha", "8"]).ok();
}

#[test]
fn records_of_the_training_never_count_against_the_tensors() {
    let bench = Bench::new();
    let base = base(&bench, &MODULES);
    let path = bench.path("a.safetensors");
    let mut tensors = factors("transformer.", &MODULES);
    tensors.extend(MODULES.map(|module| (format!("transformer.{module}.alpha"), Tensor::f32(&[], &[8.0]))));
    write_with(&path, &tensors, &[("ss_network_alpha", "16"), ("ss_network_dim", "4")]);
    merge(&base, &path, &bench.path("out.safetensors"), &[]).ok();
    assert_scales(&bench.path("out.safetensors"), &MODULES, [2.0; 2]);
}

const LAYERS: [&str; 2] = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"];

/// PEFT's weights, whose config was lost.
fn lost(bench: &Bench) -> PathBuf {
    let path = bench.path("lost/adapter_model.safetensors");
    write_with(&path, &factors("base_model.model.", &LAYERS), &[("format", "pt")]);
    path
}

#[test]
fn pefts_file_without_its_config_asks_for_alpha_in_every_verb() {
    let bench = Bench::new();
    let (base, file) = (base(&bench, &LAYERS), lost(&bench));
    let folder = file.parent().unwrap().to_path_buf();
    for path in [&file, &folder] {
        let asks: &[&str] = &["2 pairs, rank 4", "alpha is unknown", "--alpha A"];
        merge(&base, path, &bench.path("no.safetensors"), &[]).refused(1, asks);
        lorakit(&[&"convert", path, &"--to", &"peft", &"-o", &bench.path("no")]).refused(1, asks);
        lorakit(&[&"stack", path, path, &"-o", &bench.path("no")]).refused(1, asks);
        lorakit(&[&"resize", path, &"--rank", &"2", &"-o", &bench.path("no")]).refused(1, asks);
        let problems = lorakit(&[&"inspect", path, &"--json"]).ok().json()["problems"].to_string();
        assert!(problems.contains("its alpha is unknown"), "{problems}");
    }
    merge(&base, &file, &bench.path("file.safetensors"), &["--alpha", "8"]).ok();
    assert_scales(&bench.path("file.safetensors"), &LAYERS, [2.0; 2]);
    let report = merge(&base, &folder, &bench.path("folder.safetensors"), &["--alpha", "8", "--json"]).ok().json();
    assert_eq!(report["adapters"][0]["alpha_from"], "--alpha");
    assert_scales(&bench.path("folder.safetensors"), &LAYERS, [2.0; 2]);

    // What other verbs make of it carries the scale.
    let made = |name: &str, words: &[&dyn AsRef<std::ffi::OsStr>]| {
        lorakit(words).ok();
        let out = bench.path(&format!("{name}.safetensors"));
        merge(&base, &bench.path(name), &out, &["-q"]).ok();
        let got = read(&out);
        for at in 0..2 {
            let weight = factor(at as u64, [D, D]).values();
            let times = if name == "stacked" { 4.0 } else { 2.0 };
            let wanted = dense(&weight, &up(at).values(), &down(at).values(), RANK, times);
            assert_close(&got[&format!("{}.weight", LAYERS[at])].values(), &wanted, 1e-5);
        }
    };
    made("converted", &[&"convert", &file, &"--alpha", &"8", &"--to", &"peft", &"-o", &bench.path("converted")]);
    made("kept", &[&"convert", &folder, &"--alpha", &"8", &"-o", &bench.path("kept")]);
    made("stacked", &[&"stack", &file, &folder, &"--input-alpha", &"8", &"-o", &bench.path("stacked")]);
    made("resized", &[&"resize", &file, &"--input-alpha", &"8", &"--rank", &"4", &"-o", &bench.path("resized")]);
    let facts = lorakit(&[&"inspect", &file, &"--alpha", &"8", &"--json"]).ok().json();
    assert_eq!((&facts["alpha_from"], &facts["groups"][0]["scale"]), (&json!("--alpha"), &json!(2.0)));
}

#[test]
fn alpha_that_nobody_needs_is_wrong_usage() {
    let bench = Bench::new();
    let base = bench.base(&[("a.q_proj.weight", factor(0, [D, D]))], &json!({"model_type": "x"}));
    let pair = [("a.q_proj.lora_A.weight", factor(1, [2, D])), ("a.q_proj.lora_B.weight", factor(2, [D, 2]))];
    let adapter = bench.adapter("adapter", json!({}), &pair);
    merge(&base, &adapter, &bench.path("out"), &["--alpha", "8"])
        .refused(2, &["--alpha", "says its alpha itself", "adapter_config.json"]);
    merge(&base, &adapter, &bench.path("out"), &["--alpha", "nan"]).refused(2, &["--alpha"]);
    merge(&base, &adapter, &bench.path("out"), &["--adapter-name", "x"]).refused(2, &["--adapter-name", "`x`"]);
}
