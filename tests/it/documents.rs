//! What scripts read: documents of every verb, of failures too, exit codes, completions and manual pages.

use std::fs;

use serde_json::Value;

use crate::support::*;

#[test]
fn every_document_has_the_version_of_its_keys() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let (merged, tuned) = (bench.path("merged"), bench.path("f32"));
    merge(&base, &adapter, &tuned, &["--dtype", "f32"]).ok();
    let documents = [
        lorakit(&[&"merge", &base, &adapter, &"-o", &merged, &"--json"]),
        lorakit(&[&"extract", &base, &tuned, &"-r", &"1", &"-o", &bench.path("e"), &"--json"]),
        lorakit(&[&"stack", &adapter, &adapter, &"-o", &bench.path("s"), &"--json"]),
        lorakit(&[&"resize", &adapter, &"-r", &"1", &"-o", &bench.path("r"), &"--json"]),
        lorakit(&[&"subtract", &merged, &adapter, &"-o", &bench.path("u"), &"--json"]),
        lorakit(&[&"subtract", &merged, &adapter, &"--base", &base, &"-o", &bench.path("p"), &"--json"]),
        lorakit(&[&"convert", &base, &"-o", &bench.path("c"), &"--json"]),
        lorakit(&[&"convert", &adapter, &"-o", &bench.path("a"), &"--json"]),
        lorakit(&[&"inspect", &base, &"--json"]),
        lorakit(&[&"inspect", &base, &adapter, &"--json"]),
        lorakit(&[&"inspect", &fixtures().join("tiny"), &"--json"]),
    ];
    for document in documents {
        assert_eq!(document.ok().json()["schema"], 1);
    }
    let list = lorakit(&[&"inspect", &fixtures().join("tiny"), &"--json"]).ok().json();
    assert_eq!(list["entries"].as_array().unwrap().len(), 2);
}

#[test]
fn a_failure_is_a_document_too() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let said = |outcome: Outcome, code: i32| {
        assert_eq!(outcome.code, code, "{}", outcome.stderr);
        assert!(outcome.stderr.starts_with("error: "), "{}", outcome.stderr);
        let document = outcome.json();
        let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["schema", "error", "kind", "path", "tensor", "option", "hint"]);
        document
    };
    let missing = bench.path("nowhere");
    let io = said(lorakit(&[&"inspect", &missing, &"--json"]), 1);
    assert_eq!((&io["kind"], &io["path"]), (&"io".into(), &missing.display().to_string().into()));
    let usage = said(lorakit(&[&"merge", &base, &adapter, &"--json"]), 2);
    assert_eq!(usage["kind"], "usage");
    assert!(usage["hint"].as_str().unwrap().contains("-o merged"), "{usage}");
    let invalid =
        said(lorakit(&[&"merge", &base, &adapter, &"-o", &bench.path("x"), &"--dtype", &"f12", &"--json"]), 2);
    assert_eq!((&invalid["kind"], &invalid["option"]), (&"invalid".into(), &"--dtype".into()));
    let nan = fixtures().join("bad/lora-nan/adapter");
    let nan = if nan.is_dir() { nan } else { fixtures().join("bad/lora-nan") };
    let numeric = said(lorakit(&[&"stack", &nan, &"-o", &bench.path("x"), &"--json"]), 1);
    assert_eq!(numeric["kind"], "numeric");
    assert!(numeric["tensor"].is_string(), "{numeric}");
    assert!(bench.listing().is_empty());
}

