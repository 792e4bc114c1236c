//! Several changes of one tensor, and inputs that once went wrong without a word.

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::{Bench, Tensor, assert_close, lorakit, merge, noise, read, read_json, write};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn whole(seed: u64) -> Tensor {
    Tensor::f32(&[6, 4], &noise(seed, 24, 1.0))
}

fn merge_all(base: &std::path::Path, adapters: &[String], out: &std::path::Path) -> crate::support::Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"merge", &base];
    words.extend(adapters.iter().map(|adapter| adapter as &dyn AsRef<std::ffi::OsStr>));
    words.extend::<[&dyn AsRef<std::ffi::OsStr>; 2]>([&"-o", &out]);
    lorakit(&words)
}

fn tied(bench: &Bench, stored: bool) -> std::path::PathBuf {
    let config = json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true});
    let mut tensors = vec![(EMBEDDING, whole(1)), ("model.q_proj.weight", Tensor::f32(&[4, 4], &noise(2, 16, 1.0)))];
    if stored {
        tensors.push((HEAD, whole(1)));
    }
    bench.base(&tensors, &config)
}

#[test]
fn half_of_two_different_replacements_unties_the_head() {
    let bench = Bench::new();
    let base = tied(&bench, false);
    let config = json!({"modules_to_save": ["embed_tokens", "lm_head"]});
    let adapter = bench.adapter("a", config, &[(EMBEDDING, whole(5)), (HEAD, whole(6))]);
    merge_all(&base, &[format!("{}:0.5", adapter.display())], &bench.path("out")).ok();
    let got = read(&bench.path("out/model.safetensors"));
    let half =
        |seed| -> Vec<f64> { whole(1).values().iter().zip(whole(seed).values()).map(|(w, t)| 0.5 * (w + t)).collect() };
    assert_close(&got[EMBEDDING].values(), &half(5), 1e-6);
    assert_close(&got[HEAD].values(), &half(6), 1e-6);
}

