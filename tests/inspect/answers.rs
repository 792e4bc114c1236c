//! Folders, bases, values, training metadata: what is told when more is asked for than one header.

use std::fs;
use std::path::Path;
use std::time::Instant;

use assert_cmd::Command;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use unicode_width::UnicodeWidthStr;

use super::{WIDTH, adapter, directory, fixture, lorakit, problems, write_weights};

/// A tensor of f32 with its values.
type Tensor<'a> = (&'a str, &'a [u64], Vec<f32>);

/// Writes a safetensors file with these tensors, in this order.
fn write(path: &Path, metadata: &Value, tensors: &[Tensor<'_>]) {
    let mut header = json!({"__metadata__": metadata});
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header[*name] = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
    }
    let header = header.to_string();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    fs::write(path, file).unwrap();
}

/// An adapter directory of rank 2 and scale 2 with these tensors.
fn with_values(tensors: &[Tensor<'_>]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]});
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    write(&folder.path().join("adapter_model.safetensors"), &json!({"format": "pt"}), tensors);
    folder
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&lorakit(args)).unwrap()
}

const DOWN: &str = "base_model.model.a.q.lora_A.weight";
const UP: &str = "base_model.model.a.q.lora_B.weight";

/// B·A = 3·e₁e₁ᵀ + 1·e₂e₃ᵀ of [3, 4].
fn known_pair() -> Vec<Tensor<'static>> {
    vec![
        (DOWN, &[2, 4], vec![1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        (UP, &[3, 2], vec![2.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
    ]
}

fn close(value: &Value, wanted: f64) -> bool {
    (value.as_f64().unwrap() - wanted).abs() < 1e-6 * wanted.abs()
}

#[test]
fn a_folder_is_a_table_and_a_list() {
    let folder = fixture("peft/lora-r8");
    let table = lorakit(&[&folder]);
    assert!(table.contains(&format!(" in {folder}/: no problems found\n")), "{table}");
    let row = table.lines().find(|line| line.ends_with(" adapter")).unwrap();
    assert!(row.contains("PEFT LoRA") && row.contains(" 8 "), "{row}");
    let list = json_of(&[&folder, "--json"]);
    let adapters = list["entries"].as_array().unwrap().iter().filter(|one| one["kind"] == "adapter").count();
    assert_eq!(adapters, 1);
}

#[test]
fn what_cannot_be_read_in_a_folder_is_a_line_and_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    write_weights(&folder.path().join("good.safetensors"), &[("x", "F32", &[1], 4)]);
    fs::write(folder.path().join("bad.safetensors"), "no").unwrap();
    let text = lorakit(&[text_of(folder.path())]);
    assert!(text.contains("good.safetensors") && text.contains("error"), "{text}");
    let list = json_of(&[text_of(folder.path()), "--json"]);
    let error = list["entries"].as_array().unwrap().iter().find(|one| one["kind"] == "error").unwrap();
    assert!(error["error"].as_str().unwrap().contains("bad.safetensors"), "{error}");
}

#[test]
fn a_named_path_that_fails_is_told_last_and_counts() {
    let good = fixture("peft/lora-r8/adapter");
    let output = Command::cargo_bin("lorakit").unwrap().args(["inspect", &good, "not/there"]).assert().code(1);
    let (out, err) = (&output.get_output().stdout, &output.get_output().stderr);
    assert!(String::from_utf8_lossy(out).contains("PEFT LoRA"));
    assert!(String::from_utf8_lossy(err).contains("not/there: no such path"));
}

#[test]
fn a_pattern_stands_for_what_matches_it() {
    let list = json_of(&[&fixture("peft/rslora*/adapter"), "--json"]);
    assert_eq!(list["entries"].as_array().unwrap().len(), 1);
    let output = Command::cargo_bin("lorakit").unwrap().args(["inspect", "no/such/*.x"]).assert().code(2);
    assert!(String::from_utf8_lossy(&output.get_output().stderr).contains("`no/such/*.x` matches nothing"));
}

#[test]
fn an_adapter_is_a_share_of_its_base_and_every_module_has_a_place() {
    let base = fixture("peft/bases/llama-bf16");
    let facts = json_of(&[&fixture("peft/lora-r8/adapter"), "--base", &base, "--json"]);
    let fit = &facts["base"];
    let share = facts["trainable_parameters"].as_f64().unwrap() / fit["parameters"].as_f64().unwrap();
    assert!(close(&fit["share"], share) && fit["named"] == true, "{fit}");
    assert_eq!((&fit["unplaced"], &fit["misfit"]), (&json!([]), &Value::Null));
    let text = lorakit(&[&fixture("peft/lora-r8/adapter"), "--base", &base]);
    assert!(text.contains(" % of the 103 k of"), "{text}");
}

#[test]
fn modules_without_a_place_in_the_base_are_named() {
    let base = fixture("peft/bases/gpt2-bf16");
    let facts = json_of(&[&fixture("peft/lora-r8/adapter"), "--base", &base, "--json"]);
    assert_eq!(facts["base"]["unplaced"].as_array().unwrap().len(), facts["tensor_count"].as_u64().unwrap() as usize);
    let problems = facts["problems"].to_string();
    assert!(problems.contains("without a place in") && problems.contains("lora_A"), "{problems}");
}

#[test]
fn a_base_at_hand_is_counted_without_being_named() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture("peft/bases/llama-bf16"));
    let down = (DOWN, "F32", &[2_u64, 4][..], 32);
    let up = (UP, "F32", &[4_u64, 2][..], 32);
    let (_keep, path) = adapter(&[down, up], json!({"base_model_name_or_path": text_of(&base)}));
    let fit = &json_of(&[&path, "--json"])["base"];
    assert_eq!((&fit["named"], &fit["estimated"], &fit["parameters"]), (&json!(false), &json!(false), &json!(102_720)));
    let only_config = tempfile::tempdir().unwrap();
    fs::copy(base.join("config.json"), only_config.path().join("config.json")).unwrap();
    let (_keep, path) = adapter(&[down, up], json!({"base_model_name_or_path": text_of(only_config.path())}));
    let fit = &json_of(&[&path, "--json"])["base"];
    assert_eq!((&fit["estimated"], &fit["parameters"]), (&json!(true), &json!(102_720)));
}

