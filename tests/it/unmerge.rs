//! Adapters taken out of merged models: by subtraction, and with the base at hand.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::{
    Bench, Outcome, Tensor, assert_close, fixtures, lorakit, merge, noise, read, read_json, read_model, reference,
    snapshot,
};

const Q: &str = "model.q_proj.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// `lorakit subtract MERGED ADAPTER -o OUT …`
fn subtract(merged: &Path, adapter: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"subtract", &merged, &adapter, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<OsStr>));
    lorakit(&words)
}

/// Reference cases that merge: name, base, whether ΔW is a sum.
fn cases(root: &Path) -> Vec<(String, PathBuf, bool)> {
    let mut names: Vec<String> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| root.join(name).join("case.json").exists())
        .collect();
    names.sort();
    let case = |name: String| {
        let facts = read_json(&root.join(&name).join("case.json"));
        let supported = ["LORA", "TRAINABLE_TOKENS"].contains(&facts["peft_type"].as_str().unwrap_or_default());
        let config = read_json(&root.join(&name).join("adapter/adapter_config.json"));
        let whole = ["modules_to_save", "trainable_token_indices"].iter().any(|key| !config[*key].is_null());
        let tokens = config["peft_type"] == "TRAINABLE_TOKENS";
        let tensors = read(&root.join(&name).join("adapter/adapter_model.safetensors"));
        let copies = tensors.keys().any(|key| key.contains("base_layer.weight"));
        let additive = config["use_dora"] != true
            && !whole
            && !copies
            && !tokens
            && config["bias"].as_str().unwrap_or("none") == "none";
        let base = root.join("bases").join(facts["base_for_low"].as_str().or(facts["base"].as_str()).unwrap());
        (supported && facts["mergeable"] != false).then_some((name, base, additive))
    };
    names.into_iter().filter_map(case).collect()
}

/// Merges every case and takes it out again, with and without the base; says how many were sums, and how many not.
fn check_all(root: &Path) -> (usize, usize) {
    let (mut sums, mut others) = (0, 0);
    for (name, base, additive) in cases(root) {
        let bench = Bench::new();
        let (adapter, init) = (root.join(&name).join("adapter"), root.join(&name).join("init"));
        let init = if init.is_dir() { vec!["--init-adapter", init.to_str().unwrap()] } else { Vec::new() };
        merge(&base, &adapter, &bench.path("merged"), &init).ok();
        let with_base: Vec<&str> =
            ["--base", base.to_str().unwrap(), "--json"].into_iter().chain(init.clone()).collect();
        let report = subtract(&bench.path("merged"), &adapter, &bench.path("exact"), &with_base).ok().json();
        assert_eq!(report["exact"], true, "{name}: {report}");
        assert!(read_model(&bench.path("exact")) == read_model(&base), "{name}: not the base's bits");
        if base.join("config.json").exists() {
            assert_eq!(read_json(&bench.path("exact/config.json")), read_json(&base.join("config.json")), "{name}");
        }
        if !additive {
            subtract(&bench.path("merged"), &adapter, &bench.path("out"), &init)
                .refused(1, &["cannot be taken out", "--base PATH"]);
            assert_eq!(bench.listing(), ["exact", "merged"], "{name}");
            others += 1;
            continue;
        }
        let wide: Vec<&str> = ["--dtype", "f32", "--cast-all"].into_iter().chain(init.clone()).collect();
        merge(&base, &adapter, &bench.path("wide"), &wide).ok();
        subtract(&bench.path("wide"), &adapter, &bench.path("back"), &init).ok();
        let (back, base) = (read_model(&bench.path("back")), read_model(&base));
        for (tensor, wanted) in &base {
            assert_close(&back[tensor].values(), &wanted.values(), 1e-6);
        }
        sums += 1;
    }
    (sums, others)
}

