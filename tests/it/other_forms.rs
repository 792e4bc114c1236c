//! Resizing of what is no LoRA yet, and files of a pipeline that are to become PEFT's.

use std::path::PathBuf;

use crate::support::*;

fn image(name: &str) -> PathBuf {
    fixtures().join("methods/kohya").join(name).join("lora.safetensors")
}

fn image_base() -> PathBuf {
    fixtures().join("methods/kohya/base")
}

#[test]
fn loha_and_lokr_are_resized_as_lora_and_it_is_said() {
    let bench = Bench::new();
    for (name, kind) in [("lyco-loha", "LoHa"), ("lyco-lokr", "LoKr")] {
        let (input, out) = (image(name), bench.path(&format!("{name}.safetensors")));
        let words = |more: &[&str]| {
            let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"resize", &input, &"-o", &out, &"--rank", &"2"];
            all.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
            lorakit(&all)
        };
        words(&[]).refused(1, &["may be a convolution", "--base MODEL"]);
        let base = image_base();
        let text = words(&["--base", base.to_str().unwrap()]).ok().stdout;
        assert!(text.contains(&format!("{kind} became LoRA")), "{text}");
        assert!(read(&out).keys().all(|key| !key.contains("hada") && !key.contains("lokr")));
    }
}

#[test]
fn dora_is_resized_with_its_model_as_stack_approximates_it() {
    let bench = Bench::new();
    let (input, base) = (image("lyco-dora"), image_base());
    let (resized, stacked) = (bench.path("resized.safetensors"), bench.path("stacked.safetensors"));
    lorakit(&[&"resize", &input, &"-o", &resized, &"--rank", &"2"]).refused(1, &["is DoRA", "--base PATH", "--rank N"]);
    let text = lorakit(&[&"resize", &input, &"-o", &resized, &"--rank", &"2", &"--base", &base]).ok().stdout;
    assert!(text.contains("DoRA became LoRA"), "{text}");
    lorakit(&[&"stack", &input, &"-o", &stacked, &"--rank", &"2", &"--base", &base]).ok();
    assert_eq!(read(&resized), read(&stacked));

    let out = bench.path("part.safetensors");
    lorakit(&[&"resize", &input, &"-o", &out, &"--rank", &"2", &"--base", &base, &"-i", &"attn"])
        .refused(1, &["is DoRA and would stay so", "all of its modules"]);
    assert!(!out.exists());
}

#[test]
fn several_models_in_one_adapter_of_peft_are_refused_by_convert_and_told_by_the_others() {
    let bench = Bench::new();
    let (input, base) = (image("kohya-lora-r4"), image_base());
    let (out, merged) = (bench.path("out"), bench.path("merged"));
    let parts = ["changes `text_encoder` and `unet`", "belongs to one model", "--include '^text_encoder\\.'"];
    let to = [&"-o" as &dyn AsRef<std::ffi::OsStr>, &out, &"--to", &"peft"];
    let half = format!("{}:0.5", input.display());
    merge(&base, &input, &merged, &[]).ok();
    let verbs: [&[&dyn AsRef<std::ffi::OsStr>]; 5] = [
        &[&"convert", &input],
        &[&"stack", &input, &input],
        &[&"subtract", &input, &half],
        &[&"resize", &input, &"--rank", &"2"],
        &[&"extract", &base, &merged, &"--rank", &"2"],
    ];
    for (at, verb) in verbs.into_iter().enumerate() {
        if at == 0 {
            lorakit(&[verb, &to].concat()).refused(1, &parts);
            assert!(!out.exists());
            continue;
        }
        let done = lorakit(&[verb, &to].concat()).ok();
        assert!(parts.iter().all(|part| done.stdout.contains(part)), "{}", done.stdout);
        std::fs::remove_dir_all(&out).unwrap();
    }
    for verb in [verbs[0], verbs[1], verbs[2], verbs[4]] {
        lorakit(&[verb, &to, &[&"--include", &"^unet\\."]].concat()).ok();
        // The UNet does not know its name in the pipeline.
        let tensors = read(&out.join("adapter_model.safetensors"));
        assert!(tensors.keys().all(|key| key.starts_with("base_model.model.down_blocks.")), "{:?}", tensors.keys());
        std::fs::remove_dir_all(&out).unwrap();
    }
}
