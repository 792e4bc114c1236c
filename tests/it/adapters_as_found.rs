//! Adapters as people have them: swapped arguments, folders above the adapter, several adapters in one file, weights trained beside them,
//! other trainers' layouts, configs as Python writes them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::containers::write_torch;
use crate::support::*;

const D: usize = 8;
const Q: &str = "model.layers.0.self_attn.q_proj";

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, 0.1))
}

fn weight() -> Tensor {
    matrix(1, D, D)
}

/// A model with one layer and a projector.
fn model(bench: &Bench) -> PathBuf {
    let tensors = [
        ("model.embed_tokens.weight", matrix(2, 10, D)),
        ("lm_head.weight", matrix(3, 10, D)),
        ("model.layers.0.self_attn.q_proj.weight", weight()),
        ("model.mm_projector.0.weight", matrix(4, D, D)),
        ("model.mm_projector.0.bias", Tensor::f32(&[D], &noise(5, D, 0.1))),
    ];
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": false});
    bench.base(&tensors, &config)
}

fn pair() -> [(&'static str, Tensor); 2] {
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", matrix(6, 2, D)),
        ("model.layers.0.self_attn.q_proj.lora_B.weight", matrix(7, D, 2)),
    ]
}

fn wanted(scale: f64) -> Vec<f64> {
    dense(&weight().values(), &matrix(7, D, 2).values(), &matrix(6, 2, D).values(), 2, scale)
}

#[track_caller]
fn assert_merged(out: &Path, scale: f64) {
    assert_close(&read_model(out)[&format!("{Q}.weight")].values(), &wanted(scale), 1e-6);
}

#[test]
fn arguments_the_wrong_way_round_are_told() {
    let bench = Bench::new();
    let (base, adapter) = (model(&bench), bench.adapter("adapter", json!({}), &pair()));
    let out = bench.path("out");
    merge(&adapter, &base, &out, &[]).refused(1, &["the wrong way round", "base", "lorakit merge"]);
    merge(&adapter, &base.join("model.safetensors"), &out, &[]).refused(1, &["the wrong way round"]);
    merge(&adapter, &adapter, &out, &[]).refused(1, &["is an adapter, and a model is expected here"]);
    merge(&base, &base, &out, &[]).refused(1, &["is a model (`LlamaForCausalLM`)", "lorakit extract BASE"]);
    lorakit(&[&"extract", &base, &adapter, &"--rank", &"2", &"-o", &out])
        .refused(1, &["is an adapter", "`merge MODEL ADAPTER`"]);
    lorakit(&[&"stack", &adapter, &base, &"-o", &out]).refused(1, &["is a model", "lorakit extract"]);
    lorakit(&[&"subtract", &adapter, &base, &"-o", &out]).refused(1, &["is a model"]);
    lorakit(&[&"subtract", &base, &base, &"-o", &out]).refused(1, &["is a model", "lorakit extract"]);
    assert!(!out.exists());
}

#[test]
fn folders_above_an_adapter_name_what_is_in_them() {
    let bench = Bench::new();
    let base = model(&bench);
    bench.adapter("named/my_adapter", json!({}), &pair());
    for step in ["9", "10", "20"] {
        bench.adapter(&format!("trainer/checkpoint-{step}"), json!({}), &pair());
    }
    fs::create_dir_all(bench.path("empty")).unwrap();
    let bare = bench.adapter("bare", json!({}), &pair());
    fs::remove_file(bare.join("adapter_model.safetensors")).unwrap();
    let out = bench.path("out");
    let at = |name: &str| bench.path(name).display().to_string();
    for (name, parts) in [
        ("named", ["`my_adapter`".to_owned(), format!("name that: `{}`", at("named/my_adapter"))]),
        ("trainer", ["3 checkpoints".to_owned(), format!("the last is `{}`", at("trainer/checkpoint-20"))]),
        ("empty", ["is an empty folder".to_owned(), String::new()]),
        ("bare", ["has `adapter_config.json`, and no weights".to_owned(), "git lfs pull".to_owned()]),
    ] {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        merge(&base, &bench.path(name), &out, &[]).refused(1, &parts);
        lorakit(&[&"stack", &bench.path(name), &"-o", &out]).refused(1, &parts);
        lorakit(&[&"convert", &bench.path(name), &"--to", &"kohya", &"-o", &out]).refused(1, &parts);
    }
    // A checkpoint beside the adapter of the end: that is the one.
    let top = bench.adapter("trainer", json!({}), &pair());
    merge(&base, &top, &out, &[]).ok();
    assert_merged(&out, 2.0);
}

