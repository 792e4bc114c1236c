//! The family of an image model is told by sizes, numbers of blocks, a base or a header, and is never guessed.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::{Bench, Outcome, Tensor, Tensors, lorakit, noise, read, write};

const ATTENTION: [&str; 4] = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"];

/// A LoRA of rank 1 in F16 of square modules below `transformer.`.
fn lora(bench: &Bench, name: &str, width: usize, modules: &[String]) -> PathBuf {
    shaped(bench, name, &modules.iter().map(|module| (module.clone(), width, width)).collect::<Vec<_>>())
}

fn shaped(bench: &Bench, name: &str, modules: &[(String, usize, usize)]) -> PathBuf {
    let mut tensors = Vec::new();
    for (at, (module, outputs, inputs)) in modules.iter().enumerate() {
        let seed = at as u64 * 2 + 1;
        let down = Tensor::new(Dtype::F16, &[1, *inputs], &noise(seed, *inputs, 0.05));
        let up = Tensor::new(Dtype::F16, &[*outputs, 1], &noise(seed + 1, *outputs, 0.05));
        tensors.push((format!("transformer.{module}.lora_A.weight"), down));
        tensors.push((format!("transformer.{module}.lora_B.weight"), up));
    }
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let path = bench.path(name);
    write(&path, &named);
    path
}

fn blocks(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    let modules = |at: usize| ATTENTION.map(|module| format!("transformer_blocks.{at}.{module}"));
    numbers.into_iter().flat_map(modules).collect()
}

fn convert(bench: &Bench, adapter: &Path, to: &str, more: &[&str]) -> (Outcome, Tensors) {
    let out = bench.path("out.safetensors");
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> =
        vec![&"convert", &adapter, &"--to", &to, &"-o", &out, &"--force", &"--json"];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    let outcome = lorakit(&words);
    let tensors = if outcome.code == 0 { read(&out) } else { Tensors::new() };
    (outcome, tensors)
}

#[test]
fn an_attention_only_lora_of_qwen_image_keeps_its_one_spelling() {
    let bench = Bench::new();
    let adapter = lora(&bench, "qwen.safetensors", 3072, &blocks([0, 59]));
    let before = read(&adapter);
    let (outcome, tensors) = convert(&bench, &adapter, "comfyui", &[]);
    let report = outcome.ok().json();
    assert_eq!((report["family"].as_str(), report["fused"].as_u64()), (Some("qwen_image"), Some(0)));
    assert!(report["family_by"].as_str().unwrap().contains("sizes"), "{report}");
    assert_eq!(tensors.len(), 24);
    for at in [0, 59] {
        for module in ATTENTION {
            let path = format!("transformer_blocks.{at}.{module}");
            let own = |role: &str| &before[&format!("transformer.{path}.{role}.weight")];
            assert_eq!(&tensors[&format!("diffusion_model.{path}.lora_down.weight")], own("lora_A"));
            assert_eq!(&tensors[&format!("diffusion_model.{path}.lora_up.weight")], own("lora_B"));
            assert_eq!(tensors[&format!("diffusion_model.{path}.alpha")].values(), [1.0]);
        }
    }
    let (outcome, tensors) = convert(&bench, &adapter, "kohya", &[]);
    outcome.ok();
    assert!(tensors.contains_key("lora_unet_transformer_blocks_59_attn_to_q.lora_down.weight"));
    assert!(tensors.keys().all(|name| !name.contains("joint_blocks")));
}

