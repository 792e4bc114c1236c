//! `resize`: the best factors of fewer ranks, zeros for more, by every way of choosing ranks.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::dense::deltas;
use crate::support::{Bench, Outcome, Tensor, lorakit, noise, read, read_json, reference, snapshot, write};

fn resize(adapter: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"resize", &adapter, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

/// What `--json` says of a single adapter.
fn resized(adapter: &Path, out: &Path, more: &[&str]) -> Value {
    let words: Vec<&str> = more.iter().copied().chain(["--json"]).collect();
    let report = resize(adapter, out, &words).ok().json();
    assert_eq!(report["adapters"][0]["outcome"], "resized", "{report}");
    report["adapters"][0].clone()
}

fn ranks(report: &Value) -> Vec<u64> {
    report["modules"].as_array().unwrap().iter().map(|module| module["rank"].as_u64().unwrap()).collect()
}

/// A pair `[out, in]` of which ΔW = scale · B·A has these singular values, times the scale.
fn diagonal(module: &str, shape: (usize, usize), values: &[f32]) -> [(String, Tensor); 2] {
    let rank = values.len();
    let mut up = vec![0.0; shape.0 * rank];
    let mut down = vec![0.0; rank * shape.1];
    for (at, value) in values.iter().enumerate() {
        up[at * rank + at] = 1.0;
        down[at * shape.1 + at] = *value;
    }
    [
        (format!("{module}.lora_A.weight"), Tensor::f32(&[rank, shape.1], &down)),
        (format!("{module}.lora_B.weight"), Tensor::f32(&[shape.0, rank], &up)),
    ]
}

fn adapter(bench: &Bench, name: &str, config: Value, pairs: &[(String, Tensor)]) -> PathBuf {
    let pairs: Vec<(&str, Tensor)> = pairs.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    bench.adapter(name, config, &pairs)
}

/// Two modules with known spectra, scale 1: 8, 4, 2, 1 and 3, 3, 1, 1, the second twice as expensive.
fn known(bench: &Bench, name: &str) -> PathBuf {
    let mut pairs = diagonal("l.0.a_proj", (6, 4), &[8.0, 4.0, 2.0, 1.0]).to_vec();
    pairs.extend(diagonal("l.0.b_proj", (10, 10), &[3.0, 3.0, 1.0, 1.0]));
    adapter(bench, name, json!({"r": 4, "lora_alpha": 4, "target_modules": ["a_proj", "b_proj"]}), &pairs)
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn the_error_is_the_smallest_possible_and_never_above_what_is_reported() {
    let reference = reference();
    let bench = Bench::new();
    for case in
        ["lora-all-r4", "lora-patterns", "lora-rslora-patterns", "conv-lora", "lora-embed", "mha-lora", "gpt2-fanin"]
    {
        let input = reference.join("peft").join(case).join("adapter");
        let out = bench.path(case);
        let report = resized(&input, &out, &["--rank", "2"]);
        let (before, after) = (deltas(&input), deltas(&out));
        assert_eq!(before.len(), after.len());
        for module in report["modules"].as_array().unwrap() {
            let name = module["module"].as_str().unwrap();
            let ((_, exact), (rank, stored)) = (&before[name], &after[name]);
            assert_eq!((*rank, &module["rank"]), (2, &json!(2)), "{case} {name}");
            let (error, best, norm) = (exact.distance(stored), exact.best_error(2), exact.norm());
            assert!(error <= best + 1e-6 * norm, "{case} {name}: {error:e}, the best is {best:e}");
            let reported = module["relative_error"].as_f64().unwrap();
            assert!(
                error <= reported * norm * (1.0 + 1e-9),
                "{case} {name}: {error:e} of {norm:e}, reported {reported:e}"
            );
            assert!(reported * norm <= best + 3e-6 * norm, "{case} {name}: reported {reported:e}");
            for (value, exact) in module["singular_values"].as_array().unwrap().iter().zip(exact.singular_values()) {
                assert!((value.as_f64().unwrap() - exact).abs() <= 1e-6 * norm, "{case} {name}");
            }
        }
    }
}

#[test]
fn a_larger_rank_adds_zeros_and_changes_nothing() {
    let bench = Bench::new();
    let pair = |module: &str, seed| {
        [
            (format!("{module}.lora_A.weight"), Tensor::new(Dtype::BF16, &[2, 5], &noise(seed, 10, 1.0))),
            (format!("{module}.lora_B.weight"), Tensor::new(Dtype::BF16, &[3, 2], &noise(seed + 1, 6, 1.0))),
        ]
    };
    for (name, config) in [
        ("plain", json!({"r": 2, "lora_alpha": 7})),
        ("rslora", json!({"r": 2, "lora_alpha": 7, "use_rslora": true})),
        ("patterns", json!({"r": 3, "lora_alpha": 7, "rank_pattern": {"a": 2, "b": 2}, "alpha_pattern": {"b": 3}})),
    ] {
        let input = adapter(&bench, name, config, &[pair("l.0.a", 1), pair("l.0.b", 3)].concat());
        let out = bench.path(&format!("{name}-out"));
        resize(&input, &out, &["--rank", "4"]).ok();
        let (before, after) = (deltas(&input), deltas(&out));
        for (module, (_, exact)) in &before {
            let (rank, got) = &after[module];
            assert_eq!(*rank, 4);
            assert!(exact.distance(got) <= 1e-15 * exact.norm(), "{name} {module}");
        }
        let (old, new) = (read(&input.join("adapter_model.safetensors")), read(&out.join("adapter_model.safetensors")));
        let key = "base_model.model.l.0.a.lora_A.weight";
        assert_eq!(new[key].data[..20], old[key].data[..]);
        assert_eq!(new[key].data[20..], [0; 20]);
        assert_eq!(read_json(&out.join("adapter_config.json"))["use_rslora"], false);
    }
}

#[test]
fn every_policy_chooses_the_ranks_it_should() {
    let bench = Bench::new();
    let input = known(&bench, "known");
    // ‖a‖² = 85, ‖b‖² = 20; a unit of rank is 10 numbers of a, 20 of b.
    for (at, (options, expected)) in [
        (&["--rank", "3"][..], [3, 3]),
        (&["--rank", "3", "--max-rank", "2"], [2, 2]),
        (&["--energy", "0.94"], [2, 3]),
        (&["--energy", "0.94", "--max-rank", "2"], [2, 2]),
        (&["--max-error", "0.25"], [2, 3]),
        (&["--rank-method", "sv_ratio", "--rank-param", "3"], [2, 2]),
        (&["--rank-method", "sv_ratio", "--rank-param", "3", "--compat", "kohya"], [3, 3]),
        (&["--rank-method", "sv_fro", "--rank-param", "0.9"], [2, 2]),
        (&["--rank-method", "sv_cumulative", "--rank-param", "0.9"], [3, 4]),
        (&["--max-params", "30"], [3, 0]),
        (&["--max-params", "40"], [2, 1]),
        (&["--max-params", "60"], [2, 2]),
        (&["--max-params", "70"], [3, 2]),
        (&["--max-params", "70", "--max-rank", "2"], [2, 2]),
        (&["--max-params", "70", "--uniform-rank"], [2, 2]),
        (&["--energy", "0.94", "--uniform-rank"], [3, 3]),
        (&["--energy", "0.94", "--include", "a_proj"], [2, 4]),
        (&["--noise"], [4, 4]),
    ]
    .into_iter()
    .enumerate()
    {
        let report = resized(&input, &bench.path(&format!("{at}")), options);
        let expected: Vec<u64> = expected.into_iter().filter(|rank| *rank > 0).collect();
        assert_eq!(ranks(&report), expected, "{options:?}");
        let parameters = report["parameters"].as_u64().unwrap();
        if options[0] == "--max-params" {
            assert!(parameters <= options[1].parse().unwrap(), "{options:?}: {parameters}");
        }
        deltas(&bench.path(&format!("{at}")));
    }
}

#[test]
fn noise_is_what_rounding_the_factors_explains() {
    const RANK: usize = 3;
    const STORED: usize = 8;
    let bench = Bench::new();
    let (rows, cols) = (120, 90);
    let (b, a) = (noise(1, rows * RANK, 1.0), noise(2, RANK * cols, 1.0));
    // Rows of a Hadamard matrix: R·Rᵀ = 8, so (B·R)·(Rᵀ·A) has rank 3 in factors of 8.
    let sign = |row: usize, col: usize| if (row & col).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let up = |at: usize| (0..RANK).map(|k| b[at / STORED * RANK + k] * sign(k, at % STORED)).sum::<f32>();
    let down = |at: usize| (0..RANK).map(|k| sign(k, at / cols) * a[k * cols + at % cols]).sum::<f32>();
    let up: Vec<f32> = (0..rows * STORED).map(up).collect();
    let down: Vec<f32> = (0..STORED * cols).map(down).collect();
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let pairs = [
            ("l.0.q.lora_A.weight".to_owned(), Tensor::new(dtype, &[STORED, cols], &down)),
            ("l.0.q.lora_B.weight".to_owned(), Tensor::new(dtype, &[rows, STORED], &up)),
        ];
        let input = adapter(&bench, &format!("{dtype:?}"), json!({"r": 8, "lora_alpha": 1}), &pairs);
        let report = resized(&input, &bench.path(&format!("{dtype:?}-out")), &["--noise"]);
        assert_eq!(ranks(&report), [3], "{dtype:?}: {}", report["modules"][0]["singular_values"]);
    }
}

#[test]
fn a_size_is_that_of_the_whole_file() {
    let bench = Bench::new();
    let config = json!({"r": 8, "lora_alpha": 8, "modules_to_save": ["head"]});
    let mut pairs = Vec::new();
    for layer in 0..6 {
        let module = format!("l.{layer}.q_proj");
        pairs.push((format!("{module}.lora_A.weight"), Tensor::f32(&[8, 40], &noise(layer, 320, 1.0))));
        pairs.push((format!("{module}.lora_B.weight"), Tensor::f32(&[30, 8], &noise(layer + 50, 240, 1.0))));
    }
    pairs.push(("head.weight".into(), Tensor::f32(&[10, 10], &noise(9, 100, 1.0))));
    let input = adapter(&bench, "a", config, &pairs);
    for budget in [4000, 6000, 9000, 20_000] {
        let out = bench.path(&format!("{budget}"));
        resize(&input, &out, &["--max-size", &budget.to_string()]).ok();
        let bytes = fs::metadata(out.join("adapter_model.safetensors")).unwrap().len();
        assert!(bytes <= budget && (budget == 20_000 || bytes + 600 > budget), "{bytes} of {budget}");
    }
    resize(&input, &bench.path("x"), &["--max-size", "1000"]).refused(2, &["--max-size", "1000 bytes are not enough"]);
}

#[test]
fn the_result_is_served_with_one_rank_and_one_alpha_where_that_is_asked_for() {
    let bench = Bench::new();
    let mut pairs = diagonal("l.0.a", (6, 6), &[4.0, 2.0, 1.0]).to_vec();
    pairs.extend(diagonal("l.0.b", (6, 6), &[3.0]));
    let config = json!({"r": 3, "lora_alpha": 6, "rank_pattern": {"b": 1}, "alpha_pattern": {"b": 5}});
    let input = adapter(&bench, "a", config, &pairs);
    let out = bench.path("out");
    resize(&input, &out, &["--energy", "1", "--uniform-rank"]).ok();
    let config = read_json(&out.join("adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(3), &json!(3)));
    assert_eq!((&config["rank_pattern"], &config["alpha_pattern"]), (&json!({}), &json!({})));
    for (module, (_, exact)) in deltas(&input) {
        assert!(exact.distance(&deltas(&out)[&module].1) <= 1e-6 * exact.norm());
    }
}

#[test]
fn an_alpha_changes_the_factors_and_not_the_change() {
    let bench = Bench::new();
    let input = known(&bench, "a");
    let out = bench.path("out");
    resize(&input, &out, &["--rank", "2", "--alpha", "16"]).ok();
    assert_eq!(read_json(&out.join("adapter_config.json"))["lora_alpha"], 16);
    let (_, a) = &deltas(&out)["l.0.a_proj"];
    assert!((a.norm() - 80.0_f64.sqrt()).abs() < 1e-5);
}

#[test]
fn everything_else_is_kept() {
    let bench = Bench::new();
    let mut pairs = diagonal("l.0.q_proj", (4, 4), &[2.0, 1.0]).to_vec();
    pairs.push(("l.0.q_proj.lora_B.bias".into(), Tensor::f32(&[4], &[1.0, 2.0, 3.0, 4.0])));
    pairs.push(("head.weight".into(), Tensor::new(Dtype::F16, &[3, 4], &noise(5, 12, 1.0))));
    let config = json!({
        "r": 2, "lora_alpha": 6, "lora_bias": true, "modules_to_save": ["head"], "target_modules": "^.*q_proj$",
        "something_else": {"of": ["a", "later", "version"]}, "base_model_name_or_path": "somewhere/else",
    });
    let input = adapter(&bench, "a", config, &pairs);
    fs::write(input.join("README.md"), "a card").unwrap();
    fs::create_dir(input.join("checkpoint-1")).unwrap();
    fs::write(input.join("checkpoint-1/trainer_state.json"), "{}").unwrap();
    let weights = input.join("adapter_model.safetensors");
    let named = read(&weights);
    let views = named.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect::<Vec<_>>();
    write(&weights, &views);
    let out = bench.path("out");
    resize(&input, &out, &["--rank", "1"]).ok();
    let (old, new) = (read_json(&input.join("adapter_config.json")), read_json(&out.join("adapter_config.json")));
    for (key, value) in old.as_object().unwrap() {
        match key.as_str() {
            "r" | "lora_alpha" => assert_eq!(new[key], 1),
            _ => assert_eq!(&new[key], value, "{key}"),
        }
    }
    let got = read(&out.join("adapter_model.safetensors"));
    assert_eq!(got["base_model.model.head.weight"], named["base_model.model.head.weight"]);
    // The scale was 3; now it is 1.
    assert_eq!(got["base_model.model.l.0.q_proj.lora_B.bias"].values(), [3.0, 6.0, 9.0, 12.0]);
    let files: Vec<PathBuf> = snapshot(&out).into_keys().collect();
    assert_eq!(
        files,
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "lorakit.json"].map(PathBuf::from)
    );
}

#[test]
fn what_nothing_is_left_of_is_left_out_of_the_config_as_well() {
    let bench = Bench::new();
    let mut pairs = diagonal("l.0.a", (4, 4), &[2.0, 1.0]).to_vec();
    pairs.extend(diagonal("l.0.b", (4, 4), &[0.0, 0.0]));
    let config = json!({"target_modules": ".*", "layers_to_transform": [0]});
    let input = adapter(&bench, "a", config, &pairs);
    let out = bench.path("out");
    let report = resized(&input, &out, &["--energy", "0.9"]);
    assert_eq!(report["vanished"], json!(["l.0.b"]));
    assert_eq!(read(&out.join("adapter_model.safetensors")).len(), 2);
    let config = read_json(&out.join("adapter_config.json"));
    assert_eq!((&config["target_modules"], &config["layers_to_transform"]), (&json!(["a"]), &Value::Null));
    // A rank that is asked for is given.
    resize(&input, &bench.path("two"), &["--rank", "1"]).ok();
    assert_eq!(read(&bench.path("two/adapter_model.safetensors")).len(), 4);
}

#[test]
fn the_dtype_is_kept_or_given() {
    let bench = Bench::new();
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let pairs = [
            ("l.0.q.lora_A.weight".to_owned(), Tensor::new(dtype, &[4, 30], &noise(1, 120, 1.0))),
            ("l.0.q.lora_B.weight".to_owned(), Tensor::new(dtype, &[20, 4], &noise(2, 80, 1.0))),
        ];
        let input = adapter(&bench, &format!("{dtype:?}"), json!({"r": 4, "lora_alpha": 4}), &pairs);
        let key = "base_model.model.l.0.q.lora_A.weight";
        let out = bench.path(&format!("{dtype:?}-kept"));
        let report = resized(&input, &out, &["--rank", "3"]);
        assert_eq!(read(&out.join("adapter_model.safetensors"))[key].dtype, dtype);
        let rounding = report["modules"][0]["stored_error"].as_f64().unwrap();
        assert_eq!(rounding > 1e-5, dtype != Dtype::F32, "{rounding:e}");
        let out = bench.path(&format!("{dtype:?}-f32"));
        resize(&input, &out, &["--rank", "4", "--dtype", "f32"]).ok();
        assert_eq!(read(&out.join("adapter_model.safetensors"))[key].dtype, Dtype::F32);
        let exact = &deltas(&input)["l.0.q"].1;
        assert!(exact.distance(&deltas(&out)["l.0.q"].1) <= 1e-6 * exact.norm());
    }
}

#[test]
fn values_beyond_the_dtype_are_refused() {
    let bench = Bench::new();
    let mut pairs = diagonal("l.0.q", (4, 4), &[1e12, 1.0]).to_vec();
    pairs.rotate_left(0);
    let input = adapter(&bench, "a", json!({"r": 2, "lora_alpha": 2}), &pairs);
    resize(&input, &bench.path("out"), &["--rank", "1", "--dtype", "f16"])
        .refused(1, &["l.0.q.lora_A.weight", "beyond the range of F16", "--dtype f32"]);
}

#[test]
fn experts_of_a_stack_get_one_rank_and_each_its_best_factors() {
    const EXPERTS: usize = 3;
    let bench = Bench::new();
    let (rank, out_dim, in_dim) = (2, 5, 4);
    let a = Tensor::f32(&[EXPERTS * rank, in_dim], &noise(1, EXPERTS * rank * in_dim, 1.0));
    let b = Tensor::f32(&[out_dim, rank * EXPERTS], &noise(2, out_dim * rank * EXPERTS, 1.0));
    let config = json!({"r": 2, "lora_alpha": 2, "target_modules": [], "target_parameters": ["mlp.experts.down_proj"]});
    let path = "l.0.mlp.experts";
    let input = adapter(
        &bench,
        "a",
        config,
        &[(format!("{path}.lora_A.weight"), a.clone()), (format!("{path}.lora_B.weight"), b.clone())],
    );
    // Expert e of a pair: rows e·r … of A, every EXPERTS-th column of B from e on.
    let expert = |down: &Tensor, up: &Tensor, rank: usize, e: usize| {
        let (down, up) = (down.values(), up.values());
        let value = |at: usize| {
            let (row, col) = (at / in_dim, at % in_dim);
            (0..rank).map(|k| up[row * rank * EXPERTS + k * EXPERTS + e] * down[(e * rank + k) * in_dim + col]).sum()
        };
        crate::dense::Dense { rows: out_dim, cols: in_dim, values: (0..out_dim * in_dim).map(value).collect() }
    };
    for new in [1, 3] {
        let out = bench.path(&format!("{new}"));
        resize(&input, &out, &["--rank", &new.to_string()]).ok();
        let got = read(&out.join("adapter_model.safetensors"));
        let key = |role: &str| format!("base_model.model.{path}.{role}.weight");
        let (down, up) = (&got[&key("lora_A")], &got[&key("lora_B")]);
        assert_eq!((&down.shape[..], &up.shape[..]), (&[EXPERTS * new, in_dim][..], &[out_dim, new * EXPERTS][..]));
        for e in 0..EXPERTS {
            let (exact, stored) = (expert(&a, &b, rank, e), expert(down, up, new, e));
            assert!(exact.distance(&stored) <= exact.best_error(new) + 1e-6 * exact.norm(), "rank {new}, expert {e}");
        }
        assert_eq!(read_json(&out.join("adapter_config.json"))["r"], new);
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_threads() {
    let bench = Bench::new();
    let mut pairs = Vec::new();
    for layer in 0..9 {
        let module = format!("l.{layer}.q");
        pairs.push((format!("{module}.lora_A.weight"), Tensor::f32(&[8, 70], &noise(layer, 560, 1.0))));
        pairs.push((format!("{module}.lora_B.weight"), Tensor::f32(&[50, 8], &noise(layer + 50, 400, 1.0))));
    }
    let input = adapter(&bench, "a", json!({"r": 8, "lora_alpha": 8}), &pairs);
    for (name, policy) in [("energy", ["--energy", "0.8"]), ("budget", ["--max-params", "4000"])] {
        let outputs = [("1", "1GiB"), ("2", "1MiB"), ("5", "30kB")].map(|(threads, memory)| {
            let out = bench.path(&format!("{name}{threads}"));
            let words = [policy[0], policy[1], "-j", threads, "--max-memory", memory];
            resize(&input, &out, &words).ok();
            snapshot(&out)
        });
        assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]), "{name}");
    }
}

