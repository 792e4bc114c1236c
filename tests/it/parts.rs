//! Parts join when they are of one output, and in no other case; what stands in their way is named, and goes on request.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::{Bench, Tensor, lorakit, merge, noise, read_json, snapshot, write};
use safetensors::tensor::Dtype;

const SIDE: usize = 64;

/// A model of two shards, the same for one `seed`, with a tokenizer; and an adapter for it.
fn two_shards(bench: &Bench, name: &str, seed: u64) -> PathBuf {
    let base = bench.path(name);
    let mut map = serde_json::Map::new();
    for layer in 0..2 {
        let file = format!("model-{:05}-of-00002.safetensors", layer + 1);
        let weight = format!("layers.{layer}.q_proj.weight");
        let values = noise(seed + layer as u64, SIDE * SIDE, 1.0);
        write(&base.join(&file), &[(weight.as_str(), Tensor::new(Dtype::BF16, &[SIDE, SIDE], &values))]);
        map.insert(weight, file.into());
    }
    let index = json!({"metadata": {"total_size": 4 * SIDE * SIDE}, "weight_map": map});
    fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(base.join("config.json"), "{}").unwrap();
    fs::write(base.join("tokenizer.json"), "{\"a\": 1}").unwrap();
    base
}

fn adapter(bench: &Bench, name: &str) -> PathBuf {
    let factors: Vec<(String, Tensor)> = (0..2)
        .flat_map(|layer| {
            let of = |what: &str, shape: [usize; 2], seed: u64| {
                let values = noise(seed + layer, 2 * SIDE, 0.5);
                (format!("layers.{layer}.q_proj.lora_{what}.weight"), Tensor::f32(&shape, &values))
            };
            [of("A", [2, SIDE], 70), of("B", [SIDE, 2], 80)]
        })
        .collect();
    let named: Vec<(&str, Tensor)> = factors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    bench.adapter(name, json!({}), &named)
}

fn shared(out: &Path) -> PathBuf {
    out.with_file_name(format!(".{}.lorakit-parts", out.file_name().unwrap().to_str().unwrap()))
}

/// Both parts of one merge, not put together yet.
fn both(bench: &Bench) -> (PathBuf, PathBuf, PathBuf) {
    let (base, adapter, out) = (two_shards(bench, "base", 1), adapter(bench, "adapter"), bench.path("out"));
    merge(&base, &adapter, &out, &["--part", "1/2"]).ok();
    merge(&base, &adapter, &out, &["--part", "2/2"]).ok();
    (base, adapter, out)
}

#[test]
fn parts_of_two_bases_do_not_join_and_those_of_two_copies_do() {
    let bench = Bench::new();
    let (base, adapter) = (two_shards(&bench, "base", 1), adapter(&bench, "adapter"));
    let copy = two_shards(&bench, "copy", 1);
    let other = two_shards(&bench, "other", 5);
    let out = bench.path("out");
    // The name of the base is in the header of every file, so all are called the same.
    let as_base = |model: &Path, part: &str| {
        fs::rename(&base, bench.path("away")).unwrap();
        fs::rename(model, &base).unwrap();
        let outcome = merge(&base, &adapter, &out, &["--part", part]);
        fs::rename(&base, model).unwrap();
        fs::rename(bench.path("away"), &base).unwrap();
        outcome
    };
    merge(&base, &adapter, &out, &["--part", "1/2"]).ok();
    as_base(&other, "2/2").ok();
    let told = lorakit(&[&"finish", &out]);
    told.refused(
        1,
        &["different inputs or options", "`model-00001-of-00002.safetensors` has other contents", "--discard"],
    );
    assert!(!out.exists());
    as_base(&copy, "2/2").ok();
    lorakit(&[&"finish", &out]).ok();
    merge(&base, &adapter, &bench.path("whole"), &[]).ok();
    assert!(snapshot(&out) == snapshot(&bench.path("whole")));
}

#[test]
fn an_input_that_was_written_to_between_two_parts_is_noticed() {
    for (file, text) in [
        ("model-00002-of-00002.safetensors", "the input `model-00002-of-00002.safetensors` was written to"),
        ("tokenizer.json", "different inputs or options"),
        ("config.json", "different inputs or options: `config.json` had 2 bytes, then 8"),
    ] {
        let bench = Bench::new();
        let (base, adapter, out) = (two_shards(&bench, "base", 1), adapter(&bench, "adapter"), bench.path("out"));
        merge(&base, &adapter, &out, &["--part", "1/2"]).ok();
        if file.ends_with(".json") {
            fs::write(base.join(file), "{\"b\": 2}").unwrap();
        } else {
            let later = SystemTime::now() + Duration::from_secs(60);
            fs::File::options().write(true).open(base.join(file)).unwrap().set_modified(later).unwrap();
        }
        merge(&base, &adapter, &out, &["--part", "2/2"]).ok();
        lorakit(&[&"finish", &out]).refused(1, &[text, "part 2-of-2", "part 1-of-2"]);
    }
}

