//! PEFT: `adapter_config.json` and tensors below `base_model.model.`.

use std::path::Path;

use crate::adapters::Inserted;
use crate::adapters::config::AdapterConfig;
use crate::adapters::refused;
use crate::adapters::{Change, Module};
use crate::adapters::{Gathered, gather};
use crate::dialects::open::Opened;
use crate::error::Result;
use crate::formats::Checkpoint;
use crate::naming::peft;

pub(crate) fn open(root: &Path, tensors: Checkpoint) -> Result<Opened> {
    let config = AdapterConfig::read(root)?;
    let modules = collect(&config, &tensors);
    Ok(Opened { root: root.to_path_buf(), dialect: "peft", config, tensors, modules })
}

/// Groups the tensors by module, in path order.
fn collect(config: &AdapterConfig, tensors: &Checkpoint) -> Result<Vec<Module>> {
    let keyed = tensors.all().map(|stored| (peft::parse(&stored.info.name), stored));
    if let Some((kind, reason)) = refused::inserted(&config.method) {
        let tensors = keyed.map(|(_, stored)| (stored.info.name.clone(), stored)).collect();
        let change = Change::Inserted(Box::new(Inserted { kind, reason, tensors }));
        return Ok(vec![Module { path: String::new(), nesting: 0, change }]);
    }
    let Gathered { modules, .. } = gather(keyed, config, "peft", false)?;
    Ok(modules)
}
