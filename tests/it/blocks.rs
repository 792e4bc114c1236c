//! `--lbw`: a merge with weights for blocks is the merge of an adapter whose factors were multiplied beforehand.

use std::path::Path;

use crate::support::*;

/// Module in the names of sd-scripts, weight in a single file, and its place in a list of 17.
const MODULES: [(&str, &str, usize); 5] = [
    (
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1",
        0,
    ),
    ("lora_unet_down_blocks_0_attentions_0_proj_in", "model.diffusion_model.input_blocks.1.1.proj_in", 1),
    ("lora_unet_down_blocks_2_attentions_1_proj_in", "model.diffusion_model.input_blocks.8.1.proj_in", 6),
    ("lora_unet_mid_block_attentions_0_proj_in", "model.diffusion_model.middle_block.1.proj_in", 7),
    ("lora_unet_up_blocks_3_attentions_2_proj_in", "model.diffusion_model.output_blocks.11.1.proj_in", 16),
];

/// The adapter, with B of module i multiplied by `factors[i]`.
fn adapter(bench: &Bench, name: &str, factors: [f32; 5]) -> std::path::PathBuf {
    let mut tensors = Vec::new();
    for (at, (module, ..)) in MODULES.iter().enumerate() {
        let seed = 10 * at as u64;
        let up: Vec<f32> = noise(seed, 8, 1.0).iter().map(|value| value * factors[at]).collect();
        tensors.push((format!("{module}.lora_up.weight"), Tensor::f32(&[4, 2], &up)));
        tensors.push((format!("{module}.lora_down.weight"), Tensor::f32(&[2, 4], &noise(seed + 1, 8, 1.0))));
        tensors.push((format!("{module}.alpha"), Tensor::f32(&[], &[2.0])));
    }
    let path = bench.path(name);
    write(&path, &tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect::<Vec<_>>());
    path
}

fn base(bench: &Bench) -> std::path::PathBuf {
    let names: Vec<String> = MODULES.iter().map(|(_, weight, _)| format!("{weight}.weight")).collect();
    let tensors: Vec<(&str, Tensor)> =
        (50..).zip(&names).map(|(seed, name)| (name.as_str(), Tensor::f32(&[4, 4], &noise(seed, 16, 1.0)))).collect();
    let path = bench.path("model.safetensors");
    write(&path, &tensors);
    path
}

fn merged(bench: &Bench, base: &Path, adapter: &Path, more: &[&str]) -> Tensors {
    let out = bench.path("out.safetensors");
    let mut words = vec!["--force"];
    words.extend(more);
    merge(base, adapter, &out, &words).ok();
    read(&out)
}

#[test]
fn weights_of_blocks_multiply_the_factors() {
    let bench = Bench::new();
    let (base, plain) = (base(&bench), adapter(&bench, "plain.safetensors", [1.0; 5]));
    for (list, factors) in [
        ("0.5,2,9,9,9,9,-1,0,9,9,9,9,9,9,9,9,0.25", [0.5, 2.0, -1.0, 0.0, 0.25]),
        ("INS", [1.0, 1.0, 0.0, 0.0, 0.0]),
        ("MIDD", [1.0, 0.0, 1.0, 1.0, 0.0]),
        ("OUTALL", [1.0, 0.0, 0.0, 0.0, 1.0]),
        ("ALL0.5", [0.5; 5]),
    ] {
        let scaled = adapter(&bench, "scaled.safetensors", factors);
        let wanted = merged(&bench, &base, &scaled, &[]);
        assert_eq!(merged(&bench, &base, &plain, &["--lbw", list]), wanted, "{list}");
    }
    let both = merged(&bench, &base, &plain, &["--lbw", "ALL0.5", "--weight-for", "middle_block=4"]);
    let wanted = merged(&bench, &base, &adapter(&bench, "both.safetensors", [0.5, 0.5, 0.5, 2.0, 0.5]), &[]);
    assert_eq!(both, wanted);
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    let (base, plain) = (base(&bench), adapter(&bench, "plain.safetensors", [1.0; 5]));
    let out = bench.path("out.safetensors");
    let sdxl = ["1"; 12].join(",");
    for (list, parts) in [
        ("1,0,1", vec!["3 weights are given", "17 for Stable Diffusion", "12 for SDXL", "61 for Flux.1"]),
        ("SOME", vec!["`SOME`", "presets: ALL,"]),
        (sdxl.as_str(), vec!["is in block IN01, and 12 weights are those of SDXL", "17 weights for Stable Diffusion"]),
    ] {
        merge(&base, &plain, &out, &["--lbw", list]).refused(2, &parts);
    }
    assert!(!out.exists());
}
