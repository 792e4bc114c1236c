//! Merges against what PEFT's own merge gave: every reference case whose method is LoRA, DoRA or trainable tokens.

use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::Value;

use crate::support::{Bench, Tensor, Tensors, cases, fixtures, merge, read, read_json, read_model, reference};

/// Largest difference from PEFT's f32 merge, as a share of the largest weight.
const TOLERANCE: f64 = 1e-6;

/// Share of the elements of a low-precision merge that may differ, each by one step.
const MAY_DIFFER: f64 = 1e-4;

/// PEFT adds both of two mirrored changes to the one tensor that head and embedding share: twice the delta.
const PEFT_IS_WRONG: [&str; 1] = ["lora-embed-tied-ensure"];

/// A tied head keeps the base's values, which takes a tensor that PEFT does not write.
const HEAD_IS_UNTIED: [&str; 1] = ["lora-embed-tied"];

/// The base they were trained on was rounded after its factors were taken out: another rounding than the mathematics asks for.
const BASE_WAS_ROUNDED: [&str; 2] = ["pissa-r4", "olora-r4"];

fn texts(case: &Value, key: &str) -> Vec<String> {
    case[key]
        .as_array()
        .map(|list| list.iter().map(|name| name.as_str().unwrap().to_owned()).collect())
        .unwrap_or_default()
}

fn step(tensor: &Tensor, at: usize) -> f64 {
    let value = tensor.values()[at].abs().max(f64::from(f32::MIN_POSITIVE));
    let digits = if tensor.dtype == Dtype::BF16 { 7 } else { 10 };
    2.0_f64.powi(value.log2().floor() as i32 - digits)
}

/// `values` as the low dtype stores them.
pub fn rounded(tensor: &Tensor, dtype: Dtype) -> Tensor {
    let values: Vec<f32> = tensor.values().iter().map(|value| *value as f32).collect();
    Tensor::new(dtype, &tensor.shape, &values)
}

#[track_caller]
pub fn assert_same_low(name: &str, got: &Tensor, wanted: &Tensor) {
    assert_eq!((got.dtype, &got.shape), (wanted.dtype, &wanted.shape), "{name}");
    let different: Vec<usize> =
        (0..got.data.len() / 2).filter(|at| got.data[at * 2..at * 2 + 2] != wanted.data[at * 2..at * 2 + 2]).collect();
    let allowed = (got.data.len() as f64 / 2.0 * MAY_DIFFER).ceil();
    assert!(different.len() as f64 <= allowed, "{name}: {} elements differ", different.len());
    for at in different {
        let (l, r) = (got.values()[at], wanted.values()[at]);
        assert!((l - r).abs() <= step(wanted, at) * 1.001, "{name}[{at}]: {l} instead of {r}");
    }
}

struct Case<'a> {
    root: &'a Path,
    name: &'a str,
    facts: Value,
    init: Vec<String>,
}

