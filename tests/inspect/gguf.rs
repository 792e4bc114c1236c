//! Files of llama.cpp: models, sets of files, adapters, and what is wrong with them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lorakit::formats::gguf::{Array, Layout, Metadata, Value as Typed, cut, split_name};
use lorakit::tensor::{Dtype, GgmlType, Shape, TensorInfo};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use super::{WIDTH, fixture, lorakit};

fn tensor(name: &str, dtype: Dtype, shape: &[u64], bytes: u64) -> TensorInfo {
    TensorInfo { name: name.into(), dtype, shape: Shape::from(shape.to_vec()), offset: 0, bytes }
}

fn of(ggml: GgmlType, name: &str, shape: &[u64]) -> TensorInfo {
    tensor(name, ggml.dtype(), shape, ggml.bytes_of(shape.iter().product()).unwrap())
}

/// Writes the header, and room for the data that takes none on disk.
fn save(path: &Path, metadata: &Metadata, tensors: Vec<TensorInfo>) -> PathBuf {
    let layout = Layout::new(path, metadata, tensors).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&layout.head).unwrap();
    file.set_len(layout.bytes).unwrap();
    path.to_path_buf()
}

/// A small language model in Q4_K, but for its embedding.
fn model() -> (Metadata, Vec<TensorInfo>) {
    let mut metadata = Metadata::new();
    for (key, value) in [
        ("general.architecture", "llama".into()),
        ("general.type", "model".into()),
        ("general.name", "Small One".into()),
        ("general.size_label", "1M".into()),
        ("general.file_type", Typed::U32(15)),
        ("general.quantization_version", Typed::U32(2)),
        ("llama.context_length", Typed::U32(4096)),
        ("llama.embedding_length", Typed::U32(256)),
        ("llama.block_count", Typed::U32(2)),
        ("llama.feed_forward_length", Typed::U32(512)),
        ("llama.attention.head_count", Typed::U32(4)),
        ("llama.attention.head_count_kv", Typed::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Typed::F32(1e-5)),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "smollm".into()),
        ("tokenizer.ggml.tokens", Typed::Array(Array::of_texts((0..300).map(|_| "token")))),
        ("tokenizer.ggml.merges", Typed::Array(Array::of_texts(["a b", "b c"]))),
        ("tokenizer.ggml.add_bos_token", Typed::Bool(true)),
        ("tokenizer.chat_template", "{% for message in messages %}\n{{ message.role }}\n{% endfor %}".into()),
        ("odd.number", Typed::F64(f64::NAN)),
    ] {
        metadata.set(key, value);
    }
    let mut tensors = vec![of(GgmlType::Q6K, "token_embd.weight", &[300, 256])];
    for layer in 0..2 {
        tensors.push(of(GgmlType::Q4K, &format!("blk.{layer}.ffn_up.weight"), &[512, 256]));
        tensors.push(of(GgmlType::F32, &format!("blk.{layer}.attn_norm.weight"), &[256]));
    }
    (metadata, tensors)
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn facts(path: &Path) -> Value {
    serde_json::from_str(&lorakit(&[text_of(path), "--json"])).unwrap()
}

/// The model, with its metadata and tensors changed before it is written.
fn problems(change: impl FnOnce(&mut Metadata, &mut Vec<TensorInfo>)) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let (mut metadata, mut tensors) = model();
    change(&mut metadata, &mut tensors);
    told(&save(&folder.path().join("m.gguf"), &metadata, tensors))
}

