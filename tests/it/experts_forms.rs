//! Every form of adapters of experts is read as it is meant, written as PEFT reads it today, and translated into the others and
//! back. Truth: `fixtures/experts`, and all of `../shared/reference/experts` where that is at hand.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{
    Bench, Outcome, Tensor, Tensors, cases, fixtures, lorakit, merge, noise, off_by, read, read_json, read_model,
    reference_part,
};

/// The largest difference, as a share of the largest weight.
const TOLERANCE: f64 = 2e-6;

/// Cases that nothing in their files decides, and what decides them.
const ASKED: [(&str, [&str; 2]); 3] = [
    ("params-gptoss-down", ["--expert-sides", "straight"]),
    ("params-gptoss-down-v4", ["--expert-sides", "swapped"]),
    ("skewed-merged-exception", ["--expert-order", "rank_major"]),
];

fn root() -> PathBuf {
    fixtures().join("experts")
}

fn adapter_of(case: &Path) -> PathBuf {
    let directory = case.join("adapter");
    if directory.is_dir() { directory } else { case.join("adapter.gguf") }
}

fn asked(name: &str) -> &'static [&'static str] {
    ASKED.iter().find(|(case, _)| *case == name).map_or(&[], |(_, options)| options)
}

/// The weight of one expert's projection, `[E, 2I, H]` gate over up or `[E, H, I]`, as one tensor in the form of a fused base.
fn stacked(out: &Tensors, wanted: &str) -> Option<Tensor> {
    if let Some(own) = out.get(wanted) {
        return Some(own.clone());
    }
    let (list, name) = wanted.rsplit_once('.')?;
    let names: &[&str] = if name == "down_proj" { &["down_proj"] } else { &["gate_proj", "up_proj"] };
    let tensor = |expert: usize, part: &str| out.get(&format!("{list}.{expert}.{part}.weight"));
    let count = (0..).take_while(|expert| tensor(*expert, names[0]).is_some()).count();
    let first = tensor(0, names[0])?;
    let parts = (0..count).flat_map(|expert| names.iter().map(move |name| (expert, *name)));
    let data = parts.flat_map(|(expert, name)| tensor(expert, name).expect("a projection").data.clone()).collect();
    let shape = vec![count, first.shape[0] * names.len(), first.shape[1]];
    Some(Tensor { dtype: first.dtype, shape, data })
}

/// `[E, a, b]` as `[E, b, a]`.
fn turned(tensor: &Tensor) -> Tensor {
    let &[count, rows, cols] = tensor.shape.as_slice() else { panic!("a stack") };
    let width = tensor.data.len() / (count * rows * cols);
    let mut data = Vec::with_capacity(tensor.data.len());
    for stack in tensor.data.chunks_exact(rows * cols * width) {
        for col in 0..cols {
            (0..rows).for_each(|row| data.extend_from_slice(&stack[(row * cols + col) * width..][..width]));
        }
    }
    Tensor { dtype: tensor.dtype, shape: vec![count, cols, rows], data }
}

/// Every tensor that is expected is there, and is what is expected.
#[track_caller]
fn assert_is(out: &Path, expected: &Path, what: &str) {
    let (out, expected) = (read_model(out), read(expected));
    let mut held = 0;
    for (name, wanted) in &expected {
        let Some(mut got) = stacked(&out, name) else { continue };
        if got.shape != wanted.shape && got.shape.len() == 3 {
            // One name, two layouts: qwen3_vl_moe.
            got = turned(&got);
        }
        let (difference, size) = off_by(&got, wanted);
        assert!(difference <= TOLERANCE * size.max(1.0), "{what}: `{name}` is off by {difference}");
        held += 1;
    }
    assert!(held > 0, "{what}: nothing of {:?} is in the output", expected.keys());
}

fn merged(bench: &Bench, base: &Path, adapter: &Path, name: &str, more: &[&str]) -> PathBuf {
    let out = bench.path(name);
    merge(base, adapter, &out, &[&["--dtype", "f32", "--force"], more].concat()).ok();
    out
}

/// The bases of a case that are at hand.
fn bases_of(root: &Path, about: &Value) -> Vec<PathBuf> {
    let mut names: Vec<&str> = ["v4", "v5"].iter().filter_map(|layout| about["bases"][layout].as_str()).collect();
    names.dedup();
    names.into_iter().map(|name| root.join(name)).filter(|base| base.is_dir()).collect()
}

