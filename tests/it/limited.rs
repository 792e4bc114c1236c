//! What the system denies or takes away: threads, open files, room, a terminal, a reader. Work goes on with less, or ends clean.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Bench, Tensor, lorakit, merge, noise, snapshot, write};
use safetensors::tensor::Dtype;

/// `shards` files of one weight each, and an adapter for the first.
fn model(bench: &Bench, shards: usize, side: usize) -> (PathBuf, PathBuf) {
    let base = bench.path("base");
    let mut map = serde_json::Map::new();
    for layer in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", layer + 1);
        let weight = format!("layers.{layer}.q_proj.weight");
        let values = noise(layer as u64 + 1, side * side, 1.0);
        write(&base.join(&file), &[(weight.as_str(), Tensor::new(Dtype::BF16, &[side, side], &values))]);
        map.insert(weight, file.into());
    }
    let index = json!({"metadata": {"total_size": 2 * shards * side * side}, "weight_map": map});
    fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(base.join("config.json"), "{}").unwrap();
    let adapter = bench.adapter(
        "adapter",
        json!({}),
        &[
            ("layers.0.q_proj.lora_A.weight", Tensor::f32(&[2, side], &noise(91, 2 * side, 0.5))),
            ("layers.0.q_proj.lora_B.weight", Tensor::f32(&[side, 2], &noise(92, 2 * side, 0.5))),
        ],
    );
    (base, adapter)
}

/// The program behind a line of shell, which ends in the program's own words.
fn behind(shell: &str, words: &[&dyn AsRef<std::ffi::OsStr>]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]).arg(assert_cmd::cargo::cargo_bin("lorakit"));
    command.args(words.iter().map(|word| word.as_ref())).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A program that any user may run, and a place that any user may write to: limits of processes do not hold for root.
fn as_other_user(bench: &Bench, words: &[&dyn AsRef<std::ffi::OsStr>]) -> Option<Command> {
    let program = bench.path("lorakit");
    fs::copy(assert_cmd::cargo::cargo_bin("lorakit"), &program).unwrap();
    for path in [bench.0.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let id = |who: &str| ["--reuid", who, "--regid", who, "--clear-groups"].map(str::to_owned);
    let known = |words: &[String]| {
        let tried = Command::new("setpriv").args(words).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let other = id("12345");
    if !known(&other) {
        eprintln!("SKIPPED: cannot become another user, so a limit of threads was not tested");
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args(other).args(["prlimit", "--nproc=1"]).arg(program);
    command.args(words.iter().map(|word| word.as_ref()));
    Some(command)
}

#[test]
fn threads_that_cannot_be_had_are_workers_less() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench, 3, 64);
    merge(&base, &adapter, &bench.path("whole"), &[]).ok();
    let out = bench.path("out");
    let Some(mut command) = as_other_user(&bench, &[&"merge", &base, &adapter, &"-o", &out, &"-j", &"8"]) else {
        return;
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(snapshot(&out) == snapshot(&bench.path("whole")));
    let cut = bench.path("cut");
    let words: [&dyn AsRef<std::ffi::OsStr>; 8] = [&"stack", &adapter, &adapter, &"--rank", &"2", &"-j", &"8", &"-o"];
    let Some(mut command) = as_other_user(&bench, &[&words[..], &[&cut]].concat()) else { return };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn six_hundred_shards_need_few_open_files() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench, 600, 4);
    merge(&base, &adapter, &bench.path("whole"), &[]).ok();
    for limit in ["ulimit -S -n 256 &&", "ulimit -n 1024 &&"] {
        let out = bench.path("out");
        let output = behind(limit, &[&"merge", &base, &adapter, &"-o", &out, &"-j", &"4"]).output().unwrap();
        assert!(output.status.success(), "{limit} {}", stderr(&output));
        assert!(snapshot(&out) == snapshot(&bench.path("whole")));
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_no_death() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench, 2, 64);
    let output = behind("ulimit -f 4 &&", &[&"merge", &base, &adapter, &"-o", &bench.path("out")]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("File too large"), "{}", stderr(&output));
    assert_eq!(bench.listing(), ["adapter", "base"]);
}

/// Runs the program again and again, each time hit by `signal` a little later, until it ends before it is hit.
fn hit(signal: &str, shell: &str, words: &[&dyn AsRef<std::ffi::OsStr>], mut look: impl FnMut(Output)) {
    // A machine that does other things as well takes longer to begin.
    for wait in [4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048] {
        let mut child = behind(shell, words).spawn().unwrap();
        // Not a wait for something to happen: the point is to hit the run at many moments.
        std::thread::sleep(Duration::from_millis(wait));
        let ended = child.try_wait().unwrap().is_some();
        if !ended {
            Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        }
        look(child.wait_with_output().unwrap());
        if ended && wait >= 96 {
            break;
        }
    }
}

#[test]
fn a_terminal_that_goes_away_leaves_nothing_behind() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench, 8, 1024);
    let out = bench.path("out");
    let words: [&dyn AsRef<std::ffi::OsStr>; 7] = [&"merge", &base, &adapter, &"-o", &out, &"-j", &"1"];
    let mut seen = false;
    hit("-HUP", "", &words, |output| {
        seen |= stderr(&output).contains("interrupted");
        assert!(!bench.listing().iter().any(|name| name.starts_with('.')), "{:?}", bench.listing());
        let _ = fs::remove_dir_all(&out);
    });
    assert!(seen, "no run was hit while it was writing");
    hit("-HUP", "trap '' HUP &&", &words, |output| {
        assert!(output.status.success(), "nohup asks for a run that goes on: {}", stderr(&output));
        fs::remove_dir_all(&out).unwrap();
    });
}

