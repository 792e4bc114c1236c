//! Stacked adapters against Σ wᵢ·ΔWᵢ in f64, against what PEFT's `add_weighted_adapter` gave, and against merges.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::delta::{Content, content, distance, sum};
use crate::support::{
    Bench, Outcome, Tensor, Tensors, fixtures, lorakit, noise, read_json, read_model, reference, reference_part,
    snapshot,
};

/// Largest relative error of what is called exact.
const EXACT: f64 = 1e-6;

pub fn stack(adapters: &[(&Path, f64)], out: &Path, more: &[&str]) -> Outcome {
    let written: Vec<String> = adapters.iter().map(|(path, weight)| format!("{}:{weight}", path.display())).collect();
    let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"stack", &"-o", &out];
    words.extend(written.iter().map(|word| word as &dyn AsRef<OsStr>));
    words.extend(more.iter().map(|word| word as &dyn AsRef<OsStr>));
    lorakit(&words)
}

/// Adapters of LoRA by the base they belong to.
fn adapters(root: &Path) -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut found: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let case = entry.unwrap().path();
        if !case.join("case.json").is_file() {
            continue;
        }
        let facts = read_json(&case.join("case.json"));
        let config = read_json(&case.join("adapter/adapter_config.json"));
        // DoRA has no sum, PiSSA and OLoRA have one only with their untrained factors; tests of their own hold them.
        let plain = config["peft_type"] == "LORA" && config["use_dora"] == false && facts["mergeable"] != false;
        if plain && !config["init_lora_weights"].is_string() {
            let bases =
                ["base", "base_for_low"].map(|key| root.join("bases").join(facts[key].as_str().unwrap_or("none")));
            let base = bases.into_iter().find(|base| base.is_dir()).unwrap();
            found.entry(base).or_default().push(case);
        }
    }
    found.values_mut().for_each(|cases| cases.sort());
    found
}

/// What the two hold that no adapter can hold together, if they do.
fn conflict(left: &Path, right: &Path) -> Option<&'static str> {
    let contents = [left, right].map(|case| content(&case.join("adapter")));
    let tying =
        [left, right].map(|case| read_json(&case.join("adapter/adapter_config.json"))["ensure_weight_tying"] == true);
    let clash = |saved: &Content, other: &Content| {
        saved
            .whole
            .keys()
            .any(|key| key.strip_suffix(".weight").is_some_and(|module| other.deltas.contains_key(module)))
    };
    if clash(&contents[0], &contents[1]) || clash(&contents[1], &contents[0]) {
        Some("saved whole by one and adapted by the other")
    } else if tying[0] != tying[1] {
        Some("ensure_weight_tying")
    } else {
        None
    }
}

/// T = W + Σ wᵢ·(Tᵢ − W); only tensors that equal the base's may be left out. A layer that only the other one adapts makes a bias
/// part of what it wraps.
fn check_whole(got: &Content, parts: &[(f64, &Content)], base: &Tensors, name: &str) {
    let plain = |key: &str| key.replace(".base_layer", "");
    let got: BTreeMap<String, Vec<f64>> = got.whole.iter().map(|(key, tensor)| (plain(key), tensor.values())).collect();
    let mut wanted: BTreeMap<String, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for (weight, part) in parts {
        for (key, tensor) in part.whole.iter().filter(|(key, _)| !key.contains("token_adapter")) {
            let own = base.get(&plain(key)).unwrap_or_else(|| &base["model.embed_tokens.weight"]).values();
            let (_, sum) = wanted.entry(plain(key)).or_insert_with(|| (own.clone(), own.clone()));
            let moved = tensor.values().into_iter().zip(own).map(|(whole, own)| weight * (whole - own));
            sum.iter_mut().zip(moved).for_each(|(sum, moved)| *sum += moved);
        }
    }
    for (key, (own, wanted)) in wanted {
        match got.get(&key) {
            Some(got) => crate::support::assert_close(got, &wanted, EXACT),
            None => assert_eq!(own, wanted, "{name}: `{key}` is missing"),
        }
    }
}

