//! Merges of every other method against what PEFT's own merge gave, and refusals of what no weight can hold.

use std::path::Path;

use lorakit::adapters::methods::KINDS;
use lorakit::adapters::{Adapter, Change};

use crate::golden::{assert_same_low, rounded};
use crate::support::{
    Bench, Tensor, cases, fixtures, merge, noise, off_by, read, read_json, read_model, reference_part, write,
};

/// Largest difference from PEFT's f32 merge, as a share of the largest weight.
const TOLERANCE: f64 = 1e-6;

/// Its columns are nearly parallel, and PEFT makes them orthogonal in f32: its result is 4e-6 from that of f64.
const ROUNDED_BY_PEFT: (&str, f64) = ("hra-gs", 2e-6);

/// PEFT computes these partly in the base's dtype; ours are the f32 result, rounded once.
const PARTLY_LOW: [&str; 5] = ["C3A", "DELORA", "GLORA", "HIRA", "ROAD"];

/// Methods tested elsewhere.
const ELSEWHERE: [&str; 2] = ["LORA", "TRAINABLE_TOKENS"];

/// The reason that a refusal of the case must give.
const REASONS: [(&str, &str); 8] = [
    ("fourierft", "torch's generator"),
    ("waveft", "torch's generator"),
    ("lily", "router"),
    ("prefix-tuning", "prefix"),
    ("prompt-tuning", "soft prompt"),
    ("psoft", "decomposition of the base"),
    ("randlora-noproj", "without saved projections"),
    ("vera-r16-noproj", "without saved projections"),
];

