//! Ways out that messages offer: none of them drops what was trained, none leads in a circle.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Bench, Tensor, merge, noise};

const DIM: usize = 4;

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, 1.0))
}

fn base(bench: &Bench) -> PathBuf {
    let query = "model.layers.0.self_attn.q_proj.weight";
    bench.base(
        &[(query, matrix(1, DIM, DIM)), ("model.norm.weight", matrix(2, 1, DIM))],
        &json!({"model_type": "llama"}),
    )
}

fn pair(module: &str) -> Vec<(String, Tensor)> {
    vec![(format!("{module}.lora_A.weight"), matrix(3, 2, DIM)), (format!("{module}.lora_B.weight"), matrix(4, DIM, 2))]
}

/// What `merge` says of an adapter with `tensors` beside a pair that fits.
fn said(config: Value, tensors: Vec<(String, Tensor)>) -> String {
    let bench = Bench::new();
    let all = [pair("model.layers.0.self_attn.q_proj"), tensors].concat();
    let all: Vec<(&str, Tensor)> = all.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let adapter = bench.adapter("adapter", config, &all);
    merge(&base(&bench), &adapter, &bench.path("out"), &[]).refused(1, &["have no place in the base"]).stderr
}

#[test]
fn what_was_trained_for_a_part_that_the_base_has_is_never_offered_to_be_dropped() {
    for tensors in [
        pair("model.layers.0.self_attn.v_proj"),
        pair("model.layers.1.self_attn.q_proj"),
        pair("model.layers.0.mlp.experts.0.gate_proj"),
        vec![("model.norm.scale".to_owned(), matrix(5, 1, DIM))],
        vec![("model.layers.0.self_attn.q_proj.lora_diag".to_owned(), matrix(5, 1, DIM))],
    ] {
        let name = tensors[0].0.clone();
        let said = said(json!({}), tensors);
        assert!(!said.contains("--allow-unused") && !said.contains("--exclude"), "{name}: {said}");
    }
}

#[test]
fn a_head_that_nothing_declares_is_told_how_to_be_added() {
    let said = said(json!({}), vec![("score.weight".to_owned(), matrix(5, 1, DIM))]);
    assert!(said.contains("modules_to_save") && !said.contains("--allow-unused"), "{said}");
}

#[test]
fn copies_and_parts_that_the_base_does_not_have_may_go() {
    let copy = vec![("model.embed_tokens.base_layer.weight".to_owned(), matrix(5, 8, DIM))];
    assert!(said(json!({}), copy).contains("--allow-unused"));
    assert!(said(json!({}), pair("visual.blocks.0.attn.qkv")).contains("--allow-unused"));
}

#[test]
fn no_other_file_offers_to_leave_modules_out() {
    // Files whose messages are about these options themselves, or about what is copied and not lost.
    const ALLOWED: [&str; 12] = [
        "src/cli/convert.rs",
        "src/cli/extract.rs",
        "src/cli/merge.rs",
        "src/cli/options.rs",
        "src/cli/resize.rs",
        "src/cli/stack.rs",
        "src/cli/subtract.rs",
        "src/cli/sum.rs",
        "src/ops/convert/rounded.rs",
        "src/ops/sum/intruders.rs",
        "src/output/provenance.rs",
        "src/placement/unplaced.rs",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut offers = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
            let text = fs::read_to_string(&path).unwrap_or_default();
            let is_offer = |line: &&str| {
                let code = line.trim_start();
                !code.starts_with("//")
                    && (code.contains("--exclude") || code.contains("--allow-unused"))
                    // The name of the option alone.
                    && !["\"--exclude\"", "\"--allow-unused\""].iter().any(|name| code.contains(name))
            };
            if !ALLOWED.contains(&name.as_str()) {
                offers.extend(text.lines().filter(is_offer).map(|line| format!("{name}: {line}")));
            }
        }
    }
    assert_eq!(offers, [""; 0]);
}

#[test]
fn a_value_beyond_f32_is_not_sent_to_f32() {
    let bench = Bench::new();
    let huge = Tensor::f32(&[DIM, DIM], &[f32::MAX; DIM * DIM]);
    let base = bench.base(&[("a.q_proj.weight", huge.clone())], &json!({}));
    let ones = |rows, cols| Tensor::f32(&[rows, cols], &[1e19; 2 * DIM][..rows * cols]);
    let adapter = bench.adapter(
        "adapter",
        json!({}),
        &[("a.q_proj.lora_A.weight", ones(2, DIM)), ("a.q_proj.lora_B.weight", ones(DIM, 2))],
    );
    let refused = merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &["`a.q_proj.weight`"]);
    assert!(!refused.stderr.contains("--dtype"), "{}", refused.stderr);
}
