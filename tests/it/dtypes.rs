//! Every floating point type, as base and as adapter, and FP8 with scales.

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::{Bench, Tensor, assert_close, dense, merge, noise, read, read_json};

const KEY: &str = "a.q_proj.weight";

fn adapter(bench: &Bench, rows: usize, cols: usize, dtype: Dtype, size: f32) -> std::path::PathBuf {
    bench.adapter(
        "adapter",
        json!({}),
        &[
            ("a.q_proj.lora_A.weight", Tensor::new(dtype, &[2, cols], &noise(2, 2 * cols, size))),
            ("a.q_proj.lora_B.weight", Tensor::new(dtype, &[rows, 2], &noise(3, 2 * rows, size))),
        ],
    )
}

fn wanted(base: &[f64], adapter: &std::path::Path) -> Vec<f64> {
    let factors = read(&adapter.join("adapter_model.safetensors"));
    let factor = |name: &str| factors[&format!("base_model.model.a.q_proj.lora_{name}.weight")].values();
    dense(base, &factor("B"), &factor("A"), 2, 2.0)
}

#[test]
fn every_pair_of_float_types_merges() {
    let (rows, cols) = (5, 7);
    for (base_type, step) in [(Dtype::F64, 1e-7), (Dtype::F32, 1e-6), (Dtype::F16, 1e-3), (Dtype::BF16, 8e-3)] {
        for adapter_type in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            let bench = Bench::new();
            let weight = Tensor::new(base_type, &[rows, cols], &noise(1, rows * cols, 1.0));
            let base = bench.base(&[(KEY, weight.clone())], &json!({}));
            let adapter = adapter(&bench, rows, cols, adapter_type, 1.0);
            merge(&base, &adapter, &bench.path("out"), &[]).ok();
            let got = &read(&bench.path("out/model.safetensors"))[KEY];
            assert_eq!(got.dtype, base_type);
            assert_close(&got.values(), &wanted(&weight.values(), &adapter), step);
        }
    }
}

#[test]
fn an_f64_base_keeps_its_precision() {
    let bench = Bench::new();
    let mut weight = Tensor::new(Dtype::F64, &[2, 3], &[0.0; 6]);
    weight.data =
        [1.0_f64 + 1e-12, -2.0 - 1e-13, 3.5, 1.0 / 3.0, 1e-300, 7.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let base = bench.base(&[(KEY, weight.clone())], &json!({}));
    let adapter = adapter(&bench, 2, 3, Dtype::F32, 1e-3);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let got = read(&bench.path("out/model.safetensors"))[KEY].values();
    let wanted = wanted(&weight.values(), &adapter);
    let worst = got.iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-12, "{worst:e}: ΔW is of size 1e-6, so f32 would be off by 1e-7");
}

#[test]
fn what_does_not_fit_the_dtype_is_refused() {
    let bench = Bench::new();
    let base = bench.base(&[(KEY, Tensor::new(Dtype::F16, &[2, 3], &[65504.0; 6]))], &json!({}));
    let adapter = bench.adapter(
        "adapter",
        json!({"r": 1, "lora_alpha": 1}),
        &[
            ("a.q_proj.lora_A.weight", Tensor::f32(&[1, 3], &[0.0, 0.0, 100.0])),
            ("a.q_proj.lora_B.weight", Tensor::f32(&[2, 1], &[0.0, 10.0])),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &[KEY, "[1, 2]", "66504", "65504"]);
    merge(&base, &adapter, &bench.path("out"), &["--dtype", "bf16"]).ok();
}

#[test]
fn cast_all_casts_the_rest_and_corrects_the_config() {
    let bench = Bench::new();
    let ids = Tensor { dtype: Dtype::I64, shape: vec![2], data: vec![1; 16] };
    let base = bench.base(
        &[
            (KEY, Tensor::new(Dtype::BF16, &[4, 4], &noise(1, 16, 1.0))),
            ("norm.weight", Tensor::new(Dtype::BF16, &[4], &[1.5; 4])),
            ("ids", ids),
        ],
        &json!({"torch_dtype": "bfloat16"}),
    );
    let adapter = adapter(&bench, 4, 4, Dtype::F32, 1.0);
    merge(&base, &adapter, &bench.path("out"), &["--dtype", "f32", "--cast-all"]).ok();
    let got = read(&bench.path("out/model.safetensors"));
    assert_eq!((got["norm.weight"].dtype, got["norm.weight"].values()), (Dtype::F32, vec![1.5; 4]));
    assert_eq!(got["ids"].dtype, Dtype::I64);
    assert_eq!(read_json(&bench.path("out/config.json"))["torch_dtype"], "float32");
}

/// e4m3 as torch reads it: sign, four bits of exponent (bias 7), three of mantissa.
fn e4m3(code: u8) -> f64 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    sign * if exponent == 0 { mantissa * 2.0_f64.powi(-9) } else { (1.0 + mantissa / 8.0) * 2.0_f64.powi(exponent - 7) }
}

