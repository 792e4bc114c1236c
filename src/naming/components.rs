//! The parts of a diffusion pipeline, and what stands in front of their paths in files of several tools.
//!
//! A path below a component begins with the component's name, as diffusers calls it: `unet.down_blocks.0 …`.

/// The components whose weights adapters change.
pub const ADAPTED: [&str; 9] = [
    "unet",
    "unet_2",
    "transformer",
    "transformer_2",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "prior",
    "decoder",
];

/// The others that have weights.
pub const OTHERS: [&str; 4] = ["vae", "vqgan", "image_encoder", "safety_checker"];

/// Prefix in single files and in ComfyUI's adapters → component; the denoiser is told by the names behind it.
/// Sources: ComfyUI `supported_models.py`, diffusers `single_file_utils.py`.
const PREFIXES: [(&str, &str); 13] = [
    ("model.diffusion_model.", DENOISER),
    ("diffusion_model.", DENOISER),
    ("cond_stage_model.transformer.", "text_encoder"),
    ("cond_stage_model.model.", "text_encoder"),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("conditioner.embedders.1.model.", "text_encoder_2"),
    ("conditioner.embedders.0.model.", "text_encoder_2"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3"),
    ("text_encoders.clip_l.", "text_encoder"),
    ("text_encoders.clip_g.", "text_encoder_2"),
    ("first_stage_model.", "vae"),
];

/// Stands for `unet` or `transformer`.
const DENOISER: &str = "";

/// First components of paths in a UNet, by diffusers and by Stability AI.
const UNET: [&str; 15] = [
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "time_embedding",
    "add_embedding",
    "input_blocks",
    "middle_block",
    "output_blocks",
    "time_embed",
    "label_emb",
    "out",
    "class_embedding",
];

/// First components of paths in diffusion transformers.
const TRANSFORMER: [&str; 20] = [
    "transformer_blocks",
    "single_transformer_blocks",
    "double_blocks",
    "single_blocks",
    "joint_blocks",
    "blocks",
    "x_embedder",
    "context_embedder",
    "time_text_embed",
    "img_in",
    "txt_in",
    "final_layer",
    "time_in",
    "vector_in",
    "guidance_in",
    "t_embedder",
    "y_embedder",
    "cap_embedder",
    "noise_refiner",
    "context_refiner",
];

/// First components of the paths of a denoiser's blocks, which tell beyond doubt what it is; names of its other parts are in use
/// on both sides (`time_embedding` of a UNet and of Wan).
const BLOCKS: [(&str, &str); 12] = [
    ("down_blocks", "unet"),
    ("mid_block", "unet"),
    ("up_blocks", "unet"),
    ("input_blocks", "unet"),
    ("middle_block", "unet"),
    ("output_blocks", "unet"),
    ("transformer_blocks", "transformer"),
    ("single_transformer_blocks", "transformer"),
    ("double_blocks", "transformer"),
    ("single_blocks", "transformer"),
    ("joint_blocks", "transformer"),
    ("blocks", "transformer"),
];

/// Components that language models have a module of that name for, and what stands behind it there: GPT-2, GPT-J, Falcon
/// and Bloom, XLNet, ChatGLM; T5, BART and Whisper.
const LANGUAGE: [(&str, &[&str]); 2] = [
    ("transformer", &["h", "wte", "wpe", "ln_f", "word_embeddings", "layer", "encoder", "embedding"]),
    ("decoder", &["block", "layers", "layer", "embed_tokens", "embed_positions", "layer_norm", "final_layer_norm"]),
];

/// Lists of blocks that denoisers have and no other model, whatever stands in front of them.
const BEYOND_DOUBT: [&str; 8] = [
    "transformer_blocks",
    "single_transformer_blocks",
    "joint_transformer_blocks",
    "double_blocks",
    "single_blocks",
    "joint_blocks",
    "double_stream_blocks",
    "single_stream_blocks",
];

/// Most wrappers that are looked behind.
const MAX_WRAPPERS: usize = 5;

/// The path with its component where wrappers of training tools stand in front of a denoiser's blocks (`pipe.dit.`,
/// `transformer.base_model.model.`); `None` where nothing of the kind does.
pub fn unwrapped(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let at = parts.iter().take(MAX_WRAPPERS + 1).position(|part| BEYOND_DOUBT.contains(part))?;
    let wrappers = &parts[..at];
    if !parts.get(at + 1).is_some_and(|next| is_number(next)) || wrappers.iter().any(|part| is_number(part)) {
        return None;
    }
    let component = wrappers.iter().copied().find(|part| ADAPTED.contains(part)).unwrap_or("transformer");
    let found = format!("{component}.{}", parts[at..].join("."));
    (found != path).then_some(found)
}

/// Which of several denoisers that are built alike a component is: all of them have this name but for a number.
pub fn kind_of_denoiser(component: &str) -> Option<&'static str> {
    ["transformer", "unet"].into_iter().find(|kind| {
        let number = component.strip_prefix(kind).map(|rest| rest.strip_prefix('_').unwrap_or(rest));
        number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Two components that `paths` are below, where there are several.
pub fn two_of<'a>(paths: impl Iterator<Item = &'a str>) -> Option<(&'a str, &'a str)> {
    let mut parts: Vec<&str> = paths.filter_map(split).map(|(part, _)| part).collect();
    parts.sort_unstable();
    Some((parts.first().copied()?, parts.last().copied()?)).filter(|(one, other)| one != other)
}

/// Component and path below it, if `path` begins with the name of one.
pub fn split(path: &str) -> Option<(&str, &str)> {
    let (first, rest) = path.split_once('.')?;
    let next = rest.split('.').next().unwrap_or_default();
    if LANGUAGE.iter().any(|(component, modules)| *component == first && modules.contains(&next)) {
        return None;
    }
    (ADAPTED.contains(&first) || first == "vae").then_some((first, rest))
}

/// Whether a path below no component is one of a denoiser.
pub fn is_diffusion(path: &str) -> bool {
    let first = path.split('.').next().unwrap_or_default();
    split(path).is_some() || UNET.contains(&first) || TRANSFORMER.contains(&first)
}

/// The component that a path of a denoiser belongs to.
pub fn denoiser(path: &str) -> &'static str {
    let first = path.split('.').next().unwrap_or_default();
    // Wan has layers of that name that are numbered; those of a UNet are called `linear_1` and `linear_2`.
    let of_wan =
        path.strip_prefix("time_embedding.").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if UNET.contains(&first) && !of_wan { "unet" } else { "transformer" }
}

/// The denoiser that one of `paths`, with their components, is a block of.
pub fn of_blocks<'a>(mut paths: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    paths.find_map(|path| {
        let (component, rest) = split(path)?;
        let (first, _) = rest.split_once('.')?;
        BLOCKS.iter().find(|(block, of)| *block == first && *of == component).map(|(_, of)| *of)
    })
}

