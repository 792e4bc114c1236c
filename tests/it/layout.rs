//! What the output looks like on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::tensor::SafeTensors;
use serde_json::json;

use crate::support::{Bench, Tensor, fixtures, lorakit, merge, noise, read, read_json, read_model, write};

fn tiny() -> (std::path::PathBuf, std::path::PathBuf) {
    (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"))
}

#[test]
fn a_sharded_base_gives_the_same_shards_and_a_true_index() {
    let bench = Bench::new();
    let (base, adapter) = tiny();
    merge(&base, &adapter, &bench.path("out"), &["--dtype", "f32"]).ok();
    let index = read_json(&bench.path("out/model.safetensors.index.json"));
    let tensors = read_model(&bench.path("out"));
    let bytes: usize = tensors.values().map(|tensor| tensor.data.len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    let before = read_json(&base.join("model.safetensors.index.json"));
    assert_eq!(index["weight_map"], before["weight_map"]);
    assert_eq!(read_json(&bench.path("out/config.json"))["dtype"], "float32");
    assert!(bench.path("out/generation_config.json").exists());
}

#[test]
fn headers_keep_their_metadata_and_tell_where_the_file_comes_from() {
    let bench = Bench::new();
    let (base, adapter) = tiny();
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let bytes = fs::read(bench.path("out/model-00001-of-00002.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["format"], "pt");
    let recipe: serde_json::Value = serde_json::from_str(&metadata["lorakit"]).unwrap();
    let sidecar = read_json(&bench.path("out/lorakit.json"));
    assert_eq!(recipe["adapters"], sidecar["adapters"]);
    let hash = blake3::hash(&fs::read(adapter.join("adapter_model.safetensors")).unwrap()).to_hex().to_string();
    assert_eq!(sidecar["adapters"][0]["blake3"]["adapter_model.safetensors"], hash);
    assert_eq!(sidecar["base"]["blake3"], serde_json::Value::Null);
}

#[test]
fn the_base_is_hashed_on_request() {
    let bench = Bench::new();
    let (base, adapter) = tiny();
    merge(&base, &adapter, &bench.path("out"), &["--hash-base"]).ok();
    let hash = blake3::hash(&fs::read(base.join("model-00001-of-00002.safetensors")).unwrap()).to_hex().to_string();
    assert_eq!(read_json(&bench.path("out/lorakit.json"))["base"]["blake3"]["model-00001-of-00002.safetensors"], hash);
}

#[test]
fn shards_can_be_cut_anew_and_joined() {
    let bench = Bench::new();
    let (base, adapter) = tiny();
    merge(&base, &adapter, &bench.path("small"), &["--max-shard-size", "40kB"]).ok();
    merge(&base, &adapter, &bench.path("one"), &["--max-shard-size", "5GB"]).ok();
    assert!(bench.path("one/model.safetensors").exists() && !bench.path("one/model.safetensors.index.json").exists());
    let count = fs::read_dir(bench.path("small"))
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "safetensors"));
    assert!(count.count() > 3);
    assert_eq!(read_model(&bench.path("small")), read_model(&bench.path("one")));
}

#[test]
fn a_single_file_gives_a_single_file() {
    let bench = Bench::new();
    let base = bench.path("in/weights.safetensors");
    write(&base, &[("a.q_proj.weight", Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))]);
    let adapter = bench.adapter(
        "adapter",
        json!({}),
        &[
            ("a.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(2, 8, 1.0))),
            ("a.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(3, 8, 1.0))),
        ],
    );
    merge(&base, &adapter, &bench.path("out.safetensors"), &[]).ok();
    assert_eq!(read(&bench.path("out.safetensors")).len(), 1);
    assert_eq!(bench.listing(), ["adapter", "in", "out.safetensors", "out.safetensors.lorakit.json"]);
}

#[test]
fn files_have_the_mode_of_the_umask() {
    let bench = Bench::new();
    let (base, adapter) = tiny();
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let probe = bench.path("probe");
    fs::write(&probe, "").unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(bench.path("out/model-00001-of-00002.safetensors")), mode(probe));
}

#[test]
fn other_weights_are_not_copied_and_that_is_said() {
    let bench = Bench::new();
    let base = bench.base(&[("a.q_proj.weight", Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))], &json!({}));
    fs::write(base.join("pytorch_model.bin"), "old weights").unwrap();
    fs::write(base.join("chat_template.jinja"), "{{ x }}").unwrap();
    fs::create_dir(base.join("1_Pooling")).unwrap();
    fs::write(base.join("1_Pooling/config.json"), "{}").unwrap();
    let adapter = bench.adapter(
        "adapter",
        json!({}),
        &[
            ("a.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(2, 8, 1.0))),
            ("a.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(3, 8, 1.0))),
        ],
    );
    let outcome = merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert!(outcome.stdout.contains("pytorch_model.bin"), "{}", outcome.stdout);
    assert!(!bench.path("out/pytorch_model.bin").exists());
    assert!(bench.path("out/chat_template.jinja").exists() && bench.path("out/1_Pooling/config.json").exists());
}

#[test]
fn a_model_is_found_in_the_hugging_face_cache() {
    let bench = Bench::new();
    let (base, adapter) = tiny();
    let snapshot = bench.path("hub/models--org--tiny/snapshots/0123abcd");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(bench.path("hub/models--org--tiny/refs")).unwrap();
    fs::write(bench.path("hub/models--org--tiny/refs/main"), "0123abcd").unwrap();
    fs::create_dir_all(bench.path("hub/models--org--tiny/blobs")).unwrap();
    for entry in fs::read_dir(&base).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        fs::copy(&path, bench.path("hub/models--org--tiny/blobs").join(name)).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    let mut command = assert_cmd::Command::cargo_bin("lorakit").unwrap();
    command
        .env("HF_HUB_CACHE", bench.path("hub"))
        .args(["merge", "org/tiny"])
        .arg(&adapter)
        .arg("-o")
        .arg(bench.path("out"));
    command.assert().success();
    merge(&base, &adapter, &bench.path("direct"), &[]).ok();
    assert_eq!(read_model(&bench.path("out")), read_model(&bench.path("direct")));
    let config = bench.path("out/config.json");
    assert!(fs::symlink_metadata(config).unwrap().file_type().is_file(), "links are followed, not copied");
}

#[test]
fn completions_and_the_manual_are_printed() {
    assert!(lorakit(&[&"completions", &"bash"]).ok().stdout.contains("merge"));
    assert!(lorakit(&[&"man"]).ok().stdout.contains(".TH lorakit"));
}
