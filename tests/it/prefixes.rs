//! Names that differ from the base's in what stands in front of them, whatever that is.

use std::path::PathBuf;

use crate::support::{Bench, Tensor, assert_close, dense, merge, noise, read, write};

const D: usize = 8;
const R: usize = 2;

/// Factors of module number `at`.
fn factors(at: usize, outputs: usize) -> (Tensor, Tensor) {
    let seed = 10 + at as u64 * 2;
    let down = Tensor::f32(&[R, D], &noise(seed, R * D, 0.1));
    (down, Tensor::f32(&[outputs, R], &noise(seed + 1, outputs * R, 0.1)))
}

/// A LoRA of these modules; `key` spells a path, the suffixes are those of A and B.
fn lora(bench: &Bench, name: &str, modules: &[(String, usize)], suffixes: [&str; 2], alpha: bool) -> PathBuf {
    let mut tensors = Vec::new();
    for (at, (module, outputs)) in modules.iter().enumerate() {
        let (down, up) = factors(at, *outputs);
        tensors.push((format!("{module}{}", suffixes[0]), down));
        tensors.push((format!("{module}{}", suffixes[1]), up));
        if alpha {
            tensors.push((format!("{module}.alpha"), Tensor::f32(&[], &[R as f32])));
        }
    }
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let path = bench.path(&format!("{name}.safetensors"));
    write(&path, &named);
    path
}

fn weight(seed: u64, rows: usize) -> Tensor {
    Tensor::f32(&[rows, D], &noise(seed, rows * D, 1.0))
}

const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
const NAMED: [&str; 2] = [".lora_A.default.weight", ".lora_B.default.weight"];
const OLD: [&str; 2] = [".lora.down.weight", ".lora.up.weight"];
const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];

#[test]
fn every_tools_spelling_of_a_flux_lora_says_the_same() {
    let bench = Bench::new();
    let base = bench.path("base.safetensors");
    let qkv = weight(1, 3 * D);
    let linear1 = weight(2, 7 * D);
    write(
        &base,
        &[
            ("double_blocks.0.img_attn.qkv.weight", qkv.clone()),
            ("double_blocks.0.txt_attn.qkv.weight", weight(3, 3 * D)),
            ("double_blocks.0.img_attn.proj.weight", weight(4, D)),
            ("single_blocks.0.linear1.weight", linear1.clone()),
            ("final_layer.linear.weight", weight(5, D)),
        ],
    );
    let names = [
        ("transformer_blocks.0.attn.to_q", D, "double_blocks.0.img_attn.qkv.0"),
        ("transformer_blocks.0.attn.to_k", D, "double_blocks.0.img_attn.qkv.1"),
        ("single_transformer_blocks.0.attn.to_k", D, "single_blocks.0.linear1.1"),
        ("single_transformer_blocks.0.proj_mlp", 4 * D, "single_blocks.0.linear1.3"),
    ];
    let rows = |whole: &Tensor, changes: &[(usize, usize, usize)]| {
        let mut wanted = whole.values();
        for (at, first, outputs) in changes {
            let (down, up) = factors(*at, *outputs);
            let part = first * D..(first + outputs) * D;
            let changed = dense(&wanted[part.clone()], &up.values(), &down.values(), R, 1.0);
            wanted[part].copy_from_slice(&changed);
        }
        wanted
    };
    let wanted_qkv = rows(&qkv, &[(0, 0, D), (1, D, D)]);
    let wanted_linear1 = rows(&linear1, &[(2, D, D), (3, 3 * D, 4 * D)]);
    type Spelled<'a> = (&'a str, Box<dyn Fn(&str, &str) -> String>, [&'a str; 2], bool);
    let spellings: Vec<Spelled<'_>> = vec![
        ("diffusers", Box::new(|name, _| format!("transformer.{name}")), PEFT, false),
        ("simpletuner", Box::new(|name, _| format!("transformer.base_model.model.{name}")), OLD, false),
        ("trailing", Box::new(|name, _| format!("lora_unet_{}_", name.replace('.', "_"))), KOHYA, true),
        ("diffsynth", Box::new(|name, _| name.to_owned()), NAMED, false),
        ("pipe-dit", Box::new(|name, _| format!("pipe.dit.{name}")), NAMED, false),
        ("onetrainer", Box::new(|name, _| format!("lora_transformer_{}", name.replace('.', "_"))), KOHYA, true),
        ("flat-of-nobody", Box::new(|name, _| format!("lora_my_dit_{}", name.replace('.', "_"))), KOHYA, true),
        ("omi", Box::new(|_, omi| format!("transformer.{omi}")), KOHYA, true),
        ("omi-flat", Box::new(|_, omi| format!("lora_transformer_{}", omi.replace('.', "_"))), KOHYA, true),
    ];
    for (name, spelled, suffixes, alpha) in spellings {
        let modules: Vec<(String, usize)> = names.iter().map(|(path, rows, omi)| (spelled(path, omi), *rows)).collect();
        let adapter = lora(&bench, name, &modules, suffixes, alpha);
        let out = bench.path(&format!("{name}-out.safetensors"));
        merge(&base, &adapter, &out, &[]).ok();
        let merged = read(&out);
        assert_close(&merged["double_blocks.0.img_attn.qkv.weight"].values(), &wanted_qkv, 1e-6);
        assert_close(&merged["single_blocks.0.linear1.weight"].values(), &wanted_linear1, 1e-6);
    }
}