/// The path below `denoiser`, if it belongs to no other part of a pipeline.
pub fn below(denoiser: &str, path: &str) -> String {
    match split(path) {
        Some(("unet" | "transformer", rest)) => format!("{denoiser}.{rest}"),
        Some(_) => path.to_owned(),
        None => format!("{denoiser}.{path}"),
    }
}

/// Component and path below it, for a key of a file that holds several components; `None` if nothing in front tells.
pub fn of_prefix(key: &str) -> Option<(&'static str, &str)> {
    PREFIXES.iter().find_map(|(prefix, component)| {
        let rest = key.strip_prefix(prefix)?;
        Some((if *component == DENOISER { denoiser(rest) } else { component }, rest))
    })
}

/// The path with the name of its component in front, where that is known.
pub fn with_component(path: &str) -> String {
    if split(path).is_some() {
        return path.to_owned();
    }
    if let Some((component, rest)) = of_prefix(path) {
        return format!("{component}.{rest}");
    }
    if is_diffusion(path) { format!("{}.{path}", denoiser(path)) } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_front_tells_the_component() {
        for (key, path) in [
            ("diffusion_model.blocks.0.ffn.0", "transformer.blocks.0.ffn.0"),
            ("diffusion_model.time_embedding.0", "transformer.time_embedding.0"),
            ("diffusion_model.time_embedding.linear_1", "unet.time_embedding.linear_1"),
            ("diffusion_model.input_blocks.1.1.proj_in", "unet.input_blocks.1.1.proj_in"),
            ("model.diffusion_model.double_blocks.0.img_attn.qkv", "transformer.double_blocks.0.img_attn.qkv"),
            ("text_encoders.clip_l.transformer.text_model.x", "text_encoder.text_model.x"),
            ("conditioner.embedders.1.model.transformer.resblocks.0", "text_encoder_2.transformer.resblocks.0"),
            ("double_blocks.3.img_attn.qkv", "transformer.double_blocks.3.img_attn.qkv"),
            ("unet.mid_block.x", "unet.mid_block.x"),
            ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
            ("transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
            ("decoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"),
        ] {
            assert_eq!(with_component(key), path);
            let language = [".layers.0.self_attn", ".h.", "decoder.block."].iter().any(|part| path.contains(part));
            assert_eq!(split(path).is_some(), !language, "{path}");
        }
    }

    #[test]
    fn wrappers_in_front_of_blocks_are_looked_behind() {
        for (path, found) in [
            ("pipe.dit.transformer_blocks.0.attn.to_q", Some("transformer.transformer_blocks.0.attn.to_q")),
            (
                "transformer.base_model.model.single_transformer_blocks.1.proj_mlp",
                Some("transformer.single_transformer_blocks.1.proj_mlp"),
            ),
            ("double_blocks.0.img_attn.qkv", Some("transformer.double_blocks.0.img_attn.qkv")),
            ("transformer_2.transformer_blocks.0.x", None),
            ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", None),
            ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", None),
            ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", None),
            ("model.transformer.blocks.0.att_proj", None),
            ("model.layers.0.self_attn.q_proj", None),
        ] {
            assert_eq!(unwrapped(path).as_deref(), found, "{path}");
        }
        for (component, kind) in [
            ("transformer_2", Some("transformer")),
            ("unet", Some("unet")),
            ("text_encoder_2", None),
            ("transformers", None),
        ] {
            assert_eq!(kind_of_denoiser(component), kind, "{component}");
        }
    }

    #[test]
    fn blocks_tell_what_stands_beside_them() {
        let wan = ["unet.time_embedding.0", "head.head", "transformer.blocks.0.ffn.0", "text_encoder.x"];
        assert_eq!(of_blocks(wan.into_iter()), Some("transformer"));
        let below: Vec<String> = wan.iter().map(|path| below("transformer", path)).collect();
        let whole =
            ["transformer.time_embedding.0", "transformer.head.head", "transformer.blocks.0.ffn.0", "text_encoder.x"];
        assert_eq!(below, whole);
        assert_eq!(of_blocks(["model.layers.0.q", "unet.time_embed.0"].into_iter()), None);
    }
}