fn told(path: &Path) -> Vec<String> {
    facts(path)["problems"].as_array().unwrap().iter().map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

/// What is said, without the place of the test.
fn without(folder: &Path, text: &str) -> String {
    text.replace(text_of(folder), "FOLDER")
}

#[test]
fn a_model_is_described() {
    let folder = tempfile::tempdir().unwrap();
    let (metadata, tensors) = model();
    let path = save(&folder.path().join("m.gguf"), &metadata, tensors);
    insta::assert_snapshot!("gguf_model_json", without(folder.path(), &lorakit(&[text_of(&path), "--json"])));
    let text = lorakit(&[text_of(&path)]);
    assert!(text.lines().skip(1).all(|line| line.width() <= WIDTH), "{text}");
    insta::assert_snapshot!("gguf_model_text", without(folder.path(), &text));
}

#[test]
fn an_adapter_is_described_as_one() {
    let path = fixture("gguf/lora-all-f16.gguf");
    insta::assert_snapshot!("gguf_adapter_json", lorakit(&[&path, "--json"]));
    let text = lorakit(&[&path]);
    assert!(text.lines().all(|line| line.width() <= WIDTH), "{text}");
    insta::assert_snapshot!("gguf_adapter_text", text);
}

#[test]
fn tensors_are_listed_under_their_own_names() {
    let found: Value =
        serde_json::from_str(&lorakit(&[&fixture("gguf/lora-all-f16.gguf"), "--json", "--tensors"])).unwrap();
    let first = json!({"name": "blk.0.ffn_down.weight.lora_a", "dtype": "F16", "shape": [4, 256], "bytes": 2048,
        "file": "lora-all-f16.gguf"});
    let listed = found["tensors"].as_array().unwrap();
    assert!(listed.len() == 14 && listed.contains(&first), "{listed:#?}");
    let module = json!("model.layers.0.mlp.down_proj");
    assert!(found["modules"].as_array().unwrap().iter().any(|one| one["path"] == module && one["scale"] == 2.0));
}

#[test]
fn a_set_of_files_is_one_model_by_any_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let (metadata, tensors) = model();
    let parts = cut(Path::new("m"), &metadata, &tensors, 80_000).unwrap();
    let count = parts.len() as u64;
    assert!(count > 1);
    for (number, (metadata, range)) in (0..).zip(parts) {
        save(&folder.path().join(split_name("m", number, count)), &metadata, tensors[range].to_vec());
    }
    let any = facts(&folder.path().join(split_name("m", 1, count)));
    assert_eq!((&any["container"], &any["problems"]), (&json!("split"), &json!([])));
    assert_eq!((any["files"].as_array().unwrap().len() as u64, &any["tensor_count"]), (count, &json!(tensors.len())));
    assert!(any["gguf"]["metadata"].as_array().unwrap().iter().all(|entry| entry["key"] != "split.no"));
    assert_eq!(facts(folder.path())["tensor_count"], json!(tensors.len()));
    let (one, other) = model();
    save(&folder.path().join("other.gguf"), &one, other);
    let all = facts(folder.path());
    assert_eq!(all["entries"].as_array().unwrap().len(), 2, "the set is one entry of a folder: {all}");
    assert!(lorakit(&[text_of(folder.path())]).contains("model llama"));
}

#[test]
fn what_a_file_says_it_is_stored_as_is_held_against_its_tensors() {
    let said = |number: u32| problems(|metadata, _| metadata.set("general.file_type", Typed::U32(number)));
    assert_eq!(said(15), [""; 0]);
    assert_eq!(said(18), [""; 0], "a mixture of two");
    let lie = "`general.file_type` is 1 (F16), and 0 % of the weights are; most are Q4_K";
    assert_eq!(said(1), [lie]);
    assert_eq!(said(77), ["`general.file_type` is 77, which is no known number"]);
    let narrow = problems(|_, tensors| {
        tensors[1..].iter_mut().for_each(|one| {
            if one.name.contains("ffn_up") {
                *one = of(GgmlType::Q5_0, &one.name.clone(), &[512, 96]);
            }
        })
    });
    assert_eq!(narrow, [""; 0], "what llama.cpp takes where rows are too short");
}

