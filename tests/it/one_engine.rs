//! One engine for ranks: a stack of one adapter is its resize, and extracting a merge is resizing the adapter.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::dense::deltas;
use crate::support::{Bench, Outcome, Tensor, fixtures, lorakit, merge, noise, read, read_json};

/// Every way of choosing ranks, with what can stand beside it.
const CHOICES: [&str; 20] = [
    "--rank 2",
    "--rank 12",
    "--rank 12 --max-rank 5",
    "--energy 0.9",
    "--energy 1",
    "--max-error 0.3",
    "--max-params 3000",
    "--max-params 3000 --conv-rank 2",
    "--max-params 3000 --uniform-rank",
    "--max-size 1GB",
    "--noise",
    "--rank-method sv_ratio --rank-param 3",
    "--rank-method sv_fro --rank-param 0.9",
    "--rank-method sv_cumulative --rank-param 0.8 --max-rank 3",
    "--rank-method sv_ratio --rank-param 3 --compat kohya",
    "--rank 4 --conv-rank 2 --dtype bf16",
    "--energy 0.9 --uniform-rank",
    "--rank 12 --uniform-rank",
    "--rank 3 --alpha 5",
    "--energy 0.8 --uniform-rank --alpha 7 --dtype f16",
];

fn run(verb: &str, inputs: &[&Path], out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<OsStr>> = vec![&verb, &"-o", &out];
    words.extend(inputs.iter().map(|path| path as &dyn AsRef<OsStr>));
    words.extend(more.iter().map(|word| word as &dyn AsRef<OsStr>));
    lorakit(&words)
}

/// Resizes and stacks the adapter by every choice, and compares tensors, ranks and alphas. Gives how many choices both made.
fn check(bench: &Bench, adapter: &Path, known: &[&str]) -> usize {
    let mut made = 0;
    for (at, choice) in CHOICES.iter().enumerate() {
        let [resized, stacked] = ["resize", "stack"].map(|verb| bench.path(&format!("{verb}-{at}")));
        let more: Vec<&str> = choice.split_whitespace().chain(known.iter().copied()).collect();
        let one = run("resize", &[adapter], &resized, &more);
        let other = run("stack", &[adapter], &stacked, &more);
        assert_eq!(one.code, other.code, "{adapter:?} {choice}:\n{}\n{}", one.stderr, other.stderr);
        if one.code != 0 {
            continue;
        }
        made += 1;
        let [left, right] = [&resized, &stacked].map(|out| read(&out.join("adapter_model.safetensors")));
        assert!(left.keys().eq(right.keys()), "{adapter:?} {choice}: {:?}\n{:?}", left.keys(), right.keys());
        for (name, tensor) in &left {
            assert!(tensor == &right[name], "{adapter:?} {choice}: {name}");
        }
        let [left, right] = [&resized, &stacked].map(|out| read_json(&out.join("adapter_config.json")));
        for key in ["r", "lora_alpha", "rank_pattern", "alpha_pattern"] {
            assert_eq!(left[key], right[key], "{adapter:?} {choice}: {key}");
        }
        std::fs::remove_dir_all(&resized).unwrap();
        std::fs::remove_dir_all(&stacked).unwrap();
    }
    made
}

/// An adapter of a matrix, a convolution, a pointwise one, an embedding and a stack of three experts, one with a bias.
fn every_kind(bench: &Bench, name: &str, dtype: Dtype) -> PathBuf {
    let tensor = |seed: u64, shape: &[usize]| Tensor::new(dtype, shape, &noise(seed, shape.iter().product(), 0.3));
    bench.adapter(
        name,
        json!({"r": 6, "lora_alpha": 9, "lora_bias": true, "target_parameters": ["experts.down_proj"]}),
        &[
            ("l.0.q_proj.lora_A.weight", tensor(1, &[6, 20])),
            ("l.0.q_proj.lora_B.weight", tensor(2, &[24, 6])),
            ("l.0.q_proj.lora_B.bias", tensor(3, &[24])),
            ("l.0.conv.lora_A.weight", tensor(4, &[6, 4, 3, 3])),
            ("l.0.conv.lora_B.weight", tensor(5, &[8, 6, 1, 1])),
            ("l.0.proj.lora_A.weight", tensor(6, &[6, 16, 1, 1])),
            ("l.0.proj.lora_B.weight", tensor(7, &[10, 6, 1, 1])),
            ("embed_tokens.lora_embedding_A", tensor(8, &[6, 40])),
            ("embed_tokens.lora_embedding_B", tensor(9, &[12, 6])),
            ("l.0.mlp.experts.lora_A.weight", tensor(10, &[18, 12])),
            ("l.0.mlp.experts.lora_B.weight", tensor(11, &[14, 18])),
        ],
    )
}

#[test]
fn a_stack_of_one_adapter_is_its_resize() {
    let bench = Bench::new();
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
        let adapter = every_kind(&bench, &format!("{dtype:?}"), dtype);
        assert_eq!(check(&bench, &adapter, &[]), CHOICES.len(), "{dtype:?}");
    }
}

