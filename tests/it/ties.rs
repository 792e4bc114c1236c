//! Heads that share the embedding's tensor.

use serde_json::json;

use crate::support::{Bench, Tensor, assert_close, dense, merge, noise, read, read_json};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const VOCABULARY: usize = 10;
const DIM: usize = 4;

fn base(bench: &Bench) -> std::path::PathBuf {
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": true});
    bench.base(&[(EMBEDDING, Tensor::f32(&[VOCABULARY, DIM], &noise(1, VOCABULARY * DIM, 1.0)))], &config)
}

fn head_pair(seed: u64) -> [(&'static str, Tensor); 2] {
    [
        ("lm_head.lora_A.weight", Tensor::f32(&[2, DIM], &noise(seed, 2 * DIM, 1.0))),
        ("lm_head.lora_B.weight", Tensor::f32(&[VOCABULARY, 2], &noise(seed + 1, 2 * VOCABULARY, 1.0))),
    ]
}

#[test]
fn a_change_to_the_head_alone_unties_it() {
    let bench = Bench::new();
    let base = base(&bench);
    let pair = head_pair(5);
    let adapter = bench.adapter("a", json!({}), &pair);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let (got, source) = (read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
    assert_eq!(got[EMBEDDING], source[EMBEDDING]);
    let wanted = dense(&source[EMBEDDING].values(), &pair[1].1.values(), &pair[0].1.values(), 2, 2.0);
    assert_close(&got[HEAD].values(), &wanted, 1e-6);
    assert_eq!(read_json(&bench.path("out/config.json"))["tie_word_embeddings"], false);
}

#[test]
fn a_replaced_embedding_leaves_the_head_as_it_was() {
    let bench = Bench::new();
    let base = base(&bench);
    let trained = Tensor::f32(&[VOCABULARY, DIM], &noise(9, VOCABULARY * DIM, 1.0));
    let config = json!({"modules_to_save": ["embed_tokens"]});
    let adapter = bench.adapter("a", config, &[("model.embed_tokens.weight", trained.clone())]);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let (got, source) = (read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
    assert_eq!(got[EMBEDDING], trained);
    assert_eq!(got[HEAD].data, source[EMBEDDING].data);
}

#[test]
fn an_embedding_trained_with_its_head_stays_tied() {
    let bench = Bench::new();
    let base = base(&bench);
    let trained = Tensor::f32(&[VOCABULARY, DIM], &noise(9, VOCABULARY * DIM, 1.0));
    let config = json!({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": true});
    let adapter = bench.adapter("a", config, &[("model.embed_tokens.weight", trained.clone())]);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let got = read(&bench.path("out/model.safetensors"));
    assert_eq!((got.len(), &got[EMBEDDING]), (1, &trained));
    assert_eq!(read_json(&bench.path("out/config.json"))["tie_word_embeddings"], true);
}

#[test]
fn head_and_embedding_saved_alike_stay_one_tensor() {
    let bench = Bench::new();
    let base = base(&bench);
    let trained = Tensor::f32(&[VOCABULARY, DIM], &noise(9, VOCABULARY * DIM, 1.0));
    let config = json!({"modules_to_save": ["embed_tokens", "lm_head"]});
    let tensors = [("model.embed_tokens.weight", trained.clone()), ("lm_head.weight", trained.clone())];
    let adapter = bench.adapter("a", config, &tensors);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert_eq!(read(&bench.path("out/model.safetensors")).len(), 1);
}

#[test]
fn a_head_the_base_does_not_have_is_added_if_it_was_declared() {
    let bench = Bench::new();
    let base = base(&bench);
    let head = Tensor::f32(&[3, DIM], &noise(7, 3 * DIM, 1.0));
    let adapter = bench.adapter("a", json!({"modules_to_save": ["score"]}), &[("score.weight", head.clone())]);
    let outcome = merge(&base, &adapter, &bench.path("out"), &[]).ok();
    assert_eq!(read(&bench.path("out/model.safetensors"))["score.weight"], head);
    assert!(outcome.stdout.contains("`score.weight` is new"), "{}", outcome.stdout);
    let undeclared = bench.adapter("b", json!({}), &[("score.weight", head)]);
    merge(&base, &undeclared, &bench.path("out2"), &[]).refused(1, &["score.weight"]);
}

#[test]
fn a_grown_vocabulary_names_both_sizes() {
    let bench = Bench::new();
    let base = base(&bench);
    let trained = Tensor::f32(&[12, DIM], &noise(9, 12 * DIM, 1.0));
    let config = json!({"modules_to_save": ["embed_tokens"]});
    let adapter = bench.adapter("a", config, &[("model.embed_tokens.weight", trained)]);
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &["[12, 4]", "[10, 4]", "resize_token_embeddings(12)"]);
}

#[test]
fn a_wrapped_path_does_not_count_as_trained_with_the_head() {
    let bench = Bench::new();
    let config = json!({"architectures": ["LlavaForConditionalGeneration"], "tie_word_embeddings": true});
    let name = "language_model.model.embed_tokens.weight";
    let base = bench.base(&[(name, Tensor::f32(&[VOCABULARY, DIM], &noise(1, VOCABULARY * DIM, 1.0)))], &config);
    let adapter = bench.adapter(
        "a",
        json!({}),
        &[
            ("model.language_model.embed_tokens.lora_embedding_A", Tensor::f32(&[2, VOCABULARY], &noise(2, 20, 1.0))),
            ("model.language_model.embed_tokens.lora_embedding_B", Tensor::f32(&[DIM, 2], &noise(3, 8, 1.0))),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let (got, source) = (read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
    assert_ne!(got[name], source[name]);
    let head = got.iter().find(|(key, _)| key.ends_with("lm_head.weight")).unwrap().1;
    assert_eq!(head.data, source[name].data);
}
