//! PiSSA and OLoRA adapters whose untrained factors are lost: found again from the model they were taken from.

use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::{
    Bench, Tensor, assert_close, fixtures, lorakit, merge, noise, read, read_json, read_model, reference, snapshot,
};

const Q: &str = "model.q_proj.weight";

/// What the initialiser leaves: an adapter of `rank` for q_proj whose factors are those before training.
fn adapter(bench: &Bench, init: &str, rank: usize, (rows, cols): (usize, usize)) -> std::path::PathBuf {
    let config = json!({"r": rank, "lora_alpha": 2 * rank, "init_lora_weights": init});
    let pair = [
        ("model.q_proj.lora_A.weight", Tensor::f32(&[rank, cols], &noise(11, rank * cols, 1.0))),
        ("model.q_proj.lora_B.weight", Tensor::f32(&[rows, rank], &noise(12, rows * rank, 1.0))),
    ];
    bench.adapter("adapter", config, &pair)
}

/// Merges the reference case `name` with nothing but its base, and gives the largest distances from what PEFT gave and from
/// what its untrained factors give, as shares of the largest weight.
fn reference_distances(root: &Path, name: &str) -> (f64, f64) {
    let (base, case) = (root.join("bases/llama-bf16"), root.join(name));
    let bench = Bench::new();
    let (adapter, init) = (case.join("adapter"), case.join("init"));
    merge(&base, &adapter, &bench.path("base-given"), &["--dtype", "f32", "--base", base.to_str().unwrap()]).ok();
    merge(&base, &adapter, &bench.path("init-given"), &["--dtype", "f32", "--init-adapter", init.to_str().unwrap()])
        .ok();
    let (found, saved) = (read_model(&bench.path("base-given")), read_model(&bench.path("init-given")));
    let expected = read(&case.join("expected-f32.safetensors"));
    let mut worst = (0.0_f64, 0.0_f64);
    for (tensor, wanted) in &expected {
        let size = wanted.values().iter().fold(0.0_f64, |size, value| size.max(value.abs()));
        let off = |other: &Tensor| {
            let pairs = found[tensor].values().into_iter().zip(other.values());
            pairs.map(|(l, r)| (l - r).abs()).fold(0.0, f64::max) / size
        };
        worst = (worst.0.max(off(wanted)), worst.1.max(off(&saved[tensor])));
    }
    println!("{name}: {:.1e} from PEFT's merge, {:.1e} from the one with the untrained factors", worst.0, worst.1);
    worst
}

/// PEFT's SVD in f32 is itself off the exact one by up to 3.9e-6 of the largest weight here (measured against f64).
const PEFTS_OWN_ERROR: f64 = 5e-6;

