//! Input that must be refused: every file of `fixtures/bad`, and good files cut short at many lengths.

use std::fs;

use proptest::prelude::*;
use serde_json::Value;

use crate::support::{Bench, fixtures, lorakit, merge, read_json};

#[test]
fn every_bad_file_is_refused_with_its_reason() {
    let cases = read_json(&fixtures().join("bad/cases.json"));
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 177);
    for case in cases {
        let bench = Bench::new();
        let path = |key: &str| case[key].as_str().map(|name| fixtures().join(name));
        let base = path("base").unwrap();
        let outcome = if case["verb"] == "inspect" {
            lorakit(&[&"inspect", &base])
        } else {
            let more: Vec<&str> = case["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            merge(&base, &path("adapter").unwrap(), &bench.path("out"), &more)
        };
        let name = case["name"].as_str().unwrap();
        let code = case["exit"].as_i64().unwrap();
        assert_eq!(i64::from(outcome.code), code, "{name}: {}", outcome.stderr);
        for part in case["error_contains"].as_array().unwrap() {
            let part = part.as_str().unwrap();
            assert!(outcome.stderr.contains(part), "{name}: `{part}` is not in: {}", outcome.stderr);
        }
        if code != 0 {
            assert_eq!(bench.listing(), [""; 0], "{name}: something was left behind");
            let first = outcome.stderr.lines().next().unwrap();
            assert!(first.starts_with("error: ") && !first.ends_with('.'), "{name}: {first}");
        }
    }
}

#[test]
fn a_header_at_the_cap_costs_no_memory() {
    let bench = Bench::new();
    let directory = bench.path("base");
    fs::create_dir(&directory).unwrap();
    let file = fs::File::create(directory.join("model.safetensors")).unwrap();
    file.set_len(200_000_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &100_000_000_u64.to_le_bytes(), 0).unwrap();
    let adapter = fixtures().join("bad/good/adapter");
    merge(&directory, &adapter, &bench.path("out"), &[]).refused(1, &["model.safetensors", "header"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_file_cut_short_is_refused(share in 0.0_f64..1.0, of_adapter: bool) {
        let bench = Bench::new();
        let tiny = fixtures().join("tiny");
        let (base, adapter) = (bench.path("base"), bench.path("adapter"));
        for (from, to) in [(tiny.join("base"), &base), (tiny.join("adapter"), &adapter)] {
            fs::create_dir(to).unwrap();
            for entry in fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
        let victim = if of_adapter { adapter.join("adapter_model.safetensors") } else { base.join("model-00001-of-00002.safetensors") };
        let length = fs::metadata(&victim).unwrap().len();
        let kept = (length as f64 * share) as u64;
        fs::File::options().write(true).open(&victim).unwrap().set_len(kept).unwrap();
        let name = victim.file_name().unwrap().to_string_lossy().into_owned();
        merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &[&name]);
        prop_assert_eq!(bench.listing(), ["adapter", "base"]);
    }
}
