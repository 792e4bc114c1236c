//! Weights, selections, rounding and the report.

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::{Bench, Tensor, assert_close, dense, lorakit, merge, noise, read};

/// Two 4 × 6 layers, and adapters on both.
struct Pair {
    bench: Bench,
    base: std::path::PathBuf,
}

const LAYERS: [&str; 2] = ["layers.0.q_proj", "layers.1.q_proj"];

impl Pair {
    fn new(dtype: Dtype) -> Self {
        let bench = Bench::new();
        let weight = |seed| Tensor::new(dtype, &[4, 6], &noise(seed, 24, 1.0));
        let base =
            bench.base(&[("layers.0.q_proj.weight", weight(1)), ("layers.1.q_proj.weight", weight(2))], &json!({}));
        Self { bench, base }
    }

    fn adapter(&self, name: &str, seed: u64, size: f32) -> std::path::PathBuf {
        let tensors = LAYERS.iter().enumerate().flat_map(|(at, layer)| {
            let seed = seed * 10 + at as u64;
            [
                (format!("{layer}.lora_A.weight"), Tensor::f32(&[2, 6], &noise(seed, 12, size))),
                (format!("{layer}.lora_B.weight"), Tensor::f32(&[4, 2], &noise(seed + 5, 8, size))),
            ]
        });
        let tensors: Vec<(String, Tensor)> = tensors.collect();
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        self.bench.adapter(name, json!({}), &named)
    }

    fn merged(&self, adapters: &[(&std::path::Path, &str)], more: &[&str]) -> Vec<Vec<f64>> {
        let out = self.bench.path("out");
        let written: Vec<String> =
            adapters.iter().map(|(path, weight)| format!("{}{weight}", path.display())).collect();
        let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"merge", &self.base];
        words.extend(written.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        words.extend::<[&dyn AsRef<std::ffi::OsStr>; 3]>([&"-o", &out, &"--force"]);
        words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        lorakit(&words).ok();
        let tensors = read(&out.join("model.safetensors"));
        LAYERS.iter().map(|layer| tensors[&format!("{layer}.weight")].values()).collect()
    }
}

/// What the layers should be after Σ weight · 2 · B·A, by the definition.
fn wanted(pair: &Pair, adapters: &[(&std::path::Path, f64)]) -> Vec<Vec<f64>> {
    let base = read(&pair.base.join("model.safetensors"));
    let layer = |layer: &&str| {
        let mut weight = base[&format!("{layer}.weight")].values();
        for (path, strength) in adapters {
            let factors = read(&path.join("adapter_model.safetensors"));
            let factor = |name: &str| factors[&format!("base_model.model.{layer}.lora_{name}.weight")].values();
            weight = dense(&weight, &factor("B"), &factor("A"), 2, 2.0 * strength);
        }
        weight
    };
    LAYERS.iter().map(layer).collect()
}

#[test]
fn several_adapters_are_added_with_their_weights() {
    let pair = Pair::new(Dtype::F32);
    let (a, b) = (pair.adapter("a", 1, 1.0), pair.adapter("b", 2, 1.0));
    let got = pair.merged(&[(&a, ":0.7"), (&b, ":-1.5")], &[]);
    for (got, wanted) in got.iter().zip(wanted(&pair, &[(&a, 0.7), (&b, -1.5)])) {
        assert_close(got, &wanted, 1e-6);
    }
}

#[test]
fn an_adapter_taken_away_again_leaves_the_base() {
    let pair = Pair::new(Dtype::F32);
    let a = pair.adapter("a", 1, 0.01);
    let got = pair.merged(&[(&a, ""), (&a, ":-1")], &[]);
    for (got, wanted) in got.iter().zip(wanted(&pair, &[])) {
        assert_close(got, &wanted, 1e-7);
    }
}

