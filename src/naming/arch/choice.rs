//! Which family of models an adapter or a base is of: by what it says of itself, else by the names, sizes and numbers of its
//! modules, which rule families out. What is left may be several: nothing here guesses.
//!
//! The sizes are those of the models there are (`[[model]]` in `archs/*.toml`, by the configs of their releases).

use super::table::Model;
use super::{Arch, archs, archs_of};

/// Fewer inputs than any part of a released model has (320 in the first block of Stable Diffusion 1): those of a model that was
/// made for a test say nothing of the family.
const FEWEST_INPUTS: u64 = 320;

/// How names of models begin whose modules no table has, although another family's name begins theirs.
const WITHOUT_TABLE: [&str; 7] =
    ["flux3", "hunyuanvideo15", "hunyuanimage", "ltx2", "wananimate", "qwenimage21", "qwenimagelayered"];

/// A module: its path, dotted with its component or flattened, and its outputs and inputs where they are known.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The path.
    pub path: &'a str,
    /// Outputs and inputs.
    pub size: Option<(u64, u64)>,
}

/// What told the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The names of the modules.
    Names,
    /// The sizes of the modules and the numbers of their blocks.
    Sizes,
    /// Every block of the model is changed, and no further one.
    Blocks,
}

impl By {
    /// For reports.
    pub fn words(self) -> &'static str {
        match self {
            Self::Names => "the names of its modules",
            Self::Sizes => "the sizes and numbers of its modules",
            Self::Blocks => "the number of its blocks",
        }
    }
}

/// The families that are left.
#[derive(Debug, Clone)]
pub struct Left {
    /// In the order of the tables.
    pub families: Vec<&'static Arch>,
    /// What ruled out the others.
    pub by: By,
    /// The names are those of `families`, and no model of them has modules of these sizes.
    pub other_sizes: bool,
}

