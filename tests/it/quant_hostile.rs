//! Quantised weights whose parts contradict each other, or mean nothing: refused by name, with nothing left behind.

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::support::{Bench, Tensor, lorakit, read};

fn raw(dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Tensor {
    Tensor { dtype, shape: shape.to_vec(), data }
}

fn zeros(dtype: Dtype, shape: &[usize]) -> Tensor {
    raw(dtype, shape, vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
}

fn i32s(shape: &[usize], values: &[i32]) -> Tensor {
    raw(Dtype::I32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn i64s(values: &[i64]) -> Tensor {
    raw(Dtype::I64, &[values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn ones(dtype: Dtype, shape: &[usize]) -> Tensor {
    Tensor::new(dtype, shape, &vec![1.0; shape.iter().product()])
}

/// The same tensors with one in place of its namesake, or left out.
fn with(tensors: &[(&'static str, Tensor)], name: &'static str, tensor: Option<Tensor>) -> Vec<(&'static str, Tensor)> {
    let mut changed: Vec<_> = tensors.iter().filter(|(other, _)| *other != name).cloned().collect();
    changed.extend(tensor.map(|tensor| (name, tensor)));
    changed
}

/// Converting a model of these tensors is refused with a message that holds all of `parts`.
#[track_caller]
fn refused(tensors: &[(&str, Tensor)], config: &Value, parts: &[&str]) {
    let bench = Bench::new();
    let base = bench.base(tensors, &json!({"model_type": "llama", "quantization_config": config}));
    let out = bench.path("out");
    lorakit(&[&"convert", &base, &"--dtype", &"f32", &"-o", &out]).refused(1, parts);
    assert_eq!(bench.listing(), ["base"], "something is left behind");
}

/// A weight of [32, 64] as GPTQ packs it, with two groups.
fn gptq() -> Vec<(&'static str, Tensor)> {
    vec![
        ("m.qweight", zeros(Dtype::I32, &[8, 32])),
        ("m.qzeros", i32s(&[2, 4], &[0x7777_7777; 8])),
        ("m.scales", ones(Dtype::F16, &[2, 32])),
        ("m.g_idx", i32s(&[64], &(0..64).map(|at| at / 32).collect::<Vec<_>>())),
    ]
}

#[test]
fn gptq_that_contradicts_itself_is_refused() {
    let config = json!({"quant_method": "gptq", "bits": 4, "sym": false});
    let change = |name, tensor| with(&gptq(), name, tensor);
    let index = |at: usize, run| {
        let mut runs: Vec<i32> = (0..64).map(|at| at / 32).collect();
        runs[at] = run;
        change("m.g_idx", Some(i32s(&[64], &runs)))
    };
    refused(&index(40, 99), &config, &["`m.g_idx`", "column 40 is in group 99, and there are 2"]);
    refused(&index(3, -1), &config, &["column 3 is in group -1"]);
    refused(&index(3, i32::MIN), &config, &["column 3 is in group"]);
    refused(&change("m.qzeros", None), &config, &["`m.qweight`", "`m.qzeros`", "is missing"]);
    refused(&change("m.qzeros", Some(zeros(Dtype::I32, &[1, 4]))), &config, &["`m.qzeros`", "does not fit"]);
    refused(&change("m.qzeros", Some(zeros(Dtype::I32, &[2, 9]))), &config, &["`m.qzeros`", "does not fit"]);
    refused(&change("m.qweight", Some(zeros(Dtype::I32, &[7, 32]))), &config, &["`m.qweight`", "[32, 64]", "4 bits"]);
    let nan = Tensor::new(Dtype::F16, &[2, 32], &vec![f32::NAN; 64]);
    refused(&change("m.scales", Some(nan)), &config, &["`m.scales`", "NaN"]);
    let infinite = Tensor::new(Dtype::F16, &[2, 32], &vec![f32::INFINITY; 64]);
    refused(&change("m.scales", Some(infinite)), &config, &["`m.scales`", "inf"]);
}

#[test]
fn gptq_without_a_config_is_refused_where_its_zeros_do_not_tell() {
    let zeros = |zero| with(&gptq(), "m.qzeros", Some(i32s(&[2, 4], &[zero; 8])));
    refused(&zeros(0x1234_5678), &json!({}), &["`m.qweight`", "stored less one", "quantize_config.json"]);
    for (zero, value) in [(0x7777_7777, -8.0), (0x8888_8888_u32.cast_signed(), -8.0)] {
        let bench = Bench::new();
        let base = bench.base(&zeros(zero), &json!({"model_type": "llama"}));
        let out = bench.path("out");
        lorakit(&[&"convert", &base, &"--dtype", &"f32", &"-o", &out]).ok();
        let values = read(&out.join("model.safetensors"))["m.weight"].values();
        assert!(values.iter().all(|found| *found == value), "zeros of {zero:x} give {}", values[0]);
    }
}

/// A weight of [4, 64] as compressed-tensors packs four bits.
fn packed() -> Vec<(&'static str, Tensor)> {
    vec![
        ("m.weight_packed", zeros(Dtype::I32, &[4, 8])),
        ("m.weight_scale", ones(Dtype::BF16, &[4, 2])),
        ("m.weight_shape", i64s(&[4, 64])),
    ]
}

#[test]
fn packed_numbers_that_contradict_themselves_are_refused() {
    let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "version": "0.20.1"});
    let change = |name, tensor| with(&packed(), name, Some(tensor));
    for shape in [[1 << 62, 1 << 62], [-4, 64], [5, 64], [4, 0], [4, 1 << 40], [i64::MIN, i64::MIN]] {
        refused(&change("m.weight_shape", i64s(&shape)), &config, &["m.weight_"]);
    }
    refused(&change("m.weight_shape", i64s(&[4])), &config, &["`m.weight_shape`", "does not fit"]);
    refused(&change("m.weight_shape", ones(Dtype::F32, &[2])), &config, &["`m.weight_shape`", "does not fit"]);
    refused(&with(&packed(), "m.weight_shape", None), &config, &["`m.weight_shape`", "is missing"]);
    refused(&with(&packed(), "m.weight_scale", None), &config, &["`m.weight_scale`", "is missing"]);
    refused(&change("m.weight_scale", ones(Dtype::BF16, &[3, 2])), &config, &["`m.weight_scale`", "does not fit"]);
    refused(&change("m.weight_scale", ones(Dtype::BF16, &[4, 5])), &config, &["`m.weight_scale`", "does not fit"]);
    refused(&change("m.weight_scale", zeros(Dtype::I32, &[4, 2])), &config, &["`m.weight_scale`", "I32"]);
    refused(&change("m.weight_zero_point", zeros(Dtype::I32, &[2, 2])), &config, &["`m.weight_zero_point`"]);
    refused(&change("m.weight_g_idx", zeros(Dtype::I32, &[63])), &config, &["`m.weight_g_idx`", "does not fit"]);
    // Eight bits and padded seven fill as many words.
    let wide = [
        ("m.weight_packed", zeros(Dtype::I32, &[4, 16])),
        ("m.weight_scale", ones(Dtype::BF16, &[4, 2])),
        ("m.weight_shape", i64s(&[4, 64])),
    ];
    refused(&wide, &config, &["64 codes in 16 words", "num_bits"]);
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    let config = json!({"quant_method": "modelopt"});
    let mut scales = vec![127; 8];
    scales[5] = 255;
    let mx = [("m.weight", zeros(Dtype::U8, &[4, 32])), ("m.weight_scale", raw(Dtype::U8, &[4, 2], scales))];
    refused(&mx, &config, &["`m.weight_scale`", "scale 5", "NaN"]);
    let nv = |shared| {
        [
            ("m.weight", raw(Dtype::U8, &[4, 32], vec![0x11; 128])),
            ("m.weight_scale", raw(Dtype::F8_E4M3, &[4, 4], vec![0x38; 16])),
            ("m.weight_scale_2", Tensor::f32(&[], &[shared])),
        ]
    };
    refused(&nv(f32::NAN), &config, &["`m.weight_scale_2`", "NaN"]);
    refused(&with(&nv(1.0), "m.weight_scale", Some(raw(Dtype::F8_E4M3, &[4, 4], vec![0x7F; 16]))), &config, &["NaN"]);
    refused(
        &with(&nv(1.0), "m.weight_scale", Some(raw(Dtype::F8_E4M3, &[4, 3], vec![0; 12]))),
        &config,
        &["does not fit"],
    );
    refused(&with(&nv(1.0), "m.weight_scale_2", Some(ones(Dtype::F32, &[3]))), &config, &["`m.weight_scale_2`"]);
    let divided = [
        ("m.weight_packed", raw(Dtype::U8, &[4, 32], vec![0x11; 128])),
        ("m.weight_scale", raw(Dtype::F8_E4M3, &[4, 4], vec![0x38; 16])),
        ("m.weight_global_scale", Tensor::f32(&[1], &[0.0])),
    ];
    refused(&divided, &json!({"quant_method": "compressed-tensors"}), &["`m.weight_packed`", "inf"]);
}

#[test]
fn affine_codes_need_a_config_where_shapes_fit_several() {
    let mlx = [
        ("m.weight", zeros(Dtype::U32, &[4, 16])),
        ("m.scales", ones(Dtype::F16, &[4, 2])),
        ("m.biases", ones(Dtype::F16, &[4, 2])),
    ];
    refused(&mlx, &json!({}), &["`m`", "affine", "256 bits to a scale", "config.json"]);
    let config = json!({"bits": 4, "group_size": 64});
    refused(&with(&mlx, "m.biases", None), &config, &["m.scales"]);
    refused(&with(&mlx, "m.biases", Some(ones(Dtype::F16, &[4, 1]))), &config, &["m.biases"]);
    refused(&with(&mlx, "m.scales", Some(zeros(Dtype::U8, &[4, 3]))), &json!({}), &["m.scales"]);
}

#[test]
fn formats_of_comfyui_that_are_not_read_are_named() {
    let mark = |text: &str| raw(Dtype::U8, &[text.len()], text.as_bytes().to_vec());
    let int8 = |text: &str| {
        [
            ("m.weight", zeros(Dtype::I8, &[4, 64])),
            ("m.weight_scale", ones(Dtype::F32, &[])),
            ("m.comfy_quant", mark(text)),
        ]
    };
    refused(&int8(r#"{"format": "svdquant_w4a4"}"#), &json!({}), &["`m.weight`", "`svdquant_w4a4`", "hint"]);
    refused(&int8(r#"{"format": "convrot_w4a4"}"#), &json!({}), &["`convrot_w4a4`"]);
    let turned = |size: &str| int8(&format!(r#"{{"format": "int8_tensorwise", "convrot": true{size}}}"#));
    refused(&turned(""), &json!({}), &["`m.weight`", "convrot"]);
    for size in [0_u64, 1, 8, 128, 1 << 40] {
        refused(&turned(&format!(r#", "convrot_groupsize": {size}"#)), &json!({}), &["convrot"]);
    }
    let tiles = [
        ("m.weight", zeros(Dtype::U8, &[16, 16])),
        ("m.weight_scale", zeros(Dtype::F8_E4M3, &[16, 2])),
        ("m.comfy_quant", mark(r#"{"format": "nvfp4"}"#)),
    ];
    refused(&tiles, &json!({}), &["`m.weight_scale`", "does not fit"]);
}

#[test]
fn what_stands_in_the_padding_of_codes_stays_with_the_old_format() {
    // Ten codes of three bits leave two bits of each word; a hand has set them.
    let config = json!({"quant_method": "compressed-tensors", "version": "0.17.0", "num_bits": 3});
    let bench = Bench::new();
    let tensors = [
        ("m.weight_packed", i32s(&[2, 4], &[-1; 8])),
        ("m.weight_scale", ones(Dtype::BF16, &[2, 1])),
        ("m.weight_shape", i64s(&[2, 40])),
    ];
    let base = bench.base(&tensors, &json!({"model_type": "llama", "quantization_config": config}));
    let down = Tensor::f32(&[2, 40], &[0.0; 80]);
    let up = Tensor::f32(&[2, 2], &[0.0; 4]);
    let lora =
        bench.adapter("lora", json!({"target_modules": ["m"]}), &[("m.lora_A.weight", down), ("m.lora_B.weight", up)]);
    let out = bench.path("out");
    lorakit(&[&"merge", &base, &lora, &"--keep-format", &"-o", &out]).ok();
    assert_eq!(read(&out.join("model.safetensors")), read(&base.join("model.safetensors")));
}