#[test]
fn a_folder_is_done_file_by_file_and_what_is_done_is_skipped() {
    let bench = Bench::new();
    let folder = bench.path("all");
    for name in ["one", "two"] {
        fs::rename(known(&bench, name), {
            fs::create_dir_all(&folder).unwrap();
            folder.join(name)
        })
        .unwrap();
    }
    fs::rename(bench.adapter("x", json!({"peft_type": "FOURIERFT"}), &[]), folder.join("other")).unwrap();
    let out = bench.path("out");
    let outcomes = |report: &Value| -> Vec<String> {
        let all = report["adapters"].as_array().unwrap().iter();
        all.map(|adapter| adapter["outcome"].as_str().unwrap().to_owned()).collect()
    };
    let first = resize(&folder, &out, &["--rank", "2", "--json"])
        .refused(1, &["1 of 3 adapters could not be resized", "a second run does only what is missing"]);
    assert_eq!(outcomes(&first.json()), ["resized", "failed", "resized"]);
    assert!(first.json()["adapters"][1]["problem"].as_str().unwrap().contains("FOURIERFT"));
    fs::remove_dir_all(folder.join("other")).unwrap();
    fs::remove_dir_all(out.join("two")).unwrap();
    let before = snapshot(&out);
    let second = resize(&folder, &out, &["--rank", "2", "--json"]).ok();
    assert_eq!(outcomes(&second.json()), ["done", "resized"]);
    assert_eq!(before[Path::new("one/lorakit.json")], snapshot(&out)[Path::new("one/lorakit.json")]);
    // Another rank is another result.
    resize(&folder, &out, &["--rank", "3"]).refused(1, &["2 of 2 adapters"]);
    let text = resize(&folder, &out, &["--rank", "3", "--force"]).ok().stdout;
    assert!(text.lines().any(|line| line.contains("one") && line.contains("4 → 3")), "{text}");
    assert_eq!(deltas(&out.join("two"))["l.0.a_proj"].0, 3);
}

