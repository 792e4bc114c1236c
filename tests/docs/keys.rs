//! Every key of every JSON report has a row in `docs/reference/json.md` or `inspect-json.md`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use regex::Regex;
use serde_json::Value;

use crate::links::prose;
use crate::root;

/// Runs, in order, in one folder; `{f}` are the fixtures.
const RUNS: [&str; 12] = [
    "merge {f}/tiny/base {f}/tiny/adapter -o merged",
    "extract {f}/tiny/base merged -o extracted --rank 2",
    "stack {f}/tiny/adapter extracted:0.5 -o stacked --max-size 20kB",
    "subtract {f}/tiny/adapter extracted -o difference",
    "subtract merged {f}/tiny/adapter --base {f}/tiny/base -o restored",
    "subtract merged {f}/tiny/adapter -o unmerged",
    "resize {f}/tiny/adapter extracted -o small --rank 1",
    "convert {f}/tiny/base -o base-f16 --dtype f16",
    "convert {f}/tiny/adapter -o lora-mlx --to mlx",
    "merge {f}/tiny/base {f}/tiny/adapter -o parted --part 1/1",
    "finish parted",
    "merge {f}/tiny/base nothing-here -o failed",
];

/// Keys whose objects have keys of their own: ranks, dtypes, names.
const MAPS: [&str; 4] = ["ranks", "dtypes", "options", "config"];

#[test]
fn every_key_of_a_report_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let pages = ["json.md", "inspect-json.md"].map(|name| {
        std::fs::read_to_string(root().join("docs/reference").join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    });
    let code = Regex::new("`([^`]+)`").unwrap();
    let word = Regex::new("[a-z0-9_]+").unwrap();
    let text = prose(&pages.join("\n"));
    let documented: BTreeSet<&str> = code
        .captures_iter(&text)
        .flat_map(|span| word.find_iter(span.get(1).unwrap().as_str()).map(|word| word.as_str()))
        .collect();
    let mut missing = BTreeSet::new();
    for run in RUNS {
        for key in keys(&report(folder.path(), run)) {
            if !documented.contains(key.as_str()) {
                missing.insert(format!("{} → {key}", run.split(' ').next().unwrap()));
            }
        }
    }
    assert!(missing.is_empty(), "docs/reference/json.md lacks {missing:#?}");
}

fn report(folder: &Path, run: &str) -> Value {
    let fixtures = root().join("fixtures").display().to_string();
    let words = run.split(' ').map(|word| word.replace("{f}", &fixtures));
    let output = Command::new(env!("CARGO_BIN_EXE_lorakit"))
        .args(words)
        .arg("--json")
        .env("HOME", folder)
        .current_dir(folder)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{run}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn keys(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                if !MAPS.contains(&key.as_str()) {
                    found.extend(keys(value));
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| found.extend(keys(value))),
        _ => {}
    }
    found
}
