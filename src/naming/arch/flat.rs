//! Names with underscores in place of dots, as sd-scripts and LyCORIS write them, and back.

use super::template::outline;
use super::{Arch, Spelling, archs, most_known};

/// Prefix → the components it can stand for. Sources: sd-scripts `networks/*.py`, LyCORIS `wrapper.py`, OneTrainer.
const PREFIXES: [(&str, &[&str]); 10] = [
    ("lora_unet_", &["unet", "transformer"]),
    ("oft_unet_", &["unet", "transformer"]),
    ("lora_transformer_", &["transformer"]),
    ("lora_prior_unet_", &["prior"]),
    ("lora_prior_te_", &["text_encoder"]),
    ("lora_te1_", &["text_encoder"]),
    ("lora_te2_", &["text_encoder_2"]),
    ("lora_te3_", &["text_encoder_3", "text_encoder_2"]),
    ("lora_te_", &["text_encoder"]),
    ("lycoris_", &["unet", "transformer"]),
];

/// The dotted path of a flattened name, with its component; `None` if no table knows it.
///
/// # Errors
/// When the tables of several families read it differently: all candidates.
pub fn unflatten(name: &str) -> Result<Option<String>, Vec<String>> {
    one_of(readings(name).into_iter().map(|(_, path)| path).collect())
}

/// What each family takes a flattened name for.
fn readings(name: &str) -> Vec<(&'static Arch, String)> {
    let Some(flat) = Flat::of(name) else { return Vec::new() };
    archs().iter().flat_map(|arch| arch.read(&flat).into_iter().map(move |path| (arch, path))).collect()
}

/// The dotted paths of the names of one file: where the names as a whole belong to one family, its table is asked first.
/// The same results as of [`unflatten`], name by name.
pub fn unflatten_all(names: &[&str]) -> Vec<Result<Option<String>, Vec<String>>> {
    let all: Vec<Vec<(&Arch, String)>> = names.iter().map(|name| readings(name)).collect();
    let same = |left: &Arch, right: &Arch| std::ptr::eq(left, right);
    let families = most_known(|arch| all.iter().filter(|found| found.iter().any(|(own, _)| same(own, arch))).count());
    let resolve = |found: Vec<(&Arch, String)>| {
        let is_own = |(arch, _): &(&Arch, String)| families.iter().any(|family| same(family, arch));
        let (own, others): (Vec<_>, Vec<_>) = found.into_iter().partition(is_own);
        one_of(if own.is_empty() { others } else { own }.into_iter().map(|(_, path)| path).collect())
    };
    all.into_iter().map(resolve).collect()
}

/// The flattened name of a path with its component. `several` text encoders are numbered; a single one is not.
pub fn flatten(path: &str, several: bool) -> Option<String> {
    let (component, rest) = path.split_once('.')?;
    let prefix = match component {
        "unet" | "unet_2" | "transformer" | "transformer_2" => "lora_unet_",
        "prior" => "lora_prior_unet_",
        "text_encoder" if several => "lora_te1_",
        "text_encoder" => "lora_te_",
        "text_encoder_2" => "lora_te2_",
        "text_encoder_3" => "lora_te3_",
        _ => return None,
    };
    Some(format!("{prefix}{}", rest.replace('.', "_")))
}

fn one_of(mut found: Vec<String>) -> Result<Option<String>, Vec<String>> {
    found.sort_unstable();
    found.dedup();
    if found.len() > 1 { Err(found) } else { Ok(found.pop()) }
}

/// A flattened name, taken apart.
struct Flat<'a> {
    rest: &'a str,
    components: &'static [&'static str],
    outline: String,
}

impl<'a> Flat<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (rest, components) = flattened(name)?;
        Some(Self { rest, components, outline: outline(rest, '_') })
    }
}

/// What follows the prefix of a flattened name, and the components it can be of, the likeliest first.
pub fn flattened(name: &str) -> Option<(&str, &'static [&'static str])> {
    PREFIXES.iter().find_map(|(prefix, components)| name.strip_prefix(prefix).map(|rest| (rest, *components)))
}

impl Arch {
    /// The dotted paths that a flattened name can be in this family.
    pub fn unflatten(&self, name: &str) -> Vec<String> {
        Flat::of(name).map_or_else(Vec::new, |flat| self.read(&flat))
    }

    fn read(&self, flat: &Flat<'_>) -> Vec<String> {
        let own = |component: &&&str| self.components().iter().any(|own| own == **component);
        let Some(component) = flat.components.iter().find(own) else { return Vec::new() };
        let rest = flat.rest;
        let places = self.flat.get(&flat.outline).into_iter().flatten();
        let found = places.filter_map(|place| {
            let row = self.row(*place);
            let name = match place.spelling {
                Spelling::Original => &row.original,
                Spelling::Diffusers => &row.diffusers[place.part],
            };
            Some(format!("{component}.{}", name.fill(&name.fit_flat(rest)?)))
        });
        found.collect()
    }
}
