//! Bases as they are found: scales of unknown names, no config, lists of experts, packed experts, renamed normalisations, and
//! files that are not for everybody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::json;

use super::support::*;

const Q: &str = "model.layers.0.self_attn.q_proj";

fn pair(seed: u64, out: usize, input: usize) -> [Tensor; 2] {
    let a = Tensor::f32(&[2, input], &noise(seed, 2 * input, 0.5));
    [a, Tensor::f32(&[out, 2], &noise(seed + 1, 2 * out, 0.5))]
}

/// An adapter of one layer.
fn one_layer(bench: &Bench, path: &str, out: usize, input: usize) -> std::path::PathBuf {
    let [a, b] = pair(3, out, input);
    let (down, up) = (format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight"));
    bench.adapter("adapter", json!({}), &[(down.as_str(), a), (up.as_str(), b)])
}

#[test]
fn fp8_with_an_unknown_tensor_that_may_scale_it_is_refused() {
    let codes = |count: usize| Tensor { dtype: Dtype::F8_E4M3, shape: vec![4, count / 4], data: vec![0x38; count] };
    let scale = Tensor::f32(&[1], &[0.5]);
    let weight = format!("{Q}.weight");
    for beside in [".weight_amax", ".weight.amax", ".weight_divisor", ".absmax", ".input_scale", "_inv_scale"] {
        let bench = Bench::new();
        let beside = format!("{Q}{beside}");
        let base = bench.path("base.safetensors");
        write(&base, &[(weight.as_str(), codes(16)), (beside.as_str(), scale.clone())]);
        let problem = format!("tensor `{weight}` is FP8, and how `{beside}` scales it is not known");
        merge(&base, &one_layer(&bench, Q, 4, 4), &bench.path("out.safetensors"), &[]).refused(1, &[&problem]);
    }
    // Nothing that could be one: codes are the values.
    for (beside, tensor) in [(".bias", Tensor::f32(&[4], &[1.0; 4])), (".weight_map.weight", scale.clone())] {
        let bench = Bench::new();
        let beside = format!("{Q}{beside}");
        let base = bench.path("base.safetensors");
        write(&base, &[(weight.as_str(), codes(16)), (beside.as_str(), tensor)]);
        merge(&base, &one_layer(&bench, Q, 4, 4), &bench.path("out.safetensors"), &[]).ok();
    }
}

#[test]
fn a_changed_embedding_without_a_config_is_told_of_the_head() {
    let table = ("model.embed_tokens.weight", Tensor::f32(&[6, 4], &noise(1, 24, 1.0)));
    let other = ("model.norm.weight", Tensor::f32(&[4], &[1.0; 4]));
    let head = ("lm_head.weight", Tensor::f32(&[6, 4], &noise(2, 24, 1.0)));
    for own_head in [false, true] {
        let bench = Bench::new();
        let mut tensors = vec![table.clone(), other.clone()];
        tensors.extend(own_head.then(|| head.clone()));
        let base = bench.path("base");
        write(&base.join("model.safetensors"), &tensors);
        let a = Tensor::f32(&[2, 6], &noise(3, 12, 1.0));
        let b = Tensor::f32(&[4, 2], &noise(4, 8, 1.0));
        let path = "model.embed_tokens";
        let (down, up) = (format!("{path}.lora_embedding_A"), format!("{path}.lora_embedding_B"));
        let adapter = bench.adapter("adapter", json!({}), &[(down.as_str(), a), (up.as_str(), b)]);
        let done = merge(&base, &adapter, &bench.path("out"), &[]).ok();
        let note = "if the model's head shares its embedding, the head changes too";
        assert_eq!(
            (done.stdout + &done.stderr).split_whitespace().collect::<Vec<_>>().join(" ").contains(note),
            !own_head
        );
    }
}

/// Three experts in a list, and what one pair for all of them adds to each.
fn stacked(seed: u64, out: usize, input: usize) -> ([Tensor; 2], Vec<Vec<f64>>) {
    let (experts, rank) = (3, 2);
    let a = noise(seed, experts * rank * input, 0.5);
    let b = noise(seed + 1, out * rank * experts, 0.5);
    let delta = |expert: usize| {
        let at = |o: usize, i: usize| {
            let term = |r: usize| {
                f64::from(b[(o * rank + r) * experts + expert]) * f64::from(a[(expert * rank + r) * input + i])
            };
            2.0 * (0..rank).map(term).sum::<f64>()
        };
        (0..out * input).map(|place| at(place / input, place % input)).collect()
    };
    let deltas = (0..experts).map(delta).collect();
    ([Tensor::f32(&[experts * rank, input], &a), Tensor::f32(&[out, rank * experts], &b)], deltas)
}

fn list_of_experts(list: &str, names: [&str; 2], [hidden, inner]: [usize; 2]) -> Vec<(String, Tensor)> {
    let mut tensors = Vec::new();
    for expert in 0..3 {
        for (at, (name, out, input)) in [(names[0], inner, hidden), (names[1], hidden, inner)].into_iter().enumerate() {
            let values = noise(expert * 2 + at as u64 + 40, out * input, 1.0);
            tensors.push((format!("{list}.{expert}.{name}.weight"), Tensor::f32(&[out, input], &values)));
        }
    }
    tensors
}

fn of_experts(bench: &Bench, list: &str, names: [&str; 2], [inner, outer]: [[Tensor; 2]; 2]) -> std::path::PathBuf {
    let key = |rest: &str| format!("{list}.{rest}.weight");
    let keys = [key("base_layer.lora_A"), key("base_layer.lora_B"), key("lora_A"), key("lora_B")];
    let tensors: Vec<(&str, Tensor)> = keys.iter().map(String::as_str).zip(inner.into_iter().chain(outer)).collect();
    bench.adapter("adapter", json!({"target_modules": [], "target_parameters": names}), &tensors)
}

fn named(tensors: &[(String, Tensor)]) -> Vec<(&str, Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect()
}

#[test]
fn stacks_land_in_lists_that_no_table_has() {
    for (list, names) in
        [("transformer.blocks.1.ffn.experts", ["w1", "w2"]), ("model.layers.1.mlp.experts", ["fc1", "fc2"])]
    {
        let bench = Bench::new();
        let tensors = list_of_experts(list, names, [6, 4]);
        let base = bench.base(&named(&tensors), &json!({"architectures": ["X"], "model_type": "x"}));
        let ((first, first_deltas), (second, second_deltas)) = (stacked(7, 4, 6), stacked(9, 6, 4));
        merge(&base, &of_experts(&bench, list, names, [first, second]), &bench.path("out"), &[]).ok();
        let got = read_model(&bench.path("out"));
        for (at, (name, tensor)) in tensors.iter().enumerate() {
            let delta = [&first_deltas, &second_deltas][at % 2][at / 2].clone();
            let wanted: Vec<f64> = tensor.values().iter().zip(delta).map(|(weight, delta)| weight + delta).collect();
            assert_close(&got[name].values(), &wanted, 1e-6);
        }
    }
}

#[test]
fn stacks_of_equal_shapes_and_unknown_order_are_refused() {
    let (bench, list, names) = (Bench::new(), "model.layers.1.mlp.experts", ["fc1", "fc2"]);
    let base = bench.base(&named(&list_of_experts(list, names, [4, 4])), &json!({"architectures": ["X"]}));
    let adapter = of_experts(&bench, list, names, [stacked(7, 4, 4).0, stacked(9, 4, 4).0]);
    let parts = ["`model.layers.1.mlp.experts.fc1`", "`model.layers.1.mlp.experts.fc2`", "have the same shapes"];
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &parts);
}

