//! Adapters as they are found: frozen copies and whole models beside the factors, trained tensors one prefix away from the base's, and
//! settings that contradict the tensors.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::*;

const D: usize = 8;
const R: usize = 2;
const Q: &str = "model.layers.0.self_attn.q_proj";
const UP: &str = "model.layers.0.mlp.up_proj";

fn matrix(seed: u64, rows: usize) -> Tensor {
    Tensor::f32(&[rows, D], &noise(seed, rows * D, 1.0))
}

fn down(seed: u64) -> Tensor {
    Tensor::f32(&[R, D], &noise(seed + 100, R * D, 0.1))
}

fn up(seed: u64) -> Tensor {
    Tensor::f32(&[D, R], &noise(seed + 200, D * R, 0.1))
}

fn changed(weight: &Tensor, seed: u64) -> Vec<f64> {
    dense(&weight.values(), &up(seed).values(), &down(seed).values(), R, 2.0)
}

fn config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": false})
}

/// The factors of a module, by the name of the adapter.
fn pair(module: &str, seed: u64, name: &str) -> [(String, Tensor); 2] {
    let key = |factor: &str| format!("{module}.lora_{factor}{name}.weight");
    [(key("A"), down(seed)), (key("B"), up(seed))]
}

fn adapter(bench: &Bench, name: &str, config: Value, tensors: &[(String, Tensor)]) -> PathBuf {
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    bench.adapter(name, config, &tensors)
}

/// Whether some key of the file has this part.
fn has(path: &Path, part: &str) -> bool {
    read(path).keys().any(|key| key.contains(part))
}

fn with_head(bench: &Bench, head: &str, name: &str) -> PathBuf {
    // As PEFT writes the state of a model in memory whose head was rounded to bf16 on the way.
    let rounded: Vec<f32> = matrix(2, D).values().iter().map(|value| *value as f32).collect();
    let mut tensors = pair(Q, 1, name).to_vec();
    tensors.push((format!("{head}.modules_to_save.default.weight"), matrix(7, D)));
    tensors.push((format!("{head}.original_module.weight"), Tensor::new(Dtype::BF16, &[D, D], &rounded)));
    adapter(bench, "adapter", json!({"modules_to_save": [head]}), &tensors)
}

#[test]
fn the_frozen_copy_of_a_trained_head_is_never_a_change() {
    for (name, more) in [("", &[][..]), (".default", &[]), (".default", &["--adapter-name", "default"])] {
        let bench = Bench::new();
        let base = bench.base(&[(&format!("{Q}.weight"), matrix(1, D)), ("lm_head.weight", matrix(2, D))], &config());
        let adapter = with_head(&bench, "lm_head", name);
        let out = bench.path("out");
        merge(&base, &adapter, &out, more).ok();
        let merged = read_model(&out);
        assert_eq!(merged["lm_head.weight"], matrix(7, D), "{name} {more:?}");
        assert_close(&merged[&format!("{Q}.weight")].values(), &changed(&matrix(1, D), 1), 1e-6);

        let weights = |name: &str| bench.path(name).join("adapter_model.safetensors");
        let single = format!("base_model.model.{Q}.lora_A.weight");
        for words in [&["convert", "--to", "peft"][..], &["stack"], &["resize", "--rank", "2"]] {
            let out = bench.path(words[0]);
            let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&words[0], &adapter, &"-o", &out];
            all.extend(words[1..].iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
            lorakit(&all).ok();
            let written = read(&weights(words[0]));
            assert!(written.contains_key(&single), "{words:?}: {:?}", written.keys());
            assert!(!has(&weights(words[0]), "original_module"), "{words:?}");
            let heads: Vec<&Tensor> =
                written.iter().filter(|(key, _)| key.contains("lm_head")).map(|(_, tensor)| tensor).collect();
            assert_eq!(heads, [&matrix(7, D)], "{words:?}");
            let again = bench.path(&format!("{}-merged", words[0]));
            merge(&base, &bench.path(words[0]), &again, &[]).ok();
            assert_eq!(read_model(&again)["lm_head.weight"], matrix(7, D), "{words:?}");
        }
    }
}

#[test]
fn a_base_without_the_head_gets_the_trained_one_and_no_copy() {
    let bench = Bench::new();
    let base = bench.base(&[(&format!("{Q}.weight"), matrix(1, D)), ("lm_head.weight", matrix(2, D))], &config());
    let out = bench.path("out");
    merge(&base, &with_head(&bench, "score", ""), &out, &[]).ok();
    let merged = read_model(&out);
    assert_eq!(merged["score.weight"], matrix(7, D));
    assert_eq!(merged["lm_head.weight"], matrix(2, D));
    assert_eq!(merged.len(), 3);
}

/// A base with a projector and norms, some of them twice.
fn projected(bench: &Bench) -> PathBuf {
    bench.base(
        &[
            (&format!("{Q}.weight"), matrix(1, D)),
            ("model.mm_projector.0.weight", matrix(2, D)),
            ("model.norm.weight", matrix(3, 1)),
            ("model.twice.weight", matrix(4, D)),
            ("vision.twice.weight", matrix(5, D)),
            ("bare.weight", matrix(6, D)),
        ],
        &config(),
    )
}