#[test]
fn one_of_several_adapters_in_a_file_is_chosen_by_name() {
    let bench = Bench::new();
    let base = model(&bench);
    let (a, b) = (matrix(6, 2, D), matrix(7, D, 2));
    let named = |name: &str, factor: &str| format!("{Q}.lora_{factor}.{name}.weight");
    let tensors = [
        (named("default", "A"), matrix(8, 2, D)),
        (named("default", "B"), matrix(9, D, 2)),
        (named("reference", "A"), a),
        (named("reference", "B"), b),
        (format!("{Q}.base_layer.weight"), weight()),
    ];
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let adapter = bench.adapter("adapter", json!({}), &tensors);
    let several: &[&str] = &["holds 2 adapters: `default`, `reference`", "--adapter-name"];
    let no = bench.path("no");
    merge(&base, &adapter, &no, &[]).refused(1, several);
    lorakit(&[&"convert", &adapter, &"--to", &"kohya", &"-o", &no]).refused(1, several);
    lorakit(&[&"stack", &adapter, &"-o", &no]).refused(1, several);
    lorakit(&[&"resize", &adapter, &"--rank", &"1", &"-o", &no]).refused(1, several);
    merge(&base, &adapter, &no, &["--adapter-name", "other"]).refused(1, &["`default`, `reference`", "`other`"]);
    let facts = lorakit(&[&"inspect", &adapter, &"--json"]).ok().json();
    assert!(facts["problems"].to_string().contains("`default`, `reference`"), "{facts}");

    merge(&base, &adapter, &bench.path("out"), &["--adapter-name", "reference"]).ok();
    assert_merged(&bench.path("out"), 2.0);
    let made = |name: &str, words: &[&dyn AsRef<std::ffi::OsStr>]| {
        lorakit(words).ok();
        merge(&base, &bench.path(name), &bench.path(&format!("{name}-out")), &[]).ok();
        assert_close(
            &read_model(&bench.path(&format!("{name}-out")))[&format!("{Q}.weight")].values(),
            &wanted(2.0),
            1e-5,
        );
    };
    let choose: [&dyn AsRef<std::ffi::OsStr>; 2] = [&"--adapter-name", &"reference"];
    made("same", &[&"convert", &adapter, choose[0], choose[1], &"-o", &bench.path("same")]);
    made("stacked", &[&"stack", &adapter, choose[0], choose[1], &"--base", &base, &"-o", &bench.path("stacked")]);
    made("resized", &[&"resize", &adapter, choose[0], choose[1], &"--rank", &"2", &"-o", &bench.path("resized")]);
}

#[test]
fn pefts_folders_of_named_adapters_are_chosen_by_name() {
    let bench = Bench::new();
    let base = model(&bench);
    let other = [(pair()[0].0, matrix(8, 2, D)), (pair()[1].0, matrix(9, D, 2))];
    let top = bench.adapter("out-of-trl", json!({}), &other);
    bench.adapter("out-of-trl/reference", json!({}), &pair());
    let report = merge(&base, &top, &bench.path("top"), &[]).ok().stdout;
    assert!(report.contains("`reference`") && report.contains("--adapter-name"), "{report}");
    merge(&base, &top, &bench.path("out"), &["--adapter-name", "reference"]).ok();
    assert_merged(&bench.path("out"), 2.0);
    merge(&base, &top, &bench.path("default"), &["--adapter-name", "default"]).ok();
}

