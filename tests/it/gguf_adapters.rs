//! LoRA in GGUF, read and written: against what llama.cpp's converter makes of the same adapters where it is right, and against
//! the weights that PEFT merges where it is not (rsLoRA, patterns of alpha).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lorakit::formats::gguf::{Gguf, Layout, Metadata, Value as Entry, write as write_gguf};
use lorakit::tensor::{GgmlType, Shape, TensorInfo};
use serde_json::json;

use crate::support::*;

type Floats = BTreeMap<String, (Vec<u64>, GgmlType, Vec<f32>)>;

fn read_gguf(path: &Path) -> (Metadata, Floats) {
    let gguf = Gguf::open(path).unwrap();
    let tensor = |info: &TensorInfo| {
        let stored = gguf.find(&info.name).unwrap().unwrap();
        let ggml = GgmlType::of(&info.dtype).unwrap();
        let mut values = vec![0.0; usize::try_from(info.shape.elements().unwrap()).unwrap()];
        ggml.decode(stored.view().unwrap().data, &mut values);
        (info.name.clone(), (info.shape.as_slice().to_vec(), ggml, values))
    };
    (gguf.metadata().clone(), gguf.tensors().map(tensor).collect())
}

/// A file with these entries and tensors of F32.
fn gguf_file(path: &Path, entries: &[(&str, Entry)], tensors: &[(&str, &[u64], Vec<f32>)]) -> PathBuf {
    let mut metadata = Metadata::default();
    entries.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
    let info = |(name, shape, values): &(&str, &[u64], Vec<f32>)| TensorInfo {
        name: (*name).into(),
        dtype: GgmlType::F32.dtype(),
        shape: Shape::from(shape.to_vec()),
        offset: 0,
        bytes: 4 * values.len() as u64,
    };
    let layout = Layout::new(path, &metadata, tensors.iter().map(info).collect()).unwrap();
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes(values)).collect();
    let mut out = Vec::new();
    write_gguf(&mut out, &layout, data.iter().map(Vec::as_slice)).unwrap();
    fs::write(path, out).unwrap();
    path.into()
}

fn entries(arch: &str, alpha: f32) -> Vec<(&'static str, Entry)> {
    vec![
        ("general.architecture", arch.into()),
        ("general.type", "adapter".into()),
        ("adapter.type", "lora".into()),
        ("adapter.lora.alpha", Entry::F32(alpha)),
    ]
}

fn run(verb: &str, inputs: &[&Path], out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&verb];
    words.extend(inputs.iter().map(|input| input as &dyn AsRef<std::ffi::OsStr>));
    words.extend([&"-o" as &dyn AsRef<std::ffi::OsStr>, &out]);
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

/// `lorakit convert INPUT --to gguf --base BASE …`
fn to_gguf(input: &Path, base: &Path, out: &Path, more: &[&str]) -> Outcome {
    let more: Vec<&str> = ["--to", "gguf", "--base", base.to_str().unwrap()].iter().chain(more).copied().collect();
    run("convert", &[input], out, &more)
}

fn gguf_reference() -> (PathBuf, PathBuf) {
    let root = reference_part("gguf");
    let base = root.join("bases/tiny-hf-bf16");
    (root, base)
}

/// Everything that the reference says of the merged model has to be so in `merged`.
#[track_caller]
fn assert_merges(merged: &Path, case: &Path) {
    let (merged, expected) = (read_model(merged), read(&case.join("expected-f32.safetensors")));
    assert!(!expected.is_empty());
    expected.iter().for_each(|(name, tensor)| assert_close(&merged[name].values(), &tensor.values(), 1e-6));
}

