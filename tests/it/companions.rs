//! What travels with the weights: nothing that a link brings in from elsewhere, and nothing is left out in silence.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::*;

const SECRET: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";

/// A model with a config, and an adapter for it.
fn pair(bench: &Bench) -> (PathBuf, PathBuf) {
    let base =
        bench.base(&[("a.q_proj.weight", Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))], &json!({"model_type": "x"}));
    let adapter = bench.adapter(
        "adapter",
        json!({}),
        &[
            ("a.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(2, 8, 1.0))),
            ("a.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(3, 8, 1.0))),
        ],
    );
    (base, adapter)
}

fn secret(bench: &Bench) -> PathBuf {
    let path = bench.path("id_rsa");
    fs::write(&path, SECRET).unwrap();
    path
}

/// The files of the output, and the notes of the report.
fn merged(base: &Path, adapter: &Path, out: &Path) -> (Vec<String>, String) {
    let report = merge(base, adapter, out, &["--json"]).ok().json();
    let files = snapshot(out).keys().map(|path| path.to_string_lossy().into_owned()).collect();
    (files, report["notes"].as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"))
}

/// Whether any file below `out` holds the secret.
fn leaks(out: &Path) -> bool {
    snapshot(out).values().any(|bytes| String::from_utf8_lossy(bytes).contains(SECRET))
}

#[test]
fn links_out_of_the_model_are_named_and_not_followed() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    let key = secret(&bench);
    fs::create_dir_all(base.join("tokenizer")).unwrap();
    fs::write(base.join("vocab.json"), "{}").unwrap();
    fs::write(base.join("tokenizer/merges.txt"), "m").unwrap();
    symlink(&key, base.join("vocab.txt")).unwrap();
    symlink("../../id_rsa", base.join("tokenizer/notes.txt")).unwrap();
    symlink("/proc/self/environ", base.join("environ.json")).unwrap();
    symlink("/etc", base.join("folder")).unwrap();
    symlink("gone", base.join("dangling.json")).unwrap();
    symlink("ring", base.join("ring")).unwrap();
    // Inside, by whatever way.
    symlink("vocab.json", base.join("inside.json")).unwrap();
    symlink("../base/tokenizer/merges.txt", base.join("merges.txt")).unwrap();
    let (files, notes) = merged(&base, &adapter, &bench.path("out"));
    assert_eq!(
        files,
        [
            "config.json",
            "inside.json",
            "lorakit.json",
            "merges.txt",
            "model.safetensors",
            "tokenizer/merges.txt",
            "vocab.json"
        ]
    );
    assert!(!leaks(&bench.path("out")));
    for part in [
        "links that lead out of the directory: `environ.json`, `tokenizer/notes.txt`, `vocab.txt`",
        "links that lead nowhere: `dangling.json`, `ring`",
        "links to folders: `folder`",
    ] {
        assert!(notes.contains(part), "`{part}` is not in {notes}");
    }
    // The same in parts, by conversion, and when an adapter is taken out again.
    for part in ["1/2", "2/2"] {
        merge(&base, &adapter, &bench.path("parts"), &["--part", part]).ok();
    }
    lorakit(&[&"finish", &bench.path("parts")]).ok();
    lorakit(&[&"convert", &base, &"-o", &bench.path("converted"), &"--dtype", &"bf16"]).ok();
    lorakit(&[&"subtract", &base, &adapter, &"-o", &bench.path("taken")]).ok();
    for out in ["parts", "converted", "taken"] {
        assert!(!leaks(&bench.path(out)), "{out}");
        assert!(!bench.path(out).join("vocab.txt").exists() && bench.path(out).join("vocab.json").exists(), "{out}");
    }
    let report = lorakit(&[&"convert", &base, &"-o", &bench.path("c2"), &"--dtype", &"bf16"]).ok().stdout;
    assert!(report.contains("not copied, since they are links that lead out of the directory"), "{report}");
}

#[test]
fn a_snapshot_of_the_cache_links_to_its_own_blobs() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    fs::write(base.join("vocab.txt"), "v").unwrap();
    let root = bench.path("hub/models--org--tiny");
    let (blobs, snapshot) = (root.join("blobs"), root.join("snapshots/0123abcd"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(&base).unwrap() {
        let name = entry.unwrap().file_name();
        let blob = format!("blob-{}", name.to_string_lossy());
        fs::copy(base.join(&name), blobs.join(&blob)).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(&name)).unwrap();
    }
    symlink(secret(&bench), snapshot.join("leak.txt")).unwrap();
    let (files, notes) = merged(&snapshot, &adapter, &bench.path("out"));
    assert_eq!(files, ["config.json", "lorakit.json", "model.safetensors", "vocab.txt"]);
    assert!(notes.contains("lead out of the directory: `leak.txt`"), "{notes}");
    merge(&base, &adapter, &bench.path("direct"), &[]).ok();
    assert_eq!(read_model(&bench.path("out")), read_model(&bench.path("direct")));
    // Of another repository.
    fs::create_dir_all(bench.path("hub/models--org--other/blobs")).unwrap();
    fs::write(bench.path("hub/models--org--other/blobs/x"), SECRET).unwrap();
    symlink("../../../models--org--other/blobs/x", snapshot.join("other.txt")).unwrap();
    let (_, notes) = merged(&snapshot, &adapter, &bench.path("out2"));
    assert!(notes.contains("`leak.txt`, `other.txt`"), "{notes}");
    assert!(!leaks(&bench.path("out2")));
}

#[test]
fn a_config_that_leads_out_is_read_and_not_written() {
    let bench = Bench::new();
    let weights = [
        ("model.embed_tokens.weight", Tensor::f32(&[6, 4], &noise(1, 24, 1.0))),
        ("model.layers.0.q_proj.weight", Tensor::f32(&[4, 4], &noise(2, 16, 1.0))),
    ];
    let config =
        json!({"model_type": "llama", "tie_word_embeddings": true, "secret": SECRET, "torch_dtype": "float32"});
    let base = bench.base(&weights, &config);
    fs::rename(base.join("config.json"), bench.path("elsewhere.json")).unwrap();
    symlink(bench.path("elsewhere.json"), base.join("config.json")).unwrap();
    let adapter = bench.adapter(
        "adapter",
        json!({"target_modules": ["lm_head"]}),
        &[
            ("lm_head.lora_A.weight", Tensor::f32(&[2, 4], &noise(3, 8, 1.0))),
            ("lm_head.lora_B.weight", Tensor::f32(&[6, 2], &noise(4, 12, 1.0))),
        ],
    );
    let (files, notes) = merged(&base, &adapter, &bench.path("out"));
    assert_eq!(files, ["lorakit.json", "model.safetensors"]);
    assert!(read_model(&bench.path("out")).contains_key("lm_head.weight"), "the tie was read");
    assert!(notes.contains("lead out of the directory: `config.json`"), "{notes}");
    assert!(notes.contains("`tie_word_embeddings` must be false"), "{notes}");
    lorakit(&[&"convert", &base, &"-o", &bench.path("c"), &"--dtype", &"bf16"]).ok();
    assert!(!leaks(&bench.path("out")) && !leaks(&bench.path("c")));
}

#[test]
fn an_earlier_record_that_leads_out_is_refused() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    fs::write(bench.path("docker.json"), json!({"auth": SECRET}).to_string()).unwrap();
    symlink(bench.path("docker.json"), base.join("lorakit.json")).unwrap();
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &["lorakit.json: is a link out of its directory"]);
}