#[test]
fn every_fixture_comes_back() {
    let (sums, others) = check_all(&fixtures().join("peft"));
    assert_eq!((sums, others), (8, 6));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_lora_of_the_reference_comes_back() {
    let reference = reference();
    let (sums, others) = check_all(&reference.join("peft"));
    assert_eq!((sums, others), (23, 19));
}

/// A bf16 model with one layer, an untouched tensor, and a LoRA for the layer.
fn model(bench: &Bench) -> (PathBuf, PathBuf) {
    let tensors = [
        (Q, Tensor::new(Dtype::BF16, &[24, 16], &noise(1, 384, 1.0))),
        ("model.norm.weight", Tensor::new(Dtype::BF16, &[16], &noise(2, 16, 1.0))),
    ];
    let base = bench.base(&tensors, &json!({}));
    let pair = [
        ("model.q_proj.lora_A.weight", Tensor::f32(&[2, 16], &noise(3, 32, 0.2))),
        ("model.q_proj.lora_B.weight", Tensor::f32(&[24, 2], &noise(4, 48, 0.2))),
    ];
    (base, bench.adapter("adapter", json!({}), &pair))
}

#[test]
fn what_rounding_lost_is_said_where_the_base_is_not_at_hand() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench);
    merge(&base, &adapter, &bench.path("merged"), &[]).ok();
    let outcome = subtract(&bench.path("merged"), &adapter, &bench.path("out"), &[]).ok();
    for said in ["kept after rounding", "--base PATH", "× -1"] {
        assert!(outcome.stdout.contains(said), "`{said}` is not in: {}", outcome.stdout);
    }
    let (got, wanted) = (read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
    assert_ne!(got[Q], wanted[Q]);
    // Two roundings of half a step of bf16, 2⁻⁹ of a value below 2.
    assert_close(&got[Q].values(), &wanted[Q].values(), 2.0 / 256.0);
    let recipe = read_json(&bench.path("out/lorakit.json"));
    assert_eq!((&recipe["operation"], &recipe["adapters"][0]["weight"]), (&json!("subtract"), &json!(1.0)));
    assert_eq!(recipe["merged"]["lorakit"]["operation"], "merge");
}

#[test]
fn elements_that_are_not_the_merges_are_counted_and_subtracted() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench);
    merge(&base, &adapter, &bench.path("merged"), &[]).ok();
    let path = bench.path("merged/model.safetensors");
    let mut merged = read(&path);
    let was = merged[Q].values();
    merged.get_mut(Q).unwrap().data[..2].copy_from_slice(&half::bf16::from_f32(5.0).to_le_bytes());
    merged.get_mut("model.norm.weight").unwrap().data[2..4].copy_from_slice(&half::bf16::from_f32(7.0).to_le_bytes());
    let tensors: Vec<(&str, Tensor)> = merged.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    crate::support::write(&path, &tensors);
    let words = ["--base", base.to_str().unwrap()];
    let report =
        subtract(&bench.path("merged"), &adapter, &bench.path("out"), &[&words[..], &["--json"]].concat()).ok().json();
    assert_eq!((&report["exact"], &report["differing"], &report["elements"]), (&json!(false), &json!(2), &json!(400)));
    assert_eq!(report["differing_tensors"][0]["tensor"], "model.norm.weight");
    let (got, wanted) = (read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
    assert_eq!(got[Q].data[2..], wanted[Q].data[2..]);
    let first = 5.0 - (was[0] - wanted[Q].values()[0]);
    assert!((got[Q].values()[0] - first).abs() < 0.03, "{} instead of {first}", got[Q].values()[0]);
    assert_eq!(got["model.norm.weight"].values()[1], 7.0);
    let text = subtract(&bench.path("merged"), &adapter, &bench.path("again"), &words).ok().stdout;
    assert!(text.contains("2 of 400 elements (0.500 %) in 2 tensors") && text.contains("W′ − ΔW"), "{text}");
}