#[test]
fn parts_of_two_inputs_of_a_conversion_do_not_join() {
    let bench = Bench::new();
    let (base, other, out) = (two_shards(&bench, "base", 1), two_shards(&bench, "other", 9), bench.path("out"));
    let convert = |part: &str| {
        lorakit(&[&"convert", &base, &"-o", &out, &"--dtype", &"f32", &"--part", &part]).ok();
    };
    convert("1/2");
    fs::remove_dir_all(&base).unwrap();
    fs::rename(&other, &base).unwrap();
    convert("2/2");
    lorakit(&[&"finish", &out]).refused(1, &["has other contents"]);
    convert("1/2");
    lorakit(&[&"finish", &out]).ok();
}

#[test]
fn a_part_whose_second_run_failed_is_not_done() {
    let bench = Bench::new();
    let (base, adapter, out) = both(&bench);
    // No file may grow beyond a block of 512 bytes.
    let failed = Command::new("sh")
        .args(["-c", "ulimit -f 1 && exec \"$0\" \"$@\""])
        .arg(assert_cmd::cargo::cargo_bin("lorakit"))
        .arg("merge")
        .arg(&base)
        .arg(format!("{}:0.25", adapter.display()))
        .arg("-o")
        .arg(&out)
        .args(["--part", "1/2"])
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    lorakit(&[&"finish", &out]).refused(1, &["1 of 2 parts have not been done: 1/2"]);
    assert!(!out.exists());
    merge(&base, &adapter, &out, &["--part", "1/2"]).ok();
    lorakit(&[&"finish", &out]).ok();
    merge(&base, &adapter, &bench.path("whole"), &[]).ok();
    assert!(snapshot(&out) == snapshot(&bench.path("whole")));
}

#[test]
fn a_note_that_no_part_wrote_is_refused() {
    let bench = Bench::new();
    let (_, _, out) = both(&bench);
    let notes = shared(&out).join("notes");
    let note = notes.join("1-of-2.json");
    let good = read_json(&note);
    let set = |key: &str, value: Value| {
        let mut bad = good.clone();
        bad[key] = value;
        bad
    };
    let renamed = |name: &str| {
        let mut bad = good.clone();
        bad["weights"][0]["name"] = name.into();
        bad
    };
    for (bad, text) in [
        (set("parts", 4_294_967_295_u32.into()), "says part 1 of 4294967295, and its name says 1 of 2"),
        (set("parts", 0.into()), "says part 1 of 0, and its name says 1 of 2"),
        (set("parts", 1.into()), "says part 1 of 1, and its name says 1 of 2"),
        (set("part", 2.into()), "says part 2 of 2, and its name says 1 of 2"),
        (set("parts", (-1).into()), "is not the note of a part"),
        (set("weights", "all".into()), "is not the note of a part"),
        (set("more", 1.into()), "is not the note of a part"),
        (json!({"plan": good["plan"], "parts": 2, "files": []}), "is not the note of a part"),
        (renamed("../../base/model-00001-of-00002.safetensors"), "is not inside the output"),
        (renamed("/etc/passwd"), "`/etc/passwd` is not inside the output"),
        (renamed("model-00002-of-00002.safetensors"), "both claim to have written `model-00002-of-00002.safetensors`"),
        (renamed("x.safetensors"), "holds `model-00001-of-00002.safetensors`, which none of these parts wrote"),
        (set("weights", json!([])), "which none of these parts wrote"),
        (set("beside", json!([])), "different files beside the weights"),
    ] {
        fs::write(&note, bad.to_string()).unwrap();
        lorakit(&[&"finish", &out]).refused(1, &[text]);
        assert!(!out.exists(), "{text}");
    }
    fs::write(&note, good.to_string()).unwrap();
    for name in ["0-of-2.json", "3-of-2.json", "01-of-2.json", "1-of-99999.json", "x.json", "1-of-2.txt"] {
        fs::write(notes.join(name), good.to_string()).unwrap();
        lorakit(&[&"finish", &out]).refused(1, &[name, "is not the note of a part"]);
        fs::remove_file(notes.join(name)).unwrap();
    }
    lorakit(&[&"finish", &out]).ok();
    assert_eq!(bench.listing(), ["adapter", "base", "out"]);
}