impl Case<'_> {
    fn file(&self, name: &str) -> Option<Tensors> {
        let path = self.root.join(self.name).join(name);
        path.exists().then(|| read(&path))
    }

    fn base(&self, key: &str) -> std::path::PathBuf {
        self.root.join("bases").join(self.facts[key].as_str().unwrap())
    }

    fn merged(&self, base: &Path, more: &[&str]) -> (Bench, Tensors) {
        let bench = Bench::new();
        let mut words: Vec<&str> = self.init.iter().map(String::as_str).collect();
        words.extend(more);
        merge(base, &self.root.join(self.name).join("adapter"), &bench.path("out"), &words).ok();
        let tensors = read_model(&bench.path("out"));
        (bench, tensors)
    }

    fn check_names(&self, got: &Tensors) {
        let mut wanted = texts(&self.facts, "merged_tensors");
        if HEAD_IS_UNTIED.contains(&self.name) {
            wanted.push("lm_head.weight".into());
        }
        wanted.sort();
        let got: Vec<String> = got.keys().cloned().collect();
        if !wanted.is_empty() {
            assert_eq!(got, wanted, "{}", self.name);
        }
    }

    fn check_f32(&self, expected: &Tensors) {
        let base = self.base("base");
        let (bench, got) = self.merged(&base, &["--dtype", "f32"]);
        self.check_names(&got);
        let source = read_model(&base);
        for (name, tensor) in &got {
            let stored = texts(&self.facts, "stored").contains(name);
            let wanted = match (expected.get(name), source.get(name)) {
                (Some(wanted), _) => wanted,
                (None, Some(_)) if stored => continue, // not among the selection kept in the fixtures
                (None, Some(wanted)) => wanted,
                (None, None) => &source["model.embed_tokens.weight"],
            };
            let (got, wanted) = (tensor.values(), wanted.values());
            let size = wanted.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
            let worst = got.iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
            assert!(worst <= TOLERANCE * size, "{} {name}: off by {worst:e} of {size}", self.name);
        }
        if let Some(changes) = self.facts["config_changes"].as_object() {
            let config = read_json(&bench.path("out").join("config.json"));
            for (key, change) in changes {
                assert_eq!(config[key], change[1], "{} {key}", self.name);
            }
        }
    }

    fn check_low(&self, expected: Option<&Tensors>) {
        let base = self.base("base_for_low");
        let source = read_model(&base);
        let low = self.facts["low_dtype"].as_str().unwrap();
        let dtype = if low == "bf16" { Dtype::BF16 } else { Dtype::F16 };
        let dora = self.facts["method"] == "DoRA";
        let safe = self.file(&format!("expected-{low}.safetensors"));
        let default = self.file(&format!("expected-{low}-default.safetensors"));
        let same_base = self.facts["base"] == self.facts["base_for_low"];
        let (_bench, nearest) = self.merged(&base, &[]);
        self.check_names(&nearest);
        for (name, tensor) in &nearest {
            // f32 bases have rounded twins: their f32 result is not the one to round.
            let once = expected
                .and_then(|expected| expected.get(name))
                .filter(|_| same_base)
                .map(|wanted| rounded(wanted, dtype));
            let own = default.as_ref().filter(|_| !same_base).and_then(|default| default.get(name)).cloned();
            let dora = safe.as_ref().filter(|_| dora).and_then(|safe| safe.get(name)).cloned();
            let untouched = source.get(name).filter(|_| !texts(&self.facts, "stored").contains(name)).cloned();
            if let Some(wanted) = once.or(own).or(dora).or(untouched) {
                let two_roundings = !same_base && (name == "emb.weight" || name.starts_with("attn."));
                if !two_roundings {
                    assert_same_low(&format!("{} nearest {name}", self.name), tensor, &wanted);
                }
            }
        }
        let Some(safe) = safe else { return };
        let (_bench, got) = self.merged(&base, &["--rounding", "peft-safe"]);
        for (name, tensor) in &got {
            let untouched = source.get(name).filter(|_| !texts(&self.facts, "stored").contains(name));
            if let Some(wanted) = safe.get(name).or(untouched) {
                assert_same_low(&format!("{} peft-safe {name}", self.name), tensor, wanted);
            }
        }
    }

    fn check(&self) {
        let adapter = self.root.join(self.name).join("adapter");
        if self.facts["mergeable"] == false {
            let bench = Bench::new();
            let outcome =
                merge(&self.base("base"), &adapter, &bench.path("out"), &[]).refused(1, &["adapter_config.json"]);
            let reason =
                ["alora_invocation_tokens", "layer_replication"].iter().any(|key| outcome.stderr.contains(key));
            assert!(reason, "{}: {}", self.name, outcome.stderr);
            assert!(bench.listing().is_empty());
            return;
        }
        if PEFT_IS_WRONG.contains(&self.name) {
            return;
        }
        let expected = self.file("expected-f32.safetensors");
        if let Some(expected) = &expected {
            self.check_f32(expected);
        }
        if !BASE_WAS_ROUNDED.contains(&self.name) {
            self.check_low(expected.as_ref());
        }
    }
}

/// Checks every case below `root`; says how many there were.
fn check_all(root: &Path) -> usize {
    let mut checked = 0;
    for name in &cases(root) {
        let facts = read_json(&root.join(name).join("case.json"));
        if !["LORA", "TRAINABLE_TOKENS"].contains(&facts["peft_type"].as_str().unwrap_or_default()) {
            continue;
        }
        let init = root.join(name).join("init");
        let init =
            if init.is_dir() { vec!["--init-adapter".into(), init.to_str().unwrap().into()] } else { Vec::new() };
        Case { root, name, facts, init }.check();
        checked += 1;
    }
    checked
}

#[test]
fn the_fixtures_merge_as_peft_merges_them() {
    assert_eq!(check_all(&fixtures().join("peft")), 16);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_lora_of_the_reference_merges_as_peft_merges_it() {
    let reference = reference();
    assert_eq!(check_all(&reference.join("peft")), 44);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn mirrored_changes_of_head_and_embedding_count_once() {
    let reference = reference();
    let root = reference.join("peft");
    let name = PEFT_IS_WRONG[0];
    let bench = Bench::new();
    let (base, adapter) = (root.join("bases/llama-tied-bf16"), root.join(name).join("adapter"));
    merge(&base, &adapter, &bench.path("out"), &["--dtype", "f32"]).ok();
    let (got, source) = (read_model(&bench.path("out")), read_model(&base));
    let twice = &read(&root.join(name).join("expected-f32.safetensors"))["model.embed_tokens.weight"];
    assert!(!got.contains_key("lm_head.weight"));
    let embedding = got["model.embed_tokens.weight"].values();
    let pairs = embedding.iter().zip(source["model.embed_tokens.weight"].values()).zip(twice.values());
    let worst = pairs.map(|((got, base), twice)| (2.0 * (got - base) - (twice - base)).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-6, "PEFT's delta is not twice ours: {worst:e}");
}
