//! Pipelines with two denoisers that are built alike: which is meant has to be said.

use std::path::PathBuf;

use serde_json::json;

use crate::support::{Bench, Tensor, assert_close, dense, lorakit, merge, noise, read, write};

const D: usize = 8;
const R: usize = 2;
const FILE: &str = "diffusion_pytorch_model.safetensors";
const OWN: &str = "blocks.0.attn1.to_q.weight";

fn weight(seed: u64) -> Tensor {
    Tensor::f32(&[D, D], &noise(seed, D * D, 1.0))
}

fn pipeline(bench: &Bench, components: &[&str], class: &str) -> PathBuf {
    let pipe = bench.path("pipe");
    let mut index = json!({ "_class_name": "WanPipeline" });
    for (at, component) in components.iter().enumerate() {
        index[*component] = json!(["diffusers", class]);
        let folder = pipe.join(component);
        write(&folder.join(FILE), &[(OWN, weight(at as u64 + 1)), ("blocks.0.attn1.to_k.weight", weight(9))]);
        std::fs::write(folder.join("config.json"), json!({ "_class_name": class }).to_string()).unwrap();
    }
    std::fs::write(pipe.join("model_index.json"), index.to_string()).unwrap();
    pipe
}

fn factors() -> (Tensor, Tensor) {
    (Tensor::f32(&[R, D], &noise(21, R * D, 0.1)), Tensor::f32(&[D, R], &noise(22, D * R, 0.1)))
}

fn adapter(bench: &Bench, name: &str, modules: &[&str]) -> PathBuf {
    let (down, up) = factors();
    let tensors: Vec<(String, Tensor)> = modules
        .iter()
        .flat_map(|module| {
            [
                (format!("{module}.lora_down.weight"), down.clone()),
                (format!("{module}.lora_up.weight"), up.clone()),
                (format!("{module}.alpha"), Tensor::f32(&[], &[R as f32])),
            ]
        })
        .collect();
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let path = bench.path(&format!("{name}.safetensors"));
    write(&path, &named);
    path
}

fn changed(own: &Tensor) -> Vec<f64> {
    let (down, up) = factors();
    dense(&own.values(), &up.values(), &down.values(), R, 1.0)
}

#[test]
fn a_denoiser_that_is_given_alone_is_the_one_that_is_meant() {
    let bench = Bench::new();
    let pipe = pipeline(&bench, &["transformer", "transformer_2"], "WanTransformer3DModel");
    for (at, key) in
        ["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_0_self_attn_q", "transformer.blocks.0.attn1.to_q"]
            .into_iter()
            .enumerate()
    {
        let lora = adapter(&bench, &format!("lora-{at}"), &[key]);
        for (seed, component) in [(1, "transformer"), (2, "transformer_2")] {
            let out = bench.path(&format!("{component}-{at}"));
            merge(&pipe.join(component), &lora, &out, &[]).ok();
            assert_close(&read(&out.join(FILE))[OWN].values(), &changed(&weight(seed)), 1e-6);
            let out = bench.path(&format!("{component}-{at}.safetensors"));
            merge(&pipe.join(component).join(FILE), &lora, &out, &[]).ok();
            assert_close(&read(&out)[OWN].values(), &changed(&weight(seed)), 1e-6);
        }
    }
}

#[test]
fn a_pipeline_with_two_asks_which_is_meant() {
    let bench = Bench::new();
    let pipe = pipeline(&bench, &["transformer", "transformer_2"], "WanTransformer3DModel");
    for (at, key) in ["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_0_self_attn_q"].into_iter().enumerate()
    {
        let lora = adapter(&bench, &format!("lora-{at}"), &[key]);
        let out = bench.path(&format!("refused-{at}"));
        merge(&pipe, &lora, &out, &[]).refused(
            1,
            &["`transformer` and `transformer_2`", "--component transformer, or --component transformer_2"],
        );
        assert!(!out.exists());
        for (seed, other_seed, component, other) in
            [(1, 2, "transformer", "transformer_2"), (2, 1, "transformer_2", "transformer")]
        {
            let out = bench.path(&format!("{component}-{at}"));
            let report = merge(&pipe, &lora, &out, &["--component", component, "--json"]).ok().json();
            assert_close(&read(&out.join(component).join(FILE))[OWN].values(), &changed(&weight(seed)), 1e-6);
            assert_eq!(read(&out.join(other).join(FILE))[OWN], weight(other_seed));
            let notes = report["notes"].to_string();
            assert!(notes.contains(&format!("only `{component}` changes: `{other}`")), "{notes}");
        }
    }
    let lora = adapter(&bench, "lora", &["diffusion_model.blocks.0.self_attn.q"]);
    merge(&pipe, &lora, &bench.path("x"), &["--component", "vae"])
        .refused(2, &["--component", "`transformer`, `transformer_2`"]);
    merge(&pipe.join("transformer"), &lora, &bench.path("x"), &["--component", "transformer_2"])
        .refused(2, &["--component"]);
}