#[test]
fn the_way_it_was_merged_has_to_be_named() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench);
    for (name, how) in [
        ("safe", vec!["--rounding", "peft-safe"]),
        ("chance", vec!["--rounding", "stochastic", "--seed", "7"]),
        ("weighted", vec!["--weight-for", "q_proj=-0.5"]),
    ] {
        let (merged, out) = (bench.path(name), bench.path(&format!("{name}-out")));
        merge(&base, &adapter, &merged, &how).ok();
        let words: Vec<&str> = ["--base", base.to_str().unwrap()].into_iter().chain(how).collect();
        let text = subtract(&merged, &adapter, &out, &words).ok().stdout;
        assert!(
            text.contains("MERGED is exactly that merge; every tensor of OUT equals BASE's bit for bit"),
            "{name}: {text}"
        );
    }
    let plain = ["--base", base.to_str().unwrap(), "--json"];
    let report = subtract(&bench.path("safe"), &adapter, &bench.path("either"), &plain).ok().json();
    assert!(report["exact"] == true && report["delta_rounded_first"].as_u64().unwrap() > 0, "{report}");
    let report = subtract(&bench.path("chance"), &adapter, &bench.path("out"), &plain).ok().json();
    assert_eq!(report["exact"], false);
    subtract(&bench.path("safe"), &adapter, &bench.path("f32"), &["--base", base.to_str().unwrap(), "--dtype", "f32"])
        .refused(2, &["--dtype", "--base"]);
}

#[test]
fn a_model_that_was_cast_comes_back_in_the_bases_dtypes() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench);
    merge(&base, &adapter, &bench.path("merged"), &["--dtype", "f32", "--cast-all"]).ok();
    let words = ["--base", base.to_str().unwrap(), "--json"];
    let report = subtract(&bench.path("merged"), &adapter, &bench.path("out"), &words).ok().json();
    assert_eq!(report["exact"], true);
    assert!(read_model(&bench.path("out")) == read_model(&base));
}

#[test]
fn a_dora_that_was_merged_otherwise_is_refused_by_its_tensor() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench);
    let magnitude = Tensor::f32(&[24], &[1.0; 24]);
    let mut tensors = read(&adapter.join("adapter_model.safetensors"));
    tensors.insert("base_model.model.model.q_proj.lora_magnitude_vector".into(), magnitude);
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    crate::support::write(&adapter.join("adapter_model.safetensors"), &tensors);
    let mut config = read_json(&adapter.join("adapter_config.json"));
    config["use_dora"] = true.into();
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let base_option = ["--base", base.to_str().unwrap()];
    let half = format!("{}:0.5", adapter.display());
    merge(&base, Path::new(&half), &bench.path("merged"), &[]).ok();
    subtract(&bench.path("merged"), &adapter, &bench.path("out"), &base_option)
        .refused(1, &[Q, "of 384 elements are not those of the merge", "DoRA"]);
    assert_eq!(bench.listing(), ["adapter", "base", "merged"]);
    subtract(&bench.path("merged"), Path::new(&half), &bench.path("out"), &base_option).ok();
    assert!(read_model(&bench.path("out")) == read_model(&base));
}

#[test]
fn an_untied_head_is_tied_again() {
    let bench = Bench::new();
    let config = json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true});
    let base = bench.base(&[(EMBEDDING, Tensor::new(Dtype::BF16, &[6, 4], &noise(1, 24, 1.0)))], &config);
    let pair = [
        ("lm_head.lora_A.weight", Tensor::f32(&[2, 4], &noise(3, 8, 1.0))),
        ("lm_head.lora_B.weight", Tensor::f32(&[6, 2], &noise(4, 12, 1.0))),
    ];
    let adapter = bench.adapter("adapter", json!({}), &pair);
    merge(&base, &adapter, &bench.path("merged"), &[]).ok();
    assert_eq!(read_json(&bench.path("merged/config.json"))["tie_word_embeddings"], false);
    subtract(&bench.path("merged"), &adapter, &bench.path("out"), &["--base", base.to_str().unwrap()]).ok();
    assert!(read_model(&bench.path("out")) == read_model(&base));
    assert_eq!(read_json(&bench.path("out/config.json"))["tie_word_embeddings"], true);
}

#[test]
fn a_tied_model_keeps_its_tie_without_the_base() {
    let bench = Bench::new();
    let config = json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true});
    let merged = bench.base(&[(EMBEDDING, Tensor::f32(&[6, 4], &[0.0; 24]))], &config);
    let pair = [
        ("model.embed_tokens.lora_embedding_A", Tensor::f32(&[1, 6], &[1.0; 6])),
        ("model.embed_tokens.lora_embedding_B", Tensor::f32(&[4, 1], &[2.0; 4])),
    ];
    let adapter = bench.adapter("adapter", json!({"r": 1, "lora_alpha": 1}), &pair);
    subtract(&merged, &adapter, &bench.path("out"), &[]).ok();
    let got = read_model(&bench.path("out"));
    assert_eq!(got.keys().collect::<Vec<_>>(), [EMBEDDING]);
    assert_eq!(got[EMBEDDING].values(), [-2.0; 24]);
}

