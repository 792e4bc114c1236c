//! Models saved with what their training put around them, as bases, as tuned models, as what an adapter is taken out of.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Bench, Tensor, Tensors, assert_close, dense, lorakit, merge, noise, read, read_json, write};

const DIM: usize = 4;
const VOCABULARY: usize = 10;
const RANK: usize = 2;
const MODULES: [&str; 4] = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
];

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, 1.0))
}

fn config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": false})
}

fn clean() -> Tensors {
    let mut tensors = Tensors::from([
        ("model.embed_tokens.weight".to_owned(), matrix(1, VOCABULARY, DIM)),
        ("lm_head.weight".to_owned(), matrix(2, VOCABULARY, DIM)),
        ("model.norm.weight".to_owned(), Tensor::f32(&[DIM], &noise(3, DIM, 1.0))),
    ]);
    tensors.extend((10..).zip(MODULES).map(|(seed, module)| (format!("{module}.weight"), matrix(seed, DIM, DIM))));
    tensors
}

fn pair(at: u64) -> [Tensor; 2] {
    [matrix(20 + at, RANK, DIM), matrix(30 + at, DIM, RANK)]
}

fn adapter(bench: &Bench) -> PathBuf {
    let mut tensors = Vec::new();
    for (at, module) in (0..).zip(MODULES) {
        let [down, up] = pair(at);
        tensors.push((format!("{module}.lora_A.weight"), down));
        tensors.push((format!("{module}.lora_B.weight"), up));
    }
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    bench.adapter("adapter", json!({}), &tensors)
}

/// What `clean` with the adapter is, in f32.
fn wanted() -> Tensors {
    let mut tensors = clean();
    for (at, module) in (0..).zip(MODULES) {
        let [down, up] = pair(at);
        let weight = tensors.get_mut(&format!("{module}.weight")).unwrap();
        let values = dense(&weight.values(), &up.values(), &down.values(), RANK, 2.0);
        *weight = Tensor::f32(&[DIM, DIM], &values.iter().map(|value| *value as f32).collect::<Vec<f32>>());
    }
    tensors
}

/// How a tool calls itself, and how it names what has a name.
type Wrap = (&'static str, fn(&str) -> String);

/// How names look in models that training tools have wrapped.
const WRAPS: [Wrap; 9] = [
    ("clean", |name| name.to_owned()),
    ("compile", |name| format!("_orig_mod.{name}")),
    ("ddp", |name| format!("module.{name}")),
    ("lightning", |name| format!("model.{name}")),
    ("deepspeed", |name| format!("_forward_module.{name}")),
    ("compile inside", |name| {
        name.replace("layers.0.", "layers.0._orig_mod.").replace("layers.1.", "layers.1._orig_mod.")
    }),
    ("fsdp", |name| {
        let inner = "._fsdp_wrapped_module._checkpoint_wrapped_module.";
        let name = name.replace(".self_attn.", &format!("{inner}self_attn.")).replace(".mlp.", &format!("{inner}mlp."));
        format!("_fsdp_wrapped_module.{name}")
    }),
    ("peft", |name| format!("base_model.model.{name}")),
    ("compiled ddp", |name| format!("module._orig_mod.{name}")),
];

fn model(bench: &Bench, folder: &str, tensors: &Tensors, wrap: fn(&str) -> String, config: &Value) -> PathBuf {
    let named: Vec<(String, Tensor)> = tensors.iter().map(|(name, tensor)| (wrap(name), tensor.clone())).collect();
    let named: Vec<(&str, Tensor)> = named.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&bench.path(folder).join("model.safetensors"), &named);
    std::fs::write(bench.path(folder).join("config.json"), config.to_string()).unwrap();
    bench.path(folder)
}

#[track_caller]
fn assert_model(got: &Tensors, wanted: &Tensors, wrap: fn(&str) -> String, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}: {:?}", got.keys());
    for (name, tensor) in wanted {
        let found = got.get(&wrap(name)).unwrap_or_else(|| panic!("{what}: `{}` is missing", wrap(name)));
        assert_close(&found.values(), &tensor.values(), 1e-5);
    }
}