#[test]
fn what_is_left_out_is_named_by_reason() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    fs::write(base.join(".gitattributes"), "x").unwrap();
    fs::create_dir_all(base.join(".cache/huggingface")).unwrap();
    fs::create_dir_all(base.join("1/2/3/4/5/6")).unwrap();
    fs::write(base.join("1/2/3/4/4.txt"), "4").unwrap();
    fs::write(base.join("1/2/3/4/5/deep.txt"), "5").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(base.join("pipe")).status().unwrap().success());
    let _socket = UnixListener::bind(base.join("socket")).unwrap();
    fs::write(base.join("modeling_x.py"), "import os").unwrap();
    for name in ["X.SAFETENSORS", "old.safetensors.bak", "pytorch_model.bin~", "adapter_model.safetensors"] {
        fs::write(base.join(name), "weights").unwrap();
    }
    fs::write(base.join("adapter_config.json"), "{}").unwrap();
    let (files, notes) = merged(&base, &adapter, &bench.path("out"));
    assert_eq!(files, ["1/2/3/4/4.txt", "config.json", "lorakit.json", "model.safetensors", "modeling_x.py"]);
    for part in [
        "hidden: `.cache`, `.gitattributes`",
        "folders that lie too deep: `1/2/3/4/5`",
        "pipes, sockets or devices: `pipe`, `socket`",
        "of an adapter: `adapter_config.json`",
        "code is copied along, which a loader may run: `modeling_x.py`",
        "other weights that would not be merged: `X.SAFETENSORS`, `adapter_model.safetensors`, `old.safetensors.bak`, `pytorch_model.bin~`",
    ] {
        assert!(notes.contains(part), "`{part}` is not in {notes}");
    }
    // A model without anything odd has no such notes.
    let plain = bench.path("plain");
    fs::create_dir(&plain).unwrap();
    for name in ["model.safetensors", "config.json"] {
        fs::copy(base.join(name), plain.join(name)).unwrap();
    }
    assert_eq!(merged(&plain, &adapter, &bench.path("out2")).1, "");
}

