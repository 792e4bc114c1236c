//! Adapters of MLX and AdapterHub against what their own libraries merged.

use std::path::Path;

use crate::support::*;

/// Largest difference, as a share of the largest weight.
const TOLERANCE: f64 = 1e-6;

#[track_caller]
fn assert_merged(name: &str, base: &Path, adapter: &Path, expected: &Path) {
    let bench = Bench::new();
    merge(base, adapter, &bench.path("out"), &["--dtype", "f32"]).ok();
    let (got, before, expected) = (read_model(&bench.path("out")), read_model(base), read(expected));
    assert!(expected.keys().all(|tensor| got.contains_key(tensor)), "{name}");
    for (tensor, got) in &got {
        let wanted = expected.get(tensor).unwrap_or_else(|| &before[tensor]).values();
        let size = wanted.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
        let worst = got.values().iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
        assert!(worst <= TOLERANCE * size, "{name}: `{tensor}` is off by {worst:e} of {size:e}");
    }
}

#[test]
fn mlx_adapters_merge_as_mlx_fuses_them() {
    let Some(root) = reference() else { return };
    for case in ["lora", "lora-embed", "lora-last-layer", "dora", "full"] {
        let folder = root.join("mlx").join(case);
        let facts = read_json(&folder.join("case.json"));
        let base = root.join(facts["base"].as_str().unwrap());
        assert_merged(case, &base, &folder.join("adapter"), &folder.join("expected-f32.safetensors"));
    }
}

#[test]
fn a_lora_of_adapterhub_merges_and_what_is_inserted_is_refused() {
    let Some(root) = reference_part("adapterhub") else { return };
    let base = root.join("base-bert");
    assert_merged("lora", &base, &root.join("lora"), &root.join("lora/expected-f32.safetensors"));
    for (case, reason) in [
        ("houlsby-double_seq_bn", "a bottleneck is not linear"),
        ("pfeiffer-seq_bn", "a bottleneck is not linear"),
        ("par_bn", "a bottleneck is not linear"),
        ("seq_bn_inv", "a bottleneck is not linear"),
        ("compacter", "a bottleneck is not linear"),
        ("prompt", "in front of the input"),
        ("loreft", "some positions only"),
        ("prefix", "keys and values"),
    ] {
        let bench = Bench::new();
        merge(&base, &root.join(case), &bench.path("out"), &[]).refused(1, &[reason]);
        assert!(bench.listing().is_empty(), "{case}");
    }
}

/// Names of language models that begin as parts of a pipeline do: nothing tells their α.
#[test]
fn loralibs_files_have_no_scale() {
    for module in
        ["transformer.h.0.attn.c_proj", "decoder.block.0.layer.0.SelfAttention.q", "roberta.encoder.layer.0.q"]
    {
        for ending in ["", ".weight"] {
            let dir = Bench::new();
            let file = dir.path("loralib.safetensors");
            let factors = [("A", [2, 4]), ("B", [4, 2])];
            let tensors: Vec<(String, Tensor)> = factors
                .iter()
                .map(|(factor, shape)| {
                    (format!("{module}.lora_{factor}{ending}"), Tensor::f32(shape, &noise(1, 8, 1.0)))
                })
                .collect();
            let named: Vec<(&str, Tensor)> =
                tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
            write(&file, &named);
            lorakit(&[&"inspect", &file]).refused(1, &["adapter_config.json", "alpha"]);
        }
    }
}
