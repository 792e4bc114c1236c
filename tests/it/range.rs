//! Numbers that leave the range of their dtype are errors, in every verb; what vanishes is told.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::*;

const NAME: &str = "layers.0.q_proj";

/// An adapter of rank 1 whose factors are filled with two numbers.
fn filled(bench: &Bench, name: &str, down: f32, up: f32) -> PathBuf {
    bench.adapter(
        name,
        json!({"r": 1, "lora_alpha": 1}),
        &[
            (&format!("{NAME}.lora_A.weight"), Tensor::f32(&[1, 4], &[down, -down, down / 2.0, down])),
            (&format!("{NAME}.lora_B.weight"), Tensor::f32(&[4, 1], &[up, up / 4.0, -up, up])),
        ],
    )
}

fn run(verb: &str, inputs: &[&Path], out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&verb];
    words.extend(inputs.iter().map(|path| path as &dyn AsRef<std::ffi::OsStr>));
    words.push(&"-o");
    words.push(&out);
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

/// A copy of an adapter's weights with `value` in the first place of the factor `key`.
fn with_value(from: &Path, to: &Path, key: &str, value: f32) {
    let mut tensors = read(from);
    let (_, tensor) = tensors.iter_mut().find(|(name, _)| name.contains(key)).unwrap();
    tensor.data[..4].copy_from_slice(&value.to_le_bytes());
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(to, &named);
}

#[track_caller]
fn nothing_at(out: &Path) {
    assert!(fs::symlink_metadata(out).is_err(), "{} is there", out.display());
}

#[test]
fn no_dialect_takes_a_factor_that_its_dtype_cannot_hold() {
    let bench = Bench::new();
    let file = bench.path("big.safetensors");
    with_value(
        &fixtures().join("dialects/kohya-lora-r4.safetensors"),
        &file,
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up",
        70000.0,
    );
    let parts = [
        "lora_up.weight`: element 0 is 70000, beyond the range of F16, which ends at 65504",
        "`--dtype f32` has the range",
    ];
    for to in ["kohya", "comfyui", "diffusers", "safetensors"] {
        let out = bench.path(&format!("{to}.safetensors"));
        run("convert", &[&file], &out, &["--to", to, "--dtype", "f16"]).refused(1, &parts);
        nothing_at(&out);
        run("convert", &[&file], &out, &["--to", to, "--dtype", "f32"]).ok();
    }
    let out = bench.path("peft");
    run("convert", &[&file], &out, &["--to", "peft", "--include", "^unet", "--dtype", "f16"]).refused(1, &parts);
    nothing_at(&out);
}

#[test]
fn no_dialect_of_language_models_takes_one_either() {
    let bench = Bench::new();
    let (from, adapter) = (fixtures().join("peft/lora-r8/adapter"), bench.path("adapter"));
    fs::create_dir(&adapter).unwrap();
    fs::copy(from.join("adapter_config.json"), adapter.join("adapter_config.json")).unwrap();
    with_value(&from.join("adapter_model.safetensors"), &adapter.join("adapter_model.safetensors"), "lora_B", 1e6);
    let base = fixtures().join("peft/bases/llama-bf16");
    for (to, out) in [("peft", "p"), ("mlx", "m"), ("gguf", "g.gguf")] {
        let mut words = vec!["--to", to, "--dtype", "f16"];
        let base = base.to_str().unwrap();
        words.extend(["--base", base].into_iter().filter(|_| to == "gguf"));
        run("convert", &[&adapter], &bench.path(out), &words)
            .refused(1, &["lora_B.weight`: element", "is 1000000, beyond the range of F16"]);
        nothing_at(&bench.path(out));
    }
}

#[test]
fn blocks_whose_scales_overflow_are_refused_and_not_zeros() {
    let bench = Bench::new();
    let base = fixtures().join("peft/bases/llama-bf16");
    let values = |size: f32| noise(5, 256 * 4, size);
    let adapter = |name: &str, size: f32| {
        bench.adapter(
            name,
            json!({"r": 4, "lora_alpha": 4}),
            &[
                ("model.layers.0.self_attn.q_proj.lora_A.weight", Tensor::f32(&[4, 256], &values(size))),
                ("model.layers.0.self_attn.q_proj.lora_B.weight", Tensor::f32(&[256, 4], &values(1.0))),
            ],
        )
    };
    let (usual, huge) = (adapter("usual", 1.0), adapter("huge", 1e18));
    let base = base.to_str().unwrap();
    for quant in ["q6_k", "q4_0", "q8_0"] {
        let words = ["--to", "gguf", "--base", base, "--quant", quant];
        run("convert", &[&usual], &bench.path(&format!("{quant}.gguf")), &words).ok();
        let out = bench.path("bad.gguf");
        run("convert", &[&huge], &out, &words).refused(1, &["lora_A.weight`: element", "beyond what blocks of Q"]);
        nothing_at(&out);
    }
}