#[test]
fn outputs_inside_a_model_do_not_travel_with_it() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    fs::write(base.join("vocab.txt"), "v").unwrap();
    for (at, before) in ["out1", "out2", "out3"].into_iter().enumerate() {
        let (files, notes) = merged(&base, &adapter, &base.join(before));
        assert_eq!(files, ["config.json", "lorakit.json", "model.safetensors", "vocab.txt"], "{before}");
        assert_eq!(notes.contains("other outputs of lorakit: `out1`"), at > 0, "{notes}");
    }
    // A single file and its record.
    lorakit(&[&"merge", &base.join("model.safetensors"), &adapter, &"-o", &base.join("one.safetensors")]).ok();
    let model = base.join("model.safetensors");
    assert!(model.exists());
    let (files, _) = merged(&base, &adapter, &bench.path("out"));
    assert!(files.iter().all(|name| !name.starts_with("one")), "{files:?}");
}

#[test]
fn a_copy_is_open_to_no_more_people_than_its_source() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    for (name, mode) in [("private.json", 0o600), ("shared.json", 0o640), ("public.json", 0o666), ("run.sh", 0o755)] {
        fs::write(base.join(name), "{}").unwrap();
        fs::set_permissions(base.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let mode = |name: &str| fs::metadata(bench.path("out").join(name)).unwrap().permissions().mode() & 0o777;
    let umask = 0o666 & !mode("public.json");
    assert_eq!(mode("private.json"), 0o600 & !umask);
    assert_eq!(mode("shared.json"), 0o640 & !umask);
    assert_eq!(mode("run.sh"), 0o644 & !umask, "nothing is made a program");
}

/// A kind of trouble, what makes it, and what is said of it.
type Trouble = (&'static str, Box<dyn Fn(&Path)>, &'static str);

/// A config that is there and cannot be read, by kind of trouble.
fn troubles(bench: &Bench) -> Vec<Trouble> {
    let _ = bench;
    vec![
        (
            "dangling",
            Box::new(|path| symlink("../../blobs/gone", path).unwrap()),
            "is a link to `../../blobs/gone`, and nothing is there",
        ),
        (
            "ring",
            Box::new(|path| symlink(path.file_name().unwrap(), path).unwrap()),
            "Too many levels of symbolic links",
        ),
        (
            "pipe",
            Box::new(|path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success())),
            "is a pipe, not a file",
        ),
        ("directory", Box::new(|path| fs::create_dir(path).unwrap()), "is a directory, not a file"),
    ]
}

#[test]
fn a_config_that_cannot_be_read_is_not_absent() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    for (kind, make, reason) in troubles(&bench) {
        let (model, own) = (bench.path(&format!("m-{kind}")), bench.path(&format!("a-{kind}")));
        fs::create_dir(&model).unwrap();
        fs::copy(base.join("model.safetensors"), model.join("model.safetensors")).unwrap();
        make(&model.join("config.json"));
        fs::create_dir(&own).unwrap();
        fs::copy(adapter.join("adapter_model.safetensors"), own.join("adapter_model.safetensors")).unwrap();
        make(&own.join("adapter_config.json"));
        let out = bench.path("out");
        let config = ["config.json", reason];
        merge(&model, &adapter, &out, &[]).refused(1, &config);
        lorakit(&[&"convert", &model, &"-o", &out, &"--dtype", &"bf16"]).refused(1, &config);
        lorakit(&[&"extract", &model, &base, &"-o", &out, &"--rank", &"1"]).refused(1, &config);
        lorakit(&[&"subtract", &model, &adapter, &"-o", &out]).refused(1, &config);
        lorakit(&[&"inspect", &model]).refused(1, &config);
        let config = ["adapter_config.json", reason];
        merge(&base, &own, &out, &[]).refused(1, &config);
        lorakit(&[&"stack", &own, &adapter, &"-o", &out]).refused(1, &config);
        lorakit(&[&"resize", &own, &"-o", &out, &"--rank", &"1"]).refused(1, &config);
        lorakit(&[&"convert", &own, &"-o", &out, &"--to", &"mlx"]).refused(1, &config);
        lorakit(&[&"inspect", &own]).refused(1, &config);
        assert!(fs::symlink_metadata(&out).is_err(), "{kind}");
    }
}