#[test]
fn a_base_tells_the_family() {
    let bench = Bench::new();
    // Sizes of a model that there is none of: names alone fit five families.
    let adapter = lora(&bench, "toy.safetensors", 16, &blocks([0]));
    let (outcome, _) = convert(&bench, &adapter, "comfyui", &[]);
    outcome.refused(1, &["sd3, flux, flux2, hunyuan_video, qwen_image", "--arch qwen_image", "--base PATH"]);
    for (class, family, name) in [
        (
            "QwenImageTransformer2DModel",
            "qwen_image",
            "diffusion_model.transformer_blocks.0.attn.to_q.lora_down.weight",
        ),
        ("SD3Transformer2DModel", "sd3", "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_down.weight"),
        ("FluxTransformer2DModel", "flux", "diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight"),
    ] {
        let base = bench.path(class);
        let weight = Tensor::f32(&[16, 16], &noise(9, 256, 1.0));
        write(&base.join("model.safetensors"), &[("transformer_blocks.0.attn.to_q.weight", weight)]);
        std::fs::write(base.join("config.json"), json!({ "_class_name": class }).to_string()).unwrap();
        let (outcome, tensors) = convert(&bench, &adapter, "comfyui", &["--base", base.to_str().unwrap()]);
        let report = outcome.ok().json();
        assert_eq!(report["family"], family);
        assert!(report["family_by"].as_str().unwrap().contains("base"), "{report}");
        assert!(tensors.contains_key(name), "{:?}", tensors.keys().next());
    }
    // The names of a file of the authors tell as well.
    let base = bench.path("flux.safetensors");
    let weight = |rows: usize| Tensor::f32(&[rows, 16], &noise(9, rows * 16, 1.0));
    write(
        &base,
        &[
            ("double_blocks.0.img_attn.qkv.weight", weight(48)),
            ("double_blocks.0.img_mlp.0.weight", weight(64)),
            ("single_blocks.0.modulation.lin.weight", weight(48)),
        ],
    );
    let (outcome, tensors) = convert(&bench, &adapter, "comfyui", &["--base", base.to_str().unwrap()]);
    assert_eq!(outcome.ok().json()["family"], "flux");
    assert!(tensors.contains_key("diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight"));
}

#[test]
fn sizes_and_numbers_of_blocks_tell_the_family() {
    let bench = Bench::new();
    for (name, width, numbers, family, first) in [
        ("sd35-medium", 1536, vec![0, 23], "sd3", "joint_blocks.0.x_block.attn.proj"),
        ("sd35-large", 2432, vec![0, 37], "sd3", "joint_blocks.0.x_block.attn.proj"),
        ("flux2", 6144, vec![0, 7], "flux2", "double_blocks.0.img_attn.proj"),
        ("all-of-flux", 3072, (0..19).collect(), "flux", "double_blocks.0.img_attn.proj"),
    ] {
        let adapter = lora(&bench, &format!("{name}.safetensors"), width, &blocks(numbers));
        let (outcome, tensors) = convert(&bench, &adapter, "comfyui", &[]);
        assert_eq!(outcome.ok().json()["family"], family, "{name}");
        assert!(tensors.contains_key(&format!("diffusion_model.{first}.alpha")), "{name}");
    }
}

#[test]
fn a_family_that_is_left_open_is_asked_for() {
    let bench = Bench::new();
    let adapter = lora(&bench, "flux.safetensors", 3072, &blocks([0, 18]));
    for to in ["comfyui", "kohya"] {
        let (outcome, _) = convert(&bench, &adapter, to, &[]);
        outcome
            .refused(1, &["flux, hunyuan_video, qwen_image", "--arch flux, --arch hunyuan_video, --arch qwen_image"]);
    }
    let (outcome, tensors) = convert(&bench, &adapter, "comfyui", &["--arch", "flux"]);
    assert_eq!(outcome.ok().json()["family_by"], "--arch");
    assert_eq!(tensors["diffusion_model.double_blocks.18.img_attn.qkv.lora_up.weight"].shape, [9216, 3]);
    // Sizes of no model that is known: a family of its own.
    let other = lora(&bench, "other.safetensors", 2560, &blocks([0]));
    convert(&bench, &other, "comfyui", &[]).0.refused(1, &["sizes that no known model of them has"]);
}

