//! What is meant where nothing is said: the dialect of the inputs, the name of the output, the dtype of a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::json;

use crate::support::*;

fn run(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
    lorakit(words).ok()
}

fn cat() -> PathBuf {
    fixtures().join("dialects/kohya-lora-r4.safetensors")
}

fn metadata(path: &Path) -> BTreeMap<String, String> {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().clone().unwrap_or_default().into_iter().collect()
}

/// A file of sd-scripts with trigger words.
fn trained(path: &Path, trigger: &str, steps: &str) {
    let tensors = read(&cat());
    let views = tensors.iter().map(|(name, tensor)| {
        (name, safetensors::tensor::TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap())
    });
    let tags = json!({"10_cat": {trigger: 3, "cat": 7}}).to_string();
    let text = [
        ("ss_tag_frequency", tags.as_str()),
        ("ss_steps", steps),
        ("ss_network_dim", "4"),
        ("ss_network_alpha", "2.0"),
        ("modelspec.trigger_phrase", trigger),
    ];
    let metadata = text.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

#[test]
fn a_resized_file_of_sd_scripts_has_its_keys_and_metadata() {
    let bench = Bench::new();
    let (input, out) = (bench.path("cat.safetensors"), bench.path("small.safetensors"));
    trained(&input, "sks", "100");
    run(&[&"resize", &input, &"--rank", &"2", &"-o", &out]);
    let (before, after) = (read(&input), read(&out));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, tensor) in &after {
        let rank = tensor.shape.iter().copied().min().unwrap_or(2);
        assert!(name.ends_with("alpha") || rank == 2, "{name} {:?}", tensor.shape);
        if name.ends_with("alpha") {
            assert_eq!(tensor.values(), [2.0], "{name}");
        }
    }
    let (was, is) = (metadata(&input), metadata(&out));
    for key in ["ss_tag_frequency", "ss_steps", "modelspec.trigger_phrase"] {
        assert_eq!(was[key], is[key]);
    }
    assert_eq!((is["ss_network_dim"].as_str(), is["ss_network_alpha"].as_str()), ("2", "2.0"));
    assert!(is["lorakit"].contains("resize"), "{}", is["lorakit"]);
}