#[test]
fn what_is_missing_or_too_much_is_told() {
    let has = |found: Vec<String>, part: &str| assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
    has(problems(|metadata, _| metadata.retain(|key| !key.starts_with("tokenizer"))), "holds no tokenizer");
    has(
        problems(|metadata, _| metadata.set("llama.block_count", Typed::U32(3))),
        "says 3 layers, the tensors are of 2; there is no `blk.2`",
    );
    has(
        problems(|metadata, _| metadata.retain(|key| key != "general.quantization_version")),
        "and 3 tensors quantised",
    );
    has(
        problems(|_, tensors| tensors[0] = of(GgmlType::Q6K, "token_embd.weight", &[301, 256])),
        "has 300 tokens, `token_embd.weight` 301 rows",
    );
    has(
        problems(|_, tensors| {
            tensors.push(tensor("blk.1.new.weight", Dtype::Other("ggml type 99".into()), &[2, 7], 64))
        }),
        "unknown dtype `ggml type 99`",
    );
    let folder = tempfile::tempdir().unwrap();
    let (metadata, tensors) = model();
    let path = save(&folder.path().join("m.gguf"), &metadata, tensors);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&[1; 100]).unwrap();
    has(told(&path), "100 bytes follow the last tensor of `m.gguf`");
}

#[test]
fn adapters_without_alpha_or_of_unknown_models_are_still_described() {
    let folder = tempfile::tempdir().unwrap();
    let write = |arch: &str, alpha: Option<f32>| {
        let mut metadata = Metadata::new();
        for (key, value) in [("general.architecture", arch), ("general.type", "adapter"), ("adapter.type", "lora")] {
            metadata.set(key, value.into());
        }
        alpha.into_iter().for_each(|alpha| metadata.set("adapter.lora.alpha", Typed::F32(alpha)));
        let pair = [("a", [2_u64, 8]), ("b", [16, 2])];
        let tensors = pair.map(|(end, shape)| of(GgmlType::F32, &format!("blk.0.ffn_up.weight.lora_{end}"), &shape));
        save(&folder.path().join("a.gguf"), &metadata, tensors.to_vec())
    };
    let path = write("llama", Some(0.0));
    let found = facts(&path);
    assert_eq!((&found["kind"], &found["groups"][0]["scale"]), (&json!("adapter"), &json!(1.0)));
    assert!(found["problems"][0].as_str().unwrap().starts_with("`adapter.lora.alpha` is 0"), "{found:#}");
    assert!(told(&write("llama", None))[0].starts_with("`adapter.lora.alpha` is missing"));
    let found = facts(&write("sparrow", Some(4.0)));
    let first = found["problems"][0].as_str().unwrap();
    assert!(first.contains("cannot be used") && first.contains("`sparrow`"), "{first}");
    assert_eq!(found["gguf"]["architecture"], "sparrow");
}

#[test]
fn a_big_endian_file_says_so() {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend([0_u64, 1].iter().flat_map(|number| number.to_be_bytes()));
    bytes.extend(20_u64.to_be_bytes());
    bytes.extend(b"general.architecture");
    bytes.extend(8_u32.to_be_bytes());
    bytes.extend(5_u64.to_be_bytes());
    bytes.extend(b"llama");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.gguf");
    fs::write(&path, bytes).unwrap();
    assert_eq!(facts(&path)["gguf"]["big_endian"], true);
    assert!(lorakit(&[text_of(&path)]).contains("version 3, big-endian"));
}

#[test]
fn seventy_gigabytes_and_two_hundred_thousand_tensors_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut metadata, _) = model();
    metadata.set("general.file_type", Typed::U32(1));
    let large = (0..150).map(|layer| of(GgmlType::F16, &format!("blk.{layer}.ffn_up.weight"), &[28672, 8192]));
    let many = (0..200_000).map(|at| of(GgmlType::F16, &format!("blk.{}.x{}.weight", at / 9, at % 9), &[4, 32]));
    for (name, tensors) in [("large.gguf", large.collect::<Vec<_>>()), ("many.gguf", many.collect())] {
        let count = tensors.len();
        let path = save(&folder.path().join(name), &metadata, tensors);
        let started = Instant::now();
        assert_eq!(facts(&path)["tensor_count"], json!(count));
        // Far above what it takes, for a machine that has other things to do.
        assert!(started.elapsed().as_secs() < 20, "{name}: {:?}", started.elapsed());
    }
}