#[test]
fn weights_trained_beside_the_adapter_are_read_along() {
    for (name, from) in [
        ("non_lora_trainables.bin", "torch"),
        ("non_lora_state_dict.bin", "torch"),
        ("non_lora_trainables.safetensors", "safe"),
    ] {
        let bench = Bench::new();
        let base = model(&bench);
        let adapter = bench.adapter("llava-lora", json!({}), &pair());
        let (projector, bias) = (matrix(11, D, D), Tensor::f32(&[D], &noise(12, D, 0.1)));
        let trained = [
            ("base_model.model.model.mm_projector.0.weight", projector.clone()),
            ("base_model.model.model.mm_projector.0.bias", bias.clone()),
        ];
        if from == "torch" {
            write_torch(&adapter.join(name), &trained);
        } else {
            write(&adapter.join(name), &trained);
        }
        fs::write(adapter.join("optimizer.pt"), b"state").unwrap();
        fs::write(adapter.join("mm_other.bin"), b"weights").unwrap();
        for (path, out) in [(adapter.clone(), "out"), (adapter.join("adapter_model.safetensors"), "of-file")] {
            let text = merge(&base, &path, &bench.path(out), &[]).ok().stdout;
            assert!(text.contains(name) && text.contains("`mm_other.bin`") && !text.contains("optimizer.pt"), "{text}");
            let got = read_model(&bench.path(out));
            assert_eq!(got["model.mm_projector.0.weight"], projector, "{name}");
            assert_eq!(got["model.mm_projector.0.bias"], bias, "{name}");
            assert_merged(&bench.path(out), 2.0);
        }
        // Another verb carries it along.
        lorakit(&[&"convert", &adapter, &"--to", &"peft", &"-o", &bench.path("converted")]).ok();
        merge(&base, &bench.path("converted"), &bench.path("again"), &[]).ok();
        assert_eq!(read_model(&bench.path("again"))["model.mm_projector.0.weight"], projector, "{name}");
        let facts = lorakit(&[&"inspect", &adapter, &"--json"]).ok().json();
        assert_eq!(facts["whole"]["tensors"], 2, "{facts}");
        lorakit(&[&"resize", &adapter, &"--rank", &"1", &"-o", &bench.path("resized")]).ok();
        assert!(read_model(&bench.path("resized")).keys().any(|key| key.contains("mm_projector.0.weight")));
    }
}

#[test]
fn mlx_vlms_adapters_are_read_with_alpha_undivided() {
    for (a, b) in [(".A", ".B"), (".lora_A.default.weight", ".lora_B.default.weight")] {
        let bench = Bench::new();
        let module = "language_model.model.layers.0.self_attn.q_proj";
        let base = bench.base(&[(&format!("{module}.weight"), matrix(1, 12, D))], &json!({"model_type": "qwen2_vl"}));
        let folder = bench.path("adapter");
        let (down, up) = (matrix(2, D, 3), matrix(3, 3, 12));
        write(
            &folder.join("adapters.safetensors"),
            &[(&format!("{module}{a}"), down.clone()), (&format!("{module}{b}"), up.clone())],
        );
        fs::write(folder.join("adapter_config.json"), json!({"rank": 3, "alpha": 0.5, "dropout": 0.1}).to_string())
            .unwrap();
        merge(&base, &folder, &bench.path("out"), &[]).ok();
        let turned = |tensor: &Tensor, rows: usize, cols: usize| -> Vec<f64> {
            let values = tensor.values();
            (0..rows * cols).map(|at| values[at % cols * rows + at / cols]).collect()
        };
        let wanted = dense(&matrix(1, 12, D).values(), &turned(&up, 12, 3), &turned(&down, 3, D), 3, 0.5);
        let got = &read_model(&bench.path("out"))[&format!("{module}.weight")];
        assert_close(&got.values(), &wanted, 1e-6);
        lorakit(&[&"convert", &folder, &"--to", &"peft", &"-o", &bench.path("peft")]).ok();
        merge(&base, &bench.path("peft"), &bench.path("again"), &[]).ok();
        assert_close(&read_model(&bench.path("again"))[&format!("{module}.weight")].values(), &wanted, 1e-6);
        lorakit(&[&"convert", &folder, &"-o", &bench.path("same")]).ok();
        assert_eq!(read_json(&bench.path("same/adapter_config.json"))["alpha"], 0.5);
    }
}

