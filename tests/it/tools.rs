//! What the files of many trainers look like, and how each of them is read.

use lorakit::adapters::{Adapter, Change};
use lorakit::dialects::is_adapter;
use serde_json::json;

use crate::support::{Bench, Tensor, noise, write};

/// Keys of one module → the dialect, its path, and the scale; rank 2, α = 4 where there is one.
const FILES: [(&str, [&str; 3], &str, &str, f64); 15] = [
    (
        "sd-scripts, SD 1",
        [
            "lora_te_text_model_encoder_layers_3_mlp_fc1.lora_down.weight",
            "lora_te_text_model_encoder_layers_3_mlp_fc1.lora_up.weight",
            "lora_te_text_model_encoder_layers_3_mlp_fc1.alpha",
        ],
        "kohya",
        "text_encoder.text_model.encoder.layers.3.mlp.fc1",
        2.0,
    ),
    (
        "sd-scripts, SDXL",
        [
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight",
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight",
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.alpha",
        ],
        "kohya",
        "unet.input_blocks.4.1.transformer_blocks.1.attn1.to_q",
        2.0,
    ),
    (
        "sd-scripts, Flux",
        [
            "lora_unet_single_blocks_3_linear1.lora_down.weight",
            "lora_unet_single_blocks_3_linear1.lora_up.weight",
            "lora_unet_single_blocks_3_linear1.alpha",
        ],
        "kohya",
        "transformer.single_blocks.3.linear1",
        2.0,
    ),
    (
        "musubi, Wan",
        [
            "lora_unet_blocks_3_self_attn_q.lora_down.weight",
            "lora_unet_blocks_3_self_attn_q.lora_up.weight",
            "lora_unet_blocks_3_self_attn_q.alpha",
        ],
        "kohya",
        "transformer.blocks.3.self_attn.q",
        2.0,
    ),
    (
        "a name of no table",
        ["lora_unet_foo_bar.lora_down.weight", "lora_unet_foo_bar.lora_up.weight", "lora_unet_foo_bar.alpha"],
        "kohya",
        "lora_unet_foo_bar",
        2.0,
    ),
    (
        "OneTrainer",
        [
            "lora_transformer_single_transformer_blocks_3_proj_mlp.lora_down.weight",
            "lora_transformer_single_transformer_blocks_3_proj_mlp.lora_up.weight",
            "lora_transformer_single_transformer_blocks_3_proj_mlp.alpha",
        ],
        "kohya",
        "transformer.single_transformer_blocks.3.proj_mlp",
        2.0,
    ),
    (
        "ComfyUI",
        [
            "diffusion_model.blocks.3.ffn.0.lora_down.weight",
            "diffusion_model.blocks.3.ffn.0.lora_up.weight",
            "diffusion_model.blocks.3.ffn.0.alpha",
        ],
        "comfyui",
        "transformer.blocks.3.ffn.0",
        2.0,
    ),
    (
        "ai-toolkit",
        [
            "transformer.single_transformer_blocks.3.proj_mlp.lora_A.weight",
            "transformer.single_transformer_blocks.3.proj_mlp.lora_B.weight",
            "",
        ],
        "diffusers",
        "transformer.single_transformer_blocks.3.proj_mlp",
        1.0,
    ),
    (
        "diffusers of 2023",
        [
            "unet.mid_block.attentions.0.proj_in.lora.down.weight",
            "unet.mid_block.attentions.0.proj_in.lora.up.weight",
            "",
        ],
        "diffusers",
        "unet.mid_block.attentions.0.proj_in",
        1.0,
    ),
    (
        "attention processors",
        [
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
            "",
        ],
        "diffusers",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        1.0,
    ),
    (
        "text encoders of 2023",
        [
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.down.weight",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight",
            "",
        ],
        "diffusers",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
        1.0,
    ),
    (
        "Mochi",
        [
            "transformer.transformer_blocks.3.attn1.to_q.lora_A",
            "transformer.transformer_blocks.3.attn1.to_q.lora_B",
            "",
        ],
        "diffusers",
        "transformer.transformer_blocks.3.attn1.to_q",
        1.0,
    ),
    (
        "XLabs",
        ["double_blocks.3.processor.qkv_lora2.down.weight", "double_blocks.3.processor.qkv_lora2.up.weight", ""],
        "xlabs",
        "transformer.double_blocks.3.txt_attn.qkv",
        1.0,
    ),
    (
        "fal",
        [
            "base_model.model.double_blocks.3.img_attn.proj.lora_A.weight",
            "base_model.model.double_blocks.3.img_attn.proj.lora_B.weight",
            "",
        ],
        "peft",
        "transformer.double_blocks.3.img_attn.proj",
        1.0,
    ),
    (
        "Black Forest Labs",
        ["double_blocks.3.img_attn.proj.lora_A.weight", "double_blocks.3.img_attn.proj.lora_B.weight", ""],
        "diffusers",
        "transformer.double_blocks.3.img_attn.proj",
        1.0,
    ),
];

