//! The modules of one adapter under every name that its own file and the names of the others give them.

use std::path::Path;

use foldhash::{HashMap, HashSet};

use super::Place;
use crate::adapters::Change;
use crate::naming::arch::{Arch, arch, flatten, flattened, translate, unflatten};
use crate::naming::components::{below, of_blocks, split, with_component};
use crate::placement::Applied;

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

/// The modules of all `sources`. `family` is the one that the user says the model is of.
pub fn of_sources<'a>(sources: &'a [Applied], family: Option<&str>) -> Vec<Own<'a>> {
    let mut all: Vec<Own<'_>> = sources.iter().map(Own::of).collect();
    if !all.iter().any(|own| own.modules.iter().any(Module::is_flat)) {
        return all;
    }
    let dotted: HashSet<String> = all
        .iter()
        .flat_map(|own| &own.modules)
        .filter(|module| split(&module.normal).is_some())
        .map(|module| module.normal.clone())
        .collect();
    let mut flat: HashMap<String, &str> = HashMap::default();
    for path in &dotted {
        for several in [false, true] {
            flat.extend(flatten(path, several).map(|flat| (flat, path.as_str())));
        }
    }
    let family = family.and_then(arch);
    for module in all.iter_mut().flat_map(|own| &mut own.modules).filter(|module| module.is_flat()) {
        let path = flat.get(module.normal.as_str()).map(|path| (*path).to_owned());
        module.readings = match (path, unflatten(&module.normal)) {
            (Some(path), _) => vec![path],
            (None, Ok(reading)) => reading.into_iter().collect(),
            (None, Err(several)) => module.likely(several, &dotted, family),
        };
        if let [reading] = module.readings.as_slice() {
            module.normal.clone_from(reading);
        }
    }
    all
}

impl Module<'_> {
    /// Whether the path has underscores for dots and no table has read it.
    fn is_flat(&self) -> bool {
        flattened(&self.normal).is_some() && !self.normal.contains('.')
    }

    /// The only one of `readings` that is of the `family`, or that the tables translate into a path of another adapter, where
    /// there is one; else all of them.
    fn likely(&self, readings: Vec<String>, dotted: &HashSet<String>, family: Option<&Arch>) -> Vec<String> {
        let is_there = |reading: &&String| match (family, self.size) {
            (Some(family), _) => family.knows(reading),
            (None, Some((outputs, inputs))) => {
                translate(reading, outputs, inputs).iter().flatten().any(|spot| dotted.contains(&spot.module))
            }
            (None, None) => false,
        };
        let mut found = readings.iter().filter(is_there);
        match (found.next(), found.next()) {
            (Some(one), None) => vec![one.clone()],
            _ => readings,
        }
    }
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

    /// The places of the adapter whose names count: its own, and the paths of flattened names that the other adapters tell.
    pub fn as_read(&self) -> Vec<Place> {
        let is_told =
            |module: &Module<'_>| !module.path.contains('.') && flattened(module.path).is_some() && !module.is_flat();
        let place =
            |module: &Module<'_>| if is_told(module) { Place::Named(module.normal.clone()) } else { Place::Own };
        self.modules.iter().map(place).collect()
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
