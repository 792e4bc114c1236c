//! Parts of a fused weight that are counted instead of named: OneTrainer's OMI files have `img_attn.qkv.0` for the queries in
//! `img_attn.qkv`. Source: OneTrainer `omi_model_standards`.

use super::{Arch, Spelling, archs, flattened};

/// The name in diffusers of a part that is counted, dotted with its component; `None` where `path`, dotted or flattened, is no
/// such part, or families call it differently.
pub fn part_of(path: &str) -> Option<String> {
    let dotted = path.contains('.');
    let (fused, number) = path.rsplit_once(if dotted { '.' } else { '_' })?;
    let part: usize = number.parse().ok()?;
    if !dotted {
        flattened(fused)?;
    }
    let mut found: Vec<String> = Vec::new();
    for arch in archs().iter().filter(|arch| arch.is_denoiser() && !arch.is_aside()) {
        let fused = if dotted { vec![fused.to_owned()] } else { arch.unflatten(fused) };
        for name in fused.iter().filter_map(|fused| arch.part(fused, part)) {
            if !found.contains(&name) {
                found.push(name);
            }
        }
    }
    if found.len() == 1 { found.pop() } else { None }
}

impl Arch {
    /// The name of part number `part` of the fused weight `path`.
    fn part(&self, path: &str, part: usize) -> Option<String> {
        let (component, below) = self.below(path)?;
        self.find(below).into_iter().filter(|(place, _)| place.spelling == Spelling::Original).find_map(
            |(place, filling)| {
                let parts = &self.row(place).diffusers;
                let name = parts.get(part).filter(|_| parts.len() > 1)?.fill(&filling);
                Some(if component.is_empty() { name } else { format!("{component}.{name}") })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_parts_are_named() {
        for (counted, named) in [
            ("transformer.double_blocks.3.img_attn.qkv.1", Some("transformer.transformer_blocks.3.attn.to_k")),
            ("transformer.single_blocks.0.linear1.3", Some("transformer.single_transformer_blocks.0.proj_mlp")),
            (
                "lora_transformer_double_blocks_3_txt_attn_qkv_0",
                Some("transformer.transformer_blocks.3.attn.add_q_proj"),
            ),
            ("lora_transformer_single_blocks_0_linear1_3", Some("transformer.single_transformer_blocks.0.proj_mlp")),
            ("transformer.joint_blocks.2.x_block.attn.qkv.2", Some("transformer.transformer_blocks.2.attn.to_v")),
            ("transformer.double_blocks.3.img_attn.qkv.3", None),
            ("transformer.double_blocks.3.img_mlp.0", None),
            ("transformer.layers.3.attention.qkv.0", None),
        ] {
            assert_eq!(part_of(counted).as_deref(), named, "{counted}");
        }
    }
}