fn codes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 37 % 0x70) as u8 | if at % 3 == 0 { 0x80 } else { 0 }).collect()
}

struct Scaled {
    scale_name: &'static str,
    scale: Tensor,
    /// Index of the scale that serves an element.
    cell: fn(usize, usize) -> usize,
    rows: usize,
    cols: usize,
}

fn check_scaled(case: &Scaled, size: f32) {
    let bench = Bench::new();
    let (rows, cols) = (case.rows, case.cols);
    let weight = Tensor { dtype: Dtype::F8_E4M3, shape: vec![rows, cols], data: codes(rows * cols) };
    let base = bench.base(&[(KEY, weight.clone()), (case.scale_name, case.scale.clone())], &json!({}));
    let adapter = adapter(&bench, rows, cols, Dtype::F32, size);
    merge(&base, &adapter, &bench.path("out"), &["--keep-format"]).ok();
    let got = read(&bench.path("out/model.safetensors"));
    assert_eq!(got[KEY].dtype, Dtype::F8_E4M3);
    assert!(got[case.scale_name] == case.scale, "{}", case.scale_name);
    let value = |codes: &[u8], scales: &[f64]| -> Vec<f64> {
        codes.iter().enumerate().map(|(at, code)| e4m3(*code) * scales[(case.cell)(at / cols, at % cols)]).collect()
    };
    let before = value(&weight.data, &case.scale.values());
    let scales = got[case.scale_name].values();
    let after = value(&got[KEY].data, &scales);
    for (at, (got, wanted)) in after.iter().zip(wanted(&before, &adapter)).enumerate() {
        let scale = scales[(case.cell)(at / cols, at % cols)];
        // Half a step of e4m3 is 1/16 of the value, 2⁻¹⁰ of the scale at the least; beyond 448 times the scale there is nothing.
        let wanted = wanted.clamp(-448.0 * scale, 448.0 * scale);
        // The sum is formed in f32.
        let allowed = (wanted.abs() / 16.0).max(scale * 2.0_f64.powi(-10)) * 1.01 + 3e-5;
        assert!((got - wanted).abs() <= allowed, "{} [{at}]: {got} instead of {wanted}", case.scale_name);
    }
}

#[test]
fn scaled_fp8_keeps_its_format_and_scales_where_that_is_asked_for() {
    let tensor = Scaled {
        scale_name: "a.q_proj.weight_scale",
        scale: Tensor::f32(&[], &[0.01]),
        cell: |_, _| 0,
        rows: 6,
        cols: 10,
    };
    let comfy = Scaled {
        scale_name: "a.q_proj.scale_weight",
        scale: Tensor::f32(&[1], &[0.02]),
        cell: |_, _| 0,
        rows: 6,
        cols: 10,
    };
    let per_row = Scaled {
        scale_name: "a.q_proj.weight_scale",
        scale: Tensor::new(Dtype::BF16, &[6, 1], &[0.01, 0.02, 0.04, 0.01, 0.5, 0.03]),
        cell: |row, _| row,
        rows: 6,
        cols: 10,
    };
    let blocks = Scaled {
        scale_name: "a.q_proj.weight_scale_inv",
        scale: Tensor::f32(&[2, 3], &[0.01, 0.02, 0.03, 0.04, 0.05, 0.06]),
        cell: |row, col| row / 128 * 3 + col / 128,
        rows: 200,
        cols: 300,
    };
    for case in [tensor, comfy, per_row, blocks] {
        check_scaled(&case, 0.05);
        check_scaled(&case, 60.0);
    }
}