#[test]
fn every_form_is_merged_as_it_is_meant_into_bases_of_any_layout() {
    let all = cases(&root());
    assert_eq!(all.len(), 14, "{all:?}");
    for case in all {
        let (bench, folder) = (Bench::new(), root().join(&case));
        let bases = bases_of(&root(), &read_json(&folder.join("case.json")));
        assert!(!bases.is_empty(), "{case}");
        for base in bases {
            let out = merged(&bench, &base, &adapter_of(&folder), "out", asked(&case));
            assert_is(&out, &folder.join("expected-f32.safetensors"), &format!("{case} on {}", base.display()));
        }
    }
}

#[test]
fn what_nothing_decides_is_refused_with_the_option_that_does() {
    for (case, words) in [
        (
            "params-gptoss-down-v4",
            ["`peft_version` is `0.21.2`", "`gpt_oss`", "--expert-sides straight", "--expert-sides swapped"],
        ),
        ("skewed-merged-exception", ["`grouped_by_expert`", "2.81 times", "0.41 times", "--expert-order rank_major"]),
    ] {
        let (bench, folder) = (Bench::new(), root().join(case));
        let base = bases_of(&root(), &read_json(&folder.join("case.json"))).remove(0);
        merge(&base, &adapter_of(&folder), &bench.path("out"), &[]).refused(1, &words);
        assert!(!bench.path("out").exists());
    }
}

#[test]
fn an_option_that_no_adapter_needs_or_that_the_shapes_contradict_is_refused() {
    let (bench, base) = (Bench::new(), root().join("bases/qwen3moe-v5"));
    let plain = root().join("split-qwen3moe/adapter");
    merge(&base, &plain, &bench.path("out"), &["--expert-order", "rank_major"])
        .refused(2, &["--expert-order", "no adapter"]);
    let stacks = root().join("unsloth-legacy/adapter");
    merge(&base, &stacks, &bench.path("out"), &["--expert-sides", "swapped"]).refused(1, &["the shapes say straight"]);
}

/// The verbs that make a new adapter of one.
fn made(bench: &Bench, verb: &str, adapter: &Path) -> (Outcome, PathBuf) {
    let out = bench.path(verb);
    let outcome = match verb {
        "stack" => lorakit(&[&"stack", &adapter, &"-o", &out]),
        "subtract" => {
            let nothing = format!("{}:0", adapter.display());
            lorakit(&[&"subtract", &adapter, &nothing, &"-o", &out])
        }
        "resize" => lorakit(&[&"resize", &adapter, &"--rank", &"16", &"-o", &out]),
        "convert" => lorakit(&[&"convert", &adapter, &"--to", &"peft", &"-o", &out]),
        other => panic!("{other}"),
    };
    (outcome, out)
}

/// Says that PEFT of today reads the factors as they lie.
#[track_caller]
fn assert_declared(adapter: &Path, what: &str) {
    let config = read_json(&adapter.join("adapter_config.json"));
    let version = config["peft_version"].as_str().unwrap_or_default();
    assert!(["0.19.1", "0.21.2"].contains(&version), "{what}: {version}");
    assert_eq!(config["lora_B_layout"], "rank_major", "{what}");
    assert!(config.get("unsloth_fused_expert_lora").is_none(), "{what}");
    if config["auto_mapping"].is_object() {
        // PEFT keeps this one when it saves again, and drops the other.
        assert_eq!(config["auto_mapping"]["lora_B_layout"], "rank_major", "{what}");
        assert!(config["auto_mapping"].get("unsloth_fused_expert_lora").is_none(), "{what}");
    }
}

/// ΔW of a stack by PEFT's rule of today: A `[E·r, in]`, B `[out, r·E]` with the expert running fastest.
fn by_todays_rule(adapter: &Path, key: &str, base: &Tensor, scale: f64) -> Tensor {
    let tensors = read_model(adapter);
    let factor = |name: &str| &tensors[&format!("base_model.model.{key}.{name}.weight")];
    let (a, b) = (factor("lora_A"), factor("lora_B"));
    let &[count, outputs, inputs] = base.shape.as_slice() else { panic!("a stack") };
    let rank = a.shape[0] / count;
    assert_eq!((a.shape[1], b.shape[0]), (inputs, outputs), "the factors are straight");
    let (down, up, mut values) = (a.values(), b.values(), base.values());
    for (at, value) in values.iter_mut().enumerate() {
        let (expert, row, col) = (at / (outputs * inputs), at / inputs % outputs, at % inputs);
        let product = |k: usize| up[row * rank * count + k * count + expert] * down[(expert * rank + k) * inputs + col];
        *value += scale * (0..rank).map(product).sum::<f64>();
    }
    Tensor::f32(&base.shape, &values.iter().map(|value| *value as f32).collect::<Vec<_>>())
}

