//! Checkpoints to and from GGUF, held against what llama.cpp's converter and quantiser made of the same model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lorakit::formats::gguf::{Gguf, Metadata, Value as Entry};
use lorakit::tensor::{GgmlType, TensorInfo};
use serde_json::{Value, json};

use crate::support::{Bench, Outcome, lorakit, reference_part, snapshot};

/// A file, read.
struct Read {
    metadata: Metadata,
    tensors: Vec<(TensorInfo, Vec<u8>)>,
}

impl Read {
    fn open(path: &Path) -> Self {
        let file = Gguf::open(path).unwrap_or_else(|error| panic!("{error}"));
        let names: Vec<String> = file.tensors().map(|tensor| tensor.name.clone()).collect();
        let tensor = |name: &String| {
            let stored = file.find(name).unwrap().unwrap();
            let bytes = stored.view().unwrap().data.to_vec();
            (TensorInfo { offset: 0, ..stored.info }, bytes)
        };
        Self { metadata: file.metadata().clone(), tensors: names.iter().map(tensor).collect() }
    }

    /// The entries without those that tell of the directory.
    fn entries(&self) -> Vec<(&str, &Entry)> {
        self.metadata.iter().filter(|(key, _)| *key != "general.name").collect()
    }

    fn find(&self, name: &str) -> &(TensorInfo, Vec<u8>) {
        self.tensors.iter().find(|(info, _)| info.name == name).unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    fn types(&self) -> BTreeMap<&str, &str> {
        self.tensors.iter().map(|(info, _)| (info.name.as_str(), info.dtype.name())).collect()
    }
}

fn bases() -> Option<PathBuf> {
    reference_part("gguf/bases")
}

fn convert(input: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &input, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

#[test]
fn a_model_becomes_the_file_of_the_converter() {
    let Some(bases) = bases() else { return };
    let bench = Bench::new();
    for dtype in ["f32", "f16", "bf16"] {
        let out = bench.path(&format!("{dtype}.gguf"));
        convert(&bases.join("tiny-hf-bf16"), &out, &["--to", "gguf", "--dtype", dtype]).ok();
        let (ours, theirs) = (Read::open(&out), Read::open(&bases.join(format!("tiny-{dtype}.gguf"))));
        assert_eq!(ours.entries(), theirs.entries(), "{dtype}: keys, types, order");
        assert!(ours.tensors == theirs.tensors, "{dtype}: names, types, order and bytes of the tensors");
    }
}

#[test]
fn without_a_dtype_the_matrices_keep_theirs() {
    let Some(bases) = bases() else { return };
    let bench = Bench::new();
    convert(&bases.join("tiny-hf-bf16"), &bench.path("own.gguf"), &["--to", "gguf"]).ok();
    let (ours, theirs) = (Read::open(&bench.path("own.gguf")), Read::open(&bases.join("tiny-bf16.gguf")));
    assert!(ours.tensors == theirs.tensors);
    assert_eq!(bench.listing(), ["own.gguf", "own.lorakit.json"]);
}

/// The mixes of llama.cpp, and which of its reference files have the same types: all tensors, or those but the embedding, which
/// `--pure` treats like the others.
#[test]
fn quantised_models_have_the_blocks_of_llama_quantize() {
    let Some(bases) = bases() else { return };
    let bench = Bench::new();
    for (quant, file) in [
        ("q8_0", "q8_0"),
        ("q6_k", "q6_k"),
        ("q4_k_m", "q4_k_m-mixed"),
        ("Q4_K", "q4_k_m-mixed"),
        ("q4_0", "q4_0"),
        ("q4_1", "q4_1"),
        ("q5_0", "q5_0"),
        ("q5_1", "q5_1"),
        ("q2_k", "q2_k"),
        ("iq4_nl", "iq4_nl"),
    ] {
        let out = bench.path(&format!("{quant}.gguf"));
        convert(&bases.join("tiny-hf-bf16"), &out, &["--to", "gguf", "--quant", quant]).ok();
        let (ours, theirs) = (Read::open(&out), Read::open(&bases.join(format!("tiny-{file}.gguf"))));
        let whole = ["q8_0", "q6_k", "q4_k_m-mixed"].contains(&file);
        if whole {
            assert_eq!(ours.types(), theirs.types(), "{quant}");
            assert_eq!(ours.metadata.get("general.file_type"), theirs.metadata.get("general.file_type"));
        }
        let mut compared = 0;
        for (info, bytes) in &ours.tensors {
            let (other, expected) = theirs.find(&info.name);
            if info.dtype == other.dtype {
                assert!(bytes == expected, "{quant}: `{}`", info.name);
                compared += 1;
            }
        }
        // Norms, q, k, gate and up at least.
        assert!(compared >= if whole { 11 } else { 7 }, "{quant}: {compared} tensors of one type");
    }
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    let Some(bases) = bases() else { return };
    let bench = Bench::new();
    let mut files = Vec::new();
    for (at, more) in [["-j", "1"], ["-j", "4"], ["--max-memory", "9MiB"]].iter().enumerate() {
        let out = bench.path(&format!("{at}.gguf"));
        let words = ["--to", "gguf", "--quant", "q4_k_m", more[0], more[1]];
        convert(&bases.join("tiny-hf-bf16"), &out, &words).ok();
        files.push(fs::read(out).unwrap());
    }
    assert!(files.iter().all(|file| *file == files[0]));
}

/// A copy of the tiny model whose files can be changed.
fn copy(bench: &Bench, name: &str) -> Option<PathBuf> {
    let from = bases()?.join("tiny-hf-bf16");
    let to = bench.path(name);
    fs::create_dir(&to).unwrap();
    for (path, bytes) in snapshot(&from) {
        fs::write(to.join(path), bytes).unwrap();
    }
    Some(to)
}

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn what_cannot_be_expressed_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    let Some(model) = copy(&bench, "model") else { return };
    let (config, out) = (model.join("config.json"), bench.path("out.gguf"));
    let whole = fs::read(&config).unwrap();
    let to_gguf = |more: &[&str]| convert(&model, &out, &[&["--to", "gguf"], more].concat());
    let with = |key: &str, value: Value, parts: &[&str]| {
        fs::write(&config, &whole).unwrap();
        edit(&config, |config| config[key] = value.clone());
        to_gguf(&[]).refused(1, parts);
        fs::write(&config, &whole).unwrap();
    };
    with("model_type", json!("mamba"), &["is of type `mamba`", "llama, mistral, mixtral, smollm3, qwen2"]);
    with("hidden_size", json!(-3), &["config.json: `hidden_size` is -3"]);
    with("num_hidden_layers", json!(2), &["tensor `model.layers.1.", "is missing"]);
    with("vocab_size", json!(400), &["tensor `model.embed_tokens.weight`: is [320, 256], and must be [400, 256]"]);
    with("num_attention_heads", json!(8), &["tensor `model.layers.0.self_attn.", "and must be"]);
    with("rope_parameters", json!({"rope_type": "spiral"}), &["`rope_type` is `spiral`"]);

    to_gguf(&["--dtype", "f64"]).refused(2, &["--dtype: a GGUF file of a model has f32, f16 or bf16, not F64"]);
    to_gguf(&["--quant", "q9"]).refused(2, &["--quant: `q9` is not one of f32, f16, bf16, q4_0"]);
    to_gguf(&["--quant", "q8_0", "--dtype", "f16"]).refused(2, &["`--quant` asks for q8_0, `--dtype` for f16"]);
    to_gguf(&["--include", "layers"]).refused(2, &["--include: the types of a GGUF file follow"]);
    to_gguf(&["--max-shard-size", "1MB"]).refused(2, &["--out: the output is one file"]);
    convert(&model, &bench.path("a.safetensors"), &["--to", "gguf"]).refused(2, &["the path ends in `.safetensors`"]);

    let tokenizer = fs::read(model.join("tokenizer.json")).unwrap();
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    to_gguf(&[]).refused(1, &["has no tokenizer.json and no tokenizer.model"]);
    fs::write(model.join("tokenizer.json"), &tokenizer[..tokenizer.len() / 2]).unwrap();
    to_gguf(&[]).refused(1, &["tokenizer.json", "JSON"]);
    fs::write(model.join("tokenizer.json"), &tokenizer).unwrap();
    edit(&model.join("tokenizer.json"), |tokenizer| tokenizer["model"]["type"] = json!("Unigram"));
    to_gguf(&[]).refused(1, &["holds a model of type `Unigram`"]);
    fs::write(model.join("tokenizer.json"), &tokenizer).unwrap();

    let weights = fs::read(model.join("model.safetensors")).unwrap();
    fs::write(model.join("model.safetensors"), &weights[..weights.len() - 9]).unwrap();
    to_gguf(&[]).refused(1, &["model.safetensors"]);
    fs::remove_file(&config).unwrap();
    fs::write(model.join("model.safetensors"), &weights).unwrap();
    to_gguf(&[]).refused(1, &["has no config.json"]);
    assert_eq!(bench.listing(), ["model"]);
}

#[test]
fn an_unknown_way_of_cutting_texts_is_said_loudly() {
    let bench = Bench::new();
    let Some(model) = copy(&bench, "model") else { return };
    edit(&model.join("tokenizer.json"), |tokenizer| tokenizer["pre_tokenizer"] = json!({"type": "Whitespace"}));
    let told = convert(&model, &bench.path("out.gguf"), &["--to", "gguf"]).ok();
    assert!(told.stdout.contains("`tokenizer.ggml.pre` is `default`"), "{}", told.stdout);
    let read = Read::open(&bench.path("out.gguf"));
    assert_eq!(read.metadata.text("tokenizer.ggml.pre"), Some("default"));
}

#[test]
fn a_head_that_is_the_embedding_is_left_out() {
    let bench = Bench::new();
    let Some(model) = copy(&bench, "model") else { return };
    let path = model.join("model.safetensors");
    let mut tensors = crate::support::read(&path);
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".into(), embedding);
    let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    crate::support::write(&path, &named);
    let told = convert(&model, &bench.path("out.gguf"), &["--to", "gguf"]).ok();
    assert!(told.stdout.contains("`lm_head.weight` is the embedding, and left out"), "{}", told.stdout);
    assert_eq!(Read::open(&bench.path("out.gguf")).tensors.len(), 11);
    edit(&model.join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    convert(&model, &bench.path("untied.gguf"), &["--to", "gguf"]).ok();
    let untied = Read::open(&bench.path("untied.gguf"));
    assert_eq!(untied.find("output.weight").0.dtype, GgmlType::Bf16.dtype());
}
