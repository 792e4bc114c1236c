//! Names that lead elsewhere than people thought: embeddings beside an adapter, prefixes of a base that no table knows, two denoisers
//! built alike, folders one level too high, and files of which only a pointer is there.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::support::{Bench, Tensor, assert_close, dense, lorakit, merge, noise, read, read_model, write};

const D: usize = 16;
const R: usize = 2;
const QKV: &str = "double_blocks.0.img_attn.qkv";

fn matrix(seed: u64, rows: usize, cols: usize, size: f32) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, size))
}

fn save(path: PathBuf, tensors: &[(String, Tensor)]) -> PathBuf {
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&path, &named);
    path
}

/// The weights of flux in the original names behind `prefix`.
fn flux(bench: &Bench, prefix: &str) -> PathBuf {
    let tensors: Vec<(String, Tensor)> = [
        (QKV, 3 * D, D),
        ("double_blocks.0.img_attn.proj", D, D),
        ("double_blocks.0.txt_attn.qkv", 3 * D, D),
        ("final_layer.linear", 4, D),
        ("img_in", D, 4),
        ("single_blocks.0.linear1", 7 * D, D),
        ("single_blocks.0.linear2", D, 5 * D),
        ("txt_in", D, 8),
        ("vector_in.in_layer", D, 6),
    ]
    .iter()
    .enumerate()
    .map(|(at, (name, rows, cols))| (format!("{prefix}{name}.weight"), matrix(at as u64 + 1, *rows, *cols, 1.0)))
    .collect();
    save(bench.path(&format!("base-{}.safetensors", prefix.len())), &tensors)
}

fn pair(module: &str, seed: u64, rows: usize, cols: usize) -> Vec<(String, Tensor)> {
    vec![
        (format!("{module}.lora_down.weight"), matrix(seed, R, cols, 0.1)),
        (format!("{module}.lora_up.weight"), matrix(seed + 1, rows, R, 0.1)),
        (format!("{module}.alpha"), Tensor::f32(&[], &[R as f32])),
    ]
}

/// `own` + B·A in the rows from `at` on, for the pair of `seed`.
fn changed(own: &[f64], seed: u64, rows: usize, cols: usize, at: usize) -> Vec<f64> {
    let (down, up) = (matrix(seed, R, cols, 0.1).values(), matrix(seed + 1, rows, R, 0.1).values());
    let (from, to) = (at * cols, (at + rows) * cols);
    [&own[..from], &dense(&own[from..to], &up, &down, R, 1.0), &own[to..]].concat()
}

