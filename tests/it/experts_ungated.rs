//! Experts without a gate, and experts that no change can be added to: packed, or one pair for all in three dimensions.

use std::path::PathBuf;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::support::{Bench, Tensor, Tensors, assert_close, dense, lorakit, merge, noise, read, write};

const EXPERTS: usize = 3;
const WIDTH: usize = 4;
const INNER: usize = 6;
const RANK: usize = 2;

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, 1.0))
}

/// Rows and columns of a projection.
fn size(name: &str) -> (usize, usize) {
    if name == "up_proj" { (INNER, WIDTH) } else { (WIDTH, INNER) }
}

fn seed(expert: usize, name: &str) -> u64 {
    100 + 10 * expert as u64 + u64::from(name == "up_proj")
}

fn expert(number: usize, name: &str) -> Tensor {
    let (rows, cols) = size(name);
    matrix(seed(number, name), rows, cols)
}

const NAMES: [&str; 2] = ["up_proj", "down_proj"];

/// Where the experts lie, below `prefix`.
const BLOCKS: [&str; 3] = ["mixer.experts", "mlp.experts", "feed_forward.experts"];

fn config() -> Value {
    json!({"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "tie_word_embeddings": false})
}

/// One tensor for each expert.
fn split(bench: &Bench, prefix: &str, block: &str) -> PathBuf {
    let each = (0..EXPERTS).flat_map(|number| NAMES.map(|name| (number, name)));
    let mut tensors: Vec<(String, Tensor)> = each
        .map(|(number, name)| (format!("{prefix}.layers.1.{block}.{number}.{name}.weight"), expert(number, name)))
        .collect();
    tensors.push((format!("{prefix}.layers.0.mixer.in_proj.weight"), matrix(1, WIDTH, WIDTH)));
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    bench.base(&tensors, &config())
}

fn adapter(bench: &Bench, more: Value, tensors: &[(String, Tensor)]) -> PathBuf {
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    bench.adapter("adapter", more, &tensors)
}

/// A pair for the stack of a projection: A `[E·r, in]`, B `[out, r·E]` with the expert running fastest.
fn stack_pair(name: &str) -> (Tensor, Tensor) {
    let (rows, cols) = size(name);
    (matrix(7 + cols as u64, RANK * EXPERTS, cols), matrix(17 + cols as u64, rows, RANK * EXPERTS))
}

/// W + 2·ΔW of one expert.
fn with_stack_pair(number: usize, name: &str) -> Vec<f64> {
    let (down, up) = stack_pair(name);
    let (rows, cols) = size(name);
    let down = down.values()[number * RANK * cols..(number + 1) * RANK * cols].to_vec();
    let all = up.values();
    let up: Vec<f64> = (0..rows)
        .flat_map(|row| (0..RANK).map(move |k| row * RANK * EXPERTS + k * EXPERTS + number))
        .map(|at| all[at])
        .collect();
    dense(&expert(number, name).values(), &up, &down, RANK, 2.0)
}

fn stack_adapter(bench: &Bench, prefix: &str, block: &str) -> PathBuf {
    let ((up_a, up_b), (down_a, down_b)) = (stack_pair("up_proj"), stack_pair("down_proj"));
    let module = format!("{prefix}.layers.1.{block}");
    let tensors = [
        (format!("{module}.base_layer.lora_A.weight"), up_a),
        (format!("{module}.base_layer.lora_B.weight"), up_b),
        (format!("{module}.lora_A.weight"), down_a),
        (format!("{module}.lora_B.weight"), down_b),
    ];
    adapter(bench, json!({"target_modules": [], "target_parameters": ["up_proj", "down_proj"]}), &tensors)
}

#[test]
fn stacks_without_a_gate_land_on_the_tensors_of_the_experts() {
    for block in BLOCKS {
        for (prefix, other) in [("backbone", "backbone"), ("backbone", "model"), ("model", "backbone")] {
            let bench = Bench::new();
            let base = split(&bench, prefix, block);
            let adapter = stack_adapter(&bench, other, block);
            merge(&base, &adapter, &bench.path("out"), &[]).ok();
            let got = read(&bench.path("out/model.safetensors"));
            for (number, name) in (0..EXPERTS).flat_map(|number| NAMES.map(|name| (number, name))) {
                let tensor = &got[&format!("{prefix}.layers.1.{block}.{number}.{name}.weight")];
                assert_close(&tensor.values(), &with_stack_pair(number, name), 1e-6);
            }
            assert_eq!(got[&format!("{prefix}.layers.0.mixer.in_proj.weight")], matrix(1, WIDTH, WIDTH));
        }
    }
}

/// The experts as transformers 5 holds them.
fn fused(bench: &Bench) -> PathBuf {
    let stack = |name: &str| {
        let (rows, cols) = size(name);
        let values: Vec<f32> = (0..EXPERTS).flat_map(|number| noise(seed(number, name), rows * cols, 1.0)).collect();
        Tensor::f32(&[EXPERTS, rows, cols], &values)
    };
    let names = NAMES.map(|name| format!("backbone.layers.1.mixer.experts.{name}"));
    bench.base(&[(&names[0], stack(NAMES[0])), (&names[1], stack(NAMES[1]))], &config())
}

/// The slice of one expert.
fn slice(got: &Tensors, number: usize, name: &str) -> Vec<f64> {
    let all = got[&format!("backbone.layers.1.mixer.experts.{name}")].values();
    let each = WIDTH * INNER;
    all[number * each..(number + 1) * each].to_vec()
}

#[test]
fn stacks_without_a_gate_land_on_stacks() {
    let bench = Bench::new();
    let base = fused(&bench);
    let adapter = stack_adapter(&bench, "model", "mixer.experts");
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let got = read(&bench.path("out/model.safetensors"));
    for (number, name) in (0..EXPERTS).flat_map(|number| NAMES.map(|name| (number, name))) {
        assert_close(&slice(&got, number, name), &with_stack_pair(number, name), 1e-6);
    }
}

#[test]
fn pairs_of_single_experts_without_a_gate_land_on_both_layouts() {
    for is_fused in [false, true] {
        let bench = Bench::new();
        let base = if is_fused { fused(&bench) } else { split(&bench, "backbone", "mixer.experts") };
        let mut tensors = Vec::new();
        for name in NAMES {
            let (rows, cols) = size(name);
            let prefix = if is_fused { "backbone" } else { "model" };
            let module = format!("{prefix}.layers.1.mixer.experts.1.{name}");
            tensors.push((format!("{module}.lora_A.weight"), matrix(41, RANK, cols)));
            tensors.push((format!("{module}.lora_B.weight"), matrix(42, rows, RANK)));
        }
        merge(&base, &adapter(&bench, json!({}), &tensors), &bench.path("out"), &[]).ok();
        let got = read(&bench.path("out/model.safetensors"));
        for (number, name) in (0..EXPERTS).flat_map(|number| NAMES.map(|name| (number, name))) {
            let (rows, cols) = size(name);
            let values = match is_fused {
                true => slice(&got, number, name),
                false => got[&format!("backbone.layers.1.mixer.experts.{number}.{name}.weight")].values(),
            };
            let (up, down) = (matrix(42, rows, RANK).values(), matrix(41, RANK, cols).values());
            let own = expert(number, name).values();
            let wanted = if number == 1 { dense(&own, &up, &down, RANK, 2.0) } else { own };
            assert_close(&values, &wanted, 1e-6);
        }
    }
}

/// gpt-oss as it is published: experts as MXFP4 codes and scales.
fn packed(bench: &Bench) -> PathBuf {
    let bytes = |shape: &[usize]| Tensor {
        dtype: Dtype::U8,
        shape: shape.to_vec(),
        data: (0..shape.iter().product::<usize>()).map(|at| (at * 37 % 251) as u8).collect(),
    };
    let experts = "model.layers.0.mlp.experts";
    bench.base(
        &[
            ("model.layers.0.self_attn.q_proj.weight", matrix(1, 32, 32)),
            (&format!("{experts}.gate_up_proj_blocks"), bytes(&[2, 64, 1, 16])),
            (&format!("{experts}.gate_up_proj_scales"), bytes(&[2, 64, 1])),
            (&format!("{experts}.gate_up_proj_bias"), matrix(2, 2, 64)),
            (&format!("{experts}.down_proj_blocks"), bytes(&[2, 32, 1, 16])),
            (&format!("{experts}.down_proj_scales"), bytes(&[2, 32, 1])),
        ],
        &json!({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "tie_word_embeddings": false,
                "quantization_config": {"quant_method": "mxfp4"}}),
    )
}

fn attention() -> Vec<(String, Tensor)> {
    let module = "model.layers.0.self_attn.q_proj";
    vec![
        (format!("{module}.lora_A.weight"), matrix(3, RANK, 32)),
        (format!("{module}.lora_B.weight"), matrix(4, 32, RANK)),
    ]
}

#[test]
fn packed_experts_keep_their_format_where_that_is_asked_for() {
    let bench = Bench::new();
    let base = packed(&bench);
    let pair = attention();
    merge(&base, &adapter(&bench, json!({}), &pair), &bench.path("out"), &["--keep-format"]).ok();
    let (got, source) = (read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
    let query = "model.layers.0.self_attn.q_proj.weight";
    let wanted = dense(&source[query].values(), &pair[1].1.values(), &pair[0].1.values(), RANK, 2.0);
    assert_close(&got[query].values(), &wanted, 1e-6);
    assert_eq!(got.len(), source.len());
    assert!(got.iter().filter(|(name, _)| *name != query).all(|(name, tensor)| *tensor == source[name]));
}

/// The values of MXFP4 codes `[experts, rows, 1, 16]` with their scales, as `[experts, 32, rows]`.
fn unpacked(codes: &Tensor, scales: &Tensor) -> Vec<f64> {
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let (experts, rows) = (codes.shape[0], codes.shape[1]);
    let mut values = vec![0.0; experts * rows * 32];
    for (row, scale) in scales.data.iter().enumerate() {
        for col in 0..32 {
            let byte = codes.data[row * 16 + col / 2];
            let code = if col % 2 == 0 { byte & 15 } else { byte >> 4 };
            let value = levels[usize::from(code & 7)] * 2.0_f64.powi(i32::from(*scale) - 127);
            let (expert, row) = (row / rows, row % rows);
            values[(expert * 32 + col) * rows + row] = if code & 8 == 0 { value } else { -value };
        }
    }
    values
}

#[test]
fn packed_experts_are_merged_into() {
    let experts = "model.layers.0.mlp.experts";
    let parameters = json!({"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]});
    let pair = |module: &str, rows: usize, cols: usize, rank: usize| {
        [
            (format!("{experts}{module}.lora_A.weight"), matrix(5, rank, cols)),
            (format!("{experts}{module}.lora_B.weight"), matrix(6, rows, rank)),
        ]
    };
    let bench = Bench::new();
    let base = packed(&bench);
    let all = [attention(), [pair(".base_layer", 64, 32, 4), pair("", 32, 32, 4)].concat()].concat();
    let adapter = adapter(&bench, parameters, &all);
    merge(&base, &adapter, &bench.path("out"), &["--dtype", "f32"]).ok();
    let (got, source) = (read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
    assert_eq!(got.len(), 4);
    for (name, rows) in [("gate_up_proj", 64), ("down_proj", 32)] {
        let name = format!("{experts}.{name}");
        let before = unpacked(&source[&format!("{name}_blocks")], &source[&format!("{name}_scales")]);
        let after = got[&name].values();
        assert_eq!(got[&name].shape, [2, 32, rows]);
        assert!(before.iter().zip(&after).any(|(before, after)| before != after));
        lorakit(&[&"convert", &base, &"--dtype", &"f32", &"-o", &bench.path("plain"), &"--force"]).ok();
        assert_close(&read(&bench.path("plain/model.safetensors"))[&name].values(), &before, 0.0);
    }
}

#[test]
fn packed_experts_have_a_difference() {
    let bench = Bench::new();
    let base = packed(&bench);
    let mut tuned = read(&base.join("model.safetensors"));
    tuned.get_mut("model.layers.0.mlp.experts.down_proj_blocks").unwrap().data[7] ^= 1;
    let tensors: Vec<(&str, Tensor)> = tuned.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&bench.path("tuned/model.safetensors"), &tensors);
    std::fs::copy(base.join("config.json"), bench.path("tuned/config.json")).unwrap();
    let words =
        lorakit(&[&"extract", &base, &bench.path("tuned"), &"--rank", &"2", &"-o", &bench.path("out"), &"--json"]);
    assert_eq!(words.ok().json()["unchanged"], 3);
}

#[test]
fn a_pair_of_three_dimensions_is_one_for_each_expert() {
    let tensor = |shape: &[usize]| Tensor::f32(shape, &noise(9, shape.iter().product(), 1.0));
    // The number of experts is that of the outputs in the second: nothing but the dimensions tells.
    for experts in [EXPERTS, WIDTH] {
        let bench = Bench::new();
        let (base, folder) = (split(&bench, "model", "mlp.experts"), bench.path("mlx"));
        let name = "model.layers.1.mlp.switch_mlp.fc2";
        write(
            &folder.join("adapters.safetensors"),
            &[
                (&format!("{name}.lora_a"), tensor(&[experts, RANK, INNER])),
                (&format!("{name}.lora_b"), tensor(&[experts, WIDTH, RANK])),
            ],
        );
        let config =
            json!({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": RANK, "scale": 2.0}});
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let merged = merge(&base, &folder, &bench.path("out"), &[]);
        if experts == EXPERTS {
            merged.ok();
        } else {
            merged.refused(1, &["have no place", "switch_mlp.fc2"]);
        }
    }
    // One A for all experts, as vLLM and SGLang keep them.
    for (of_a, outcome) in [(1, None), (2, Some("one has 2 experts, the other 3"))] {
        let bench = Bench::new();
        let base = split(&bench, "model", "mlp.experts");
        let shared = [
            ("model.layers.1.mlp.experts.w3.lora_A.weight".to_owned(), tensor(&[of_a, RANK, WIDTH])),
            ("model.layers.1.mlp.experts.w3.lora_B.weight".to_owned(), tensor(&[EXPERTS, INNER, RANK])),
        ];
        let merged = merge(&base, &adapter(&bench, json!({}), &shared), &bench.path("out"), &[]);
        match outcome {
            None => drop(merged.ok()),
            Some(problem) => drop(merged.refused(1, &[problem])),
        }
    }
}