#[test]
fn mistral_finetunes_scale_stands_in_params_json() {
    let bench = Bench::new();
    let names = ["layers.0.attention.wq", "layers.0.feed_forward.w1"];
    let base = bench.path("mistral");
    let weights: Vec<(String, Tensor)> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (format!("{name}.weight"), matrix(at as u64 + 1, D, D)))
        .chain([("tok_embeddings.weight".to_owned(), matrix(9, 10, D))])
        .collect();
    let weights: Vec<(&str, Tensor)> = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&base.join("consolidated.safetensors"), &weights);
    fs::write(base.join("params.json"), json!({"dim": D, "n_layers": 1}).to_string()).unwrap();
    let folder = bench.path("lora");
    let mut factors = Vec::new();
    for (at, name) in names.iter().enumerate() {
        factors.push((format!("{name}.lora_A.weight"), matrix(at as u64 + 20, 2, D)));
        factors.push((format!("{name}.lora_B.weight"), matrix(at as u64 + 30, D, 2)));
    }
    let factors: Vec<(&str, Tensor)> = factors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&folder.join("lora.safetensors"), &factors);
    let params = |rank: u64| json!({"dim": D, "lora": {"enable": true, "rank": rank, "dropout": 0.0, "scaling": 2.0}});
    fs::write(folder.join("params.json"), params(2).to_string()).unwrap();
    for (path, out) in [(folder.clone(), "out"), (folder.join("lora.safetensors"), "of-file")] {
        let report = merge(&base, &path, &bench.path(out), &["--json"]).ok().json();
        assert_eq!(report["adapters"][0]["alpha_from"], "params.json");
        let got = read_model(&bench.path(out));
        for (at, name) in names.iter().enumerate() {
            let (down, up) = (matrix(at as u64 + 20, 2, D).values(), matrix(at as u64 + 30, D, 2).values());
            let wanted = dense(&matrix(at as u64 + 1, D, D).values(), &up, &down, 2, 2.0);
            assert_close(&got[&format!("{name}.weight")].values(), &wanted, 1e-6);
        }
    }
    lorakit(&[&"convert", &folder, &"--to", &"peft", &"-o", &bench.path("peft")]).ok();
    assert_eq!(read_json(&bench.path("peft/adapter_config.json"))["lora_alpha"], 4);
    fs::write(folder.join("params.json"), params(64).to_string()).unwrap();
    merge(&base, &folder, &bench.path("no"), &[]).refused(1, &["`lora.rank`", "64", "rank 2"]);
    fs::remove_file(folder.join("params.json")).unwrap();
    merge(&base, &folder, &bench.path("no"), &[]).refused(1, &["2 pairs, rank 2", "--alpha"]);
}

#[test]
fn adalora_leaves_modules_without_ranks_as_they_are() {
    let bench = Bench::new();
    let k = "model.layers.0.self_attn.k_proj";
    let base = bench.base(
        &[(&format!("{Q}.weight"), weight()), (&format!("{k}.weight"), matrix(2, D, D))],
        &json!({"model_type": "llama"}),
    );
    let (a, b, e) = (matrix(3, 3, D), matrix(4, D, 3), matrix(5, 3, 1));
    let empty = |shape: &[usize]| Tensor::f32(shape, &[]);
    let tensors = [
        (format!("{Q}.lora_A"), a.clone()),
        (format!("{Q}.lora_B"), b.clone()),
        (format!("{Q}.lora_E"), e.clone()),
        (format!("{k}.lora_A"), empty(&[0, D])),
        (format!("{k}.lora_B"), empty(&[D, 0])),
        (format!("{k}.lora_E"), empty(&[0, 1])),
    ];
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let config = json!({"peft_type": "ADALORA", "r": 8, "init_r": 6, "target_r": 3, "lora_alpha": 8,
        "rank_pattern": {"model.layers.0.self_attn.k_proj.lora_E": [false, false, false, false, false, false]}});
    let adapter = bench.adapter("adapter", config, &tensors);
    let text = merge(&base, &adapter, &bench.path("out"), &[]).ok().stdout;
    assert!(text.contains("AdaLoRA left 1 modules no rank"), "{text}");
    let down: Vec<f64> = a.values().iter().enumerate().map(|(at, value)| value * e.values()[at / D]).collect();
    let wanted = dense(&weight().values(), &b.values(), &down, 3, 8.0 / (6.0 + 1e-5));
    let got = read_model(&bench.path("out"));
    assert_close(&got[&format!("{Q}.weight")].values(), &wanted, 1e-6);
    assert_eq!(got[&format!("{k}.weight")], matrix(2, D, D));
    for verb in [&["stack"][..], &["resize", "--rank", "2"], &["convert", "--to", "peft", "--as", "lora"]] {
        let out = bench.path(verb[0]);
        let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&verb[0], &adapter, &"-o", &out];
        words.extend(verb[1..].iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        lorakit(&words).ok();
    }
}