#[test]
fn one_of_a_folder_is_still_a_folder_and_equal_names_are_refused() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("all")).unwrap();
    fs::create_dir_all(bench.path("more")).unwrap();
    fs::rename(known(&bench, "one"), bench.path("all/one")).unwrap();
    fs::rename(known(&bench, "one"), bench.path("more/one")).unwrap();
    resize(&bench.path("all"), &bench.path("out"), &["--rank", "1"]).ok();
    assert!(bench.path("out/one/adapter_config.json").is_file());
    let both = [bench.path("all"), bench.path("more")];
    let words: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"resize", &both[0], &both[1], &"-o", &bench.path("x"), &"--rank", &"1"];
    lorakit(&words).refused(1, &["would be called `one`"]);
    fs::create_dir(bench.path("empty")).unwrap();
    resize(&bench.path("empty"), &bench.path("x"), &["--rank", "1"]).refused(1, &["adapter_config.json"]);
}

#[test]
fn what_cannot_be_resized_is_refused_by_name() {
    let bench = Bench::new();
    let input = known(&bench, "a");
    let out = bench.path("out");
    resize(&input, &out, &[]).refused(2, &["--rank", "--energy", "--max-size"]);
    resize(&input, &out, &["--rank", "2", "--alpha", "0"]).refused(2, &["--alpha", "`0`"]);
    resize(&input, &out, &["--rank", "2", "--include", "nowhere"]).refused(2, &["--include", "matches none"]);
    resize(&input, &input, &["--rank", "2", "--force"]).refused(1, &["would take the place of the input"]);
    resize(&input, &out, &["--max-params", "5"]).refused(2, &["--max-params", "5 are left for pairs", "takes 10"]);
    let pairs = diagonal("l.0.q", (4, 4), &[2.0, 1.0]);
    let mut magnitude = pairs.to_vec();
    magnitude.push(("l.0.q.lora_magnitude_vector".into(), Tensor::f32(&[4], &[1.0; 4])));
    let dora = adapter(&bench, "dora", json!({"use_dora": true}), &magnitude);
    resize(&dora, &out, &["--rank", "1"]).refused(1, &["DoRA", "`use_dora`"]);
    let pissa = adapter(&bench, "pissa", json!({"init_lora_weights": "pissa"}), &pairs);
    resize(&pissa, &out, &["--rank", "1"]).refused(1, &["`init_lora_weights` is `pissa`"]);
    let mut infinite = pairs.to_vec();
    infinite[0].1 = Tensor::f32(&[2, 4], &[f32::INFINITY; 8]);
    let infinite = adapter(&bench, "infinite", json!({}), &infinite);
    resize(&infinite, &out, &["--rank", "1"]).refused(1, &["l.0.q.lora_A.weight", "element 0 is inf"]);
    assert!(!out.exists());
}