#[test]
fn a_bad_outcome_is_a_failure_for_a_strict_caller() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let nothing = format!("{}:0", adapter.display());
    for (more, code) in [(&[][..], 0), (&["--strict"], 3)] {
        let out = bench.path(&format!("out{code}"));
        let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"merge", &base, &nothing, &"-o", &out];
        words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        let outcome = lorakit(&words);
        assert_eq!(outcome.code, code, "{}", outcome.stderr);
        assert!(out.is_dir(), "what was made is there");
    }
    let merged = bench.path("merged");
    merge(&base, &adapter, &merged, &["--strict"]).ok();
    let half = format!("{}:0.5", adapter.display());
    let wrong = lorakit(&[&"subtract", &merged, &half, &"--base", &base, &"-o", &bench.path("w"), &"--strict"]);
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);
    assert!(wrong.stdout.starts_with("not proved"), "{}", wrong.stdout);
    lorakit(&[&"subtract", &merged, &adapter, &"--base", &base, &"-o", &bench.path("r"), &"--strict"]).ok();
    lorakit(&[&"inspect", &adapter, &"--strict"]).ok();
    let odd = bench.base(&[("a.weight", Tensor::f32(&[2, 2], &[f32::NAN; 4]))], &serde_json::json!({}));
    lorakit(&[&"inspect", &odd, &"--check"]).ok();
    assert_eq!(lorakit(&[&"inspect", &odd, &"--check", &"--strict"]).code, 3);
}