#[test]
fn a_sum_of_factors_that_leaves_its_dtype_is_refused() {
    let bench = Bench::new();
    let (big, one) = (filled(&bench, "big", 1.0, 70000.0), filled(&bench, "one", 1.0, 1.0));
    for verb in ["stack", "subtract"] {
        let out = bench.path("out");
        run(verb, &[&big, &one], &out, &["--dtype", "f16"]).refused(
            1,
            &["big/adapter_model.safetensors", "lora_B.weight`: element 0 is 70000, beyond the range of F16"],
        );
        nothing_at(&out);
        run(verb, &[&big, &one], &bench.path(verb), &["--dtype", "bf16"]).ok();
    }
    let average = run("stack", &[&big, &big], &bench.path("a"), &["--method", "factor-average", "--dtype", "f16"]);
    average.refused(1, &["beyond the range of F16"]);
    // Each factor is small enough; what the singular values are split into is not.
    let out = bench.path("ranked");
    let huge = filled(&bench, "huge", 1e6, 1e6);
    run("stack", &[&huge, &one], &out, &["--rank", "1", "--dtype", "f16"]).refused(1, &["beyond the range of F16"]);
    run("resize", &[&huge], &out, &["--rank", "1", "--dtype", "f16"]).refused(1, &["beyond the range of F16"]);
    nothing_at(&out);
}

#[test]
fn weights_that_an_f32_cannot_hold_are_refused_with_the_number() {
    let bench = Bench::new();
    let (a, b) = (filled(&bench, "a", 1.0, 1.0), filled(&bench, "b", 1.0, 2.0));
    let base = bench.base(&[("layers.0.q_proj.weight", Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))], &json!({}));
    let weighted = |path: &Path, weight: &str| PathBuf::from(format!("{}:{weight}", path.display()));
    for (weight, told) in [("1e308", "1e308"), ("1e39", "1e39"), ("-1e39", "-1e39")] {
        let heavy = weighted(&a, weight);
        let parts = [format!("the weight {told} of `{NAME}` is beyond the range of f32")];
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        for more in [&[][..], &["--rank", "2"], &["--method", "ties", "--density", "0.5", "--rank", "2"]] {
            run("stack", &[&heavy, &b], &bench.path("out"), more).refused(2, &parts);
        }
        merge(&base, &heavy, &bench.path("out"), &[]).refused(2, &parts);
    }
    // A weight for some modules multiplies the adapter's own.
    let heavy = weighted(&a, "1e30");
    merge(&base, &heavy, &bench.path("out"), &["--weight-for", "q_proj=1e30"])
        .refused(2, &["e60 of `layers.0.q_proj` is beyond the range of f32"]);
    nothing_at(&bench.path("out"));
}

#[test]
fn a_change_that_overflows_is_no_change_that_cancels() {
    let bench = Bench::new();
    let (huge, one) = (filled(&bench, "huge", 1e30, 1e30), filled(&bench, "one", 1.0, 1.0));
    let out = bench.path("out");
    for method in ["ties", "dare", "dare-ties", "magnitude"] {
        for density in ["0.5", "1"] {
            run("stack", &[&huge, &one], &out, &["--method", method, "--density", density, "--rank", "2"])
                .refused(1, &["tensor `layers.0.q_proj`: its change is beyond the range of F32", "huge"]);
        }
    }
    nothing_at(&out);
    // In f64 the exact sum has no such bounds, and each factor fits an f32.
    run("stack", &[&huge, &one], &bench.path("exact"), &[]).ok();
    let tensors = read(&bench.path("exact/adapter_model.safetensors"));
    assert!(tensors.values().all(|tensor| tensor.values().iter().all(|value| value.is_finite())));
}

#[test]
fn a_weight_that_overflows_a_factor_is_an_error_and_not_a_sum_of_zero() {
    let bench = Bench::new();
    let (a, b) = (filled(&bench, "a", 1.5, 3e38), filled(&bench, "b", 1.0, 1.0));
    let heavy = PathBuf::from(format!("{}:1e30", a.display()));
    for more in [&[][..], &["--rank", "2"]] {
        run("stack", &[&heavy, &b], &bench.path("out"), more).refused(1, &["beyond the range of F32"]);
    }
    nothing_at(&bench.path("out"));
}

