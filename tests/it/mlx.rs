//! Adapters of MLX and AdapterHub against what their own libraries merged.

use std::path::Path;

use crate::support::*;

/// Largest difference, as a share of the largest weight.
const TOLERANCE: f64 = 1e-6;

/// What is in `expected` has to be merged so; what the tool changed beside it is not looked at, and the rest has to be the base's.
#[track_caller]
fn assert_merged(folder: &Path, base: &Path, adapter: &Path) {
    let name = folder.display();
    let bench = Bench::new();
    merge(base, adapter, &bench.path("out"), &["--dtype", "f32"]).ok();
    let expected = read(&folder.join("expected-f32.safetensors"));
    let (got, before, facts) = (read_model(&bench.path("out")), read_model(base), read_json(&folder.join("case.json")));
    assert!(!expected.is_empty() && expected.keys().all(|tensor| got.contains_key(tensor)), "{name}");
    let stored = facts["stored"].as_array().map_or(&[][..], Vec::as_slice);
    for (tensor, got) in &got {
        if stored.iter().any(|name| name == tensor) && !expected.contains_key(tensor) {
            continue;
        }
        let (worst, size) = off_by(got, expected.get(tensor).unwrap_or_else(|| &before[tensor]));
        assert!(worst <= TOLERANCE * size, "{name}: `{tensor}` is off by {worst:e} of {size:e}");
    }
}

/// Checks every case in `root`; says how many. `data` holds the bases.
fn check_mlx(root: &Path, data: &Path) -> usize {
    let mut cases = cases(root);
    cases.retain(|case| root.join(case).join("expected-f32.safetensors").exists());
    for case in &cases {
        let folder = root.join(case);
        let base = data.join(read_json(&folder.join("case.json"))["base"].as_str().unwrap());
        assert_merged(&folder, &base, &folder.join("adapter"));
    }
    cases.len()
}

#[test]
fn mlx_adapters_merge_as_mlx_fuses_them() {
    assert_eq!(check_mlx(&fixtures().join("methods/mlx"), &fixtures()), 4);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn mlx_adapters_of_the_reference_merge_as_mlx_fuses_them() {
    assert_eq!(check_mlx(&reference_part("mlx"), &reference()), 5);
}

#[test]
fn a_lora_of_adapterhub_merges_as_its_library_merges_it() {
    let root = fixtures().join("methods/adapterhub");
    assert_merged(&root.join("lora"), &root.join("base-bert"), &fixtures().join("dialects/adapterhub-lora"));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_lora_of_adapterhub_merges_and_what_is_inserted_is_refused() {
    let root = reference_part("adapterhub");
    let base = root.join("base-bert");
    assert_merged(&root.join("lora"), &base, &root.join("lora"));
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
            lorakit(&[&"convert", &file, &"--to", &"peft", &"-o", &dir.path("out")])
                .refused(1, &["adapter_config.json", "alpha"]);
        }
    }
}