#[test]
fn every_verb_reads_what_unsloth_packed_and_writes_what_peft_reads() {
    let base = root().join("bases/qwen3moe-v5");
    let weights = read_model(&base);
    for case in ["unsloth-legacy", "unsloth-legacy-018", "unsloth-mixed", "skewed-bare-grouped"] {
        let (bench, folder) = (Bench::new(), root().join(case));
        for verb in ["stack", "subtract", "resize", "convert"] {
            let what = format!("{case}, {verb}");
            let (outcome, made) = made(&bench, verb, &adapter_of(&folder));
            outcome.ok();
            assert_declared(&made, &what);
            let out = merged(&bench, &base, &made, "out", &[]);
            assert_is(&out, &folder.join("expected-f32.safetensors"), &what);
            let config = read_json(&made.join("adapter_config.json"));
            let scale = config["lora_alpha"].as_f64().unwrap() / config["r"].as_f64().unwrap();
            for (name, wanted) in read(&folder.join("expected-f32.safetensors")) {
                let nested = if name.ends_with("gate_up_proj") { "mlp.experts.base_layer" } else { "mlp.experts" };
                let got = by_todays_rule(&made, &format!("model.layers.0.{nested}"), &weights[&name], scale);
                let (difference, size) = off_by(&got, &wanted);
                assert!(difference <= 2.0 * TOLERANCE * size.max(1.0), "{what}: `{name}` is off by {difference}");
            }
        }
    }
}

#[test]
fn inspect_names_the_reading_and_what_tells() {
    let facts = |case: &str| lorakit(&[&"inspect", &adapter_of(&root().join(case)), &"--json", &"--check"]).ok().json();
    let order = |case: &str, at: usize| {
        let facts = facts(case);
        let one = &facts["experts"][at];
        [&one["parameter"], &one["order"], &one["order_by"], &one["sides"]]
            .map(|value| value.as_str().unwrap_or("-").to_owned())
    };
    let unsloth = "trained by Unsloth before its markers";
    assert_eq!(order("unsloth-legacy-018", 0), ["down_proj", "grouped_by_expert", unsloth, "swapped"]);
    assert_eq!(order("unsloth-mixed", 1), ["gate_up_proj", "grouped_by_expert", "Unsloth's marker", "straight"]);
    assert_eq!(order("unsloth-mixed", 0), ["down_proj", "rank_major", "the config says so", "straight"]);
    assert_eq!(order("skewed-bare-grouped", 0)[2], "by the values: no marker says so");
    assert!(facts("split-qwen3moe").get("experts").is_none());
    let page = lorakit(&[&"inspect", &adapter_of(&root().join("unsloth-mixed"))]).ok().stdout;
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("expert columns grouped by expert (Unsloth's marker)"), "{page}");
    let exception = facts("skewed-merged-exception")["problems"].to_string();
    assert!(exception.contains("--expert-order") || exception.contains("the values say otherwise"), "{exception}");
}

/// A random stack pair for E = 4 experts of `[8, 6]` at rank 2: nothing in the values tells its order.
fn noise_adapter(bench: &Bench, config: Value) -> PathBuf {
    let tensors: Vec<(String, Tensor)> = [("base_layer.", 16, 6, 1), ("", 6, 8, 3)]
        .into_iter()
        .flat_map(|(nested, outputs, inputs, seed)| {
            let key = |factor: &str| format!("model.layers.0.mlp.experts.{nested}lora_{factor}.weight");
            let down = Tensor::f32(&[8, inputs], &noise(seed, 8 * inputs, 1.0));
            let up = Tensor::f32(&[outputs, 8], &noise(seed + 1, outputs * 8, 1.0));
            [(key("A"), down), (key("B"), up)]
        })
        .collect();
    let borrowed: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let mut all = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [], "peft_version": "0.21.2",
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    });
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    bench.adapter("noise", all, &borrowed)
}

