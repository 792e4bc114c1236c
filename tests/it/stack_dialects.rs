//! `stack`, `subtract` and `resize` of adapters of any dialect and of methods that are exact products: the result is a LoRA of
//! PEFT's that merges to what its inputs merge to.

use std::path::{Path, PathBuf};

use crate::support::*;

/// Largest difference, as a share of the largest weight.
const TOLERANCE: f64 = 1e-6;

/// Every tensor of a model or pipeline, by folder and name.
fn tensors(root: &Path) -> Tensors {
    let mut all = read_model(root);
    for component in ["unet", "text_encoder"] {
        let folder = root.join(component);
        if folder.is_dir() {
            all.extend(read_model(&folder).into_iter().map(|(name, tensor)| (format!("{component}/{name}"), tensor)));
        }
    }
    all
}

fn merged(bench: &Bench, name: &str, base: &Path, adapter: &Path) -> Tensors {
    let out = bench.path(name);
    merge(base, adapter, &out, &["--dtype", "f32"]).ok();
    tensors(&out)
}

/// `left` − `before` as a share of the largest weight, over all tensors; they have to be the same ones.
#[track_caller]
fn assert_same(case: &str, got: &Tensors, wanted: impl Fn(&str) -> Vec<f64>, before: &Tensors) {
    assert_eq!(got.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{case}");
    let mut changed = 0;
    for (name, got) in got {
        let wanted = wanted(name);
        let size = wanted.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
        let worst = got.values().iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
        assert!(worst <= TOLERANCE * size, "{case}: `{name}` is off by {worst:e} of {size:e}");
        changed += usize::from(wanted != before[name].values());
    }
    assert!(changed > 0, "{case}: nothing changed");
}

fn run(bench: &Bench, words: &[&dyn AsRef<std::ffi::OsStr>]) -> PathBuf {
    let out = bench.path("made");
    let mut all = words.to_vec();
    all.extend([&"-o" as &dyn AsRef<std::ffi::OsStr>, &out, &"--to", &"peft"]);
    lorakit(&all).ok();
    let config = read_json(&out.join("adapter_config.json"));
    assert_eq!(config["peft_type"], "LORA");
    assert!(config["r"].is_u64() && config["lora_alpha"].is_number(), "{config}");
    out
}

fn same_merge(case: &str, bench: &Bench, base: &Path, adapter: &Path, made: &Path) {
    let (wanted, got) = (merged(bench, "wanted", base, adapter), merged(bench, "got", base, made));
    assert_same(case, &got, |name| wanted[name].values(), &tensors(base));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn an_mlx_adapter_and_one_of_peft_stack_to_the_sum_of_their_merges() {
    let root = reference();
    let mlx = root.join("mlx/lora");
    let base = root.join(read_json(&mlx.join("case.json"))["base"].as_str().unwrap());
    let (left, right) = (mlx.join("adapter"), root.join("peft/lora-all-r4/adapter"));
    let bench = Bench::new();
    let made = run(&bench, &[&"stack", &left, &right]);
    let [left, right] =
        [("left", &left), ("right", &right)].map(|(name, adapter)| merged(&bench, name, &base, adapter));
    let (got, before) = (merged(&bench, "got", &base, &made), tensors(&base));
    let sum = |name: &str| {
        let both = left[name].values().into_iter().zip(right[name].values());
        both.zip(before[name].values()).map(|((left, right), before)| left + right - before).collect::<Vec<f64>>()
    };
    assert_same("mlx + peft", &got, sum, &before);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn an_adapter_less_itself_is_nothing_in_any_dialect() {
    let root = reference();
    for adapter in ["mlx/lora/adapter", "peft/loha-r4/adapter", "adapterhub/lora"] {
        let (bench, adapter) = (Bench::new(), root.join(adapter));
        lorakit(&[&"subtract", &adapter, &adapter, &"--rank", &"4", &"-o", &bench.path("made")])
            .refused(1, &["the sum is zero"]);
        assert!(bench.listing().is_empty());
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn methods_that_are_products_stack_and_resize_to_what_they_merge_to() {
    let root = reference();
    let peft = root.join("peft");
    let (mut stacked, mut resized) = (0, 0);
    for (case, alone) in [
        ("loha-r4", true),
        ("loha-r4-patterns", true),
        ("lokr-r4", true),
        ("lokr-r4-both", true),
        ("adalora", true),
        ("delora", true),
        ("gralora", true),
        ("vera-r16", false),
        ("miss-r8", false),
        ("miss-mini", false),
        ("conv-loha", false),
        ("conv-lokr", false),
        ("conv-lokr-effective", false),
        ("conv-loha-effective", false),
    ] {
        let folder = peft.join(case);
        let base = peft.join("bases").join(read_json(&folder.join("case.json"))["base"].as_str().unwrap());
        let adapter = folder.join("adapter");
        let bench = Bench::new();
        let made = run(&bench, &[&"stack", &adapter, &"--base", &base]);
        same_merge(case, &bench, &base, &adapter, &made);
        stacked += 1;
        if alone {
            let bench = Bench::new();
            let made = run(&bench, &[&"stack", &adapter]);
            same_merge(case, &bench, &base, &adapter, &made);
            let bench = Bench::new();
            let made = run(&bench, &[&"resize", &adapter, &"--max-error", &"1e-7"]);
            same_merge(case, &bench, &base, &adapter, &made);
            resized += 1;
        }
    }
    assert_eq!((stacked, resized), (14, 7));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_file_of_sd_scripts_is_cut_and_filled_up() {
    let root = reference_part("kohya");
    let base = root.join("base");
    for case in ["kohya-lora-r4", "kohya-locon-r8c4", "lyco-locon-tucker"] {
        let adapter = root.join(case).join("lora.safetensors");
        let bench = Bench::new();
        let made = run(&bench, &[&"stack", &adapter]);
        same_merge(case, &bench, &base, &adapter, &made);
    }
    let adapter = root.join("kohya-lora-r4/lora.safetensors");
    let bench = Bench::new();
    let made = run(&bench, &[&"resize", &adapter, &"--rank", &"8"]);
    assert_eq!(read_json(&made.join("adapter_config.json"))["r"], 8);
    same_merge("4 to 8", &bench, &base, &adapter, &made);
    let bench = Bench::new();
    let made = run(&bench, &[&"resize", &adapter, &"--rank", &"2"]);
    assert_eq!(read_json(&made.join("adapter_config.json"))["r"], 2);
    let tensors = read(&made.join("adapter_model.safetensors"));
    assert!(tensors.iter().all(|(name, tensor)| !name.ends_with("lora_A.weight") || tensor.shape[0] == 2));
    // Rank 2 of rank 4 is nearer to the whole than nothing is.
    let (whole, cut) = (merged(&bench, "whole", &base, &adapter), merged(&bench, "cut", &base, &made));
    let before = self::tensors(&base);
    let apart = |left: &Tensors, right: &Tensors| {
        let of =
            |name: &String| left[name].values().into_iter().zip(right[name].values()).map(|(l, r)| (l - r).powi(2));
        left.keys().flat_map(of).sum::<f64>()
    };
    assert!(apart(&whole, &cut) < 0.5 * apart(&whole, &before));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_is_no_product_is_refused_by_name() {
    let root = reference();
    for (adapter, parts) in [
        ("peft/oft-b8/adapter", ["OFT", "applies it"]),
        ("peft/ia3/adapter", ["IA³", "applies it"]),
        ("peft/hira/adapter", ["HiRA", "applies it"]),
        ("peft/vera-r16/adapter", ["VeRA", "`--base MODEL` finds out"]),
        ("kohya/lyco-full/lora.safetensors", ["no product of two factors", "applies it"]),
        ("kohya/lyco-loha-dora/lora.safetensors", ["LoHa", "applies it"]),
        ("kohya/lyco-loha/lora.safetensors", ["may be a convolution", "add `--base MODEL`"]),
    ] {
        let (bench, adapter) = (Bench::new(), root.join(adapter));
        for words in [vec!["stack"], vec!["resize", "--rank", "2"]] {
            let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = words.iter().map(|word| word as _).collect();
            let out = bench.path("made");
            all.extend([&adapter as &dyn AsRef<std::ffi::OsStr>, &"-o", &out]);
            lorakit(&all).refused(1, &parts);
            assert!(bench.listing().is_empty(), "{}", adapter.display());
        }
    }
}

#[test]
fn other_methods_are_resized_as_lora_where_the_model_is_given() {
    let base = fixtures().join("methods/kohya/base");
    for (case, method) in [("lyco-loha", "LoHa"), ("lyco-lokr", "LoKr"), ("lyco-dora", "DoRA")] {
        let bench = Bench::new();
        let input = fixtures().join("methods/kohya").join(case).join("lora.safetensors");
        let out = bench.path("out.safetensors");
        let done = lorakit(&[&"resize", &input, &"--base", &base, &"--rank", &"2", &"-o", &out]).ok();
        assert!(done.stdout.contains(&format!("{method} became LoRA")), "{case}: {}", done.stdout);
        lorakit(&[&"resize", &input, &"--rank", &"2", &"-o", &bench.path("no.safetensors")]).refused(1, &["--base"]);
    }
}