#[test]
fn pissa_is_merged_as_peft_merges_it_without_its_untrained_factors() {
    let (peft, saved) = reference_distances(&fixtures().join("peft"), "pissa-r4");
    assert!(peft <= PEFTS_OWN_ERROR && saved <= PEFTS_OWN_ERROR, "{peft:e} {saved:e}");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn olora_is_merged_as_peft_merges_it_without_its_untrained_factors() {
    let reference = reference();
    let (peft, saved) = reference_distances(&reference.join("peft"), "olora-r4");
    assert!(peft <= 1e-6 && saved <= 1e-6, "{peft:e} {saved:e}");
}

/// A diagonal, so that singular values are what they are.
fn diagonal(values: &[f32], rows: usize, cols: usize) -> Tensor {
    let mut weight = vec![0.0; rows * cols];
    values.iter().enumerate().for_each(|(at, value)| weight[at * cols + at] = *value);
    Tensor::f32(&[rows, cols], &weight)
}

#[test]
fn equal_singular_values_leave_pissa_open() {
    let bench = Bench::new();
    let base = bench.base(&[(Q, diagonal(&[4.0, 3.0, 3.0, 1.0], 6, 5))], &json!({}));
    let adapter = adapter(&bench, "pissa", 2, (6, 5));
    let base_option = ["--base", base.to_str().unwrap()];
    let said = [Q, "singular values 2 and 3", "3.000000e0 and 3.000000e0", "--init-adapter"];
    merge(&base, &adapter, &bench.path("out"), &base_option).refused(1, &said);
    assert_eq!(bench.listing(), ["adapter", "base"]);
}

#[test]
fn singular_values_that_are_close_are_noted() {
    let bench = Bench::new();
    let base = bench.base(&[(Q, diagonal(&[4.0, 3.0, 2.9998, 1.0], 6, 5))], &json!({}));
    let adapter = adapter(&bench, "pissa", 2, (6, 5));
    let outcome = merge(&base, &adapter, &bench.path("out"), &["--base", base.to_str().unwrap()]).ok();
    assert!(outcome.stdout.contains("σ2 = 3.0000e0 and σ3 = 2.9998e0 are close"), "{}", outcome.stdout);
}

#[test]
fn a_weight_of_less_rank_was_taken_whole() {
    let bench = Bench::new();
    let base = bench.base(&[(Q, diagonal(&[4.0], 6, 5))], &json!({}));
    let adapter = adapter(&bench, "pissa", 2, (6, 5));
    merge(&base, &adapter, &bench.path("out"), &["--base", base.to_str().unwrap()]).ok();
    let (up, down) = (Tensor::f32(&[6, 2], &noise(12, 12, 1.0)), Tensor::f32(&[2, 5], &noise(11, 10, 1.0)));
    let wanted = crate::support::dense(&[0.0; 30], &up.values(), &down.values(), 2, 2.0);
    assert_close(&read(&bench.path("out/model.safetensors"))[Q].values(), &wanted, 1e-6);
}

#[test]
fn dependent_columns_leave_olora_open() {
    let bench = Bench::new();
    let base = bench.base(&[(Q, Tensor::f32(&[6, 5], &[1.0; 30]))], &json!({}));
    let adapter = adapter(&bench, "olora", 2, (6, 5));
    let base_option = ["--base", base.to_str().unwrap()];
    merge(&base, &adapter, &bench.path("out"), &base_option).refused(1, &[Q, "first 2 columns", "OLoRA"]);
}

/// What PEFT 0.21 does to Conv1D layers, which only square ones survive: the factors come from the weight as it is stored,
/// `[in, out]`, and what is trained is added the other way round.
#[test]
fn olora_takes_its_factors_from_the_weight_as_it_is_stored() {
    let bench = Bench::new();
    let side = 8;
    let weight = Tensor::f32(&[side, side], &noise(3, side * side, 1.0));
    let base = bench.base(&[("h.0.attn.c_proj.weight", weight.clone())], &json!({"model_type": "gpt2"}));
    let (up, down) = (Tensor::f32(&[side, 1], &noise(4, side, 1.0)), Tensor::f32(&[1, side], &noise(5, side, 1.0)));
    let pair = [("h.0.attn.c_proj.lora_A.weight", down.clone()), ("h.0.attn.c_proj.lora_B.weight", up.clone())];
    let config = json!({"r": 1, "lora_alpha": 3, "init_lora_weights": "olora", "fan_in_fan_out": true});
    let adapter = bench.adapter("a", config.clone(), &pair);
    let column =
        Tensor::f32(&[side, 1], &(0..side).map(|row| weight.values()[row * side] as f32).collect::<Vec<f32>>());
    merge(&base, &adapter, &bench.path("out"), &["--base", base.to_str().unwrap()]).ok();
    let (w, b, a) = (weight.values(), up.values(), down.values());
    let first: Vec<f64> = (0..side).map(|row| w[row * side]).collect();
    let square: f64 = first.iter().map(|value| value * value).sum();
    let wanted: Vec<f64> = (0..side * side)
        .map(|at| {
            let (row, col) = (at / side, at % side);
            let along: f64 = (0..side).map(|k| first[k] * w[k * side + col]).sum();
            w[at] - 3.0 * first[row] * along / square + 3.0 * b[col] * a[row]
        })
        .collect();
    let got = |out: &str| read(&bench.path(out).join("model.safetensors"))["h.0.attn.c_proj.weight"].values();
    assert_close(&got("out"), &wanted, 2e-6);
    // The same with the untrained factors: B₀ the first column, A₀ its share of every column.
    let share = |col: usize| first.iter().enumerate().map(|(k, value)| value * w[k * side + col]).sum::<f64>() / square;
    let row = Tensor::f32(&[1, side], &(0..side).map(|col| share(col) as f32).collect::<Vec<f32>>());
    let pair = [("h.0.attn.c_proj.lora_A.weight", row), ("h.0.attn.c_proj.lora_B.weight", column)];
    let init = bench.adapter("init", config, &pair);
    merge(&base, &adapter, &bench.path("init-given"), &["--init-adapter", init.to_str().unwrap()]).ok();
    assert_close(&got("init-given"), &wanted, 2e-6);
}

#[test]
fn what_the_base_alone_does_not_give_is_refused_by_name() {
    for (init, reason) in
        [("pissa_niter_16", "randomised SVD"), ("corda", "data"), ("lora_ga", "data"), ("loftq", "quantised anew")]
    {
        let bench = Bench::new();
        let base = bench.base(&[(Q, Tensor::f32(&[6, 5], &noise(1, 30, 1.0)))], &json!({}));
        let adapter = adapter(&bench, init, 2, (6, 5));
        let base_option = ["--base", base.to_str().unwrap()];
        merge(&base, &adapter, &bench.path("out"), &base_option).refused(1, &[&format!("`{init}`"), reason]);
    }
}

#[test]
fn the_ways_out_are_named_and_have_to_be_needed() {
    let bench = Bench::new();
    let base = bench.base(&[(Q, Tensor::f32(&[6, 5], &noise(1, 30, 1.0)))], &json!({}));
    let pissa = adapter(&bench, "pissa", 2, (6, 5));
    merge(&base, &pissa, &bench.path("out"), &[])
        .refused(1, &["`pissa`", "--init-adapter", "--base PATH", "--residual-base"]);
    let plain =
        bench.adapter("plain", json!({"modules_to_save": ["q_proj"]}), &[(Q, Tensor::f32(&[6, 5], &[1.0; 30]))]);
    merge(&base, &plain, &bench.path("out"), &["--base", base.to_str().unwrap()]).refused(2, &["--base", "PiSSA"]);
    merge(&base, &pissa, &bench.path("out"), &["--base", base.to_str().unwrap(), "--residual-base"]).refused(2, &[]);
}

#[test]
fn the_original_has_to_be_the_same_model() {
    let bench = Bench::new();
    let base = bench.base(&[(Q, Tensor::f32(&[6, 5], &noise(1, 30, 1.0)))], &json!({}));
    let pissa = adapter(&bench, "pissa", 2, (6, 5));
    for (name, tensor, shape) in [("other", "model.k_proj.weight", [6, 5]), ("wide", Q, [6, 7])] {
        let other = bench.path(name).join("model.safetensors");
        crate::support::write(&other, &[(tensor, Tensor::f32(&shape, &noise(1, shape.iter().product(), 1.0)))]);
        let option = ["--base", other.to_str().unwrap()];
        merge(&base, &pissa, &bench.path("out"), &option).refused(1, &["lora_A", name]);
    }
}

#[test]
fn any_number_of_threads_finds_the_same_factors() {
    let (root, bench) = (fixtures().join("peft"), Bench::new());
    let (base, adapter) = (root.join("bases/llama-bf16"), root.join("pissa-r4/adapter"));
    let mut seen = Vec::new();
    for (name, more) in [("one", ["-j", "1", "--max-memory", "16MiB"]), ("four", ["-j", "4", "--max-memory", "2GiB"])] {
        let mut words = vec!["--base", base.to_str().unwrap()];
        words.extend(more);
        merge(&base, &adapter, &bench.path(name), &words).ok();
        seen.push(snapshot(&bench.path(name)));
    }
    assert!(seen[0] == seen[1]);
    let recipe = read_json(&bench.path("one/lorakit.json"));
    assert_eq!(recipe["adapters"][0]["init"]["base"]["name"], "llama-bf16");
    let plan = lorakit(&[&"merge", &base, &adapter, &"--base", &base, &"-o", &bench.path("plan"), &"--dry-run"]).ok();
    assert!(plan.stdout.contains("8 changed"), "{}", plan.stdout);
}

#[test]
fn the_magnitudes_of_a_dora_count_for_what_is_left_and_added() {
    let bench = Bench::new();
    let weight = diagonal(&[4.0, 2.0], 2, 3);
    let base = bench.base(&[(Q, weight)], &json!({}));
    let config = json!({"r": 1, "lora_alpha": 1, "init_lora_weights": "pissa", "use_dora": true});
    let trained = [
        ("model.q_proj.lora_A.weight", Tensor::f32(&[1, 3], &[0.0, 0.0, 3.0])),
        ("model.q_proj.lora_B.weight", Tensor::f32(&[2, 1], &[1.0, 0.0])),
        ("model.q_proj.lora_magnitude_vector", Tensor::f32(&[2], &[6.0, 5.0])),
    ];
    let adapter = bench.adapter("adapter", config, &trained);
    merge(&base, &adapter, &bench.path("out"), &["--base", base.to_str().unwrap()]).ok();
    let got = &read(&bench.path("out/model.safetensors"))[Q];
    assert_eq!(got.dtype, Dtype::F32);
    assert_close(&got.values(), &[0.0, 0.0, 6.0, 0.0, 5.0, 0.0], 1e-6);
}

/// `stack` of one adapter, then merged: the same as the merge of the adapter itself.
fn stacked_equals_merged(base: &Path, adapter: &Path, init: &[&str]) {
    let bench = Bench::new();
    let with_base = ["--base", base.to_str().unwrap()];
    let way = if init.is_empty() { &with_base[..] } else { init };
    let stack = |out: &Path, more: &[&str]| {
        let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"stack", &adapter, &"-o", &out];
        words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        lorakit(&words)
    };
    stack(&bench.path("stacked"), way).ok();
    merge(base, adapter, &bench.path("direct"), &[way, &["--dtype", "f32"]].concat()).ok();
    merge(base, &bench.path("stacked"), &bench.path("merged"), &["--dtype", "f32"]).ok();
    let (direct, merged) = (read_model(&bench.path("direct")), read_model(&bench.path("merged")));
    direct.iter().for_each(|(name, wanted)| assert_close(&merged[name].values(), &wanted.values(), 2e-6));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn stacks_find_the_factors_as_merges_do() {
    let root = fixtures().join("peft");
    stacked_equals_merged(&root.join("bases/llama-bf16"), &root.join("pissa-r4/adapter"), &[]);
    let reference = reference();
    let root = reference.join("peft");
    stacked_equals_merged(&root.join("bases/llama-bf16"), &root.join("olora-r4/adapter"), &[]);
}

#[test]
fn stacks_turn_what_conv1d_keeps_the_other_way_round() {
    let bench = Bench::new();
    let tensor = |shape: &[usize], seed| Tensor::f32(shape, &noise(seed, shape.iter().product(), 1.0));
    let base = bench.base(
        &[("h.0.attn.c_attn.weight", tensor(&[6, 18], 1)), ("h.0.attn.c_proj.weight", tensor(&[6, 6], 2))],
        &json!({"model_type": "gpt2"}),
    );
    let pair = |path: &str, rows: usize, seed| {
        [
            (format!("h.0.attn.{path}.lora_A.weight"), tensor(&[2, 6], seed)),
            (format!("h.0.attn.{path}.lora_B.weight"), tensor(&[rows, 2], seed + 1)),
        ]
    };
    let adapter = |name: &str, init: &str, pairs: &[(String, Tensor)]| {
        let pairs: Vec<(&str, Tensor)> = pairs.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        bench.adapter(name, json!({"fan_in_fan_out": true, "init_lora_weights": init}), &pairs)
    };
    let both = [pair("c_attn", 18, 3), pair("c_proj", 6, 5)].concat();
    stacked_equals_merged(&base, &adapter("pissa", "pissa", &both), &[]);
    let olora = adapter("olora", "olora", &pair("c_proj", 6, 7));
    stacked_equals_merged(&base, &olora, &[]);
    let init = adapter("init", "olora", &pair("c_proj", 6, 9));
    stacked_equals_merged(&base, &olora, &["--init-adapter", init.to_str().unwrap()]);
}

#[test]
fn stacks_say_what_they_cannot_find() {
    let bench = Bench::new();
    let base = bench.base(&[(Q, diagonal(&[4.0, 3.0, 3.0, 1.0], 6, 5))], &json!({}));
    for (init, said) in [("pissa", "singular values 2 and 3"), ("pissa_niter_4", "randomised SVD"), ("loftq", "anew")] {
        let adapter = adapter(&bench, init, 2, (6, 5));
        lorakit(&[&"stack", &adapter, &"--base", &base, &"-o", &bench.path("out")]).refused(1, &[said]);
    }
    let adapter = adapter(&bench, "olora", 2, (6, 5));
    lorakit(&[&"stack", &adapter, &"-o", &bench.path("out")]).refused(1, &["--init-adapter", "--base PATH"]);
    let average = [&"--method" as &dyn AsRef<std::ffi::OsStr>, &"factor-average"];
    let words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"stack", &adapter, &"--base", &base, &"-o"];
    let out = bench.path("out");
    lorakit(&[&words[..], &[&out], &average[..]].concat()).refused(1, &["average of factors"]);
    assert_eq!(bench.listing(), ["adapter", "base"]);
}

#[test]
fn an_adapter_is_taken_out_with_the_factors_found_again() {
    let (root, bench) = (fixtures().join("peft"), Bench::new());
    let (base, adapter) = (root.join("bases/llama-bf16"), root.join("pissa-r4/adapter"));
    let (merged, out) = (bench.path("merged"), bench.path("out"));
    merge(&base, &adapter, &merged, &["--base", base.to_str().unwrap()]).ok();
    let text = lorakit(&[&"subtract", &merged, &adapter, &"--base", &base, &"-o", &out]).ok().stdout;
    assert!(text.contains("MERGED is exactly that merge"), "{text}");
    assert!(read_model(&out) == read_model(&base));
}