#[test]
fn embeddings_beside_an_adapter_stay_out_of_every_dialect_and_of_models() {
    let bench = Bench::new();
    let base = flux(&bench, "");
    let mut tensors = vec![
        ("bundle_emb.my token.clip_l".to_owned(), matrix(70, 2, 8, 1.0)),
        ("bundle_emb.my token.t5".to_owned(), matrix(71, 2, 8, 1.0)),
    ];
    for (at, part) in ["to_q", "to_k"].iter().enumerate() {
        let (module, seed) = (format!("transformer.transformer_blocks.0.attn.{part}"), 30 + 2 * at as u64);
        tensors.push((format!("{module}.lora_A.weight"), matrix(seed, R, D, 0.1)));
        tensors.push((format!("{module}.lora_B.weight"), matrix(seed + 1, D, R, 0.1)));
    }
    let adapter = save(bench.path("bundle.safetensors"), &tensors);
    let merged = bench.path("merged.safetensors");
    merge(&base, &adapter, &merged, &[]).ok();
    let wanted = read(&merged);
    let own = read(&base)[&format!("{QKV}.weight")].values();
    let right = changed(&changed(&own, 30, D, D, 0), 32, D, D, D);
    assert_close(&wanted[&format!("{QKV}.weight")].values(), &right, 1e-6);
    for (to, name) in [("peft", "p"), ("kohya", "k.safetensors"), ("comfyui", "c.safetensors")] {
        let out = bench.path(name);
        let words: [&dyn AsRef<std::ffi::OsStr>; 9] =
            [&"convert", &adapter, &"--to", &to, &"--arch", &"flux", &"-o", &out, &"--json"];
        let report = lorakit(&words).ok().json();
        let notes = report["notes"].to_string();
        assert!(notes.contains("embeddings of tokens (`my token`)") && notes.contains("textual inversion"), "{notes}");
        assert_eq!(report["whole"], 0);
        let stored = if to == "peft" { read_model(&out) } else { read(&out) };
        assert!(!stored.keys().any(|key| key.contains("bundle_emb")), "{to}: {:?}", stored.keys());
        let again = bench.path(&format!("again-{to}.safetensors"));
        merge(&base, &out, &again, &[]).ok();
        assert_eq!(read(&again).keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        assert_close(&read(&again)[&format!("{QKV}.weight")].values(), &right, 1e-6);
    }
    // Sums and smaller adapters have none for a model either.
    let sum = bench.path("sum");
    let report = lorakit(&[&"stack", &adapter, &adapter, &"-o", &sum, &"--json"]).ok().json();
    assert!(report["notes"].to_string().contains("`my token`"), "{report}");
    let small = bench.path("small");
    lorakit(&[&"resize", &adapter, &"--rank", &"1", &"-o", &small]).ok();
    for (at, made) in [sum, small].iter().enumerate() {
        let again = bench.path(&format!("made-{at}.safetensors"));
        merge(&base, made, &again, &[]).ok();
        assert_eq!(read(&again).keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    }
}

#[test]
fn names_of_tables_are_found_behind_a_prefix_of_the_base() {
    let bench = Bench::new();
    for (at, prefix) in ["net.", "my.own."].iter().enumerate() {
        let base = flux(&bench, prefix);
        let kinds: [(&str, &str, &str); 4] = [
            ("omi", "transformer.double_blocks.0.img_attn.qkv.1", "transformer.single_blocks.0.linear1.3"),
            (
                "diffusers",
                "transformer.transformer_blocks.0.attn.to_k",
                "transformer.single_transformer_blocks.0.proj_mlp",
            ),
            ("kohya", "lora_unet_transformer_blocks_0_attn_to_k", "lora_unet_single_transformer_blocks_0_proj_mlp"),
            ("odd", "pipe.odd.transformer_blocks.0.attn.to_k", "pipe.odd.single_transformer_blocks.0.proj_mlp"),
        ];
        for (name, key, other) in kinds {
            let tensors = [pair(key, 40, D, D), pair(other, 50, 4 * D, D)].concat();
            let lora = save(bench.path(&format!("{name}.safetensors")), &tensors);
            let out = bench.path(&format!("{name}-{at}-out.safetensors"));
            let report = merge(&base, &lora, &out, &["--json"]).ok().json();
            let (own, got) = (read(&base), read(&out));
            for (module, seed, rows, from) in [(QKV, 40, D, D), ("single_blocks.0.linear1", 50, 4 * D, 3 * D)] {
                let tensor = format!("{prefix}{module}.weight");
                let right = changed(&own[&tensor].values(), seed, rows, D, from);
                assert_close(&got[&tensor].values(), &right, 1e-6);
            }
            let notes = report["notes"].to_string();
            assert!(notes.contains("differ in their prefix") && notes.contains(prefix), "{name}: {notes}");
        }
    }
}

#[test]
fn an_adapter_without_any_place_is_never_offered_to_be_dropped() {
    let bench = Bench::new();
    let base = flux(&bench, "");
    let of_another = |key: &str| [pair(key, 40, D, D), pair(&key.replace('0', "1"), 42, D, D)].concat();
    for (at, key) in ["transformer.double_blocks.70.img_attn.proj", "elsewhere.blocks.0.mlp", "lora_te1_text_model_0_q"]
        .into_iter()
        .enumerate()
    {
        let lora = save(bench.path(&format!("lora-{at}.safetensors")), &of_another(key));
        let said = merge(&base, &lora, &bench.path("no"), &[]).refused(1, &["have no place", "is this the model"]);
        assert!(!said.stderr.contains("--allow-unused"), "{key}: {}", said.stderr);
    }
    // One layer too many of the part that the base is.
    let some = [
        pair("transformer.double_blocks.0.img_attn.proj", 40, D, D),
        pair("transformer.double_blocks.70.img_attn.proj", 42, D, D),
    ];
    let lora = save(bench.path("some.safetensors"), &some.concat());
    let said = merge(&base, &lora, &bench.path("no"), &[]).refused(1, &["2 of 6", "is this the model"]);
    assert!(!said.stderr.contains("--allow-unused"), "{}", said.stderr);
}

#[test]
fn two_denoisers_are_written_one_at_a_time() {
    const FILE: &str = "diffusion_pytorch_model.safetensors";
    let bench = Bench::new();
    let weight = |seed: u64, component: u64, tuned: bool| {
        let own = matrix(component, D, D, 1.0).values();
        let all = if tuned { changed(&own, seed, D, D, 0) } else { own };
        Tensor::f32(&[D, D], &all.iter().map(|value| *value as f32).collect::<Vec<f32>>())
    };
    let pipe = |name: &str, tuned: bool| {
        let root = bench.path(name);
        let mut index = json!({ "_class_name": "WanPipeline" });
        for (at, component) in ["transformer", "transformer_2"].into_iter().enumerate() {
            index[component] = json!(["diffusers", "WanTransformer3DModel"]);
            let at = at as u64;
            let tensors = [("blocks.0.attn1.to_q.weight", weight(60 + 2 * at, 5 + at, tuned))];
            write(&root.join(component).join(FILE), &tensors);
            let config = json!({ "_class_name": "WanTransformer3DModel" });
            fs::write(root.join(component).join("config.json"), config.to_string()).unwrap();
        }
        fs::write(root.join("model_index.json"), index.to_string()).unwrap();
        root
    };
    let (base, tuned) = (pipe("base", false), pipe("tuned", true));
    let both = bench.path("both");
    lorakit(&[&"extract", &base, &tuned, &"--rank", &"2", &"-o", &both]).ok();
    let out = bench.path("out.safetensors");
    let ways = "--component transformer, or --component transformer_2";
    let said = lorakit(&[&"extract", &base, &tuned, &"--rank", &"2", &"--to", &"comfyui", &"-o", &out])
        .refused(1, &["tuned: changes", "`transformer` and `transformer_2`", ways]);
    assert!(!said.stderr.contains("lorakit convert") && !said.stderr.contains("/out"), "{}", said.stderr);
    lorakit(&[&"convert", &both, &"--to", &"comfyui", &"-o", &out])
        .refused(1, &["both: changes", "`transformer` and `transformer_2`", ways]);
    let said = lorakit(&[&"stack", &both, &both, &"--to", &"comfyui", &"-o", &out])
        .refused(1, &["both: changes", ways, "lorakit convert --to comfyui"]);
    assert!(!said.stderr.contains("/out"), "{}", said.stderr);
    // The ways out are ways out.
    for (at, component) in ["transformer", "transformer_2"].into_iter().enumerate() {
        let part = bench.path(&format!("{component}.safetensors"));
        let words: [&dyn AsRef<std::ffi::OsStr>; 9] =
            [&"convert", &both, &"--to", &"comfyui", &"--component", &component, &"-o", &part, &"--json"];
        let report = lorakit(&words).ok().json();
        assert!(report["notes"].to_string().contains("is left out"), "{report}");
        let merged = bench.path(&format!("merged-{component}"));
        merge(&base, &part, &merged, &["--component", component]).ok();
        for (other, name) in ["transformer", "transformer_2"].into_iter().enumerate() {
            let right = weight(60 + 2 * other as u64, 5 + other as u64, other == at).values();
            let got = read(&merged.join(name).join(FILE))["blocks.0.attn1.to_q.weight"].values();
            assert_close(&got, &right, 1e-5);
        }
        let extracted = bench.path(&format!("extracted-{component}.safetensors"));
        let words: [&dyn AsRef<std::ffi::OsStr>; 11] = [
            &"extract",
            &base,
            &tuned,
            &"--rank",
            &"2",
            &"--to",
            &"comfyui",
            &"--component",
            &component,
            &"-o",
            &extracted,
        ];
        lorakit(&words).ok();
    }
}

#[test]
fn a_family_that_is_not_clear_is_said_of_an_input() {
    let bench = Bench::new();
    let adapter = |name: &str, seed: u64| {
        let tensors = [
            pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", seed, D, D),
            pair("lora_unet_middle_block_1_proj_in", seed + 4, D, D),
        ];
        save(bench.path(&format!("{name}.safetensors")), &tensors.concat())
    };
    let (a, b) = (adapter("first", 80), adapter("second", 90));
    let out = bench.path("out.safetensors");
    let words: [&dyn AsRef<std::ffi::OsStr>; 13] =
        [&"stack", &a, &b, &"--method", &"ties", &"--density", &"1", &"--rank", &"2", &"--to", &"kohya", &"-o", &out];
    let said = lorakit(&words).refused(1, &["first.safetensors: can be for sd1, sdxl", "--arch sd1, --arch sdxl"]);
    assert!(!said.stderr.contains("/out"), "{}", said.stderr);
}

#[test]
fn a_folder_above_models_says_what_lies_below() {
    let bench = Bench::new();
    let tensors = [("a.q_proj.weight", matrix(1, D, D, 1.0))];
    let factors = [("a.q_proj.lora_A.weight", matrix(2, R, D, 0.1)), ("a.q_proj.lora_B.weight", matrix(3, D, R, 0.1))];
    let adapter = bench.adapter("adapters/mine", json!({}), &factors);
    let parent = bench.path("adapters");
    let out = bench.path("out");
    merge(&parent, &adapter, &out, &[]).refused(1, &["holds no weights itself, but adapters lie below it: `mine`"]);
    let hub = bench.path("models--org--llama");
    write(&hub.join("snapshots/abc/model.safetensors"), &tensors);
    fs::create_dir_all(hub.join("refs")).unwrap();
    let named = hub.join("snapshots/abc").display().to_string();
    merge(&hub, &adapter, &out, &[])
        .refused(1, &["weights lie below it: `snapshots/abc`", &format!("name that folder: `{named}`")]);
    for name in ["a", "b", "c", "d"] {
        write(&bench.path("many").join(name).join("model.safetensors"), &tensors);
    }
    merge(&bench.path("many"), &adapter, &out, &[]).refused(1, &["`a`, `b`, `c` …", "name one of them"]);
    fs::create_dir_all(bench.path("nothing/at/all")).unwrap();
    merge(&bench.path("nothing"), &adapter, &out, &[]).refused(1, &["holds no weights that can be read"]);
    merge(&hub.join("snapshots/abc"), &adapter, &out, &[]).ok();
}

#[test]
fn a_pointer_of_git_lfs_is_called_one() {
    let bench = Bench::new();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 1234\n", "0".repeat(64));
    let base = bench.base(&[("a.q_proj.weight", matrix(1, D, D, 1.0))], &json!({}));
    for name in ["model.safetensors", "model.gguf", "pytorch_model.bin", "weights.npz"] {
        let folder = bench.path(&format!("of-{name}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), &pointer).unwrap();
        let file = folder.join(name);
        let headline = format!("{name}: is a Git LFS pointer, not the file itself");
        let parts = [headline.as_str(), "git lfs pull"];
        lorakit(&[&"inspect", &file]).refused(1, &parts);
        lorakit(&[&"inspect", &folder]).refused(1, &parts);
        merge(&folder, &base, &bench.path("no"), &[]).refused(1, &parts);
        merge(&base, &file, &bench.path("no"), &[]).refused(1, &parts);
        let listed = lorakit(&[&"inspect", &base, &file]).refused(1, &parts);
        let words = listed.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("is a Git LFS pointer"), "{words}");
    }
}