fn pair() -> (Tensor, Tensor) {
    (Tensor::f32(&[2, 6], &noise(1, 12, 1.0)), Tensor::f32(&[8, 2], &noise(2, 16, 1.0)))
}

#[test]
fn files_of_every_trainer_are_read() {
    for (tool, [down, up, alpha], dialect, path, scale) in FILES {
        let bench = Bench::new();
        let (a, b) = pair();
        let mut tensors = vec![(down, a), (up, b)];
        if !alpha.is_empty() {
            tensors.push((alpha, Tensor::f32(&[], &[4.0])));
        }
        let file = bench.path("some.safetensors");
        write(&file, &tensors);
        assert!(is_adapter(&file), "{tool}");
        let adapter = Adapter::open(&file).unwrap_or_else(|problem| panic!("{tool}: {problem}"));
        let paths: Vec<&str> = adapter.modules.iter().map(|module| module.path.as_str()).collect();
        assert_eq!((adapter.dialect, paths), (dialect, vec![path]), "{tool}");
        assert!(matches!(adapter.modules[0].change, Change::Lora(_)), "{tool}");
        let own = adapter.config.scaling.as_ref().map(|scaling| scaling.scale(path));
        assert_eq!(own, Some(scale), "{tool}");
    }
}

/// B of two heads of four rows, as torchtune keeps it and as transformers does.
fn heads() -> (Vec<f32>, Vec<f32>) {
    let row = |row: usize| [row as f32, row as f32 + 0.5];
    let own = (0..8).flat_map(row).collect();
    let halves = [0, 2, 1, 3, 4, 6, 5, 7].into_iter().flat_map(row).collect();
    (own, halves)
}

fn torchtune(bench: &Bench, model: Option<serde_json::Value>) -> std::path::PathBuf {
    let (a, _) = pair();
    let b = Tensor::f32(&[8, 2], &heads().0);
    let file = bench.path("adapter_0.safetensors");
    let tensors = [
        ("layers.0.attn.q_proj.lora_a.weight", a.clone()),
        ("layers.0.attn.q_proj.lora_b.weight", b.clone()),
        ("layers.0.attn.output_proj.lora_a.weight", a),
        ("layers.0.attn.output_proj.lora_b.weight", b),
    ];
    write(&file, &tensors);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"]});
    std::fs::write(bench.path("adapter_config.json"), config.to_string()).unwrap();
    if let Some(model) = model {
        std::fs::write(bench.path("config.json"), model.to_string()).unwrap();
    }
    file
}

#[test]
fn torchtunes_heads_are_put_in_order() {
    let bench = Bench::new();
    let file = torchtune(&bench, Some(json!({"model_type": "llama", "num_attention_heads": 2})));
    let adapter = Adapter::open(&file).unwrap();
    assert_eq!(adapter.dialect, "torchtune");
    let (own, halves) = heads();
    for (path, wanted) in [("model.layers.0.self_attn.q_proj", halves), ("model.layers.0.self_attn.o_proj", own)] {
        let module = adapter.modules.iter().find(|module| module.path == path).expect(path);
        let Change::Lora(lora) = &module.change else { panic!("{path} is no pair") };
        let bytes: Vec<u8> = wanted.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(lora.up.view().unwrap().data, bytes, "{path}");
        assert_eq!(adapter.config.scaling.as_ref().map(|scaling| scaling.scale(path)), Some(3.0));
    }
}

#[test]
fn torchtune_needs_the_number_of_heads() {
    let bench = Bench::new();
    let problem = Adapter::open(&torchtune(&bench, None)).unwrap_err().to_string();
    assert!(problem.contains("config.json") && problem.contains("heads"), "{problem}");
    let bench = Bench::new();
    let problem = Adapter::open(&torchtune(&bench, Some(json!({"num_attention_heads": 3})))).unwrap_err().to_string();
    assert!(problem.contains("8 rows") && problem.contains("3 heads"), "{problem}");
}

#[test]
fn a_model_is_no_adapter() {
    let bench = Bench::new();
    let file = bench.path("model.safetensors");
    let weight = Tensor::f32(&[2, 2], &[0.0; 4]);
    write(&file, &[("model.diffusion_model.out.2.weight", weight.clone()), ("lm_head.weight", weight)]);
    assert!(!is_adapter(&file));
    let problem = Adapter::open(&file).unwrap_err().to_string();
    assert!(problem.contains("lm_head.weight"), "{problem}");
}
