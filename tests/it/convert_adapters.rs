//! Adapters between dialects: there and back, and merged before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::*;

/// What a merge may be off by after a conversion, as a part of the largest number of the tensor.
const TOLERANCE: f64 = 1e-6;

fn convert(input: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &input, &"-o", &out];
    words.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
    lorakit(&words)
}

/// All tensors of a model, or of both components of a pipeline.
fn tensors(root: &Path) -> Tensors {
    if !root.join("unet").is_dir() {
        return read_model(root);
    }
    let of = |component: &str| {
        let named = read_model(&root.join(component)).into_iter();
        named.map(|(name, tensor)| (format!("{component}/{name}"), tensor)).collect::<Tensors>()
    };
    ["unet", "text_encoder"].into_iter().flat_map(of).collect()
}

/// `base` with the adapter, which has to change something.
fn merged(base: &Path, adapter: &Path, include: Option<&str>) -> Tensors {
    let bench = Bench::new();
    let mut more = vec!["--dtype", "f32"];
    more.extend(include.into_iter().flat_map(|pattern| ["--include", pattern]));
    merge(base, adapter, &bench.path("out"), &more).ok();
    let out = tensors(&bench.path("out"));
    let before = tensors(base);
    assert!(out.iter().any(|(name, tensor)| tensor.values() != before[name].values()), "{}", adapter.display());
    out
}

#[track_caller]
fn assert_same(left: &Tensors, right: &Tensors) {
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    left.iter().for_each(|(name, tensor)| assert_close(&tensor.values(), &right[name].values(), TOLERANCE));
}

fn place(bench: &Bench, at: usize, target: &str) -> PathBuf {
    let single = ["kohya", "comfyui", "xlabs"].contains(&target);
    bench.path(&format!("{at}-{target}{}", if single { ".safetensors" } else { "" }))
}

