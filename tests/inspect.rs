//! `lorakit inspect`: the real program on real files. The JSON is a contract (`docs/reference/inspect-json.md`): a snapshot that
//! changes is a change of that page and of the CHANGELOG.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};

#[path = "inspect/answers.rs"]
mod answers;
#[path = "inspect/gguf.rs"]
mod gguf;

/// Columns of a terminal.
const WIDTH: usize = 80;

fn fixture(path: &str) -> String {
    format!("fixtures/{path}")
}

fn lorakit(args: &[&str]) -> String {
    let mut command = Command::cargo_bin("lorakit").unwrap();
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("inspect").args(args).assert().success();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

fn text(path: &str) -> String {
    lorakit(&[path])
}

fn facts(path: &str) -> Value {
    serde_json::from_str(&lorakit(&[path, "--json"])).unwrap()
}

fn problems(path: &str) -> Vec<String> {
    facts(path)["problems"].as_array().unwrap().iter().map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

/// A directory that holds `file` with these tensors, all zeros, and `config` beside them.
fn directory(
    file: &str,
    tensors: &[(&str, &str, &[u64], u64)],
    config: Option<(&str, Value)>,
) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    write_weights(&directory.path().join(file), tensors);
    if let Some((name, config)) = config {
        std::fs::write(directory.path().join(name), config.to_string()).unwrap();
    }
    let path = directory.path().to_str().unwrap().to_owned();
    (directory, path)
}

fn write_weights(path: &Path, tensors: &[(&str, &str, &[u64], u64)]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dtype, shape, bytes) in tensors {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]});
        header.insert((*name).to_owned(), entry);
        end += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + usize::try_from(end).unwrap(), 0);
    std::fs::write(path, file).unwrap();
}

fn adapter(tensors: &[(&str, &str, &[u64], u64)], changes: Value) -> (tempfile::TempDir, String) {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]});
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    directory("adapter_model.safetensors", tensors, Some(("adapter_config.json", config)))
}

const DOWN: (&str, &str, &[u64], u64) = ("base_model.model.a.q.lora_A.weight", "F32", &[2, 4], 32);
const UP: (&str, &str, &[u64], u64) = ("base_model.model.a.q.lora_B.weight", "F32", &[4, 2], 32);

#[track_caller]
fn assert_problem(path: &str, parts: &[&str]) {
    let found = problems(path);
    let matches = |problem: &String| parts.iter().all(|part| problem.contains(part));
    assert!(found.iter().any(matches), "none of {found:#?} has {parts:?}");
}

#[test]
fn a_checkpoint_is_described_in_json() {
    insta::assert_snapshot!(lorakit(&[&fixture("peft/bases/llama-bf16"), "--json"]));
}

#[test]
fn a_sharded_checkpoint_is_described_in_json() {
    insta::assert_snapshot!(lorakit(&[&fixture("tiny/base"), "--json"]));
}

#[test]
fn an_adapter_is_described_in_json() {
    insta::assert_snapshot!(lorakit(&[&fixture("peft/dora-r4/adapter"), "--json"]));
}

#[test]
fn an_adapter_with_frozen_copies_is_described_in_json() {
    insta::assert_snapshot!(lorakit(&[&fixture("peft/lora-embed/adapter"), "--json"]));
}

#[test]
fn tensors_are_listed_in_json_on_request() {
    let facts: Value =
        serde_json::from_str(&lorakit(&[&fixture("peft/lora-mts-tied/adapter"), "--json", "--tensors"])).unwrap();
    insta::assert_json_snapshot!(facts["tensors"]);
}

