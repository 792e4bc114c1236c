//! One layer under two names is one layer: sums, TIES and differences of adapters in different spellings have the values of one.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::stack::stack;
use crate::support::*;

/// Rows and columns of every weight here.
const SIDE: usize = 8;

const RANK: usize = 2;

/// Stability's and diffusers' names of some layers of SDXL.
const SDXL: [(&str, &str); 3] = [
    ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("middle_block.1.proj_in", "mid_block.attentions.0.proj_in"),
    (
        "output_blocks.0.1.transformer_blocks.0.ff.net.0.proj",
        "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    ),
];

/// A and B of one module.
#[derive(Clone)]
struct Pair {
    down: Tensor,
    up: Tensor,
}

fn pair(seed: u64, outputs: usize) -> Pair {
    Pair {
        down: Tensor::f32(&[RANK, SIDE], &noise(seed, RANK * SIDE, 0.5)),
        up: Tensor::f32(&[outputs, RANK], &noise(seed + 1000, outputs * RANK, 0.5)),
    }
}

impl Pair {
    /// scale · B·A, row by row.
    fn delta(&self, scale: f64) -> Vec<f64> {
        let (up, down) = (self.up.values(), self.down.values());
        dense(&vec![0.0; up.len() / RANK * SIDE], &up, &down, RANK, scale)
    }
}

fn plus(left: &[f64], right: &[f64]) -> Vec<f64> {
    left.iter().zip(right).map(|(left, right)| left + right).collect()
}

/// A file of sd-scripts.
fn kohya(bench: &Bench, name: &str, modules: &[(String, &Pair)], alpha: f32) -> PathBuf {
    let mut tensors = Vec::new();
    for (module, pair) in modules {
        let module = format!("lora_unet_{}", module.replace('.', "_"));
        tensors.push((format!("{module}.lora_down.weight"), pair.down.clone()));
        tensors.push((format!("{module}.lora_up.weight"), pair.up.clone()));
        tensors.push((format!("{module}.alpha"), Tensor::f32(&[], &[alpha])));
    }
    file(bench, name, &tensors)
}

/// A file of diffusers or ComfyUI, whose scales are 1.
fn dotted(bench: &Bench, name: &str, prefix: &str, modules: &[(String, &Pair)]) -> PathBuf {
    let mut tensors = Vec::new();
    for (module, pair) in modules {
        tensors.push((format!("{prefix}.{module}.lora_A.weight"), pair.down.clone()));
        tensors.push((format!("{prefix}.{module}.lora_B.weight"), pair.up.clone()));
    }
    file(bench, name, &tensors)
}

fn file(bench: &Bench, name: &str, tensors: &[(String, Tensor)]) -> PathBuf {
    let path = bench.path(name);
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    write(&path, &named);
    path
}

/// A PEFT adapter of linear layers, whose scale is 1.
fn peft(bench: &Bench, name: &str, modules: &[(&str, &Pair)]) -> PathBuf {
    let mut tensors = Vec::new();
    for (module, pair) in modules {
        tensors.push((format!("{module}.lora_A.weight"), pair.down.clone()));
        tensors.push((format!("{module}.lora_B.weight"), pair.up.clone()));
    }
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    bench.adapter(name, json!({"r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}), &named)
}

/// ΔW of every module of a PEFT adapter whose ranks have no patterns beyond a common scale of 1.
fn deltas(adapter: &Path) -> std::collections::BTreeMap<String, Vec<f64>> {
    let tensors = read(&adapter.join("adapter_model.safetensors"));
    let ends = ".lora_A.weight";
    let modules = tensors.keys().filter_map(|key| key.strip_suffix(ends));
    let delta = |module: &str| {
        let (down, up) = (&tensors[&format!("{module}{ends}")], &tensors[&format!("{module}.lora_B.weight")]);
        let zero = vec![0.0; up.shape[0] * down.shape[1]];
        dense(&zero, &up.values(), &down.values(), down.shape[0], 1.0)
    };
    modules.map(|module| (module.trim_start_matches("base_model.model.").to_owned(), delta(module))).collect()
}

/// A single file of SDXL, cut down to these layers.
fn sdxl_base(bench: &Bench) -> PathBuf {
    let mut tensors: Vec<(String, Tensor)> = SDXL
        .iter()
        .enumerate()
        .map(|(at, (name, _))| {
            let weight = Tensor::f32(&[SIDE, SIDE], &noise(at as u64 + 1, SIDE * SIDE, 0.5));
            (format!("model.diffusion_model.{name}.weight"), weight)
        })
        .collect();
    let first = Tensor::f32(&[SIDE, 4, 3, 3], &noise(9, SIDE * 36, 0.5));
    tensors.push(("model.diffusion_model.input_blocks.0.0.weight".into(), first));
    tensors.push(("conditioner.embedders.1.model.ln_final.weight".into(), Tensor::f32(&[SIDE], &noise(10, SIDE, 0.5))));
    file(bench, "base.safetensors", &tensors)
}

/// The first SDXL spelling, the second, and diffusers', of three different adapters; and ΔW of each, module by module.
fn three(bench: &Bench) -> ([PathBuf; 3], [Vec<Vec<f64>>; 3]) {
    let pairs: Vec<Vec<Pair>> =
        (0..3).map(|adapter| (0..3).map(|at| pair(adapter * 10 + at + 20, SIDE)).collect()).collect();
    let of = |adapter: usize, second: bool| -> Vec<(String, &Pair)> {
        let name = |at: usize| if second { SDXL[at].1 } else { SDXL[at].0 };
        (0..3).map(|at| (name(at).to_owned(), &pairs[adapter][at])).collect()
    };
    let paths = [
        kohya(bench, "sai.safetensors", &of(0, false), 1.0),
        kohya(bench, "hf.safetensors", &of(1, true), 1.0),
        dotted(bench, "diffusers.safetensors", "unet", &of(2, true)),
    ];
    let deltas = [0.5, 0.5, 1.0];
    let deltas = [0, 1, 2].map(|at| pairs[at].iter().map(|pair| pair.delta(deltas[at])).collect());
    (paths, deltas)
}

#[test]
fn adapters_of_sdxl_in_any_spelling_sum_up_layer_by_layer_in_any_dialect() {
    let bench = Bench::new();
    let base = sdxl_base(&bench);
    let before = read(&base);
    let (paths, changes) = three(&bench);
    for (case, order) in [vec![0, 1], vec![1, 0], vec![0, 2], vec![2, 1], vec![2, 1, 0]].into_iter().enumerate() {
        for (to, name) in
            [("peft", ""), ("kohya", ".safetensors"), ("diffusers", ".safetensors"), ("comfyui", ".safetensors")]
        {
            for with_base in [false, true] {
                let out = bench.path(&format!("{to}-{case}-{with_base}{name}"));
                let adapters: Vec<(&Path, f64)> = order.iter().map(|at| (paths[*at].as_path(), 1.0)).collect();
                let root = base.to_str().unwrap();
                let base_option: &[&str] = if with_base { &["--base", root] } else { &[] };
                stack(&adapters, &out, &[&["--to", to], base_option].concat()).ok();
                let merged = bench.path("merged.safetensors");
                merge(&base, &out, &merged, &["--force"]).ok();
                let got = read(&merged);
                for (at, (layer, _)) in SDXL.iter().enumerate() {
                    let key = format!("model.diffusion_model.{layer}.weight");
                    let wanted = order.iter().fold(before[&key].values(), |sum, one| plus(&sum, &changes[*one][at]));
                    assert_close(&got[&key].values(), &wanted, 1e-6);
                }
            }
        }
        // One pair per layer, of all ranks together.
        let out = bench.path(&format!("peft-{case}-false"));
        let tensors = read(&out.join("adapter_model.safetensors"));
        assert_eq!(tensors.len(), 2 * SDXL.len(), "{:?}", tensors.keys());
        let ranks = tensors.iter().filter(|(key, _)| key.ends_with("lora_A.weight")).map(|(_, down)| down.shape[0]);
        assert!(ranks.into_iter().all(|rank| rank == RANK * order.len()));
    }
}

#[test]
fn the_same_adapter_in_two_spellings_is_one_adapter() {
    let bench = Bench::new();
    let base = sdxl_base(&bench);
    let before = read(&base);
    let pairs: Vec<Pair> = (0..3).map(|at| pair(at + 50, SIDE)).collect();
    let of = |second: bool| -> Vec<(String, &Pair)> {
        let names = SDXL.iter().map(|(one, other)| if second { *other } else { *one });
        names.map(str::to_owned).zip(&pairs).collect()
    };
    let (a, b) = (
        kohya(&bench, "a.safetensors", &of(false), RANK as f32),
        kohya(&bench, "b.safetensors", &of(true), RANK as f32),
    );
    let nothing = bench.path("nothing");
    for (one, other) in [(&a, &b), (&b, &a)] {
        lorakit(&[&"subtract", one, other, &"-o", &nothing]).refused(1, &["the sum is zero in all 3 modules"]);
        lorakit(&[&"subtract", one, other, &"-o", &nothing, &"--rank", &"2"])
            .refused(1, &["the sum is zero in all 3 modules"]);
    }
    for (method, times) in [("ties", 1.0), ("dare-ties", 1.0), ("dare", 2.0), ("magnitude", 2.0), ("concat", 2.0)] {
        let out = bench.path(&format!("{method}.safetensors"));
        let mut more = vec!["--method", method, "--rank", "2", "--to", "kohya"];
        if method != "concat" {
            more.extend(["--density", "1"]);
        }
        stack(&[(&a, 1.0), (&b, 1.0)], &out, &more).ok();
        let merged = bench.path("merged.safetensors");
        merge(&base, &out, &merged, &["--force"]).ok();
        let got = read(&merged);
        for (at, (layer, _)) in SDXL.iter().enumerate() {
            let key = format!("model.diffusion_model.{layer}.weight");
            assert_close(&got[&key].values(), &plus(&before[&key].values(), &pairs[at].delta(times)), 1e-5);
        }
    }
    let out = bench.path("average");
    stack(&[(&a, 0.5), (&b, 0.5)], &out, &["--method", "factor-average", "--to", "peft"]).ok();
    let found = deltas(&out);
    assert_eq!(found.len(), 3);
    let wanted: Vec<Vec<f64>> = pairs.iter().map(|pair| pair.delta(2.0)).collect();
    // √½ of each twice is √2 in either factor.
    assert!(found.values().all(|delta| wanted.iter().any(|wanted| close(delta, wanted))));
}

fn close(left: &[f64], right: &[f64]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| (left - right).abs() < 1e-5)
}

#[test]
fn wrappers_of_a_model_class_do_not_tell_layers_apart() {
    let (one, other, third) = (pair(1, SIDE), pair(2, SIDE), pair(3, SIDE));
    for (left, right) in [
        ("model.", "model.language_model."),
        ("language_model.model.", "model.language_model."),
        ("", "model."),
        ("model.", "base_model.model.model."),
        ("transformer.", ""),
        ("model.decoder.", "decoder."),
    ] {
        let bench = Bench::new();
        let name = |prefix: &str, module: &str| format!("{prefix}layers.0.self_attn.{module}");
        let a = peft(&bench, "a", &[(&name(left, "q_proj"), &one)]);
        let b = peft(&bench, "b", &[(&name(right, "q_proj"), &other), (&name(right, "v_proj"), &third)]);
        let out = bench.path("out");
        stack(&[(&a, 1.0), (&b, -0.5)], &out, &[]).ok();
        let found = deltas(&out);
        let left = left.trim_start_matches("base_model.model.");
        assert_eq!(found.keys().collect::<Vec<_>>(), [&name(left, "q_proj"), &name(left, "v_proj")]);
        assert_close(&found[&name(left, "q_proj")], &plus(&one.delta(1.0), &other.delta(-0.5)), 1e-6);
        assert_close(&found[&name(left, "v_proj")], &third.delta(-0.5), 1e-6);
        lorakit(&[&"subtract", &a, &b, &"-o", &bench.path("less"), &"--rank", &"2", &"-i", &"q_proj"]).ok();
    }
}

#[test]
fn heads_follow_the_wrappers_of_their_layers() {
    let bench = Bench::new();
    let (one, other, head) = (pair(1, SIDE), pair(2, SIDE), pair(3, SIDE));
    let a = peft(&bench, "a", &[("model.layers.0.q_proj", &one), ("lm_head", &head)]);
    let b = peft(&bench, "b", &[("language_model.model.layers.0.q_proj", &other), ("language_model.lm_head", &head)]);
    let out = bench.path("out");
    stack(&[(&a, 1.0), (&b, 1.0)], &out, &[]).ok();
    let found = deltas(&out);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["lm_head", "model.layers.0.q_proj"]);
    assert_close(&found["lm_head"], &head.delta(2.0), 1e-6);
}

#[test]
fn parts_of_a_model_stay_apart() {
    let (one, other) = (pair(1, SIDE), pair(2, SIDE));
    for (left, right) in [
        ("model.encoder.", "model.decoder."),
        ("model.", "vision_tower."),
        ("text_encoder.", "text_encoder_2."),
        ("transformer.blocks.0.", "transformer_2.blocks.0."),
    ] {
        let bench = Bench::new();
        let [left, right] = [left, right].map(|prefix| format!("{prefix}layers.0.self_attn.q_proj"));
        let (a, b) = (peft(&bench, "a", &[(&left, &one)]), peft(&bench, "b", &[(&right, &other)]));
        let out = bench.path("out");
        let told = stack(&[(&a, 1.0), (&b, 1.0)], &out, &["--json"]).ok().json();
        let notes = told["notes"].to_string();
        assert!(notes.contains("has no module in common with the others"), "{notes}");
        let found = deltas(&out);
        assert_eq!(found.len(), 2);
        assert_close(&found[&left], &one.delta(1.0), 1e-6);
        assert_close(&found[&right], &other.delta(1.0), 1e-6);
        for method in ["ties", "dare-ties", "magnitude", "dare"] {
            let more = ["--method", method, "--density", "0.5", "--rank", "2"];
            stack(&[(&a, 1.0), (&b, 1.0)], &bench.path("no"), &more)
                .refused(1, &["they have no module in common", method, "--base PATH"]);
        }
    }
}

#[test]
fn other_layers_of_one_spelling_are_a_union() {
    let bench = Bench::new();
    let (one, other) = (pair(1, SIDE), pair(2, SIDE));
    let a = peft(&bench, "a", &[("model.layers.0.q_proj", &one)]);
    let b = peft(&bench, "b", &[("model.layers.1.q_proj", &other)]);
    let out = bench.path("out");
    stack(&[(&a, 1.0), (&b, 1.0)], &out, &[]).ok();
    assert_eq!(deltas(&out).len(), 2);
}

#[test]
fn what_no_rule_settles_the_model_does() {
    let bench = Bench::new();
    let (one, other) = (pair(1, SIDE), pair(2, SIDE));
    let a = peft(&bench, "a", &[("model.layers.0.q_proj", &one)]);
    let b = peft(&bench, "b", &[("policy.layers.0.q_proj", &other)]);
    let out = bench.path("out");
    let both: [(&Path, f64); 2] = [(&a, 1.0), (&b, 1.0)];
    // Neither of the words wraps or names a part that is known.
    let c = peft(&bench, "c", &[("layers.0.q_proj", &one)]);
    stack(&[(&c, 1.0), (&b, 1.0)], &out, &[]).refused(1, &["no rule settles it", "--base PATH"]);
    stack(&both, &out, &[]).refused(1, &["no rule settles it", "policy.", "--base PATH"]);
    assert!(!out.exists());
    let weight = Tensor::f32(&[SIDE, SIDE], &noise(7, SIDE * SIDE, 0.5));
    let base = bench.base(&[("model.layers.0.q_proj.weight", weight)], &json!({}));
    stack(&both, &out, &["--base", base.to_str().unwrap()]).ok();
    let found = deltas(&out);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["model.layers.0.q_proj"]);
    assert_close(&found["model.layers.0.q_proj"], &plus(&one.delta(1.0), &other.delta(1.0)), 1e-6);
}

#[test]
fn fused_and_split_weights_are_the_same_weights() {
    let fused = pair(1, 3 * SIDE);
    let parts: Vec<Pair> = (0..3).map(|at| pair(at + 5, SIDE)).collect();
    let wanted: Vec<f64> = {
        let rows: Vec<f64> = parts.iter().flat_map(|part| part.delta(1.0)).collect();
        plus(&fused.delta(1.0), &rows)
    };
    let attention = "model.layers.0.self_attn";
    for split_first in [false, true] {
        for bias in [false, true] {
            let bench = Bench::new();
            let name = |part: &str| format!("{attention}.{part}");
            let names = ["q_proj", "k_proj", "v_proj"].map(name);
            let a = peft(&bench, "a", &[(&name("qkv_proj"), &fused)]);
            let modules: Vec<(&str, &Pair)> = names.iter().map(String::as_str).zip(&parts).collect();
            // A part alone is a part as well.
            let b = peft(&bench, "b", if bias { &modules[..1] } else { &modules });
            let both: [(&Path, f64); 2] = if split_first { [(&b, 1.0), (&a, 1.0)] } else { [(&a, 1.0), (&b, 1.0)] };
            let out = bench.path("out");
            stack(&both, &out, &[]).ok();
            let found = deltas(&out);
            let wanted = if bias {
                let rest = vec![0.0; 2 * SIDE * SIDE];
                plus(&fused.delta(1.0), &[parts[0].delta(1.0), rest].concat())
            } else {
                wanted.clone()
            };
            if split_first {
                let all: Vec<f64> = names.iter().flat_map(|name| found[name].clone()).collect();
                assert_eq!(found.len(), 3);
                assert_close(&all, &wanted, 1e-6);
            } else {
                assert_eq!(found.keys().collect::<Vec<_>>(), [&name("qkv_proj")]);
                assert_close(&found[&name("qkv_proj")], &wanted, 1e-6);
            }
        }
    }
}

#[test]
fn flux_in_the_names_of_two_tools_is_one_model() {
    let bench = Bench::new();
    let fused = pair(1, 3 * SIDE);
    let parts: Vec<Pair> = (0..3).map(|at| pair(at + 5, SIDE)).collect();
    let a = kohya(&bench, "a.safetensors", &[("double_blocks.0.img_attn.qkv".into(), &fused)], RANK as f32);
    let names = ["to_q", "to_k", "to_v"].map(|part| format!("transformer_blocks.0.attn.{part}"));
    let modules: Vec<(String, &Pair)> = names.iter().cloned().zip(&parts).collect();
    let b = dotted(&bench, "b.safetensors", "transformer", &modules);
    let key = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight";
    let weight = Tensor::f32(&[3 * SIDE, SIDE], &noise(3, 3 * SIDE * SIDE, 0.5));
    let base = file(&bench, "base.safetensors", &[(key.to_owned(), weight.clone())]);
    let rows: Vec<f64> = parts.iter().flat_map(|part| part.delta(1.0)).collect();
    let wanted = plus(&weight.values(), &plus(&fused.delta(1.0), &rows));
    for (case, order) in [[&a, &b], [&b, &a]].into_iter().enumerate() {
        for to in ["kohya", "diffusers", "comfyui"] {
            let out = bench.path(&format!("{to}{case}.safetensors"));
            let both: [(&Path, f64); 2] = [(order[0], 1.0), (order[1], 1.0)];
            stack(&both, &out, &["--to", to, "--arch", "flux"]).ok();
            let merged = bench.path("merged.safetensors");
            merge(&base, &out, &merged, &["--force"]).ok();
            assert_close(&read(&merged)[key].values(), &wanted, 1e-6);
        }
    }
    let less = bench.path("less");
    let same = kohya(&bench, "same.safetensors", &names.iter().cloned().zip(&parts).collect::<Vec<_>>(), RANK as f32);
    lorakit(&[&"subtract", &b, &same, &"-o", &less]).refused(1, &["the sum is zero in all 3 modules"]);
}

#[test]
fn a_pointwise_convolution_is_a_matrix() {
    let bench = Bench::new();
    let (one, other) = (pair(1, SIDE), pair(2, SIDE));
    let conv = Pair {
        down: Tensor { shape: vec![RANK, SIDE, 1, 1], ..other.down.clone() },
        up: Tensor { shape: vec![SIDE, RANK, 1, 1], ..other.up.clone() },
    };
    let module = "mid_block.attentions.0.proj_in".to_owned();
    let a = kohya(&bench, "a.safetensors", &[(module.clone(), &one)], RANK as f32);
    let b = dotted(&bench, "b.safetensors", "unet", &[(module, &conv)]);
    for (case, order) in [[&a, &b], [&b, &a]].into_iter().enumerate() {
        let out = bench.path(&format!("out{case}"));
        stack(&[(order[0], 1.0), (order[1], 1.0)], &out, &["--to", "peft"]).ok();
        let tensors = read(&out.join("adapter_model.safetensors"));
        let (down, up) =
            (tensors.values().find(|t| t.shape[0] == 2 * RANK), tensors.values().find(|t| t.shape[0] == SIDE));
        let (down, up) = (down.unwrap(), up.unwrap());
        let got = dense(&[0.0; SIDE * SIDE], &up.values(), &down.values(), 2 * RANK, 1.0);
        assert_close(&got, &plus(&one.delta(1.0), &other.delta(1.0)), 1e-6);
    }
}

#[test]
fn a_pattern_means_a_layer_by_either_name() {
    let bench = Bench::new();
    let (paths, changes) = three(&bench);
    for pattern in ["mid_block", "middle_block"] {
        let out = bench.path(pattern);
        stack(&[(&paths[0], 1.0), (&paths[1], 1.0)], &out, &["-i", pattern, "--to", "peft"]).ok();
        let found = deltas(&out);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_close(found.values().next().unwrap(), &plus(&changes[0][1], &changes[1][1]), 1e-6);
    }
}

#[test]
fn what_cannot_be_cut_is_refused_by_name() {
    let bench = Bench::new();
    let fused = pair(1, 3 * SIDE);
    let part = pair(5, SIDE);
    let a = peft(&bench, "a", &[("l.0.self_attn.q_proj", &part)]);
    let key = "l.0.self_attn.qkv_proj";
    let tensors = [
        (format!("{key}.hada_w1_a"), fused.up.clone()),
        (format!("{key}.hada_w1_b"), fused.down.clone()),
        (format!("{key}.hada_w2_a"), fused.up.clone()),
        (format!("{key}.hada_w2_b"), fused.down.clone()),
    ];
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    let b = bench.adapter("b", json!({"peft_type": "LOHA", "r": RANK, "alpha": RANK}), &named);
    stack(&[(&a, 1.0), (&b, 1.0)], &bench.path("out"), &[]).refused(1, &[key, "only plain LoRA is cut", "merge"]);
}
