//! Heads by class: what a head is called that shares the embedding's tensor, and heads that the base does not have.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Bench, Tensor, Tensors, assert_close, dense, lorakit, merge, noise, read, read_json};

const VOCABULARY: usize = 10;
const DIM: usize = 4;
const RANK: usize = 2;

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, 1.0))
}

fn table(seed: u64) -> Tensor {
    matrix(seed, VOCABULARY, DIM)
}

/// A LoRA on the embedding `module`.
fn on_embedding(module: &str) -> Vec<(String, Tensor)> {
    vec![
        (format!("{module}.lora_embedding_A"), matrix(2, RANK, VOCABULARY)),
        (format!("{module}.lora_embedding_B"), matrix(3, DIM, RANK)),
    ]
}

/// A LoRA on the linear layer `module`.
fn on_layer(module: &str, outputs: usize) -> Vec<(String, Tensor)> {
    vec![
        (format!("{module}.lora_A.weight"), matrix(4, RANK, DIM)),
        (format!("{module}.lora_B.weight"), matrix(5, outputs, RANK)),
    ]
}

fn adapter(bench: &Bench, config: Value, tensors: &[(String, Tensor)]) -> PathBuf {
    let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    bench.adapter("adapter", config, &named)
}

fn class(name: &str) -> Value {
    json!({ "architectures": [name], "vocab_size": VOCABULARY })
}

fn merged(bench: &Bench, base: &Path, adapter: &Path, more: &[&str]) -> (Tensors, Value, String) {
    let outcome = merge(base, adapter, &bench.path("out"), more).ok();
    (read(&bench.path("out/model.safetensors")), read_json(&bench.path("out/config.json")), outcome.stdout)
}