#[test]
fn an_interrupt_is_seen_inside_one_decomposition() {
    const SIDE: usize = 2048;
    let bench = Bench::new();
    let values = noise(1, SIDE * SIDE, 1.0);
    let base = bench.base(&[("q_proj.weight", Tensor::f32(&[SIDE, SIDE], &values))], &json!({}));
    let tuned = bench.path("tuned");
    write(
        &tuned.join("model.safetensors"),
        &[("q_proj.weight", Tensor::f32(&[SIDE, SIDE], &noise(2, SIDE * SIDE, 1.0)))],
    );
    let out = bench.path("out");
    let child = behind("", &[&"extract", &base, &tuned, &"--energy", &"0.9", &"-o", &out]).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let hit = Instant::now();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
    assert!(hit.elapsed() < Duration::from_secs(5), "it took {:?}", hit.elapsed());
    assert_eq!(bench.listing(), ["base", "tuned"]);
}

#[test]
#[cfg_attr(portable, ignore = "the ways that go everywhere fill holes")]
fn holes_of_a_companion_stay_holes() {
    const BYTES: u64 = 4 << 30;
    let bench = Bench::new();
    let (base, adapter) = model(&bench, 1, 8);
    let companion = fs::File::create(base.join("notes.txt")).unwrap();
    companion.write_all_at(b"end", BYTES - 3).unwrap();
    let out = bench.path("out");
    merge(&base, &adapter, &out, &[]).ok();
    let copied = fs::metadata(out.join("notes.txt")).unwrap();
    assert_eq!(copied.len(), BYTES);
    assert!(copied.blocks() * 512 < 1 << 20, "{} blocks", copied.blocks());
    let mut end = [0; 3];
    fs::File::open(out.join("notes.txt")).unwrap().read_exact_at(&mut end, BYTES - 3).unwrap();
    assert_eq!(&end, b"end");
}

#[test]
fn companions_count_where_room_is_looked_for() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench, 1, 8);
    fs::write(base.join("notes.txt"), vec![b'x'; 3 << 20]).unwrap();
    let disk = bench.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: cannot mount a tmpfs, so a small disk was not tested");
        return;
    }
    let outcome = merge(&base, &adapter, &disk.join("out"), &[]);
    let left = fs::read_dir(&disk).unwrap().count();
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    outcome.refused(1, &["the output needs 3", "2097152 are free"]);
    assert_eq!(left, 0);
}

#[test]
fn a_report_that_cannot_be_written_says_that_the_output_is_there() {
    let bench = Bench::new();
    let (base, adapter) = model(&bench, 1, 8);
    let out = bench.path("out");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let run =
        |words: &[&dyn AsRef<std::ffi::OsStr>]| behind("", words).stdout(full.try_clone().unwrap()).output().unwrap();
    let output = run(&[&"merge", &base, &adapter, &"-o", &out]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(
        told.contains("stdout: cannot write") && told.contains("the output, if one was asked for, is in place"),
        "{told}"
    );
    assert!(out.join("lorakit.json").exists());
    let told = stderr(&run(&[&"inspect", &base]));
    assert!(told.contains("stdout: cannot write") && !told.contains("in place"), "{told}");
}

/// A folder of adapters, of which `good` can be resized and the others not.
fn folder(bench: &Bench, names: &[&str], good: &[&str]) -> PathBuf {
    for name in names {
        let path = bench.adapter(
            &format!("adapters/{name}"),
            json!({}),
            &[
                ("q_proj.lora_A.weight", Tensor::f32(&[2, 8], &noise(1, 16, 1.0))),
                ("q_proj.lora_B.weight", Tensor::f32(&[8, 2], &noise(2, 16, 1.0))),
            ],
        );
        if !good.contains(name) {
            fs::File::create(path.join("adapter_model.safetensors")).unwrap().write_all(b"no").unwrap();
        }
    }
    bench.path("adapters")
}

fn resize(adapters: &Path, out: &Path) -> crate::support::Outcome {
    lorakit(&[&"resize", &adapters, &"--rank", &"1", &"-o", &out])
}

#[test]
fn a_folder_in_which_nothing_could_be_resized_is_not_made() {
    let bench = Bench::new();
    let (adapters, out) = (folder(&bench, &["x", "y"], &[]), bench.path("out"));
    let told =
        resize(&adapters, &out).refused(1, &["2 of 2 adapters could not be resized", "x/adapter_model.safetensors"]);
    assert!(!told.stderr.contains("the others are done"), "{}", told.stderr);
    assert_eq!(bench.listing(), ["adapters"]);
    folder(&bench, &["x"], &["x"]);
    let told =
        resize(&adapters, &out).refused(1, &["1 of 2 adapters", "y/adapter_model.safetensors", "the others are done"]);
    assert!(!told.stderr.contains("x/adapter_model.safetensors"), "{}", told.stderr);
    assert!(out.join("x/adapter_config.json").exists() && !out.join("y").exists());
    // A folder that was there stays, also an empty one.
    let mine = bench.path("mine");
    fs::create_dir(&mine).unwrap();
    folder(&bench, &["x"], &[]);
    resize(&adapters, &mine).refused(1, &["2 of 2"]);
    assert!(mine.exists());
}

#[test]
fn what_a_killed_resizing_left_beside_a_done_adapter_goes() {
    let bench = Bench::new();
    let (adapters, out) = (folder(&bench, &["x", "y"], &["x", "y"]), bench.path("out"));
    resize(&adapters, &out).ok();
    let before = snapshot(&out);
    let left = out.join(".x.lorakit-tmp-0");
    fs::create_dir_all(left.join("files")).unwrap();
    fs::write(left.join("files/adapter_config.json"), "{}").unwrap();
    fs::write(left.join("lock"), "").unwrap();
    resize(&adapters, &out).ok();
    assert!(snapshot(&out) == before && !left.exists());
}
