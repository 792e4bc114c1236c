//! Diffusion pipelines as bases: every component keeps its own names, files, index and config.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::*;

fn matrix(seed: u64) -> Tensor {
    Tensor::f32(&[4, 3], &noise(seed, 12, 1.0))
}

/// A pipeline with a U-Net in two shards, a text encoder with a copy in half precision beside it, and a VAE.
fn pipeline(bench: &Bench) -> PathBuf {
    let root = bench.path("pipe");
    let shard = |at: usize| root.join(format!("unet/diffusion_pytorch_model-{at:05}-of-00002.safetensors"));
    write(&shard(1), &[("down.to_q.weight", matrix(1))]);
    write(&shard(2), &[("up.to_q.weight", matrix(2))]);
    let map = json!({
        "down.to_q.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "up.to_q.weight": "diffusion_pytorch_model-00002-of-00002.safetensors",
    });
    let index = json!({ "metadata": { "total_size": 96 }, "weight_map": map });
    fs::write(root.join("unet/diffusion_pytorch_model.safetensors.index.json"), index.to_string()).unwrap();
    write(&root.join("text_encoder/model.safetensors"), &[("text.q_proj.weight", matrix(3)), ("x.bias", matrix(4))]);
    write(&root.join("text_encoder/model.fp16.safetensors"), &[("text.q_proj.weight", matrix(5))]);
    write(&root.join("vae/diffusion_pytorch_model.fp16.safetensors"), &[("down.to_q.weight", matrix(6))]);
    for (file, text) in [
        ("model_index.json", r#"{"_class_name": "StableDiffusionPipeline"}"#),
        ("unet/config.json", r#"{"_class_name": "UNet2DConditionModel"}"#),
        ("text_encoder/config.json", r#"{"architectures": ["CLIPTextModel"]}"#),
        ("vae/config.json", "{}"),
        ("scheduler/scheduler_config.json", "{}"),
        ("tokenizer/vocab.json", "{}"),
    ] {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), text).unwrap();
    }
    root
}

fn adapter(bench: &Bench, paths: &[&str]) -> PathBuf {
    let mut tensors = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let seed = 10 * at as u64;
        tensors.push((format!("{path}.lora_A.weight"), Tensor::f32(&[2, 3], &noise(seed + 11, 6, 1.0))));
        tensors.push((format!("{path}.lora_B.weight"), Tensor::f32(&[4, 2], &noise(seed + 12, 8, 1.0))));
    }
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    bench.adapter("adapter", json!({}), &named)
}

/// W + 2 · B·A of the adapter's module at `at`.
fn expected(base: &Tensor, at: u64) -> Vec<f64> {
    let factor = |seed, count| noise(10 * at + seed, count, 1.0).into_iter().map(f64::from).collect::<Vec<_>>();
    dense(&base.values(), &factor(12, 8), &factor(11, 6), 2, 2.0)
}

fn files(root: &Path) -> Vec<String> {
    snapshot(root).keys().map(|path| path.to_string_lossy().into_owned()).collect()
}

#[test]
fn a_pipeline_is_merged_folder_by_folder() {
    let bench = Bench::new();
    let (root, out) = (pipeline(&bench), bench.path("out"));
    let adapter = adapter(&bench, &["unet.up.to_q", "text_encoder.text.q_proj"]);
    let outcome = merge(&root, &adapter, &out, &[]).ok();
    assert!(outcome.stdout.contains("text_encoder/model.fp16.safetensors"), "{}", outcome.stdout);
    let mut wanted = files(&root);
    wanted.retain(|file| file != "text_encoder/model.fp16.safetensors");
    wanted.push("lorakit.json".into());
    wanted.sort();
    let mut got = files(&out);
    got.sort();
    assert_eq!(got, wanted);
    let unet = read_model(&out.join("unet"));
    assert_close(&unet["up.to_q.weight"].values(), &expected(&matrix(2), 0), 1e-6);
    assert_eq!(unet["down.to_q.weight"], matrix(1));
    let text = read_model(&out.join("text_encoder"));
    assert_close(&text["text.q_proj.weight"].values(), &expected(&matrix(3), 1), 1e-6);
    assert_eq!(text["x.bias"], matrix(4));
    assert_eq!(read_model(&out.join("vae"))["down.to_q.weight"], matrix(6));
    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    assert_eq!(read_json(&out.join(index)), read_json(&root.join(index)));
    for file in ["model_index.json", "unet/config.json", "vae/config.json", "tokenizer/vocab.json"] {
        assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(root.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn shards_are_cut_by_component() {
    let bench = Bench::new();
    let (root, out) = (pipeline(&bench), bench.path("out"));
    let adapter = adapter(&bench, &["unet.up.to_q"]);
    merge(&root, &adapter, &out, &["--max-shard-size", "50B"]).ok();
    let got = files(&out);
    for file in [
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ] {
        assert!(got.iter().any(|name| name == file), "{file} is not in {got:?}");
    }
    let index = read_json(&out.join("text_encoder/model.safetensors.index.json"));
    assert_eq!(index["weight_map"]["x.bias"], "model-00002-of-00002.safetensors");
    assert_eq!(read_model(&out.join("text_encoder")).len(), 2);
    assert_close(&read_model(&out.join("unet"))["up.to_q.weight"].values(), &expected(&matrix(2), 0), 1e-6);
}

#[test]
fn one_component_alone_is_a_base_as_well() {
    let bench = Bench::new();
    let (root, out) = (pipeline(&bench), bench.path("out"));
    let adapter = adapter(&bench, &["unet.up.to_q", "unet.down.to_q"]);
    merge(&root.join("unet"), &adapter, &out, &[]).ok();
    let got = read_model(&out);
    assert_close(&got["up.to_q.weight"].values(), &expected(&matrix(2), 0), 1e-6);
    assert_close(&got["down.to_q.weight"].values(), &expected(&matrix(1), 1), 1e-6);
    assert!(files(&out).contains(&"diffusion_pytorch_model.safetensors.index.json".to_owned()));
}

#[test]
fn a_pipeline_is_cast_and_described_as_one_model() {
    let bench = Bench::new();
    let (root, out) = (pipeline(&bench), bench.path("out"));
    let outcome = lorakit(&[&"inspect", &root, &"--json"]).ok();
    assert!(outcome.stdout.contains("\"pipeline\""), "{}", outcome.stdout);
    lorakit(&[&"convert", &root, &"-o", &out, &"--dtype", &"bf16"]).ok();
    let text = read_model(&out.join("text_encoder"));
    let wanted: Vec<f32> = matrix(3).values().into_iter().map(|value| value as f32).collect();
    assert_eq!(text["text.q_proj.weight"], Tensor::new(safetensors::Dtype::BF16, &[4, 3], &wanted));
    assert!(out.join("unet/diffusion_pytorch_model.safetensors.index.json").is_file());
}