#[test]
fn a_marker_is_believed_where_the_values_say_nothing() {
    for (config, order) in [
        (json!({}), "rank_major"),
        (json!({"lora_B_layout": "grouped_by_expert"}), "grouped_by_expert"),
        (json!({"lora_B_layout": "rank_major", "auto_mapping": {"lora_B_layout": "grouped_by_expert"}}), "rank_major"),
        (json!({"auto_mapping": {"lora_B_layout": "grouped_by_expert"}}), "grouped_by_expert"),
        (json!({"lora_B_layout": "grouped_by_expert", "unsloth_fused_expert_lora": {"parameters": {}}}), "rank_major"),
        (json!({"unsloth_fused_expert_lora": {"parameters": {"down_proj": {"lora_B_layout": "mixed"}}}}), "rank_major"),
        (
            json!({"auto_mapping": {"unsloth_fixed": true, "parent_library": "transformers.models.glm4_moe.x"}}),
            "grouped_by_expert",
        ),
        (
            json!({"auto_mapping": {"unsloth_fixed": true, "parent_library": "transformers.models.olmoe.x"}}),
            "rank_major",
        ),
        (
            json!({"auto_mapping": {"unsloth_fixed": false, "parent_library": "transformers.models.glm4_moe.x"}}),
            "rank_major",
        ),
    ] {
        let bench = Bench::new();
        let adapter = noise_adapter(&bench, config.clone());
        let facts = lorakit(&[&"inspect", &adapter, &"--json", &"--check"]).ok().json();
        assert_eq!(facts["experts"][0]["order"], order, "{config}");
    }
}

#[test]
fn unsloth_files_that_do_not_name_the_model_are_refused_with_both_readings() {
    let bench = Bench::new();
    let adapter = noise_adapter(&bench, json!({"auto_mapping": {"unsloth_fixed": true}}));
    for verb in ["stack", "subtract", "resize", "convert"] {
        let (outcome, out) = made(&bench, verb, &adapter);
        outcome.refused(1, &["rank_major", "grouped_by_expert", "--expert-order"]);
        assert!(!out.exists(), "{verb}");
    }
    let out = bench.path("told");
    lorakit(&[&"stack", &adapter, &"--expert-order", &"rank_major", &"-o", &out]).ok();
    let (before, after) = (read_model(&adapter), read_model(&out));
    assert_eq!(before, after, "rank_major is what PEFT has");
}