/// Merges every case in `root`, on a model in `bases`; says how many were merged, and how many refused.
fn check_all(root: &Path, bases: &Path) -> (usize, usize) {
    let (mut merged, mut refused, mut wrong) = (0, 0, Vec::new());
    for name in cases(root) {
        let facts = read_json(&root.join(&name).join("case.json"));
        if ELSEWHERE.contains(&facts["peft_type"].as_str().unwrap_or_default()) {
            continue;
        }
        let base = bases.join(facts["base"].as_str().unwrap());
        let adapter = root.join(&name).join("adapter");
        let bench = Bench::new();
        let outcome = merge(&base, &adapter, &bench.path("out"), &["--dtype", "f32"]);
        if let Some((_, reason)) = REASONS.iter().find(|(case, _)| *case == name) {
            outcome.refused(1, &[reason]);
            assert!(bench.listing().is_empty(), "{name}");
            refused += 1;
            continue;
        }
        outcome.ok();
        let (got, source) = (read_model(&bench.path("out")), read_model(&base));
        let expected = read(&root.join(&name).join("expected-f32.safetensors"));
        let stored = facts["stored"].as_array().unwrap();
        for (tensor, got) in &got {
            // The fixtures keep a selection of what was stored.
            let left_out = stored.iter().any(|name| name == tensor) && !expected.contains_key(tensor);
            let Some(wanted) = expected.get(tensor).or_else(|| source.get(tensor)).filter(|_| !left_out) else {
                continue;
            };
            let (worst, size) = off_by(got, wanted);
            let allowed = if name == ROUNDED_BY_PEFT.0 { ROUNDED_BY_PEFT.1 } else { TOLERANCE };
            if worst > allowed * size {
                wrong.push(format!("{name} {tensor}: off by {worst:e} of {size}"));
            }
        }
        assert!(!expected.is_empty() && expected.keys().all(|tensor| got.contains_key(tensor)), "{name}");
        merged += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    (merged, refused)
}

/// Merges every case on its base of low precision; says how many tensors were compared.
fn check_low(root: &Path, bases: &Path) -> usize {
    let mut compared = 0;
    for name in cases(root) {
        let folder = root.join(&name);
        let facts = read_json(&folder.join("case.json"));
        let method = facts["peft_type"].as_str().unwrap_or_default();
        let elsewhere = ELSEWHERE.contains(&method) || REASONS.iter().any(|(case, _)| *case == name);
        if elsewhere || name == ROUNDED_BY_PEFT.0 {
            continue;
        }
        let Some(base) = facts["base_for_low"].as_str() else { continue };
        let bench = Bench::new();
        merge(&bases.join(base), &folder.join("adapter"), &bench.path("out"), &[]).ok();
        let got = read_model(&bench.path("out"));
        // What is not stored in low precision is the f32 result, rounded once.
        let low = Some(folder.join("expected-bf16.safetensors")).filter(|path| path.exists());
        let low = low.filter(|_| !PARTLY_LOW.contains(&method)).map(|path| read(&path));
        for (tensor, exact) in &read(&folder.join("expected-f32.safetensors")) {
            let wanted = low.as_ref().map_or_else(|| rounded(exact, got[tensor].dtype), |low| low[tensor].clone());
            assert_same_low(&format!("{name} {tensor}"), &got[tensor], &wanted);
            compared += 1;
        }
    }
    compared
}

#[test]
fn every_method_merges_as_peft_merges_it_or_is_refused() {
    assert_eq!(check_all(&fixtures().join("methods/peft"), &fixtures().join("peft/bases")), (25, 6));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_method_of_the_reference_merges_as_peft_merges_it_or_is_refused() {
    assert_eq!(check_all(&reference_part("peft"), &reference_part("peft/bases")), (38, REASONS.len()));
}

#[test]
fn bases_of_low_precision_are_rounded_once() {
    assert_eq!(check_low(&fixtures().join("methods/peft"), &fixtures().join("peft/bases")), 54);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn bases_of_low_precision_of_the_reference_are_rounded_once() {
    assert_eq!(check_low(&reference_part("peft"), &reference_part("peft/bases")), 264);
}

/// Every kind of method that merges, with a case in `fixtures/methods` which its own tool merged: tests here and in kohya.rs
/// compare all that lie there. LyCORIS' OFT tells whether a file is of kohya's or has butterflies.
const GOLDEN: [(&str, &str, &str); 24] = [
    ("LoHa", "kohya/lyco-loha/lora.safetensors", "LoHa"),
    ("LoKr", "kohya/lyco-lokr/lora.safetensors", "LoKr"),
    ("LoCon (Tucker)", "kohya/lyco-locon-tucker/lora.safetensors", "LoCon (Tucker)"),
    ("GLoRA (LyCORIS)", "kohya/lyco-glora/lora.safetensors", "GLoRA (LyCORIS)"),
    ("OFT (kohya)", "kohya/lyco-boft/lora.safetensors", "BOFT (LyCORIS)"),
    ("IA³ (LyCORIS)", "kohya/lyco-ia3/lora.safetensors", "IA³ (LyCORIS)"),
    ("full difference", "kohya/lyco-full/lora.safetensors", "full difference"),
    ("AdaLoRA", "peft/adalora/adapter", "AdaLoRA"),
    ("VeRA", "peft/vera-r16/adapter", "VeRA"),
    ("PVeRA", "peft/pvera/adapter", "PVeRA"),
    ("VB-LoRA", "peft/vblora/adapter", "VB-LoRA"),
    ("DeLoRA", "peft/delora/adapter", "DeLoRA"),
    ("GraLoRA", "peft/gralora/adapter", "GraLoRA"),
    ("MiSS", "peft/miss-bat/adapter", "MiSS"),
    ("RandLoRA", "peft/randlora/adapter", "RandLoRA"),
    ("IA³", "peft/ia3/adapter", "IA³"),
    ("HiRA", "peft/hira/adapter", "HiRA"),
    ("HRA", "peft/hra-r4/adapter", "HRA"),
    ("OFT", "peft/oft-b8/adapter", "OFT"),
    ("BOFT", "peft/boft/adapter", "BOFT"),
    ("C3A", "peft/c3a/adapter", "C3A"),
    ("RoAd", "peft/road1/adapter", "RoAd"),
    ("SHiRA", "peft/shira/adapter", "SHiRA"),
    ("GLoRA", "peft/glora/adapter", "GLoRA"),
];

/// Kinds without tensors of a method of their own: cases of their own have tests of their own.
const PLAIN: [&str; 3] = ["LoRA", "trainable tokens", "layer norm tuning"];

#[test]
fn every_kind_of_method_has_a_case_that_its_own_tool_merged() {
    let merged = KINDS.iter().filter(|kind| kind.refused.is_none()).map(|kind| kind.title);
    let kinds: Vec<&str> = merged.filter(|title| !PLAIN.contains(title)).collect();
    assert_eq!(kinds, GOLDEN.map(|(kind, ..)| kind));
    for (kind, path, told) in GOLDEN {
        let path = fixtures().join("methods").join(path);
        assert!(path.parent().unwrap().join("case.json").is_file(), "{kind}");
        let adapter = Adapter::open(&path).unwrap();
        let is_it = |change: &Change| matches!(change, Change::Method(method) if method.kind().title == told);
        assert!(adapter.modules.iter().any(|module| is_it(&module.change)), "{kind}: {}", path.display());
    }
}

#[test]
fn what_no_weight_can_hold_is_refused_by_its_name() {
    assert_eq!(KINDS.iter().filter(|kind| kind.refused.is_some()).count(), 2);
    let module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k";
    for (part, name) in [("reshape_weight", "reshape_weight"), ("bias_values", "residual")] {
        let bench = Bench::new();
        let pair = |factor: &str, shape: &[usize]| {
            (format!("{module}.{factor}"), Tensor::f32(shape, &noise(1, shape.iter().product(), 0.1)))
        };
        let tensors = [pair("lora_down.weight", &[2, 32]), pair("lora_up.weight", &[32, 2]), pair(part, &[2])];
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        write(&bench.path("lora.safetensors"), &named);
        let base = fixtures().join("methods/kohya/base");
        merge(&base, &bench.path("lora.safetensors"), &bench.path("out"), &[]).refused(1, &[name]);
        assert_eq!(bench.listing(), ["lora.safetensors"], "{name}");
    }
}