#[test]
fn a_quantised_base_comes_back_as_the_model_it_stands_for() {
    let bench = Bench::new();
    let codes = Tensor { dtype: Dtype::F8_E4M3, shape: vec![2, 2], data: vec![0x38, 0x30, 0x38, 0x30] };
    let base = bench.base(&[("l.weight", codes), ("l.weight_scale", Tensor::f32(&[], &[0.01]))], &json!({}));
    let pair =
        [("l.lora_A.weight", Tensor::f32(&[2, 2], &[9.0; 4])), ("l.lora_B.weight", Tensor::f32(&[2, 2], &[1.0; 4]))];
    let adapter = bench.adapter("adapter", json!({}), &pair);
    merge(&base, &adapter, &bench.path("merged"), &[]).ok();
    subtract(&bench.path("merged"), &adapter, &bench.path("out"), &["--base", base.to_str().unwrap()]).ok();
    let wanted = Tensor::new(Dtype::BF16, &[2, 2], &[0.01, 0.005, 0.01, 0.005]);
    let got = read_model(&bench.path("out"));
    assert_eq!(got.keys().collect::<Vec<_>>(), ["l.weight"]);
    assert_eq!(got["l.weight"], wanted);
}

#[test]
fn other_models_are_refused() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench);
    let other = bench.path("other/model.safetensors");
    let base_option = ["--base", base.to_str().unwrap()];
    let q = |rows: usize| (Q, Tensor::new(Dtype::BF16, &[rows, 16], &noise(1, rows * 16, 1.0)));
    let norm = ("model.norm.weight", Tensor::new(Dtype::BF16, &[16], &noise(2, 16, 1.0)));
    crate::support::write(&other, &[q(24)]);
    subtract(&bench.path("other"), &adapter, &bench.path("out"), &base_option)
        .refused(1, &["model.norm.weight", "no such tensor"]);
    crate::support::write(&other, &[q(32), norm.clone()]);
    subtract(&bench.path("other"), &adapter, &bench.path("out"), &base_option).refused(1, &[Q, "[32, 16]", "[24, 16]"]);
    crate::support::write(&other, &[q(24), norm.clone(), ("extra", norm.1)]);
    subtract(&bench.path("other"), &adapter, &bench.path("out"), &base_option).refused(1, &["extra", "neither"]);
    assert_eq!(bench.listing(), ["adapter", "base", "other"]);
}

#[test]
fn any_number_of_threads_and_any_memory_give_the_same_bytes() {
    let (root, bench) = (fixtures().join("peft"), Bench::new());
    let (base, adapter) = (root.join("bases/llama-bf16"), root.join("lora-r8/adapter"));
    let merged = bench.path("merged");
    merge(&base, &adapter, &merged, &["--rounding", "peft-safe"]).ok();
    for more in [&[][..], &["--base", base.to_str().unwrap()]] {
        let mut seen = Vec::new();
        for (name, threads, memory) in [("one", "1", "16MiB"), ("four", "4", "2GiB")] {
            let words = [more, &["-j", threads, "--max-memory", memory, "--force"]].concat();
            subtract(&merged, &adapter, &bench.path(name), &words).ok();
            seen.push(snapshot(&bench.path(name)));
        }
        assert!(seen[0] == seen[1]);
    }
    let words = ["--base", base.to_str().unwrap(), "--max-shard-size", "40kB"];
    for part in ["1/2", "2/2"] {
        subtract(&merged, &adapter, &bench.path("parts"), &[&words[..], &["--part", part]].concat()).ok();
    }
    lorakit(&[&"finish", &bench.path("parts")]).ok();
    subtract(&merged, &adapter, &bench.path("whole"), &words).ok();
    assert!(snapshot(&bench.path("parts")) == snapshot(&bench.path("whole")));
}
