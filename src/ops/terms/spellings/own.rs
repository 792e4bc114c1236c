//! The modules of one adapter under every name that its own file and the names of the others give them.

use std::path::Path;

use foldhash::HashMap;

use crate::adapters::Change;
use crate::naming::arch::{flatten, flattened, unflatten};
use crate::naming::components::{below, of_blocks, split, with_component};
use crate::ops::merge::Applied;

/// The modules of an adapter.
pub struct Own<'a> {
    /// Where it lies.
    pub root: &'a Path,
    /// In its order.
    pub modules: Vec<Module<'a>>,
    /// The denoiser that it changes, which stands in front of what no name gives away.
    denoiser: Option<&'static str>,
}

/// One module.
pub struct Module<'a> {
    /// As the adapter calls it.
    pub path: &'a str,
    /// The path below its component, with dots where that is known.
    pub normal: String,
    /// What the path may be with dots: more than one for a flattened name that several tables read.
    pub readings: Vec<String>,
    /// Outputs and inputs, where the change tells.
    pub size: Option<(u64, u64)>,
}

/// The modules of all `sources`.
pub fn of_sources(sources: &[Applied]) -> Vec<Own<'_>> {
    let mut all: Vec<Own<'_>> = sources.iter().map(Own::of).collect();
    let mut dotted: HashMap<String, String> = HashMap::default();
    let is_open = |module: &Module<'_>| flattened(&module.normal).is_some() && !module.normal.contains('.');
    if !all.iter().any(|own| own.modules.iter().any(|module| is_open(module))) {
        return all;
    }
    for module in all.iter().flat_map(|own| &own.modules).filter(|module| split(&module.normal).is_some()) {
        for several in [false, true] {
            dotted.extend(flatten(&module.normal, several).map(|flat| (flat, module.normal.clone())));
        }
    }
    for module in all.iter_mut().flat_map(|own| &mut own.modules).filter(|module| is_open(module)) {
        match dotted.get(&module.normal) {
            Some(path) => (module.normal, module.readings) = (path.clone(), vec![path.clone()]),
            None => {
                module.readings = match unflatten(&module.normal) {
                    Ok(reading) => reading.into_iter().collect(),
                    Err(several) => several,
                };
            }
        }
    }
    all
}

impl<'a> Own<'a> {
    fn of(applied: &'a Applied) -> Self {
        let adapter = &applied.adapter;
        let paths: Vec<String> = adapter.modules.iter().map(|module| with_component(&module.path)).collect();
        let denoiser = of_blocks(paths.iter().map(String::as_str));
        let mut own = Self { root: &adapter.root, modules: Vec::with_capacity(paths.len()), denoiser };
        for module in &adapter.modules {
            let size = match &module.change {
                Change::Lora(lora) => Some((lora.outputs(), lora.inputs())),
                Change::Method(method) => method.shape(),
                Change::Whole(_, tensor) | Change::Frozen(_, tensor) => Some(tensor.info.shape.rows_cols()),
                _ => None,
            };
            let normal = own.normal_of(&module.path);
            own.modules.push(Module { path: &module.path, readings: vec![normal.clone()], normal, size });
        }
        own
    }

    /// The path below its component.
    pub fn normal_of(&self, path: &str) -> String {
        let path = with_component(path);
        match self.denoiser {
            Some(denoiser) if split(&path).is_none() && flattened(&path).is_none() => below(denoiser, &path),
            _ => path,
        }
    }
}