/// Converts along `targets`; every step has to merge into what the adapter itself merges into. `back` says whether the last
/// one has the tensors of the first.
#[track_caller]
fn travels(base: &Path, adapter: &Path, targets: &[&str], more: &[&str], back: Option<&Path>) {
    let bench = Bench::new();
    let include = more.iter().position(|word| *word == "--include").map(|at| more[at + 1]);
    let expected = merged(base, adapter, include);
    let mut current = adapter.to_path_buf();
    for (at, target) in targets.iter().enumerate() {
        let out = place(&bench, at, target);
        let more: Vec<&str> = ["--to", target].into_iter().chain(more.iter().copied().filter(|_| at == 0)).collect();
        convert(&current, &out, &more).ok();
        assert_same(&merged(base, &out, None), &expected);
        current = out;
    }
    if let Some(first) = back {
        let last = if current.is_dir() { current.join(first.file_name().unwrap()) } else { current };
        let (first, last) = (read(first), read(&last));
        assert_eq!(first.keys().collect::<Vec<_>>(), last.keys().collect::<Vec<_>>());
        for (name, tensor) in &first {
            assert_eq!(tensor.shape, last[name].shape, "{name}");
            assert_eq!(tensor.values(), last[name].values(), "{name}");
        }
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn language_models_go_from_peft_to_mlx_and_back() {
    let root = reference_part("peft");
    let base = root.join("bases/llama-bf16");
    for case in ["lora-all-r4", "rslora-r4", "dora-r4"] {
        let adapter = root.join(case).join("adapter");
        travels(&base, &adapter, &["mlx", "peft"], &[], Some(&adapter.join("adapter_model.safetensors")));
    }
    // Ranks are filled up and scales folded there, so the tensors are others.
    travels(&base, &root.join("lora-rslora-patterns/adapter"), &["mlx", "peft"], &[], None);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn language_models_go_from_mlx_to_peft_and_back() {
    let reference = reference();
    for case in ["lora", "dora", "lora-last-layer"] {
        let root = reference.join("mlx").join(case);
        let base = reference.join(read_json(&root.join("case.json"))["base"].as_str().unwrap());
        let adapter = root.join("adapter");
        travels(&base, &adapter, &["peft", "mlx"], &[], Some(&adapter.join("adapters.safetensors")));
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn stable_diffusion_goes_from_kohya_anywhere_and_back() {
    let root = reference_part("kohya");
    let base = root.join("base");
    for case in ["kohya-lora-r4", "kohya-locon-r8c4", "lyco-locon", "lyco-dora"] {
        let file = root.join(case).join("lora.safetensors");
        travels(&base, &file, &["comfyui", "diffusers", "kohya"], &[], Some(&file));
        travels(&base, &file, &["diffusers", "kohya"], &[], Some(&file));
        travels(&base, &file, &["peft"], &["--include", "^unet"], None);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn other_methods_go_from_kohya_to_comfyui_and_back() {
    let root = reference_part("kohya");
    let base = root.join("base");
    for case in ["lyco-loha", "lyco-loha-tucker", "lyco-loha-dora", "lyco-lokr-both-f4", "lyco-full", "lyco-dora-wdin"]
    {
        let file = root.join(case).join("lora.safetensors");
        travels(&base, &file, &["comfyui", "kohya"], &[], Some(&file));
    }
    // α of two whole Kronecker factors says nothing and becomes 1; a `scalar` goes into α.
    for case in ["lyco-lokr", "lyco-lokr-full", "lyco-locon-scalar"] {
        travels(&base, &root.join(case).join("lora.safetensors"), &["comfyui", "kohya"], &[], None);
    }
    travels(&base, &root.join("lyco-loha/lora.safetensors"), &["peft"], &["--include", "^unet"], None);
    // Linear layers: whether the others are convolutions, the tensors of LoKr do not tell.
    for case in ["lyco-lokr", "lyco-lokr-full", "lyco-lokr-both-f4"] {
        let file = root.join(case).join("lora.safetensors");
        travels(&base, &file, &["peft"], &["--include", "^text_encoder"], None);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn lokr_of_peft_is_written_as_peft_builds_it() {
    let root = reference_part("peft");
    let base = root.join("bases/llama-bf16");
    for case in ["lokr-r4", "lokr-r4-both"] {
        let adapter = root.join(case).join("adapter");
        // A selection is written anew.
        travels(&base, &adapter, &["peft"], &["--include", "layers"], Some(&adapter.join("adapter_model.safetensors")));
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn products_of_factors_become_lora() {
    let root = reference_part("peft");
    let base = root.join("bases/llama-bf16");
    let with_base = ["--as", "lora", "--base", base.to_str().unwrap()];
    for case in ["loha-r4", "loha-r4-patterns", "lokr-r4", "vblora", "gralora"] {
        travels(&base, &root.join(case).join("adapter"), &["peft"], &["--as", "lora"], None);
    }
    for case in ["loha-r4", "vera-r16"] {
        travels(&base, &root.join(case).join("adapter"), &["peft", "mlx"], &with_base, None);
    }
    let net = root.join("bases/tinynet-f32");
    for case in ["conv-loha", "conv-lokr"] {
        let bench = Bench::new();
        let adapter = root.join(case).join("adapter");
        let with_base = ["--as", "lora", "--base", net.to_str().unwrap()];
        travels(&net, &adapter, &["peft"], &with_base, None);
        convert(&adapter, &bench.path("out"), &["--to", "peft", "--as", "lora"]).refused(1, &["may be a convolution"]);
        convert(&adapter, &bench.path("out"), &[&["--to", "peft"][..], &with_base].concat()).ok();
        let written = read(&bench.path("out/adapter_model.safetensors"));
        assert!(written.values().any(|tensor| tensor.shape.len() == 4), "{case}: {:?}", written.keys());
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn lycoris_becomes_lora() {
    let root = reference_part("kohya");
    let base = root.join("base");
    let more = ["--as", "lora", "--base", base.to_str().unwrap()];
    for case in ["lyco-loha", "lyco-lokr", "lyco-loha-tucker", "lyco-locon-tucker"] {
        travels(&base, &root.join(case).join("lora.safetensors"), &["kohya", "diffusers"], &more, None);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_a_target_cannot_express_is_refused_with_the_reason() {
    let reference = reference();
    let bench = Bench::new();
    let out = bench.path("out");
    let language = reference.join("mlx/lora/adapter");
    let peft = |case: &str| reference.join("peft").join(case).join("adapter");
    let image = |case: &str| reference.join("kohya").join(case).join("lora.safetensors");
    for (input, target, reason) in [
        (language.clone(), "kohya", "no part of a diffusion pipeline"),
        (image("kohya-lora-r4"), "mlx", "belongs to a diffusion pipeline"),
        (image("kohya-lora-r4"), "peft", "belongs to one model"),
        (image("kohya-lora-r4"), "gguf", "llama.cpp loads adapters of language models"),
        (image("lyco-loha"), "diffusers", "loads as LoRA or not at all"),
        (image("lyco-dora-wdin"), "diffusers", "a magnitude of DoRA per input"),
        (image("lyco-glora"), "comfyui", "has no place"),
        (image("lyco-norm"), "comfyui", "has no place"),
        (image("lyco-boft"), "comfyui", "has no place"),
        (peft("lora-mts-norm"), "mlx", "stored whole"),
        (peft("loha-r4"), "mlx", "mlx-lm knows LoRA and DoRA"),
        (peft("pissa-r4"), "mlx", "another dialect cannot say so"),
        (peft("conv-lora"), "mlx", "is a convolution"),
    ] {
        convert(&input, &out, &["--to", target]).refused(1, &[reason]);
        assert!(!out.exists(), "{target}: {reason}");
    }
    convert(&image("lyco-lokr"), &out, &["--to", "peft", "--include", "^unet"]).refused(1, &["may be a convolution"]);
    convert(&peft("vera-r16"), &out, &["--to", "peft", "--as", "lora"]).refused(1, &["VeRA", "--base"]);
    convert(&peft("oft-b8"), &out, &["--to", "peft", "--as", "lora"]).refused(1, &["no product of factors"]);
    convert(&image("lyco-loha"), &out, &["--to", "kohya", "--as", "lora"]).refused(1, &["may be a convolution"]);
    assert!(!out.exists());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_cast_on_the_way_and_the_record_of_it() {
    let root = reference_part("mlx");
    let bench = Bench::new();
    let written = bench.path("peft");
    convert(&root.join("lora/adapter"), &written, &["--to", "peft", "--dtype", "bf16"]).ok();
    assert_eq!(read_json(&written.join("adapter_config.json"))["peft_type"], "LORA");
    let tensors = read(&written.join("adapter_model.safetensors"));
    assert!(!tensors.is_empty() && tensors.values().all(|tensor| tensor.dtype == safetensors::Dtype::BF16));
    assert!(fs::metadata(written.join("lorakit.json")).is_ok());
}

/// Every adapter of the reference with its base and dialect.
fn reference_adapters(root: &Path) -> Vec<(PathBuf, PathBuf, &'static str)> {
    let hub = [(root.join("adapterhub/base-bert"), root.join("adapterhub/lora"), "adapterhub")].into_iter();
    let folders = |part: &str| {
        let mut all: Vec<PathBuf> = fs::read_dir(root.join(part)).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all.into_iter()
    };
    let base = |folder: &Path| read_json(&folder.join("case.json"))["base"].as_str().unwrap().to_owned();
    let cases =
        |part| folders(part).filter(|folder| folder.join("adapter").is_dir() && folder.join("case.json").exists());
    let peft = cases("peft").map(|at| (root.join("peft/bases").join(base(&at)), at.join("adapter"), "peft"));
    let mlx = cases("mlx").map(|at| (root.join(base(&at)), at.join("adapter"), "mlx"));
    let kohya = folders("kohya").map(|at| (root.join("kohya/base"), at.join("lora.safetensors"), "kohya"));
    peft.chain(mlx).chain(kohya).chain(hub).filter(|(base, adapter, _)| base.exists() && adapter.exists()).collect()
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_reference_adapter_goes_there_and_back_or_is_refused_with_the_reason() {
    let root = reference();
    let mut equal: BTreeMap<&str, usize> = BTreeMap::new();
    for (base, adapter, own) in reference_adapters(&root) {
        let bench = Bench::new();
        if merge(&base, &adapter, &bench.path("merged"), &["--dtype", "f32"]).code != 0 {
            // Refused by merge with its reason: tests/it/methods.rs and golden.rs.
            continue;
        }
        let expected = tensors(&bench.path("merged"));
        let targets = ["peft", "kohya", "comfyui", "diffusers", "mlx", "adapterhub", "torchtune", "xlabs"];
        for target in targets.into_iter().filter(|target| *target != own) {
            let bench = Bench::new();
            let (there, back) = (place(&bench, 0, target), place(&bench, 1, own));
            let mut more = vec!["--to", target];
            if ["adapterhub", "torchtune"].contains(&target) {
                more.extend(["--base", base.to_str().unwrap()]);
            }
            let outcome = convert(&adapter, &there, &more);
            if outcome.code != 0 {
                assert!(outcome.stderr.starts_with("error: ") && bench.listing().is_empty(), "{}", outcome.stderr);
                continue;
            }
            assert_same(&merged(&base, &there, None), &expected);
            let mut more = vec!["--to", own];
            if own == "adapterhub" {
                more.extend(["--base", base.to_str().unwrap()]);
            }
            let outcome = convert(&there, &back, &more);
            // What PEFT holds whole, mlx-lm took whole only because it trained all of it.
            if adapter.ends_with("full/adapter") {
                outcome.refused(1, &["stored whole"]);
                continue;
            }
            outcome.ok();
            assert_same(&merged(&base, &back, None), &expected);
            *equal.entry(target).or_default() += 1;
        }
    }
    assert_eq!(
        equal,
        BTreeMap::from([
            ("adapterhub", 2),
            ("comfyui", 16),
            ("diffusers", 7),
            ("mlx", 21),
            ("peft", 5),
            ("torchtune", 18),
        ])
    );
}

#[test]
fn magnitudes_of_dora_are_cast_as_vectors_in_every_dialect() {
    let adapter = fixtures().join("peft/dora-r4/adapter");
    let base = fixtures().join("peft/bases/llama-bf16");
    let bench = Bench::new();
    let weights = |folder: &Path| {
        let one = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        read(&one.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "safetensors")).unwrap())
    };
    for dialect in ["peft", "mlx", "torchtune"] {
        let more = ["--to", dialect, "--base", base.to_str().unwrap()];
        let plain = bench.path(dialect);
        convert(&adapter, &plain, &more).ok();
        let plain = weights(&plain);
        for (dtype, share) in [("f16", 1.0 / 1024.0), ("bf16", 1.0 / 128.0), ("f64", 0.0), ("f32", 0.0)] {
            let out = bench.path(&format!("{dialect}-{dtype}"));
            convert(&adapter, &out, &[&more[..], &["--dtype", dtype]].concat()).ok();
            let cast = weights(&out);
            assert_eq!(cast.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>(), "{dialect} {dtype}");
            for (name, tensor) in &cast {
                assert_eq!(tensor.shape, plain[name].shape, "{dialect} {dtype} {name}");
                for (value, wanted) in tensor.values().iter().zip(plain[name].values()) {
                    assert!(
                        (value - wanted).abs() <= share * wanted.abs() + 1e-7,
                        "{dialect} {dtype} {name}: {value} instead of {wanted}"
                    );
                }
            }
        }
    }
}
