//! Quantised weights that contradict themselves are refused, with the tensor's name, and leave nothing behind.

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::{Bench, Tensor, lorakit, write};

fn bytes(dtype: Dtype, shape: &[usize], byte: u8) -> Tensor {
    let count: usize = shape.iter().product();
    let width = match dtype {
        Dtype::F32 | Dtype::I32 => 4,
        Dtype::BF16 | Dtype::F16 => 2,
        _ => 1,
    };
    Tensor { dtype, shape: shape.to_vec(), data: vec![byte; count * width] }
}

fn text(text: &str) -> Tensor {
    Tensor { dtype: Dtype::U8, shape: vec![text.len()], data: text.as_bytes().to_vec() }
}

fn refused(tensors: &[(&str, Tensor)], parts: &[&str]) {
    let bench = Bench::new();
    let path = bench.path("model.safetensors");
    write(&path, tensors);
    let out = bench.path("out.safetensors");
    lorakit(&[&"convert", &path, &"--dtype", &"bf16", &"-o", &out]).refused(1, parts);
    assert_eq!(bench.listing(), ["model.safetensors"]);
    lorakit(&[&"inspect", &path]).ok();
}

/// A weight of bitsandbytes with this state, and these lengths of its scales.
fn bnb(state: &str, absmax: Tensor, more: &[(&'static str, Tensor)]) -> Vec<(&'static str, Tensor)> {
    let mut tensors = vec![
        ("m.weight", bytes(Dtype::U8, &[64, 1], 0x77)),
        ("m.weight.absmax", absmax),
        ("m.weight.quant_map", Tensor::f32(&[16], &[0.5; 16])),
        ("m.weight.quant_state.bitsandbytes__nf4", text(state)),
    ];
    tensors.extend(more.iter().cloned());
    tensors
}

#[test]
fn states_of_bitsandbytes_are_checked() {
    let two = || Tensor::f32(&[2], &[1.0, 1.0]);
    let state = |block: &str, shape: &str, more: &str| {
        format!(r#"{{"quant_type":"nf4","blocksize":{block},"dtype":"bfloat16","shape":{shape}{more}}}"#)
    };
    let long = format!("{}{}", state("64", "[8,16]", ""), " ".repeat(5000));
    let name = "m.weight.quant_state.bitsandbytes__nf4";
    for (state, absmax, parts) in [
        (state("0", "[8,16]", ""), two(), &[name, "`blocksize` is `0`"][..]),
        (state("-64", "[8,16]", ""), two(), &[name, "`blocksize`"]),
        (state("64", "[8,17]", ""), two(), &[name, "[8, 17]", "64 bytes"]),
        (state("64", "[4294967296,4294967296,4]", ""), two(), &[name, "64 bytes"]),
        (state("64", "[]", ""), two(), &[name, "`shape` is"]),
        (state("64", "[8,16]", ""), Tensor::f32(&[3], &[1.0; 3]), &["m.weight.absmax", "F32 [2] belongs there"]),
        (state("64", "[8,16]", ""), Tensor::f32(&[2], &[f32::NAN; 2]), &["m.weight.absmax", "NaN"]),
        (
            state("64", "[8,16]", r#","nested_offset":0.1,"nested_blocksize":256"#),
            two(),
            &["m.weight.absmax", "U8 [2] belongs there"],
        ),
        (long, two(), &[name, "5"]),
        ("[".repeat(900), two(), &[name]),
        (r#"{"quant_type":"x"}"#.into(), two(), &[name]),
    ] {
        refused(&bnb(&state, absmax, &[]), parts);
    }
    let nested = state("64", "[8,16]", r#","nested_offset":0.1,"nested_blocksize":256,"nested_dtype":"float32""#);
    let more = [
        ("m.weight.nested_absmax", Tensor::f32(&[9], &[1.0; 9])),
        ("m.weight.nested_quant_map", Tensor::f32(&[256], &[0.5; 256])),
    ];
    refused(&bnb(&nested, bytes(Dtype::U8, &[2], 3), &more), &["nested_absmax", "[9]", "F32 [1] belongs there"]);
}

#[test]
fn scales_are_checked() {
    let codes = || ("m.weight", bytes(Dtype::F8_E4M3, &[256, 256], 0x38));
    for (scale, parts) in [
        (Tensor::f32(&[1, 2], &[1.0; 2]), &["m.weight_scale_inv", "[1, 2]", "[256, 256]"][..]),
        (Tensor::f32(&[2, 2], &[1.0, f32::NAN, 1.0, 1.0]), &["m.weight_scale_inv", "scale 1 is NaN"]),
        (Tensor::f32(&[2, 2], &[1.0, 1.0, 0.0, 1.0]), &["m.weight_scale_inv", "scale 2 is 0"]),
        (bytes(Dtype::F8_E8M0, &[2, 2], 255), &["m.weight_scale_inv", "NaN"]),
        (bytes(Dtype::I32, &[2, 2], 1), &["m.weight_scale_inv", "I32"]),
    ] {
        refused(&[codes(), ("m.weight_scale_inv", scale)], parts);
    }
    let stack = "model.layers.0.mlp.experts.down_proj";
    let codes = |shape: &[usize]| bytes(Dtype::U8, shape, 0x21);
    let names = [format!("{stack}_blocks"), format!("{stack}_scales")];
    for (blocks, scales, parts) in [
        (codes(&[2, 4, 1, 16]), codes(&[2, 4, 2]), &["down_proj_scales", "[2, 4, 2]", "[2, 4, 1]"][..]),
        (codes(&[2, 4, 1, 15]), codes(&[2, 4, 1]), &["down_proj_blocks", "groups of 16 bytes"]),
        (codes(&[2, 4, 1, 16]), bytes(Dtype::U8, &[2, 4, 1], 255), &["down_proj_scales", "255"]),
    ] {
        refused(&[(&names[0], blocks), (&names[1], scales)], parts);
    }
    refused(
        &[("m.weight", bytes(Dtype::I8, &[4, 8], 3)), ("m.SCB", Tensor::f32(&[3], &[1.0; 3]))],
        &["m.SCB", "F32 [4] belongs there"],
    );
}

#[test]
fn one_weight_is_stored_once() {
    refused(
        &[
            ("m.weight", Tensor::f32(&[4, 32], &[1.0; 128])),
            ("m.weight_packed", bytes(Dtype::U8, &[4, 16], 0x21)),
            ("m.weight_scale", bytes(Dtype::U8, &[4, 1], 127)),
        ],
        &["m.weight", "there as well"],
    );
}

#[test]
fn methods_that_are_not_read_are_called_by_their_names() {
    let bench = Bench::new();
    for (end, who) in [
        (".W_q", "HQQ"),
        (".weight._data", "quanto"),
        ("._weight_qdata", "torchao"),
        (".codebooks", "AQLM"),
        (".trellis", "EXL3"),
        (".Qidxs", "QuIP#"),
    ] {
        let name = format!("layers.0.q_proj{end}");
        let base = bench.base(&[(&name, bytes(Dtype::U8, &[8, 8], 1))], &json!({"model_type": "llama"}));
        let out = bench.path("out");
        lorakit(&[&"convert", &base, &"--dtype", &"bf16", &"-o", &out]).refused(1, &[who, "hint: "]);
        let told = lorakit(&[&"inspect", &base]).ok().stdout;
        assert!(told.contains(who), "{told}");
    }
    // By the config alone.
    let codes = [("layers.0.q_proj.weight", bytes(Dtype::I8, &[8, 8], 1))];
    for (method, who) in [("eetq", "EETQ"), ("bitnet", "BitNet"), ("quark", "Quark"), ("sinq", "SINQ")] {
        let base = bench.base(&codes, &json!({"quantization_config": {"quant_method": method}}));
        lorakit(&[&"convert", &base, &"--dtype", &"bf16", &"-o", &bench.path("out")]).refused(1, &[who, "hint: "]);
    }
    // A plain tensor may be called like the parts of some method.
    let plain =
        [("ssm.B", Tensor::f32(&[4, 4], &[1.0; 16])), ("vq.centroids.weight", Tensor::f32(&[4, 4], &[1.0; 16]))];
    let base = bench.base(&plain, &json!({}));
    lorakit(&[&"convert", &base, &"--dtype", &"bf16", &"-o", &bench.path("plain")]).ok();
}
