//! Checkpoints to and from GGUF, held against what llama.cpp's converter and quantiser made of the same model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lorakit::formats::gguf::{Gguf, Layout, Metadata, Value as Entry};
use lorakit::tensor::{GgmlType, Shape, TensorInfo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Bench, Outcome, fixtures, lorakit, read_json, read_model, reference_part, snapshot};

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

fn bases() -> PathBuf {
    reference_part("gguf/bases")
}

fn convert(input: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &input, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_model_becomes_the_file_of_the_converter() {
    let bases = bases();
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
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn without_a_dtype_the_matrices_keep_theirs() {
    let bases = bases();
    let bench = Bench::new();
    convert(&bases.join("tiny-hf-bf16"), &bench.path("own.gguf"), &["--to", "gguf"]).ok();
    let (ours, theirs) = (Read::open(&bench.path("own.gguf")), Read::open(&bases.join("tiny-bf16.gguf")));
    assert!(ours.tensors == theirs.tensors);
    assert_eq!(bench.listing(), ["own.gguf", "own.gguf.lorakit.json"]);
}

/// The mixes of llama.cpp, and which of its reference files have the same types: all tensors, or those but the embedding, which
/// `--pure` treats like the others.
#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn quantised_models_have_the_blocks_of_llama_quantize() {
    let bases = bases();
    let bench = Bench::new();
    let mut counts = Vec::new();
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
        counts.push(compared);
    }
    // Tensors of one type, of eleven: norms, q, k, gate and up at least.
    assert_eq!(counts, [11, 11, 11, 11, 10, 10, 10, 10, 7, 10]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn threads_and_memory_do_not_change_a_byte() {
    let bases = bases();
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
fn copy(bench: &Bench, name: &str) -> PathBuf {
    let from = bases().join("tiny-hf-bf16");
    let to = bench.path(name);
    fs::create_dir(&to).unwrap();
    for (path, bytes) in snapshot(&from) {
        fs::write(to.join(path), bytes).unwrap();
    }
    to
}

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_cannot_be_expressed_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    let model = copy(&bench, "model");
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
    with("head_dim", json!(1 << 30), &["heads of 1073741824 values are wider than 65536"]);
    with("hidden_size", json!(0), &["`hidden_size`: is 0"]);
    with("num_hidden_layers", json!(1_u64 << 40), &["config.json: `num_hidden_layers` is 1099511627776"]);
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
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn an_unknown_way_of_cutting_texts_is_said_loudly() {
    let bench = Bench::new();
    let model = copy(&bench, "model");
    edit(&model.join("tokenizer.json"), |tokenizer| tokenizer["pre_tokenizer"] = json!({"type": "Whitespace"}));
    let told = convert(&model, &bench.path("out.gguf"), &["--to", "gguf"]).ok();
    assert!(told.stdout.contains("`tokenizer.ggml.pre` is `default`"), "{}", told.stdout);
    let read = Read::open(&bench.path("out.gguf"));
    assert_eq!(read.metadata.text("tokenizer.ggml.pre"), Some("default"));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_head_that_is_the_embedding_is_left_out() {
    let bench = Bench::new();
    let model = copy(&bench, "model");
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

/// The models of the fixtures: one of every family.
fn models() -> Vec<(String, PathBuf)> {
    let directory = fixtures().join("gguf/models");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut found: Vec<(String, PathBuf)> =
        entries.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path)).collect();
    found.sort();
    assert_eq!(found.len(), 12);
    found
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A value as `expected.json` has it: what is long by its digest.
fn told(value: &Entry) -> (Vec<String>, Value) {
    let kind = |name: &str| match name {
        "u32" => "UINT32",
        "i32" => "INT32",
        "f32" => "FLOAT32",
        "bool" => "BOOL",
        "text" => "STRING",
        other => panic!("{other} is not written"),
    };
    let plain = |value: &Entry| match value {
        Entry::Bool(value) => json!(value),
        Entry::I32(value) => json!(value),
        other => other
            .as_text()
            .map(|text| json!(text))
            .or(other.as_u64().map(|n| json!(n)))
            .unwrap_or_else(|| json!(other.as_f64())),
    };
    let Entry::Array(array) = value else { return (vec![kind(value.kind().name()).into()], plain(value)) };
    let items: Vec<String> = array.iter().map(|item| plain(&item).to_string()).collect();
    let kinds = vec!["ARRAY".into(), kind(array.kind().name()).into()];
    (kinds, json!(digest(format!("[{}]", items.join(", ")).as_bytes())))
}

#[test]
fn every_family_becomes_what_the_converter_makes_of_it() {
    let bench = Bench::new();
    for (name, model) in models() {
        let out = bench.path(&format!("{name}.gguf"));
        let report = convert(&model, &out, &["--to", "gguf", "--dtype", "f16"]).ok();
        assert!(!report.stdout.contains("note"), "{name}: {}", report.stdout);
        let (ours, expected) = (Read::open(&out), read_json(&model.join("expected.json")));
        let keys: Vec<Value> = ours
            .metadata
            .iter()
            .map(|(key, value)| {
                let (kinds, value) = told(value);
                json!([key, kinds, value])
            })
            .collect();
        for (ours, theirs) in keys.iter().zip(expected["keys"].as_array().unwrap()) {
            assert_eq!(ours, theirs, "{name}");
        }
        assert_eq!(keys.len(), expected["keys"].as_array().unwrap().len(), "{name}");
        let tensors: Vec<Value> = ours
            .tensors
            .iter()
            .map(|(info, bytes)| json!([info.name, info.dtype.name(), info.shape.as_slice(), digest(bytes)]))
            .collect();
        assert_eq!(json!(tensors), expected["tensors"], "{name}");
    }
}

/// There, back and there again: the second file is the first.
#[test]
fn every_family_comes_back() {
    let bench = Bench::new();
    for (name, model) in models() {
        let (first, second, back) =
            (bench.path(&format!("{name}-1.gguf")), bench.path(&format!("{name}-2.gguf")), bench.path(&name));
        convert(&model, &first, &["--to", "gguf"]).ok();
        convert(&first, &back, &["--to", "safetensors", "--dtype", "bf16"]).ok();
        let (mut ours, mut theirs) = (read_model(&back), read_model(&model));
        // A config that ties them says what a stored head is.
        ours.remove("lm_head.weight");
        theirs.remove("lm_head.weight");
        assert!(ours == theirs, "{name}: names, shapes and bytes");
        if model.join("tokenizer.model").is_file() {
            assert!(!back.join("tokenizer.json").exists());
            for file in ["tokenizer.model", "tokenizer_config.json"] {
                fs::copy(model.join(file), back.join(file)).unwrap();
            }
        }
        convert(&back, &second, &["--to", "gguf"]).ok();
        let (first, second) = (Read::open(&first), Read::open(&second));
        let padding = |(key, _): &(&str, &Entry)| !key.ends_with("padding_token_id");
        let kept = |read: &Read| {
            read.entries().into_iter().filter(padding).map(|(k, v)| (k.to_owned(), v.clone())).collect::<Vec<_>>()
        };
        for (one, other) in kept(&first).iter().zip(&kept(&second)) {
            assert!(one == other, "{name}: {one:?} and {other:?}");
        }
        assert_eq!(kept(&first).len(), kept(&second).len(), "{name}");
        assert!(first.tensors == second.tensors, "{name}");
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn quantised_tensors_become_plain_numbers() {
    let bases = bases();
    let bench = Bench::new();
    let plain = |file: &str, more: &[&str]| {
        let out = bench.path(&format!("{file}{}", more.concat()));
        convert(&bases.join(format!("tiny-{file}.gguf")), &out, &[&["--to", "safetensors"], more].concat()).ok();
        out
    };
    let (whole, quantised) = (read_model(&plain("f32", &[])), read_model(&plain("q4_k_m-mixed", &["--dtype", "f32"])));
    assert!(whole.keys().eq(quantised.keys()));
    for (name, tensor) in &quantised {
        let (ours, original) = (tensor.values(), whole[name].values());
        let error: f64 = ours.iter().zip(&original).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        let size: f64 = original.iter().map(|value| value * value).sum();
        assert!(error <= 0.01 * size, "`{name}`: {}", (error / size).sqrt());
    }
    let half = plain("q4_0", &[]);
    assert_eq!(read_json(&half.join("config.json"))["torch_dtype"], "float16");
    let norm = &read_model(&half)["model.norm.weight"];
    assert_eq!(norm.dtype, safetensors::Dtype::F32, "plain numbers stay what they are");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_file_without_a_change_is_the_same() {
    let bases = bases();
    let bench = Bench::new();
    for file in ["tiny-q4_k_m-mixed", "tiny-bf16"] {
        let (input, out) = (bases.join(format!("{file}.gguf")), bench.path(&format!("{file}.gguf")));
        convert(&input, &out, &["--to", "gguf"]).ok();
        assert!(fs::read(&input).unwrap() == fs::read(&out).unwrap(), "{file}");
        let parts = bench.path(&format!("{file}-split"));
        convert(&input, &parts, &["--to", "gguf", "--max-shard-size", "100KB"]).ok();
        let names: Vec<String> = snapshot(&parts).keys().map(|path| path.display().to_string()).collect();
        let names: Vec<&String> = names.iter().filter(|name| name.ends_with(".gguf")).collect();
        assert!(names.len() > 3 && names[0].starts_with(&format!("{file}-split-00001-of-000")), "{names:?}");
        let joined = bench.path(&format!("{file}-joined.gguf"));
        convert(&parts.join(names[1]), &joined, &[]).ok();
        assert!(fs::read(&input).unwrap() == fs::read(&joined).unwrap(), "{file}: split and joined");
        let (one, several) = (bench.path(&format!("{file}-one")), bench.path(&format!("{file}-several")));
        convert(&input, &one, &["--to", "safetensors"]).ok();
        convert(&parts.join(names[0]), &several, &["--to", "safetensors"]).ok();
        assert!(read_model(&one) == read_model(&several));
        let index = read_json(&several.join("model.safetensors.index.json"));
        assert_eq!(index["weight_map"].as_object().unwrap().len(), 11);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_file_is_requantised_as_llama_quantize_does_it() {
    let bases = bases();
    let bench = Bench::new();
    for (quant, file) in [("q8_0", "q8_0"), ("q6_k", "q6_k"), ("q4_k_m", "q4_k_m-mixed")] {
        let out = bench.path(&format!("{quant}.gguf"));
        convert(&bases.join("tiny-f32.gguf"), &out, &["--quant", quant]).ok();
        let (ours, theirs) = (Read::open(&out), Read::open(&bases.join(format!("tiny-{file}.gguf"))));
        for (info, bytes) in &ours.tensors {
            let (other, expected) = theirs.find(&info.name);
            assert!(info == other && bytes == expected, "{quant}: `{}`", info.name);
        }
        let before = Read::open(&bases.join("tiny-f32.gguf"));
        assert!(ours.tensors.iter().map(|(info, _)| &info.name).eq(before.tensors.iter().map(|(info, _)| &info.name)));
        assert!(
            ours.metadata.iter().map(|(key, _)| key).eq(before.metadata.iter().map(|(key, _)| key)),
            "the same keys in order"
        );
        assert_eq!(ours.metadata.get("general.file_type"), theirs.metadata.get("general.file_type"));
    }
    let again = convert(&bases.join("tiny-q8_0.gguf"), &bench.path("f16.gguf"), &["--dtype", "f16"]).ok();
    assert!(again.stdout.contains("8 tensors were quantised already"), "{}", again.stdout);
    let half = Read::open(&bench.path("f16.gguf"));
    assert_eq!(half.metadata.number("general.file_type"), Some(1));
    assert_eq!(half.types()["blk.0.attn_q.weight"], "F16");
    assert_eq!(half.types()["output_norm.weight"], "F32");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn parts_of_a_conversion_are_put_together() {
    let bases = bases();
    let bench = Bench::new();
    let words = ["--to", "gguf", "--quant", "q8_0", "--max-shard-size", "200KB"];
    let model = bases.join("tiny-hf-bf16");
    convert(&model, &bench.path("whole"), &words).ok();
    let plan = convert(&model, &bench.path("none"), &[&words[..], &["--dry-run", "--json"]].concat()).ok().json();
    assert_eq!((&plan["files"], &plan["dtypes"]["Q8_0"]), (&json!(3), &json!(8)));
    let out = bench.path("whole-in-parts");
    for part in ["1/2", "2/2"] {
        convert(&model, &out, &[&words[..], &["--part", part]].concat()).ok();
    }
    lorakit(&[&"finish", &out]).ok();
    // The files are called after the directory, in its record as well.
    let named = |(path, bytes): (PathBuf, Vec<u8>)| {
        let is_record = path.ends_with("lorakit.json");
        let renamed = |text: String| text.replace("whole-in-parts", "whole");
        let bytes = if is_record { renamed(String::from_utf8(bytes).unwrap()).into_bytes() } else { bytes };
        (renamed(path.display().to_string()), bytes)
    };
    let parts: BTreeMap<String, Vec<u8>> = snapshot(&out).into_iter().map(named).collect();
    let whole: BTreeMap<String, Vec<u8>> = snapshot(&bench.path("whole")).into_iter().map(named).collect();
    assert!(parts == whole, "{:?} and {:?}", parts.keys(), whole.keys());
    assert_eq!(bench.listing(), ["whole", "whole-in-parts"]);
}

/// A file with one tensor of an architecture that nobody knows.
fn unknown(bench: &Bench) -> PathBuf {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "nobody".into());
    metadata.set("general.type", "model".into());
    let values: Vec<u8> = (0..64_u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    let shape = Shape::from([2, 32]);
    let info = TensorInfo { name: "some.weight".into(), dtype: GgmlType::F32.dtype(), shape, offset: 0, bytes: 256 };
    let path = bench.path("unknown.gguf");
    let layout = Layout::new(&path, &metadata, vec![info]).unwrap();
    let mut file = Vec::new();
    lorakit::formats::gguf::write(&mut file, &layout, [values.as_slice()]).unwrap();
    fs::write(&path, file).unwrap();
    path
}

#[test]
fn tensors_of_an_unknown_architecture_keep_their_names() {
    let bench = Bench::new();
    let path = unknown(&bench);
    convert(&path, &bench.path("q8.gguf"), &["--quant", "q8_0"]).ok();
    let quantised = Read::open(&bench.path("q8.gguf"));
    assert_eq!(quantised.types()["some.weight"], "Q8_0");
    assert_eq!(quantised.metadata.number("general.file_type"), Some(7));
    let told = convert(&bench.path("q8.gguf"), &bench.path("plain"), &["--to", "safetensors"]).ok();
    assert!(told.stdout.contains("the names of architecture `nobody` are not known"), "{}", told.stdout);
    let tensors = read_model(&bench.path("plain"));
    assert_eq!(tensors["some.weight"].dtype, safetensors::Dtype::F16);
    assert_eq!(tensors["some.weight"].shape, [2, 32]);
    assert!(!bench.path("plain/config.json").exists());
}

#[test]
fn senseless_combinations_and_damaged_files_are_refused() {
    let bench = Bench::new();
    let path = unknown(&bench);
    let whole = fs::read(&path).unwrap();
    let refused = |out: &str, more: &[&str], code: i32, parts: &[&str]| {
        convert(&path, &bench.path(out), more).refused(code, parts);
    };
    refused("x", &["--to", "safetensors", "--quant", "q8_0"], 2, &["--quant: `q8_0` is about GGUF"]);
    refused("x.gguf", &["--to", "safetensors"], 2, &["--out: the output is safetensors"]);
    refused("x", &["--to", "peft"], 1, &["`--to` names a dialect of adapters"]);
    refused("x.gguf", &["--rounding", "stochastic"], 2, &["--rounding: a GGUF file is rounded to nearest"]);
    refused("unknown.gguf", &["--force"], 1, &["the output would take the place of the input"]);
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    refused("x.gguf", &[], 1, &["unknown.gguf: tensor `some.weight`", "255 bytes of data"]);
    fs::write(&path, &whole[..40]).unwrap();
    refused("x.gguf", &[], 1, &["unknown.gguf: byte"]);
    let mut nan = whole.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &nan).unwrap();
    refused("x.gguf", &["--quant", "q8_0"], 1, &["`some.weight`", "the value at [1, 31] is NaN"]);
    assert_eq!(bench.listing(), ["unknown.gguf"]);
}