#[test]
fn weights_and_indexes_that_cannot_be_read_are_not_absent() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    for (kind, make, reason) in troubles(&bench) {
        for name in ["model.safetensors", "model.safetensors.index.json"] {
            let model = bench.path(&format!("{kind}-{name}"));
            fs::create_dir(&model).unwrap();
            // Another file that would be taken instead.
            fs::copy(base.join("model.safetensors"), model.join("pytorch_model.safetensors")).unwrap();
            make(&model.join(name));
            merge(&model, &adapter, &bench.path("out"), &[]).refused(1, &[name, reason]);
            lorakit(&[&"inspect", &model]).refused(1, &[name, reason]);
        }
    }
    // A component of a pipeline.
    let pipeline = bench.path("pipeline");
    write(&pipeline.join("unet/model.safetensors"), &[("a", Tensor::f32(&[1], &[1.0]))]);
    fs::write(pipeline.join("model_index.json"), "{}").unwrap();
    symlink("gone", pipeline.join("text_encoder")).unwrap();
    lorakit(&[&"convert", &pipeline, &"-o", &bench.path("out"), &"--dtype", &"bf16"])
        .refused(1, &["text_encoder: is a link to `gone`, and nothing is there"]);
}

#[test]
fn paths_that_lead_nowhere_say_why() {
    let bench = Bench::new();
    let (base, adapter) = pair(&bench);
    for name in ["org/ring", "org/gone"] {
        fs::create_dir_all(bench.path("org")).unwrap();
        let target = if name == "org/ring" { "ring" } else { "nothing" };
        symlink(target, bench.path(name)).unwrap();
    }
    let ring = bench.path("org/ring");
    merge(&ring, &adapter, &bench.path("out"), &[])
        .refused(1, &["ring: cannot open: Too many levels of symbolic links"]);
    let gone = bench.path("org/gone");
    merge(&base, &gone, &bench.path("out"), &[]).refused(1, &["gone: is a link to `nothing`, and nothing is there"]);
    merge(&base, &bench.path("none"), &bench.path("out"), &[])
        .refused(1, &["none: cannot open: No such file or directory"]);
    // Relative, where it could be a model of the cache.
    let mut command = assert_cmd::Command::cargo_bin("lorakit").unwrap();
    let output = command.current_dir(bench.path("")).args(["inspect", "org/ring"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("Too many levels of symbolic links") && !text.contains("cache"), "{text}");
}

#[test]
fn files_that_go_into_gguf_do_not_lead_out_either() {
    let bench = Bench::new();
    let from = fixtures().join("gguf/models");
    let Some(model) = fs::read_dir(&from)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("tokenizer.json").exists())
    else {
        return;
    };
    let base = bench.path("model");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, base.join(path.file_name().unwrap())).unwrap();
    }
    let mut said = read_json(&base.join("tokenizer_config.json"));
    said.as_object_mut().unwrap().remove("chat_template");
    fs::write(base.join("tokenizer_config.json"), said.to_string()).unwrap();
    symlink(secret(&bench), base.join("chat_template.jinja")).unwrap();
    let out = bench.path("out.gguf");
    let outcome = lorakit(&[&"convert", &base, &"-o", &out, &"--to", &"gguf"]);
    assert!(outcome.code != 0 || !String::from_utf8_lossy(&fs::read(&out).unwrap()).contains(SECRET));
    outcome.refused(1, &["chat_template.jinja: is a link out of its directory"]);
}

#[test]
fn side_files_of_an_adapter_do_not_lead_out_either() {
    let bench = Bench::new();
    let (_, adapter) = pair(&bench);
    symlink(secret(&bench), adapter.join("README.md")).unwrap();
    fs::write(adapter.join("tokenizer.json"), "{}").unwrap();
    let out = bench.path("out");
    let report = lorakit(&[&"resize", &adapter, &"-o", &out, &"--rank", &"1"]).ok().stdout;
    assert!(report.contains("links that lead out of the directory: `README.md`"), "{report}");
    assert!(!leaks(&out) && out.join("tokenizer.json").exists() && !out.join("README.md").exists());
}
