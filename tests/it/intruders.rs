//! `resize --remove-intruders`: what is left is what PEFT's `reduce_intruder_dimension` leaves, which `fixtures/intruders` holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{
    Bench, Outcome, Tensor, Tensors, fixtures, lorakit, merge, off_by, read, read_json, read_model, write,
};

/// Models with the options that PEFT was run with.
const CASES: [(&str, &[&str]); 2] =
    [("llama", &[]), ("gpt2", &["--top-k", "6", "--threshold-epsilon", "0.7", "--mitigation-lambda", "0.25"])];

fn case(name: &str) -> PathBuf {
    fixtures().join("intruders").join(name)
}

fn reduce(adapter: &Path, base: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> =
        vec![&"resize", &adapter, &"--remove-intruders", &"--base", &base, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

/// How many intruders PEFT saw in every module.
fn seen(file: &Path) -> BTreeMap<String, usize> {
    let bytes = std::fs::read(file).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&metadata.metadata().as_ref().unwrap()["intruders"]).unwrap()
}

/// ΔW of `adapter`, by merging it, of the weight of `module`.
fn delta(base: &Tensors, merged: &Tensors, module: &str) -> Tensor {
    let (from, to) = (&base[&format!("{module}.weight")], &merged[&format!("{module}.weight")]);
    let change: Vec<f32> = to.values().iter().zip(from.values()).map(|(to, from)| (to - from) as f32).collect();
    Tensor::f32(&to.shape, &change)
}

#[test]
fn what_is_left_is_what_peft_leaves_in_layers_of_either_orientation_and_embeddings() {
    for (name, options) in CASES {
        let (bench, case) = (Bench::new(), case(name));
        let out = bench.path("out");
        let options: Vec<&str> = options.iter().copied().chain(["--json"]).collect();
        let report = reduce(&case.join("adapter"), &case.join("base"), &out, &options).ok().json();
        let found = report["adapters"][0]["intruders"].as_array().unwrap().clone();
        let wanted = seen(&case.join("expected.safetensors"));
        let count = |module: &str| {
            found
                .iter()
                .find(|entry| entry["module"] == module)
                .map_or(0, |entry| entry["at"].as_array().unwrap().len())
        };
        assert_eq!(wanted, wanted.keys().map(|module| (module.clone(), count(module))).collect(), "{name}");
        assert!(wanted.values().any(|count| *count > 0) && wanted.values().any(|count| *count == 0), "{name}");
        merge(&case.join("base"), &out, &bench.path("merged"), &[]).ok();
        let (base, merged) = (read_model(&case.join("base")), read_model(&bench.path("merged")));
        for (module, expected) in &read(&case.join("expected.safetensors")) {
            let (off, largest) = off_by(&delta(&base, &merged, module), expected);
            assert!(off <= 1e-5 * largest, "{name} {module}: {off} of {largest}");
        }
    }
}

#[test]
fn a_module_without_intruders_stays_bit_for_bit_and_all_ranks_stay() {
    let (bench, case) = (Bench::new(), case("llama"));
    let out = bench.path("out");
    reduce(&case.join("adapter"), &case.join("base"), &out, &[]).ok();
    let weights = |at: &Path| read(&at.join("adapter_model.safetensors"));
    let (before, after) = (weights(&case.join("adapter")), weights(&out));
    assert!(before.iter().all(|(key, tensor)| after[key].shape == tensor.shape));
    let same = |key: &&String| before[*key].data == after[*key].data;
    let kept: Vec<&String> = before.keys().filter(same).filter(|key| key.contains("lora_")).collect();
    assert!(kept.len() == 2 && kept.iter().all(|key| key.contains("q_proj")), "{kept:?}");
    let config = read_json(&out.join("adapter_config.json"));
    assert_eq!((&config["r"], &config["rank_pattern"]), (&Value::from(3), &serde_json::json!({})));
    // What is left out is left as it is.
    let out = bench.path("chosen");
    reduce(&case.join("adapter"), &case.join("base"), &out, &["-i", "o_proj"]).ok();
    let changed: Vec<String> =
        weights(&out).into_iter().filter(|(key, own)| own.data != before[key].data).map(|(key, _)| key).collect();
    assert!(changed.len() == 2 && changed.iter().all(|key| key.contains("o_proj")), "{changed:?}");
}

#[test]
fn a_share_of_one_changes_nothing_and_other_ranks_can_be_chosen() {
    let (bench, case) = (Bench::new(), case("llama"));
    let (adapter, base) = (case.join("adapter"), case.join("base"));
    let all = bench.path("all");
    let report = reduce(&adapter, &base, &all, &["--mitigation-lambda", "1", "--json"]).ok().json();
    assert!(report["adapters"][0]["relative_error"].as_f64().unwrap() < 1e-5, "{report}");
    merge(&base, &adapter, &bench.path("a"), &[]).ok();
    merge(&base, &all, &bench.path("b"), &[]).ok();
    for (name, tensor) in &read_model(&bench.path("a")) {
        assert!(off_by(&read_model(&bench.path("b"))[name], tensor).0 < 1e-5, "{name}");
    }
    let report = reduce(&adapter, &base, &bench.path("wide"), &["--rank", "6", "--json"]).ok().json();
    assert!(report["adapters"][0]["relative_error"].as_f64().unwrap() < 1e-5, "{report}");
    let text = reduce(&adapter, &base, &bench.path("text"), &[]).ok();
    assert!(text.stdout.contains("11 intruders in 4 of 5 modules"), "{}", text.stdout);
    let text = reduce(&adapter, &base, &bench.path("none"), &["--threshold-epsilon", "0"]).ok();
    assert!(text.stdout.contains("no intruders"), "{}", text.stdout);
}

#[test]
fn numbers_that_make_no_sense_and_what_cannot_be_compared_are_refused() {
    let (bench, case) = (Bench::new(), case("llama"));
    let (adapter, base, out) = (case.join("adapter"), case.join("base"), bench.path("out"));
    for (words, message) in [
        (["--top-k", "0"], "--top-k: `0` is not between 1 and 4096"),
        (["--threshold-epsilon", "1.5"], "--threshold-epsilon: `1.5` is not between 0 and 1"),
        (["--mitigation-lambda", "nan"], "--mitigation-lambda: `NaN` is not between 0 and 1"),
    ] {
        reduce(&adapter, &base, &out, &words).refused(2, &[message]);
    }
    lorakit(&[&"resize", &adapter, &"--remove-intruders", &"-o", &out])
        .refused(2, &["--remove-intruders: compares with the model the adapter was trained on", "--base PATH"]);
    let other = case.parent().unwrap().join("gpt2/base");
    reduce(&adapter, &other, &out, &[]).refused(1, &["the base has no tensor"]);
    let bottleneck = fixtures().join("adapterhub/pfeiffer/a0");
    reduce(&bottleneck, &base, &out, &["--rank", "1"])
        .refused(1, &["changes no weight", "`--remove-intruders` is for LoRA"]);
    for (name, base, message) in [
        ("dora-r4", "llama-bf16", "is DoRA: `--remove-intruders` weakens a sum of products"),
        ("mixtral-params", "mixtral-bf16", "is a parameter without a layer, whose intruders are not known"),
    ] {
        let peft = fixtures().join("peft");
        reduce(&peft.join(name).join("adapter"), &peft.join("bases").join(base), &out, &[]).refused(1, &[message]);
    }

    let mut broken: Vec<(String, Tensor)> = read_model(&base).into_iter().collect();
    let place = broken.iter_mut().find(|(name, _)| name.ends_with("o_proj.weight")).unwrap();
    let mut values: Vec<f32> = place.1.values().iter().map(|value| *value as f32).collect();
    values[5] = f32::NAN;
    place.1 = Tensor::f32(&place.1.shape.clone(), &values);
    let tensors: Vec<(&str, Tensor)> = broken.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let folder = bench.path("broken");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(base.join("config.json"), folder.join("config.json")).unwrap();
    write(&folder.join("model.safetensors"), &tensors);
    reduce(&adapter, &folder, &out, &[]).refused(1, &["o_proj.weight", "not finite"]);
    assert!(!out.exists());
}
