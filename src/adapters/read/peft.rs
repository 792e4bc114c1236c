//! PEFT: `adapter_config.json` and tensors below `base_model.model.`.

use std::path::Path;

use super::Opened;
use crate::adapters::config::AdapterConfig;
use crate::adapters::gather::{Gathered, gather};
use crate::adapters::method::Inserted;
use crate::adapters::peft::{Change, Module};
use crate::error::Result;
use crate::formats::Checkpoint;
use crate::naming::peft;

/// Methods that insert something rather than change a weight: `peft_type`, kind, reason.
pub const INSERTED: [(&str, &str, &str); 8] = [
    ("PROMPT_TUNING", "prompt tuning", SOFT_PROMPT),
    ("P_TUNING", "p-tuning", SOFT_PROMPT),
    ("CPT", "context-aware prompt tuning", SOFT_PROMPT),
    ("MULTITASK_PROMPT_TUNING", "multitask prompt tuning", SOFT_PROMPT),
    ("PREFIX_TUNING", "prefix tuning", PREFIX),
    ("CARTRIDGE", "a cartridge", PREFIX),
    ("ADAPTION_PROMPT", "an adaption prompt", "it adds gated attention over its own prompt, which no weight can hold"),
    ("POLY", "a polytropon", "it routes between several adapters at run time, so no weight can hold it"),
];

const SOFT_PROMPT: &str = "it puts trained vectors in front of the input, which no weight can hold";
const PREFIX: &str = "it puts trained keys and values in front of those of every layer, which no weight can hold";

pub(super) fn open(root: &Path, tensors: Checkpoint) -> Result<Opened> {
    let config = AdapterConfig::read(root)?;
    let modules = collect(&config, &tensors);
    Ok(Opened { root: root.to_path_buf(), dialect: "peft", config, tensors, modules })
}

/// Groups the tensors by module, in path order.
fn collect(config: &AdapterConfig, tensors: &Checkpoint) -> Result<Vec<Module>> {
    let keyed = tensors.tensors().map(|info| {
        let stored = tensors.find(&info.name).expect("the list and the index are made from the same headers");
        (peft::parse(&info.name), stored)
    });
    if let Some((_, kind, reason)) = INSERTED.iter().find(|(method, ..)| *method == config.method) {
        let tensors = keyed.map(|(_, stored)| (stored.info.name.clone(), stored)).collect();
        let change = Change::Inserted(Box::new(Inserted { kind, reason, tensors }));
        return Ok(vec![Module { path: String::new(), nesting: 0, change }]);
    }
    let Gathered { modules, .. } = gather(keyed, config, "peft", false)?;
    Ok(modules)
}
