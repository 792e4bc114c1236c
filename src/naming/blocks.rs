//! Weights block by block (`--lbw`): lists of numbers, one for each block of a model. Which blocks, and whose modules they are, is
//! the table `blocks.toml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::{Error, Result};

/// What the option is called.
const OPTION: &str = "--lbw";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    layout: Vec<Layout>,
    names: BTreeMap<String, Vec<Names>>,
    presets: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    model: String,
    names: String,
    blocks: String,
}

/// How the modules of a block are called.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    block: String,
    #[serde(default)]
    paths: Vec<String>,
    /// Blocks of levels of layers, and where the numbers of a level of three begin.
    levels: Option<String>,
    #[serde(default)]
    first: u64,
    #[serde(default)]
    sampler: String,
    #[serde(default)]
    sampled: u64,
}

static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("blocks.toml")).expect("the table of blocks is part of the program"));

/// One weight for each block of a model.
#[derive(Debug, Clone)]
pub struct BlockWeights {
    written: String,
    layout: &'static Layout,
    weights: BTreeMap<String, f64>,
}

impl BlockWeights {
    /// Reads numbers with commas between, or the name of a preset.
    ///
    /// # Errors
    /// When a number is none, or no model has so many blocks.
    pub fn read(written: &str) -> Result<Self> {
        let list = TABLE.presets.get(written.trim()).map_or(written, String::as_str);
        let weight = |text: &str| text.trim().parse::<f64>().ok().filter(|weight| weight.is_finite());
        let weights: Vec<f64> = list.split(',').map(weight).collect::<Option<_>>().ok_or_else(|| {
            let names: Vec<&str> = TABLE.presets.keys().map(String::as_str).collect();
            let problem = format!("`{written}` is neither finite numbers with commas between nor a preset");
            Error::invalid(OPTION, problem).hint(format!("presets: {}", names.join(", ")))
        })?;
        let layout = TABLE.layout.iter().find(|layout| layout.ids().len() == weights.len()).ok_or_else(|| {
            let known = TABLE
                .layout
                .iter()
                .map(|layout| format!("{} for {} ({})", layout.ids().len(), layout.model, layout.blocks));
            let problem = format!("{} weights are given, and no model has so many blocks", weights.len());
            Error::invalid(OPTION, problem).hint(known.collect::<Vec<_>>().join(", "))
        })?;
        Ok(Self { written: written.to_owned(), layout, weights: layout.ids().into_iter().zip(weights).collect() })
    }

    /// As it was written.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The weight of a module's block; 1 for one that is in none, such as the embedding of the time.
    ///
    /// # Errors
    /// When the list has no number for its block.
    pub fn of(&self, module: &str) -> Result<f64> {
        let Some(block) = self.layout.block(module) else { return Ok(1.0) };
        self.weights.get(&block).copied().ok_or_else(|| {
            let (count, model, blocks) = (self.weights.len(), &self.layout.model, &self.layout.blocks);
            let problem = format!("`{module}` is in block {block}, and {count} weights are those of {model}: {blocks}");
            let others = TABLE.layout.iter().filter(|layout| layout.ids().contains(&block));
            let hint =
                others.map(|layout| format!("{} weights for {} ({})", layout.ids().len(), layout.model, layout.blocks));
            Error::invalid(OPTION, problem).hint(hint.collect::<Vec<_>>().join(", "))
        })
    }

    /// Makes sure that every module has a weight, and that some are in a block.
    ///
    /// # Errors
    /// When one has none, or none is in any.
    pub fn check<'a>(&self, modules: impl IntoIterator<Item = &'a String>) -> Result<()> {
        let mut inside = false;
        for module in modules {
            self.of(module)?;
            inside |= self.layout.block(module).is_some();
        }
        if inside {
            return Ok(());
        }
        let problem = format!("none of the modules is in a block of {} ({})", self.layout.model, self.layout.blocks);
        Err(Error::invalid(OPTION, problem))
    }
}

impl Layout {
    /// The names of its blocks, ranges written out.
    fn ids(&self) -> Vec<String> {
        let ids = |item: &str| {
            let Some((first, last)) = item.split_once('-') else { return vec![item.to_owned()] };
            let name = first.trim_end_matches(|c: char| c.is_ascii_digit());
            let number = |id: &str| id[name.len()..].parse::<u64>().expect("a range is of numbers");
            (number(first)..=number(last)).map(|at| format!("{name}{at:02}")).collect()
        };
        self.blocks.split(' ').flat_map(ids).collect()
    }