#[test]
fn the_arguments_of_convolutions_follow() {
    let bench = Bench::new();
    let input = fixtures().join("dialects/kohya-locon-r8c4.safetensors");
    let out = bench.path("small.safetensors");
    assert!(metadata(&input)["ss_network_args"].contains(r#""conv_dim": "4""#));
    run(&[&"resize", &input, &"--rank", &"2", &"-o", &out]);
    let args: serde_json::Value = serde_json::from_str(&metadata(&out)["ss_network_args"]).unwrap();
    assert_eq!((&args["conv_dim"], &args["conv_alpha"]), (&json!("2"), &json!("2.0")));
}

#[test]
fn a_stack_keeps_tags_of_all_and_what_they_agree_on() {
    let bench = Bench::new();
    let (one, two, out) =
        (bench.path("one.safetensors"), bench.path("two.safetensors"), bench.path("both.safetensors"));
    trained(&one, "sks", "100");
    trained(&two, "zwx", "200");
    let report = run(&[&"stack", &one, &two, &"-o", &out, &"--json"]).json();
    assert_eq!(report["to"], "kohya");
    let is = metadata(&out);
    assert_eq!(is["modelspec.trigger_phrase"], "sks, zwx");
    let tags: serde_json::Value = serde_json::from_str(&is["ss_tag_frequency"]).unwrap();
    assert_eq!(tags["10_cat"], json!({"sks": 3, "cat": 14, "zwx": 3}));
    assert!(!is.contains_key("ss_steps"));
    assert!(report["notes"].to_string().contains("`ss_steps`"), "{}", report["notes"]);
    assert_eq!(is["ss_network_dim"], "8");
}

#[test]
fn the_dialect_is_that_of_the_inputs_and_a_suffix_decides() {
    let bench = Bench::new();
    let mlx = fixtures().join("dialects/mlx-lora");
    let peft = fixtures().join("tiny/adapter");
    let to = |words: &[&dyn AsRef<std::ffi::OsStr>]| run(&[words, &[&"--json"]].concat()).json()["to"].clone();
    assert_eq!(to(&[&"stack", &mlx, &mlx, &"-o", &bench.path("mlx")]), "mlx");
    assert_eq!(to(&[&"stack", &peft, &peft, &"-o", &bench.path("peft")]), "peft");
    assert_eq!(
        to(&[&"subtract", &cat(), &format!("{}:0.5", cat().display()), &"-o", &bench.path("k.safetensors")]),
        "kohya"
    );
    assert_eq!(to(&[&"stack", &mlx, &mlx, &"--to", &"peft", &"-o", &bench.path("asked")]), "peft");
    let file = bench.path("x.safetensors");
    lorakit(&[&"stack", &peft, &peft, &"-o", &file]).refused(2, &["named like a file", "--to kohya"]);
    run(&[&"convert", &cat(), &"--to", &"diffusers", &"-o", &bench.path("d.safetensors")]);
    let mixed =
        run(&[&"stack", &bench.path("d.safetensors"), &cat(), &"-o", &bench.path("m.safetensors"), &"--json"]).json();
    assert_eq!(mixed["to"], "diffusers");
    assert!(mixed["notes"].to_string().contains("of several dialects"), "{}", mixed["notes"]);
}

#[test]
fn parts_of_a_pipeline_stack_back_into_one_file() {
    let bench = Bench::new();
    for part in ["unet", "text_encoder"] {
        run(&[&"convert", &cat(), &"--to", &"peft", &"--include", &format!(r"^{part}\."), &"-o", &bench.path(part)]);
    }
    let out = bench.path("back.safetensors");
    run(&[&"stack", &bench.path("unet"), &bench.path("text_encoder"), &"--to", &"kohya", &"-o", &out]);
    let (before, after) = (read(&cat()), read(&out));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let modules = before.keys().filter_map(|name| name.strip_suffix(".alpha"));
    for module in modules {
        let delta = |tensors: &Tensors| {
            let get = |end: &str| tensors[&format!("{module}{end}")].values();
            let (down, up) = (get(".lora_down.weight"), get(".lora_up.weight"));
            let rank = tensors[&format!("{module}.lora_down.weight")].shape[0];
            let zeros = vec![0.0; up.len() / rank * (down.len() / rank)];
            dense(&zeros, &up, &down, rank, get(".alpha")[0] / rank as f64)
        };
        assert_close(&delta(&after), &delta(&before), 1e-6);
    }
    let alone = bench.path("te.safetensors");
    lorakit(&[&"convert", &bench.path("text_encoder"), &"--to", &"kohya", &"-o", &alone])
        .refused(1, &["--arch sd1", "lorakit stack"]);
    run(&[&"convert", &bench.path("text_encoder"), &"--to", &"kohya", &"--arch", &"sd1", &"-o", &alone]);
    assert!(read(&alone).keys().all(|name| name.starts_with("lora_te_")));
}

#[test]
fn files_and_folders_of_any_depth_are_resized_under_their_names() {
    let bench = Bench::new();
    for name in ["loras/cat.safetensors", "loras/more/cat.safetensors", "loras/more/v1.5.safetensors"] {
        trained(&bench.path(name), "sks", "1");
    }
    let out = bench.path("small");
    let report = run(&[&"resize", &bench.path("loras"), &"--rank", &"2", &"-o", &out, &"--json"]).json();
    assert_eq!(report["failed"], 0);
    for name in ["cat.safetensors", "more/cat.safetensors", "more/v1.5.safetensors"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let again = run(&[&"resize", &bench.path("loras"), &"--rank", &"2", &"-o", &out]).stdout;
    assert!(again.contains("3 done before"), "{again}");
    let listed = bench.path("listed");
    run(&[
        &"resize",
        &bench.path("loras/cat.safetensors"),
        &bench.path("loras/more/cat.safetensors"),
        &"--rank",
        &"2",
        &"-o",
        &listed,
    ]);
    assert!(listed.join("loras/cat.safetensors").is_file() && listed.join("more/cat.safetensors").is_file());
    fs::create_dir(bench.path("lone")).unwrap();
    fs::copy(cat(), bench.path("lone/cat.safetensors")).unwrap();
    run(&[&"resize", &bench.path("lone"), &"--rank", &"2", &"-o", &bench.path("of-one")]);
    assert!(bench.path("of-one/cat.safetensors").is_file());
}

/// A model of BF16 with a tensor that is F32 on purpose.
fn mixed(bench: &Bench) -> (PathBuf, PathBuf) {
    let base = bench.base(
        &[
            ("l.q_proj.weight", Tensor::new(Dtype::BF16, &[4, 4], &noise(1, 16, 1.0))),
            ("l.norm.weight", Tensor::new(Dtype::BF16, &[4], &noise(2, 4, 1.0))),
            ("l.router.weight", Tensor::f32(&[2], &noise(3, 2, 1.0))),
        ],
        &json!({"torch_dtype": "bfloat16"}),
    );
    let adapter = bench.adapter(
        "adapter",
        json!({}),
        &[
            ("l.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(4, 8, 1.0))),
            ("l.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(5, 8, 1.0))),
        ],
    );
    (base, adapter)
}

#[test]
fn a_dtype_is_that_of_the_model() {
    let bench = Bench::new();
    let (base, adapter) = mixed(&bench);
    for (more, norm, router, config) in [
        (&[][..], Dtype::F16, Dtype::F32, "float16"),
        (&["--changed-only"], Dtype::BF16, Dtype::F32, "bfloat16"),
        (&["--cast-all"], Dtype::F16, Dtype::F16, "float16"),
    ] {
        let out = bench.path(&format!("out{}", more.concat()));
        merge(&base, &adapter, &out, &[&["--dtype", "f16"], more].concat()).ok();
        let tensors = read_model(&out);
        let dtype = |name: &str| tensors[name].dtype;
        assert_eq!(dtype("l.q_proj.weight"), Dtype::F16, "{more:?}");
        assert_eq!((dtype("l.norm.weight"), dtype("l.router.weight")), (norm, router), "{more:?}");
        assert_eq!(read_json(&out.join("config.json"))["torch_dtype"], config, "{more:?}");
    }
    merge(&base, &adapter, &bench.path("x"), &["--changed-only"]).refused(2, &["--changed-only"]);
}

#[test]
fn a_sharded_model_merges_into_one_file() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let (file, folder) = (bench.path("one.safetensors"), bench.path("folder"));
    let report = merge(&base, &adapter, &file, &["--json"]).ok().json();
    assert!(report["notes"].to_string().contains("weights alone"), "{}", report["notes"]);
    merge(&base, &adapter, &folder, &[]).ok();
    assert_eq!(read(&file), read_model(&folder));
    assert_eq!(bench.listing(), ["folder", "one.safetensors", "one.safetensors.lorakit.json"]);
    merge(&base, &adapter, &bench.path("two.safetensors"), &["--max-shard-size", "40kB"]).refused(2, &["one file"]);
}

#[test]
fn the_values_of_a_model_are_read_on_request() {
    let bench = Bench::new();
    let mut odd = noise(1, 256, 1.0);
    (odd[3], odd[4]) = (f32::NAN, f32::NEG_INFINITY);
    let same = Tensor::f32(&[16, 16], &noise(2, 256, 1.0));
    let base = bench.base(
        &[
            ("a.weight", Tensor::f32(&[16, 16], &odd)),
            ("b.weight", Tensor::f32(&[16, 16], &[0.0; 256])),
            ("c.weight", same.clone()),
            ("d.weight", same),
            ("norm.bias", Tensor::f32(&[16], &[0.0; 16])),
        ],
        &json!({}),
    );
    let headers = run(&[&"inspect", &base, &"--json"]).json();
    assert_eq!(headers["values"], serde_json::Value::Null);
    let facts = run(&[&"inspect", &base, &"--check", &"--json"]).json();
    let values = &facts["values"];
    assert_eq!((&values["nan"], &values["infinite"]), (&json!(["a.weight"]), &json!(["a.weight"])));
    assert_eq!((&values["zero"], &values["duplicates"]), (&json!(["b.weight"]), &json!([["c.weight", "d.weight"]])));
    assert_eq!(facts["problems"].as_array().unwrap().len(), 4, "{}", facts["problems"]);
    let good = run(&[&"inspect", &fixtures().join("tiny/base"), &"--check"]).stdout;
    assert!(good.contains("no NaN, no infinity"), "{good}");
}

#[test]
fn a_base_of_another_name_and_a_copy_of_few_bits_are_told() {
    let bench = Bench::new();
    let (base, _) = mixed(&bench);
    fs::write(base.join("config.json"), json!({"_name_or_path": "Qwen/Qwen2.5-7B"}).to_string()).unwrap();
    let pair = [
        ("l.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(4, 8, 1.0))),
        ("l.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(5, 8, 1.0))),
    ];
    for (named, part) in [
        ("meta-llama/Llama-3.1-8B", Some("names `meta-llama/Llama-3.1-8B` as its base")),
        ("unsloth/Qwen2.5-7B-bnb-4bit", Some("a 4-bit copy of the model")),
        ("Qwen/Qwen2.5-7B", None),
    ] {
        let adapter = bench.adapter("named", json!({"base_model_name_or_path": named}), &pair);
        let notes =
            merge(&base, &adapter, &bench.path("out"), &["--dry-run", "--json"]).ok().json()["notes"].to_string();
        match part {
            Some(part) => assert!(notes.contains(part), "{named}: {notes}"),
            None => assert_eq!(notes, "[]", "{named}"),
        }
    }
}

#[test]
fn an_extraction_says_the_name_of_its_base() {
    let bench = Bench::new();
    let (base, adapter) = mixed(&bench);
    let (tuned, out) = (bench.path("tuned"), bench.path("lora"));
    merge(&base, &adapter, &tuned, &["--dtype", "f32"]).ok();
    run(&[&"extract", &base, &tuned, &"-r", &"2", &"-o", &out, &"--base-name", &"org/model"]);
    assert_eq!(read_json(&out.join("adapter_config.json"))["base_model_name_or_path"], "org/model");
}

#[test]
fn a_sum_that_grows_says_why_and_a_file_without_an_ending_is_told() {
    let bench = Bench::new();
    let half = |seed, shape: &[usize], count| Tensor::new(Dtype::F16, shape, &noise(seed, count, 1.0));
    let pair = [("l.q_proj.lora_A.weight", half(1, &[2, 4], 8)), ("l.q_proj.lora_B.weight", half(2, &[4, 2], 8))];
    let adapter = bench.adapter("half", json!({}), &pair);
    let weighted = format!("{}:0.3", adapter.display());
    let notes = |words: &[&dyn AsRef<std::ffi::OsStr>]| run(words).json()["notes"].to_string();
    let grown = notes(&[&"stack", &weighted, &adapter, &"-o", &bench.path("sum"), &"--json"]);
    assert!(grown.contains("`--dtype f16`"), "{grown}");
    let rounded =
        notes(&[&"stack", &weighted, &adapter, &"-o", &bench.path("half-sum"), &"--dtype", &"f16", &"--json"]);
    assert!(!rounded.contains("--dtype"), "{rounded}");
    let unnamed = notes(&[&"stack", &cat(), &cat(), &"-o", &bench.path("cats"), &"--json"]);
    assert!(unnamed.contains("`cats.safetensors`"), "{unnamed}");
}