/// Rows of keys and queries stand in another order in llama.cpp. The model has this one module.
#[test]
fn the_converters_file_merges_to_what_peft_merges() {
    let (root, bench) = (fixtures().join("methods/gguf"), Bench::new());
    let case = root.join("lora-all");
    let more = ["--dtype", "f32", "--include", "k_proj"];
    merge(&root.join("base"), &case.join("converter-f32.gguf"), &bench.path("out"), &more).ok();
    assert_merges(&bench.path("out"), &case);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_the_converter_makes_is_made_tensor_for_tensor() {
    let (root, base) = gguf_reference();
    for (case, dtype) in [("lora-all", "f32"), ("lora-all", "f16"), ("lora-embed", "f32"), ("lora-embed", "f16")] {
        let bench = Bench::new();
        let out = bench.path("adapter.gguf");
        to_gguf(&root.join(case).join("adapter"), &base, &out, &["--dtype", dtype]).ok();
        assert_eq!(bench.listing(), ["adapter.gguf"]);
        let (ours, theirs) = (read_gguf(&out), read_gguf(&root.join(case).join(format!("converter-{dtype}.gguf"))));
        assert_eq!(ours.1, theirs.1, "{case} {dtype}");
        for key in ["general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"] {
            assert_eq!(ours.0.get(key), theirs.0.get(key), "{case}: {key}");
        }
        assert_eq!(ours.0.number("general.file_type"), Some(u64::from(dtype == "f16")));
        assert_eq!(ours.0.number("general.quantization_version"), Some(2));
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn real_adapters_give_the_tensors_of_the_converter() {
    use sha2::Digest;
    let (root, base) = gguf_reference();
    let config = |bench: &Bench| {
        let directory = bench.path("base");
        fs::create_dir(&directory).unwrap();
        let heads = json!({"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3});
        fs::write(directory.join("config.json"), heads.to_string()).unwrap();
        directory
    };
    assert!(base.exists());
    for case in ["smollm2-lora-all-r16", "smollm2-lora-qkvo-r8"] {
        let bench = Bench::new();
        let facts = read_json(&root.join(case).join("case.json"));
        let adapter = root.join("..").join(facts["adapter"].as_str().unwrap()).join("adapter");
        let out = bench.path("adapter.gguf");
        to_gguf(&adapter, &config(&bench), &out, &["--dtype", "f16"]).ok();
        let gguf = Gguf::open(&out).unwrap();
        let expected = facts["converter"]["tensors"].as_object().unwrap();
        assert_eq!(gguf.tensors().count(), expected.len());
        for info in gguf.tensors() {
            let digest = sha2::Sha256::digest(gguf.find(&info.name).unwrap().unwrap().view().unwrap().data);
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(expected[&info.name][2], digest, "{case}: {}", info.name);
        }
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn scales_that_no_alpha_says_give_the_weights_that_peft_merges() {
    let (root, base) = gguf_reference();
    for case in ["lora-all", "lora-patterns", "rslora-all", "lora-embed"] {
        let (bench, case) = (Bench::new(), root.join(case));
        let out = bench.path("adapter.gguf");
        to_gguf(&case.join("adapter"), &base, &out, &[]).ok();
        let (metadata, tensors) = read_gguf(&out);
        assert!(metadata.get("adapter.lora.alpha").unwrap().as_f64().unwrap() > 0.0);
        assert!(tensors.values().all(|(_, ggml, _)| *ggml == GgmlType::F32));
        merge(&base, &out, &bench.path("merged"), &["--dtype", "f32"]).ok();
        assert_merges(&bench.path("merged"), &case);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn files_of_the_converter_merge_into_what_peft_merges() {
    let (root, base) = gguf_reference();
    for case in ["lora-all", "lora-embed", "lora-mts-norm"] {
        let (bench, case) = (Bench::new(), root.join(case));
        let outcome = merge(&base, &case.join("converter-f32.gguf"), &bench.path("merged"), &["--dtype", "f32"]).ok();
        assert_merges(&bench.path("merged"), &case);
        assert_eq!(outcome.stdout.contains("llama.cpp ignores them"), case.ends_with("lora-mts-norm"));
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_file_of_the_converter_becomes_the_adapter_it_was_made_of() {
    let (root, base) = gguf_reference();
    let base_is = ["--to", "peft", "--base", base.to_str().unwrap()];
    for case in ["lora-all", "lora-embed", "lora-mts-norm"] {
        let (bench, case) = (Bench::new(), root.join(case));
        run("convert", &[&case.join("converter-f32.gguf")], &bench.path("peft"), &base_is).ok();
        let (ours, theirs) = (
            read(&bench.path("peft/adapter_model.safetensors")),
            read(&case.join("adapter/adapter_model.safetensors")),
        );
        // The converter leaves copies of the model's own weights out.
        let theirs: Tensors = theirs.into_iter().filter(|(name, _)| !name.contains("base_layer")).collect();
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        theirs.iter().for_each(|(name, tensor)| assert_eq!(ours[name].values(), tensor.values(), "{name}"));
        let config = read_json(&bench.path("peft/adapter_config.json"));
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(8)));
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_was_written_comes_back_without_the_model() {
    let (root, base) = gguf_reference();
    for case in ["lora-all", "lora-patterns", "rslora-all"] {
        let (bench, case) = (Bench::new(), root.join(case));
        to_gguf(&case.join("adapter"), &base, &bench.path("a.gguf"), &[]).ok();
        run("convert", &[&bench.path("a.gguf")], &bench.path("peft"), &["--to", "peft"]).ok();
        merge(&base, &bench.path("peft"), &bench.path("merged"), &["--dtype", "f32"]).ok();
        assert_merges(&bench.path("merged"), &case);
        // And the same bytes again.
        to_gguf(&bench.path("peft"), &base, &bench.path("b.gguf"), &[]).ok();
        assert_eq!(read_gguf(&bench.path("a.gguf")).1, read_gguf(&bench.path("b.gguf")).1);
    }
}

/// `config.json` alone, as it is enough for llama.cpp's names and order.
fn config(bench: &Bench, name: &str, config: &serde_json::Value) -> PathBuf {
    let directory = bench.path(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    directory
}

fn heads(kind: &str) -> serde_json::Value {
    json!({"model_type": kind, "num_attention_heads": 4, "num_key_value_heads": 2})
}

/// A pair with 2 ranks, 8 inputs and 8 outputs.
fn pair(tensor: &str, seed: u64) -> [(String, Vec<u64>, Vec<f32>); 2] {
    [
        (format!("{tensor}.weight.lora_a"), vec![2, 8], noise(seed, 16, 1.0)),
        (format!("{tensor}.weight.lora_b"), vec![8, 2], noise(seed + 1, 16, 1.0)),
    ]
}

fn with_tensors(path: &Path, entries: &[(&str, Entry)], tensors: &[(String, Vec<u64>, Vec<f32>)]) -> PathBuf {
    let tensors: Vec<(&str, &[u64], Vec<f32>)> =
        tensors.iter().map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.clone())).collect();
    gguf_file(path, entries, &tensors)
}

#[test]
fn experts_are_taken_out_of_their_stack_and_put_back() {
    let bench = Bench::new();
    let stack = |factor: &str, shape: [u64; 3], seed| {
        let count = shape.iter().product::<u64>();
        let values = noise(seed, usize::try_from(count).unwrap(), 1.0);
        (format!("blk.1.ffn_gate_exps.weight.lora_{factor}"), shape.to_vec(), values)
    };
    let tensors = [stack("a", [3, 2, 8], 1), stack("b", [3, 6, 2], 2)];
    let file = with_tensors(&bench.path("a.gguf"), &entries("llama", 4.0), &tensors);
    run("convert", &[&file], &bench.path("peft"), &["--to", "peft"]).ok();
    let written = read(&bench.path("peft/adapter_model.safetensors"));
    let key = "base_model.model.model.layers.1.block_sparse_moe.experts.2.w1.lora_B.weight";
    assert_eq!(written[key].values(), tensors[1].2[24..].iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    assert_eq!(written.len(), 6);
    run("convert", &[&bench.path("peft")], &bench.path("b.gguf"), &["--to", "gguf", "--arch", "mixtral"]).ok();
    assert_eq!(read_gguf(&bench.path("b.gguf")).1, read_gguf(&file).1);
    // Experts that are not changed are zeros in the stack; how many there are has to be known.
    let some = ["--to", "gguf", "--arch", "llama", "--exclude", "experts.1"];
    run("convert", &[&bench.path("peft")], &bench.path("c.gguf"), &some).refused(1, &["lacks expert 1"]);
    let base = config(&bench, "base", &json!({"model_type": "mixtral", "num_local_experts": 4}));
    let outcome = to_gguf(&bench.path("peft"), &base, &bench.path("c.gguf"), &["--exclude", "experts.1"]).ok();
    assert!(outcome.stdout.contains("2 experts that are not changed"), "{}", outcome.stdout);
    let (_, filled) = read_gguf(&bench.path("c.gguf"));
    let (shape, _, values) = &filled["blk.1.ffn_gate_exps.weight.lora_b"];
    assert_eq!(shape, &[4, 6, 2]);
    assert_eq!((&values[..12], &values[24..36]), (&tensors[1].2[..12], &tensors[1].2[24..]));
    assert!(values[12..24].iter().chain(&values[36..]).all(|value| *value == 0.0));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_file_is_packed_again_without_its_model() {
    let (root, base) = gguf_reference();
    let bench = Bench::new();
    let file = root.join("lora-all/converter-f32.gguf");
    run("convert", &[&file], &bench.path("f16.gguf"), &["--dtype", "f16"]).ok();
    assert_eq!(read_gguf(&bench.path("f16.gguf")).1, read_gguf(&root.join("lora-all/converter-f16.gguf")).1);
    // 256 inputs are blocks of 32, 4 ranks are none.
    let outcome = run("convert", &[&file], &bench.path("q8.gguf"), &["--to", "gguf", "--quant", "q8_0"]).ok();
    assert!(outcome.stdout.contains("7 of 14 factors are F16"), "{}", outcome.stdout);
    let (metadata, packed) = read_gguf(&bench.path("q8.gguf"));
    assert_eq!(metadata.number("general.file_type"), Some(7));
    assert_eq!(packed["blk.0.attn_q.weight.lora_a"].1, GgmlType::Q8_0);
    assert_eq!(packed["blk.0.attn_q.weight.lora_b"].1, GgmlType::F16);
    // What is packed is read as what it stands for.
    run("convert", &[&bench.path("q8.gguf")], &bench.path("f32.gguf"), &["--dtype", "f32"]).ok();
    let (_, plain) = read_gguf(&bench.path("f32.gguf"));
    packed.iter().for_each(|(name, (_, _, values))| assert_eq!(&plain[name].2, values, "{name}"));
    merge(&base, &bench.path("q8.gguf"), &bench.path("merged"), &["--dtype", "f32"]).ok();
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn other_verbs_take_such_files() {
    let (root, base) = gguf_reference();
    let bench = Bench::new();
    let file = root.join("lora-all/converter-f32.gguf");
    let base_is = ["--base", base.to_str().unwrap()];
    let to_peft = ["--to", "peft", base_is[0], base_is[1]];
    run("stack", &[&file, &file], &bench.path("sum"), &to_peft).ok();
    run("stack", &[&root.join("lora-all/adapter"), &file], &bench.path("other"), &to_peft).ok();
    let [sum, other] = ["sum", "other"].map(|name| read(&bench.path(name).join("adapter_model.safetensors")));
    assert_eq!(sum, other);
    run("resize", &[&file], &bench.path("small"), &["--rank", "2", base_is[0], base_is[1]]).ok();
    run("resize", &[&root.join("lora-all/adapter")], &bench.path("same"), &["--rank", "2"]).ok();
    for name in ["small", "same"] {
        merge(&base, &bench.path(name), &bench.path(&format!("{name}-merged")), &["--dtype", "f32"]).ok();
    }
    let [small, same] = ["small-merged", "same-merged"].map(|name| read_model(&bench.path(name)));
    small.iter().for_each(|(name, tensor)| assert_close(&tensor.values(), &same[name].values(), 1e-5));
    let told = lorakit(&[&"inspect", &file, &"--json"]).ok().json();
    assert_eq!((&told["kind"], &told["dialect"], &told["pairs"]), (&json!("adapter"), &json!("gguf"), &json!(7)));
    assert_eq!(told["problems"], json!([]));
    run("stack", &[&file, &file], &bench.path("no"), &[]).refused(1, &["attn_k.weight.lora_b", "--base PATH"]);
    run("subtract", &[&bench.path("sum"), &file], &bench.path("less"), &base_is).ok();
    merge(&base, &bench.path("less"), &bench.path("less-merged"), &["--dtype", "f32"]).ok();
    assert_merges(&bench.path("less-merged"), &root.join("lora-all"));
}

#[test]
fn what_llama_cpp_says_beside_the_factors_is_kept() {
    let bench = Bench::new();
    let mut said = entries("qwen2", 4.0);
    let tokens = lorakit::formats::gguf::Array::of_u32([7, 8]);
    said.push(("adapter.lora.task_name", "classify".into()));
    said.push(("adapter.alora.invocation_tokens", Entry::Array(tokens)));
    said.push(("general.base_model.count", Entry::U32(1)));
    said.push(("general.base_model.0.repo_url", "https://huggingface.co/org/name".into()));
    let file = with_tensors(&bench.path("a.gguf"), &said, &pair("blk.0.attn_q", 1));
    // No weight can hold what acts after some tokens only.
    let base = bench
        .base(&[("model.layers.0.self_attn.q_proj.weight", Tensor::f32(&[8, 8], &noise(3, 64, 1.0)))], &heads("qwen2"));
    merge(&base, &file, &bench.path("merged"), &[]).refused(1, &["alora_invocation_tokens", "activated LoRA"]);
    run("convert", &[&file], &bench.path("b.gguf"), &["--dtype", "f16"]).ok();
    let (metadata, _) = read_gguf(&bench.path("b.gguf"));
    said.iter().for_each(|(key, value)| assert_eq!(metadata.get(key), Some(value), "{key}"));
    let outcome = run("convert", &[&file], &bench.path("peft"), &["--to", "peft"]).ok();
    assert!(outcome.stdout.contains("`classify`"), "{}", outcome.stdout);
    let told = read_json(&bench.path("peft/adapter_config.json"));
    assert_eq!(told["alora_invocation_tokens"], json!([7, 8]));
    assert_eq!(told["base_model_name_or_path"], "org/name");
    to_gguf(&bench.path("peft"), &base, &bench.path("c.gguf"), &[]).ok();
    let (metadata, tensors) = read_gguf(&bench.path("c.gguf"));
    assert_eq!(metadata.get("adapter.alora.invocation_tokens"), Some(&said[5].1));
    assert_eq!(metadata.text("general.base_model.0.repo_url"), Some("https://huggingface.co/org/name"));
    assert_eq!(tensors, read_gguf(&file).1);
    run("convert", &[&file], &bench.path("mlx"), &["--to", "mlx"]).refused(1, &["alora_invocation_tokens"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_llama_cpp_does_not_have_is_refused_with_the_way_out() {
    let (root, base) = gguf_reference();
    let bench = Bench::new();
    let out = bench.path("out.gguf");
    let of = |case: &str| root.join(case).join("adapter");
    to_gguf(&of("dora"), &base, &out, &[]).refused(1, &["has magnitudes of DoRA", "merge it into the model"]);
    to_gguf(&of("lora-mts-norm"), &base, &out, &[])
        .refused(1, &["`model.layers.0.input_layernorm.weight` is stored whole", "lorakit merge"]);
    to_gguf(&of("lora-mts-norm"), &base, &out, &["--exclude", "layernorm"]).ok();
    fs::remove_file(&out).unwrap();
    let loha = root.join("../peft/loha-r4/adapter");
    to_gguf(&loha, &base, &out, &[]).refused(1, &["is changed by LoHa, and llama.cpp knows LoRA", "--as lora"]);
    let plain = of("lora-all");
    run("convert", &[&plain], &out, &["--to", "gguf"]).refused(1, &["nothing of the architecture", "--arch NAME"]);
    run("convert", &[&plain], &out, &["--to", "gguf", "--arch", "llama"])
        .refused(1, &["self_attn.k_proj`: the number of attention heads is not known"]);
    run("convert", &[&plain], &out, &["--to", "gguf", "--arch", "gpt5"]).refused(2, &["`gpt5` is not one of llama"]);
    to_gguf(&plain, &base, &out, &["--quant", "q9"]).refused(2, &["`q9` is not one of f32"]);
    to_gguf(&plain, &base, &out, &["--dtype", "f8_e4m3"]).refused(2, &["ggml has no such type"]);
    let other = config(&bench, "other", &heads("mamba9"));
    to_gguf(&plain, &other, &out, &[]).refused(1, &["of type `mamba9`", "known are llama"]);
    let odd = config(&bench, "odd", &json!({"model_type": "llama", "num_attention_heads": 3}));
    to_gguf(&plain, &odd, &out, &[]).refused(1, &["128 outputs are not 3 heads"]);
    let phi = config(&bench, "phi", &heads("gemma2"));
    let head = bench.adapter(
        "head",
        json!({}),
        &[
            ("lm_head.lora_A.weight", Tensor::f32(&[2, 8], &noise(1, 16, 1.0))),
            ("lm_head.lora_B.weight", Tensor::f32(&[9, 2], &noise(2, 18, 1.0))),
        ],
    );
    to_gguf(&head, &phi, &out, &[])
        .refused(1, &["module `lm_head` has no tensor in a GGUF file of architecture gemma2"]);
    to_gguf(&head, &base, &out, &[]).refused(1, &["`lm_head` is changed", "tie_word_embeddings"]);
    assert!(!out.exists());
}

#[test]
fn files_that_are_no_such_adapters_are_refused() {
    let bench = Bench::new();
    let file = bench.path("a.gguf");
    let peft = ["--to", "peft"];
    let refused = |entries: &[(&str, Entry)], tensors: &[(String, Vec<u64>, Vec<f32>)], parts: &[&str]| {
        with_tensors(&file, entries, tensors);
        run("convert", &[&file], &bench.path("out"), &peft).refused(1, parts);
        assert!(!bench.path("out").exists());
    };
    let said = entries("qwen2", 4.0);
    let [down, up] = pair("blk.0.attn_q", 1);
    refused(&said, std::slice::from_ref(&down), &["tensor `blk.0.attn_q.weight`: has one factor"]);
    let long = (up.0.clone(), vec![4, 4], up.2.clone());
    refused(&said, &[down.clone(), long], &["factors of shapes [2, 8] and [4, 4] do not fit each other"]);
    let other = ("blk.0.attn_q.weight".to_owned(), vec![2, 8], down.2.clone());
    refused(&said, &[other], &["tensor `blk.0.attn_q.weight` is no factor"]);
    refused(&said, &pair("blk.0.attn_z", 1), &["`blk.0.attn_z.weight` is of no module known in architecture qwen2"]);
    refused(&entries("mamba9", 4.0), &pair("blk.0.attn_q", 1), &["architecture `mamba9`"]);
    refused(
        &entries("qwen2", f32::NAN),
        &pair("blk.0.attn_q", 1),
        &["key `adapter.lora.alpha`: must be a finite number"],
    );
    let mut nan = pair("blk.0.attn_q", 1);
    nan[1].2[3] = f32::NAN;
    refused(&said, &nan, &["blk.0.attn_q.weight.lora_b", "element 3 is NaN"]);
    let mut other = entries("qwen2", 4.0);
    other[2].1 = "control".into();
    refused(&other, &pair("blk.0.attn_q", 1), &["is no LoRA", "`control`"]);
    // Cut short.
    let whole = fs::read(with_tensors(&file, &said, &pair("blk.0.attn_q", 1))).unwrap();
    for length in [20, whole.len() / 2, whole.len() - 64] {
        fs::write(&file, &whole[..length]).unwrap();
        run("merge", &[&bench.path("base"), &file], &bench.path("out"), &[]).refused(1, &[]);
        run("stack", &[&file], &bench.path("out"), &[]).refused(1, &["a.gguf"]);
    }
}

#[test]
fn the_model_has_to_be_the_one_it_is_for() {
    let bench = Bench::new();
    let file = with_tensors(&bench.path("a.gguf"), &entries("qwen2", 4.0), &pair("blk.0.attn_q", 1));
    let base = bench
        .base(&[("model.layers.0.self_attn.q_proj.weight", Tensor::f32(&[8, 8], &noise(3, 64, 1.0)))], &heads("llama"));
    let parts = ["of architecture `qwen2`", "of type `llama`"];
    merge(&base, &file, &bench.path("merged"), &[]).refused(1, &parts);
    run("convert", &[&file], &bench.path("b.gguf"), &["--to", "gguf", "--arch", "llama"])
        .refused(1, &["is for architecture `qwen2`, not `llama`"]);
    run("convert", &[&file], &bench.path("c"), &["--to", "safetensors"]).refused(1, &["--to peft"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_reference_adapter_of_a_language_model_is_written_or_refused_with_the_reason() {
    let root = reference();
    let mut written = Vec::new();
    for (part, bases) in [("peft", "peft/bases"), ("mlx", ".")] {
        let mut cases: Vec<PathBuf> =
            fs::read_dir(root.join(part)).unwrap().map(|entry| entry.unwrap().path()).collect();
        cases.sort();
        for case in cases.iter().filter(|case| case.join("adapter").is_dir() && case.join("case.json").is_file()) {
            let base = read_json(&case.join("case.json"))["base"].as_str().unwrap().to_owned();
            let (bench, base, adapter) = (Bench::new(), root.join(bases).join(base), case.join("adapter"));
            if !base.is_dir() || merge(&base, &adapter, &bench.path("merged"), &["--dtype", "f32"]).code != 0 {
                continue;
            }
            let out = bench.path("a.gguf");
            let outcome = to_gguf(&adapter, &base, &out, &[]);
            if outcome.code != 0 {
                assert!(outcome.stderr.starts_with("error: ") && !out.exists(), "{}", outcome.stderr);
                continue;
            }
            merge(&base, &out, &bench.path("other"), &["--dtype", "f32"]).ok();
            let [expected, found] = ["merged", "other"].map(|name| read_model(&bench.path(name)));
            assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
            for (name, tensor) in &expected {
                assert_close(&found[name].values(), &tensor.values(), 1e-6);
            }
            written.push(case.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    for case in ["gpt2-fanin", "mixtral-params", "mixtral-router", "qwen3moe-params", "lora-last-layer"] {
        assert!(written.iter().any(|other| other == case), "{case} is not among {written:?}");
    }
}

/// What a pair adds, for matrices row by row.
fn product(up: &[f64], down: &[f64], rank: usize) -> Vec<f64> {
    let zeros = vec![0.0; up.len() / rank * (down.len() / rank)];
    dense(&zeros, up, down, rank, 1.0)
}

fn peft_pair(module: &str, outputs: usize, seed: u64) -> [(String, Tensor); 2] {
    [
        (format!("{module}.lora_A.weight"), Tensor::f32(&[2, 8], &noise(seed, 16, 1.0))),
        (format!("{module}.lora_B.weight"), Tensor::f32(&[outputs, 2], &noise(seed + 1, 2 * outputs, 1.0))),
    ]
}

fn peft_adapter(bench: &Bench, name: &str, pairs: &[(&str, usize)]) -> PathBuf {
    let tensors: Vec<(String, Tensor)> =
        (1_u64..).zip(pairs).flat_map(|(seed, (module, outputs))| peft_pair(module, *outputs, 10 * seed)).collect();
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    bench.adapter(name, json!({}), &tensors)
}

#[test]
fn rows_of_fused_weights_lie_as_the_file_has_them() {
    let bench = Bench::new();
    for (kind, module, more, order) in [
        // Heads of two rows: query, key and value of one head after the other.
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value", json!({}), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]),
        // One key and one value for all queries: they lie as in the file.
        (
            "falcon",
            "transformer.h.0.self_attention.query_key_value",
            json!({"num_attention_heads": 4, "num_kv_heads": 1, "multi_query": true, "new_decoder_architecture": false}),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        ),
        (
            "falcon",
            "transformer.h.0.self_attention.query_key_value",
            json!({"num_attention_heads": 8, "num_kv_heads": 2, "new_decoder_architecture": true}),
            [0, 1, 2, 3, 6, 7, 8, 9, 4, 10, 5, 11],
        ),
    ] {
        let mut says = json!({"model_type": kind, "num_attention_heads": 2});
        says.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let base = config(&bench, "base", &says);
        let adapter = peft_adapter(&bench, "adapter", &[(module, 12)]);
        let out = bench.path("a.gguf");
        to_gguf(&adapter, &base, &out, &["--force"]).ok();
        let (_, tensors) = read_gguf(&out);
        let (name, (_, _, written)) =
            tensors.iter().find(|(name, _)| name.ends_with("attn_qkv.weight.lora_b")).unwrap();
        let rows = read(&adapter.join("adapter_model.safetensors"));
        let rows = rows[&format!("base_model.model.{module}.lora_B.weight")].values();
        let expected: Vec<f64> = order.iter().flat_map(|row| rows[2 * row..2 * row + 2].to_vec()).collect();
        assert_eq!(written.iter().map(|value| f64::from(*value)).collect::<Vec<_>>(), expected, "{kind} {name}");
        run("convert", &[&out], &bench.path("back"), &["--to", "peft", "--force"]).ok();
        let back = read(&bench.path("back/adapter_model.safetensors"));
        assert_eq!(back, read(&adapter.join("adapter_model.safetensors")), "{kind}");
    }
}

#[test]
fn parts_become_the_one_weight_that_the_file_has() {
    let bench = Bench::new();
    let layer = "model.layers.0";
    let parts = [
        ("self_attn.q_proj", 8),
        ("self_attn.k_proj", 4),
        ("self_attn.v_proj", 4),
        ("mlp.gate_proj", 6),
        ("mlp.up_proj", 6),
    ];
    let named: Vec<(String, usize)> = parts.iter().map(|(part, rows)| (format!("{layer}.{part}"), *rows)).collect();
    let named: Vec<(&str, usize)> = named.iter().map(|(part, rows)| (part.as_str(), *rows)).collect();
    let adapter = peft_adapter(&bench, "adapter", &named);
    let base = config(&bench, "base", &heads("phi3"));
    let outcome = to_gguf(&adapter, &base, &bench.path("a.gguf"), &["--json"]).ok().json();
    assert_eq!(outcome["fused"], 2);
    let (_, tensors) = read_gguf(&bench.path("a.gguf"));
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let own = read(&adapter.join("adapter_model.safetensors"));
    for (tensor, parts) in [("attn_qkv", &parts[..3]), ("ffn_up", &parts[3..])] {
        let factor = |end: &str| &tensors[&format!("blk.0.{tensor}.weight.lora_{end}")];
        let rank = usize::try_from(factor("a").0[0]).unwrap();
        let whole = product(&wide(&factor("b").2), &wide(&factor("a").2), rank);
        let part = |part: &str, end: &str| own[&format!("base_model.model.{layer}.{part}.lora_{end}.weight")].values();
        let each = parts.iter().flat_map(|(name, _)| product(&part(name, "B"), &part(name, "A"), 2));
        // 4 / 2 in front of the parts, 6 / r in front of the whole.
        let each: Vec<f64> = each.map(|value| value * 2.0 * rank as f64 / 6.0).collect();
        assert_close(&whole, &each, 1e-6);
    }
    let (metadata, _) = read_gguf(&bench.path("a.gguf"));
    assert_eq!(metadata.get("adapter.lora.alpha"), Some(&Entry::F32(6.0)));
    // Queries alone do not tell where the others lie.
    let only = ["--include", "q_proj", "--force"];
    to_gguf(&adapter, &base, &bench.path("b.gguf"), &only).ok();
    assert_eq!(read_gguf(&bench.path("b.gguf")).1["blk.0.attn_qkv.weight.lora_b"].0, [16, 2]);
    let arch = ["--to", "gguf", "--arch", "phi3", "--include", "q_proj", "--force"];
    run("convert", &[&adapter], &bench.path("b.gguf"), &arch).refused(1, &["the queries of", "--base PATH"]);
}

#[test]
fn a_weight_that_is_several_in_the_file_comes_back_as_one() {
    let bench = Bench::new();
    let adapter = peft_adapter(&bench, "adapter", &[("model.layers.0.shared_mlp.input_linear", 12)]);
    let base = config(&bench, "base", &heads("granitemoeshared"));
    to_gguf(&adapter, &base, &bench.path("a.gguf"), &[]).ok();
    let (_, tensors) = read_gguf(&bench.path("a.gguf"));
    let names: Vec<&str> = tensors.keys().map(String::as_str).filter(|name| name.ends_with("lora_b")).collect();
    assert_eq!(names, ["blk.0.ffn_gate_shexp.weight.lora_b", "blk.0.ffn_up_shexp.weight.lora_b"]);
    run("convert", &[&bench.path("a.gguf")], &bench.path("back"), &["--to", "peft"]).ok();
    let back = read(&bench.path("back/adapter_model.safetensors"));
    assert_eq!(back, read(&adapter.join("adapter_model.safetensors")));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn names_of_other_writers_find_their_place() {
    let root = reference();
    let bench = Bench::new();
    // mlx-lm's adapter of the same model, and the language model inside one that also sees.
    let mlx = root.join("mlx/lora");
    let base = root.join(read_json(&mlx.join("case.json"))["base"].as_str().unwrap());
    to_gguf(&mlx.join("adapter"), &base, &bench.path("mlx.gguf"), &[]).ok();
    assert!(read_gguf(&bench.path("mlx.gguf")).1.keys().all(|name| name.starts_with("blk.")));
    let adapter = peft_adapter(&bench, "sees", &[("model.language_model.layers.3.mlp.up_proj", 6)]);
    let says = json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}});
    to_gguf(&adapter, &config(&bench, "gemma", &says), &bench.path("sees.gguf"), &[]).ok();
    assert_eq!(read_gguf(&bench.path("sees.gguf")).1.len(), 2);
    // lorakit writes them itself, with other verbs than convert.
    let adapter = peft_adapter(&bench, "plain", &[("model.layers.0.mlp.up_proj", 6)]);
    run("stack", &[&adapter, &adapter], &bench.path("sum.gguf"), &["--to", "gguf", "--arch", "qwen2"]).ok();
    let (metadata, tensors) = read_gguf(&bench.path("sum.gguf"));
    assert_eq!(metadata.text("general.architecture"), Some("qwen2"));
    assert_eq!(tensors["blk.0.ffn_up.weight.lora_b"].0, [6, 4]);
    let deep = peft_adapter(&bench, "deep", &[("model.layers.0.self_attn.kv_b_proj", 6)]);
    let outcome = run("convert", &[&deep], &bench.path("deep.gguf"), &["--to", "gguf", "--arch", "deepseek2"]);
    outcome.refused(1, &["kv_b_proj` has no tensor in a GGUF file of architecture deepseek2: it is two tensors there"]);
}

#[test]
fn the_model_that_an_adapter_names_is_found_in_the_cache() {
    let bench = Bench::new();
    let repository = bench.path("hub/models--org--name");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "0123abcd").unwrap();
    config(&bench, "hub/models--org--name/snapshots/0123abcd", &heads("llama"));
    let pairs = peft_pair("model.layers.0.self_attn.q_proj", 8, 1);
    let pairs: Vec<(&str, Tensor)> = pairs.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    let adapter = bench.adapter("adapter", json!({"base_model_name_or_path": "org/name"}), &pairs);
    let out = bench.path("a.gguf");
    let mut command = assert_cmd::Command::cargo_bin("lorakit").unwrap();
    command.args([
        "convert".as_ref(),
        adapter.as_os_str(),
        "-o".as_ref(),
        out.as_os_str(),
        "--to".as_ref(),
        "gguf".as_ref(),
    ]);
    command.env("HF_HUB_CACHE", bench.path("hub")).assert().success();
    let (metadata, _) = read_gguf(&out);
    assert_eq!(metadata.text("general.architecture"), Some("llama"));
    assert_eq!(metadata.number("llama.attention.head_count_kv"), Some(2));
    assert_eq!(metadata.text("general.base_model.0.organization"), Some("org"));
}
