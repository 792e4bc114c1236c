//! Places by the names of the model: each module of every adapter is looked up in it.

use foldhash::HashMap;

use super::Place;
use super::own::Own;
use crate::adapters::{Adapter, Change};
use crate::model::base::Base;
use crate::naming::Shift;
use crate::naming::arch::parameter;
use crate::naming::components::{is_diffusion, with_component};
use crate::placement::Applied;
use crate::placement::{BasePlace, BasePlaces};

/// Where everything goes if the model has all modules; `None` if some are not found in it.
pub fn by_base(all: &[Own<'_>], sources: &[Applied], base: &Base) -> Option<Vec<Vec<Place>>> {
    let places = BasePlaces::new(base);
    let mut found = Vec::with_capacity(all.len());
    for (own, source) in all.iter().zip(sources) {
        let shift = shift_of(&source.adapter, base);
        let one = |module: &super::own::Module<'_>| {
            let path = shift.apply(module.path);
            if let Some(located) = base.names.located(&path) {
                return Some(Place::Named(located));
            }
            match places.find(base, &path, module.size).ok().flatten()? {
                BasePlace::Whole(path) => Some(Place::Named(path)),
                BasePlace::Rows(mut spots) => {
                    for spot in &mut spots {
                        let rows = base.checkpoint.info(&parameter(&spot.module, "weight"));
                        spot.of = spot.of.or(rows.map(|info| info.shape.rows_cols().0));
                    }
                    Some(Place::Rows(spots))
                }
            }
        };
        found.push(own.modules.iter().map(one).collect::<Option<Vec<Place>>>()?);
    }
    if !differ(all, &found) {
        return Some(all.iter().map(|own| vec![Place::Own; own.modules.len()]).collect());
    }
    for (own, places) in all.iter().zip(&mut found) {
        for (module, place) in own.modules.iter().zip(places) {
            match place {
                Place::Named(path) => {
                    let name = spelled(path);
                    *place = if name == module.path { Place::Own } else { Place::Named(name) };
                }
                Place::Rows(spots) => spots.iter_mut().for_each(|spot| spot.module = spelled(&spot.module)),
                Place::Own => {}
            }
        }
    }
    Some(found)
}

/// The name in the result: that of the model, below its component where it is a part of a pipeline.
fn spelled(path: &str) -> String {
    let with = with_component(path);
    if is_diffusion(&with) { with } else { path.to_owned() }
}

/// Whether the adapters have different names for modules of the model.
fn differ(all: &[Own<'_>], found: &[Vec<Place>]) -> bool {
    let mut names: HashMap<&str, &str> = HashMap::default();
    let mut styles: Vec<bool> = Vec::new();
    for (own, places) in all.iter().zip(found) {
        let mut as_base = true;
        for (module, place) in own.modules.iter().zip(places) {
            let targets: Vec<&str> = match place {
                Place::Own => continue,
                Place::Named(path) => vec![path],
                Place::Rows(spots) => spots.iter().map(|spot| spot.module.as_str()).collect(),
            };
            for target in targets {
                as_base &= target == module.path;
                if *names.entry(target).or_insert(module.path) != module.path {
                    return true;
                }
            }
        }
        styles.push(as_base);
    }
    styles.contains(&true) && styles.contains(&false)
}

/// The change of prefix from an adapter's paths to the model's, where there is exactly one.
fn shift_of(adapter: &Adapter, base: &Base) -> Shift {
    let plain = adapter.modules.iter().filter(|module| matches!(module.change, Change::Lora(_) | Change::Method(_)));
    let paths: Vec<&str> = plain.map(|module| module.path.as_str()).collect();
    if base.names.all_located(&paths).is_some() {
        return Shift::default();
    }
    match base.names.shifts(&paths).as_slice() {
        [shift] => shift.clone(),
        _ => Shift::default(),
    }
}