#[test]
fn families_that_give_the_same_names_need_no_word() {
    let bench = Bench::new();
    let path = bench.path("musubi.safetensors");
    let flat = |name: &str, outputs: usize, inputs: usize| {
        let name = format!("lora_unet_{name}");
        [
            (format!("{name}.lora_down.weight"), Tensor::new(Dtype::F16, &[1, inputs], &noise(3, inputs, 0.05))),
            (format!("{name}.lora_up.weight"), Tensor::new(Dtype::F16, &[outputs, 1], &noise(4, outputs, 0.05))),
            (format!("{name}.alpha"), Tensor::f32(&[], &[1.0])),
        ]
    };
    let file = |modules: &[(&str, usize, usize)]| {
        let tensors: Vec<_> =
            modules.iter().flat_map(|(name, outputs, inputs)| flat(name, *outputs, *inputs)).collect();
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        write(&path, &named);
    };
    // Block 19 and single block 39 are HunyuanVideo's alone.
    file(&[
        ("double_blocks_19_img_attn_qkv", 9216, 3072),
        ("double_blocks_19_img_attn_proj", 3072, 3072),
        ("single_blocks_39_linear2", 3072, 15360),
    ]);
    let (outcome, tensors) = convert(&bench, &path, "comfyui", &[]);
    assert_eq!(outcome.ok().json()["family"], "hunyuan_video");
    assert!(tensors.contains_key("diffusion_model.double_blocks.19.img_attn_qkv.lora_down.weight"));
    // In block 3 it may be Flux.1 as well: to diffusers both are called alike, in ComfyUI not.
    file(&[("double_blocks_3_img_attn_proj", 3072, 3072)]);
    let (outcome, tensors) = convert(&bench, &path, "diffusers", &[]);
    outcome.ok();
    assert!(tensors.contains_key("transformer.transformer_blocks.3.attn.to_out.0.lora_A.weight"));
    convert(&bench, &path, "comfyui", &[]).0.refused(1, &["flux", "hunyuan_video", "--arch"]);
}

#[test]
fn a_header_tells_the_family_where_that_is_consistent() {
    let bench = Bench::new();
    let tensors = |path: &Path, version: &str| {
        let down = Tensor::new(Dtype::F16, &[1, 3072], &noise(1, 3072, 0.05));
        let up = Tensor::new(Dtype::F16, &[3072, 1], &noise(2, 3072, 0.05));
        let names =
            ["lora_A", "lora_B"].map(|role| format!("transformer.transformer_blocks.0.attn.to_q.{role}.weight"));
        let views = names.iter().zip([down, up]).map(|(name, tensor)| (name.clone(), tensor)).collect::<Vec<_>>();
        let views = views.iter().map(|(name, tensor)| {
            let view = safetensors::tensor::TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap();
            (name.as_str(), view)
        });
        let metadata = [("modelspec.architecture".to_owned(), version.to_owned())].into();
        std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    };
    let path = bench.path("stated.safetensors");
    tensors(&path, "flux-1-dev/lora");
    let (outcome, names) = convert(&bench, &path, "comfyui", &[]);
    let report = outcome.ok().json();
    assert_eq!(report["family"], "flux");
    assert!(report["family_by"].as_str().unwrap().contains("modelspec.architecture"), "{report}");
    assert!(names.contains_key("diffusion_model.double_blocks.0.img_attn.qkv.alpha"));
    // SD3 has no such width.
    tensors(&path, "stable-diffusion-3-medium/lora");
    convert(&bench, &path, "comfyui", &[]).0.refused(1, &["flux", "qwen_image", "--arch"]);
}