#[test]
fn a_dry_run_reports_and_writes_nothing() {
    let bench = Bench::new();
    let input = known(&bench, "a");
    let before = bench.listing();
    let text = resize(&input, &bench.path("out"), &["--rank", "2", "--dry-run"]).ok().stdout;
    assert!(text.contains("nothing was written") && text.contains("rank 4 → 2"), "{text}");
    assert_eq!(bench.listing(), before);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn untrained_factors_are_taken_out_first() {
    let reference = reference();
    let bench = Bench::new();
    let (trained, untrained) = (reference.join("peft/pissa-r4/adapter"), reference.join("peft/pissa-r4/init"));
    let out = bench.path("out");
    let untrained_text = untrained.to_str().unwrap();
    resize(&trained, &out, &["--rank", "8", "--init-adapter", untrained_text]).ok();
    assert_eq!(read_json(&out.join("adapter_config.json"))["init_lora_weights"], true);
    let (after, trained, untrained) = (deltas(&out), deltas(&trained), deltas(&untrained));
    for (module, (_, trained)) in trained {
        let mut exact = trained.clone();
        exact.values.iter_mut().zip(&untrained[&module].1.values).for_each(|(value, other)| *value -= other);
        assert!(exact.distance(&after[&module].1) <= 1e-6 * trained.norm(), "{module}");
    }
}

/// A kohya file under PEFT's names: `<name>.lora_down.weight`, `.lora_up.weight`, `.alpha`.
fn as_peft(bench: &Bench, file: &Path) -> PathBuf {
    let tensors = read(file);
    let (mut pairs, mut patterns, mut by_rank) = (Vec::new(), serde_json::Map::new(), serde_json::Map::new());
    for (key, tensor) in &tensors {
        let (name, role) = key.split_once('.').unwrap();
        match role {
            "lora_down.weight" => {
                by_rank.insert(name.into(), tensor.shape[0].into());
                pairs.push((format!("{name}.lora_A.weight"), tensor.clone()));
            }
            "lora_up.weight" => pairs.push((format!("{name}.lora_B.weight"), tensor.clone())),
            _ => {
                patterns.insert(name.into(), tensor.values()[0].into());
            }
        }
    }
    adapter(bench, "kohya", json!({"r": 1, "rank_pattern": by_rank, "alpha_pattern": patterns}), &pairs)
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn kohyas_singular_values_and_ranks_are_repeated() {
    let reference = reference();
    let bench = Bench::new();
    let case = read_json(&reference.join("kohya/resize/case.json"));
    let input = as_peft(&bench, &reference.join(case["input"].as_str().unwrap()));
    for (name, options) in [
        ("fixed-r4", "--rank 4"),
        ("fixed-r4-conv2", "--rank 4 --conv-rank 2"),
        ("svratio-3", "--max-rank 8 --rank-method sv_ratio --rank-param 3"),
        ("svfro-0.9", "--max-rank 8 --rank-method sv_fro --rank-param 0.9"),
        ("svcum-0.7", "--max-rank 8 --rank-method sv_cumulative --rank-param 0.7"),
    ] {
        let words: Vec<&str> = options.split(' ').chain(["--compat", "kohya"]).collect();
        let report = resized(&input, &bench.path(name), &words);
        let expected = &case["cases"][name];
        let modules = report["modules"].as_array().unwrap();
        assert_eq!(modules.len(), expected["rank_and_alpha"].as_object().unwrap().len());
        for module in modules {
            let path = module["module"].as_str().unwrap();
            assert_eq!(module["rank"], expected["rank_and_alpha"][path][0], "{name} {path}");
            let theirs = case["singular_values_f64"][path].as_array().unwrap();
            for (ours, theirs) in module["singular_values"].as_array().unwrap().iter().zip(theirs) {
                let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
                assert!((ours - theirs).abs() <= 1e-4 * theirs, "{name} {path}: {ours} and {theirs}");
            }
        }
        let error = report["relative_error"].as_f64().unwrap();
        let best = expected["optimal_rel_err_at_these_ranks"].as_f64().unwrap();
        assert!((error - best).abs() <= 1e-5, "{name}: {error}, the best is {best}");
    }
}