/// W + 2·(B·A)ᵀ, as the scale of the adapters here is 2.
fn changed_embedding(table: &Tensor, tensors: &[(String, Tensor)]) -> Vec<f64> {
    let (down, up) = (tensors[0].1.values(), tensors[1].1.values());
    let turned = |values: &[f64], rows: usize| -> Vec<f64> {
        let cols = values.len() / rows;
        (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
    };
    dense(&table.values(), &turned(&down, RANK), &turned(&up, DIM), RANK, 2.0)
}

fn changed_layer(weight: &Tensor, tensors: &[(String, Tensor)]) -> Vec<f64> {
    dense(&weight.values(), &tensors[1].1.values(), &tensors[0].1.values(), RANK, 2.0)
}

/// Class, embedding, head, and what the adapter calls the embedding.
const CLASSES: [(&str, &str, &str, &str); 20] = [
    ("WhisperForConditionalGeneration", "model.decoder.embed_tokens", "proj_out", "model.decoder.embed_tokens"),
    ("MoonshineForConditionalGeneration", "model.decoder.embed_tokens", "proj_out", "model.decoder.embed_tokens"),
    (
        "RobertaForMaskedLM",
        "roberta.embeddings.word_embeddings",
        "lm_head.decoder",
        "roberta.embeddings.word_embeddings",
    ),
    (
        "XLMRobertaForMaskedLM",
        "roberta.embeddings.word_embeddings",
        "lm_head.decoder",
        "roberta.embeddings.word_embeddings",
    ),
    (
        "BertForMaskedLM",
        "bert.embeddings.word_embeddings",
        "cls.predictions.decoder",
        "bert.embeddings.word_embeddings",
    ),
    (
        "DistilBertForMaskedLM",
        "distilbert.embeddings.word_embeddings",
        "vocab_projector",
        "distilbert.embeddings.word_embeddings",
    ),
    (
        "AlbertForMaskedLM",
        "albert.embeddings.word_embeddings",
        "predictions.decoder",
        "albert.embeddings.word_embeddings",
    ),
    (
        "ElectraForMaskedLM",
        "electra.embeddings.word_embeddings",
        "generator_lm_head",
        "electra.embeddings.word_embeddings",
    ),
    ("GPTNeoXForCausalLM", "gpt_neox.embed_in", "embed_out", "gpt_neox.embed_in"),
    ("BioGptForCausalLM", "biogpt.embed_tokens", "output_projection", "biogpt.embed_tokens"),
    ("XLMWithLMHeadModel", "transformer.embeddings", "pred_layer.proj", "transformer.embeddings"),
    ("Qwen2_5OmniModel", "thinker.model.embed_tokens", "thinker.lm_head", "model.embed_tokens"),
    ("GPT2LMHeadModel", "wte", "lm_head", "transformer.wte"),
    ("BloomForCausalLM", "word_embeddings", "lm_head", "transformer.word_embeddings"),
    ("MptForCausalLM", "transformer.wte", "lm_head", "transformer.wte"),
    ("OPTForCausalLM", "decoder.embed_tokens", "lm_head", "model.decoder.embed_tokens"),
    ("BartForConditionalGeneration", "model.shared", "lm_head", "model.shared"),
    ("ModernBertForMaskedLM", "model.embeddings.tok_embeddings", "decoder", "model.embeddings.tok_embeddings"),
    ("LlamaForCausalLM", "model.model.embed_tokens", "model.lm_head", "model.embed_tokens"),
    (
        "Gemma3ForConditionalGeneration",
        "language_model.model.embed_tokens",
        "lm_head",
        "model.language_model.embed_tokens",
    ),
];

#[test]
fn a_change_of_the_embedding_alone_gives_every_class_its_own_head() {
    for (name, embedding, head, path) in CLASSES {
        let bench = Bench::new();
        let (embedding, head) = (format!("{embedding}.weight"), format!("{head}.weight"));
        let base = bench.base(&[(&embedding, table(1))], &class(name));
        let pair = on_embedding(path);
        let (got, config, _) = merged(&bench, &base, &adapter(&bench, json!({}), &pair), &[]);
        assert_eq!(got.keys().collect::<Vec<_>>().len(), 2, "{name}: {:?}", got.keys());
        assert_eq!(got[&head].data, table(1).data, "{name}");
        assert_close(&got[&embedding].values(), &changed_embedding(&table(1), &pair), 1e-6);
        assert_eq!(config["tie_word_embeddings"], false, "{name}");
    }
}

#[test]
fn a_change_of_the_head_alone_gives_every_class_its_own_head() {
    for (name, embedding, head, path) in CLASSES {
        let bench = Bench::new();
        let (embedding, stored) = (format!("{embedding}.weight"), format!("{head}.weight"));
        // A layer tells how the paths of the adapter are to be read, where they differ from those of the base.
        let other =
            embedding.replace("embed_tokens", "layer").replace("wte", "layer").replace("word_embeddings", "layer");
        let (other, own) =
            (other.replace("embeddings", "layer"), path.replace("embed_tokens", "layer").replace("wte", "layer"));
        let own = own.replace("word_embeddings", "layer").replace("embeddings", "layer");
        let layer = matrix(6, DIM, DIM);
        let with_layer = other != embedding;
        let mut tensors = vec![(embedding.as_str(), table(1))];
        if with_layer {
            tensors.push((&other, layer.clone()));
        }
        let base = bench.base(&tensors, &class(name));
        let of_adapter = if name == "Qwen2_5OmniModel" || name.starts_with("Llama") { "lm_head" } else { head };
        let pair = on_layer(of_adapter, VOCABULARY);
        let mut all = pair.clone();
        if with_layer {
            all.extend(on_layer(&own, DIM));
        }
        let (got, config, _) = merged(&bench, &base, &adapter(&bench, json!({}), &all), &[]);
        assert_eq!(got[&embedding], table(1), "{name}");
        assert_close(&got[&stored].values(), &changed_layer(&table(1), &pair), 1e-6);
        if with_layer {
            assert_close(&got[&other].values(), &changed_layer(&layer, &on_layer(&own, DIM)), 1e-6);
        }
        assert_eq!(config["tie_word_embeddings"], false, "{name}");
    }
}

#[test]
fn a_head_saved_whole_is_the_head() {
    for (name, embedding, head, _) in
        CLASSES.iter().filter(|(name, ..)| !name.starts_with("Qwen") && !name.starts_with("Llama"))
    {
        let bench = Bench::new();
        let (embedding, stored) = (format!("{embedding}.weight"), format!("{head}.weight"));
        let base = bench.base(&[(&embedding, table(1))], &class(name));
        let saved = json!({ "modules_to_save": [head] });
        let (got, config, _) = merged(&bench, &base, &adapter(&bench, saved, &[(stored.clone(), table(7))]), &[]);
        assert_eq!((&got[&stored], &got[&embedding]), (&table(7), &table(1)), "{name}");
        assert_eq!(config["tie_word_embeddings"], false, "{name}");
    }
}

#[test]
fn head_and_embedding_saved_alike_with_more_tokens_stay_one() {
    for (name, embedding, head, path) in CLASSES.iter().filter(|(_, embedding, _, path)| embedding == path) {
        let bench = Bench::new();
        let (stored, grown) = (format!("{embedding}.weight"), matrix(8, VOCABULARY + 2, DIM));
        let base = bench.base(&[(&stored, table(1))], &class(name));
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let saved = json!({ "modules_to_save": [last(embedding), last(head)] });
        let both = [(format!("{path}.weight"), grown.clone()), (format!("{head}.weight"), grown.clone())];
        let (got, config, _) = merged(&bench, &base, &adapter(&bench, saved, &both), &["--resize-vocab"]);
        assert_eq!(got, Tensors::from([(stored, grown)]), "{name}");
        assert_eq!(config["vocab_size"], VOCABULARY + 2, "{name}");
        assert_ne!(config["tie_word_embeddings"], false, "{name}");
    }
}

#[test]
fn t5_scales_a_tied_head_and_is_not_untied() {
    let bench = Bench::new();
    let config = json!({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"});
    let base = bench.base(&[("shared.weight", table(1))], &config);
    let adapter = adapter(&bench, json!({}), &on_embedding("shared"));
    let refused = merge(&base, &adapter, &bench.path("out"), &[]).refused(
        1,
        &["`shared.weight` is changed and `lm_head.weight` is not", "scale what goes into a head that is tied"],
    );
    assert!(!refused.stderr.contains("--exclude"), "{}", refused.stderr);
}

#[test]
fn the_flag_goes_off_in_the_text_part_too() {
    let bench = Bench::new();
    let config = json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"hidden_size": DIM}});
    let base = bench.base(&[("model.language_model.embed_tokens.weight", table(1))], &config);
    let adapter = adapter(&bench, json!({}), &on_embedding("model.language_model.embed_tokens"));
    let (_, config, _) = merged(&bench, &base, &adapter, &[]);
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(config["text_config"], json!({"hidden_size": DIM, "tie_word_embeddings": false}));
}

