//! Names with underscores in place of dots, as sd-scripts and LyCORIS write them, and back.

use super::template::outline;
use super::{Arch, Spelling, archs, archs_of};

/// Prefix → the components it can stand for. Sources: sd-scripts `networks/*.py`, LyCORIS `wrapper.py`, OneTrainer.
const PREFIXES: [(&str, &[&str]); 10] = [
    ("lora_unet_", &["unet", "transformer"]),
    ("oft_unet_", &["unet", "transformer"]),
    ("lora_transformer_", &["transformer"]),
    ("lora_prior_unet_", &["prior"]),
    ("lora_prior_te_", &["text_encoder"]),
    ("lora_te1_", &["text_encoder"]),
    ("lora_te2_", &["text_encoder_2"]),
    ("lora_te3_", &["text_encoder_3"]),
    ("lora_te_", &["text_encoder"]),
    ("lycoris_", &["unet", "transformer"]),
];

/// The dotted path of a flattened name, with its component; `None` if no table knows it.
///
/// # Errors
/// When the tables of several families read it differently: all candidates.
pub fn unflatten(name: &str) -> Result<Option<String>, Vec<String>> {
    one_of(archs().iter().flat_map(|arch| arch.unflatten(name)).collect())
}

/// The dotted paths of the names of one file: where the names as a whole belong to one family, its table is asked first.
/// The same results as of [`unflatten`], name by name.
pub fn unflatten_all(names: &[&str]) -> Vec<Result<Option<String>, Vec<String>>> {
    let families = archs_of(names.iter().copied());
    let resolve = |name: &&str| {
        let own: Vec<String> = families.iter().flat_map(|arch| arch.unflatten(name)).collect();
        if own.is_empty() { unflatten(name) } else { one_of(own) }
    };
    names.iter().map(resolve).collect()
}

/// The flattened name of a path with its component. `several` text encoders are numbered; a single one is not.
pub fn flatten(path: &str, several: bool) -> Option<String> {
    let (component, rest) = path.split_once('.')?;
    let prefix = match component {
        "unet" | "transformer" | "transformer_2" => "lora_unet_",
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

impl Arch {
    /// The dotted paths that a flattened name can be in this family.
    pub fn unflatten(&self, name: &str) -> Vec<String> {
        let Some((rest, components)) =
            PREFIXES.iter().find_map(|(prefix, components)| name.strip_prefix(prefix).map(|rest| (rest, *components)))
        else {
            return Vec::new();
        };
        let own = |component: &&&str| self.components().iter().any(|own| own == **component);
        let Some(component) = components.iter().find(own) else { return Vec::new() };
        let places = self.flat.get(&outline(rest, '_')).into_iter().flatten();
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