#[test]
fn alphas_that_an_f32_cannot_hold_are_refused_where_they_are_written_as_tensors() {
    let bench = Bench::new();
    let key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let adapter = bench.adapter(
        "adapter",
        json!({"r": 1, "lora_alpha": 1e39, "target_modules": ["to_q"]}),
        &[
            (&format!("{key}.lora_A.weight"), Tensor::f32(&[1, 4], &[1e-20; 4])),
            (&format!("{key}.lora_B.weight"), Tensor::f32(&[4, 1], &[1e-20; 4])),
        ],
    );
    let out = bench.path("out.safetensors");
    run("convert", &[&adapter], &out, &["--to", "kohya", "--arch", "sd1"])
        .refused(1, &["α of", "beyond the range of F32"]);
    nothing_at(&out);
}

#[test]
fn wider_numbers_do_not_become_infinite_on_the_way() {
    let bench = Bench::new();
    let wide = |value: f64| Tensor {
        dtype: Dtype::F64,
        shape: vec![2, 2],
        data: [1.0, value, 0.5, 0.25].into_iter().flat_map(f64::to_le_bytes).collect(),
    };
    let base = bench.base(&[("a.weight", wide(1e300))], &json!({}));
    for dtype in ["f32", "bf16", "f16"] {
        run("convert", &[&base], &bench.path("out"), &["--dtype", dtype])
            .refused(1, &["tensor `a.weight`: the value at [0, 1] is beyond the range of F32"]);
    }
    nothing_at(&bench.path("out"));
    // What was infinite stays so, and is counted.
    write(&base.join("model.safetensors"), &[("a.weight", wide(f64::INFINITY))]);
    let report = run("convert", &[&base], &bench.path("kept"), &["--dtype", "f32", "--json"]).ok().json();
    assert_eq!(report["rounding"]["not_finite"], 1);
    let kept = &read_model(&bench.path("kept"))["a.weight"];
    assert_eq!(kept.values(), [1.0, f64::INFINITY, 0.5, 0.25]);
    // An adapter of f64 too.
    let key = format!("base_model.model.{NAME}");
    let adapter = filled(&bench, "adapter", 1.0, 1.0);
    let (down, up) = (Tensor::f32(&[2, 2], &[1.0; 4]), wide(1e300));
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]});
    fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let weights = adapter.join("adapter_model.safetensors");
    write(&weights, &[(&format!("{key}.lora_A.weight"), down), (&format!("{key}.lora_B.weight"), up)]);
    for more in [&["--dtype", "f32"][..], &["--to", "mlx", "--dtype", "bf16"]] {
        run("convert", &[&adapter], &bench.path("out"), more)
            .refused(1, &["lora_B.weight`: element ", " is beyond the range of "]);
    }
    nothing_at(&bench.path("out"));
}

#[test]
fn tensors_of_which_nothing_is_left_are_named() {
    let bench = Bench::new();
    let small = filled(&bench, "small", 1.0, 1e-9);
    let report = |name: &str, more: &[&str]| {
        let mut words = more.to_vec();
        words.push("--json");
        run("convert", &[&small], &bench.path(name), &words).ok().json()["notes"].to_string()
    };
    for (name, more) in [("peft", &["--dtype", "f16"][..]), ("mlx", &["--to", "mlx", "--dtype", "f16"])] {
        let notes = report(name, more);
        assert!(notes.contains("WARNING: 1 tensor of trained numbers"), "{notes}");
        assert!(notes.contains("lora_B.weight`") && !notes.contains("lora_A"), "{notes}");
    }
    for (name, more) in [("bf16", &["--dtype", "bf16"][..]), ("f32", &[]), ("m32", &["--to", "mlx"])] {
        assert!(!report(name, more).contains("WARNING"), "{name}");
    }
    // Untrained: B is zero as it was.
    let zero = filled(&bench, "zero", 1.0, 0.0);
    let out = run("convert", &[&zero], &bench.path("z"), &["--dtype", "f16"]).ok();
    assert!(!out.stdout.contains("WARNING"), "{}", out.stdout);
    // An exact sum says how much is lost.
    let one = filled(&bench, "one", 0.0, 0.0);
    let sum = run("stack", &[&small, &one], &bench.path("s"), &["--dtype", "f16", "--json"]).ok().json();
    assert!((sum["relative_error"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{}", sum["relative_error"]);
}

#[test]
fn what_fits_is_written_as_before() {
    let bench = Bench::new();
    let (a, b) = (filled(&bench, "a", 1.0, 65504.0), filled(&bench, "b", 0.5, 0.25));
    run("stack", &[&a, &b], &bench.path("out"), &["--dtype", "f16"]).ok();
    let up = &read(&bench.path("out/adapter_model.safetensors"))[&format!("base_model.model.{NAME}.lora_B.weight")];
    assert_eq!(up.dtype, Dtype::F16);
    assert_eq!(up.values()[..4], [65504.0, 0.25, 16376.0, 0.0625]);
}