/// Says how many sums were exact, and how many refused.
fn check_pairs(root: &Path) -> (usize, usize) {
    let (mut count, mut refused) = (0, 0);
    for (base, cases) in adapters(root) {
        for (at, left) in cases.iter().enumerate() {
            for right in &cases[at..] {
                let (l, r) = (left.join("adapter"), right.join("adapter"));
                let name = format!("{} and {}", left.display(), right.display());
                let bench = Bench::new();
                let out = bench.path("out");
                let weights = [0.7, -0.4];
                let outcome =
                    stack(&[(&l, weights[0]), (&r, weights[1])], &out, &["--base", base.to_str().unwrap(), "-q"]);
                if let Some(reason) = conflict(left, right) {
                    outcome.refused(1, &[reason]);
                    refused += 1;
                    continue;
                }
                outcome.ok();
                let (l, r, got) = (content(&l), content(&r), content(&out));
                let wanted = sum(&[(weights[0], &l.deltas), (weights[1], &r.deltas)]);
                let error = distance(&got.deltas, &wanted);
                assert!(error <= EXACT, "{name}: {error:e}");
                let biases = |part: &Content, key: &str| part.biases.get(key).cloned();
                for (key, got) in &got.biases {
                    let zero = vec![0.0; got.len()];
                    let (l, r) = (biases(&l, key).unwrap_or(zero.clone()), biases(&r, key).unwrap_or(zero));
                    let wanted: Vec<f64> = l.iter().zip(&r).map(|(l, r)| weights[0] * l + weights[1] * r).collect();
                    crate::support::assert_close(got, &wanted, EXACT);
                }
                check_whole(&got, &[(weights[0], &l), (weights[1], &r)], &read_model(&base), &name);
                count += 1;
            }
        }
    }
    (count, refused)
}