#[test]
fn an_adapter_finds_its_modules_below_every_wrapper() {
    for (what, wrap) in WRAPS {
        let bench = Bench::new();
        let base = model(&bench, "base", &clean(), wrap, &config());
        merge(&base, &adapter(&bench), &bench.path("out"), &[]).ok();
        assert_model(&read(&bench.path("out/model.safetensors")), &wanted(), wrap, what);
    }
}

#[test]
fn shards_of_a_wrapped_base_and_their_index_keep_its_names() {
    let (_, wrap) = WRAPS[6];
    let bench = Bench::new();
    let base = model(&bench, "base", &clean(), wrap, &config());
    merge(&base, &adapter(&bench), &bench.path("out"), &["--max-shard-size", "200B"]).ok();
    assert_model(&crate::support::read_model(&bench.path("out")), &wanted(), wrap, "shards");
    let index = read_json(&bench.path("out/model.safetensors.index.json"));
    assert!(clean().keys().all(|name| index["weight_map"].get(wrap(name)).is_some()), "{index}");
}

#[test]
fn a_tie_is_found_below_a_wrapper_and_the_new_head_stands_in_it() {
    for (what, wrap) in WRAPS.into_iter().filter(|(what, _)| *what != "lightning") {
        let bench = Bench::new();
        let config = json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true});
        let embedding = Tensors::from([("model.embed_tokens.weight".to_owned(), matrix(1, VOCABULARY, DIM))]);
        let base = model(&bench, "base", &embedding, wrap, &config);
        let trained = matrix(9, VOCABULARY, DIM);
        let saved = json!({"modules_to_save": ["embed_tokens"]});
        let adapter = bench.adapter("a", saved, &[("model.embed_tokens.weight", trained.clone())]);
        merge(&base, &adapter, &bench.path("out"), &[]).ok();
        let mut wanted = embedding.clone();
        wanted.insert("lm_head.weight".into(), embedding["model.embed_tokens.weight"].clone());
        wanted.insert("model.embed_tokens.weight".into(), trained);
        assert_model(&read(&bench.path("out/model.safetensors")), &wanted, wrap, what);
        assert_eq!(read_json(&bench.path("out/config.json"))["tie_word_embeddings"], false, "{what}");
    }
}

fn extract(base: &Path, tuned: &Path, out: &Path) -> crate::support::Outcome {
    lorakit(&[&"extract", &base, &tuned, &"--rank", &"2", &"--dtype", &"f32", &"-o", &out])
}

#[test]
fn an_extraction_of_wrapped_models_has_the_names_of_the_model() {
    for (what, wrap) in WRAPS {
        for both in [false, true] {
            if what == "lightning" && both {
                // Nothing says that the prefix is no part of the model.
                continue;
            }
            let bench = Bench::new();
            let plain: fn(&str) -> String = |name| name.to_owned();
            let base = model(&bench, "base", &clean(), if both { wrap } else { plain }, &config());
            let tuned = model(&bench, "tuned", &wanted(), wrap, &config());
            extract(&base, &tuned, &bench.path("adapter")).ok();
            let factors = read(&bench.path("adapter/adapter_model.safetensors"));
            let name = format!("base_model.model.{}.lora_A.weight", MODULES[0]);
            assert!(factors.contains_key(&name), "{what}: {:?}", factors.keys());
            let clean = model(&bench, "clean", &clean(), plain, &config());
            merge(&clean, &bench.path("adapter"), &bench.path("out"), &[]).ok();
            assert_model(&read(&bench.path("out/model.safetensors")), &wanted(), plain, what);
        }
    }
}

#[test]
fn an_adapter_is_taken_out_of_a_wrapped_model() {
    for (what, wrap) in WRAPS {
        let bench = Bench::new();
        let merged = model(&bench, "merged", &wanted(), wrap, &config());
        let adapter = adapter(&bench);
        lorakit(&[&"subtract", &merged, &adapter, &"-o", &bench.path("out")]).ok();
        assert_model(&read(&bench.path("out/model.safetensors")), &clean(), wrap, what);
    }
}

