//! Adapters into bases whose weights have other names, or are fused where the adapter's are split: every result is compared with
//! the dense sum, tensor by tensor.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::support::*;

const RANK: usize = 2;

/// Name, outputs and inputs of a weight.
type Size<'a> = (&'a str, usize, usize);

fn up(seed: u64, outputs: usize) -> Vec<f32> {
    noise(1000 + seed, outputs * RANK, 1.0)
}

fn down(seed: u64, inputs: usize) -> Vec<f32> {
    noise(2000 + seed, inputs * RANK, 1.0)
}

/// B·A of the pair `seed`.
fn product(seed: u64, outputs: usize, inputs: usize) -> Vec<f64> {
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
    dense(&vec![0.0; outputs * inputs], &wide(up(seed, outputs)), &wide(down(seed, inputs)), RANK, 1.0)
}

fn rows(delta: &[f64], inputs: usize, from: usize, to: usize) -> Vec<f64> {
    delta[from * inputs..to * inputs].to_vec()
}

fn of_base(at: usize, (_, outputs, inputs): Size<'_>) -> Tensor {
    Tensor::f32(&[outputs, inputs], &noise(at as u64 + 1, outputs * inputs, 1.0))
}

fn weights(sizes: &[Size<'_>]) -> Vec<(String, Tensor)> {
    sizes.iter().enumerate().map(|(at, size)| (size.0.to_owned(), of_base(at, *size))).collect()
}

/// Pairs number 0, 1 … in the manner of sd-scripts.
fn kohya(sizes: &[Size<'_>]) -> Vec<(String, Tensor)> {
    let mut tensors = pairs(sizes, ".lora_down.weight", ".lora_up.weight");
    tensors.extend(sizes.iter().map(|size| (format!("{}.alpha", size.0), Tensor::f32(&[], &[2.0]))));
    tensors
}

fn pairs(sizes: &[Size<'_>], for_down: &str, for_up: &str) -> Vec<(String, Tensor)> {
    let mut tensors = Vec::new();
    for (seed, (name, outputs, inputs)) in (0..).zip(sizes) {
        tensors.push((format!("{name}{for_down}"), Tensor::f32(&[RANK, *inputs], &down(seed, *inputs))));
        tensors.push((format!("{name}{for_up}"), Tensor::f32(&[*outputs, RANK], &up(seed, *outputs))));
    }
    tensors
}

fn file(bench: &Bench, name: &str, tensors: &[(String, Tensor)]) -> PathBuf {
    let path = bench.path(name);
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&path, &named);
    path
}

/// Every tensor is the base's and what `changes` adds to it.
#[track_caller]
fn compare(got: &Tensors, sizes: &[Size<'_>], changes: &[(&str, Vec<f64>)]) {
    assert_eq!(got.len(), sizes.len());
    for (at, size) in sizes.iter().enumerate() {
        let before = of_base(at, *size);
        match changes.iter().find(|(name, _)| *name == size.0) {
            None => assert_eq!(got[size.0], before, "{}", size.0),
            Some((name, delta)) => {
                assert_eq!(delta.len(), size.1 * size.2, "{name}");
                let wanted: Vec<f64> =
                    before.values().iter().zip(delta).map(|(value, change)| value + change).collect();
                let found = got[*name].values();
                let worst = found.iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
                assert!(worst < 2e-6, "`{name}` is off by {worst:e}");
            }
        }
    }
    assert!(changes.iter().all(|(name, _)| sizes.iter().any(|size| size.0 == *name)));
}

/// Merges an adapter file into a single file.
#[track_caller]
fn single(sizes: &[Size<'_>], adapter: &[(String, Tensor)], changes: &[(&str, Vec<f64>)]) {
    let bench = Bench::new();
    let base = file(&bench, "model.safetensors", &weights(sizes));
    let adapter = file(&bench, "lora.safetensors", adapter);
    let out = bench.path("out");
    merge(&base, &adapter, &out, &[]).ok();
    compare(&read_model(&out), sizes, changes);
}

/// The same into a folder `component` with a config of that class.
#[track_caller]
fn folder(
    component: &str,
    class: &str,
    sizes: &[Size<'_>],
    adapter: &[(String, Tensor)],
    changes: &[(&str, Vec<f64>)],
) {
    let bench = Bench::new();
    file(&bench, &format!("{component}/diffusion_pytorch_model.safetensors"), &weights(sizes));
    let base = bench.path(component);
    fs::write(base.join("config.json"), json!({ "_class_name": class }).to_string()).unwrap();
    let adapter = file(&bench, "lora.safetensors", adapter);
    let out = bench.path("out");
    merge(&base, &adapter, &out, &[]).ok();
    compare(&read_model(&out), sizes, changes);
}

/// Merges a PEFT adapter into a language model.
#[track_caller]
fn language(sizes: &[Size<'_>], adapter: &[Size<'_>], changes: &[(&str, Vec<f64>)]) {
    let bench = Bench::new();
    let config = json!({ "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "tie_word_embeddings": false });
    let tensors = weights(sizes);
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let base = bench.base(&named, &config);
    let tensors = pairs(adapter, ".lora_A.weight", ".lora_B.weight");
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let adapter = bench.adapter("adapter", json!({ "lora_alpha": 2 }), &named);
    let out = bench.path("out");
    merge(&base, &adapter, &out, &[]).ok();
    compare(&read_model(&out), sizes, changes);
}

#[test]
fn parts_beside_the_blocks_of_a_denoiser_are_found() {
    let sizes = [
        ("double_blocks.0.img_attn.proj.weight", 8, 8),
        ("time_in.in_layer.weight", 8, 4),
        ("final_layer.linear.weight", 4, 8),
    ];
    let own = ["double_blocks.0.img_attn.proj", "time_in.in_layer", "final_layer.linear"];
    let diffusers = ["transformer_blocks.0.attn.to_out.0", "time_text_embed.timestep_embedder.linear_1", "proj_out"];
    let changes: Vec<(&str, Vec<f64>)> =
        (0..).zip(&sizes).map(|(seed, size)| (size.0, product(seed, size.1, size.2))).collect();
    let written = |names: [&str; 3], key: &dyn Fn(&str) -> String| -> Vec<(String, usize, usize)> {
        names.iter().zip(&sizes).map(|(name, size)| (key(name), size.1, size.2)).collect()
    };
    for names in [
        written(own, &|name| format!("lora_unet_{}", name.replace('.', "_"))),
        written(diffusers, &|name| format!("lycoris_{}", name.replace('.', "_"))),
    ] {
        let named: Vec<Size<'_>> = names.iter().map(|(name, out, inputs)| (name.as_str(), *out, *inputs)).collect();
        single(&sizes, &kohya(&named), &changes);
    }
    for names in [
        written(own, &|name| format!("diffusion_model.{name}")),
        written(own, &str::to_owned),
        written(diffusers, &|name| format!("transformer.{name}")),
        written(diffusers, &str::to_owned),
    ] {
        let named: Vec<Size<'_>> = names.iter().map(|(name, out, inputs)| (name.as_str(), *out, *inputs)).collect();
        single(&sizes, &pairs(&named, ".lora_A.weight", ".lora_B.weight"), &changes);
    }
}

#[test]
fn modules_are_found_by_the_names_they_had_in_memory() {
    let sizes = [
        ("language_model.model.layers.0.self_attn.q_proj.weight", 8, 8),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", 8, 8),
        ("multi_modal_projector.linear_1.weight", 8, 4),
        ("language_model.lm_head.weight", 6, 8),
        ("vit.encoder.layer.0.attention.attention.query.weight", 8, 8),
        ("vit.encoder.layer.0.output.dense.weight", 8, 12),
    ];
    let adapter = [
        ("model.language_model.layers.0.self_attn.q_proj", 8, 8),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj", 8, 8),
        ("model.multi_modal_projector.linear_1", 8, 4),
        ("lm_head", 6, 8),
        ("vit.layers.0.attention.q_proj", 8, 8),
        ("vit.layers.0.mlp._checkpoint_wrapped_module.fc2", 8, 12),
    ];
    let changes: Vec<(&str, Vec<f64>)> =
        (0..).zip(&sizes).map(|(seed, size)| (size.0, product(seed, size.1, size.2))).collect();
    language(&sizes, &adapter, &changes);
    // Layers of one part alone do not fit the other.
    language(&sizes, &adapter[..1], &changes[..1]);
}

#[test]
fn sd1_names_of_diffusers_reach_a_single_file() {
    let adapter = kohya(&[
        ("lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn2_to_k", 6, 4),
        ("lora_unet_up_blocks_3_attentions_2_proj_in", 4, 4),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj", 8, 4),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 4, 4),
    ]);
    let unet = "model.diffusion_model.";
    let names = [
        format!("{unet}input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"),
        format!("{unet}output_blocks.11.1.proj_in.weight"),
        format!("{unet}middle_block.1.transformer_blocks.0.ff.net.0.proj.weight"),
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight".to_owned(),
        format!("{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"),
    ];
    let sizes = [(6, 4), (4, 4), (8, 4), (4, 4), (6, 4)];
    let single_sizes: Vec<Size<'_>> = names.iter().zip(sizes).map(|(name, (o, i))| (name.as_str(), o, i)).collect();
    let changes: Vec<(&str, Vec<f64>)> =
        (0..4).map(|at| (names[at].as_str(), product(at as u64, sizes[at].0, sizes[at].1))).collect();
    single(&single_sizes, &adapter, &changes);
}

#[test]
fn sdxl_names_of_stability_reach_both_spellings() {
    let adapter = kohya(&[
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 6, 4),
        ("lora_unet_output_blocks_2_1_transformer_blocks_9_attn2_to_v", 4, 4),
    ]);
    let original = [
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight", 6, 4),
        ("model.diffusion_model.output_blocks.2.1.transformer_blocks.9.attn2.to_v.weight", 4, 4),
        ("model.diffusion_model.input_blocks.5.1.transformer_blocks.0.attn1.to_q.weight", 6, 4),
    ];
    let changes = |sizes: [Size<'static>; 3]| [(sizes[0].0, product(0, 6, 4)), (sizes[1].0, product(1, 4, 4))];
    single(&original, &adapter, &changes(original));
    let diffusers = [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", 6, 4),
        ("up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_v.weight", 4, 4),
        ("down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q.weight", 6, 4),
    ];
    folder("unet", "UNet2DConditionModel", &diffusers, &adapter, &changes(diffusers));
}

#[test]
fn text_encoders_of_sdxl_reach_a_single_file() {
    let layer = "text_model_encoder_layers_0";
    let names = ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj"]
        .map(|name| format!("lora_te2_{layer}_{name}"));
    let first = format!("lora_te1_{layer}_mlp_fc1");
    let second = format!("lora_te2_{layer}_mlp_fc1");
    let mut parts: Vec<Size<'_>> = names.iter().map(|name| (name.as_str(), 4, 4)).collect();
    parts.extend([(first.as_str(), 8, 4), (second.as_str(), 8, 4)]);
    let fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight";
    let out = "conditioner.embedders.1.model.transformer.resblocks.0.attn.out_proj.weight";
    let fc1 = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight";
    let c_fc = "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight";
    let changes = [
        (fused, (0..3).flat_map(|at| product(at, 4, 4)).collect()),
        (out, product(3, 4, 4)),
        (fc1, product(4, 8, 4)),
        (c_fc, product(5, 8, 4)),
    ];
    single(&[(fused, 12, 4), (out, 4, 4), (fc1, 8, 4), (c_fc, 8, 4)], &kohya(&parts), &changes);
}

/// Weights of Flux as diffusers has them, hidden size 16, and one that nothing changes.
const FLUX: [Size<'static>; 9] = [
    ("transformer_blocks.0.attn.to_q.weight", 16, 16),
    ("transformer_blocks.0.attn.to_k.weight", 16, 16),
    ("transformer_blocks.0.attn.to_v.weight", 16, 16),
    ("single_transformer_blocks.0.attn.to_q.weight", 16, 16),
    ("single_transformer_blocks.0.attn.to_k.weight", 16, 16),
    ("single_transformer_blocks.0.attn.to_v.weight", 16, 16),
    ("single_transformer_blocks.0.proj_mlp.weight", 64, 16),
    ("norm_out.linear.weight", 32, 16),
    ("proj_out.weight", 16, 16),
];

#[test]
fn fused_changes_of_flux_are_cut() {
    let adapter = kohya(&[
        ("lora_unet_double_blocks_0_img_attn_qkv", 48, 16),
        ("lora_unet_single_blocks_0_linear1", 112, 16),
        ("lora_unet_final_layer_adaLN_modulation_1", 32, 16),
    ]);
    let (qkv, linear) = (product(0, 48, 16), product(1, 112, 16));
    let halves = product(2, 32, 16);
    let mut changes: Vec<(&str, Vec<f64>)> =
        (0..3).map(|at| (FLUX[at].0, rows(&qkv, 16, 16 * at, 16 * at + 16))).collect();
    changes.extend((0..3).map(|at| (FLUX[3 + at].0, rows(&linear, 16, 16 * at, 16 * at + 16))));
    changes.push((FLUX[6].0, rows(&linear, 16, 48, 112)));
    changes.push((FLUX[7].0, [rows(&halves, 16, 16, 32), rows(&halves, 16, 0, 16)].concat()));
    folder("transformer", "FluxTransformer2DModel", &FLUX, &adapter, &changes);
}

#[test]
fn split_changes_of_flux_are_joined() {
    let named: Vec<String> =
        FLUX.iter().map(|size| format!("transformer.{}", size.0.strip_suffix(".weight").unwrap())).collect();
    // The values of the double block and all of the last layer stay as they are.
    let taken = [0, 1, 3, 4, 5, 6, 7];
    let sizes: Vec<Size<'_>> = taken.iter().map(|at| (named[*at].as_str(), FLUX[*at].1, FLUX[*at].2)).collect();
    let adapter = pairs(&sizes, ".lora_A.weight", ".lora_B.weight");
    let qkv = [product(0, 16, 16), product(1, 16, 16), vec![0.0; 256]].concat();
    let linear = [product(2, 16, 16), product(3, 16, 16), product(4, 16, 16), product(5, 64, 16)].concat();
    let norm = product(6, 32, 16);
    let norm = [rows(&norm, 16, 16, 32), rows(&norm, 16, 0, 16)].concat();
    for prefix in ["", "model.diffusion_model."] {
        let names = ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "final_layer.adaLN_modulation.1"]
            .map(|name| format!("{prefix}{name}.weight"));
        let rest = format!("{prefix}final_layer.linear.weight");
        let base = [(&*names[0], 48, 16), (&*names[1], 112, 16), (&*names[2], 32, 16), (&*rest, 16, 16)];
        let changes = [(&*names[0], qkv.clone()), (&*names[1], linear.clone()), (&*names[2], norm.clone())];
        single(&base, &adapter, &changes);
    }
}

#[test]
fn files_of_xlabs_reach_both_spellings() {
    let pair = |name: &str, seed, outputs| {
        [
            (format!("{name}.down.weight"), Tensor::f32(&[RANK, 16], &down(seed, 16))),
            (format!("{name}.up.weight"), Tensor::f32(&[outputs, RANK], &up(seed, outputs))),
        ]
    };
    let adapter = [
        pair("double_blocks.0.processor.qkv_lora1", 0, 48),
        pair("double_blocks.0.processor.proj_lora2", 1, 16),
        pair("single_blocks.0.processor.qkv_lora", 2, 48),
    ]
    .concat();
    let (qkv, proj, single_qkv) = (product(0, 48, 16), product(1, 16, 16), product(2, 48, 16));
    let original = [
        ("double_blocks.0.img_attn.qkv.weight", 48, 16),
        ("double_blocks.0.txt_attn.proj.weight", 16, 16),
        ("single_blocks.0.linear1.weight", 112, 16),
    ];
    let padded = [single_qkv.clone(), vec![0.0; 64 * 16]].concat();
    single(
        &original,
        &adapter,
        &[(original[0].0, qkv.clone()), (original[1].0, proj.clone()), (original[2].0, padded)],
    );
    let mut sizes = FLUX.to_vec();
    sizes.push(("transformer_blocks.0.attn.to_add_out.weight", 16, 16));
    let mut changes: Vec<(&str, Vec<f64>)> =
        (0..3).map(|at| (FLUX[at].0, rows(&qkv, 16, 16 * at, 16 * at + 16))).collect();
    changes.extend((0..3).map(|at| (FLUX[3 + at].0, rows(&single_qkv, 16, 16 * at, 16 * at + 16))));
    changes.push(("transformer_blocks.0.attn.to_add_out.weight", proj));
    folder("transformer", "FluxTransformer2DModel", &sizes, &adapter, &changes);
}

#[test]
fn a_hadamard_product_is_cut() {
    let name = "lora_unet_double_blocks_0_img_attn_qkv";
    let mut adapter = vec![(format!("{name}.alpha"), Tensor::f32(&[], &[2.0]))];
    for at in 1..3 {
        let (b, a) = (up(at, 48), down(at, 16));
        adapter.push((format!("{name}.hada_w{at}_a"), Tensor::f32(&[48, RANK], &b)));
        adapter.push((format!("{name}.hada_w{at}_b"), Tensor::f32(&[RANK, 16], &a)));
    }
    let both: Vec<f64> = product(1, 48, 16).iter().zip(product(2, 48, 16)).map(|(left, right)| left * right).collect();
    let changes: Vec<(&str, Vec<f64>)> =
        (0..3).map(|at| (FLUX[at].0, rows(&both, 16, 16 * at, 16 * at + 16))).collect();
    folder("transformer", "FluxTransformer2DModel", &FLUX, &adapter, &changes);
}

#[test]
fn magnitudes_of_outputs_are_cut() {
    let name = "lora_unet_double_blocks_0_img_attn_qkv";
    let magnitudes: Vec<f32> = noise(7, 48, 1.0).into_iter().map(|value| value + 2.0).collect();
    let mut adapter = kohya(&[(name, 48, 16)]);
    adapter.push((format!("{name}.dora_scale"), Tensor::f32(&[48, 1], &magnitudes)));
    let delta = product(0, 48, 16);
    let mut changes = Vec::new();
    for at in 0..3 {
        let weight = of_base(at, FLUX[at]).values();
        let mut change = Vec::new();
        for row in 0..16 {
            let own = &weight[row * 16..row * 16 + 16];
            let sum: Vec<f64> = own.iter().zip(&delta[(16 * at + row) * 16..]).map(|(w, d)| w + d).collect();
            let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
            let factor = f64::from(magnitudes[16 * at + row]) / norm;
            change.extend(sum.iter().zip(own).map(|(value, own)| value * factor - own));
        }
        changes.push((FLUX[at].0, change));
    }
    folder("transformer", "FluxTransformer2DModel", &FLUX, &adapter, &changes);
}

/// Grouped queries: two heads of four, one of keys and values.
#[test]
fn split_changes_of_a_language_model_are_joined() {
    let (qkv, gate_up) = ("model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight");
    let sizes = [(qkv, 16, 8), ("model.layers.0.self_attn.o_proj.weight", 8, 8), (gate_up, 24, 8)];
    let adapter = [
        ("model.layers.0.self_attn.q_proj", 8, 8),
        ("model.layers.0.self_attn.k_proj", 4, 8),
        ("model.layers.0.self_attn.v_proj", 4, 8),
        ("model.layers.0.mlp.gate_proj", 12, 8),
        ("model.layers.0.mlp.up_proj", 12, 8),
    ];
    let joined = |range: std::ops::Range<usize>| {
        range.flat_map(|at| product(at as u64, adapter[at].1, adapter[at].2)).collect::<Vec<f64>>()
    };
    language(&sizes, &adapter, &[(qkv, joined(0..3)), (gate_up, joined(3..5))]);
}

#[test]
fn fused_changes_of_a_language_model_are_cut() {
    let sizes = [
        ("model.layers.0.self_attn.q_proj.weight", 8, 8),
        ("model.layers.0.self_attn.k_proj.weight", 4, 8),
        ("model.layers.0.self_attn.v_proj.weight", 4, 8),
        ("model.layers.0.mlp.gate_proj.weight", 12, 8),
        ("model.layers.0.mlp.up_proj.weight", 12, 8),
        ("model.layers.0.self_attn.o_proj.weight", 8, 8),
    ];
    let (qkv, gate_up) = (product(0, 16, 8), product(1, 24, 8));
    let changes = [
        (sizes[0].0, rows(&qkv, 8, 0, 8)),
        (sizes[1].0, rows(&qkv, 8, 8, 12)),
        (sizes[2].0, rows(&qkv, 8, 12, 16)),
        (sizes[3].0, rows(&gate_up, 8, 0, 12)),
        (sizes[4].0, rows(&gate_up, 8, 12, 24)),
    ];
    let adapter = [("model.layers.0.self_attn.qkv_proj", 16, 8), ("model.layers.0.mlp.gate_up_proj", 24, 8)];
    language(&sizes, &adapter, &changes);
}
