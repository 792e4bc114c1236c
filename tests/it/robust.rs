//! Same bytes however the work is cut; nothing half-written however it ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::{Bench, Tensor, fixtures, lorakit, merge, noise, snapshot, write};
use safetensors::tensor::Dtype;

/// A base of several shards whose tensors take many tiles, with norms between them.
fn big(bench: &Bench) -> (std::path::PathBuf, std::path::PathBuf) {
    let (rows, cols, layers) = (700, 2500, 6);
    let base = bench.path("base");
    let mut map = serde_json::Map::new();
    let mut total = 0;
    for layer in 0..layers {
        let file = format!("model-{:05}-of-{layers:05}.safetensors", layer + 1);
        let (weight, norm) = (format!("layers.{layer}.q_proj.weight"), format!("layers.{layer}.norm.weight"));
        write(
            &base.join(&file),
            &[
                (weight.as_str(), Tensor::new(Dtype::BF16, &[rows, cols], &noise(layer as u64 + 1, rows * cols, 1.0))),
                (norm.as_str(), Tensor::new(Dtype::BF16, &[cols], &noise(99, cols, 1.0))),
            ],
        );
        map.insert(weight, file.clone().into());
        map.insert(norm, file.into());
        total += 2 * (rows * cols + cols);
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(base.join("config.json"), "{}").unwrap();
    let factors: Vec<(String, Tensor)> = (0..layers)
        .flat_map(|layer| {
            let seed = 1000 + layer as u64;
            let magnitude: Vec<f32> = noise(seed + 20, rows, 1.0).iter().map(|value| value.abs() + 20.0).collect();
            [
                (format!("layers.{layer}.q_proj.lora_A.weight"), Tensor::f32(&[5, cols], &noise(seed, 5 * cols, 0.1))),
                (
                    format!("layers.{layer}.q_proj.lora_B.weight"),
                    Tensor::f32(&[rows, 5], &noise(seed + 10, 5 * rows, 0.1)),
                ),
                (format!("layers.{layer}.q_proj.lora_magnitude_vector"), Tensor::f32(&[rows], &magnitude)),
            ]
        })
        .collect();
    let named: Vec<(&str, Tensor)> = factors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let adapter = bench.adapter("adapter", json!({"r": 5, "lora_alpha": 10, "use_dora": true}), &named);
    (base, adapter)
}

#[test]
fn threads_memory_and_parts_do_not_change_a_byte() {
    let bench = Bench::new();
    let (base, adapter) = big(&bench);
    merge(&base, &adapter, &bench.path("reference"), &["-j", "1"]).ok();
    let reference = snapshot(&bench.path("reference"));
    for (name, more) in [
        ("two", &["-j", "2"][..]),
        ("seven", &["-j", "7"]),
        ("small", &["--max-memory", "64MiB"]),
        ("tiny", &["--max-memory", "1MiB", "-j", "2"]),
        ("synced", &["--sync"]),
    ] {
        merge(&base, &adapter, &bench.path(name), more).ok();
        assert!(snapshot(&bench.path(name)) == reference, "{name}");
    }
    let stochastic = |name: &str, threads: &str| {
        merge(&base, &adapter, &bench.path(name), &["-j", threads, "--rounding", "stochastic"]).ok();
        snapshot(&bench.path(name))
    };
    assert!(stochastic("s1", "1") == stochastic("s2", "3"));
}

#[test]
fn parts_put_together_are_the_whole() {
    let bench = Bench::new();
    let (base, adapter) = big(&bench);
    merge(&base, &adapter, &bench.path("whole"), &[]).ok();
    let out = bench.path("parts");
    for part in ["2/3", "1/3"] {
        merge(&base, &adapter, &out, &["--part", part]).ok();
        assert!(!out.exists(), "nothing appears before it is complete");
    }
    lorakit(&[&"finish", &out]).refused(1, &["1 of 3", "3/3"]);
    merge(&base, &adapter, &out, &["--part", "3/3"]).ok();
    let report = lorakit(&[&"finish", &out, &"--json"]).ok().json();
    assert_eq!((&report["parts"], &report["files"]), (&json!(3), &json!(6)));
    assert!(snapshot(&out) == snapshot(&bench.path("whole")));
    assert_eq!(bench.listing(), ["adapter", "base", "parts", "whole"]);
}

#[test]
fn parts_of_different_merges_do_not_fit_together() {
    let bench = Bench::new();
    let (base, adapter) = big(&bench);
    let out = bench.path("out");
    merge(&base, &adapter, &out, &["--part", "1/2"]).ok();
    merge(&base, &adapter, &out, &["--part", "2/2", "--rounding", "stochastic"]).ok();
    lorakit(&[&"finish", &out]).refused(1, &["different inputs or options"]);
    assert!(!out.exists());
}

#[test]
fn finishing_what_was_never_begun_is_refused() {
    let bench = Bench::new();
    lorakit(&[&"finish", &bench.path("out")]).refused(1, &["no part"]);
    assert_eq!(bench.listing(), [""; 0]);
}

#[test]
fn an_output_that_exists_is_kept_unless_forced() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    fs::write(bench.path("out/config.json"), "x").unwrap();
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &["out", "exists", "--force"]);
    assert_eq!(fs::read(bench.path("out/config.json")).unwrap(), b"x");
    merge(&base, &adapter, &bench.path("out"), &["--force"]).ok();
    assert!(fs::read(bench.path("out/config.json")).unwrap() != b"x");
    assert_eq!(bench.listing(), ["out"]);
}