#[test]
fn an_adapter_is_taken_out_of_a_wrapped_model_with_its_plain_base() {
    for (what, wrap) in WRAPS.into_iter().filter(|(what, _)| *what != "lightning") {
        let bench = Bench::new();
        let plain: fn(&str) -> String = |name| name.to_owned();
        let base = model(&bench, "base", &clean(), plain, &config());
        let adapter = adapter(&bench);
        merge(&base, &adapter, &bench.path("once"), &[]).ok();
        let once = read(&bench.path("once/model.safetensors"));
        let merged = model(&bench, "merged", &once, wrap, &config());
        lorakit(&[&"subtract", &merged, &adapter, &"--base", &base, &"-o", &bench.path("out")]).ok();
        assert_eq!(read(&bench.path("out/model.safetensors")), clean(), "{what}");
    }
}

#[test]
fn a_conversion_keeps_every_tensor_and_its_name() {
    let bench = Bench::new();
    let (_, wrap) = WRAPS[6];
    let mut tensors = clean();
    tensors.insert("model.layers.0.self_attn.q_proj.lora_A.default.weight".into(), matrix(5, RANK, DIM));
    let base = model(&bench, "base", &tensors, wrap, &config());
    lorakit(&[&"convert", &base, &"-o", &bench.path("out")]).ok();
    assert_eq!(read(&bench.path("out/model.safetensors")), read(&base.join("model.safetensors")));
}

/// A PEFT model as it is in memory: frozen layers as `base_layer`, adapters and saved modules beside them.
fn full(front: &str, names: &[&str]) -> Tensors {
    let mut tensors = Tensors::new();
    for (name, tensor) in clean() {
        let module = name.trim_end_matches(".weight");
        let Some(at) = MODULES.iter().position(|known| *known == module) else {
            if module == "lm_head" && !front.is_empty() {
                tensors.insert(format!("{front}lm_head.original_module.weight"), tensor.clone());
                tensors.insert(format!("{front}lm_head.modules_to_save.default.weight"), matrix(77, VOCABULARY, DIM));
            } else {
                tensors.insert(format!("{front}{name}"), tensor);
            }
            continue;
        };
        tensors.insert(format!("{front}{module}.base_layer.weight"), tensor);
        for (more, adapter) in (0..).zip(names) {
            let [down, up] = pair(at as u64 + 100 * more);
            tensors.insert(format!("{front}{module}.lora_A.{adapter}.weight"), down);
            tensors.insert(format!("{front}{module}.lora_B.{adapter}.weight"), up);
        }
    }
    tensors
}

#[test]
fn one_of_the_adapters_inside_a_model_is_merged_and_the_others_are_named() {
    for (front, adapters) in [("", ["vision", "speech"]), ("base_model.model.", ["default", "reference"])] {
        let bench = Bench::new();
        let base = model(&bench, "base", &full(front, &adapters), |name| name.to_owned(), &config());
        let outcome = merge(&base, &adapter(&bench), &bench.path("out"), &[]).ok();
        assert_model(&read(&bench.path("out/model.safetensors")), &wanted(), |name| name.to_owned(), front);
        for name in adapters {
            assert!(outcome.stdout.contains(&format!("`{name}`")), "{}", outcome.stdout);
        }
    }
}

#[test]
fn a_tuned_model_with_adapters_inside_is_refused_where_they_would_be_lost() {
    let bench = Bench::new();
    let tuned = model(&bench, "tuned", &full("base_model.model.", &["default"]), |name| name.to_owned(), &config());
    let base = model(&bench, "base", &clean(), |name| name.to_owned(), &config());
    let parts = ["holds adapters of its own", "`default`", "--adapter-name"];
    extract(&base, &tuned, &bench.path("out")).refused(1, &parts);
    lorakit(&[&"subtract", &tuned, &adapter(&bench), &"-o", &bench.path("out")]).refused(1, &parts);
    lorakit(&[&"convert", &tuned, &"--to", &"gguf", &"-o", &bench.path("out.gguf")]).refused(1, &parts);
    assert!(!bench.path("out").exists() && !bench.path("out.gguf").exists());
}
