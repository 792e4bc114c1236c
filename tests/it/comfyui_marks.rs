//! What says that weights are quantised goes with their scales, and a format that cannot be merged into is called by its name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use crate::support::{Bench, Tensor, Tensors, assert_close, lorakit, merge, noise, read, write};

const D: usize = 8;
const MODULES: [&str; 2] = ["blocks.0.self_attn.q", "blocks.0.ffn.0"];

fn bytes(dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Tensor {
    Tensor { dtype, shape: shape.to_vec(), data }
}

/// Codes of F8_E4M3 between ±1.875 and their values.
fn codes(seed: u64) -> (Tensor, Vec<f64>) {
    let codes: Vec<u8> = noise(seed, D * D, 0.999)
        .iter()
        .map(|value| (((value + 1.0) * 32.0) as u8) | if *value < 0.0 { 0x80 } else { 0 })
        .collect();
    let value = |code: &u8| {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let size = if exponent == 0 {
            fraction / 8.0 * 2f64.powi(-6)
        } else {
            (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7)
        };
        if code & 0x80 == 0 { size } else { -size }
    };
    let values = codes.iter().map(value).collect();
    (bytes(Dtype::F8_E4M3, &[D, D], codes), values)
}

const SCALE: f32 = 0.25;

fn save(path: &Path, tensors: &[(String, Tensor)], metadata: &[(&str, &str)]) {
    let views =
        tensors.iter().map(|(name, t)| (name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, text)| ((*key).into(), (*text).into())).collect();
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// A scaled file of ComfyUI in one of its forms, and the values of its weights by name.
fn scaled(bench: &Bench, form: &str, prefix: &str) -> (PathBuf, HashMap<String, Vec<f64>>) {
    let (mut tensors, mut values) = (Vec::new(), HashMap::new());
    for (at, module) in MODULES.iter().enumerate() {
        let (stored, own) = codes(at as u64 + 3);
        tensors.push((format!("{prefix}{module}.weight"), stored));
        values.insert(format!("{prefix}{module}.weight"), own.iter().map(|value| value * f64::from(SCALE)).collect());
        let scale = if form == "scaled_fp8" { "scale_weight" } else { "weight_scale" };
        tensors.push((format!("{prefix}{module}.{scale}"), Tensor::f32(&[1], &[SCALE])));
        if form == "scaled_fp8" {
            tensors.push((format!("{prefix}{module}.scale_input"), Tensor::f32(&[1], &[1.0])));
        }
        if form == "comfy_quant" {
            let said = br#"{"format": "float8_e4m3fn"}"#.to_vec();
            tensors.push((format!("{prefix}{module}.comfy_quant"), bytes(Dtype::U8, &[said.len()], said)));
        }
    }
    if form == "scaled_fp8" {
        tensors.push((format!("{prefix}scaled_fp8"), bytes(Dtype::F8_E4M3, &[2], vec![0, 0])));
    }
    tensors.push((format!("{prefix}blocks.0.norm3.weight"), Tensor::new(Dtype::F16, &[D], &noise(8, D, 1.0))));
    let layers: Vec<String> =
        MODULES.iter().map(|module| format!(r#""{module}":{{"format":"float8_e4m3fn"}}"#)).collect();
    let header = format!(r#"{{"format_version":"1.0","layers":{{{}}}}}"#, layers.join(","));
    let said = [("_quantization_metadata", header.as_str())];
    let path = bench.path(&format!("{form}.safetensors"));
    save(&path, &tensors, if form == "header" { &said } else { &[] });
    (path, values)
}

fn header(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    String::from_utf8(bytes[8..8 + usize::try_from(length).unwrap()].to_vec()).unwrap()
}

fn is_mark(name: &str) -> bool {
    ["scaled_fp8", "scale_weight", "scale_input", "weight_scale", "comfy_quant"].iter().any(|end| name.ends_with(end))
}

#[test]
fn marks_go_with_the_scales_under_any_prefix() {
    for prefix in ["", "model.diffusion_model.", "net."] {
        for form in ["scaled_fp8", "comfy_quant", "header"] {
            let bench = Bench::new();
            let (path, values) = scaled(&bench, form, prefix);
            let out = bench.path("out.safetensors");
            lorakit(&[&"convert", &path, &"--dtype", &"f32", &"-o", &out]).ok();
            let found = read(&out);
            assert!(found.keys().all(|name| !is_mark(name)), "{form} {prefix}: {:?}", found.keys());
            assert!(!header(&out).contains("_quantization_metadata"), "{form} {prefix}");
            for (name, values) in &values {
                assert_close(&found[name].values(), values, 1e-7);
            }
        }
    }
}

#[test]
fn weights_that_say_for_themselves_how_they_are_stored_go_one_by_one() {
    for form in ["comfy_quant", "header"] {
        let bench = Bench::new();
        let (path, values) = scaled(&bench, form, "");
        let out = bench.path("out.safetensors");
        lorakit(&[&"convert", &path, &"--dtype", &"f32", &"--include", &"ffn", &"-o", &out]).ok();
        let (before, found) = (read(&path), read(&out));
        assert_close(&found["blocks.0.ffn.0.weight"].values(), &values["blocks.0.ffn.0.weight"], 1e-7);
        assert!(found.keys().all(|name| !(is_mark(name) && name.contains("ffn"))), "{:?}", found.keys());
        let kept = |tensors: &Tensors| {
            tensors
                .iter()
                .filter(|(name, _)| name.contains("self_attn"))
                .map(|(name, tensor)| (name.clone(), tensor.clone()))
                .collect::<Tensors>()
        };
        assert_eq!(kept(&found), kept(&before));
        if form == "header" {
            let header = header(&out);
            assert!(header.contains("blocks.0.self_attn.q\\\"") && !header.contains("blocks.0.ffn.0\\\""), "{header}");
        }
    }
    let bench = Bench::new();
    let (path, _) = scaled(&bench, "scaled_fp8", "");
    lorakit(&[&"convert", &path, &"--dtype", &"f32", &"--include", &"ffn", &"-o", &bench.path("x.safetensors")])
        .refused(1, &["would be dequantised", "stay FP8"]);
}

#[test]
fn a_merge_keeps_scales_and_marks_together() {
    let bench = Bench::new();
    let prefix = "model.diffusion_model.";
    for form in ["scaled_fp8", "comfy_quant", "header"] {
        let (path, values) = scaled(&bench, form, prefix);
        let adapter = bench.path("lora.safetensors");
        let (down, up) = (Tensor::f32(&[1, D], &noise(5, D, 0.1)), Tensor::f32(&[D, 1], &noise(6, D, 0.1)));
        write(
            &adapter,
            &[
                ("lora_unet_blocks_0_ffn_0.lora_down.weight", down.clone()),
                ("lora_unet_blocks_0_ffn_0.lora_up.weight", up.clone()),
            ],
        );
        let out = bench.path(&format!("{form}-out.safetensors"));
        merge(&path, &adapter, &out, &["--keep-format"]).ok();
        let (before, found) = (read(&path), read(&out));
        assert_eq!(found.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        let own = format!("{prefix}blocks.0.ffn.0.weight");
        let (down, up) = (down.values(), up.values());
        let scale = found
            [&own.replace(".weight", if form == "scaled_fp8" { ".scale_weight" } else { ".weight_scale" })]
            .values()[0];
        for (at, code) in found[&own].data.iter().enumerate() {
            let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let size = if exponent == 0 {
                fraction / 8.0 * 2f64.powi(-6)
            } else {
                (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7)
            };
            let value = if code & 0x80 == 0 { size } else { -size } * scale;
            let wanted = values[&own][at] + up[at / D] * down[at % D];
            // Half a step of three bits of fraction.
            assert!((value - wanted).abs() <= wanted.abs() / 16.0 + scale * 2f64.powi(-10), "{value} for {wanted}");
        }
    }
}

#[test]
fn a_format_that_no_delta_can_be_added_to_is_called_by_its_name() {
    let bench = Bench::new();
    let module = "blocks.0.self_attn.q";
    let said = |format: &str| {
        let said = format!(r#"{{"format": "{format}"}}"#).into_bytes();
        (format!("{module}.comfy_quant"), bytes(Dtype::U8, &[said.len()], said))
    };
    let codes = |dtype, ending: &str, shape: &[usize]| {
        (format!("{module}{ending}"), bytes(dtype, shape, vec![1; shape.iter().product()]))
    };
    let scale = |ending: &str, shape: &[usize]| {
        (format!("{module}{ending}"), Tensor::f32(shape, &vec![0.5; shape.iter().product()]))
    };
    let adapter = bench.path("lora.safetensors");
    let pair = |role: &str| format!("diffusion_model.{module}.{role}.weight");
    let (down, up) = (Tensor::f32(&[1, D], &noise(5, D, 0.1)), Tensor::f32(&[D, 1], &noise(6, D, 0.1)));
    write(&adapter, &[(&pair("lora_A"), down), (&pair("lora_B"), up)]);
    for (name, tensors, part) in [
        (
            "svdquant",
            vec![codes(Dtype::I8, ".weight", &[D, D]), scale(".weight_scale", &[D, 1]), said("svdquant_w4a4")],
            "svdquant_w4a4",
        ),
        (
            "quanto",
            vec![codes(Dtype::I8, ".weight._data", &[D, D]), scale(".weight._scale", &[D, 1])],
            "quantised by quanto",
        ),
        (
            "plain",
            vec![codes(Dtype::I8, ".weight", &[D, D]), scale(".scale", &[D, 1])],
            "`blocks.0.self_attn.q.scale` scales",
        ),
    ] {
        let base = bench.path(&format!("{name}.safetensors"));
        let norm = ("blocks.0.norm3.weight".to_owned(), Tensor::f32(&[D], &noise(8, D, 1.0)));
        save(&base, &tensors.into_iter().chain([norm]).collect::<Vec<_>>(), &[]);
        let out = bench.path("out.safetensors");
        merge(&base, &adapter, &out, &[]).refused(1, &[part, "hint: "]);
        assert!(!out.exists());
    }
}
