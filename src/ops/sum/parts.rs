//! Adapters of single models that become parts of one of a pipeline: their modules get the name of the component in front.

use crate::adapters::{Adapter, Change};
use crate::dialects::peft::PEFT;
use crate::dialects::text_encoders;
use crate::naming::components;

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
