//! Adapters of single models and those of a pipeline: the modules of the latter have the name of a component in front.

use super::{Operation, SumOptions};
use crate::adapters::{Adapter, Change};
use crate::dialects::Dialect;
use crate::dialects::Target;
use crate::dialects::peft::PEFT;
use crate::dialects::peft::write::one_model;
use crate::dialects::text_encoders;
use crate::error::{Error, Result};
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

/// Makes sure that an adapter of PEFT's is for one model. What to say where the adapters were PEFT's before, and are not.
///
/// # Errors
/// When it would be for several, and was asked for or comes from a file of a pipeline.
pub fn check(sources: &[Applied], terms: &Terms, options: &SumOptions) -> Result<Option<String>> {
    let paths = terms.slots.values().map(|slot| slot.path.as_str());
    let paths = paths.chain(terms.whole.keys().map(|(module, _)| module.as_str()));
    let Some((one, other)) = components::two_of(paths) else { return Ok(None) };
    let (what, way) = one_model(one, other);
    let asked = options.dialect.to == Some(Target::PEFT);
    let of_pipeline = are_named(sources) || (asked && [one, other].iter().any(|part| part.starts_with("text_encoder")));
    if !of_pipeline {
        return Ok(Some(format!("{what}; `--to kohya` and `--to diffusers` hold them in one file")));
    }
    let root = &sources[0].adapter.root;
    let hint = match options.operation {
        // Here `--include` tells what is resized, and the rest is kept.
        Operation::Resize => format!(
            "`lorakit convert {} -o {one} --to peft --include '^{one}\\.'`, and the same for `{other}`; then resize each",
            root.display()
        ),
        _ => way,
    };
    Err(Error::unsupported(root, what).hint(hint))
}