#[test]
fn what_lies_among_the_parts_must_be_theirs_and_all_of_it() {
    let bench = Bench::new();
    let (base, _, out) = both(&bench);
    let files = shared(&out).join("files");
    let shard = files.join("model-00001-of-00002.safetensors");
    let good = fs::read(&shard).unwrap();

    for lost in ["config.json", "tokenizer.json", "lorakit.json", "model-00001-of-00002.safetensors"] {
        fs::rename(files.join(lost), bench.path("kept")).unwrap();
        lorakit(&[&"finish", &out]).refused(1, &[&format!("lacks `{lost}`"), "--discard"]);
        // A link to the same bytes is none of ours.
        symlink(bench.path("kept"), files.join(lost)).unwrap();
        lorakit(&[&"finish", &out]).refused(1, &[lost, "is a link"]);
        fs::rename(bench.path("kept"), files.join(lost)).unwrap();
    }
    fs::create_dir(files.join("sub")).unwrap();
    fs::write(files.join("sub/strange.bin"), "x").unwrap();
    lorakit(&[&"finish", &out]).refused(1, &["holds `sub/strange.bin`, which none of these parts wrote", "--discard"]);
    fs::remove_dir_all(files.join("sub")).unwrap();

    fs::write(files.join("config.json"), "[]").unwrap();
    lorakit(&[&"finish", &out]).refused(1, &["config.json", "is not what its part noted"]);
    fs::write(files.join("config.json"), "{}").unwrap();
    fs::write(&shard, &good[..good.len() - 1]).unwrap();
    lorakit(&[&"finish", &out]).refused(1, &["its part wrote"]);
    // Another recipe of the same length in the header: the file of another run.
    let at = good
        .windows(8)
        .position(|bytes| bytes == b"\"weight\\")
        .or_else(|| good.windows(6).position(|bytes| bytes == b"weight"));
    let mut other = good.clone();
    let place = at.unwrap() + good[at.unwrap()..].windows(3).position(|bytes| bytes == b"1.0").unwrap();
    other[place] = b'2';
    fs::write(&shard, &other).unwrap();
    lorakit(&[&"finish", &out]).refused(1, &["its header, with the recipe, is not what its part noted"]);
    fs::write(&shard, &good).unwrap();
    lorakit(&[&"finish", &out]).ok();
    assert!(base.exists());
}

#[test]
fn links_in_place_of_the_shared_folders_are_not_followed() {
    let bench = Bench::new();
    let (base, adapter, out) = both(&bench);
    let place = shared(&out);
    for name in ["", "files", "notes"] {
        let own = if name.is_empty() { place.clone() } else { place.join(name) };
        fs::rename(&own, bench.path("moved")).unwrap();
        symlink(bench.path("moved"), &own).unwrap();
        let before = snapshot(&bench.path("moved"));
        lorakit(&[&"finish", &out]).refused(1, &["is a link"]);
        merge(&base, &adapter, &out, &["--part", "1/2"]).refused(1, &["is a link"]);
        if name.is_empty() {
            lorakit(&[&"finish", &out, &"--discard"]).refused(1, &["is a link"]);
        }
        assert!(snapshot(&bench.path("moved")) == before && !out.exists());
        fs::remove_file(&own).unwrap();
        fs::rename(bench.path("moved"), &own).unwrap();
    }
    lorakit(&[&"finish", &out]).ok();
}

#[test]
fn parts_of_another_number_are_named_and_thrown_away_on_request() {
    let bench = Bench::new();
    let (base, adapter, out) = both(&bench);
    merge(&base, &adapter, &out, &["--part", "1/1"]).ok();
    lorakit(&[&"finish", &out]).refused(1, &["notes of a run in 1 parts and of one in 2", "--discard"]);
    let told = lorakit(&[&"finish", &out, &"--discard", &"--json"]).ok().json();
    assert_eq!(told["discarded"], 3);
    assert_eq!(bench.listing(), ["adapter", "base"]);
    lorakit(&[&"finish", &out, &"--discard"]).refused(1, &["no part of it was begun"]);
    lorakit(&[&"finish", &out, &"--discard", &"--force"]).refused(2, &["--force"]);
    merge(&base, &adapter, &out, &["--part", "1/1"]).ok();
    assert!(lorakit(&[&"finish", &out, &"--discard"]).ok().stdout.contains("1 parts thrown away"));
    merge(&base, &adapter, &out, &["--part", "1/1"]).ok();
    lorakit(&[&"finish", &out]).ok();
}

#[test]
fn a_finish_that_was_killed_after_its_rename_is_ended_by_the_next() {
    let bench = Bench::new();
    let (base, adapter, out) = both(&bench);
    let place = shared(&out);
    fs::rename(place.join("files"), &out).unwrap();
    let before = snapshot(&out);
    let told = lorakit(&[&"finish", &out, &"--json"]).ok().json();
    assert_eq!((&told["parts"], &told["files"]), (&json!(2), &json!(2)));
    assert!(snapshot(&out) == before);
    assert_eq!(bench.listing(), ["adapter", "base", "out"]);

    fs::remove_dir_all(&out).unwrap();
    merge(&base, &adapter, &out, &["--part", "1/2"]).ok();
    merge(&base, &adapter, &out, &["--part", "2/2"]).ok();
    fs::rename(place.join("files"), &out).unwrap();
    merge(&base, &adapter, &out, &["--force"]).ok();
    assert!(snapshot(&out) == before);
    assert_eq!(bench.listing(), ["adapter", "base", "out"]);
}