#[test]
fn no_name_is_guessed_for_the_head_of_a_class_that_is_not_known() {
    let bench = Bench::new();
    let base = bench.base(&[("model.decoder.embed_tokens.weight", table(1))], &class("FooForConditionalGeneration"));
    let pair = on_embedding("model.decoder.embed_tokens");
    let (got, config, said) = merged(&bench, &base, &adapter(&bench, json!({}), &pair), &[]);
    assert_eq!(got.len(), 1);
    assert_close(&got["model.decoder.embed_tokens.weight"].values(), &changed_embedding(&table(1), &pair), 1e-6);
    assert_eq!(config.get("tie_word_embeddings"), None);
    assert!(said.contains("how `FooForConditionalGeneration` calls its output head is not known"), "{said}");
}

#[test]
fn an_adapter_of_a_class_that_is_not_known_names_its_head() {
    let bench = Bench::new();
    let base = bench.base(&[("model.embed_tokens.weight", table(1))], &class("FooForCausalLM"));
    let pair = on_layer("lm_head", VOCABULARY);
    let (got, config, _) = merged(&bench, &base, &adapter(&bench, json!({}), &pair), &[]);
    assert_eq!(got["model.embed_tokens.weight"], table(1));
    assert_close(&got["lm_head.weight"].values(), &changed_layer(&table(1), &pair), 1e-6);
    assert_eq!(config["tie_word_embeddings"], false);
}