#[test]
fn a_tensor_trained_whole_goes_to_the_one_place_a_prefix_away() {
    let cases = [
        ("mm_projector.0", matrix(9, D), "mm_projector", "model.mm_projector.0.weight"),
        ("norm", matrix(9, 1), "norm", "model.norm.weight"),
        ("model.bare", matrix(9, D), "bare", "bare.weight"),
        ("base_model.model.mm_projector.0", matrix(9, D), "mm_projector", "model.mm_projector.0.weight"),
    ];
    for (module, tensor, saved, place) in cases {
        let bench = Bench::new();
        let base = projected(&bench);
        let mut tensors = pair(Q, 1, "").to_vec();
        tensors.push((format!("{module}.weight"), tensor.clone()));
        let adapter = adapter(&bench, "adapter", json!({"modules_to_save": [saved]}), &tensors);
        let outcome = merge(&base, &adapter, &bench.path("out"), &[]).ok();
        let merged = read_model(&bench.path("out"));
        assert_eq!(merged[place], tensor, "{module}");
        assert_eq!(merged.len(), 6, "{module}: {:?}", merged.keys());
        // Wrappers of PEFT are no prefix of the module.
        let is_said = outcome.stdout.contains(&format!("is `{place}` of the base"));
        assert_eq!(is_said, !module.starts_with("base_model."), "{module}: {}", outcome.stdout);
    }
}

#[test]
fn trained_tensors_in_a_file_beside_the_adapter_find_their_prefix_too() {
    for front in ["", "base_model.", "base_model.model."] {
        let bench = Bench::new();
        let base = projected(&bench);
        let adapter = adapter(&bench, "adapter", json!({}), &pair(Q, 1, ""));
        let name = format!("{front}mm_projector.0.weight");
        write(&adapter.join("non_lora_trainables.safetensors"), &[(&name, matrix(9, D))]);
        merge(&base, &adapter, &bench.path("out"), &[]).ok();
        let merged = read_model(&bench.path("out"));
        assert_eq!(merged["model.mm_projector.0.weight"], matrix(9, D), "{front}");
        assert_eq!(merged.len(), 6, "{front}");
    }
}

#[test]
fn a_tensor_with_two_places_is_refused_and_one_with_none_is_new() {
    let bench = Bench::new();
    let base = projected(&bench);
    let of = |name: &str, module: &str, tensor: Tensor| {
        let mut tensors = pair(Q, 1, "").to_vec();
        tensors.push((format!("{module}.weight"), tensor));
        adapter(&bench, name, json!({"modules_to_save": [module]}), &tensors)
    };
    merge(&base, &of("twice", "twice", matrix(9, D)), &bench.path("refused"), &[])
        .refused(1, &["could be any of 2", "`model.twice.weight`", "`vision.twice.weight`"]);
    // Of another shape it is another module.
    for (at, (module, rows)) in [("score", D), ("norm", 3)].into_iter().enumerate() {
        let out = bench.path(&format!("new-{at}"));
        merge(&base, &of(&format!("adapter-{at}"), module, matrix(9, rows)), &out, &[]).ok();
        assert_eq!(read_model(&out)[&format!("{module}.weight")], matrix(9, rows));
    }
}

#[test]
fn a_header_that_says_dora_wants_magnitudes() {
    let module = "transformer_blocks.0.attn.to_q";
    for (component, key, refused) in [
        ("", "use_dora", true),
        ("transformer.", "transformer.use_dora", true),
        ("transformer.", "text_encoder.use_dora", false),
    ] {
        let bench = Bench::new();
        let base = bench.path("base.safetensors");
        write(&base, &[(&format!("{module}.weight"), matrix(1, D))]);
        let front = if component.is_empty() { "" } else { "transformer." };
        let settings = json!({format!("{front}r"): R, format!("{front}lora_alpha"): 4, format!("{front}peft_type"): "LORA", key: true});
        let path = bench.path("adapter.safetensors");
        let tensors = pair(&format!("{component}{module}"), 1, "");
        let views = tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
        let header = HashMap::from([("lora_adapter_metadata".to_owned(), settings.to_string())]);
        fs::write(&path, safetensors::serialize(views, Some(header)).unwrap()).unwrap();
        let out = bench.path("out.safetensors");
        let outcome = merge(&base, &path, &out, &[]);
        if refused {
            outcome.refused(1, &["`use_dora` is true", "lora_magnitude_vector", "lora_adapter_metadata"]);
        } else {
            outcome.ok();
            let merged = read(&out);
            assert_close(&merged[&format!("{module}.weight")].values(), &changed(&matrix(1, D), 1), 1e-6);
        }
    }
}