#[test]
fn packed_weights_are_named_by_who_packs_them() {
    let words = |shape: &[usize]| Tensor {
        dtype: Dtype::I32,
        shape: shape.to_vec(),
        data: vec![0; shape.iter().product::<usize>() * 4],
    };
    let (bench, list) = (Bench::new(), "backbone.layers.1.mixer.experts");
    let mut tensors = vec![("backbone.norm.weight".to_owned(), Tensor::f32(&[4], &[1.0; 4]))];
    for expert in 0..3 {
        for name in ["up_proj", "down_proj"] {
            tensors.push((format!("{list}.{expert}.{name}.qweight"), words(&[2, 4])));
        }
    }
    let base = bench.base(&named(&tensors), &json!({"model_type": "nemotron_h"}));
    let adapter = of_experts(&bench, list, ["up_proj", "down_proj"], [stacked(7, 4, 6).0, stacked(9, 6, 4).0]);
    let parts = ["is quantised by GPTQ or AWQ", "`backbone.layers.1.mixer.experts.0.up_proj.qweight`"];
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &parts);

    let bench = Bench::new();
    let codes = Tensor { dtype: Dtype::I8, shape: vec![4, 4], data: vec![0; 16] };
    let base = bench.path("base.safetensors");
    let (data, scale) = (format!("{Q}.weight.qdata"), format!("{Q}.weight.scale"));
    write(&base, &[(data.as_str(), codes), (scale.as_str(), Tensor::f32(&[4, 1], &[1.0; 4]))]);
    let parts = ["is quantised by torchao", data.as_str()];
    merge(&base, &one_layer(&bench, Q, 4, 4), &bench.path("out.safetensors"), &[]).refused(1, &parts);
}

