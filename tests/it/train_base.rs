//! `merge --train-base`: the base that a QLoRA was trained on, made of its 16-bit weights.

use std::path::PathBuf;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Bench, Tensor, merge, noise, read, read_json, read_model, reference_part};

const Q: &str = "model.layers.0.self_attn.q_proj";

/// A model of one linear layer with values on the levels of NF4, a head and an embedding.
fn model(bench: &Bench) -> PathBuf {
    // −1, 1, 0 and the level of code 12, times the largest value of a block.
    let row = [-2.0, 2.0, 0.0, 0.440_709_83 * 2.0];
    let values: Vec<f32> = (0..64 * 4).map(|at| row[at % 4]).collect();
    let table = noise(5, 64, 1.0);
    bench.base(
        &[
            (&format!("{Q}.weight"), Tensor::f32(&[4, 64], &values)),
            ("model.embed_tokens.weight", Tensor::f32(&[1, 64], &table)),
            ("lm_head.weight", Tensor::f32(&[1, 64], &table)),
        ],
        &json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false}),
    )
}

fn adapter(bench: &Bench, config: Value) -> PathBuf {
    let pair = [
        (&*format!("{Q}.lora_A.weight"), Tensor::f32(&[2, 64], &[0.0; 128])),
        (&*format!("{Q}.lora_B.weight"), Tensor::f32(&[4, 2], &[0.0; 8])),
    ];
    bench.adapter("adapter", config, &pair)
}

#[test]
fn what_lies_on_the_levels_stays_and_heads_are_left_alone() {
    let bench = Bench::new();
    let (base, adapter) = (model(&bench), adapter(&bench, json!({})));
    let before = read(&base.join("model.safetensors"));
    for (spec, size) in [("nf4", 1e-7), ("nf4,block=128", 1e-7), ("nf4,double", 1e-7), ("int8", 0.01)] {
        let out = bench.path(spec);
        let report = merge(&base, &adapter, &out, &["--train-base", spec]).ok();
        assert!(report.stdout.contains("1 linear weights are what training on"), "{}", report.stdout);
        let got = read(&out.join("model.safetensors"));
        let name = format!("{Q}.weight");
        for (got, before) in got[&name].values().iter().zip(before[&name].values()) {
            assert!((got - before).abs() <= size, "{spec}: {got} for {before}");
        }
        assert!(got["lm_head.weight"] == before["lm_head.weight"]);
        assert!(got["model.embed_tokens.weight"] == before["model.embed_tokens.weight"]);
        let record = read_json(&out.join("lorakit.json"));
        assert_eq!(record["options"]["train_base"], spec);
    }
    merge(&base, &adapter, &bench.path("x"), &["--train-base", "nf5"]).refused(2, &["nf5"]);
    merge(&base, &adapter, &bench.path("x"), &["--train-base", "nf4", "--keep-format"])
        .refused(2, &["--keep-format", "--train-base"]);
}

#[test]
fn a_quantised_base_is_the_one_that_training_saw() {
    let bench = Bench::new();
    let codes = Tensor { dtype: Dtype::F8_E4M3, shape: vec![4, 64], data: vec![0x38; 256] };
    let base = bench
        .base(&[(&format!("{Q}.weight"), codes), (&format!("{Q}.weight_scale"), Tensor::f32(&[], &[0.5]))], &json!({}));
    merge(&base, &adapter(&bench, json!({})), &bench.path("out"), &["--train-base", "nf4"])
        .refused(1, &["is quantised itself", "leave `--train-base` away"]);
}

#[test]
fn an_adapter_whose_base_was_quantised_is_told() {
    let bench = Bench::new();
    let base = model(&bench);
    for (name, told) in [("unsloth/x-bnb-4bit", true), ("org/Model-AWQ", true), ("org/int4ntelligence-7b", false)] {
        let adapter = adapter(&bench, json!({"base_model_name_or_path": name}));
        let report = merge(&base, &adapter, &bench.path("out"), &["--force"]).ok();
        assert_eq!(report.stdout.contains("as its base, which is quantised"), told, "{}", report.stdout);
    }
    // A change of nothing is not measured; this one is a tenth of what NF4 does.
    let pair = [
        (&*format!("{Q}.lora_A.weight"), Tensor::f32(&[2, 64], &noise(1, 128, 0.1))),
        (&*format!("{Q}.lora_B.weight"), Tensor::f32(&[4, 2], &noise(2, 8, 0.1))),
    ];
    let plain = [(&*format!("{Q}.weight"), Tensor::f32(&[4, 64], &noise(3, 256, 1.0)))];
    let other = bench.path("other");
    crate::support::write(&other.join("model.safetensors"), &plain);
    let trained = bench.adapter("trained", json!({"base_model_name_or_path": "x-bnb-4bit"}), &pair);
    for more in [&[][..], &["--train-base", "nf4"]] {
        let report = merge(&other, &trained, &bench.path("out"), &[more, &["--force"]].concat()).ok();
        assert!(report.stdout.contains("× ‖ΔW‖: take the base that training saw"), "{}", report.stdout);
    }
    let aware = adapter(&bench, json!({"nvfp4_merge_aware": {"scale_mode": "fresh"}}));
    merge(&base, &aware, &bench.path("x"), &[]).refused(1, &["nvfp4_merge_aware", "fresh scales"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn the_merges_are_those_onto_the_model_that_bitsandbytes_loads() {
    let root = reference_part("quant");
    let variants = read_json(&root.join("bnb-sim/case.json"))["variants"].clone();
    let mut compared = 0;
    for (name, said) in variants.as_object().unwrap() {
        let (quant, bench) = (&said["quant"], Bench::new());
        let (kind, dtype) = (quant["type"].as_str().unwrap(), quant["dtype"].as_str().unwrap());
        let double = if quant["double"] == json!(true) { ",double" } else { "" };
        let spec = format!("{kind}{double},block={},dtype={dtype}", quant["block"]);
        let (base, adapter) = (root.join("bases-a/llama72"), root.join("bases-a/adapter-llama72"));
        merge(&base, &adapter, &bench.path("out"), &["--train-base", &spec, "--dtype", dtype]).ok();
        let got = read_model(&bench.path("out"));
        for (tensor, wanted) in read(&root.join("bnb-sim").join(said["file"].as_str().unwrap())) {
            assert!(got[&tensor] == wanted, "{name}: {tensor}");
            compared += 1;
        }
        for (tensor, digest) in said["untargeted_sha256"].as_object().unwrap() {
            let own: String = Sha256::digest(&got[tensor].data).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(own, digest.as_str().unwrap(), "{name}: {tensor}");
            compared += 1;
        }
    }
    assert!(compared >= 50, "{compared}");
}