#[test]
fn the_sum_of_any_two_adapters_is_exact() {
    assert_eq!(check_pairs(&fixtures().join("peft")), (22, 0));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn the_sum_of_any_two_adapters_of_the_reference_is_exact() {
    assert_eq!(check_pairs(&reference_part("peft")), (181, 4));
}

/// Results of PEFT that are not what their name says (see the reference's README): never what we compare with.
const PEFT_IS_WRONG: [(&str, &str); 9] = [
    ("rslora-cat", "the result keeps use_rslora, which makes it √r too strong"),
    ("rslora-svd", "as above"),
    ("rslora-linear", "as above"),
    ("dora-cat", "magnitudes are lost"),
    ("dora-svd", "magnitudes are lost"),
    ("mts-cat", "the trained head is lost"),
    ("svd-svd_rank8-svd_clamp0.95", "clamping is not offered: it throws away what the rank could keep"),
    ("ties-density0.5", "prunes factors, not ΔW"),
    ("ties-density0.5-majority_sign_methodfrequency", "prunes factors, not ΔW"),
];

/// The options that ask for the combination `facts` describes, and how close to PEFT's the result has to be; `None` where there is
/// nothing to compare.
fn options(name: &str, facts: &serde_json::Value) -> Option<(Vec<String>, f64)> {
    /// Of results that PEFT computes by an SVD in f32, between gaps that are not small.
    const SVD: f64 = 2e-5;
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let density = facts["density"].as_f64().unwrap_or(1.0);
    let rank = &facts["out_r"];
    match facts["combination_type"].as_str().unwrap() {
        _ if PEFT_IS_WRONG.iter().any(|(wrong, _)| *wrong == name) => None,
        "cat" => Some((Vec::new(), EXACT)),
        "svd" => Some((words(format!("--rank {rank}")), SVD)),
        "linear" => Some((words("--method factor-average".into()), EXACT)),
        "ties_svd" => Some((words(format!("--method ties --density {density} --rank {rank}")), SVD)),
        "magnitude_prune_svd" => Some((words(format!("--method magnitude --density {density} --rank {rank}")), SVD)),
        // dare_*: torch's random numbers. The rest prunes factors.
        _ => None,
    }
}

fn check_combos(root: &Path) -> usize {
    let mut count = 0;
    let mut names: Vec<String> = std::fs::read_dir(root.join("combos"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for name in names {
        let facts = read_json(&root.join("combos").join(&name).join("case.json"));
        let theirs = root.join("combos").join(&name).join("c");
        let Some((more, tolerance)) = options(&name, &facts) else { continue };
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let inputs: Vec<PathBuf> = facts["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|input| root.join(input.as_str().unwrap()).join("adapter"))
            // In the fixtures lora-all-r4 is the adapter of the quickstart.
            .map(|input| if input.exists() { input } else { root.join("tiny/adapter") })
            .collect();
        let weights: Vec<f64> = facts["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
        let bench = Bench::new();
        let adapters: Vec<(&Path, f64)> = inputs.iter().map(PathBuf::as_path).zip(weights.iter().copied()).collect();
        let outcome = stack(&adapters, &bench.path("out"), &more);
        if !theirs.exists() {
            // PEFT refuses what we refuse.
            outcome.refused(1, &["factors of different ranks have no average"]);
            continue;
        }
        outcome.ok();
        let (ours, theirs) = (content(&bench.path("out")), content(&theirs));
        let error = distance(&ours.deltas, &theirs.deltas);
        assert!(error <= tolerance, "{name}: {error:e}");
        count += 1;
    }
    count
}

#[test]
fn results_are_pefts_where_peft_is_right() {
    assert_eq!(check_combos(&fixtures()), 6);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn results_of_the_reference_are_pefts_where_peft_is_right() {
    assert_eq!(check_combos(&reference()), 21);
}

/// Two adapters over two modules that neither fixtures nor reference need.
fn two(bench: &Bench) -> (PathBuf, PathBuf) {
    let (rows, cols) = (24, 16);
    let pair = |seed: u64, rank: usize, module: &str| {
        [
            (format!("{module}.lora_A.weight"), Tensor::f32(&[rank, cols], &noise(seed, rank * cols, 0.5))),
            (format!("{module}.lora_B.weight"), Tensor::f32(&[rows, rank], &noise(seed + 1, rows * rank, 0.5))),
        ]
    };
    let write = |name: &str, config: serde_json::Value, parts: Vec<[(String, Tensor); 2]>| {
        let parts: Vec<(String, Tensor)> = parts.into_iter().flatten().collect();
        let parts: Vec<(&str, Tensor)> = parts.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        bench.adapter(name, config, &parts)
    };
    let first = write(
        "first",
        json!({"r": 3, "lora_alpha": 5, "use_rslora": true}),
        vec![pair(1, 3, "layers.0.q_proj"), pair(3, 3, "layers.1.q_proj")],
    );
    let second = write("second", json!({"r": 2, "lora_alpha": 3}), vec![pair(5, 2, "layers.1.q_proj")]);
    (first, second)
}

fn check_merges(root: &Path) {
    for (base, left, right) in [
        ("llama-bf16", "lora-r8", "rslora-r4"),
        ("llama-bf16", "lora-embed", "lora-patterns"),
        ("tinynet-f32", "conv-lora", "mha-lora"),
        ("mixtral-bf16", "mixtral-params", "mixtral-params"),
    ] {
        let bench = Bench::new();
        let base = root.join("bases").join(base);
        let adapters = [left, right].map(|name| root.join(name).join("adapter"));
        stack(&[(&adapters[0], 0.5), (&adapters[1], -1.5)], &bench.path("stack"), &[]).ok();
        let (first, second) = (format!("{}:0.5", adapters[0].display()), format!("{}:-1.5", adapters[1].display()));
        lorakit(&[&"merge", &base, &first, &second, &"-o", &bench.path("both"), &"--dtype", &"f32"]).ok();
        lorakit(&[&"merge", &base, &bench.path("stack"), &"-o", &bench.path("one"), &"--dtype", &"f32"]).ok();
        let (both, one) = (read_model(&bench.path("both")), read_model(&bench.path("one")));
        assert_eq!(both.keys().collect::<Vec<_>>(), one.keys().collect::<Vec<_>>());
        for (name, tensor) in &both {
            if tensor.dtype == safetensors::tensor::Dtype::F32 {
                crate::support::assert_close(&one[name].values(), &tensor.values(), EXACT);
            } else {
                assert_eq!(one[name], *tensor, "{name}");
            }
        }
    }
}

#[test]
fn merging_the_stack_is_merging_both() {
    check_merges(&fixtures().join("peft"));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn merging_the_stack_of_the_reference_is_merging_both() {
    check_merges(&reference_part("peft"));
}

#[test]
fn bytes_do_not_depend_on_threads_and_memory() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    for (at, how) in [
        "",
        "--rank 2",
        "--energy 0.9",
        "--max-params 150",
        "--method ties --density 0.4 --rank 3",
        "--method dare --density 0.4 --seed 5 --rank 3",
    ]
    .into_iter()
    .enumerate()
    {
        let mut results = Vec::new();
        for (more, run) in [("-j 1", 0), ("-j 2", 1), ("-j 5 --max-memory 1MiB", 2)] {
            let out = bench.path(&format!("out-{at}-{run}"));
            let words: Vec<&str> = how.split_whitespace().chain(more.split_whitespace()).collect();
            stack(&[(&first, 0.6), (&second, 1.0)], &out, &words).ok();
            results.push(snapshot(&out));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{how}");
    }
}

#[test]
fn powers_of_two_keep_the_dtype_and_every_digit() {
    let bench = Bench::new();
    let root = fixtures().join("peft");
    let adapter = root.join("lora-r8/adapter");
    let half = bench.path("half");
    stack(&[(&adapter, 1.0)], &half, &["--dtype", "bf16"]).ok();
    let report = stack(&[(&half, 0.5), (&half, -2.0)], &bench.path("out"), &["--json"]).ok().json();
    assert_eq!((report["exact"].as_bool(), &report["modules"][0]["dtype"]), (Some(true), &json!("BF16")));
    let inexact = stack(&[(&half, 0.3)], &bench.path("third"), &["--json"]).ok().json();
    assert_eq!((inexact["exact"].as_bool(), &inexact["modules"][0]["dtype"]), (Some(false), &json!("F32")));
    let single = content(&half);
    assert_eq!(distance(&content(&bench.path("out")).deltas, &sum(&[(-1.5, &single.deltas)])), 0.0);
}

#[test]
fn a_chosen_alpha_changes_the_scale_and_not_the_change() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    stack(&[(&first, 1.0), (&second, 1.0)], &bench.path("out"), &["--alpha", "16"]).ok();
    let config = read_json(&bench.path("out").join("adapter_config.json"));
    assert_eq!((&config["lora_alpha"], &config["alpha_pattern"]), (&json!(16), &json!({})));
    let parts = [content(&first), content(&second)];
    let wanted = sum(&[(1.0, &parts[0].deltas), (1.0, &parts[1].deltas)]);
    assert!(distance(&content(&bench.path("out")).deltas, &wanted) <= EXACT);
}

#[test]
fn a_certificate_never_claims_too_little() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    let parts = [content(&first), content(&second)];
    let wanted = sum(&[(0.6, &parts[0].deltas), (1.0, &parts[1].deltas)]);
    for (at, how) in ["", "--rank 2", "--rank 4 --dtype bf16", "--max-error 0.3", "--dtype f16"].into_iter().enumerate()
    {
        let out = bench.path(&format!("out-{at}"));
        let words: Vec<&str> = how.split_whitespace().chain(["--json"]).collect();
        let report = stack(&[(&first, 0.6), (&second, 1.0)], &out, &words).ok().json();
        let claimed = report["relative_error"].as_f64().unwrap();
        let found = distance(&content(&out).deltas, &wanted);
        assert!(found <= claimed, "{how}: {found:e} is more than {claimed:e}");
        assert!(claimed <= 1.001 * found + 1e-6, "{how}: {claimed:e} is far more than {found:e}");
    }
}

#[test]
fn what_is_subtracted_from_itself_vanishes() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    let subtract =
        |a: &Path, b: &Path, out: &Path| lorakit(&[&"subtract", &a, &b, &"-o", &out, &"--energy", &"0.999999"]);
    stack(&[(&first, 1.0), (&second, 1.0)], &bench.path("both"), &[]).ok();
    subtract(&bench.path("both"), &second, &bench.path("rest")).ok();
    let (rest, wanted) = (content(&bench.path("rest")), content(&first));
    assert!(distance(&rest.deltas, &wanted.deltas) <= EXACT);
    assert_eq!(read_json(&bench.path("rest").join("adapter_config.json"))["r"], 3);
    subtract(&first, &first, &bench.path("nothing")).refused(1, &["the sum is zero in all 2 modules"]);
}

#[test]
fn a_budget_is_kept_to_the_byte() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    let out = bench.path("out");
    stack(&[(&first, 1.0), (&second, 1.0)], &out, &["--max-size", "2000"]).ok();
    let bytes = std::fs::metadata(out.join("adapter_model.safetensors")).unwrap().len();
    assert!((1600..=2000).contains(&bytes), "{bytes}");
    let parameters = stack(&[(&first, 1.0), (&second, 1.0)], &bench.path("more"), &["--max-params", "130", "--json"]);
    assert_eq!(parameters.ok().json()["parameters"], 120);
    stack(&[(&first, 1.0)], &bench.path("none"), &["--max-params", "39"]).refused(2, &["--max-params", "39", "40"]);
}

#[test]
fn a_budget_holds_biases_and_whole_tensors_as_well() {
    let bench = Bench::new();
    let make = |name: &str, seed: u64| {
        let part = |seed, shape: &[usize]| Tensor::f32(shape, &noise(seed, shape.iter().product(), 0.3));
        let config = json!({"r": 6, "lora_alpha": 6, "lora_bias": true, "modules_to_save": ["head"]});
        bench.adapter(
            name,
            config,
            &[
                ("layers.0.q_proj.lora_A.weight", part(seed, &[6, 16])),
                ("layers.0.q_proj.lora_B.weight", part(seed + 1, &[400, 6])),
                ("layers.0.q_proj.lora_B.bias", part(seed + 2, &[400])),
                ("layers.1.q_proj.lora_A.weight", part(seed + 3, &[6, 16])),
                ("layers.1.q_proj.lora_B.weight", part(seed + 4, &[400, 6])),
                ("layers.1.q_proj.lora_B.bias", part(seed + 5, &[400])),
                ("head.weight", part(9, &[30, 16])),
            ],
        )
    };
    let (first, second) = (make("first", 20), make("second", 40));
    let mut kept = 0;
    for budget in (9_000..40_000).step_by(1_111) {
        let out = bench.path(&format!("out-{budget}"));
        let words = ["--max-size", &budget.to_string(), "--json"];
        if stack(&[(&first, 1.0), (&second, 1.0)], &out, &words).code == 0 {
            let bytes = std::fs::metadata(out.join("adapter_model.safetensors")).unwrap().len();
            assert!(bytes <= budget, "{bytes} bytes of {budget}");
            kept += 1;
        }
    }
    assert!(kept > 15, "{kept} budgets were enough");
}

#[test]
fn modules_are_chosen_by_patterns() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    stack(&[(&first, 1.0), (&second, 1.0)], &bench.path("out"), &["--include", r"layers\.1"]).ok();
    assert_eq!(content(&bench.path("out")).deltas.keys().collect::<Vec<_>>(), ["layers.1.q_proj"]);
    let config = read_json(&bench.path("out").join("adapter_config.json"));
    assert_eq!(config["target_modules"], json!(["layers.1.q_proj"]));
    stack(&[(&first, 1.0)], &bench.path("weighted"), &["--weight-for", r"layers\.1=-2", "--exclude", r"layers\.0"])
        .ok();
    let mut wanted = content(&first).deltas;
    wanted.remove("layers.0.q_proj");
    assert!(distance(&content(&bench.path("weighted")).deltas, &sum(&[(-2.0, &wanted)])) <= EXACT);
    assert_eq!(read_json(&bench.path("weighted").join("lorakit.json"))["options"][r"weight_for layers\.1"], -2.0);
    let none = stack(&[(&first, 1.0)], &bench.path("none"), &["--include", "k_proj"]);
    none.refused(2, &["--include", "`k_proj` matches none", "layers.0.q_proj"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    let before = bench.listing();
    stack(&[(&first, 1.0), (&second, 1.0)], &bench.path("out"), &["--dry-run"]).ok();
    assert_eq!(bench.listing(), before);
}

#[test]
fn what_has_no_sum_is_refused_by_name() {
    let bench = Bench::new();
    let (first, second) = two(&bench);
    let root = fixtures().join("peft");
    let out = bench.path("out");
    let case = |name: &str| root.join(name).join("adapter");
    stack(&[(&case("dora-r4"), 1.0)], &out, &[])
        .refused(1, &["use_dora", "depends on the weights of the model", "--base"]);
    let llama = root.join("bases/llama-bf16");
    let with_base = |more: &[&str]| {
        let words: Vec<&str> = ["--base", llama.to_str().unwrap()].iter().chain(more).copied().collect();
        stack(&[(&case("dora-r4"), 1.0)], &out, &words)
    };
    with_base(&[]).refused(1, &["is DoRA", "full rank", "--max-error"]);
    with_base(&["--method", "ties", "--density", "0.5", "--rank", "4"])
        .refused(1, &["is DoRA", "depends on the model"]);
    stack(&[(&case("pissa-r4"), 1.0)], &out, &[]).refused(1, &["`init_lora_weights` is `pissa`", "--init-adapter"]);
    stack(&[(&case("lora-alora"), 1.0)], &out, &[]).refused(1, &["alora_invocation_tokens"]);
    stack(&[(&case("lora-r8"), 1.0), (&first, 1.0)], &bench.path("both"), &[]).ok();
    stack(&[(&case("lora-mts-tied"), 0.5)], &out, &[]).refused(1, &["weight 0.5", "depends on W", "--base"]);
    stack(&[(&first, 1.0)], &out, &["--method", "ties", "--density", "0.5"])
        .refused(2, &["`ties` needs a way to choose ranks"]);
    stack(&[(&first, 1.0)], &out, &["--density", "0.5"]).refused(2, &["--density", "belongs to ties"]);
    stack(&[(&first, 1.0)], &out, &["--noise", "--method", "ties", "--density", "0.5"])
        .refused(2, &["--noise", "`ties`", "how much is noise"]);
    with_base(&["--noise"]).refused(1, &["is DoRA", "how much is noise"]);
    stack(&[(&first, 1.0)], &out, &["--alpha", "2", "--method", "factor-average"])
        .refused(2, &["--alpha", "alpha = rank"]);
    stack(&[(&first, 1.0), (&second, 1.0)], &out, &["--method", "factor-average"])
        .refused(1, &["`layers.1.q_proj` has rank 2 in one and 3 in the other", "concat"]);
    stack(&[(&first, 1.0)], &first, &["--force"]).refused(1, &["would take the place of the input"]);
    stack(&[(&first, 1.0)], &bench.path("x.safetensors"), &[]).refused(2, &["a PEFT adapter is a directory"]);
    let wide = bench.adapter(
        "wide",
        json!({"r": 1}),
        &[
            ("layers.1.q_proj.lora_A.weight", Tensor::f32(&[1, 5], &[1.0; 5])),
            ("layers.1.q_proj.lora_B.weight", Tensor::f32(&[24, 1], &[1.0; 24])),
        ],
    );
    stack(&[(&first, 1.0), (&wide, 1.0)], &out, &[])
        .refused(1, &["one changes a matrix of [24, 16], the other a matrix of [24, 5]", "first", "wide"]);
    let subtract = |more: &[&dyn AsRef<OsStr>]| {
        let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"subtract", &"-o", &out];
        words.extend(more);
        lorakit(&words)
    };
    subtract(&[&first, &second, &"--part", &"1/2"]).refused(2, &["--part: belongs to models", "first"]);
    subtract(&[&first, &second, &"--resize-vocab"]).refused(2, &["--resize-vocab: belongs to models", "first"]);
    subtract(&[&llama, &first, &"--rank", &"2"]).refused(2, &["--rank", "what is left here is a model"]);
    assert!(!out.exists());
}

#[test]
fn untrained_factors_are_subtracted() {
    let bench = Bench::new();
    let case = fixtures().join("peft/pissa-r4");
    let (trained, untrained) = (case.join("adapter"), case.join("init"));
    stack(&[(&trained, 0.5)], &bench.path("out"), &["--init-adapter", untrained.to_str().unwrap()]).ok();
    let parts = [content(&trained), content(&untrained)];
    let wanted = sum(&[(0.5, &parts[0].deltas), (-0.5, &parts[1].deltas)]);
    assert!(distance(&content(&bench.path("out")).deltas, &wanted) <= EXACT);
}

fn check_lost(root: &Path, names: &[&str]) {
    for name in names {
        let case = root.join("peft").join(name);
        let bench = Bench::new();
        let base = root.join("peft/bases/llama-bf16");
        let other = root.join("peft/lora-r8/adapter");
        let adapters: [(&Path, f64); 2] = [(&case.join("adapter"), 0.5), (&other, 1.0)];
        stack(&adapters, &bench.path("found"), &["--base", base.to_str().unwrap()]).ok();
        stack(&adapters, &bench.path("given"), &["--init-adapter", case.join("init").to_str().unwrap()]).ok();
        let (found, given) = (content(&bench.path("found")), content(&bench.path("given")));
        // What was taken out was found in f32, by an SVD or a QR of another library.
        let error = distance(&found.deltas, &given.deltas);
        assert!(error <= 2e-5, "{name}: {error:e}");
    }
}

#[test]
fn factors_that_are_lost_are_found_in_the_model() {
    check_lost(&fixtures(), &["pissa-r4"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn factors_that_are_lost_are_found_in_the_models_of_the_reference() {
    check_lost(&reference(), &["pissa-r4", "olora-r4"]);
}

/// Case, base, and what it is stacked with: the first two lie in the fixtures.
const DORA: [(&str, &str, &str); 5] = [
    ("dora-r4", "llama-bf16", "lora-r8"),
    ("conv-dora", "tinynet-f32", "conv-lora"),
    ("dora-embed", "llama-bf16", "lora-embed"),
    ("dora-gpt2", "gpt2-f32", "gpt2-fanin"),
    ("dora-rslora-patterns", "llama-bf16", "dora-r4"),
];

fn check_dora(root: &Path, cases: &[(&str, &str, &str)]) {
    for (name, base, other) in cases {
        let bench = Bench::new();
        let (base, first, second) =
            (root.join("bases").join(base), root.join(name).join("adapter"), root.join(other).join("adapter"));
        let merge = |adapters: &[String], out: &Path| {
            let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"merge", &base, &"-o", &out, &"--dtype", &"f32"];
            words.extend(adapters.iter().map(|word| word as &dyn AsRef<OsStr>));
            lorakit(&words).ok();
            read_model(out)
        };
        // Each alone, for merges of several DoRA apply one to what the other left.
        let both = [
            merge(&[first.display().to_string()], &bench.path("a")),
            merge(&[second.display().to_string()], &bench.path("b")),
        ];
        let own = read_model(&base);
        for (at, how) in ["--max-error 1e-5", "--rank 3"].into_iter().enumerate() {
            let out = bench.path(&format!("stack-{at}"));
            let words: Vec<&str> = how.split_whitespace().chain(["--base", base.to_str().unwrap(), "--json"]).collect();
            let report = stack(&[(&first, 0.5), (&second, 1.0)], &out, &words).ok().json();
            let merged = merge(&[out.display().to_string()], &bench.path(&format!("one-{at}")));
            let (mut missed, mut size) = (0.0, 0.0);
            for (key, tensor) in merged.iter().filter(|(_, tensor)| tensor.dtype == safetensors::tensor::Dtype::F32) {
                let base = own[key].values();
                let parts = both.iter().map(|merged| merged[key].values()).collect::<Vec<_>>();
                for (at, got) in tensor.values().into_iter().enumerate() {
                    let wanted = 0.5 * (parts[0][at] - base[at]) + (parts[1][at] - base[at]);
                    missed += (got - base[at] - wanted).powi(2);
                    size += wanted.powi(2);
                }
            }
            let (found, claimed) = ((missed / size).sqrt(), report["relative_error"].as_f64().unwrap());
            // The merges that are compared round W′ to f32 themselves.
            assert!(found <= claimed + 2e-6, "{name} {how}: {found:e} is more than {claimed:e}");
            assert!(at > 0 || claimed < 2e-4, "{name} {how}: {claimed:e}");
        }
    }
}

#[test]
fn dora_is_approximated_as_well_as_is_asked() {
    check_dora(&fixtures().join("peft"), &DORA[..2]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn dora_of_the_reference_is_approximated_as_well_as_is_asked() {
    check_dora(&reference_part("peft"), &DORA);
}

#[test]
fn whole_tensors_are_kept_where_they_are_known() {
    let bench = Bench::new();
    let tied = fixtures().join("peft/lora-mts-tied/adapter");
    let other = fixtures().join("peft/lora-r8/adapter");
    stack(&[(&tied, 1.0), (&other, 0.3)], &bench.path("out"), &[]).ok();
    let (got, wanted) = (content(&bench.path("out")), content(&tied));
    assert_eq!(got.whole, wanted.whole);
    let config = read_json(&bench.path("out").join("adapter_config.json"));
    assert_eq!(config["modules_to_save"], json!(["lm_head"]));
}