#[test]
fn so_it_is_for_adapters_as_peft_makes_them() {
    let bench = Bench::new();
    let root = fixtures();
    // A budget can be too small for what an adapter holds whole, or for one rank of all: for both verbs.
    for (name, made) in [
        ("peft/lora-r8", 20),
        ("peft/rslora-r4", 20),
        ("peft/lora-patterns", 20),
        ("peft/conv-lora", 20),
        ("peft/mixtral-params", 19),
        ("peft/qwen3moe-params", 20),
        ("peft/lora-embed", 17),
        ("peft/mha-lora", 20),
    ] {
        assert_eq!(check(&bench, &root.join(name).join("adapter"), &[]), made, "{name}");
    }
}

#[test]
fn and_for_one_whose_untrained_factors_are_found_in_the_model() {
    let bench = Bench::new();
    let base = fixtures().join("peft/bases/llama-bf16");
    let known = ["--base", base.to_str().unwrap()];
    assert_eq!(check(&bench, &fixtures().join("peft/pissa-r4/adapter"), &known), 20);
}

#[test]
fn what_has_no_meaning_is_refused_in_both() {
    let bench = Bench::new();
    let adapter = every_kind(&bench, "a", Dtype::F32);
    for (more, parts) in [
        ("--rank 0", ["--rank", "at least 1"]),
        ("--energy 2", ["--energy", "share above 0"]),
        ("--rank 2 --alpha 0", ["--alpha", "finite number above 0"]),
        ("--max-params 10", ["--max-params", "not enough"]),
    ] {
        for verb in ["resize", "stack"] {
            let more: Vec<&str> = more.split_whitespace().collect();
            run(verb, &[&adapter], &bench.path("x"), &more).refused(2, &parts);
        }
    }
}

fn ranks(report: &Value) -> Vec<(String, u64)> {
    let modules = report["modules"].as_array().unwrap().iter();
    let mut ranks: Vec<(String, u64)> = modules
        .map(|module| (module["module"].as_str().unwrap().to_owned(), module["rank"].as_u64().unwrap()))
        .collect();
    ranks.sort();
    ranks
}

#[test]
fn extracting_a_merge_is_resizing_the_adapter() {
    check_extraction(false);
}

#[test]
fn so_it_is_for_stacks_of_experts() {
    check_extraction(true);
}

/// Of a matrix and a convolution, or of a stack of three experts.
fn check_extraction(experts: bool) {
    let bench = Bench::new();
    let tensor = |seed: u64, shape: &[usize]| Tensor::f32(shape, &noise(seed, shape.iter().product(), 0.3));
    let weights = [
        ("l.0.q_proj.weight", tensor(21, &[24, 20])),
        ("l.0.conv.weight", tensor(22, &[8, 4, 3, 3])),
        ("l.0.mlp.experts.down_proj", tensor(23, &[3, 14, 12])),
    ];
    let factors = [
        ("l.0.q_proj.lora_A.weight", tensor(1, &[6, 20])),
        ("l.0.q_proj.lora_B.weight", tensor(2, &[24, 6])),
        ("l.0.conv.lora_A.weight", tensor(4, &[6, 4, 3, 3])),
        ("l.0.conv.lora_B.weight", tensor(5, &[8, 6, 1, 1])),
        ("l.0.mlp.experts.lora_A.weight", tensor(10, &[18, 12])),
        ("l.0.mlp.experts.lora_B.weight", tensor(11, &[14, 18])),
    ];
    let base = bench.base(&weights, &json!({"model_type": "llama"}));
    let (factors, config) = match experts {
        true => (&factors[4..], json!({"r": 6, "lora_alpha": 9, "target_parameters": ["experts.down_proj"]})),
        false => (&factors[..4], json!({"r": 6, "lora_alpha": 9})),
    };
    let adapter = bench.adapter("lora", config, factors);
    merge(&base, &adapter, &bench.path("merged"), &[]).ok();
    for (at, choice) in [
        "--rank 3",
        "--energy 0.8",
        "--max-error 0.4",
        "--max-params 400",
        "--max-params 300 --conv-rank 1",
        "--max-params 400 --uniform-rank",
        "--energy 0.7 --uniform-rank",
        "--rank-method sv_ratio --rank-param 2",
        "--rank-method sv_fro --rank-param 0.8",
        "--rank 2 --alpha 5",
    ]
    .iter()
    .enumerate()
    {
        let [extracted, resized] = ["extracted", "resized"].map(|name| bench.path(&format!("{name}-{at}")));
        let more: Vec<&str> = choice.split_whitespace().chain(["--json"]).collect();
        let one = run("extract", &[&base, &bench.path("merged")], &extracted, &more).ok().json();
        let other = run("resize", &[&adapter], &resized, &more).ok().json()["adapters"][0].clone();
        assert_eq!(ranks(&one), ranks(&other), "{choice}");
        for key in ["norm", "kept_energy", "relative_error"] {
            let (left, right) = (one[key].as_f64().unwrap(), other[key].as_f64().unwrap());
            assert!((left - right).abs() <= 1e-4 * right.max(1e-2), "{choice}: {key} {left} {right}");
        }
        if experts {
            continue;
        }
        let (left, right) = (deltas(&extracted), deltas(&resized));
        for (module, (_, delta)) in &right {
            let distance = delta.distance(&left[module].1);
            assert!(distance <= 1e-5 * delta.norm().max(1.0), "{choice}: {module} {distance}");
        }
    }
}
