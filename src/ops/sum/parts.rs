//! Adapters of single models and those of a pipeline: the modules of the latter have the name of a component in front.

use crate::adapters::{Adapter, Change};
use crate::dialects::Dialect;
use crate::dialects::peft::PEFT;
use crate::dialects::peft::write::one_model;
use crate::dialects::text_encoders;
use crate::naming::components;
use crate::placement::Applied;
use crate::placement::terms::Terms;

/// Puts the component in front of the modules of an adapter of PEFT's, as far as names and sizes tell it.
pub fn name(adapter: &mut Adapter) {
    if adapter.dialect != PEFT.name {
        return;
    }
    for module in &mut adapter.modules {
        if components::split(&module.path).is_some() {
            continue;
        }
        let size = match &module.change {
            Change::Lora(lora) => (lora.outputs(), lora.down.info.shape.as_slice().get(1).copied().unwrap_or(0)),
            _ => (0, 0),
        };
        module.path = text_encoders::with_component(&module.path, size);
    }
}

/// Whether a file of a pipeline is among `sources`, whose modules have the name of a component in front.
pub fn are_named(sources: &[Applied]) -> bool {
    sources.iter().any(|source| Dialect::of(source.adapter.dialect).pipelines)
}

/// What to say of an adapter of PEFT's, which is for one model, that changes several.
pub fn several(terms: &Terms) -> Option<String> {
    let paths = terms.slots.values().map(|slot| slot.path.as_str());
    let (one, other) = components::two_of(paths.chain(terms.whole.keys().map(|(module, _)| module.as_str())))?;
    let (what, way) = one_model(one, other);
    Some(format!("{what}: `lorakit convert` makes {way}"))
}