#[test]
fn tensors_that_name_their_denoiser_go_there() {
    let bench = Bench::new();
    let pipe = pipeline(&bench, &["transformer", "transformer_2"], "WanTransformer3DModel");
    let both = adapter(&bench, "both", &["transformer.blocks.0.attn1.to_q", "transformer_2.blocks.0.attn1.to_q"]);
    let out = bench.path("both-out");
    let report = merge(&pipe, &both, &out, &["--json"]).ok().json();
    for (seed, component) in [(1, "transformer"), (2, "transformer_2")] {
        assert_close(&read(&out.join(component).join(FILE))[OWN].values(), &changed(&weight(seed)), 1e-6);
    }
    assert!(!report["notes"].to_string().contains("only `"), "{report}");
    // One denoiser alone must not get what is the other's.
    for component in ["transformer", "transformer_2"] {
        merge(&pipe.join(component), &both, &bench.path("no"), &[]).refused(1, &["have no place"]);
    }
    merge(&pipe, &both, &bench.path("no"), &["--component", "transformer_2"])
        .refused(1, &["`transformer_2` is asked for"]);
    let second = adapter(&bench, "second", &["transformer_2.blocks.0.attn1.to_q"]);
    merge(&pipe, &second, &bench.path("no"), &["--component", "transformer"])
        .refused(1, &["`transformer` is asked for"]);
}

#[test]
fn one_denoiser_needs_no_word() {
    let bench = Bench::new();
    let pipe = pipeline(&bench, &["transformer"], "WanTransformer3DModel");
    let lora = adapter(&bench, "lora", &["diffusion_model.blocks.0.self_attn.q"]);
    let out = bench.path("out");
    let report = merge(&pipe, &lora, &out, &["--json"]).ok().json();
    assert_close(&read(&out.join("transformer").join(FILE))[OWN].values(), &changed(&weight(1)), 1e-6);
    assert!(!report["notes"].to_string().contains("built alike"), "{report}");
}

#[test]
fn conversions_name_the_denoiser_that_is_meant() {
    let bench = Bench::new();
    let pipe = pipeline(&bench, &["transformer", "transformer_2"], "WanTransformer3DModel");
    let lora = adapter(&bench, "lora", &["diffusion_model.blocks.0.self_attn.q"]);
    let out = bench.path("low.safetensors");
    lorakit(&[&"convert", &lora, &"--to", &"diffusers", &"--component", &"transformer_2", &"-o", &out]).ok();
    assert!(read(&out).contains_key("transformer_2.blocks.0.attn1.to_q.lora_A.weight"));
    let back = bench.path("back.safetensors");
    lorakit(&[&"convert", &out, &"--to", &"comfyui", &"-o", &back]).ok();
    assert!(read(&back).contains_key("diffusion_model.blocks.0.self_attn.q.lora_down.weight"));
    let folder = bench.path("folder");
    lorakit(&[&"convert", &pipe, &"--component", &"transformer_2", &"--dtype", &"f16", &"-o", &folder]).ok();
    assert!(read(&folder.join(FILE)).contains_key(OWN));
    lorakit(&[&"convert", &pipe, &"--component", &"nothing", &"-o", &bench.path("x")])
        .refused(2, &["no component `nothing`"]);
    let listed = lorakit(&[&"inspect", &lora, &"--base", &pipe, &"--component", &"transformer_2", &"--json"]).ok();
    assert!(listed.stdout.contains("transformer_2"), "{}", listed.stdout);
}
