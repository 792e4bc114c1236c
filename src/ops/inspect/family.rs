//! The family of a model, guessed from the names of its tensors where no config tells.
//!
//! Sources: the names in the checkpoints of each family, as diffusers (`loaders/single_file_utils.py`) and ComfyUI
//! (`comfy/model_detection.py`) tell them apart.

use crate::formats::Checkpoint;

/// Most names that are looked at: those of the first layer come among the first of a file.
const MAX_NAMES: usize = 20_000;

/// A family and parts of names that it has; the first row whose parts are all there counts, so that a special case comes first.
const FAMILIES: [(&str, &[&str]); 31] = [
    (
        "Stable Diffusion XL refiner, single file",
        &["model.diffusion_model.input_blocks.", "conditioner.embedders.0.model."],
    ),
    ("Stable Diffusion XL, single file", &["model.diffusion_model.input_blocks.", "conditioner.embedders.1."]),
    ("Stable Diffusion 2, single file", &["model.diffusion_model.input_blocks.", "cond_stage_model.model."]),
    ("Stable Diffusion 1, single file", &["model.diffusion_model.input_blocks.", "cond_stage_model.transformer."]),
    ("ControlNet, original names", &["control_model.input_blocks."]),
    ("Stable Diffusion UNet, original names", &["input_blocks.", "output_blocks.", "middle_block."]),
    ("Stable Diffusion 3, original names", &["joint_blocks.", "x_embedder."]),
    ("Flux.1 dev, original names", &["double_blocks.", "img_attn.qkv", "single_blocks.", "guidance_in."]),
    ("Flux.1, original names", &["double_blocks.", "img_attn.qkv", "single_blocks."]),
    ("HunyuanVideo, original names", &["double_blocks.", "img_attn_qkv", "single_blocks."]),
    ("Flux, diffusers names", &["single_transformer_blocks.", "transformer_blocks.", "context_embedder."]),
    ("Qwen-Image, diffusers names", &["transformer_blocks.", "txt_mlp.net.", "img_mod."]),
    ("Stable Diffusion 3, diffusers names", &["transformer_blocks.", "add_q_proj", "pos_embed.proj"]),
    ("Wan, original names", &["blocks.", "cross_attn.q.", "time_projection."]),
    ("Wan, diffusers names", &["blocks.", "attn2.to_q", "condition_embedder.time_proj"]),
    ("ControlNet, diffusers names", &["controlnet_cond_embedding."]),
    (
        "UNet, diffusers names, with two time embeddings (SDXL)",
        &["down_blocks.", "up_blocks.", "add_embedding.", "time_embedding."],
    ),
    ("UNet, diffusers names", &["down_blocks.", "up_blocks.", "time_embedding."]),
    ("VAE, diffusers names", &["encoder.down_blocks.", "decoder.up_blocks."]),
    ("VAE, original names", &["encoder.down.", "decoder.up."]),
    ("CLIP text encoder", &["text_model.encoder.layers."]),
    ("T5", &["block.0.layer.0.SelfAttention."]),
    ("mixture of experts (Mixtral)", &["model.layers.", "block_sparse_moe."]),
    ("mixture of experts, Llama names", &["model.layers.", "mlp.experts."]),
    ("Llama names, queries and keys normalised (Qwen3)", &["model.layers.", "self_attn.q_proj", "self_attn.q_norm"]),
    ("Llama names", &["model.layers.", "self_attn.q_proj"]),
    ("Llama, original names", &["layers.0.attention.wq."]),
    ("GPT-2", &["h.0.attn.c_attn."]),
    ("GPT-NeoX", &["gpt_neox.layers."]),
    ("BERT", &["encoder.layer.", "attention.self.query."]),
    ("ViT", &["encoder.layers.", "patch_embed"]),
];

/// The family; `None` if the names are of none that is known.
pub fn family(checkpoint: &Checkpoint) -> Option<&'static str> {
    let names: Vec<&str> = checkpoint.tensors().take(MAX_NAMES).map(|tensor| tensor.name.as_str()).collect();
    of_names(&names)
}

fn of_names(names: &[&str]) -> Option<&'static str> {
    let has = |part: &&str| names.iter().any(|name| name.contains(*part));
    FAMILIES.iter().find(|(_, parts)| parts.iter().all(has)).map(|(family, _)| *family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_own_parts() {
        for (family, parts) in FAMILIES {
            assert_eq!(of_names(parts), Some(family));
        }
    }

    #[test]
    fn names_of_no_family_are_of_none() {
        assert_eq!(of_names(&["a.weight", "layer.3.bias"]), None);
    }
}