#[test]
fn singular_values_are_those_of_the_scaled_product() {
    let folder = with_values(&known_pair());
    let facts = json_of(&[text_of(folder.path()), "--spectrum", "--tensors", "--json"]);
    let one = &facts["spectrum"]["each"][0];
    assert!(close(&one["singular_values"][0], 6.0) && close(&one["singular_values"][1], 2.0), "{one}");
    assert!(close(&one["frobenius"], 40_f64.sqrt()) && close(&one["stable_rank"], 40.0 / 36.0), "{one}");
    // p = ¾, ¼.
    let entropy = -(0.75_f64 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln());
    assert!(close(&one["effective_rank"], entropy.exp()), "{one}");
    assert_eq!((&one["k90"], &one["k99"]), (&json!(1), &json!(2)));
    assert!(close(&one["balance"], 5_f64.sqrt() / 3.25_f64.sqrt()), "{one}");
}

#[test]
fn a_base_gives_the_size_of_the_change_in_relation_to_the_weight() {
    let (base, folder) = (tempfile::tempdir().unwrap(), with_values(&known_pair()));
    write(&base.path().join("model.safetensors"), &json!({}), &[("a.q.weight", &[3, 4], vec![10.0; 12])]);
    let args = [text_of(folder.path()), "--spectrum", "--base", text_of(base.path()), "--json"];
    let fit = &json_of(&args)["base"];
    let wanted = 40_f64.sqrt() / 1200_f64.sqrt();
    assert!(close(&fit["relative"], wanted) && close(&fit["norms"][0]["relative"], wanted), "{fit}");
    assert_eq!(fit["norms"][0]["tensor"], "a.q.weight");
}

#[test]
fn zeros_and_values_that_are_not_finite_are_found_when_values_are_read() {
    let mut tensors = known_pair();
    tensors[1].2 = vec![0.0; 6];
    tensors.push(("base_model.model.b.q.lora_A.weight", &[2, 1], vec![f32::NAN, 1.0]));
    tensors.push(("base_model.model.b.q.lora_B.weight", &[1, 2], vec![1.0, 1.0]));
    let folder = with_values(&tensors);
    let values = &json_of(&[text_of(folder.path()), "--check", "--json"])["values"];
    assert_eq!(
        (&values["zero"], &values["not_finite"]),
        (&json!([UP]), &json!(["base_model.model.b.q.lora_A.weight"]))
    );
    let spectrum = &json_of(&[text_of(folder.path()), "--spectrum", "--json"])["spectrum"];
    assert_eq!((&spectrum["zero"], &spectrum["skipped"][0]["path"]), (&json!(["a.q"]), &json!("b.q")));
    assert_eq!(problems(text_of(folder.path())), Vec::<String>::new());
}

/// What sd-scripts writes about a run, in short.
fn kohya_metadata() -> Value {
    json!({
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "16",
        "ss_learning_rate": "0.0001",
        "ss_training_started_at": "1709164800.25",
        "ss_dataset_dirs": "{\"10_someone\": {\"n_repeats\": 10}}",
        "ss_tag_frequency": "{\"10_someone\": {\"漢字\": 7, \"a cat\": 12}}",
        "ss_sd_model_name": "C:/models/base.safetensors",
    })
}

#[test]
fn training_metadata_is_told_by_topic_and_its_privacy_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    write(&path, &kohya_metadata(), &[("lora_unet_x.alpha", &[], vec![4.0])]);
    let facts = json_of(&[text_of(&path), "--json"]);
    assert_eq!(facts["training"]["tags"][0], json!({"tag": "a cat", "count": 12}));
    assert_eq!(facts["training"]["optimiser"], json!({"ss_learning_rate": 0.0001}));
    let keys: Vec<&str> = facts["privacy"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["ss_dataset_dirs", "ss_sd_model_name", "ss_tag_frequency"]);
    let text = lorakit(&[text_of(&path)]);
    for part in [
        "a cat (12), 漢字 (7)",
        "from 2024-02-29 00:00:00 UTC",
        "lr 0.0001",
        "privacy",
        "tells about people or machines",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.width() <= WIDTH || line.contains("lora.safetensors")), "{text}");
}