#[test]
fn the_type_of_a_model_tells_its_head_where_its_class_does_not() {
    let bench = Bench::new();
    let base = bench.base(&[("model.decoder.embed_tokens.weight", table(1))], &json!({"model_type": "whisper"}));
    let (got, ..) =
        merged(&bench, &base, &adapter(&bench, json!({}), &on_embedding("model.decoder.embed_tokens")), &[]);
    assert_eq!(got["proj_out.weight"].data, table(1).data);
}

#[test]
fn a_pair_trained_as_one_stays_one_under_another_prefix() {
    let bench = Bench::new();
    let base = bench.base(&[("wte.weight", table(1))], &class("GPT2LMHeadModel"));
    let pair = on_embedding("transformer.wte");
    let turned = |tensor: &Tensor, rows: usize| {
        let (values, cols) = (tensor.values(), tensor.values().len() / rows);
        let values: Vec<f32> = (0..values.len()).map(|at| values[at % rows * cols + at / rows] as f32).collect();
        Tensor::f32(&[cols, rows], &values)
    };
    let mut both = pair.clone();
    both.push(("lm_head.lora_A.weight".into(), turned(&pair[1].1, DIM)));
    both.push(("lm_head.lora_B.weight".into(), turned(&pair[0].1, RANK)));
    let (got, ..) = merged(&bench, &base, &adapter(&bench, json!({"ensure_weight_tying": true}), &both), &[]);
    assert_eq!(got.len(), 1);
    let (got, ..) = merged(&bench, &base, &adapter(&bench, json!({}), &both), &["--force"]);
    assert_eq!(got.len(), 1);
    assert_close(&got["wte.weight"].values(), &changed_embedding(&table(1), &pair), 1e-6);
}

#[test]
fn an_extracted_change_of_a_tied_model_is_one_of_its_own_head() {
    let bench = Bench::new();
    let name = "model.decoder.embed_tokens.weight";
    let config = class("WhisperForConditionalGeneration");
    let base = bench.base(&[(name, table(1))], &config);
    let pair = on_embedding("model.decoder.embed_tokens");
    let values: Vec<f32> = changed_embedding(&table(1), &pair).iter().map(|value| *value as f32).collect();
    let tuned = bench.path("tuned");
    crate::support::write(&tuned.join("model.safetensors"), &[(name, Tensor::f32(&[VOCABULARY, DIM], &values))]);
    std::fs::write(tuned.join("config.json"), config.to_string()).unwrap();
    let extracted = bench.path("extracted");
    lorakit(&[&"extract", &base, &tuned, &"--rank", &"2", &"--dtype", &"f32", &"-o", &extracted]).ok();
    assert!(read(&extracted.join("adapter_model.safetensors")).contains_key("base_model.model.proj_out.lora_A.weight"));
    let (got, ..) = merged(&bench, &base, &extracted, &[]);
    assert_eq!(got.len(), 1);
    assert_close(&got[name].values(), &changed_embedding(&table(1), &pair), 1e-5);
}

/// BERT as Google published it: its normalisations have TensorFlow's names.
fn bert(bench: &Bench) -> PathBuf {
    let layer = "bert.encoder.layer.0";
    bench.base(
        &[
            ("bert.embeddings.word_embeddings.weight", table(1)),
            (&format!("{layer}.attention.self.query.weight"), matrix(11, DIM, DIM)),
            (&format!("{layer}.attention.self.query.bias"), matrix(12, 1, DIM)),
            (&format!("{layer}.output.LayerNorm.gamma"), Tensor::f32(&[DIM], &noise(13, DIM, 1.0))),
            (&format!("{layer}.output.LayerNorm.beta"), Tensor::f32(&[DIM], &noise(14, DIM, 1.0))),
        ],
        &json!({"architectures": ["BertForMaskedLM"], "model_type": "bert"}),
    )
}