/// The families that modules can belong to.
pub fn left(modules: &[Seen<'_>]) -> Left {
    let named = archs_of(modules.iter().map(|module| module.path));
    // Some names are told by how a fused weight is divided.
    let fitting = |family: &&&Arch| {
        let fits =
            |module: &&Seen<'_>| module.size.is_some_and(|(outputs, inputs)| family.fits(module.path, outputs, inputs));
        modules.iter().filter(fits).count()
    };
    let most = named.iter().map(|family| fitting(&family)).max().unwrap_or(0);
    let named: Vec<&Arch> = named.into_iter().filter(|family| fitting(&family) == most).collect();
    let sized: Vec<&Arch> = named.iter().copied().filter(|family| family.has_sizes(modules)).collect();
    match (named.len(), sized.as_slice()) {
        (_, []) => Left { other_sizes: !named.is_empty(), families: named, by: By::Names },
        (1, _) => Left { families: named, by: By::Names, other_sizes: false },
        (_, [_]) => Left { families: sized, by: By::Sizes, other_sizes: false },
        _ => match sized.iter().filter(|family| family.is_complete(modules)).collect::<Vec<_>>().as_slice() {
            [one] => Left { families: vec![one], by: By::Blocks, other_sizes: false },
            _ => Left { families: sized, by: By::Sizes, other_sizes: false },
        },
    }
}

/// What a text says of the family: the name of a class or an architecture, `ss_base_model_version`, `modelspec.architecture`.
#[derive(Debug, Clone, Copy)]
pub enum Said {
    /// It is this one.
    Family(&'static Arch),
    /// It is none that a table has.
    Other,
    /// Nothing.
    Nothing,
}

/// What `text` says of the family.
pub fn said(text: &str) -> Said {
    let text: String = text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let known = archs().iter().flat_map(|arch| arch.table.says.iter().map(move |begin| (begin.as_str(), Some(arch))));
    let all = known.chain(WITHOUT_TABLE.iter().map(|begin| (*begin, None)));
    match all.filter(|(begin, _)| text.starts_with(begin)).max_by_key(|(begin, _)| begin.len()) {
        Some((_, Some(arch))) => Said::Family(arch),
        Some((_, None)) => Said::Other,
        None => Said::Nothing,
    }
}

impl Arch {
    /// Whether a model of this family can have modules of these sizes, and so many blocks. True where its table tells no sizes.
    pub fn has_sizes(&self, modules: &[Seen<'_>]) -> bool {
        let models = &self.table.models;
        models.is_empty() || models.iter().any(|model| modules.iter().all(|module| self.allows(model, module)))
    }

    fn allows(&self, model: &Model, module: &Seen<'_>) -> bool {
        let Some(path) = self.own_path(module.path) else { return true };
        let numbered = model.blocks.iter().all(|(list, count)| block_of(&path, list).is_none_or(|at| at < *count));
        let inputs = module.size.map(|(_, inputs)| inputs).filter(|inputs| *inputs >= FEWEST_INPUTS);
        numbered
            && inputs.is_none_or(|own| {
                let ends = |end: &str| path.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'));
                model.inputs.iter().filter(|(end, _)| ends(end)).all(|(_, inputs)| *inputs == own)
            })
    }

    /// Whether every block of a model's lists, as far as a list is changed at all, has a module among these.
    fn is_complete(&self, modules: &[Seen<'_>]) -> bool {
        let paths: Vec<String> = modules.iter().filter_map(|module| self.own_path(module.path)).collect();
        self.table.models.iter().any(|model| {
            let counts = model.blocks.iter().map(|(list, count)| {
                let seen: std::collections::BTreeSet<u64> =
                    paths.iter().filter_map(|path| block_of(path, list)).collect();
                (seen.len() as u64, *count)
            });
            let counts: Vec<(u64, u64)> = counts.filter(|(seen, _)| *seen > 0).collect();
            !counts.is_empty() && counts.iter().all(|(seen, count)| seen == count)
        })
    }

    /// The path of a module below its component, dotted.
    fn own_path(&self, path: &str) -> Option<String> {
        if let Some((_, rest)) = self.below(path) {
            return Some(rest.to_owned());
        }
        let dotted = self.unflatten(path).into_iter().next()?;
        self.below(&dotted).map(|(_, rest)| rest.to_owned())
    }
}

/// The number of the block of `list` that the path lies in.
fn block_of(path: &str, list: &str) -> Option<u64> {
    path.strip_prefix(list)?.strip_prefix('.')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(modules: &[(&str, u64)]) -> Vec<&'static str> {
        let seen: Vec<Seen<'_>> =
            modules.iter().map(|(path, width)| Seen { path, size: Some((*width, *width)) }).collect();
        left(&seen).families.iter().map(|family| family.name()).collect()
    }

    #[test]
    fn sizes_and_numbers_of_blocks_rule_families_out() {
        let block = |at: u64| format!("transformer.transformer_blocks.{at}.attn.to_q");
        assert_eq!(names(&[(&block(59), 3072)]), ["qwen_image"]);
        assert_eq!(names(&[(&block(23), 1536)]), ["sd3"]);
        assert_eq!(names(&[(&block(30), 2432)]), ["sd3"]);
        assert_eq!(names(&[(&block(7), 6144)]), ["flux2"]);
        assert_eq!(names(&[(&block(18), 3072)]), ["flux", "hunyuan_video", "qwen_image"]);
        assert_eq!(names(&[(&block(19), 3072)]), ["hunyuan_video", "qwen_image"]);
        // A model of a test: only its names tell.
        assert_eq!(names(&[(&block(0), 16)]), ["sd3", "flux", "flux2", "hunyuan_video", "qwen_image"]);
        let other = left(&[Seen { path: &block(0), size: Some((2560, 2560)) }]);
        assert!(other.other_sizes && other.families.len() == 5);
    }

    #[test]
    fn all_blocks_of_a_model_tell_it() {
        let paths: Vec<String> = (0..19).map(|at| format!("transformer.transformer_blocks.{at}.attn.to_q")).collect();
        let seen: Vec<Seen<'_>> = paths.iter().map(|path| Seen { path, size: Some((3072, 3072)) }).collect();
        let found = left(&seen);
        assert_eq!((found.families[0].name(), found.families.len(), found.by), ("flux", 1, By::Blocks));
    }

    #[test]
    fn what_models_are_called_tells_the_family() {
        for (text, family) in [
            ("flux1", Some("flux")),
            ("flux-1-dev/lora", Some("flux")),
            ("flux_2_dev", Some("flux2")),
            ("Flux2Transformer2DModel", Some("flux2")),
            ("stable-diffusion-xl-v1-base/lora", Some("sdxl")),
            ("stable-diffusion-3-medium/lora", Some("sd3")),
            ("sd_v1", Some("sd1")),
            ("QwenImageTransformer2DModel", Some("qwen_image")),
            ("ZImageTransformer2DModel", Some("z_image")),
            ("hyvid", Some("hunyuan_video")),
            ("HunyuanVideo15Transformer3DModel", None),
            ("AuraFlowTransformer2DModel", None),
            ("UNet2DConditionModel", None),
        ] {
            let found = match said(text) {
                Said::Family(arch) => Some(arch.name()),
                Said::Other | Said::Nothing => None,
            };
            assert_eq!(found, family, "{text}");
        }
    }
}