#[test]
fn plain_fp8_is_merged_as_it_is() {
    let bench = Bench::new();
    let weight = Tensor { dtype: Dtype::F8_E4M3, shape: vec![4, 6], data: codes(24) };
    let base = bench.base(&[(KEY, weight.clone())], &json!({}));
    let adapter = adapter(&bench, 4, 6, Dtype::F32, 0.1);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let got = read(&bench.path("out/model.safetensors"))[KEY].clone();
    let before: Vec<f64> = weight.data.iter().map(|code| e4m3(*code)).collect();
    for (code, wanted) in got.data.iter().zip(wanted(&before, &adapter)) {
        assert!((e4m3(*code) - wanted).abs() <= (wanted.abs() / 16.0).max(2.0_f64.powi(-10)) * 1.01);
    }
}

#[test]
fn a_merge_onto_scaled_fp8_is_plain() {
    let bench = Bench::new();
    let weight = Tensor { dtype: Dtype::F8_E4M3, shape: vec![4, 4], data: codes(16) };
    let config = json!({"dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}});
    let other = Tensor { dtype: Dtype::F8_E4M3, shape: vec![1, 2], data: vec![0x38, 0x40] };
    let base = bench.base(
        &[
            (KEY, weight.clone()),
            ("a.q_proj.weight_scale", Tensor::f32(&[], &[0.3])),
            ("b.weight", other),
            ("b.weight_scale", Tensor::f32(&[], &[0.5])),
            ("b.input_scale", Tensor::f32(&[], &[1.0])),
        ],
        &config,
    );
    let adapter = adapter(&bench, 4, 4, Dtype::F32, 0.1);
    for (name, more, dtype) in [("own", &[][..], Dtype::BF16), ("f32", &["--dtype", "f32"], Dtype::F32)] {
        let report = merge(&base, &adapter, &bench.path(name), more).ok();
        assert!(report.stdout.contains("BASE is quantised (FP8): the result is plain"), "{}", report.stdout);
        let got = read(&bench.path(name).join("model.safetensors"));
        assert_eq!(got.keys().collect::<Vec<_>>(), [KEY, "b.weight"]);
        // What the model computes with, rounded to its dtype, and the change on top.
        let exact: Vec<f32> = weight.data.iter().map(|code| (e4m3(*code) * 0.3_f64) as f32).collect();
        let before = Tensor::new(dtype, &[4, 4], &exact).values();
        let step = if dtype == Dtype::BF16 { 2.0_f64.powi(-8) } else { 1e-6 };
        for (got, wanted) in got[KEY].values().iter().zip(wanted(&before, &adapter)) {
            assert!((got - wanted).abs() <= wanted.abs() * step + 1e-6, "{got} {wanted}");
        }
        assert_eq!(got["b.weight"], Tensor::new(dtype, &[1, 2], &[0.5, 1.0]));
        let config = read_json(&bench.path(name).join("config.json"));
        assert!(config.get("quantization_config").is_none(), "{config}");
    }
    merge(&base, &adapter, &bench.path("out"), &["--keep-format", "--dtype", "bf16"])
        .refused(2, &["--keep-format", "--dtype"]);
}

#[test]
fn a_dtype_nobody_knows_passes_through() {
    let bench = Bench::new();
    let base = bench.base(&[(KEY, Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))], &json!({}));
    let path = base.join("model.safetensors");
    let header = r#"{"odd":{"dtype":"Q3_WEIRD","shape":[5],"data_offsets":[0,7]},"a.q_proj.weight":{"dtype":"F32","shape":[4,4],"data_offsets":[7,71]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..7).chain(std::iter::repeat_n(0, 64)));
    std::fs::write(&path, &bytes).unwrap();
    let adapter = adapter(&bench, 4, 4, Dtype::F32, 1.0);
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let written = std::fs::read(bench.path("out/model.safetensors")).unwrap();
    let length = u64::from_le_bytes(written[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&written[8..8 + length]).unwrap();
    assert_eq!(header["odd"]["dtype"], "Q3_WEIRD");
    assert_eq!(&written[8 + length..8 + length + 7], [0, 1, 2, 3, 4, 5, 6]);
}