#[test]
fn an_adapter_elsewhere_does_not_untie_what_was_trained_as_one() {
    let bench = Bench::new();
    let base = tied(&bench, false);
    let config = json!({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": true});
    let embedding = bench.adapter("e", config, &[(EMBEDDING, whole(5))]);
    let other = bench.adapter(
        "o",
        json!({}),
        &[
            ("model.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(3, 8, 1.0))),
            ("model.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(4, 8, 1.0))),
        ],
    );
    let adapters = [embedding.display().to_string(), other.display().to_string()];
    merge_all(&base, &adapters, &bench.path("out")).ok();
    let got = read(&bench.path("out/model.safetensors"));
    assert!(!got.contains_key(HEAD));
    assert_eq!(got[EMBEDDING], whole(5));
}

#[test]
fn trained_tokens_reach_a_head_that_changes_as_well() {
    let bench = Bench::new();
    let base = tied(&bench, false);
    let rows = bench.adapter(
        "rows",
        json!({"trainable_token_indices": [1]}),
        &[("model.embed_tokens.token_adapter.trainable_tokens_delta", Tensor::f32(&[1, 4], &[9.0; 4]))],
    );
    let head = bench.adapter(
        "head",
        json!({"r": 1, "lora_alpha": 1}),
        &[
            ("lm_head.lora_A.weight", Tensor::f32(&[1, 4], &[1.0; 4])),
            ("lm_head.lora_B.weight", Tensor::f32(&[6, 1], &[0.5; 6])),
        ],
    );
    merge_all(&base, &[rows.display().to_string(), head.display().to_string()], &bench.path("out")).ok();
    let got = read(&bench.path("out/model.safetensors"));
    assert_eq!(got[EMBEDDING].values()[4..8], [9.0; 4]);
    assert_close(&got[HEAD].values()[4..8], &[9.5; 4], 1e-6);
}

#[test]
fn a_stored_tie_that_breaks_is_corrected_in_the_config() {
    let bench = Bench::new();
    let base = tied(&bench, true);
    let adapter = bench.adapter(
        "a",
        json!({"r": 1, "lora_alpha": 1}),
        &[
            ("lm_head.lora_A.weight", Tensor::f32(&[1, 4], &[1.0; 4])),
            ("lm_head.lora_B.weight", Tensor::f32(&[6, 1], &[0.5; 6])),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert_eq!(read_json(&bench.path("out/config.json"))["tie_word_embeddings"], false);
    assert_eq!(read(&bench.path("out/model.safetensors"))[EMBEDDING], whole(1));
}

#[test]
fn replacements_count_from_the_base_in_any_order() {
    let bench = Bench::new();
    let base = bench.base(&[(HEAD, whole(1))], &json!({}));
    let adapter = |name: &str, seed| {
        let path = bench.adapter(name, json!({"modules_to_save": ["lm_head"]}), &[(HEAD, whole(seed))]);
        path.display().to_string()
    };
    let (a, b) = (adapter("a", 5), adapter("b", 6));
    let sum: Vec<f64> = whole(1)
        .values()
        .iter()
        .zip(whole(5).values())
        .zip(whole(6).values())
        .map(|((w, a), b)| w + (a - w) + 0.5 * (b - w))
        .collect();
    for (name, order) in [("one", [a.clone(), format!("{b}:0.5")]), ("two", [format!("{b}:0.5"), a.clone()])] {
        merge_all(&base, &order, &bench.path(name)).ok();
        assert_close(&read(&bench.path(name).join("model.safetensors"))[HEAD].values(), &sum, 1e-6);
    }
}

#[test]
fn two_new_heads_of_one_name_are_refused() {
    let bench = Bench::new();
    let base = bench.base(&[(EMBEDDING, whole(1))], &json!({}));
    let adapter = |name: &str, seed| {
        let path = bench.adapter(name, json!({"modules_to_save": ["score"]}), &[("score.weight", whole(seed))]);
        path.display().to_string()
    };
    merge_all(&base, &[adapter("a", 5), adapter("b", 6)], &bench.path("out"))
        .refused(1, &["score.weight", "/a/", "/b/"]);
}

#[test]
fn a_new_head_may_be_a_tree() {
    let bench = Bench::new();
    let base = bench.base(&[(EMBEDDING, whole(1))], &json!({}));
    let tensors = [("classifier.dense.weight", whole(2)), ("classifier.out_proj.weight", whole(3))];
    let adapter = bench.adapter("a", json!({"modules_to_save": ["classifier"]}), &tensors);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert_eq!(read(&bench.path("out/model.safetensors"))["classifier.out_proj.weight"], whole(3));
}

#[test]
fn a_buffer_of_whole_numbers_is_replaced_as_it_is() {
    let bench = Bench::new();
    let count = |value: u8| Tensor { dtype: Dtype::I64, shape: vec![], data: vec![value, 0, 0, 0, 0, 0, 0, 0] };
    let base = bench.base(&[("bn.num_batches_tracked", count(1)), (EMBEDDING, whole(1))], &json!({}));
    let adapter = bench.adapter("a", json!({"modules_to_save": ["bn"]}), &[("bn.num_batches_tracked", count(7))]);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert_eq!(read(&bench.path("out/model.safetensors"))["bn.num_batches_tracked"], count(7));
}

#[test]
fn one_shard_with_an_index_keeps_its_index() {
    let bench = Bench::new();
    let base = bench.path("base");
    write(&base.join("model-00001-of-00001.safetensors"), &[(HEAD, whole(1))]);
    let index = json!({"metadata": {"total_size": 96}, "weight_map": {HEAD: "model-00001-of-00001.safetensors"}});
    std::fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let adapter = bench.adapter("a", json!({"modules_to_save": ["lm_head"]}), &[(HEAD, whole(2))]);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert_eq!(read_json(&bench.path("out/model.safetensors.index.json")), index);
}

#[test]
fn a_pattern_that_matches_nothing_is_refused() {
    let bench = Bench::new();
    let base = bench.base(&[(HEAD, whole(1))], &json!({}));
    let adapter = bench.adapter("a", json!({"modules_to_save": ["lm_head"]}), &[(HEAD, whole(2))]);
    for option in ["--include=typo", "--exclude=typo", "--weight-for=typo=2"] {
        merge(&base, &adapter, &bench.path("out"), &[option]).refused(2, &["typo", "lm_head"]);
    }
}

#[test]
fn scaled_fp8_is_replaced_by_value() {
    let bench = Bench::new();
    let codes = Tensor { dtype: Dtype::F8_E4M3, shape: vec![2, 2], data: vec![0x38, 0x30, 0x38, 0x30] };
    let base = bench.base(&[("l.weight", codes), ("l.weight_scale", Tensor::f32(&[], &[0.01]))], &json!({}));
    let trained = Tensor::f32(&[2, 2], &[0.02, 0.01, -0.04, 0.08]);
    let adapter = bench.adapter("a", json!({"modules_to_save": ["l"]}), &[("l.weight", trained)]);
    merge(&base, &adapter, &bench.path("out"), &["--keep-format", "--rounding", "peft-safe"])
        .refused(1, &["l.weight", "keeps its format"]);
    merge(&base, &adapter, &bench.path("out"), &["--keep-format"]).ok();
    // 2, 1, −4 and 8 times the scale.
    assert_eq!(read(&bench.path("out/model.safetensors"))["l.weight"].data, [0x40, 0x38, 0xC8, 0x50]);
    merge(&base, &adapter, &bench.path("plain"), &[]).ok();
    let plain = read(&bench.path("plain/model.safetensors"));
    assert_eq!(plain.keys().collect::<Vec<_>>(), ["l.weight"]);
}

#[test]
fn fp8_with_scales_nobody_knows_is_refused() {
    let bench = Bench::new();
    let codes = Tensor { dtype: Dtype::F8_E4M3, shape: vec![4, 4], data: vec![0x38; 16] };
    let base = bench.base(&[("l.weight", codes), ("l.scale", Tensor::f32(&[], &[0.01]))], &json!({}));
    let adapter = bench.adapter(
        "a",
        json!({}),
        &[
            ("l.lora_A.weight", Tensor::f32(&[2, 4], &noise(1, 8, 1.0))),
            ("l.lora_B.weight", Tensor::f32(&[4, 2], &noise(2, 8, 1.0))),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &["l.weight", "l.scale"]);
}

#[test]
fn shapes_that_make_no_sense_are_refused_without_a_panic() {
    let empty = |shape: &[usize]| Tensor { dtype: Dtype::F32, shape: shape.to_vec(), data: Vec::new() };
    let pair = |down: &[usize], up: &[usize]| {
        let tensor = |shape: &[usize], seed| Tensor::f32(shape, &noise(seed, shape.iter().product(), 1.0));
        [("x.lora_A.weight", tensor(down, 1)), ("x.lora_B.weight", tensor(up, 2))]
    };
    for (weight, down, up, config) in [
        (Tensor::f32(&[], &[1.0]), &[1, 1, 1][..], &[1, 1][..], json!({"r": 1})),
        (empty(&[8, 0, 3]), &[2, 5], &[8, 2], json!({})),
        (Tensor::f32(&[16, 8], &noise(3, 128, 1.0)), &[2, 8], &[16, 2, 2], json!({})),
        (empty(&[0, 8, 4]), &[2, 4], &[8, 2], json!({"target_parameters": ["x.weight"]})),
    ] {
        let bench = Bench::new();
        let base = bench.base(&[("x.weight", weight)], &json!({}));
        let adapter = bench.adapter("a", config, &pair(down, up));
        merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &["x."]);
    }
}

#[test]
fn tensors_without_elements_pass_through_a_cast() {
    let bench = Bench::new();
    let huge = Tensor { dtype: Dtype::F32, shape: vec![1 << 62, 0], data: Vec::new() };
    let base = bench.base(&[("empty", huge), (HEAD, whole(1))], &json!({}));
    let adapter = bench.adapter("a", json!({"modules_to_save": ["lm_head"]}), &[(HEAD, whole(2))]);
    merge(&base, &adapter, &bench.path("out"), &["--dtype", "bf16", "--cast-all"]).ok();
    assert_eq!(read(&bench.path("out/model.safetensors"))["empty"].shape, [1 << 62, 0]);
}

#[test]
fn a_stack_is_landed_whatever_else_the_module_holds() {
    let bench = Bench::new();
    let stack = Tensor::f32(&[2, 4, 6], &[0.0; 48]);
    let bias = Tensor::f32(&[2, 4], &[0.0; 8]);
    let base = bench.base(&[("l.mlp.experts.down_proj", stack), ("l.mlp.experts.down_proj_bias", bias)], &json!({}));
    let config =
        json!({"r": 1, "lora_alpha": 1, "target_parameters": ["experts.down_proj"], "modules_to_save": ["experts"]});
    let adapter = bench.adapter(
        "a",
        config,
        &[
            ("l.mlp.experts.down_proj_bias", Tensor::f32(&[2, 4], &[3.0; 8])),
            ("l.mlp.experts.lora_A.weight", Tensor::f32(&[2, 6], &[1.0; 12])),
            ("l.mlp.experts.lora_B.weight", Tensor::f32(&[4, 2], &[2.0; 8])),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let got = read(&bench.path("out/model.safetensors"));
    assert_eq!(got["l.mlp.experts.down_proj"].values(), vec![2.0; 48]);
    assert_eq!(got["l.mlp.experts.down_proj_bias"].values(), vec![3.0; 8]);
}

#[test]
fn a_missing_expert_is_named() {
    let bench = Bench::new();
    let base = bench.base(&[("l.mlp.experts.0.gate_proj.weight", whole(1))], &json!({}));
    let pair = |path: &str, down: &[usize], up: &[usize], config| {
        let tensor = |shape: &[usize], seed| Tensor::f32(shape, &noise(seed, shape.iter().product(), 1.0));
        let names = [format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight")];
        bench.adapter(&path.replace('.', "-"), config, &[(&names[0], tensor(down, 1)), (&names[1], tensor(up, 2))])
    };
    let expert = pair("l.mlp.experts.0.up_proj", &[2, 4], &[6, 2], json!({}));
    merge(&base, &expert, &bench.path("out"), &[]).refused(1, &["experts.0.up_proj"]);
    let stack = pair("l.mlp.experts", &[2, 4], &[12, 2], json!({"target_parameters": ["experts.gate_up_proj"]}));
    merge(&base, &stack, &bench.path("out"), &[]).refused(1, &["experts.0.up_proj.weight"]);
}

#[test]
fn a_parameter_finds_its_own_alpha() {
    let bench = Bench::new();
    let base = bench.base(&[("l.mlp.gate.weight", Tensor::f32(&[4, 4], &[0.0; 16]))], &json!({}));
    let adapter = bench.adapter(
        "a",
        json!({"r": 1, "lora_alpha": 1, "target_parameters": ["mlp.gate.weight"], "alpha_pattern": {"mlp.gate.weight": 20}}),
        &[
            ("l.mlp.gate.lora_A.weight", Tensor::f32(&[1, 4], &[1.0; 4])),
            ("l.mlp.gate.lora_B.weight", Tensor::f32(&[4, 1], &[1.0; 4])),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert_eq!(read(&bench.path("out/model.safetensors"))["l.mlp.gate.weight"].values(), vec![20.0; 16]);
}