/// A config written as text, and the scale it gives, or what the refusal says.
#[test]
fn configs_are_read_as_python_writes_them() {
    let plain = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    let with = |key: &str, value: Value| {
        let mut config = plain.clone();
        config[key] = value;
        config.to_string()
    };
    let text = plain.to_string();
    let cases: [(String, Result<f64, &[&str]>); 14] = [
        (with("lora_alpha", json!("4")), Ok(2.0)),
        (with("lora_alpha", json!(4.0)), Ok(2.0)),
        (with("r", json!("2")), Ok(2.0)),
        (with("peft_type", json!("lora")), Ok(2.0)),
        (with("alpha_pattern", json!({r"model\.layers\.0\.(?:self_attn|mlp)\.(?P<n>q_proj)\Z": 8})), Ok(4.0)),
        (with("alpha_pattern", json!({r"model\.layers\.(?!1\.)\d+\.self_attn\.q_proj": 8})), Ok(4.0)),
        (with("alpha_pattern", json!({r"model\.layers\.(?!0\.)\d+\.self_attn\.q_proj": 8})), Ok(2.0)),
        (with("alpha_pattern", json!({"^model.layers.0.self_attn.q_proj": 8})), Ok(4.0)),
        (
            text[..text.len() - 1].to_owned()
                + r#", "lora_dropout": NaN, "eva_config": {"rho": Infinity, "tau": -Infinity}}"#,
            Ok(2.0),
        ),
        (format!("\u{feff}{text}"), Ok(2.0)),
        (text.replace(r#""lora_alpha":4"#, r#""lora_alpha":NaN"#), Err(&["`lora_alpha`", "NaN"])),
        (with("lora_alpha", json!("four")), Err(&["`lora_alpha`", "four"])),
        (with("r", json!("2.5")), Err(&["`r`", "2.5"])),
        (format!("// mine\n{text}"), Err(&["adapter_config.json", "JSON"])),
    ];
    for (config, wanted) in cases {
        let bench = Bench::new();
        let (base, adapter) = (model(&bench), bench.adapter("adapter", json!({}), &pair()));
        fs::write(adapter.join("adapter_config.json"), &config).unwrap();
        match wanted {
            Ok(scale) => {
                merge(&base, &adapter, &bench.path("out"), &["-q"]).ok();
                assert_merged(&bench.path("out"), scale);
            }
            Err(parts) => {
                merge(&base, &adapter, &bench.path("out"), &[]).refused(1, parts);
            }
        }
    }
}

/// Phi-4-multimodal holds its adapters itself, and its config says their scales.
#[test]
fn an_adapter_that_a_model_holds_has_its_scale_in_the_models_config() {
    let bench = Bench::new();
    let base = model(&bench);
    let named = |name: &str, factor: &str| format!("{Q}.lora_{factor}.{name}.weight");
    let tensors = [
        (format!("{Q}.base_layer.weight"), weight()),
        (named("vision", "A"), matrix(6, 2, D)),
        (named("vision", "B"), matrix(7, D, 2)),
        (named("speech", "A"), matrix(8, 2, D)),
        (named("speech", "B"), matrix(9, D, 2)),
    ];
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let full = bench.path("phi4");
    write(&full.join("model.safetensors"), &tensors);
    let config = json!({"architectures": ["Phi4MMForCausalLM"], "vision_lora": {"r": 2, "lora_alpha": 4}});
    fs::write(full.join("config.json"), config.to_string()).unwrap();
    merge(&base, &full, &bench.path("no"), &[]).refused(1, &["`speech`, `vision`", "--adapter-name"]);
    let report = merge(&base, &full, &bench.path("out"), &["--adapter-name", "vision", "--json"]).ok().json();
    assert_eq!(report["adapters"][0]["alpha_from"], "config.json");
    assert_merged(&bench.path("out"), 2.0);
    merge(&base, &full, &bench.path("no"), &["--adapter-name", "speech"]).refused(1, &["alpha is unknown", "--alpha"]);
    merge(&base, &full, &bench.path("told"), &["--adapter-name", "speech", "--alpha", "2"]).ok();
}
