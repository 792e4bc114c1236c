//! Adapters written for AdapterHub's library, torchtune and XLabs' trainer, and back.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::*;

/// What a merge may be off by after a conversion, as a part of the largest number of the tensor.
const TOLERANCE: f64 = 1e-6;

fn convert(input: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &input, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

fn merged(base: &Path, adapter: &Path, more: &[&str]) -> Tensors {
    let bench = Bench::new();
    merge(base, adapter, &bench.path("out"), &[&["--dtype", "f32"], more].concat()).ok();
    read_model(&bench.path("out"))
}

#[track_caller]
fn assert_same(left: &Tensors, right: &Tensors) {
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    left.iter().for_each(|(name, tensor)| assert_close(&tensor.values(), &right[name].values(), TOLERANCE));
}

/// `adapter` without `exclude` to `target`, and to PEFT and `target` again: every step merges into the same. Gives the first.
#[track_caller]
fn travels(bench: &Bench, base: &Path, adapter: &Path, target: &str, exclude: &str) -> PathBuf {
    let (there, back, again) = (bench.path("there"), bench.path("back"), bench.path("again"));
    let leave: &[&str] = if exclude.is_empty() { &[] } else { &["--exclude", exclude] };
    let expected = merged(base, adapter, leave);
    let plain = read_model(base);
    assert!(expected.iter().any(|(name, tensor)| tensor.values() != plain[name].values()));
    let to = ["--to", target, "--base", base.to_str().unwrap()];
    convert(adapter, &there, &[&to, leave].concat()).ok();
    assert_same(&merged(base, &there, &[]), &expected);
    convert(&there, &back, &["--to", "peft"]).ok();
    assert_same(&merged(base, &back, &[]), &expected);
    convert(&back, &again, &to).ok();
    assert_same(&merged(base, &again, &[]), &expected);
    there
}

fn config(root: &Path) -> Value {
    read_json(&root.join("adapter_config.json"))
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn an_adapter_of_adapterhub_comes_back_as_it_was() {
    let root = reference_part("adapterhub");
    let bench = Bench::new();
    let (peft, back) = (bench.path("peft"), bench.path("back"));
    convert(&root.join("lora"), &peft, &["--to", "peft"]).ok();
    convert(&peft, &back, &["--to", "adapterhub", "--base", root.join("base-bert").to_str().unwrap()]).ok();
    assert_eq!(read(&back.join("adapter.safetensors")), read(&root.join("lora/adapter.safetensors")));
    let (own, first) = (config(&back), config(&root.join("lora")));
    for key in ["config", "hidden_size", "model_name", "model_type", "name", "version"] {
        assert_eq!(own[key], first[key], "{key}");
    }
    assert_same(
        &merged(&root.join("base-bert"), &back, &[]),
        &merged(&root.join("base-bert"), &root.join("lora"), &[]),
    );
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_kind_of_adapterhub_is_written_as_it_is() {
    let root = reference_part("adapterhub");
    for case in [
        "lora",
        "ia3",
        "compacter",
        "houlsby-double_seq_bn",
        "loreft",
        "par_bn",
        "pfeiffer-seq_bn",
        "prompt",
        "seq_bn_inv",
        "prefix",
    ] {
        let (bench, source) = (Bench::new(), root.join(case));
        let (pickled, out) = (bench.path("pickled"), bench.path("out"));
        fs::create_dir(&pickled).unwrap();
        for name in ["adapter_config.json", "head_config.json", "pytorch_adapter.bin", "model_head.safetensors"] {
            if source.join(name).is_file() {
                fs::copy(source.join(name), pickled.join(name)).unwrap();
            }
        }
        let report = convert(&pickled, &out, &["--to", "adapterhub", "--json"]).ok().json();
        let beside = pickled.join("model_head.safetensors").is_file();
        assert_eq!(report["notes"].to_string().contains("prediction head"), beside, "{case}");
        let written = read(&out.join("adapter.safetensors"));
        assert!(!written.is_empty());
        if case != "prefix" {
            assert_eq!(written, read(&source.join("adapter.safetensors")), "{case}");
            let head = "model_head.safetensors";
            assert_eq!(fs::read(out.join(head)).unwrap(), fs::read(source.join(head)).unwrap(), "{case}");
        }
        for name in ["adapter_config.json", "head_config.json"] {
            assert_eq!(read_json(&out.join(name)), read_json(&source.join(name)), "{case}: {name}");
        }
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn adapters_of_peft_are_written_for_adapterhub() {
    let root = reference_part("peft");
    let base = root.join("bases/llama-bf16");
    let adapter = |case: &str| root.join(case).join("adapter");
    let others = "o_proj|gate_proj";
    let bench = Bench::new();
    // Other ranks are filled up there, and other scales folded.
    let written = travels(&bench, &base, &adapter("lora-rslora-patterns"), "adapterhub", others);
    let said = &config(&written)["config"];
    assert_eq!(said["attn_matrices"], json!(["q", "k", "v"]));
    let flags = ["selfattn_lora", "intermediate_lora", "output_lora", "use_dora"].map(|key| said[key] == json!(true));
    assert_eq!(flags, [true, true, true, false]);
    // What the library calls intermediate in a llama is the second projection.
    let bench = Bench::new();
    let written =
        travels(&bench, &base, &adapter("lora-all-r4"), "adapterhub", "o_proj|gate_proj|up_proj|q_proj|layers.0");
    let whole = config(&written);
    let said = &whole["config"];
    assert_eq!((&said["intermediate_lora"], &said["output_lora"]), (&json!(true), &json!(false)));
    assert_eq!((&said["attn_matrices"], &said["leave_out"]), (&json!(["k", "v"]), &json!([0])));
    assert_eq!((&said["alpha"], &said["r"]), (&json!(8), &json!(4)));
    assert_eq!((&whole["model_type"], &whole["hidden_size"]), (&json!("llama"), &json!(64)));
    let bench = Bench::new();
    let written = travels(&bench, &base, &adapter("dora-r4"), "adapterhub", others);
    let said = &config(&written)["config"];
    assert_eq!((&said["use_dora"], &said["alpha"], &said["r"]), (&json!(true), &json!(4), &json!(4)));
    // Modules that the library adapts along with others are filled up.
    let bench = Bench::new();
    let written = travels(&bench, &base, &adapter("lora-exclude-regex"), "adapterhub", "");
    let zeros = read(&written.join("adapter.safetensors")).into_values();
    assert_eq!(zeros.filter(|tensor| tensor.values().iter().all(|value| *value == 0.0)).count(), 2);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn vectors_of_ia3_are_written_for_adapterhub() {
    let root = reference_part("peft");
    let (bench, base, adapter) = (Bench::new(), root.join("bases/llama-bf16"), root.join("ia3/adapter"));
    let expected = merged(&base, &adapter, &["--exclude", "down_proj"]);
    let to = ["--to", "adapterhub", "--base", base.to_str().unwrap()];
    convert(&adapter, &bench.path("no"), &to).refused(1, &["scales inputs", "down_proj"]);
    convert(&adapter, &bench.path("out"), &[&to[..], &["--exclude", "down_proj"]].concat()).ok();
    assert_eq!(config(&bench.path("out"))["config"]["composition_mode"], "scale");
    assert_same(&merged(&base, &bench.path("out"), &[]), &expected);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_adapterhub_cannot_say_is_refused_with_the_reason() {
    let root = reference_part("peft");
    let bench = Bench::new();
    let out = bench.path("out");
    let llama = root.join("bases/llama-bf16");
    let refuse = |case: &str, more: &[&str], code: i32, reasons: &[&str]| {
        let adapter = root.join(case).join("adapter");
        convert(&adapter, &out, &[&["--to", "adapterhub"], more].concat()).refused(code, reasons);
        assert!(!out.exists(), "{case}");
    };
    let base = ["--base", llama.to_str().unwrap()];
    refuse("lora-all-r4", &base, 1, &["`model.layers.0.mlp.gate_proj` is nothing AdapterHub puts LoRA on"]);
    refuse("lora-all-r4", &["--exclude", "o_proj|gate_proj|up_proj"], 1, &["several families", "--base"]);
    refuse("lora-all-r4", &["--arch", "flux"], 2, &["--arch", "`flux` is not one of"]);
    refuse("lora-mts-norm", &base, 1, &["stored whole"]);
    refuse("loha-r4", &base, 1, &["LoRA and IA³", "--as lora"]);
    let dora = ["--arch", "qwen2", "--exclude", "o_proj|gate_proj"];
    refuse("dora-r4", &dora, 1, &["biases"]);
    let mixtral = root.join("bases/mixtral-bf16");
    refuse("mixtral-attn", &["--base", mixtral.to_str().unwrap()], 1, &["`mixtral`"]);
    // Queries and values are the same in all families.
    let more = ["--to", "adapterhub", "--include", "q_proj|v_proj"];
    let outcome = convert(&root.join("lora-all-r4/adapter"), &out, &more).ok();
    assert!(outcome.stdout.contains("the number of layers is not known"), "{}", outcome.stdout);
    assert_eq!(config(&out)["model_type"], Value::Null);
}

/// The LoRA of AdapterHub with other settings.
fn altered(bench: &Bench, root: &Path, version: &str, change: impl Fn(&mut Value)) -> PathBuf {
    let out = bench.path(version);
    fs::create_dir(&out).unwrap();
    fs::copy(root.join("adapter.safetensors"), out.join("adapter.safetensors")).unwrap();
    let mut said = config(root);
    said["version"] = version.into();
    change(&mut said["config"]);
    fs::write(out.join("adapter_config.json"), said.to_string()).unwrap();
    out
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn scales_of_adapterhub_follow_its_version() {
    let root = reference_part("adapterhub");
    let (bench, base) = (Bench::new(), root.join("base-bert"));
    let double = |config: &mut Value| config["alpha"] = json!(16);
    let [faulty, sound] =
        ["adapters.1.0.1", "adapters.1.1.0"].map(|version| altered(&bench, &root.join("lora"), version, double));
    let expected = merged(&base, &root.join("lora"), &[]);
    assert_same(&merged(&base, &faulty, &[]), &expected);
    let name = "encoder.layer.0.attention.self.query.weight";
    let (plain, double) = (read_model(&base), merged(&base, &sound, &[]));
    let change = |merged: &Tensors| -> Vec<f64> {
        merged[name].values().iter().zip(plain[name].values()).map(|(new, old)| new - old).collect()
    };
    let twice: Vec<f64> = change(&expected).iter().map(|value| 2.0 * value).collect();
    assert_close(&change(&double), &twice, 1e-4);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn torchtune_gets_its_names_and_its_order_of_rows() {
    let root = reference_part("peft");
    let base = root.join("bases/llama-bf16");
    for case in ["lora-all-r4", "rslora-r4", "dora-r4", "lora-rslora-patterns", "lora-layers-to-transform"] {
        let bench = Bench::new();
        let written = travels(&bench, &base, &root.join(case).join("adapter"), "torchtune", "");
        let tensors = read(&written.join("adapter.safetensors"));
        assert!(tensors.keys().all(|key| key.starts_with("layers.")), "{case}: {:?}", tensors.keys());
        assert!(written.join("config.json").is_file(), "{case}");
        // The same dialect in a new file is still read.
        convert(&written, &bench.path("same"), &["--to", "safetensors"]).ok();
        assert_eq!(read(&bench.path("same").join("adapter.safetensors")), tensors);
        assert_same(&merged(&base, &bench.path("same"), &[]), &merged(&base, &written, &[]));
    }
    let (bench, adapter) = (Bench::new(), root.join("lora-all-r4/adapter"));
    convert(&adapter, &bench.path("out"), &["--to", "torchtune"]).refused(1, &["the model's heads", "--base"]);
    let conv = ["--to", "torchtune", "--base", root.join("bases/gpt2-f32").to_str().unwrap()].map(str::to_owned);
    let conv: Vec<&str> = conv.iter().map(String::as_str).collect();
    convert(&root.join("gpt2-fanin/adapter"), &bench.path("out"), &conv).refused(1, &["`gpt2`"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn new_adapters_are_written_for_these_too() {
    let root = reference_part("peft");
    let base = root.join("bases/llama-bf16");
    let adapter = root.join("lora-all-r4/adapter");
    for (target, other) in [("adapterhub", "lora-exclude-regex"), ("torchtune", "lora-all-r4-b")] {
        let bench = Bench::new();
        let (out, way, peft) = (bench.path("out"), bench.path("way"), bench.path("peft"));
        let more = ["--include", "(q|k|v)_proj"];
        let to = ["--to", target, "--base", base.to_str().unwrap()];
        let run = |out: &Path, more: &[&str]| {
            let other = root.join(other).join("adapter");
            let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"stack", &adapter, &other, &"-o", &out];
            words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
            lorakit(&words).ok();
        };
        run(&peft, &more);
        run(&out, &[&more[..], &to].concat());
        convert(&peft, &way, &to).ok();
        let file = "adapter.safetensors";
        assert_eq!(read(&out.join(file)), read(&way.join(file)), "{target}");
        assert_eq!(config(&out), config(&way), "{target}");
    }
}

/// Keys of XLabs with their outputs and inputs.
const PROCESSORS: [(&str, usize, usize); 6] = [
    ("double_blocks.0.processor.qkv_lora1", 48, 16),
    ("double_blocks.0.processor.proj_lora1", 16, 16),
    ("double_blocks.0.processor.qkv_lora2", 48, 16),
    ("double_blocks.0.processor.proj_lora2", 16, 16),
    ("single_blocks.0.processor.qkv_lora", 48, 16),
    ("single_blocks.0.processor.proj_lora", 16, 80),
];

/// B·A of a pair of XLabs' keys.
fn change(file: &Tensors, name: &str) -> Vec<f64> {
    let (up, down) = (&file[&format!("{name}.up.weight")], &file[&format!("{name}.down.weight")]);
    let zero = vec![0.0; up.shape[0] * down.shape[1]];
    dense(&zero, &up.values(), &down.values(), up.shape[1], 1.0)
}

#[test]
fn processors_of_xlabs_come_back_as_they_were() {
    let bench = Bench::new();
    let (first, between, last) =
        (bench.path("first.safetensors"), bench.path("between"), bench.path("last.safetensors"));
    // The last ones of both blocks are not changed, and one has another rank.
    let chosen = [0, 1, 2, 4];
    let pairs: Vec<(String, Tensor)> = chosen
        .into_iter()
        .flat_map(|at| {
            let ((name, outputs, inputs), rank) = (PROCESSORS[at], if at == 1 { 3 } else { 2 });
            [
                (format!("{name}.down.weight"), Tensor::f32(&[rank, inputs], &noise(at as u64, rank * inputs, 1.0))),
                (
                    format!("{name}.up.weight"),
                    Tensor::f32(&[outputs, rank], &noise(9 + at as u64, outputs * rank, 1.0)),
                ),
            ]
        })
        .collect();
    write(&first, &pairs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect::<Vec<_>>());
    convert(&first, &between, &["--to", "diffusers"]).ok();
    convert(&between, &last, &["--to", "xlabs"]).ok();
    let (own, back) = (read(&first), read(&last));
    assert_eq!(back.len(), 2 * PROCESSORS.len());
    for (at, (name, outputs, inputs)) in PROCESSORS.iter().enumerate() {
        assert_eq!(back[&format!("{name}.down.weight")].shape, [3, *inputs], "{name}");
        assert_eq!(back[&format!("{name}.up.weight")].shape, [*outputs, 3], "{name}");
        match chosen.contains(&at) {
            true => assert_close(&change(&back, name), &change(&own, name), 1e-7),
            false => assert!(change(&back, name).iter().all(|value| *value == 0.0), "{name}"),
        }
    }
}

#[test]
fn scales_go_into_the_pairs_of_xlabs_and_what_they_do_not_hold_is_refused() {
    let bench = Bench::new();
    let file = |name: &str, module: &str, outputs: usize| {
        let path = bench.path(name);
        let key = |suffix: &str| format!("diffusion_model.{module}.{suffix}");
        let (down, up, alpha) = (key("lora_down.weight"), key("lora_up.weight"), key("alpha"));
        let tensors = [
            (down.as_str(), Tensor::f32(&[2, 16], &noise(1, 32, 1.0))),
            (up.as_str(), Tensor::f32(&[outputs, 2], &noise(2, outputs * 2, 1.0))),
            (alpha.as_str(), Tensor::f32(&[], &[4.0])),
        ];
        write(&path, &tensors);
        path
    };
    let out = bench.path("out.safetensors");
    for (name, module, outputs) in [("a", "double_blocks.0.img_mlp.0", 64), ("b", "single_blocks.0.linear1", 112)] {
        let adapter = file(&format!("{name}.safetensors"), module, outputs);
        convert(&adapter, &out, &["--to", "xlabs"]).refused(1, &["nothing that XLabs' processors hold"]);
        assert!(!out.exists(), "{module}");
    }
    convert(&file("c.safetensors", "double_blocks.0.img_attn.proj", 16), &out, &["--to", "xlabs"]).ok();
    let doubled: Vec<f64> = noise(2, 32, 1.0).into_iter().map(|value| 2.0 * f64::from(value)).collect();
    assert_eq!(read(&out)["double_blocks.0.processor.proj_lora1.up.weight"].values(), doubled);
}