#[test]
fn extract_pairs_normalisations_under_both_names() {
    let bench = Bench::new();
    let (dense, norm) = ("bert.encoder.layer.0.output.dense", "bert.encoder.layer.0.output.LayerNorm");
    let weight = noise(1, 64, 1.0);
    let changed: Vec<f32> = weight.iter().enumerate().map(|(at, value)| value + (at % 8) as f32 * 0.1).collect();
    let model = |name: &str, values: &[f32], [scale, shift]: [&str; 2]| {
        let names = [format!("{dense}.weight"), format!("{norm}.{scale}"), format!("{norm}.{shift}")];
        let tensors =
            [Tensor::f32(&[8, 8], values), Tensor::f32(&[8], &noise(5, 8, 1.0)), Tensor::f32(&[8], &noise(6, 8, 1.0))];
        let tensors: Vec<(&str, Tensor)> = names.iter().map(String::as_str).zip(tensors).collect();
        let directory = bench.path(name);
        write(&directory.join("model.safetensors"), &tensors);
        fs::write(directory.join("config.json"), json!({"model_type": "bert"}).to_string()).unwrap();
        directory
    };
    for (round, names) in
        [[["gamma", "beta"], ["weight", "bias"]], [["weight", "bias"], ["gamma", "beta"]]].into_iter().enumerate()
    {
        let base = model(&format!("base{round}"), &weight, names[0]);
        let tuned = model(&format!("tuned{round}"), &changed, names[1]);
        let (adapter, out) = (bench.path(&format!("adapter{round}")), bench.path(&format!("out{round}")));
        lorakit(&[&"extract", &base, &tuned, &"-o", &adapter, &"--rank", &"2", &"--dtype", &"f32"]).ok();
        merge(&base, &adapter, &out, &[]).ok();
        let got = read_model(&out);
        let wanted: Vec<f64> = changed.iter().map(|value| f64::from(*value)).collect();
        assert_close(&got[&format!("{dense}.weight")].values(), &wanted, 1e-5);
    }
}

