//! Merges of every other method against what PEFT's own merge gave, and refusals of what no weight can hold.

use std::fs;

use crate::golden::{assert_same_low, rounded};
use crate::support::{Bench, merge, read, read_json, read_model, reference, reference_part};

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

#[test]
fn every_method_of_the_reference_merges_as_peft_merges_it_or_is_refused() {
    let Some(reference) = reference() else { return };
    let root = reference.join("peft");
    let (mut merged, mut refused, mut wrong) = (0, 0, Vec::new());
    let mut names: Vec<String> =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    for name in names {
        let path = root.join(&name).join("case.json");
        if !path.exists() {
            continue;
        }
        let facts = read_json(&path);
        if ELSEWHERE.contains(&facts["peft_type"].as_str().unwrap_or_default()) {
            continue;
        }
        let base = root.join("bases").join(facts["base"].as_str().unwrap());
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
        for (tensor, got) in &got {
            let wanted = expected.get(tensor).unwrap_or_else(|| &source[tensor]);
            let (got, wanted) = (got.values(), wanted.values());
            assert_eq!(got.len(), wanted.len(), "{name} {tensor}");
            let size = wanted.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
            let worst = got.iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
            let allowed = if name == ROUNDED_BY_PEFT.0 { ROUNDED_BY_PEFT.1 } else { TOLERANCE };
            if worst > allowed * size {
                wrong.push(format!("{name} {tensor}: off by {worst:e} of {size}"));
            }
        }
        assert!(expected.keys().all(|tensor| got.contains_key(tensor)), "{name}");
        merged += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(merged >= 27 && refused == REASONS.len(), "{merged} merged, {refused} refused");
}

#[test]
fn bases_of_low_precision_are_rounded_once() {
    let Some(root) = reference_part("peft") else { return };
    let mut compared = 0;
    let mut names: Vec<String> =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    for name in names {
        let folder = root.join(&name);
        if !folder.join("case.json").exists() || name == ROUNDED_BY_PEFT.0 {
            continue;
        }
        let facts = read_json(&folder.join("case.json"));
        let method = facts["peft_type"].as_str().unwrap_or_default();
        let skipped = ELSEWHERE.contains(&method) || REASONS.iter().any(|(case, _)| *case == name);
        let Some(base) = facts["base_for_low"].as_str().filter(|_| !skipped) else { continue };
        let base = root.join("bases").join(base);
        let bench = Bench::new();
        merge(&base, &folder.join("adapter"), &bench.path("out"), &[]).ok();
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
    assert!(compared > 200, "{compared}");
}