#[test]
fn weight_for_include_and_exclude_choose_modules() {
    let pair = Pair::new(Dtype::F32);
    let a = pair.adapter("a", 1, 1.0);
    let (none, full, half) = (wanted(&pair, &[]), wanted(&pair, &[(&a, 1.0)]), wanted(&pair, &[(&a, 0.5)]));
    let check = |more: &[&str], first: &[f64], second: &[f64]| {
        let got = pair.merged(&[(&a, "")], more);
        assert_close(&got[0], first, 1e-6);
        assert_close(&got[1], second, 1e-6);
    };
    check(&["--weight-for", r"layers\.1\.=0.5"], &full[0], &half[1]);
    check(&["--weight-for", "q_proj=0.5"], &half[0], &half[1]);
    check(&["--include", r"layers\.0"], &full[0], &none[1]);
    check(&["--exclude", r"layers\.0"], &none[0], &full[1]);
}

#[test]
fn stochastic_rounding_is_reproducible_and_keeps_small_changes_on_average() {
    let bench = Bench::new();
    let (rows, cols) = (64, 512);
    let base = bench
        .base(&[("a.q_proj.weight", Tensor::new(Dtype::BF16, &[rows, cols], &vec![1.0; rows * cols]))], &json!({}));
    // ΔW is a quarter of a bf16 step: rounding to nearest loses all of it.
    let delta = 2.0_f32.powi(-7) / 4.0;
    let adapter = bench.adapter(
        "adapter",
        json!({"r": 1, "lora_alpha": 1}),
        &[
            ("a.q_proj.lora_A.weight", Tensor::f32(&[1, cols], &vec![delta; cols])),
            ("a.q_proj.lora_B.weight", Tensor::f32(&[rows, 1], &vec![1.0; rows])),
        ],
    );
    let nearest = merge(&base, &adapter, &bench.path("nearest"), &["--json"]).ok();
    assert_eq!(nearest.json()["survival"]["lost_share"], 1.0);
    assert_eq!(nearest.json()["changes_nothing"], true);
    assert!(nearest.stderr.contains("changes nothing"), "{}", nearest.stderr);
    let run = |name: &str, seed: &str| {
        merge(&base, &adapter, &bench.path(name), &["--rounding", "stochastic", "--seed", seed]).ok();
        read(&bench.path(name).join("model.safetensors"))["a.q_proj.weight"].values()
    };
    let (first, again, other) = (run("x", "1"), run("y", "1"), run("z", "2"));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let mean = first.iter().map(|value| value - 1.0).sum::<f64>() / first.len() as f64;
    assert!((mean / f64::from(delta) - 1.0).abs() < 0.05, "mean change {mean:e} of {delta:e}");
}

#[test]
fn a_zero_adapter_says_loudly_that_nothing_changes() {
    let pair = Pair::new(Dtype::BF16);
    let a = pair.adapter("a", 1, 0.0);
    let outcome = merge(&pair.base, &a, &pair.bench.path("out"), &[]).ok();
    assert!(outcome.stdout.starts_with("merged, but nothing changed"), "{}", outcome.stdout);
    assert_eq!(outcome.stderr, "", "what the report says is said once");
    let quiet = merge(&pair.base, &a, &pair.bench.path("quiet"), &["-q"]).ok();
    assert!(quiet.stderr.contains("warning: the merge changes nothing"), "{}", quiet.stderr);
}

#[test]
fn a_dry_run_plans_and_writes_nothing() {
    let pair = Pair::new(Dtype::BF16);
    let a = pair.adapter("a", 1, 1.0);
    let before = pair.bench.listing();
    let report = merge(&pair.base, &a, &pair.bench.path("out"), &["--dry-run", "--json"]).ok().json();
    assert_eq!(report["dry_run"], true);
    assert_eq!(report["tensors"]["changed"], 2);
    let base = read(&pair.base.join("model.safetensors"));
    for (layer, wanted) in LAYERS.iter().zip(wanted(&pair, &[(&a, 1.0)])) {
        let before = base[&format!("{layer}.weight")].values();
        let norm = wanted.iter().zip(before).map(|(w, b)| (w - b).powi(2)).sum::<f64>().sqrt();
        let entry =
            report["changed"].as_array().unwrap().iter().find(|entry| entry["name"] == format!("{layer}.weight"));
        let said = entry.unwrap()["delta_norm"].as_f64().unwrap();
        assert!((said / norm - 1.0).abs() < 1e-5, "{said} instead of {norm}");
    }
    assert!(report["bytes"].as_u64().unwrap() > 2 * 24 * 2);
    assert_eq!(pair.bench.listing(), before);
}

