//! Tensors of an adapter that have no place in the base: one message names all of them, and what they may have meant.

use super::landing::Lander;
use crate::adapters::{Adapter, Module};
use crate::error::Error;

/// A module that found no place; others may still follow, so that one message names all.
pub struct Homeless {
    /// Its tensors.
    pub tensors: Vec<String>,
    /// Its path in the base.
    pub wanted: String,
}

impl Lander<'_> {
    /// The refusal of an adapter with such modules.
    pub(super) fn no_place(&self, adapter: &Adapter, homeless: &[Homeless], nearly: Option<&str>) -> Error {
        const SHOWN: usize = 3;
        let tensors: usize = homeless.iter().map(|module| module.tensors.len()).sum();
        let total = adapter.tensors.count();
        let shown: Vec<String> = homeless
            .iter()
            .take(SHOWN)
            .map(|module| {
                let near = self.base.names.nearest(&format!("{}.weight", module.wanted), 2);
                let near: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
                let near = if near.is_empty() {
                    "nothing in the base resembles it".into()
                } else {
                    format!("did you mean {}?", near.join(" or "))
                };
                format!("`{}` ({near})", module.tensors[0])
            })
            .collect();
        let more = if homeless.len() > SHOWN {
            format!(", and {} more modules", homeless.len() - SHOWN)
        } else {
            String::new()
        };
        let problem =
            format!("{tensors} of {total} adapter tensors have no place in the base: {}{more}", shown.join(", "));
        let problem = nearly.map_or(problem.clone(), |nearly| format!("{problem}; {nearly}"));
        let hint = if tensors == total {
            "is this the model the adapter was trained on?"
        } else {
            "`--allow-unused GLOB` lets tensors go that are not needed, `--exclude REGEX` leaves modules out"
        };
        Error::mismatch(adapter.root.display().to_string(), self.base_name(), problem).hint(hint)
    }
}

/// The name of the tokens whose embedding a module is (LyCORIS `bundle_emb`): no weight of a model.
pub fn embedding_of(module: &Module) -> Option<String> {
    let tensors = module.change.tensors();
    let rest = tensors.first()?.info.name.strip_prefix("bundle_emb.")?;
    Some(rest.rsplit_once('.').map_or(rest, |(name, _)| name).to_owned())
}