#[test]
fn the_state_of_a_whole_model_becomes_an_adapter_without_the_model() {
    // A frozen copy beside a trained one is left out by itself.
    whole_model(true);
    whole_model(false);
}

fn whole_model(has_copy: bool) {
    let bench = Bench::new();
    let folder = bench.path("full");
    let mut tensors = Vec::new();
    for (seed, module) in [(1, Q), (2, UP)] {
        tensors.extend(pair(module, seed, ".default"));
        tensors.push((format!("{module}.base_layer.weight"), matrix(seed, D)));
    }
    tensors.push(("model.embed_tokens.weight".into(), matrix(3, 16)));
    tensors.push(("model.norm.weight".into(), matrix(4, 1)));
    if has_copy {
        tensors.push(("lm_head.original_module.weight".into(), matrix(5, 16)));
    }
    tensors.push(("lm_head.modules_to_save.default.weight".into(), matrix(6, 16)));
    let named: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(key, tensor)| (format!("base_model.model.{key}"), tensor)).collect();
    let named: Vec<(&str, Tensor)> = named.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    write(&folder.join("model.safetensors"), &named);
    let settings = json!({
        "peft_type": "LORA", "r": R, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head"],
    });
    fs::write(folder.join("adapter_config.json"), settings.to_string()).unwrap();
    let base = bench.base(
        &[
            (&format!("{Q}.weight"), matrix(1, D)),
            (&format!("{UP}.weight"), matrix(2, D)),
            ("model.embed_tokens.weight", matrix(3, 16)),
            ("model.norm.weight", matrix(4, 1)),
            ("lm_head.weight", matrix(5, 16)),
        ],
        &config(),
    );
    for words in [&["convert", "--to", "peft"][..], &["stack"], &["resize", "--rank", "2"]] {
        let out = bench.path(words[0]);
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&words[0], &folder, &"-o", &out];
        all.extend(words[1..].iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        let outcome = lorakit(&all).ok();
        assert!(outcome.stdout.contains("weights of the model"), "{words:?}: {}", outcome.stdout);
        let weights = out.join("adapter_model.safetensors");
        for part in ["base_layer", "embed_tokens", "norm", "original_module"] {
            assert!(!has(&weights, part), "{words:?}: {part}");
        }
        assert_eq!(read(&weights).len(), 5, "{words:?}");
        let merged = bench.path(&format!("{}-merged", words[0]));
        merge(&base, &out, &merged, &[]).ok();
        let merged = read_model(&merged);
        assert_close(&merged[&format!("{Q}.weight")].values(), &changed(&matrix(1, D), 1), 1e-5);
        assert_close(&merged[&format!("{UP}.weight")].values(), &changed(&matrix(2, D), 2), 1e-5);
        assert_eq!(merged["lm_head.weight"], matrix(6, 16), "{words:?}");
    }
}

#[test]
fn a_hint_names_a_relative_folder_once() {
    let bench = Bench::new();
    adapter(&bench, "outer/inner", json!({}), &pair(Q, 1, ""));
    bench.base(&[(&format!("{Q}.weight"), matrix(1, D))], &config());
    let mut command = assert_cmd::Command::cargo_bin("lorakit").unwrap();
    let output = command
        .current_dir(bench.path(""))
        .args(["merge", "base", "outer", "-o", "out"])
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("name that: `outer/inner`"), "{said}");
}

#[test]
fn a_config_of_mlx_vlm_beside_names_of_mlx_lm_is_named() {
    let bench = Bench::new();
    let base = bench.base(&[(&format!("{Q}.weight"), matrix(1, D))], &config());
    let folder = bench.path("adapter");
    let factors = [(format!("{Q}.lora_a"), matrix(2, R)), (format!("{Q}.lora_b"), matrix(3, R))];
    write(
        &folder.join("adapters.safetensors"),
        &[(&factors[0].0, factors[0].1.clone()), (&factors[1].0, factors[1].1.clone())],
    );
    fs::write(folder.join("adapter_config.json"), r#"{"rank": 2, "alpha": 0.5, "dropout": 0}"#).unwrap();
    merge(&base, &folder, &bench.path("out"), &[])
        .refused(1, &["adapter_config.json", "mlx-vlm", "mlx-lm", ".lora_a", "`lora_parameters`"]);
}

#[test]
fn an_alpha_that_is_not_finite_is_no_text() {
    let bench = Bench::new();
    let base = bench.base(&[(&format!("{Q}.weight"), matrix(1, D))], &config());
    let folder = adapter(&bench, "adapter", json!({}), &pair(Q, 1, ""));
    for number in ["NaN", "Infinity", "-Infinity"] {
        let text = format!(r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": {number}, "target_modules": ["q_proj"]}}"#);
        fs::write(folder.join("adapter_config.json"), text).unwrap();
        let outcome = merge(&base, &folder, &bench.path("out"), &[]);
        assert!(!outcome.stderr.contains("text"), "{}", outcome.stderr);
        outcome.refused(1, &["`lora_alpha`", &format!("is {number}")]);
    }
}