#[test]
fn names_of_unknown_families_stay_and_it_is_said() {
    let bench = Bench::new();
    for (name, module, width) in [
        ("cogvideox", "transformer_blocks.29.attn1.to_q", 1920),
        ("pixart", "transformer_blocks.27.attn1.to_k", 1152),
        ("auraflow", "joint_transformer_blocks.0.attn.to_q", 3072),
        ("hidream", "double_stream_blocks.0.block.attn1.to_q", 2560),
    ] {
        let adapter = lora(&bench, &format!("{name}.safetensors"), width, &[module.to_owned()]);
        let (outcome, tensors) = convert(&bench, &adapter, "comfyui", &[]);
        let report = outcome.ok().json();
        assert!(report["family"].is_null(), "{name}: {report}");
        assert!(report["notes"].to_string().contains("no known family"), "{name}: {report}");
        assert!(tensors.contains_key(&format!("diffusion_model.{module}.lora_down.weight")), "{name}");
    }
    let ltx = lora(&bench, "ltx.safetensors", 2048, &["transformer_blocks.27.attn1.to_q".to_owned()]);
    assert_eq!(convert(&bench, &ltx, "comfyui", &[]).0.ok().json()["family"], "ltx_video");
}

#[test]
fn a_language_model_whose_names_begin_like_a_component_is_none() {
    let bench = Bench::new();
    for (name, module) in [
        ("mpt", "transformer.blocks.0.attn.Wqkv"),
        ("layers", "transformer.layers.0.attn.q_proj"),
        ("decoder", "decoder.blocks.0.attn.q"),
    ] {
        let pair = |role: &str, shape: &[usize], seed| {
            (format!("{module}.{role}.weight"), Tensor::f32(shape, &noise(seed, shape[0] * shape[1], 0.1)))
        };
        let tensors = [pair("lora_A", &[2, 6], 1), pair("lora_B", &[6, 2], 2)];
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        let adapter = bench.adapter(name, json!({ "lora_alpha": 6 }), &named);
        let out = bench.path(&format!("{name}-mlx"));
        lorakit(&[&"convert", &adapter, &"--to", &"mlx", &"-o", &out]).ok();
        let mlx = read(&out.join("adapters.safetensors"));
        let down = tensors[0].1.values();
        let turned: Vec<f64> = (0..12).map(|at| down[at % 2 * 6 + at / 2]).collect();
        assert_eq!(mlx[&format!("{module}.lora_a")].values(), turned);
        let back = bench.path(&format!("{name}-peft"));
        lorakit(&[&"convert", &out, &"--to", &"peft", &"-o", &back]).ok();
        let back = read(&back.join("adapter_model.safetensors"));
        assert_eq!(back[&format!("base_model.model.{module}.lora_A.weight")].values(), down);
    }
}

#[test]
fn an_adapter_of_one_denoiser_is_converted_with_all_its_layers() {
    let bench = Bench::new();
    let pair = |module: &str, outputs: usize, inputs: usize| {
        let module = module.to_owned();
        [
            (format!("{module}.lora_A.weight"), Tensor::f32(&[2, inputs], &noise(1, 2 * inputs, 0.1))),
            (format!("{module}.lora_B.weight"), Tensor::f32(&[outputs, 2], &noise(2, outputs * 2, 0.1))),
        ]
    };
    for (name, modules, original) in [
        ("z-image", [("layers.0.attention.to_q", 12), ("layers.0.feed_forward.w1", 24)], "layers.0.attention.qkv"),
        ("flux", [("single_transformer_blocks.0.attn.to_q", 12), ("norm_out.linear", 24)], "single_blocks.0.linear1"),
    ] {
        let tensors: Vec<_> = modules.iter().flat_map(|(module, outputs)| pair(module, *outputs, 12)).collect();
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        let adapter = bench.adapter(name, json!({}), &named);
        let more: &[&str] = if name == "flux" { &["--arch", "flux"] } else { &[] };
        let (outcome, tensors) = convert(&bench, &adapter, "comfyui", more);
        outcome.ok();
        assert!(tensors.contains_key(&format!("diffusion_model.{original}.lora_down.weight")), "{:?}", tensors.keys());
        assert_eq!(tensors.len(), 6, "{name}");
    }
}