fn page(path: &Path) -> String {
    lorakit(&[&"inspect", &path]).stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn inspect_takes_no_rank_of_adalora_for_nothing_wrong() {
    let bench = Bench::new();
    let k = "model.layers.0.self_attn.k_proj";
    let keys = |path: &str| ["A", "B", "E"].map(|part| format!("{path}.lora_{part}"));
    let empty = |shape: &[usize]| Tensor::f32(shape, &[]);
    let names: Vec<String> = keys(Q).into_iter().chain(keys(k)).collect();
    for (shapes, is_wrong) in [([vec![0, 4], vec![4, 0], vec![0, 1]], false), ([vec![0], vec![0], vec![0]], true)] {
        let tensors = [
            Tensor::f32(&[2, 4], &noise(1, 8, 1.0)),
            Tensor::f32(&[4, 2], &noise(2, 8, 1.0)),
            Tensor::f32(&[2, 1], &noise(3, 2, 1.0)),
        ];
        let tensors = tensors.into_iter().chain(shapes.iter().map(|shape| empty(shape)));
        let tensors: Vec<(&str, Tensor)> = names.iter().map(String::as_str).zip(tensors).collect();
        let pattern = json!({"model.layers.0.self_attn.q_proj.lora_E": [true, true],
            "model.layers.0.self_attn.k_proj.lora_E": [false, false]});
        let config = json!({"peft_type": "ADALORA", "init_r": 2, "target_r": 1, "rank_pattern": pattern,
            "target_modules": ["q_proj", "k_proj"]});
        let adapter = bench.adapter("adapter", config, &tensors);
        assert_eq!(page(&adapter).contains("without elements"), is_wrong, "{}", page(&adapter));
    }
}

#[test]
fn inspect_calls_pairs_of_experts_no_convolutions() {
    let bench = Bench::new();
    let up = "model.layers.0.mlp.experts.up_proj";
    let (down, above) = (format!("{up}.lora_A.weight"), format!("{up}.lora_B.weight"));
    let a = Tensor::f32(&[3, 2, 16], &noise(1, 96, 1.0));
    let b = Tensor::f32(&[3, 24, 2], &noise(2, 144, 1.0));
    let adapter = bench.adapter("adapter", json!({"target_modules": ["up_proj"]}), &[(&down, a), (&above, b)]);
    let mlx = bench.path("mlx");
    let a = Tensor::f32(&[3, 2, 16], &noise(1, 96, 1.0));
    let b = Tensor::f32(&[3, 24, 2], &noise(2, 144, 1.0));
    let up = "model.layers.0.mlp.switch_mlp.up_proj";
    write(&mlx.join("adapters.safetensors"), &[(&format!("{up}.lora_a"), a), (&format!("{up}.lora_b"), b)]);
    let config = json!({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0}});
    fs::write(mlx.join("adapter_config.json"), config.to_string()).unwrap();
    for adapter in [adapter, mlx] {
        let page = page(&adapter);
        assert!(!page.contains("LoCon") && page.contains("r=2") && page.contains("[24, 16]"), "{page}");
        assert!(page.contains("modules 3 ×") && !page.contains("cannot be used"), "{page}");
    }
}

#[test]
fn weights_are_open_to_no_more_people_than_their_inputs() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let plain = {
        let bench = Bench::new();
        fs::write(bench.path("plain"), b"").unwrap();
        mode(&bench.path("plain"))
    };
    for (closed, wanted) in [(0o600, 0o600), (0o400, 0o600), (0o644, plain & 0o644)] {
        for of_base in [true, false] {
            let bench = Bench::new();
            let weight = format!("{Q}.weight");
            let base =
                bench.base(&[(&weight, Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))], &json!({"model_type": "llama"}));
            let adapter = one_layer(&bench, Q, 4, 4);
            let input =
                if of_base { base.join("model.safetensors") } else { adapter.join("adapter_model.safetensors") };
            fs::set_permissions(&input, fs::Permissions::from_mode(closed)).unwrap();
            merge(&base, &adapter, &bench.path("out"), &[]).ok();
            assert_eq!(mode(&bench.path("out/model.safetensors")), wanted, "{closed:o}");
            merge(&base, &adapter, &bench.path("parts"), &["--part", "1/1"]).ok();
            lorakit(&[&"finish", &bench.path("parts")]).ok();
            assert_eq!(mode(&bench.path("parts/model.safetensors")), wanted, "{closed:o} in parts");
            if of_base {
                let out = bench.path("converted");
                lorakit(&[&"convert", &base, &"--to", &"safetensors", &"--dtype", &"bf16", &"-o", &out]).ok();
                assert_eq!(mode(&out.join("model.safetensors")), wanted, "{closed:o} converted");
            }
        }
    }
}