fn convert(adapter: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &adapter, &"--to", &"peft", &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

#[test]
fn forms_become_each_other_and_back_bit_for_bit() {
    for (case, base) in [
        ("split-qwen3moe", "qwen3moe-v4"),
        ("unsloth-legacy", "qwen3moe-v5"),
        ("unsloth-legacy-018", "qwen3moe-v5"),
        ("params-gptoss-019", "gptoss"),
    ] {
        let (bench, adapter) = (Bench::new(), adapter_of(&root().join(case)));
        let base = root().join("bases").join(base);
        let to = |from: &Path, form: &str, name: &str| {
            let out = bench.path(name);
            convert(from, &out, &["--experts", form, "--base", base.to_str().unwrap()]).ok();
            out
        };
        let is_split = case.starts_with("split");
        let (one, other) = if is_split { ("per-expert", "fused") } else { ("fused", "per-expert") };
        let first = to(&adapter, one, "first");
        let second = to(&first, other, "second");
        let third = to(&second, one, "third");
        assert_eq!(read_model(&first), read_model(&third), "{case}");
        assert_ne!(read_model(&first).keys().collect::<Vec<_>>(), read_model(&second).keys().collect::<Vec<_>>());
        if is_split {
            assert_eq!(read_model(&adapter), read_model(&third), "{case}");
        }
        for form in [&first, &second, &third] {
            let out = merged(&bench, &base, form, "out", &[]);
            assert_is(&out, &root().join(case).join("expected-f32.safetensors"), case);
        }
    }
}

#[test]
fn servers_get_every_expert_and_both_stacks() {
    let bench = Bench::new();
    let base = root().join("bases/qwen3moe-v4");
    let base_text = base.to_str().unwrap();
    let whole = root().join("split-qwen3moe/adapter");
    // Down of two experts only.
    let part = bench.path("part");
    convert(&whole, &part, &["--include", r"experts\.[13]\.down_proj"]).ok();
    let flat = bench.path("flat");
    convert(&part, &flat, &["--experts", "vllm-2d", "--base", base_text]).ok();
    let names: Vec<String> = read_model(&flat).into_keys().collect();
    assert_eq!(names.len(), 2 * 4 * 3 * 2, "layers, experts, projections, factors: {names:?}");
    let deep = bench.path("deep");
    convert(&part, &deep, &["--experts", "vllm-3d", "--base", base_text]).ok();
    assert_eq!(read_model(&deep).len(), 2 * 2 * 2, "layers, stacks, factors");
    assert_declared(&deep, "vllm-3d");
    // What is not changed is copied as it is stored.
    let values = |out: &Path| -> Vec<(String, Vec<f64>)> {
        read_model(out).into_iter().map(|(name, tensor)| (name, tensor.values())).collect()
    };
    let wanted = values(&merged(&bench, &base, &part, "wanted", &[]));
    for form in [&flat, &deep] {
        assert!(values(&merged(&bench, &base, form, "out", &[])) == wanted, "{}", form.display());
    }
    convert(&part, &bench.path("unknown"), &["--experts", "fused"])
        .refused(1, &["some experts are missing", "--base PATH"]);
}

#[test]
fn forms_that_make_no_sense_are_refused() {
    let (bench, adapter) = (Bench::new(), root().join("unsloth-legacy/adapter"));
    convert(&adapter, &bench.path("out"), &["--experts", "2d"]).refused(2, &["per-expert, fused, vllm-2d, vllm-3d"]);
    lorakit(&[&"convert", &adapter, &"--to", &"mlx", &"--experts", &"fused", &"-o", &bench.path("out")])
        .refused(2, &["--experts", "mlx"]);
    let base = root().join("bases/qwen3moe-v5");
    lorakit(&[&"convert", &base, &"--experts", &"fused", &"-o", &bench.path("out")]).refused(2, &["is a checkpoint"]);
    let dora = root().join("split-qwen3moe-dora/adapter");
    convert(&dora, &bench.path("out"), &["--experts", "fused"]).refused(1, &["magnitudes"]);
}

#[test]
fn mlx_gets_one_tensor_for_every_projection_of_a_layer() {
    let bench = Bench::new();
    for (case, base, list) in
        [("unsloth-legacy", "qwen3moe-v5", "mlp.switch_mlp"), ("bnb-gptoss", "gptoss", "mlp.experts")]
    {
        let (base, out) = (root().join("bases").join(base), bench.path(case));
        lorakit(&[&"convert", &adapter_of(&root().join(case)), &"--to", &"mlx", &"--base", &base, &"-o", &out]).ok();
        let tensors = read_model(&out);
        let gate = &tensors[&format!("model.layers.0.{list}.gate_proj.lora_a")];
        assert_eq!((gate.shape.len(), gate.shape[0]), (3, 4), "{case}");
        let merged = merged(&bench, &base, &out, "out", &[]);
        assert_is(&merged, &root().join(case).join("expected-f32.safetensors"), case);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_case_of_the_reference_is_merged_into_both_layouts() {
    let root = reference_part("experts");
    let all = cases(&root);
    assert!(all.len() >= 63, "{} cases", all.len());
    for case in all {
        let (bench, folder) = (Bench::new(), root.join(&case));
        let about = read_json(&folder.join("case.json"));
        for base in bases_of(&root, &about) {
            if !asked(&case).is_empty() {
                merge(&base, &adapter_of(&folder), &bench.path("refused"), &[]).refused(1, &["--expert-"]);
            }
            let out = merged(&bench, &base, &adapter_of(&folder), "out", asked(&case));
            let expected = folder.join(about["expected"].as_str().unwrap());
            assert_is(&out, &expected, &format!("{case} on {}", base.display()));
        }
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_case_of_the_reference_means_the_same_in_every_form() {
    let root = reference_part("experts");
    for case in cases(&root) {
        let (bench, folder) = (Bench::new(), root.join(&case));
        let about = read_json(&folder.join("case.json"));
        // Magnitudes have no place in a stack; nothing tells how the others lie, whatever form they have.
        if case.ends_with("-dora") || case.starts_with("params-gptoss-down") || case == "skewed-merged-exception" {
            continue;
        }
        for base in bases_of(&root, &about) {
            for form in ["per-expert", "fused"] {
                let made = bench.path(form);
                convert(&adapter_of(&folder), &made, &["--experts", form, "--force", "--base", base.to_str().unwrap()])
                    .ok();
                let out = merged(&bench, &base, &made, "out", &[]);
                let expected = folder.join(about["expected"].as_str().unwrap());
                assert_is(&out, &expected, &format!("{case} as {form} on {}", base.display()));
            }
        }
    }
}
