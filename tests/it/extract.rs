//! Extraction against singular values and best errors by torch, and against its own inverse, the merge.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::support::{
    Bench, Outcome, Tensor, Tensors, assert_close, lorakit, merge, noise, read, read_json, read_model, reference,
    snapshot, write,
};

/// `lorakit extract BASE TUNED -o OUT …`
fn extract(base: &Path, tuned: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"extract", &base, &tuned, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

/// The report of an extraction that succeeds.
#[track_caller]
fn report(base: &Path, tuned: &Path, out: &Path, more: &[&str]) -> Value {
    let mut words = vec!["--json"];
    words.extend(more);
    extract(base, tuned, out, &words).ok().json()
}

fn module<'a>(report: &'a Value, path: &str) -> &'a Value {
    let modules = report["modules"].as_array().unwrap();
    modules.iter().find(|module| module["module"] == path).unwrap_or_else(|| panic!("no module {path}"))
}

/// scale · B·A of a module in f64 as the files say it, `[out, in]`.
fn delta(adapter: &Path, path: &str) -> Vec<f64> {
    let tensors = read(&adapter.join("adapter_model.safetensors"));
    let config = read_json(&adapter.join("adapter_config.json"));
    let get = |names: [&str; 2]| {
        let keys = names.map(|name| format!("base_model.model.{path}.{name}"));
        keys.iter().find_map(|key| tensors.get(key)).unwrap_or_else(|| panic!("no factor of {path}"))
    };
    let (down, up) = (get(["lora_A.weight", "lora_embedding_A"]), get(["lora_B.weight", "lora_embedding_B"]));
    let rank = down.shape[0];
    let pattern = config["alpha_pattern"].as_object().into_iter().flatten();
    let alpha = pattern.into_iter().find(|(key, _)| path.ends_with(key.as_str()));
    let alpha = alpha.map_or(&config["lora_alpha"], |(_, alpha)| alpha).as_f64().unwrap();
    let (a, b) = (down.values(), up.values());
    let (rows, cols) = (b.len() / rank, a.len() / rank);
    let mut product = vec![0.0; rows * cols];
    for row in 0..rows {
        for k in 0..rank {
            let factor = b[row * rank + k] * alpha / rank as f64;
            for col in 0..cols {
                product[row * cols + col] += factor * a[k * cols + col];
            }
        }
    }
    product
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn transposed(values: &[f64], cols: usize) -> Vec<f64> {
    (0..values.len()).map(|at| values[at % (values.len() / cols) * cols + at / (values.len() / cols)]).collect()
}

fn difference(base: &Tensor, tuned: &Tensor) -> Vec<f64> {
    tuned.values().iter().zip(base.values()).map(|(tuned, base)| tuned - base).collect()
}

/// ‖Δ − BA‖ ∕ ‖Δ‖ in f64, from the files.
fn dense_error(base: &Tensor, tuned: &Tensor, adapter: &Path, path: &str) -> f64 {
    let wanted = difference(base, tuned);
    let mut got = delta(adapter, path);
    if path.ends_with("embed_tokens") {
        // B·A of an embedding is [dim, vocabulary].
        got = transposed(&got, base.shape[0]);
    }
    norm(wanted.iter().zip(&got).map(|(wanted, got)| wanted - got)) / norm(wanted.iter().copied())
}

/// Holds an extraction at `rank` against the facts of a reference case, for the tensors that `facts` and the models share; says
/// how many.
fn check_case(facts: &Value, values: &Tensors, base: &Path, tuned: &Path, rank: usize, compute: &str) -> usize {
    let bench = Bench::new();
    let out = bench.path("out");
    let rank_text = rank.to_string();
    let words = ["--rank", rank_text.as_str(), "--compute", compute, "--dtype", "f32"];
    let report = report(base, tuned, &out, &words);
    let (base, tuned) = (read_model(base), read_model(tuned));
    let allowed = if compute == "fast" { 1.01 } else { 1.001 };
    let mut checked = 0;
    for (name, best) in facts["optimal"].as_object().unwrap() {
        let (Some(base), Some(tuned)) = (base.get(name), tuned.get(name)) else { continue };
        let path = name.strip_suffix(".weight").unwrap();
        let optimum = best[&rank_text].as_f64().unwrap();
        let found = module(&report, path);
        let error = dense_error(base, tuned, &out, path);
        assert!(error <= allowed * optimum + 1e-6, "{name} {compute} {rank}: {error} of {optimum}");
        let claimed = found["relative_error"].as_f64().unwrap();
        assert!(claimed >= error * (1.0 - 1e-12), "{name}: claims {claimed:e}, has {error:e}");
        assert!(claimed <= error + 1e-4, "{name}: claims {claimed:e}, has {error:e}");
        let lower = found["optimum_at_least"].as_f64().unwrap();
        assert!(lower <= optimum + 1e-8, "{name}: {lower} is said to be the least, {optimum} is possible");
        assert!((found["norm"].as_f64().unwrap() / best["norm"].as_f64().unwrap() - 1.0).abs() < 1e-6);
        let known = found["singular_values"].as_array().unwrap();
        let exact = values[name].values();
        let largest = exact[0];
        // An iteration ends when the residual is as promised: the last values of a flat spectrum are not settled then.
        let settled = found["settled_values"].as_u64().unwrap() as usize;
        for (at, (known, exact)) in known.iter().zip(&exact).take(rank).enumerate() {
            let known = known.as_f64().unwrap();
            let tolerance = if at < settled { 1e-4 } else { 1e-1 };
            let off = (known - exact).abs();
            assert!(off <= tolerance * exact + 1e-7 * largest, "{name} {compute} {rank}: σ {known} instead of {exact}");
        }
        checked += 1;
    }
    checked
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn errors_and_singular_values_are_those_of_torch() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-bf16");
    for case in ["tiny-f32", "tiny-bf16"] {
        let place = reference.join("extract").join(case);
        let facts = read_json(&place.join("case.json"));
        let values = read(&place.join("singular_values_f64.safetensors"));
        for (rank, compute) in [(1, "accurate"), (4, "accurate"), (4, "fast"), (16, "accurate"), (32, "fast")] {
            assert_eq!(check_case(&facts, &values, &base, &place.join("tuned"), rank, compute), 16);
        }
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_real_fine_tune_is_extracted_as_well_as_possible() {
    let reference = reference();
    let place = reference.join("extract/smollm2-bf16");
    let facts = read_json(&place.join("case.json"));
    let values = read(&place.join("singular_values_top64_f64.safetensors"));
    let slices = read(&place.join("slices.safetensors"));
    let bench = Bench::new();
    for side in ["base", "tuned"] {
        let part = |(name, tensor): (&String, &Tensor)| {
            let (name, of) = name.split_once('|').unwrap();
            (of == side).then(|| (name.to_owned(), tensor.clone()))
        };
        let tensors: Vec<(String, Tensor)> = slices.iter().filter_map(part).collect();
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        write(&bench.path(side).join("model.safetensors"), &named);
    }
    for (rank, compute) in [(16, "accurate"), (16, "fast"), (32, "accurate"), (64, "accurate"), (64, "fast")] {
        assert_eq!(check_case(&facts, &values, &bench.path("base"), &bench.path("tuned"), rank, compute), 4);
    }
}

/// A base and what a LoRA makes of it: paths of base, adapter, merged.
fn merged_pair(bench: &Bench, dtype: Dtype, size: f32) -> (PathBuf, PathBuf, PathBuf) {
    let weight = |seed| Tensor::new(dtype, &[48, 40], &noise(seed, 48 * 40, 0.05));
    let base = bench.base(
        &[
            ("model.layers.0.q_proj.weight", weight(1)),
            ("model.layers.0.v_proj.weight", weight(2)),
            ("model.norm.weight", Tensor::new(dtype, &[40], &noise(3, 40, 1.0))),
        ],
        &json!({"model_type": "llama"}),
    );
    let factor = |seed, shape: &[usize]| Tensor::f32(shape, &noise(seed, shape[0] * shape[1], size));
    let adapter = bench.adapter(
        "adapter",
        json!({"r": 3, "lora_alpha": 6}),
        &[
            ("model.layers.0.q_proj.lora_A.weight", factor(4, &[3, 40])),
            ("model.layers.0.q_proj.lora_B.weight", factor(5, &[48, 3])),
        ],
    );
    merge(&base, &adapter, &bench.path("merged"), &[]).ok();
    (base, adapter, bench.path("merged"))
}

#[test]
fn a_merged_adapter_comes_back() {
    let bench = Bench::new();
    let (base, adapter, merged) = merged_pair(&bench, Dtype::F32, 0.3);
    let out = bench.path("out");
    let report = report(&base, &merged, &out, &["--rank", "3"]);
    let path = "model.layers.0.q_proj";
    assert_close(&delta(&out, path), &delta(&adapter, path), 1e-5);
    assert_eq!((report["unchanged"].as_u64(), report["modules"].as_array().unwrap().len()), (Some(2), 1));
    assert!(module(&report, path)["relative_error"].as_f64().unwrap() < 1e-5);
    assert_eq!(module(&report, path)["rank"], 3);
}

#[test]
fn in_bf16_the_error_is_at_the_rounding_floor_and_says_so() {
    let bench = Bench::new();
    let (base, adapter, merged) = merged_pair(&bench, Dtype::BF16, 0.05);
    let (out, path) = (bench.path("out"), "model.layers.0.q_proj");
    let outcome = extract(&base, &merged, &out, &["--rank", "3", "--dtype", "f32"]).ok();
    assert!(outcome.stdout.contains("in 1 of 1 modules the error is no larger than what rounding TUNED"));
    let report = report(&base, &merged, &bench.path("again"), &["--rank", "3", "--dtype", "f32"]);
    let (found, wanted) = (module(&report, path), delta(&adapter, path));
    assert_eq!(found["at_rounding_floor"], true);
    let distance = norm(delta(&out, path).iter().zip(&wanted).map(|(got, wanted)| got - wanted));
    let floor = found["rounding"].as_f64().unwrap() * found["norm"].as_f64().unwrap();
    assert!(distance <= floor, "{distance} from the true change, rounding is {floor}");
    // One less than the true rank misses more than rounding.
    let fewer = self::report(&base, &merged, &bench.path("fewer"), &["--rank", "2"]);
    assert_eq!(module(&fewer, path)["at_rounding_floor"], false);
}

#[test]
fn noise_keeps_what_rounding_does_not_explain() {
    let bench = Bench::new();
    let (base, _, merged) = merged_pair(&bench, Dtype::BF16, 0.1);
    let report = report(&base, &merged, &bench.path("out"), &["--noise"]);
    assert_eq!(module(&report, "model.layers.0.q_proj")["rank"], 3);
}

#[test]
fn without_a_rank_each_ends_where_nothing_but_rounding_is_left() {
    let bench = Bench::new();
    let (base, _, merged) = merged_pair(&bench, Dtype::BF16, 0.1);
    let [asked, silent] = ["asked", "silent"].map(|name| bench.path(name));
    let noise = report(&base, &merged, &asked, &["--noise"]);
    let default = report(&base, &merged, &silent, &[]);
    assert_eq!(default["modules"], noise["modules"]);
    assert_eq!(snapshot(&silent), snapshot(&asked));
    assert!(default["notes"].to_string().contains("no rank was asked for"), "{}", default["notes"]);

    let bench = Bench::new();
    let (base, _, merged) = merged_pair(&bench, Dtype::F32, 0.1);
    extract(&base, &merged, &bench.path("out"), &[])
        .refused(2, &["tensor `model.layers.0.q_proj.weight` is F32, whose rounding ends no rank", "--rank 16"]);
}

/// Elements of `left` whose bits are not those of `right`.
fn different(left: &Tensor, right: &Tensor) -> usize {
    assert_eq!((left.dtype, &left.shape), (right.dtype, &right.shape));
    let width = left.data.len() / left.shape.iter().product::<usize>();
    left.data.chunks(width).zip(right.data.chunks(width)).filter(|(left, right)| left != right).count()
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn at_full_rank_a_merge_gives_the_tuned_model_back() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-bf16");
    let tuned = reference.join("extract/tiny-bf16/tuned");
    let bench = Bench::new();
    extract(&base, &tuned, &bench.path("out"), &["--rank", "64", "--dtype", "f32"]).ok();
    merge(&base, &bench.path("out"), &bench.path("merged"), &[]).ok();
    let (got, wanted) = (read_model(&bench.path("merged")), read_model(&tuned));
    assert_eq!(got.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    let (mut all, mut off) = (0, 0);
    for (name, wanted) in &wanted {
        all += wanted.shape.iter().product::<usize>();
        off += different(&got[name], wanted);
        assert_close(&got[name].values(), &wanted.values(), 1e-6);
    }
    // Elements much smaller than the change around them have steps below its rounding.
    assert!(off as f64 <= 1e-4 * all as f64, "{off} of {all} elements differ");
}

/// `base` with noise added to the tensors whose names `which` accepts.
fn perturbed(base: &Path, to: &Path, which: impl Fn(&str) -> bool) -> Tensors {
    let mut tensors = read_model(base);
    for (at, (name, tensor)) in tensors.iter_mut().enumerate() {
        if which(name) {
            let values = tensor.values();
            let change = noise(at as u64 + 77, values.len(), 0.02);
            let tuned: Vec<f32> = values.iter().zip(&change).map(|(value, change)| *value as f32 + change).collect();
            *tensor = Tensor::new(tensor.dtype, &tensor.shape, &tuned);
        }
    }
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&to.join("model.safetensors"), &named);
    std::fs::copy(base.join("config.json"), to.join("config.json")).unwrap();
    tensors
}

/// Extracts at full rank, merges, and compares with what was tuned.
fn check_inverse(bench: &Bench, base: &Path, tuned: &Tensors, more: &[&str]) -> Value {
    let out = bench.path("out");
    let mut words = vec!["--rank", "1000", "--dtype", "f32"];
    words.extend(more);
    let report = report(base, &bench.path("tuned"), &out, &words);
    merge(base, &out, &bench.path("merged"), &[]).ok();
    let got = read_model(&bench.path("merged"));
    assert_eq!(got.keys().collect::<Vec<_>>(), tuned.keys().collect::<Vec<_>>());
    for (name, tuned) in tuned {
        let tolerance = if tuned.dtype == Dtype::F32 { 1e-5 } else { 8e-3 };
        assert_close(&got[name].values(), &tuned.values(), tolerance);
    }
    report
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn convolutions_embeddings_biases_and_attention_come_back() {
    let reference = reference();
    let base = reference.join("peft/bases/tinynet-f32");
    let bench = Bench::new();
    let tuned = perturbed(&base, &bench.path("tuned"), |_| true);
    let report = check_inverse(&bench, &base, &tuned, &[]);
    let kind = |path: &str| module(&report, path)["kind"].clone();
    for path in ["conv1", "conv2", "conv2p", "conv3"] {
        assert_eq!(kind(path), "conv");
    }
    assert_eq!((kind("emb"), kind("lin")), ("embedding".into(), "linear".into()));
    let adapter = read(&bench.path("out").join("adapter_model.safetensors"));
    assert_eq!(adapter["base_model.model.conv2.lora_A.weight"].shape, [16, 10, 3, 3]);
    assert_eq!(adapter["base_model.model.conv2.lora_B.weight"].shape, [16, 16, 1, 1]);
    assert_eq!(adapter["base_model.model.lin.base_layer.bias"].values(), tuned["lin.bias"].values());
    let config = read_json(&bench.path("out").join("adapter_config.json"));
    assert_eq!(config["modules_to_save"], json!(["attn"]));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn convolutions_can_have_a_rank_of_their_own() {
    let reference = reference();
    let base = reference.join("peft/bases/tinynet-f32");
    let bench = Bench::new();
    perturbed(&base, &bench.path("tuned"), |name| name.ends_with("weight"));
    let report = report(&base, &bench.path("tuned"), &bench.path("out"), &["--rank", "4", "--conv-rank", "2"]);
    let ranks =
        ["conv1", "conv2", "conv2p", "conv3", "lin"].map(|path| module(&report, path)["rank"].as_u64().unwrap());
    assert_eq!(ranks, [2, 2, 4, 2, 4]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn layers_that_keep_their_inputs_in_rows_come_back() {
    let reference = reference();
    let base = reference.join("peft/bases/gpt2-f32");
    let bench = Bench::new();
    let tuned = perturbed(&base, &bench.path("tuned"), |_| true);
    let report = check_inverse(&bench, &base, &tuned, &[]);
    assert_eq!(module(&report, "transformer.h.0.attn.c_attn")["kind"], "conv1d");
    let adapter = read(&bench.path("out").join("adapter_model.safetensors"));
    let key = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight";
    assert_eq!(adapter[key].shape, [64, 64]);
    assert_eq!(adapter[&key.replace("lora_A", "lora_B")].shape, [192, 64]);
    let config = read_json(&bench.path("out").join("adapter_config.json"));
    assert_eq!((&config["fan_in_fan_out"], &config["ensure_weight_tying"]), (&json!(true), &json!(true)));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_tied_embedding_is_extracted_once_and_stays_tied() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-tied-bf16");
    let bench = Bench::new();
    let tuned = perturbed(&base, &bench.path("tuned"), |name| name.contains("embed"));
    let report = check_inverse(&bench, &base, &tuned, &[]);
    assert_eq!(report["modules"].as_array().unwrap().len(), 1);
    let adapter = read(&bench.path("out").join("adapter_model.safetensors"));
    let (head, embedding) = (
        &adapter["base_model.model.lm_head.lora_B.weight"],
        &adapter["base_model.model.model.embed_tokens.lora_embedding_A"],
    );
    assert_eq!(transposed(&head.values(), head.shape[1]), embedding.values());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_head_that_was_untied_is_compared_with_the_embedding() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-tied-bf16");
    let bench = Bench::new();
    let mut tuned = perturbed(&base, &bench.path("tuned"), |_| false);
    let embedding = tuned["model.embed_tokens.weight"].clone();
    let values: Vec<f32> = embedding.values().iter().map(|value| *value as f32 * 1.5).collect();
    tuned.insert("lm_head.weight".into(), Tensor::new(embedding.dtype, &embedding.shape, &values));
    let named: Vec<(&str, Tensor)> = tuned.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&bench.path("tuned/model.safetensors"), &named);
    let report = check_inverse(&bench, &base, &tuned, &[]);
    assert_eq!(report["modules"].as_array().unwrap().len(), 1);
    assert!(report["notes"][0].as_str().unwrap().contains("has its own tensor in TUNED"));
}

#[test]
fn stacks_of_experts_come_back_expert_by_expert() {
    let bench = Bench::new();
    let stack = |seed, shape: &[usize]| Tensor::f32(shape, &noise(seed, shape.iter().product(), 0.1));
    let base = bench.base(
        &[
            ("model.layers.0.mlp.experts.gate_up_proj", stack(1, &[3, 20, 8])),
            ("model.layers.0.mlp.experts.down_proj", stack(2, &[3, 8, 10])),
            ("model.layers.0.mlp.experts.down_proj_bias", stack(3, &[3, 8])),
            ("model.layers.0.mlp.router.weight", stack(4, &[3, 8])),
        ],
        &json!({"model_type": "qwen3_vl_moe"}),
    );
    let tuned = perturbed(&base, &bench.path("tuned"), |_| true);
    let report = check_inverse(&bench, &base, &tuned, &[]);
    assert_eq!(module(&report, "model.layers.0.mlp.experts.gate_up_proj")["kind"], "experts");
    let config = read_json(&bench.path("out").join("adapter_config.json"));
    assert_eq!(config["target_parameters"], json!(["experts.down_proj", "experts.gate_up_proj", "router.weight"]));
    // One wrapper for each parameter that is adapted.
    let adapter = read(&bench.path("out").join("adapter_model.safetensors"));
    let bias = "base_model.model.model.layers.0.mlp.experts.base_layer.base_layer.down_proj_bias";
    assert_eq!(adapter[bias], tuned["model.layers.0.mlp.experts.down_proj_bias"]);
    let few = self::report(&base, &bench.path("tuned"), &bench.path("few"), &["--energy", "0.5"]);
    let ranks: Vec<u64> =
        few["modules"].as_array().unwrap().iter().map(|module| module["rank"].as_u64().unwrap()).collect();
    assert!(ranks.iter().all(|rank| (1..6).contains(rank)), "{ranks:?}");
}

#[test]
fn a_vocabulary_that_grew_is_kept_whole() {
    let bench = Bench::new();
    let table = |seed, rows: usize| Tensor::f32(&[rows, 8], &noise(seed, rows * 8, 0.1));
    let base = bench.base(
        &[("model.embed_tokens.weight", table(1, 10)), ("lm_head.weight", table(2, 10))],
        &json!({"model_type": "llama"}),
    );
    write(
        &bench.path("tuned/model.safetensors"),
        &[("model.embed_tokens.weight", table(3, 12)), ("lm_head.weight", table(4, 12))],
    );
    let report = report(&base, &bench.path("tuned"), &bench.path("out"), &["--rank", "2"]);
    let note = report["notes"].to_string();
    assert!(note.contains("`model.embed_tokens` grew from 10 to 12 rows"), "{note}");
    let adapter = read(&bench.path("out").join("adapter_model.safetensors"));
    assert_eq!(adapter["base_model.model.model.embed_tokens.weight"], table(3, 12));
    let config = read_json(&bench.path("out").join("adapter_config.json"));
    assert_eq!(config["modules_to_save"], json!(["lm_head", "model.embed_tokens"]));
    merge(&base, &bench.path("out"), &bench.path("merged"), &["--resize-vocab"]).ok();
    assert_eq!(read_model(&bench.path("merged")), read_model(&bench.path("tuned")));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn threads_and_memory_change_no_byte() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-bf16");
    let tuned = reference.join("extract/tiny-bf16/tuned");
    let bench = Bench::new();
    for policy in [&["--rank", "8"][..], &["--max-params", "20000"], &["--energy", "0.8", "--compute", "fast"]] {
        let mut all = Vec::new();
        for (name, how) in [
            ("one", &["-j", "1"][..]),
            ("two", &["-j", "2"]),
            ("small", &["-j", "2", "--max-memory", "64MiB"]),
            ("tiny", &["-j", "2", "--max-memory", "100KB"]),
        ] {
            let out = bench.path(name);
            extract(&base, &tuned, &out, &[policy, how, &["--force"]].concat()).ok();
            all.push(snapshot(&out));
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{policy:?}");
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_budget_is_kept_and_buys_more_than_one_rank_for_all() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-bf16");
    let tuned = reference.join("extract/tiny-f32/tuned");
    let bench = Bench::new();
    let run = |name: &str, words: &[&str]| {
        let report = report(&base, &tuned, &bench.path(name), words);
        let bytes = std::fs::metadata(bench.path(name).join("adapter_model.safetensors")).unwrap().len();
        (report, bytes)
    };
    let (same, _) = run("same", &["--rank", "8"]);
    let parameters = same["parameters"].to_string();
    // The norms that are stored whole count as well.
    let all = (parameters.parse::<u64>().unwrap() + 5 * 64).to_string();
    let (spent, _) = run("params", &["--max-params", &all]);
    assert!(spent["parameters"].as_u64() <= same["parameters"].as_u64());
    let kept = |report: &Value| report["kept_energy"].as_f64().unwrap();
    assert!(kept(&spent) > kept(&same) + 0.005, "{} and {}", kept(&spent), kept(&same));
    assert_eq!(spent["budget"]["short_at_most"], 0.0);
    for size in [30_000_u64, 60_000, 120_000] {
        let (_, bytes) = run(&format!("size-{size}"), &["--max-size", &size.to_string()]);
        assert!(bytes <= size && bytes * 10 >= size * 7, "{bytes} of {size}");
    }
    let (uniform, bytes) = run("uniform", &["--max-size", "60000", "--uniform-rank"]);
    assert!(bytes <= 60_000);
    assert_eq!(uniform["ranks"].as_object().unwrap().len(), 1);
    extract(&base, &tuned, &bench.path("none"), &["--max-params", "100"])
        .refused(2, &["--max-params", "100 parameters are not enough: what keeps its size takes 320"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_uniform_rank_is_filled_with_zeros() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-bf16");
    let tuned = reference.join("extract/tiny-bf16/tuned");
    let bench = Bench::new();
    let words = ["--energy", "0.6", "--skip", "norm", "--dtype", "f32"];
    let plain = report(&base, &tuned, &bench.path("plain"), &words);
    report(&base, &tuned, &bench.path("uniform"), &[&words[..], &["--uniform-rank"]].concat());
    let config = read_json(&bench.path("uniform/adapter_config.json"));
    let widest = plain["ranks"].as_object().unwrap().keys().map(|rank| rank.parse::<u64>().unwrap()).max();
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_u64()), (widest, widest));
    assert_eq!((&config["rank_pattern"], &config["alpha_pattern"]), (&json!({}), &json!({})));
    assert_eq!(config["modules_to_save"], Value::Null);
    for path in ["model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head"] {
        assert_eq!(delta(&bench.path("uniform"), path), delta(&bench.path("plain"), path), "{path}");
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn alpha_is_folded_into_the_factors() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-bf16");
    let tuned = reference.join("extract/tiny-bf16/tuned");
    let bench = Bench::new();
    let report = report(&base, &tuned, &bench.path("out"), &["--rank", "8", "--alpha", "13"]);
    let config = read_json(&bench.path("out/adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(8), &json!(13)));
    let (base, tuned) = (read_model(&base), read_model(&tuned));
    for path in ["model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens"] {
        let name = format!("{path}.weight");
        let error = dense_error(&base[&name], &tuned[&name], &bench.path("out"), path);
        let claimed = module(&report, path)["relative_error"].as_f64().unwrap();
        assert!(claimed >= error && claimed < error * 1.02, "{path}: claims {claimed}, has {error}");
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn other_shards_prefixes_and_dtypes_are_paired() {
    let reference = reference();
    let base = reference.join("peft/bases/llama-bf16");
    let tuned = read_model(&reference.join("extract/tiny-f32/tuned"));
    let bench = Bench::new();
    let names: Vec<String> = tuned
        .keys()
        .map(|name| {
            name.strip_prefix("model.").map_or_else(|| name.clone(), |rest| format!("model.language_model.{rest}"))
        })
        .collect();
    let moved: Vec<(&str, Tensor)> =
        names.iter().zip(tuned.values()).map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let half = moved.len() / 2;
    let place = bench.path("tuned");
    write(&place.join("model-00001-of-00002.safetensors"), &moved[..half]);
    write(&place.join("model-00002-of-00002.safetensors"), &moved[half..]);
    let file = |at: usize| format!("model-0000{}-of-00002.safetensors", 1 + usize::from(at >= half));
    let map: serde_json::Map<String, Value> =
        moved.iter().enumerate().map(|(at, (name, _))| ((*name).to_owned(), file(at).into())).collect();
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(place.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let moved = report(&base, &place, &bench.path("moved"), &["--rank", "4"]);
    let plain = report(&base, &reference.join("extract/tiny-f32/tuned"), &bench.path("plain"), &["--rank", "4"]);
    assert!(moved["notes"][0].as_str().unwrap().contains("`model.language_model.…` is `model.…` in BASE"));
    assert_eq!(moved["modules"], plain["modules"]);
    let file = |name: &str| read(&bench.path(name).join("adapter_model.safetensors"));
    assert_eq!(file("moved"), file("plain"));
}

#[test]
fn fp8_with_scales_is_compared_by_the_numbers_it_means() {
    let bench = Bench::new();
    let codes: Vec<u8> = (0..32 * 16).map(|at: u32| u8::try_from(at % 120).unwrap()).collect();
    let fp8 = Tensor { dtype: Dtype::F8_E4M3, shape: vec![32, 16], data: codes };
    let scale = Tensor::f32(&[1], &[0.01]);
    let base = bench.base(
        &[
            ("l.q_proj.weight", fp8.clone()),
            ("l.q_proj.weight_scale", scale.clone()),
            ("l.k_proj.weight", fp8.clone()),
            ("l.k_proj.weight_scale", scale.clone()),
        ],
        &json!({"model_type": "llama"}),
    );
    let change = noise(3, 32 * 16, 0.01);
    let tuned: Vec<f32> = change
        .iter()
        .enumerate()
        .map(|(at, change)| {
            let code = float8::value(at % 120);
            (f64::from(code) * 0.01) as f32 + change
        })
        .collect();
    write(
        &bench.path("tuned/model.safetensors"),
        &[
            ("l.q_proj.weight", Tensor::f32(&[32, 16], &tuned)),
            ("l.k_proj.weight", fp8),
            ("l.k_proj.weight_scale", scale),
        ],
    );
    let report = report(&base, &bench.path("tuned"), &bench.path("out"), &["--rank", "16"]);
    assert_eq!(report["unchanged"], 1);
    let change: Vec<f64> = change.iter().map(|value| f64::from(*value)).collect();
    assert_close(&delta(&bench.path("out"), "l.q_proj"), &change, 1e-4);
}

/// F8_E4M3 by its definition.
mod float8 {
    pub fn value(code: usize) -> f32 {
        let (exponent, mantissa) = ((code >> 3) as i32, (code & 7) as f32);
        if exponent == 0 {
            mantissa / 8.0 * (-6_f32).exp2()
        } else {
            (1.0 + mantissa / 8.0) * (exponent as f32 - 7.0).exp2()
        }
    }
}

/// A base of one layer and a norm, and a tuned model of `tensors`.
fn small(bench: &Bench, tensors: &[(&str, Tensor)]) -> (PathBuf, PathBuf) {
    let base = bench.base(
        &[("a.q_proj.weight", Tensor::f32(&[4, 6], &noise(1, 24, 1.0))), ("norm.weight", Tensor::f32(&[6], &[1.0; 6]))],
        &json!({"model_type": "llama"}),
    );
    write(&bench.path("tuned/model.safetensors"), tensors);
    (base, bench.path("tuned"))
}

#[test]
fn models_that_do_not_fit_are_refused_with_what_does_not() {
    let weight = |shape: &[usize]| Tensor::f32(shape, &noise(2, shape.iter().product(), 1.0));
    let vector = Tensor::f32(&[6], &[1.0; 6]);
    let nan = Tensor::f32(&[4, 6], &[f32::NAN; 24]);
    let codes = Tensor { dtype: Dtype::U8, shape: vec![4, 6], data: vec![1; 24] };
    for (tensors, parts) in [
        (
            vec![("a.q_proj.weight", weight(&[4, 7])), ("norm.weight", vector.clone())],
            &["`a.q_proj.weight` [4, 7]", "[4, 6]", "hint"][..],
        ),
        (vec![("a.q_proj.weight", weight(&[4, 6]))], &["1 tensors have no partner there: `norm.weight`"]),
        (
            vec![
                ("a.q_proj.weight", weight(&[4, 6])),
                ("norm.weight", vector.clone()),
                ("a.k_proj.weight", weight(&[4, 6])),
            ],
            &["`a.k_proj.weight`", "most like", "--full"],
        ),
        (
            vec![("a.q_proj.weight", nan), ("norm.weight", vector.clone())],
            &["model.safetensors: tensor `a.q_proj.weight`: element 0 is NaN"],
        ),
        (vec![("a.q_proj.weight", codes), ("norm.weight", vector.clone())], &["one is F32, the other U8", "--full"]),
    ] {
        let bench = Bench::new();
        let (base, tuned) = small(&bench, &tensors);
        extract(&base, &tuned, &bench.path("out"), &["--rank", "2"]).refused(1, parts);
        assert!(!bench.path("out").exists());
    }
    let bench = Bench::new();
    let (base, _) = small(&bench, &[("x", vector)]);
    extract(&base, &base, &bench.path("out"), &["--rank", "2"])
        .refused(1, &["2 tensors are equal", "nothing to extract"]);
    extract(&base, &base, &bench.path("out"), &["--rank", "2", "--dtype", "f8_e4m3"])
        .refused(2, &["--dtype: `float8_e4m3fn` is not one of"]);
    extract(&base, &base, &base, &["--rank", "2", "--force"]).refused(1, &["would take the place of the input"]);
    extract(&base, &base, &bench.path("out"), &["--rank", "2", "--alpha", "0"]).refused(2, &["--alpha: `0`"]);
}

#[test]
fn a_vector_without_a_layer_needs_a_decision() {
    let bench = Bench::new();
    let vector = |value: f32| Tensor::f32(&[4], &[value; 4]);
    let weight = |seed| Tensor::f32(&[4, 4], &noise(seed, 16, 1.0));
    let base = bench.base(
        &[("l.mixer.A_log", vector(1.0)), ("l.mixer.in_proj.weight", weight(1)), ("l.k.weight", weight(5))],
        &json!({"model_type": "mamba2"}),
    );
    let tensors = [("l.mixer.A_log", vector(2.0)), ("l.mixer.in_proj.weight", weight(2)), ("l.k.weight", weight(6))];
    write(&bench.path("tuned/model.safetensors"), &tensors);
    let (tuned, out) = (bench.path("tuned"), bench.path("out"));
    extract(&base, &tuned, &out, &["--rank", "4"])
        .refused(1, &["tensor `l.mixer.A_log` [4] changed and is no layer of its own", "`--full '^l.mixer$'`"]);
    let skipped = report(&base, &tuned, &out, &["--rank", "4", "--skip", "A_log"]);
    assert_eq!(skipped["skipped"], json!(["l.mixer.A_log"]));
    let whole = report(&base, &tuned, &bench.path("whole"), &["--rank", "4", "--full", "^l.mixer$"]);
    assert_eq!((whole["modules"].as_array().unwrap().len(), whole["whole"].as_array().unwrap().len()), (1, 2));
    merge(&base, &bench.path("whole"), &bench.path("merged"), &[]).ok();
    let got = read_model(&bench.path("merged"));
    assert_eq!((&got["l.mixer.A_log"], &got["l.mixer.in_proj.weight"]), (&vector(2.0), &weight(2)));
}

#[test]
fn a_dry_run_says_it_all_and_writes_nothing() {
    let bench = Bench::new();
    let (base, _, merged) = merged_pair(&bench, Dtype::F32, 0.3);
    let outcome = extract(&base, &merged, &bench.path("out"), &["--rank", "3", "--dry-run", "-v"]).ok();
    assert!(outcome.stdout.starts_with("dry run, nothing was written") && outcome.stdout.contains("q_proj"));
    assert!(!bench.path("out").exists());
}

#[test]
fn quantised_gguf_files_are_subtracted_as_the_numbers_they_mean() {
    let bench = Bench::new();
    let fixtures = crate::support::fixtures();
    let (tiny, adapter) = (bench.path("tiny"), fixtures.join("tiny/adapter"));
    std::fs::create_dir(&tiny).unwrap();
    for file in std::fs::read_dir(fixtures.join("tiny/base")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), tiny.join(file.file_name())).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures.join("gguf/models/llama").join(name), tiny.join(name)).unwrap();
    }
    let (base, tuned) = (bench.path("base.gguf"), bench.path("tuned.gguf"));
    lorakit(&[&"convert", &tiny, &"-o", &base, &"--quant", &"q8_0"]).ok();
    merge(&base, &adapter, &tuned, &[]).ok();
    // Two quantised files, and one beside plain numbers.
    for (from, name) in [(&base, "two"), (&tiny, "one")] {
        let out = bench.path(name);
        let report = report(from, &tuned, &out, &["--rank", "4"]);
        // Beside plain numbers embedding and head differ by rounding, and nothing else.
        let adapted = report["modules"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|module| module["module"].as_str().is_some_and(|module| module.starts_with("model.layers.")));
        for module in adapted {
            let known = (module["rounding"].as_f64(), module["kept_energy"].as_f64());
            assert!(known.0 > Some(0.0) && known.1 > Some(0.998), "{}: {known:?}", module["module"]);
        }
        let module = "model.layers.0.self_attn.q_proj";
        let (found, wanted) = (delta(&out, module), delta(&adapter, module));
        let off = norm(found.iter().zip(&wanted).map(|(found, wanted)| found - wanted));
        assert!(off < 0.05 * norm(wanted.iter().copied()), "{off}");
    }
    let nothing = bench.path("nothing");
    extract(&base, &base, &nothing, &["--rank", "4"]).refused(1, &[]);
}