    /// The block of a module.
    fn block(&self, module: &str) -> Option<String> {
        let flat = format!("{}_", module.replace(['.', '/'], "_"));
        TABLE.names[&self.names].iter().find_map(|names| names.block_of(&flat))
    }
}

impl Names {
    fn block_of(&self, flat: &str) -> Option<String> {
        let numbered = |number: u64| format!("{}{number:02}", self.block);
        if let Some(levels) = &self.levels {
            let (level, rest) = number_after(flat, levels)?;
            let in_level = match number_after(rest, "resnets_").or_else(|| number_after(rest, "attentions_")) {
                Some((layer, _)) => layer.checked_add(self.first)?,
                None => rest.contains(&self.sampler).then_some(self.sampled)?,
            };
            return Some(numbered(level.checked_mul(3)?.checked_add(in_level)?));
        }
        self.paths.iter().find_map(|path| match path.split_once("{n}") {
            Some((front, _)) => number_after(flat, front).map(|(number, _)| numbered(number)),
            None => flat.contains(path.as_str()).then(|| self.block.clone()),
        })
    }
}

/// The number that follows `front` in `flat`, and what follows the underscore behind it.
fn number_after<'a>(flat: &'a str, front: &str) -> Option<(u64, &'a str)> {
    let (number, rest) = flat.split_once(front)?.1.split_once('_')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_module_is_in_its_block() {
        let list = |count: usize| BlockWeights::read(&vec!["1"; count].join(",")).unwrap().layout;
        for (count, module, block) in [
            (26, "lora_te_text_model_encoder_layers_0_mlp_fc1", "BASE"),
            (26, "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_fc", "BASE"),
            (26, "model.diffusion_model.input_blocks.0.0", "IN00"),
            (26, "conv_in", "IN00"),
            (26, "lora_unet_down_blocks_0_attentions_0_proj_in", "IN01"),
            (26, "unet.down_blocks.1.resnets.1.conv1", "IN05"),
            (26, "down_blocks.2.downsamplers.0.conv", "IN09"),
            (26, "model.diffusion_model.input_blocks.11.0.in_layers.2", "IN11"),
            (26, "mid_block.attentions.0.proj_in", "M00"),
            (26, "lora_unet_middle_block_1_proj_out", "M00"),
            (26, "up_blocks.0.upsamplers.0.conv", "OUT02"),
            (26, "up_blocks.3.attentions.2.proj_in", "OUT11"),
            (12, "lora_unet_output_blocks_5_1_proj_in", "OUT05"),
            (61, "lora_unet_double_blocks_18_img_attn_qkv", "D18"),
            (61, "transformer.transformer_blocks.7.attn.to_q", "D07"),
            (61, "transformer.single_transformer_blocks.37.proj_out", "S37"),
            (61, "single_blocks.3.linear1", "S03"),
            (61, "img_in", "IN"),
            (61, "time_text_embed.text_embedder.linear_1", "IN"),
            (61, "final_layer.linear", "OUT"),
            (61, "text_model.encoder.layers.0.mlp.fc1", "CLIP"),
            (61, "lora_te3_encoder_block_0_layer_0_SelfAttention_q", "T5"),
        ] {
            assert_eq!(list(count).block(module).as_deref(), Some(block), "{module}");
        }
        assert_eq!(list(26).block("time_embed.0"), None);
        let of_attention = BlockWeights::read(&vec!["1"; 17].join(",")).unwrap();
        let message = of_attention.of("unet.conv_in").unwrap_err().to_string();
        assert!(message.contains("block IN00, and 17 weights"), "{message}");
    }

    #[test]
    fn lists_have_as_many_numbers_as_blocks() {
        let counts: Vec<usize> = TABLE.layout.iter().map(|layout| layout.ids().len()).collect();
        assert_eq!(counts, [17, 26, 12, 20, 61]);
        for (name, list) in &TABLE.presets {
            assert_eq!(BlockWeights::read(name).unwrap().weights.len(), 17);
            assert_eq!(list.split(',').count(), 17, "{name}");
        }
        for (wrong, part) in [("1,0", "2 weights are given"), ("1,x", "neither"), ("INX", "neither"), ("", "neither")] {
            let message = BlockWeights::read(wrong).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