#[test]
fn the_report_adds_up() {
    let pair = Pair::new(Dtype::BF16);
    let a = pair.adapter("a", 1, 0.1);
    let report = merge(&pair.base, &a, &pair.bench.path("out"), &["--json"]).ok().json();
    assert_eq!(report["adapters"][0]["tensors"]["merged"], 4);
    assert_eq!(report["adapters"][0]["ranks"]["2"], 2);
    assert_eq!(report["adapters"][0]["scales"], json!([2.0, 2.0]));
    let base = read(&pair.base.join("model.safetensors"));
    let exact: f64 = wanted(&pair, &[(&a, 1.0)])
        .iter()
        .zip(LAYERS)
        .flat_map(|(wanted, layer)| {
            wanted
                .iter()
                .zip(base[&format!("{layer}.weight")].values())
                .map(|(w, b)| (w - b).powi(2))
                .collect::<Vec<_>>()
        })
        .sum();
    let norm = report["survival"]["delta_norm"].as_f64().unwrap();
    assert!((norm / exact.sqrt() - 1.0).abs() < 1e-5, "{norm} instead of {}", exact.sqrt());
    let error = report["survival"]["relative_error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 1.0);
}

#[test]
fn unused_tensors_stop_the_run_unless_allowed() {
    let pair = Pair::new(Dtype::F32);
    let a = pair.bench.adapter(
        "a",
        json!({}),
        &[
            ("layers.0.q_proj.lora_A.weight", Tensor::f32(&[2, 6], &noise(1, 12, 1.0))),
            ("layers.0.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(2, 8, 1.0))),
            ("layers.0.k_proj.lora_A.weight", Tensor::f32(&[2, 6], &noise(3, 12, 1.0))),
            ("layers.0.k_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(4, 8, 1.0))),
        ],
    );
    let out = pair.bench.path("out");
    let refused =
        merge(&pair.base, &a, &out, &[]).refused(1, &["layers.0.k_proj.lora_A.weight", "2 of 4", "did you mean"]);
    assert!(refused.stderr.contains("`layers.0.q_proj.weight`"), "{}", refused.stderr);
    let allowed = merge(&pair.base, &a, &out, &["--allow-unused", "*k_proj*", "--json"]).ok().json();
    assert_eq!(allowed["adapters"][0]["tensors"], json!({"allowed_unused": 2, "merged": 2}));
}

#[test]
fn a_prefix_that_differs_is_bridged_and_reported() {
    let bench = Bench::new();
    let base = bench.base(&[("model.layers.0.q_proj.weight", Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))], &json!({}));
    let adapter = bench.adapter(
        "a",
        json!({}),
        &[
            ("layers.0.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(2, 8, 1.0))),
            ("layers.0.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(3, 8, 1.0))),
        ],
    );
    let outcome = merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert!(outcome.stdout.contains("prefix"), "{}", outcome.stdout);
}

#[test]
fn wrong_usage_exits_with_two() {
    let pair = Pair::new(Dtype::F32);
    let a = pair.adapter("a", 1, 1.0);
    let out = pair.bench.path("out");
    for (more, part) in [
        (&["--dtype", "f7"][..], "f7"),
        (&["--part", "4/3"], "4/3"),
        (&["--include", "("], "--include"),
        (&["--weight-for", "x"], "--weight-for"),
        (&["--max-memory", "much"], "much"),
        (&["--cast-all"], "--cast-all"),
        (&["-j", "0"], "--threads"),
        (&["--allow-unused", "[z"], "[z"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--init-adapter", a.to_str().unwrap()], "--init-adapter"),
    ] {
        merge(&pair.base, &a, &out, more).refused(2, &[part]);
    }
    lorakit(&[&"merge", &pair.base, &format!("{}:x", a.display()), &"-o", &out]).refused(2, &["`x`"]);
    assert_eq!(pair.bench.listing(), ["a", "base"]);
}