#[test]
fn an_output_that_is_an_input_is_refused_even_by_force() {
    let bench = Bench::new();
    let (base, adapter) = big(&bench);
    let before = snapshot(&bench.path("."));
    for out in [&base, &adapter, &bench.path(".")] {
        merge(&base, &adapter, out, &["--force"]).refused(1, &["input"]);
    }
    let file = base.join("model-00001-of-00006.safetensors");
    let link = bench.path("link.safetensors");
    fs::hard_link(&file, &link).unwrap();
    let one = bench.adapter(
        "one",
        json!({}),
        &[
            ("layers.0.q_proj.lora_A.weight", Tensor::f32(&[2, 2500], &noise(1, 5000, 1.0))),
            ("layers.0.q_proj.lora_B.weight", Tensor::f32(&[700, 2], &noise(1, 1400, 1.0))),
        ],
    );
    merge(&file, &one, &link, &["--force"]).refused(1, &["input"]);
    fs::remove_file(link).unwrap();
    fs::remove_dir_all(one).unwrap();
    assert!(snapshot(&bench.path(".")) == before);
}

#[test]
fn a_missing_directory_for_the_output_is_named() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    merge(&base, &adapter, &bench.path("no/such/out"), &[]).refused(1, &["no/such"]);
}

/// Mounts a small disk.
fn small_disk(directory: &Path, bytes: u64) {
    let options = format!("size={bytes}");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
        .arg(directory)
        .stderr(Stdio::null())
        .status();
    assert!(mounted.is_ok_and(|status| status.success()), "the build was allowed to mount, the test is not");
}

#[test]
#[cfg_attr(not(mounts), ignore = "needs the right to mount")]
fn a_full_disk_leaves_nothing() {
    let bench = Bench::new();
    let (base, adapter) = big(&bench);
    let disk = bench.path("disk");
    fs::create_dir(&disk).unwrap();
    small_disk(&disk, 2 << 20);
    let outcome = merge(&base, &adapter, &disk.join("out"), &[]);
    let left = fs::read_dir(&disk).unwrap().count();
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    outcome.refused(1, &["disk", "bytes"]);
    assert_eq!(left, 0);
}

#[test]
fn a_killed_run_leaves_nothing_under_the_final_name_and_the_next_cleans_up() {
    let bench = Bench::new();
    let (base, adapter) = big(&bench);
    let out = bench.path("out");
    let mut caught = false;
    for wait in [2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96] {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin("lorakit"))
            .arg("merge")
            .args([&base, &adapter])
            .arg("-o")
            .arg(&out)
            .args(["-j", "1"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Not a wait for something to happen: the point is to hit the run at many moments.
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        if out.exists() {
            break;
        }
        caught |= bench.listing().iter().any(|name| name.starts_with('.'));
    }
    assert!(caught, "no run was hit while it was writing");
    merge(&base, &adapter, &out, &["--force"]).ok();
    assert_eq!(bench.listing(), ["adapter", "base", "out"]);
}

#[test]
fn an_interrupted_run_cleans_up_after_itself() {
    let bench = Bench::new();
    let (base, adapter) = big(&bench);
    let out = bench.path("out");
    let mut interrupted = false;
    // A machine that does other things as well takes longer to begin.
    for wait in [4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024] {
        if interrupted && wait > 48 {
            break;
        }
        let child = Command::new(assert_cmd::cargo::cargo_bin("lorakit"))
            .arg("merge")
            .args([&base, &adapter])
            .arg("-o")
            .arg(&out)
            .args(["-j", "1", "--force"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if stderr.contains("interrupted") {
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(!bench.listing().iter().any(|name| name.starts_with('.')), "{:?}", bench.listing());
            interrupted = true;
        }
    }
    assert!(interrupted, "no run was hit while it was writing");
}

#[test]
fn a_closed_pipe_is_a_quiet_success() {
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("lorakit"))
        .args(["inspect", "--tensors"])
        .arg(fixtures().join("tiny/base"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn names_that_are_no_utf8_are_paths_as_well() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new();
    let odd = |name: &[u8]| bench.0.path().join(std::ffi::OsStr::from_bytes(name));
    let adapter = odd(b"lora\xFF");
    copy(&fixtures().join("tiny/adapter"), &adapter);
    let base = fixtures().join("tiny/base");
    let mut weighted = adapter.as_os_str().to_owned();
    weighted.push(":0.5");
    let merged = lorakit(&[&"merge", &base, &weighted, &"-o", &odd(b"out\xFE"), &"--json"]).ok().json();
    assert_eq!(merged["adapters"][0]["weight"], 0.5);
    let found = lorakit(&[&"inspect", &adapter, &"--json"]).ok().json();
    assert!(found["path"].as_str().unwrap().ends_with("lora\u{FFFD}"));
    // A folder lists what lies in it.
    assert_eq!(lorakit(&[&"inspect", &bench.0.path(), &"--json"]).ok().json()["entries"].as_array().unwrap().len(), 2);
    lorakit(&[&"stack", &adapter, &adapter, &"-o", &odd(b"sum\xFD"), &"--json"]).ok().json();
    lorakit(&[&"resize", &adapter, &"--rank", &"2", &"-o", &odd(b"cut\xFD"), &"--json"]).ok().json();
    lorakit(&[&"convert", &adapter, &"--to", &"mlx", &"-o", &odd(b"mlx\xFD"), &"--json"]).ok().json();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
