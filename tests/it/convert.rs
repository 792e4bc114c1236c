//! Checkpoints between containers, dtypes and layouts.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::containers::{Named, View, npy, torch_of, torch_tree, write_torch, zip};
use crate::support::{
    Bench, Outcome, Tensor, Tensors, assert_close, fixtures, lorakit, merge, noise, read, read_json, read_model,
    snapshot, write,
};

fn convert(input: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &input, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

fn model(dtype: Dtype) -> Vec<(&'static str, Tensor)> {
    vec![
        ("model.embed_tokens.weight", Tensor::new(dtype, &[10, 8], &noise(1, 80, 1.0))),
        ("model.layers.0.self_attn.q_proj.weight", Tensor::new(dtype, &[8, 8], &noise(2, 64, 1.0))),
        ("model.norm.weight", Tensor::new(dtype, &[8], &noise(3, 8, 1.0))),
        ("lm_head.weight", Tensor::new(dtype, &[10, 8], &noise(4, 80, 1.0))),
    ]
}

fn named(tensors: &[(&str, Tensor)]) -> Tensors {
    tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect()
}

#[test]
fn a_pytorch_directory_becomes_safetensors_with_its_companions() {
    let bench = Bench::new();
    let tensors = model(Dtype::BF16);
    write_torch(&bench.path("base/pytorch_model.bin"), &tensors);
    fs::write(bench.path("base/config.json"), r#"{"torch_dtype": "bfloat16"}"#).unwrap();
    fs::write(bench.path("base/tokenizer.json"), "{}").unwrap();

    let outcome = convert(&bench.path("base"), &bench.path("out"), &[]).ok();

    assert_eq!(read(&bench.path("out/model.safetensors")), named(&tensors));
    let files: Vec<String> = snapshot(&bench.path("out")).keys().map(|path| path.display().to_string()).collect();
    assert_eq!(files, ["config.json", "lorakit.json", "model.safetensors", "tokenizer.json"]);
    assert!(outcome.stdout.contains("read as pytorch, and written as safetensors"), "{}", outcome.stdout);
    assert_eq!(read_json(&bench.path("out/lorakit.json"))["operation"], "convert");
}

#[test]
fn a_sharded_pytorch_model_keeps_its_shards_and_its_index() {
    let bench = Bench::new();
    let tensors = model(Dtype::F32);
    write_torch(&bench.path("base/pytorch_model-00001-of-00002.bin"), &tensors[..2]);
    write_torch(&bench.path("base/pytorch_model-00002-of-00002.bin"), &tensors[2..]);
    let place = |at: usize| format!("pytorch_model-0000{}-of-00002.bin", if at < 2 { 1 } else { 2 });
    let map: serde_json::Map<String, serde_json::Value> =
        tensors.iter().enumerate().map(|(at, (name, _))| ((*name).to_owned(), place(at).into())).collect();
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    fs::write(bench.path("base/pytorch_model.bin.index.json"), index.to_string()).unwrap();

    convert(&bench.path("base"), &bench.path("out"), &[]).ok();

    let index = read_json(&bench.path("out/model.safetensors.index.json"));
    assert_eq!(index["weight_map"]["lm_head.weight"], "model-00002-of-00002.safetensors");
    assert_eq!(index["metadata"]["total_size"], 4 * (80 + 64 + 8 + 80));
    assert_eq!(read_model(&bench.path("out")), named(&tensors));
    assert!(!bench.path("out/pytorch_model.bin.index.json").exists());
}

#[test]
fn shards_are_cut_and_joined() {
    let bench = Bench::new();
    let tensors = model(Dtype::F32);
    let base = bench.base(&tensors, &json!({}));

    convert(&base, &bench.path("cut"), &["--max-shard-size", "400B"]).ok();
    convert(&bench.path("cut"), &bench.path("joined"), &["--max-shard-size", "1GB"]).ok();
    convert(&bench.path("cut"), &bench.path("one.safetensors"), &[]).ok();

    assert!(bench.path("cut/model-00001-of-00003.safetensors").exists());
    assert_eq!(read_model(&bench.path("cut")), named(&tensors));
    assert_eq!(read(&bench.path("joined/model.safetensors")), named(&tensors));
    assert!(!bench.path("joined/model.safetensors.index.json").exists());
    assert_eq!(read(&bench.path("one.safetensors")), named(&tensors));
    assert!(bench.path("one.safetensors.lorakit.json").exists());
}

#[test]
fn a_cast_rounds_once_and_the_config_follows() {
    let bench = Bench::new();
    let mut tensors = model(Dtype::F32);
    tensors.push(("model.rotary.inv_freq", Tensor::new(Dtype::F32, &[4], &[f32::INFINITY, 1.0, f32::NAN, 1e-45])));
    let base = bench.base(&tensors, &json!({"torch_dtype": "float32", "model_type": "llama"}));

    let report = convert(&base, &bench.path("out"), &["--dtype", "bf16", "-e", "norm", "--json"]).ok().json();

    let out = read(&bench.path("out/model.safetensors"));
    for (name, tensor) in &tensors {
        let is_norm = name.contains("norm");
        let values: Vec<f32> = tensor.values().iter().map(|value| *value as f32).collect();
        let wanted = if is_norm { tensor.clone() } else { Tensor::new(Dtype::BF16, &tensor.shape, &values) };
        if !name.contains("rotary") {
            assert_eq!(out[*name], wanted, "{name}");
        }
    }
    let odd = out["model.rotary.inv_freq"].values();
    assert!(odd[0] == f64::INFINITY && odd[1] == 1.0 && odd[2].is_nan() && odd[3] == 0.0, "{odd:?}");
    assert_eq!(read_json(&bench.path("out/config.json"))["torch_dtype"], "bfloat16");
    assert_eq!((report["cast"].as_u64(), report["copied"].as_u64()), (Some(4), Some(1)));
    let rounding = &report["rounding"];
    let relative = rounding["relative"].as_f64().unwrap();
    assert!(relative > 1e-4 && relative < 4e-3, "{rounding}");
    assert_eq!((rounding["vanished"].as_u64(), rounding["not_finite"].as_u64()), (Some(1), Some(2)));
    assert_eq!(report["dtypes"], json!({"BF16": 4, "F32": 1}));
}

#[test]
fn a_cast_that_leaves_wider_tensors_behind_narrow_ones_keeps_every_begin_aligned() {
    let bench = Bench::new();
    let ids = Tensor { dtype: Dtype::I64, shape: vec![1], data: 7_i64.to_le_bytes().to_vec() };
    let path = bench.path("base/model.safetensors");
    write(
        &path,
        &[("a.weight", Tensor::f32(&[3], &[1.0, 2.0, 3.0])), ("b.weight", Tensor::f32(&[1], &[4.0])), ("ids", ids)],
    );

    convert(&bench.path("base"), &bench.path("out"), &["--dtype", "bf16", "--exclude", "b"]).ok();

    let bytes = fs::read(bench.path("out/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    for (name, width) in [("ids", 8), ("b.weight", 4), ("a.weight", 2)] {
        assert_eq!(header[name]["data_offsets"][0].as_u64().unwrap() % width, 0, "{header}");
    }
    assert_eq!(read(&bench.path("out/model.safetensors"))["b.weight"].values(), [4.0]);
}

#[test]
fn a_value_beyond_the_new_dtype_is_refused_with_its_place() {
    let bench = Bench::new();
    let base = bench.base(&[("w", Tensor::f32(&[2, 2], &[1.0, 2.0, 70000.0, 3.0]))], &json!({}));
    let out = bench.path("out");

    convert(&base, &out, &["--dtype", "f16"])
        .refused(1, &["tensor `w`: the value at [1, 0] is 70000, F16 ends at 65504"]);

    assert_eq!(bench.listing(), ["base"]);
    convert(&base, &out, &["--dtype", "bf16"]).ok();
}

#[test]
fn shared_tensors_are_written_under_each_of_their_names() {
    let bench = Bench::new();
    let storage = Tensor::f32(&[12], &noise(5, 12, 1.0));
    let view = |name, offset, shape: [u32; 2], strides: [u32; 2]| View {
        name,
        storage: 0,
        offset,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let views = [
        view("wte.weight", 0, [4, 3], [3, 1]),
        view("lm_head.weight", 0, [4, 3], [3, 1]),
        view("turned", 0, [3, 4], [1, 3]),
        view("part", 3, [2, 3], [3, 1]),
    ];
    fs::write(bench.path("x.bin"), torch_of(std::slice::from_ref(&storage), &views)).unwrap();

    let outcome = convert(&bench.path("x.bin"), &bench.path("x.safetensors"), &[]).ok();

    let out = read(&bench.path("x.safetensors"));
    let values = storage.values();
    assert_eq!((out["wte.weight"].values(), &out["lm_head.weight"]), (values.clone(), &out["wte.weight"]));
    let turned: Vec<f64> = (0..12).map(|at| values[at % 4 * 3 + at / 4]).collect();
    assert_eq!((out["turned"].shape.as_slice(), out["turned"].values()), (&[3, 4][..], turned));
    assert_eq!(out["part"].values(), values[3..9]);
    assert!(outcome.stdout.contains("`wte.weight`, `lm_head.weight` share their values"), "{}", outcome.stdout);
}

#[test]
fn safetensors_under_another_ending_are_read_as_what_they_are() {
    let bench = Bench::new();
    let tensors = model(Dtype::F32);
    write(&bench.path("x.bin"), &tensors);
    convert(&bench.path("x.bin"), &bench.path("out"), &[]).ok();
    assert_eq!(read(&bench.path("out/x.safetensors")), named(&tensors));
}

#[test]
fn arrays_of_numpy_are_read_in_every_order() {
    let bench = Bench::new();
    let values = noise(6, 6, 1.0);
    let little: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let big: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    let by_columns: Vec<u8> = [0, 3, 1, 4, 2, 5].iter().flat_map(|at: &usize| values[*at].to_le_bytes()).collect();
    let halves: Vec<u8> = [1.0, -2.0].iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
    let entries = [
        ("plain.npy", npy("<f4", false, &[2, 3], &little)),
        ("big.npy", npy(">f4", false, &[2, 3], &big)),
        ("columns.npy", npy("<f4", true, &[2, 3], &by_columns)),
        ("scalar.npy", npy("<f4", false, &[], &little[..4])),
        ("brain.npy", npy("<V2", false, &[2], &halves)),
        ("flags.npy", npy("|b1", false, &[2], &[1, 0])),
    ];
    let entries: Vec<(String, Vec<u8>)> = entries.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    fs::write(bench.path("weights.npz"), zip(&entries)).unwrap();

    convert(&bench.path("weights.npz"), &bench.path("out.safetensors"), &[]).ok();

    let out = read(&bench.path("out.safetensors"));
    let wanted = Tensor::f32(&[2, 3], &values);
    assert!(["plain", "big", "columns"].iter().all(|name| out[*name] == wanted), "{out:?}");
    assert_eq!(out["scalar"], Tensor::f32(&[], &values[..1]));
    assert_eq!(out["brain"], Tensor::new(Dtype::BF16, &[2], &[1.0, -2.0]));
    assert_eq!((out["flags"].dtype, out["flags"].data.as_slice()), (Dtype::BOOL, &[1, 0][..]));
}

#[test]
fn arrays_that_are_no_tensors_are_refused_by_name() {
    let bench = Bench::new();
    for (descr, reason) in [
        ("|O", "Python objects are kept as a pickle"),
        ("|V2", "two bytes of anything"),
        ("<U3", "no tensor holds such elements"),
        ("=f4", "its byte order is not told"),
    ] {
        fs::write(bench.path("x.npz"), zip(&[("a.npy".to_owned(), npy(descr, false, &[1], &[0; 4]))])).unwrap();
        convert(&bench.path("x.npz"), &bench.path("out"), &[]).refused(1, &["x.npz", "array `a`", reason]);
    }
    let short = npy("<f4", false, &[3], &[0; 8]);
    fs::write(bench.path("x.npy"), short).unwrap();
    convert(&bench.path("x.npy"), &bench.path("out"), &[]).refused(1, &["array `x`", "takes 12 bytes, 8 follow"]);
}

#[test]
fn a_pytorch_base_and_a_pytorch_adapter_merge_like_safetensors() {
    let bench = Bench::new();
    let tensors = model(Dtype::F32);
    let base = bench.base(&tensors, &json!({}));
    write_torch(&bench.path("old/pytorch_model.bin"), &tensors);
    fs::write(bench.path("old/config.json"), "{}").unwrap();
    let name = "model.layers.0.self_attn.q_proj";
    let (down, up) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
    let pair = [
        (down.as_str(), Tensor::f32(&[2, 8], &noise(7, 16, 1.0))),
        (up.as_str(), Tensor::f32(&[8, 2], &noise(8, 16, 1.0))),
    ];
    let adapter = bench.adapter("adapter", json!({}), &pair);
    let old = bench.path("old-adapter");
    let prefixed: Vec<(String, Tensor)> =
        pair.iter().map(|(key, tensor)| (format!("base_model.model.{key}"), tensor.clone())).collect();
    let prefixed: Vec<(&str, Tensor)> = prefixed.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    write_torch(&old.join("adapter_model.bin"), &prefixed);
    fs::copy(adapter.join("adapter_config.json"), old.join("adapter_config.json")).unwrap();

    merge(&base, &adapter, &bench.path("wanted"), &[]).ok();
    let outcome = merge(&bench.path("old"), &old, &bench.path("out"), &[]).ok();

    assert_eq!(read(&bench.path("out/model.safetensors")), read(&bench.path("wanted/model.safetensors")));
    assert!(outcome.stdout.contains("`pytorch_model.bin` is read as pytorch"), "{}", outcome.stdout);
    assert!(!bench.path("out/pytorch_model.bin").exists());
}

#[test]
fn only_the_weights_of_a_training_checkpoint_are_taken_and_that_is_said() {
    let bench = Bench::new();
    let input = fixtures().join("pickle/good/zip-lightning.ckpt");

    let outcome = convert(&input, &bench.path("out.safetensors"), &[]).ok();

    let out = read(&bench.path("out.safetensors"));
    assert_eq!(out.keys().collect::<Vec<_>>(), ["a.w", "b.w"]);
    let note = "the weights are its `state_dict`; left aside: `optimizer_states`";
    assert!(outcome.stdout.contains(note), "{}", outcome.stdout);
}

#[test]
fn the_weights_among_other_values_are_found() {
    let bench = Bench::new();
    let storage = Tensor::f32(&[2], &[1.0, 2.0]);
    let plain = |name| Named::Tensor(name);
    for (file, wanted) in [
        (
            vec![
                Named::Dict("model", vec![plain("w")]),
                Named::Dict("optimizer", vec![plain("m")]),
                Named::Dict("swa", vec![plain("w")]),
            ],
            vec!["w"],
        ),
        (
            vec![Named::Dict("model", vec![plain("w")]), Named::Dict("other", vec![plain("w")])],
            vec!["model.w", "other.w"],
        ),
        (vec![Named::Dict("model", vec![plain("w")]), Named::Dict("ema", vec![plain("w")])], vec!["w"]),
        (vec![Named::Dict("state_dict", vec![]), Named::Dict("model", vec![plain("w")])], vec!["w"]),
        (vec![Named::Dict("state_dict", vec![]), Named::Dict("x", vec![plain("w")])], vec!["x.w"]),
        (vec![Named::Dict("model", vec![Named::Dict("state_dict", vec![plain("w")])]), plain("step")], vec!["w"]),
        (vec![plain("w"), Named::Dict("q", vec![Named::Dict("k", vec![plain("w")])])], vec!["q.k.w", "w"]),
    ] {
        let path = bench.path("x.pt");
        fs::write(&path, torch_tree(&storage, &file)).unwrap();
        convert(&path, &bench.path("out.safetensors"), &["--force"]).ok();
        let out = read(&bench.path("out.safetensors"));
        assert_eq!(out.keys().collect::<Vec<_>>(), wanted);
        assert!(out.values().all(|tensor| *tensor == storage));
    }
}

#[test]
fn metadata_travels_unless_it_is_stripped() {
    let bench = Bench::new();
    let base = bench.path("base.safetensors");
    let tensor = Tensor::f32(&[1], &[1.0]);
    let view = safetensors::tensor::TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap();
    let metadata = [("ss_dataset_dirs", "secret"), ("ss_base_model", "sdxl"), ("format", "pt")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    fs::write(&base, safetensors::serialize([("w", view)], Some(metadata.into())).unwrap()).unwrap();

    convert(&base, &bench.path("all.safetensors"), &[]).ok();
    convert(&base, &bench.path("some.safetensors"), &["--strip-metadata", "ss_dataset*"]).ok();

    let keys = |name: &str| {
        let bytes = fs::read(bench.path(name)).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let mut keys: Vec<String> = header.metadata().clone().unwrap().into_keys().collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("all.safetensors"), ["format", "lorakit", "ss_base_model", "ss_dataset_dirs"]);
    assert_eq!(keys("some.safetensors"), ["format", "lorakit", "ss_base_model"]);
}

#[test]
fn parts_make_the_same_files() {
    let bench = Bench::new();
    let base = bench.base(&model(Dtype::F32), &json!({}));
    let more = ["--max-shard-size", "400B", "--dtype", "bf16"];
    convert(&base, &bench.path("whole"), &more).ok();

    for part in ["1/2", "2/2"] {
        convert(&base, &bench.path("parts"), &[&more[..], &["--part", part]].concat()).ok();
    }
    lorakit(&[&"finish", &bench.path("parts")]).ok();

    assert_eq!(snapshot(&bench.path("parts")), snapshot(&bench.path("whole")));
}

#[test]
fn a_dry_run_writes_nothing() {
    let bench = Bench::new();
    let base = bench.base(&model(Dtype::F32), &json!({}));
    let report = convert(&base, &bench.path("out"), &["--dry-run", "--dtype", "bf16", "--json"]).ok().json();
    assert_eq!((report["dry_run"].as_bool(), report["cast"].as_u64()), (Some(true), Some(4)));
    assert_eq!(bench.listing(), ["base"]);
}

#[test]
fn what_cannot_be_converted_is_refused_with_its_reason() {
    let bench = Bench::new();
    let base = bench.base(&model(Dtype::F32), &json!({}));
    let out = bench.path("out");
    convert(&base, &out, &["--to", "kohya"]).refused(1, &["is a checkpoint", "dialect of adapters"]);
    convert(&base, &out, &["--to", "gguf"]).refused(1, &["GGUF"]);
    convert(&base, &out, &["--to", "x"]).refused(2, &["--to", "`x` is not one of"]);
    convert(&base, &base, &[]).refused(1, &["would take the place of the input"]);
    convert(&base, &out, &["--dtype", "bf16", "--rounding", "peft-safe"]).refused(2, &["--rounding"]);
    convert(&base, &bench.path("out.safetensors"), &["--part", "1/2"]).refused(2, &["--out", "one file"]);
    convert(&base, &out, &["--strip-metadata", "["]).refused(2, &["--strip-metadata"]);
    fs::create_dir(&out).unwrap();
    convert(&base, &out, &[]).refused(1, &["out"]);
}

/// The value of an F8_E4M3 code without sign, exponent 7 or above.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3), f64::from(code & 7));
    if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7) }
}

#[test]
fn fp8_weights_with_scales_are_dequantised_as_a_whole_or_copied() {
    let bench = Bench::new();
    let codes = Tensor { dtype: Dtype::F8_E4M3, shape: vec![2, 3], data: vec![1, 9, 56, 57, 90, 126] };
    let blocks =
        Tensor { dtype: Dtype::F8_E4M3, shape: vec![129, 2], data: (0..258).map(|at| (at % 120) as u8).collect() };
    let config = json!({"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"});
    let base = bench.base(
        &[
            ("a.weight", codes.clone()),
            ("a.weight_scale", Tensor::f32(&[2, 1], &[0.5, 0.3])),
            ("a.input_scale", Tensor::f32(&[], &[7.0])),
            ("b.weight", blocks.clone()),
            ("b.weight_scale_inv", Tensor::f32(&[2, 1], &[0.25, 3.0])),
            ("norm.weight", Tensor::new(Dtype::BF16, &[2], &[1.0, 2.0])),
        ],
        &config,
    );

    let outcome = convert(&base, &bench.path("out"), &["--dtype", "f32"]).ok();
    convert(&base, &bench.path("low"), &["--dtype", "bf16"]).ok();
    convert(&base, &bench.path("same"), &[]).ok();

    let out = read(&bench.path("out/model.safetensors"));
    assert_eq!(out.keys().collect::<Vec<_>>(), ["a.weight", "b.weight", "norm.weight"]);
    let product = |code: &u8, scale: f32| f64::from(e4m3(*code) as f32 * scale);
    let wanted: Vec<f64> = codes.data.iter().enumerate().map(|(at, code)| product(code, [0.5, 0.3][at / 3])).collect();
    assert_close(&out["a.weight"].values(), &wanted, 0.0);
    let wanted: Vec<f64> =
        blocks.data.iter().enumerate().map(|(at, code)| product(code, [0.25, 3.0][at / 256])).collect();
    assert_close(&out["b.weight"].values(), &wanted, 0.0);
    let low: Vec<f32> = out["a.weight"].values().iter().map(|value| *value as f32).collect();
    assert_eq!(read(&bench.path("low/model.safetensors"))["a.weight"], Tensor::new(Dtype::BF16, &[2, 3], &low));
    assert!(read_json(&bench.path("out/config.json")).get("quantization_config").is_none());
    for part in ["2 quantised weights (FP8) are written as plain numbers; 3 tensors", "quantization_config: removed"] {
        assert!(outcome.stdout.contains(part), "{}", outcome.stdout);
    }
    assert_eq!(snapshot(&bench.path("same")).len(), 3);
    assert_eq!(read(&bench.path("same/model.safetensors")), read(&base.join("model.safetensors")));
    assert_eq!(read_json(&bench.path("same/config.json")), config);
}

#[test]
fn half_of_the_fp8_weights_is_not_dequantised() {
    let bench = Bench::new();
    let codes = Tensor { dtype: Dtype::F8_E4M3, shape: vec![2, 2], data: vec![1, 2, 3, 4] };
    let scale = Tensor::f32(&[], &[0.5]);
    let both = [
        ("a.weight", codes.clone()),
        ("a.weight_scale", scale.clone()),
        ("b.weight", codes.clone()),
        ("b.weight_scale", scale.clone()),
    ];
    let base = bench.base(&both, &json!({}));
    let out = bench.path("out");
    convert(&base, &out, &["--dtype", "bf16", "-e", "^a"])
        .refused(1, &["`b.weight` would be dequantised and `a.weight` stay FP8"]);
    convert(&base, &out, &["--dtype", "f8_e5m2"])
        .refused(1, &["tensor `a.weight` is FP8 with scales, and cannot become F8_E5M2"]);

    let unknown = bench.path("unknown.safetensors");
    write(&unknown, &[("a.weight", codes.clone()), ("a.weight_scale_2", scale)]);
    convert(&unknown, &out, &["--dtype", "bf16"]).refused(1, &["how `a.weight_scale_2` scales it is not known"]);

    let alone = bench.path("alone.safetensors");
    write(&alone, &[("a.weight", codes)]);
    convert(&alone, &bench.path("wide.safetensors"), &["--dtype", "bf16"]).ok();
    let values = read(&bench.path("wide.safetensors"))["a.weight"].values();
    assert_close(&values, &[1, 2, 3, 4].map(e4m3), 0.0);
}

#[test]
fn no_option_is_left_aside_in_silence() {
    let bench = Bench::new();
    let base = bench.base(&model(Dtype::F32), &json!({"model_type": "llama"}));
    let out = bench.path("out");
    convert(&base, &out, &["--as", "lora"]).refused(2, &["--as", "is a checkpoint"]);
    convert(&base, &out, &["--dtype", "f16", "--include", "no_such"]).refused(2, &["`no_such` matches none of the 4"]);
    let report = convert(&base, &out, &["--arch", "llama", "--json"]).ok().json();
    assert!(report["notes"].to_string().contains("`--arch` was not used"), "{report}");
    let factors = [("base_model.model.q.lora_A.weight", [2, 4]), ("base_model.model.q.lora_B.weight", [4, 2])];
    let factors = factors.map(|(name, shape)| (name, Tensor::f32(&shape, &noise(5, 8, 1.0))));
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]});
    let adapter = bench.adapter("adapter", config, &factors);
    convert(&adapter, &bench.path("b"), &["--rounding", "stochastic"]).refused(2, &["--rounding", "to nearest"]);
}