#[test]
fn hashes_are_those_of_the_tensors_in_the_order_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let (left, right) = (vec![1.0_f32, 2.0], vec![3.0_f32]);
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let hash = |parts: &[&[f32]]| {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(bytes(part)));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    // In the file `b` comes before `a`.
    let metadata = json!({"sshs_model_hash": hash(&[&left, &right]), "modelspec.hash_sha256": format!("0x{}", hash(&[&right, &left])),
        "sshs_legacy_hash": "00000000"});
    write(&path, &metadata, &[("b", &[1], right), ("a", &[2], left)]);
    let facts = json_of(&[text_of(&path), "--json"]);
    let matches = |key: &str| {
        let hashes = facts["hashes"].as_array().unwrap();
        hashes.iter().find(|hash| hash["key"] == key).unwrap()["matches"].clone()
    };
    assert_eq!([matches("sshs_model_hash"), matches("modelspec.hash_sha256")], [true, true]);
    assert_eq!(matches("sshs_legacy_hash"), false);
    let wrong = problems(text_of(&path));
    // Of a file below 1 MiB it is the hash of nothing.
    assert!(
        wrong.iter().any(|problem| problem.contains("`sshs_legacy_hash`") && problem.contains("e3b0c442")),
        "{wrong:?}"
    );
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn hashes_written_by_sd_scripts_are_right() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/kohya");
    let mut checked = 0;
    for case in fs::read_dir(&reference).unwrap() {
        let path = case.unwrap().path().join("lora.safetensors");
        if !path.is_file() {
            continue;
        }
        for hash in json_of(&[text_of(&path), "--json"])["hashes"].as_array().unwrap() {
            assert_ne!(hash["matches"], false, "{}: {hash}", path.display());
            checked += usize::from(hash["matches"] == true);
        }
    }
    assert_eq!(checked, 6);
}

#[test]
fn a_model_without_a_config_has_a_family_by_its_names() {
    let tensors: [(&str, &str, &[u64], u64); 2] = [
        ("model.diffusion_model.input_blocks.0.0.weight", "F16", &[1], 2),
        ("conditioner.embedders.1.model.ln_final.weight", "F16", &[1], 2),
    ];
    let (_keep, path) = directory("model.safetensors", &tensors, None);
    assert_eq!(json_of(&[&path, "--json"])["family"], "Stable Diffusion XL, single file");
}

/// Seventy gigabytes that take no place on the disk.
#[test]
#[cfg(target_os = "linux")]
fn a_large_checkpoint_is_described_without_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let (mut map, mut total) = (serde_json::Map::new(), 0_u64);
    for shard in 0..7 {
        let name = format!("model-{:05}-of-00007.safetensors", shard + 1);
        let tensor = format!("model.layers.{shard}.mlp.up_proj.weight");
        let bytes = 10_000_000_000_u64;
        let header = json!({&tensor: {"dtype": "BF16", "shape": [bytes / 2], "data_offsets": [0, bytes]}}).to_string();
        let path = folder.path().join(&name);
        let mut start = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        start.extend(header.bytes());
        fs::write(&path, &start).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        let length = u64::try_from(start.len()).unwrap() + bytes;
        file.set_len(length).expect("a sparse file of 10 GB, which the folder for temporary files has to allow");
        map.insert(tensor, name.into());
        total += bytes;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let budget = lorakit::plan::Budget { threads: 1, max_bytes: 1 << 30 };
    let mut options = lorakit::ops::inspect::InspectOptions::default();
    options.hash_up_to = 8 << 20;
    options.budget = budget;
    let run = lorakit::ops::Run::default();

    let started = Instant::now();
    let found = lorakit::ops::inspect::inspect(folder.path(), &options, &run).unwrap();
    let elapsed = started.elapsed();

    // The maps are still open: what was touched of them is resident.
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut resident = 0_u64;
    for line in maps.lines() {
        if line.contains(text_of(folder.path())) {
            ours = true;
        } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| std::mem::take(&mut ours)) {
            resident += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    assert_eq!(found.weights().bytes, 70_000_000_000);
    assert!(resident <= 7 * 128, "{resident} kB of the files are resident");
    assert!(elapsed.as_secs() < 1, "{elapsed:?}");
}

#[test]
fn the_json_page_names_what_is_told_on_request() {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/inspect-json.md")).unwrap();
    let (path, base) = (fixture("peft/lora-r8/adapter"), fixture("peft/bases/llama-bf16"));
    let facts = json_of(&[&path, "--base", &base, "--spectrum", "--check", "--tensors", "--json"]);
    for object in [&facts, &facts["base"], &facts["spectrum"]] {
        for key in object.as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{key}`")), "docs/reference/inspect-json.md lacks `{key}`");
        }
    }
}