#[test]
fn every_verb_has_a_page_and_examples() {
    let bench = Bench::new();
    let pages = bench.path("man/man1");
    lorakit(&[&"man", &"--dir", &pages]).ok();
    for verb in
        ["merge", "convert", "extract", "stack", "resize", "subtract", "inspect", "finish", "completions", "man"]
    {
        let page = fs::read_to_string(pages.join(format!("lorakit-{verb}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains("Examples:"), "{verb}");
        assert!(lorakit(&[&"man", &verb]).ok().stdout.contains(".SH NAME"));
        let help = lorakit(&[&verb, &"--help"]).ok().stdout;
        assert_eq!(help.matches("\n  lorakit ").count(), 2, "{verb}: {help}");
    }
    let top = fs::read_to_string(pages.join("lorakit.1")).unwrap();
    assert!(top.contains("lorakit\\-merge(1)"), "{top}");
    lorakit(&[&"man", &"nothing"]).refused(2, &["`nothing` is not one of merge"]);
}

#[test]
fn shells_complete_values() {
    for shell in ["bash", "zsh", "fish"] {
        let text = lorakit(&[&"completions", &shell]).ok().stdout;
        for value in ["comfyui", "bf16", "q4_k_m", "sdxl"] {
            assert!(text.contains(value), "{shell} does not complete `{value}`");
        }
    }
}

#[test]
fn a_list_is_whole_in_a_pipe() {
    let bench = Bench::new();
    let long = "a-very-long-name-".repeat(8);
    let adapter = fixtures().join("dialects/kohya-lora-r4.safetensors");
    for end in ["one", "two"] {
        fs::copy(&adapter, bench.path(&format!("{long}{end}.safetensors"))).unwrap();
    }
    fs::copy(fixtures().join("gguf/written.gguf"), bench.path("w.gguf")).unwrap();
    let text = lorakit(&[&"inspect", &bench.0.path()]).ok().stdout;
    assert!(text.contains(&format!("{long}one.safetensors")) && text.contains("path"), "{text}");
    assert!(!text.contains('…'), "{text}");
}

#[test]
fn the_first_line_of_a_report_is_its_verdict() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let merged = bench.path("merged");
    let first = |outcome: Outcome| outcome.ok().stdout.lines().next().unwrap_or_default().to_owned();
    let said = first(merge(&base, &adapter, &merged, &[]));
    assert!(said.starts_with("merged: rounding to bf16 keeps 1") && said.ends_with("as any bf16 merge does"), "{said}");
    let said = first(merge(&base, &adapter, &bench.path("dry"), &["--dry-run"]));
    assert_eq!(said, "dry run, nothing was written: 14 of 21 tensors would change");
    let said = first(lorakit(&[&"subtract", &merged, &adapter, &"--base", &base, &"-o", &bench.path("r")]));
    assert!(said.starts_with("proved: MERGED is exactly that merge"), "{said}");
    let said = first(lorakit(&[&"resize", &adapter, &"-r", &"2", &"-o", &bench.path("two")]));
    assert!(said.starts_with("resized: rank 2 keeps "), "{said}");
    let said = first(lorakit(&[&"stack", &adapter, &adapter, &"-o", &bench.path("s")]));
    assert_eq!(said, "stacked: rank 8 holds the sum exactly");
    let said = first(lorakit(&[&"inspect", &adapter]));
    assert!(said.ends_with("PEFT adapter, no problems found"), "{said}");
    let report: Value = merge(&base, &adapter, &bench.path("j"), &["--json"]).ok().json();
    assert_eq!(report["written_as"], serde_json::json!(["bf16"]));
}

#[test]
fn a_text_is_no_weight_file() {
    let readme = fixtures().join("README.md");
    lorakit(&[&"inspect", &readme]).refused(1, &["is no weight file: it begins with text"]);
}

/// Every key of a document, of its lists of objects too.
fn keys(document: &Value, found: &mut std::collections::BTreeSet<String>) {
    // Their keys are names of files, ranks or settings.
    const OPEN: [&str; 5] = ["ranks", "dtypes", "tensors", "alpha_from", "options"];
    match document {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                if !OPEN.contains(&key.as_str()) {
                    keys(value, found);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn the_page_of_the_command_line_names_every_key() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let cat = fixtures().join("dialects/kohya-lora-r4.safetensors");
    let (merged, tuned) = (bench.path("merged"), bench.path("f32"));
    merge(&base, &adapter, &tuned, &["--dtype", "f32"]).ok();
    let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let pages = fs::read_dir(pages).unwrap().map(|page| fs::read_to_string(page.unwrap().path()).unwrap());
    let page: String = pages.collect();
    for document in [
        lorakit(&[&"merge", &base, &adapter, &"-o", &merged, &"--json"]),
        lorakit(&[&"extract", &base, &tuned, &"--max-size", &"20kB", &"-o", &bench.path("e"), &"--json"]),
        lorakit(&[&"stack", &adapter, &adapter, &"-o", &bench.path("s"), &"--json"]),
        lorakit(&[&"resize", &adapter, &"-r", &"1", &"-o", &bench.path("r"), &"--json"]),
        lorakit(&[&"subtract", &merged, &adapter, &"--base", &base, &"-o", &bench.path("p"), &"--json"]),
        lorakit(&[&"convert", &base, &"--dtype", &"f16", &"-o", &bench.path("c"), &"--json"]),
        lorakit(&[&"convert", &cat, &"--to", &"diffusers", &"-o", &bench.path("a"), &"--json"]),
    ] {
        let mut found = std::collections::BTreeSet::new();
        keys(&document.ok().json(), &mut found);
        for key in found {
            let named = [format!("`{key}`"), format!("`{key}[]`"), format!("`{key}{{}}`"), format!("[].{key}`")];
            assert!(named.iter().any(|name| page.contains(name)), "no page of docs/reference names `{key}`");
        }
    }
}

#[test]
fn a_verb_alone_is_answered_with_an_example() {
    for verb in ["merge", "convert", "extract", "stack", "resize", "subtract", "inspect", "finish"] {
        lorakit(&[&verb]).refused(2, &[&format!("as `lorakit {verb} ")]);
    }
}

#[test]
fn a_config_of_another_dtype_is_a_problem() {
    let bench = Bench::new();
    let half = Tensor::new(safetensors::tensor::Dtype::F16, &[4, 4], &noise(1, 16, 1.0));
    for (said, count) in [("bfloat16", 1), ("float16", 0)] {
        let base = bench.base(&[("a.weight", half.clone())], &serde_json::json!({"torch_dtype": said}));
        let problems = lorakit(&[&"inspect", &base, &"--json"]).ok().json()["problems"].clone();
        assert_eq!(problems.as_array().unwrap().len(), count, "{problems}");
    }
}

#[test]
fn options_that_change_bytes_leave_a_trace_in_the_report() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let more = ["--weight-for", "mlp=0.5", "--include", "layers", "--dtype", "f32"];
    let text = merge(&base, &adapter, &bench.path("a"), &more).ok().stdout;
    assert!(text.contains("  options  dtype F32, include layers, weight-for mlp 0.5\n"), "{text}");
    let plain = merge(&base, &adapter, &bench.path("b"), &[]).ok().stdout;
    assert!(!plain.contains("options"), "{plain}");
}