#[test]
fn a_classifier_that_the_base_does_not_have_is_added() {
    for config in
        [json!({"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}), json!({"task_type": "SEQ_CLS"})]
    {
        let bench = Bench::new();
        let base = bert(&bench);
        let query = "bert.encoder.layer.0.attention.self.query";
        let mut tensors = on_layer(query, DIM);
        let (weight, bias) = (matrix(21, 3, DIM), Tensor::f32(&[3], &noise(22, 3, 1.0)));
        tensors.push(("classifier.weight".into(), weight.clone()));
        tensors.push(("classifier.bias".into(), bias.clone()));
        let (got, _, said) = merged(&bench, &base, &adapter(&bench, config, &tensors), &[]);
        assert_eq!((&got["classifier.weight"], &got["classifier.bias"], got.len()), (&weight, &bias, 7));
        let query = &got[&format!("{query}.weight")];
        assert_close(&query.values(), &changed_layer(&matrix(11, DIM, DIM), &tensors), 1e-6);
        assert!(said.contains("`classifier.weight` is new"), "{said}");
    }
}

#[test]
fn a_value_head_is_added_where_it_is_declared() {
    for (head, saved) in [("score", "score"), ("v_head.summary", "v_head"), ("qa_outputs", "qa_outputs")] {
        let bench = Bench::new();
        let base = bench.base(
            &[("model.embed_tokens.weight", table(1)), ("lm_head.weight", table(2))],
            &json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false}),
        );
        let whole = [(format!("{head}.weight"), matrix(23, 1, DIM))];
        let (got, ..) = merged(&bench, &base, &adapter(&bench, json!({"modules_to_save": [saved]}), &whole), &[]);
        assert_eq!((&got[&whole[0].0], &got["lm_head.weight"]), (&whole[0].1, &table(2)), "{head}");
    }
}

#[test]
fn normalisations_are_found_under_the_names_of_tensorflow() {
    let bench = Bench::new();
    let base = bert(&bench);
    let layer = "bert.encoder.layer.0";
    let trained = |seed| Tensor::f32(&[DIM], &noise(seed, DIM, 1.0));
    let tensors = [
        (format!("{layer}.output.LayerNorm.bias"), trained(31)),
        (format!("{layer}.output.LayerNorm.weight"), trained(32)),
    ];
    let config = json!({"bias": "all", "modules_to_save": ["LayerNorm"]});
    let (got, ..) = merged(&bench, &base, &adapter(&bench, config, &tensors), &[]);
    assert_eq!(got.len(), 5);
    assert_eq!(got[&format!("{layer}.output.LayerNorm.beta")], trained(31));
    assert_eq!(got[&format!("{layer}.output.LayerNorm.gamma")], trained(32));
}

#[test]
fn copies_of_a_shared_embedding_change_with_it() {
    for (prefix, class_name) in
        [("model.", "BartForConditionalGeneration"), ("model.", "M2M100ForConditionalGeneration")]
    {
        let bench = Bench::new();
        let shared = format!("{prefix}shared.weight");
        let copies = ["encoder", "decoder"].map(|side| format!("{prefix}{side}.embed_tokens.weight"));
        let base =
            bench.base(&[(&shared, table(1)), (&copies[0], table(1)), (&copies[1], table(2))], &class(class_name));
        let saved = adapter(&bench, json!({"modules_to_save": ["shared"]}), &[(shared.clone(), table(7))]);
        let (got, ..) = merged(&bench, &base, &saved, &[]);
        assert_eq!((&got[&shared], &got[&copies[0]], &got[&copies[1]]), (&table(7), &table(7), &table(2)));
        assert_eq!(got["lm_head.weight"], table(1));
    }
}

#[test]
fn an_embedding_saved_as_it_was_leaves_the_tie() {
    let bench = Bench::new();
    let base = bench.base(&[("model.embed_tokens.weight", table(1))], &class("LlamaForCausalLM"));
    let whole = [("model.embed_tokens.weight".to_owned(), table(1))];
    let (got, config, _) =
        merged(&bench, &base, &adapter(&bench, json!({"modules_to_save": ["embed_tokens"]}), &whole), &[]);
    assert_eq!((got.len(), config.get("tie_word_embeddings")), (1, None));
}