#[test]
fn several_paths_make_a_list() {
    let found = lorakit(&[&fixture("tiny/base"), &fixture("tiny/adapter"), "--json"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    let found = &found["entries"];
    assert_eq!([&found[0]["kind"], &found[1]["kind"]], ["checkpoint", "adapter"]);
}

#[test]
fn people_read_about_a_checkpoint() {
    insta::assert_snapshot!(text(&fixture("tiny/base")));
}

#[test]
fn people_read_about_a_tied_checkpoint() {
    insta::assert_snapshot!(text(&fixture("peft/bases/llama-tied-bf16")));
}

#[test]
fn people_read_about_every_kind_of_adapter() {
    let cases = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peft")).unwrap();
    let mut cases: Vec<String> = cases.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    cases.retain(|case| case != "bases");
    cases.sort();
    let texts: Vec<String> = cases.iter().map(|case| text(&fixture(&format!("peft/{case}/adapter")))).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

/// Fixtures of every dialect, and of methods other than LoRA.
fn dialects() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dialects");
    let mut cases: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    cases.sort();
    assert_eq!(cases.len(), 12, "{cases:?}");
    cases.iter().map(|case| fixture(&format!("dialects/{case}"))).collect()
}

#[test]
fn people_read_about_every_dialect() {
    let texts: Vec<String> = dialects().iter().map(|path| text(path)).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn every_dialect_is_described_in_json() {
    let found: Vec<String> = dialects().iter().map(|path| lorakit(&[path.as_str(), "--json"])).collect();
    insta::assert_snapshot!(found.join("\n"));
}

#[test]
fn every_dialect_and_method_is_named_in_json() {
    for (case, dialect, methods) in [
        ("kohya-lora-r4.safetensors", "kohya", vec!["LoRA"]),
        ("kohya-locon-r8c4.safetensors", "kohya", vec!["LoRA", "LoCon"]),
        ("lyco-loha.safetensors", "kohya", vec!["LoHa"]),
        ("lyco-lokr.safetensors", "kohya", vec!["LoKr"]),
        ("lyco-dora.safetensors", "kohya", vec!["DoRA"]),
        ("mlx-lora", "mlx", vec!["LoRA"]),
        ("adapterhub-lora", "adapterhub", vec!["LoRA"]),
        ("adapterhub-seq_bn", "adapterhub", vec!["bottleneck adapter"]),
        ("peft-ia3", "peft", vec!["IA³"]),
        ("peft-oft-b8", "peft", vec!["OFT"]),
        ("peft-prompt-tuning", "peft", vec!["prompt tuning"]),
    ] {
        let facts = facts(&fixture(&format!("dialects/{case}")));
        let found: Vec<&str> =
            facts["methods"].as_array().unwrap().iter().map(|sum| sum["name"].as_str().unwrap()).collect();
        assert_eq!((facts["dialect"].as_str().unwrap(), found), (dialect, methods), "{case}");
    }
}

#[test]
fn a_diffusers_adapter_is_described_without_a_config() {
    let tensors: [(&str, &str, &[u64], u64); 2] = [
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "F32", &[2, 4], 32),
        ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", "F32", &[4, 2], 32),
    ];
    let (_keep, path) = directory("pytorch_lora_weights.safetensors", &tensors, None);
    let facts = facts(&path);
    assert_eq!((&facts["dialect"], &facts["methods"][0]["name"]), (&json!("diffusers"), &json!("LoRA")));
    assert_eq!(facts["components"][0]["name"], "transformer");
    assert_eq!(facts["module_groups"][0]["rank"], 2);
}

#[test]
fn what_is_inserted_is_described_with_its_sizes() {
    let facts = facts(&fixture("dialects/adapterhub-seq_bn"));
    let inserted = &facts["inserted"][0];
    assert_eq!(inserted["kind"], "bottleneck adapter");
    let told = &inserted["facts"];
    assert_eq!(
        (&told["bottleneck"], &told["reduction_factor"], &told["non_linearity"]),
        (&json!(4), &json!(16), &json!("relu"))
    );
    assert_problem(&fixture("dialects/adapterhub-seq_bn"), &["cannot be merged", "not linear"]);
}

#[test]
fn tensors_are_listed_for_people_on_request() {
    insta::assert_snapshot!(lorakit(&[&fixture("tiny/adapter/adapter_model.safetensors"), "--tensors"]));
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    for path in [
        "tiny/base",
        "tiny/adapter",
        "peft/bases/mixtral-bf16",
        "peft/lora-patterns/adapter",
        "peft/gpt2-bias-all/adapter",
    ] {
        for line in text(&fixture(path)).lines() {
            assert!(line.chars().count() <= WIDTH, "{path}: {line}");
        }
    }
}

#[test]
fn adapters_written_by_peft_have_no_problems() {
    for case in [
        "conv-dora",
        "conv-lora",
        "dora-r4",
        "gpt2-bias-all",
        "lora-embed",
        "lora-mts-tied",
        "lora-patterns",
        "lora-r8",
        "lora-trainable-tokens-used",
        "mha-lora",
        "mixtral-params",
        "qwen3moe-params",
        "rslora-r4",
    ] {
        assert_eq!(problems(&fixture(&format!("peft/{case}/adapter"))), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn an_adapter_of_a_changed_base_says_so() {
    assert_problem(&fixture("peft/pissa-r4/adapter"), &["`init_lora_weights`", "`pissa", "--init-adapter"]);
}

#[test]
fn an_adapter_that_no_weight_can_hold_says_so() {
    assert_problem(&fixture("peft/lora-alora/adapter"), &["cannot be merged", "alora_invocation_tokens"]);
    assert_problem(&fixture("peft/lora-layer-replication/adapter"), &["cannot be merged", "layer_replication"]);
    assert_problem(&fixture("bad/method-fourierft"), &["cannot be merged", "`FOURIERFT`"]);
}

#[test]
fn empty_tensors_are_counted_and_named() {
    let (_keep, path) = adapter(&[(DOWN.0, "F32", &[0], 0), (UP.0, "F32", &[0], 0)], json!({}));
    assert_problem(&path, &["2 tensors without elements", "ZeRO", DOWN.0]);
    assert_eq!(facts(&path)["trainable_parameters"], 0);
}

#[test]
fn trained_biases_are_no_frozen_copies() {
    let facts = facts(&fixture("peft/gpt2-bias-all/adapter"));
    assert_eq!((&facts["whole"]["tensors"], &facts["frozen"]["tensors"]), (&json!(13), &json!(0)));
    assert_eq!(facts["trainable_parameters"], facts["parameters"]);
}

#[test]
fn a_frozen_copy_of_packed_weights_does_not_lower_the_count() {
    let copy = ("base_model.model.a.q.base_layer.weight", "U8", &[64_u64][..], 64);
    let (_keep, path) = adapter(&[DOWN, UP, copy], json!({}));
    assert_eq!(facts(&path)["trainable_parameters"], 16);
}

#[test]
fn scaled_fp8_is_told_from_other_scaled_weights() {
    let tensors: [(&str, &str, &[u64], u64); 4] = [
        ("a.weight", "F8_E4M3", &[4], 4),
        ("a.weight_scale", "F32", &[], 4),
        ("b.weight", "I8", &[2, 2], 4),
        ("b.weight_scale", "F32", &[], 4),
    ];
    let (_keep, path) = directory("model.safetensors", &tensors, None);
    assert_eq!(
        facts(&path)["quantisation"],
        json!([
            {"method": "FP8", "modules": 1, "bits": 8, "group": "one scale", "details": ["E4M3", "F32 scales"], "elements": 4},
            {"method": "compressed-tensors int-quantized", "modules": 1, "bits": 8, "group": "one scale", "details": ["F32 scales"], "elements": 4}
        ])
    );
}

#[test]
fn tensors_of_other_methods_are_not_taken_for_whole_weights() {
    let facts = facts(&fixture("bad/method-fourierft"));
    assert_eq!(facts["whole"]["tensors"], 0);
    assert_eq!(json!(facts["unknown"].as_array().unwrap().len()), facts["tensor_count"]);
}

#[test]
fn half_a_pair_is_described_as_far_as_it_goes() {
    let (_keep, path) = adapter(&[DOWN], json!({}));
    assert_problem(&path, &["cannot be used", "B (the up projection)"]);
    assert_eq!(facts(&path)["tensor_count"], 1);
}

#[test]
fn a_rank_other_than_the_configs_is_told_with_both_numbers() {
    let (_keep, path) = adapter(&[DOWN, UP], json!({"r": 8}));
    assert_problem(&path, &["1 pair of another rank", "`a.q` has 2", "config says 8"]);
}

#[test]
fn targets_and_pairs_that_do_not_meet_are_named() {
    let (_keep, path) = adapter(&[DOWN, UP], json!({"target_modules": ["k"]}));
    assert_problem(&path, &["no pair for: `k`"]);
    assert_problem(&path, &["does not name", "`a.q`"]);
    let (_keep, path) = adapter(&[DOWN, UP], json!({"target_modules": "a\\.[qk]"}));
    assert_eq!(problems(&path), Vec::<String>::new());
}

#[test]
fn modules_to_save_and_whole_tensors_are_compared() {
    let whole = ("base_model.model.b.weight", "F32", &[2_u64][..], 8);
    let (_keep, path) = adapter(&[DOWN, UP, whole], json!({"modules_to_save": ["score"]}));
    assert_problem(&path, &["`modules_to_save`", "not in the file", "`score`"]);
    assert_problem(&path, &["saved whole without being declared", "`b.weight`"]);
}

#[test]
fn magnitudes_and_use_dora_are_compared() {
    let (_keep, path) = adapter(&[DOWN, UP], json!({"use_dora": true}));
    assert_problem(&path, &["`use_dora` is set", "1 pair without magnitudes", "`a.q`"]);
}

#[test]
fn token_rows_are_compared_with_the_list_of_tokens() {
    let (_keep, path) = adapter(&[DOWN, UP], json!({"trainable_token_indices": [1, 2]}));
    assert_problem(&path, &["lists 2 trained tokens", "has 0 rows"]);
}

#[test]
fn mixed_dtypes_and_unknown_tensors_are_told() {
    let half = (UP.0, "F16", UP.2, 16);
    let odd = ("base_model.model.a.q.lora_diag", "F32", &[2_u64][..], 8);
    let (_keep, path) = adapter(&[DOWN, half, odd], json!({}));
    assert_problem(&path, &["mix dtypes: F16, F32"]);
    assert_problem(&path, &["1 tensor of unknown meaning", "lora_diag"]);
}

#[test]
fn a_path_of_the_writers_machine_is_pointed_out() {
    let (_keep, path) = adapter(&[DOWN, UP], json!({"base_model_name_or_path": "/home/me/llama"}));
    assert_problem(&path, &["base_model_name_or_path", "`/home/me/llama`"]);
}

#[test]
fn a_config_that_cannot_be_read_is_an_error() {
    let (_keep, path) = adapter(&[DOWN, UP], json!({"lora_alpha": null}));
    let output = Command::cargo_bin("lorakit").unwrap().args(["inspect", &path]).assert().code(1);
    let message = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(message.contains("`lora_alpha`: is missing"), "{message}");
}

#[test]
fn quantised_weights_are_counted_and_not_taken_for_parameters() {
    let tensors: [(&str, &str, &[u64], u64); 3] =
        [("a.q.qweight", "I32", &[2, 2], 16), ("a.q.scales", "F16", &[2], 4), ("a.k.qweight", "I32", &[2, 2], 16)];
    let (_keep, path) = directory("model.safetensors", &tensors, None);
    assert_problem(&path, &["2 weights quantised by GPTQ or AWQ"]);
    assert_problem(&path, &["`config.json` is missing"]);
    let facts = facts(&path);
    assert_eq!((&facts["parameters"], &facts["uncounted_tensors"]), (&json!(2), &json!(2)));
}

#[test]
fn an_unknown_dtype_has_bytes_but_no_elements() {
    let (_keep, path) = directory("model.safetensors", &[("x", "Q9_Z", &[7], 3)], Some(("config.json", json!({}))));
    assert_problem(&path, &["unknown dtype `Q9_Z`"]);
    assert_eq!(facts(&path)["dtypes"][0], json!({"dtype": "Q9_Z", "tensors": 1, "elements": null, "bytes": 3}));
}

#[test]
fn an_index_that_counts_wrong_and_weights_beside_it_are_told() {
    let shard = "model-00001-of-00001.safetensors";
    let index = json!({"metadata": {"total_size": 5}, "weight_map": {"x": shard}});
    let (keep, path) = directory(shard, &[("x", "F32", &[1], 4)], Some(("model.safetensors.index.json", index)));
    std::fs::write(keep.path().join("pytorch_model.bin"), "").unwrap();
    assert_problem(&path, &["`total_size` is 5", "4 bytes"]);
    assert_problem(&path, &["other weights", "`pytorch_model.bin`"]);
}

#[test]
fn a_lora_without_its_config_is_described_with_a_problem() {
    let (_keep, path) = directory("adapter_model.safetensors", &[DOWN, UP], None);
    assert_problem(&path, &["is a PEFT LoRA (one pair, rank 2)", "adapter_config.json"]);
}

#[test]
fn names_cannot_command_the_terminal() {
    let (_keep, path) = directory("model.safetensors", &[("a\u{1b}[2Jb", "F32", &[1], 4)], None);
    assert!(!lorakit(&[&path, "--tensors"]).contains('\u{1b}'));
}

#[test]
fn two_hundred_thousand_tensors_take_seconds_at_most() {
    let names: Vec<String> =
        (0..200_000).map(|at| format!("model.layers.{}.mlp.experts.{at}.w1.weight", at / 1000)).collect();
    let tensors: Vec<(&str, &str, &[u64], u64)> =
        names.iter().map(|name| (name.as_str(), "U8", &[1_u64][..], 1)).collect();
    let (_keep, path) = directory("model.safetensors", &tensors, None);
    let started = std::time::Instant::now();
    assert_eq!(facts(&path)["tensor_count"], 200_000);
    // Measured: 0.55 s in the dev profile (22 MB header); the bound only catches what is quadratic.
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn the_json_page_names_every_key() {
    let page =
        std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/reference/inspect-json.md"))
            .unwrap();
    for path in ["tiny/base", "peft/lora-embed/adapter", "dialects/lyco-loha.safetensors", "dialects/adapterhub-seq_bn"]
    {
        for key in facts(&fixture(path)).as_object().unwrap().keys() {
            assert!(page.contains(&format!("| `{key}` |")), "docs/reference/inspect-json.md lacks `{key}`");
        }
    }
}