#[test]
fn prefixes_of_families_that_no_table_knows_come_off_and_on() {
    let bench = Bench::new();
    // (what stands in front in the base, and in the adapter)
    for (at, (front, own, suffixes)) in [
        ("", "transformer.", PEFT),
        ("", "diffusion_model.", KOHYA),
        ("", "pipe.net.", KOHYA),
        ("", "transformer.base_model.model.", PEFT),
        ("", "lora_unet_", KOHYA),
        ("", "lora_net_", KOHYA),
        ("net.", "diffusion_model.", KOHYA),
        ("net.", "lora_unet_", KOHYA),
        ("net.", "transformer.", PEFT),
        ("model.diffusion_model.", "dit.", KOHYA),
        ("model.diffusion_model.", "lora_unet_", KOHYA),
        ("my.denoiser.", "diffusion_model.", KOHYA),
    ]
    .into_iter()
    .enumerate()
    {
        let paths = ["cells.0.mix.wide_in", "cells.1.mix.wide_in", "cells.1.mix.out"];
        let base = bench.path(&format!("base-{at}.safetensors"));
        let weights: Vec<(String, Tensor)> = paths
            .iter()
            .enumerate()
            .map(|(at, path)| (format!("{front}{path}.weight"), weight(at as u64, D)))
            .collect();
        let named: Vec<(&str, Tensor)> = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        write(&base, &named);
        let spelled = |path: &str| {
            if own.ends_with('_') { format!("{own}{}", path.replace('.', "_")) } else { format!("{own}{path}") }
        };
        let modules: Vec<(String, usize)> = paths.iter().map(|path| (spelled(path), D)).collect();
        let adapter = lora(&bench, &format!("adapter-{at}"), &modules, suffixes, suffixes == KOHYA);
        let out = bench.path(&format!("out-{at}.safetensors"));
        merge(&base, &adapter, &out, &[]).ok();
        let merged = read(&out);
        for (number, (name, weight)) in weights.iter().enumerate() {
            let (down, up) = factors(number, D);
            let wanted = dense(&weight.values(), &up.values(), &down.values(), R, 1.0);
            assert_close(&merged[name].values(), &wanted, 1e-6);
        }
    }
}

#[test]
fn a_shift_is_said_and_one_that_serves_a_part_is_refused_with_both_counts() {
    let bench = Bench::new();
    let base = bench.path("base.safetensors");
    write(&base, &[("cells.0.mix.weight", weight(1, D)), ("cells.1.mix.weight", weight(2, D))]);
    let modules =
        |numbers: &[usize]| numbers.iter().map(|at| (format!("odd.tool.cells.{at}.mix"), D)).collect::<Vec<_>>();
    let adapter = lora(&bench, "whole", &modules(&[0, 1]), KOHYA, true);
    let out = bench.path("out.safetensors");
    let report = merge(&base, &adapter, &out, &["--json"]).ok().json();
    assert!(report["notes"].to_string().contains("`odd.tool.` of the adapter is `` of the base"), "{report}");
    let adapter = lora(&bench, "part", &modules(&[0, 1, 2]), KOHYA, true);
    let out = bench.path("other.safetensors");
    merge(&base, &adapter, &out, &[]).refused(1, &["6 of 9 adapter tensors", "2 of 3 modules"]);
    assert!(!out.exists());
}

#[test]
fn a_shift_that_leads_to_two_places_is_refused() {
    let bench = Bench::new();
    let base = bench.path("base.safetensors");
    write(&base, &[("left.cells.0.mix.weight", weight(1, D)), ("right.cells.0.mix.weight", weight(2, D))]);
    let adapter = lora(&bench, "either", &[("diffusion_model.cells.0.mix".to_owned(), D)], KOHYA, true);
    merge(&base, &adapter, &bench.path("out.safetensors"), &[])
        .refused(1, &["could be any of", "left.cells", "right.cells"]);
}

#[test]
fn embeddings_of_tokens_beside_a_lora_are_counted_and_left() {
    let bench = Bench::new();
    let base = bench.path("base.safetensors");
    let own = weight(1, D);
    write(&base, &[("double_blocks.0.img_attn.proj.weight", own.clone())]);
    let (down, up) = factors(0, D);
    let adapter = bench.path("bundle.safetensors");
    write(
        &adapter,
        &[
            ("transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight", down.clone()),
            ("transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight", up.clone()),
            ("bundle_emb.my token.clip_l", weight(7, 2)),
        ],
    );
    let out = bench.path("out.safetensors");
    let report = merge(&base, &adapter, &out, &["--json"]).ok().json();
    assert!(report["notes"].to_string().contains("my token"), "{report}");
    let wanted = dense(&own.values(), &up.values(), &down.values(), R, 1.0);
    assert_close(&read(&out)["double_blocks.0.img_attn.proj.weight"].values(), &wanted, 1e-6);
}
