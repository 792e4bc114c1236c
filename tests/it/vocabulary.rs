//! Adapters whose embedding and head have another number of rows than the base's.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::support::{Bench, Tensor, fixtures, lorakit, merge, noise, read_json, read_model};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const RESIZE: &str = "--resize-vocab";

fn rows(count: usize, seed: u64) -> Tensor {
    Tensor::new(Dtype::F16, &[count, 4], &noise(seed, count * 4, 1.0))
}

/// A model with six tokens.
fn model(bench: &Bench, tied: bool) -> PathBuf {
    let config = json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied, "vocab_size": 6,
        "text_config": {"vocab_size": 6, "hidden_size": 4}});
    let mut tensors = vec![(EMBEDDING, rows(6, 1)), ("model.norm.weight", Tensor::f32(&[4], &[1.0; 4]))];
    if !tied {
        tensors.push((HEAD, rows(6, 2)));
    }
    bench.base(&tensors, &config)
}

fn saved(bench: &Bench, name: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
    bench.adapter(name, json!({"modules_to_save": ["embed_tokens", "lm_head"]}), tensors)
}

fn vocabularies(out: &Path) -> (Value, Value) {
    let config = read_json(&out.join("config.json"));
    (config["vocab_size"].clone(), config["text_config"]["vocab_size"].clone())
}

#[test]
fn a_grown_vocabulary_is_taken_whole_on_request() {
    let bench = Bench::new();
    let base = model(&bench, false);
    let adapter = saved(&bench, "a", &[(EMBEDDING, rows(9, 5)), (HEAD, rows(9, 6))]);
    merge(&base, &adapter, &bench.path("out"), &[])
        .refused(1, &[HEAD, "[9, 4]", "[6, 4]", RESIZE, "resize_token_embeddings(9)"]);
    let text = merge(&base, &adapter, &bench.path("out"), &[RESIZE]).ok().stdout;
    assert!(text.contains("goes from 6 to 9 tokens") && text.contains("vocab_size: 6 → 9"), "{text}");
    let got = read_model(&bench.path("out"));
    assert_eq!((&got[EMBEDDING], &got[HEAD]), (&rows(9, 5), &rows(9, 6)));
    assert_eq!(vocabularies(&bench.path("out")), (json!(9), json!(9)));
    assert_eq!(read_json(&bench.path("out/lorakit.json"))["options"]["resize_vocab"], true);
}

#[test]
fn the_fixtures_that_grow_and_shrink_are_taken_on_request() {
    let bad = fixtures().join("bad");
    for (name, count) in [("vocabulary-grew", 136), ("vocabulary-shrank", 120)] {
        let bench = Bench::new();
        let (base, adapter) = (bad.join("good/vocabulary"), bad.join(name));
        let out = bench.path("out");
        merge(&base, &adapter, &out, &[RESIZE, "--max-shard-size", "1kB"]).ok();
        assert_eq!(read_model(&out)[EMBEDDING].shape[0], count, "{name}");
    }
}

#[test]
fn a_tied_head_follows_its_embedding() {
    let bench = Bench::new();
    let base = model(&bench, true);
    let adapter = saved(&bench, "a", &[(EMBEDDING, Tensor::f32(&[9, 4], &noise(5, 36, 1.0)))]);
    merge(&base, &adapter, &bench.path("out"), &[RESIZE]).ok();
    let got = read_model(&bench.path("out"));
    assert_eq!(got[EMBEDDING], rows(9, 5));
    assert!(!got.contains_key(HEAD));
    assert_eq!(read_json(&bench.path("out/config.json"))["tie_word_embeddings"], true);
    let both = saved(&bench, "both", &[(EMBEDDING, rows(9, 5)), (HEAD, rows(9, 5))]);
    merge(&base, &both, &bench.path("alike"), &[RESIZE]).ok();
    assert_eq!(read_model(&bench.path("alike")), got);
}

#[test]
fn half_a_vocabulary_is_refused() {
    let bench = Bench::new();
    let base = model(&bench, false);
    let one = saved(&bench, "one", &[(EMBEDDING, rows(9, 5))]);
    merge(&base, &one, &bench.path("out"), &[RESIZE]).refused(1, &[EMBEDDING, "9 rows", HEAD, "keeps 6"]);
    let two = saved(&bench, "two", &[(EMBEDDING, rows(9, 5)), (HEAD, rows(8, 6))]);
    merge(&base, &two, &bench.path("out"), &[RESIZE]).refused(1, &["9", "8", "one size"]);
    let both = saved(&bench, "both", &[(EMBEDDING, rows(9, 5)), (HEAD, rows(9, 6))]);
    let half = format!("{}:0.5", both.display());
    merge(&base, Path::new(&half), &bench.path("out"), &[RESIZE]).refused(1, &["0.5", "[9, 4]"]);
    let words = ["merge", base.to_str().unwrap(), both.to_str().unwrap(), both.to_str().unwrap(), RESIZE, "-o"];
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = words.iter().map(|word| word as _).collect();
    let out = bench.path("out");
    words.push(&out);
    lorakit(&words).refused(1, &["changed by something else as well"]);
    assert_eq!(bench.listing(), ["base", "both", "one", "two"]);
}

#[test]
fn factors_of_another_vocabulary_stay_refused() {
    let bad = fixtures().join("bad");
    let bench = Bench::new();
    let (base, adapter) = (bad.join("good/vocabulary"), bad.join("vocabulary-grew-lora"));
    merge(&base, &adapter, &bench.path("out"), &[RESIZE]).refused(1, &["embed_tokens", "136"]);
}

#[test]
fn a_grown_vocabulary_shrinks_again_with_the_base() {
    let bench = Bench::new();
    let base = model(&bench, false);
    let adapter = saved(&bench, "a", &[(EMBEDDING, rows(9, 5)), (HEAD, rows(9, 6))]);
    merge(&base, &adapter, &bench.path("merged"), &[RESIZE]).ok();
    let (merged, out) = (bench.path("merged"), bench.path("out"));
    lorakit(&[&"subtract", &merged, &adapter, &"--base", &base, &RESIZE, &"-o", &out]).ok();
    assert!(read_model(&out) == read_model(&base));
    assert_eq!(vocabularies(&out), (json!(6), json!(6)));
}

#[test]
fn a_grown_model_is_its_base_and_what_is_extracted() {
    let bench = Bench::new();
    let base = model(&bench, false);
    let tuned = bench.path("tuned");
    let tensors = [(EMBEDDING, rows(9, 5)), ("model.norm.weight", Tensor::f32(&[4], &[1.0; 4])), (HEAD, rows(9, 6))];
    crate::support::write(&tuned.join("model.safetensors"), &tensors);
    let mut config = read_json(&base.join("config.json"));
    config["vocab_size"] = 9.into();
    config["text_config"]["vocab_size"] = 9.into();
    std::fs::write(tuned.join("config.json"), config.to_string()).unwrap();
    let (adapter, out) = (bench.path("adapter"), bench.path("out"));
    lorakit(&[&"extract", &base, &tuned, &"--rank", &"2", &"-o", &adapter]).ok();
    merge(&base, &adapter, &out, &[RESIZE]).ok();
    assert!(read_model(&out) == read_model(&tuned));
    assert_eq!(vocabularies(&out), (json!(9), json!(9)));
}
