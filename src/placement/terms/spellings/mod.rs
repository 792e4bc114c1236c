//! One layer under two names is one layer: before adapters are summed or compared, their modules are brought to one spelling.
//!
//! The names of the first adapter count, and what the others add to them. A module of a later adapter is the same one if its path
//! is that of an earlier one below its component, or flattened, or as another version of the model class calls it; if a table of
//! families translates it there, row by row where one spelling fuses what the other splits; or if the two differ by the wrappers
//! of a model class in front. With the model at hand its own names settle it instead. What stays open is refused, not guessed.

mod cut;
mod own;
mod prefix;
mod settled;

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;

use crate::error::{Error, Result};
use crate::model::base::Base;
use crate::naming::Names;
use crate::naming::arch::{self, Arch, Spelling, Spot};
use crate::placement::Applied;

pub use cut::{cut, not_cut};
use own::{Own, of_sources};
use prefix::{Prefixes, Relation};

/// What every refusal offers.
const WAYS_OUT: &str =
    "`--base PATH` with the model tells which modules are one; or bring both into one spelling first: `convert --to`";

/// Where a module of an adapter goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// To its own path.
    Own,
    /// To the module of this path.
    Named(String),
    /// Row by row to these modules.
    Rows(Vec<Spot>),
}

/// The places of all modules of several adapters.
#[derive(Debug, Default)]
pub struct Spellings {
    /// Adapter by adapter, in the order of its modules; empty where nothing moves.
    places: Vec<Vec<Place>>,
    /// Path of a module → other names that inputs have for it.
    others: HashMap<String, Vec<String>>,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Spellings {
    /// Brings the modules of `sources` to one spelling. `family` is the one that the user says the model is of.
    ///
    /// # Errors
    /// When it is not clear which modules are one, with the ways out.
    pub fn of(sources: &[Applied], base: Option<&Base>, family: Option<&str>) -> Result<Self> {
        if sources.len() < 2 {
            return Ok(Self::default());
        }
        let all = of_sources(sources, family);
        let places = match base.and_then(|base| settled::by_base(&all, sources, base)) {
            Some(places) => places,
            None => by_names(&all, family)?,
        };
        let mut spellings = Self { places, ..Self::default() };
        spellings.describe(&all);
        Ok(spellings)
    }

    /// Where module `at` of adapter `source` goes.
    pub fn place(&self, source: usize, at: usize) -> &Place {
        self.places.get(source).and_then(|places| places.get(at)).unwrap_or(&Place::Own)
    }

    /// The names that a module is chosen by: its path, and those that other inputs have for it.
    pub fn names<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> + Clone {
        let others = self.others.get(path).into_iter().flatten().map(String::as_str);
        std::iter::once(path).chain(others)
    }

    /// Collects the names that came together, and what is to be said of them.
    fn describe(&mut self, all: &[Own<'_>]) {
        for (own, places) in all.iter().zip(&self.places) {
            let mut moved = 0_usize;
            let mut first = None;
            for (module, place) in own.modules.iter().zip(places) {
                let targets: Vec<&str> = match place {
                    Place::Own => continue,
                    Place::Named(path) => vec![path],
                    Place::Rows(spots) => spots.iter().map(|spot| spot.module.as_str()).collect(),
                };
                moved += 1;
                first.get_or_insert((module.path, targets[0].to_owned()));
                for target in targets {
                    let others = self.others.entry(target.to_owned()).or_default();
                    if !others.iter().any(|other| other == module.path) {
                        others.push(module.path.to_owned());
                    }
                }
            }
            if let Some((path, target)) = first {
                self.notes.push(format!(
                    "`{}` has other names for {moved} modules: its `{path}` is `{target}` in the result",
                    own.root.display()
                ));
            }
        }
    }
}

/// Places by the names of the adapters alone.
fn by_names(all: &[Own<'_>], family: Option<&str>) -> Result<Vec<Vec<Place>>> {
    let mut known = Known::default();
    let mut places = Vec::with_capacity(all.len());
    for (at, own) in all.iter().enumerate() {
        let found = if at == 0 { own.as_read() } else { known.respell(own, all, family)? };
        known.add(own, &found);
        places.push(found);
    }
    Ok(places)
}

/// The modules that are known so far, by their path below a component.
#[derive(Default)]
struct Known {
    modules: HashMap<String, Entry>,
    /// How the first adapter calls what it has, against the path below a component: what stands in front there and not here.
    omitted: Option<String>,
}

struct Entry {
    /// How the result calls it.
    name: String,
    size: Option<(u64, u64)>,
}

impl Known {
    fn add(&mut self, own: &Own<'_>, places: &[Place]) {
        for (module, place) in own.modules.iter().zip(places) {
            if self.omitted.is_none() && module.normal.len() > module.path.len() {
                self.omitted = module.normal.strip_suffix(module.path).map(str::to_owned);
            }
            let name = match place {
                Place::Own => module.path.to_owned(),
                Place::Named(name) => name.clone(),
                Place::Rows(spots) => {
                    for spot in spots {
                        let size = spot.of.zip(module.size).map(|(of, (_, inputs))| (of, inputs));
                        let (normal, name) = (own.normal_of(&spot.module), spot.module.clone());
                        self.modules.entry(normal).or_insert(Entry { name, size });
                    }
                    continue;
                }
            };
            let normal = if *place == Place::Own { module.normal.clone() } else { own.normal_of(&name) };
            self.modules.entry(normal).or_insert(Entry { name, size: module.size });
        }
    }

    /// How the result calls a module that is spelled as the others here.
    fn named(&self, normal: &str) -> String {
        if let Some(entry) = self.modules.get(normal) {
            return entry.name.clone();
        }
        let bare = self.omitted.as_deref().and_then(|prefix| normal.strip_prefix(prefix));
        bare.unwrap_or(normal).to_owned()
    }

    fn respell(&self, own: &Own<'_>, all: &[Own<'_>], family: Option<&str>) -> Result<Vec<Place>> {
        let names = Names::new(self.modules.keys().map(|normal| format!("{normal}.weight")));
        let (mut places, mut open) = (Vec::with_capacity(own.modules.len()), Vec::new());
        for (at, module) in own.modules.iter().enumerate() {
            let found = if self.modules.contains_key(&module.normal) {
                Some(module.normal.clone())
            } else {
                names.located(&module.normal).filter(|other| self.modules.contains_key(other))
            };
            let place = match found {
                Some(normal) => Some(self.place_of(module.path, &normal)),
                None => self.translated(own, at)?,
            };
            if place.is_none() {
                open.push(at);
            }
            places.push(place.unwrap_or(Place::Own));
        }
        if open.is_empty() {
            return Ok(places);
        }
        let families = Families::of(self, all, family);
        let mut rest = Vec::new();
        for at in open {
            match families.place(self, own, at)? {
                Some(place) => places[at] = place,
                None => rest.push(at),
            }
        }
        self.shift(own, &rest, &mut places)?;
        Ok(places)
    }

    fn place_of(&self, path: &str, normal: &str) -> Place {
        let name = self.named(normal);
        if name == path { Place::Own } else { Place::Named(name) }
    }

    /// The place of a module that the tables translate into one that is known.
    fn translated(&self, own: &Own<'_>, at: usize) -> Result<Option<Place>> {
        let module = &own.modules[at];
        let Some((outputs, inputs)) = module.size else { return Ok(None) };
        let mut found: Vec<Place> = Vec::new();
        for reading in &module.readings {
            for spots in arch::translate(reading, outputs, inputs) {
                if !spots.iter().any(|spot| self.modules.contains_key(&spot.module)) {
                    continue;
                }
                let Some(place) = self.placed(module.path, spots, outputs) else { continue };
                if !found.contains(&place) {
                    found.push(place);
                }
            }
        }
        one_of(own, module.path, found)
    }

    /// The place that `spots` are, in the names of the result; `None` where the sizes of what is known disagree.
    fn placed(&self, path: &str, mut spots: Vec<Spot>, outputs: u64) -> Option<Place> {
        for spot in &mut spots {
            let has = self.modules.get(&spot.module).and_then(|entry| entry.size).map(|(rows, _)| rows);
            let of = spot.of.or(has)?;
            if has.is_some_and(|has| has != of) || spot.at + (spot.take.end - spot.take.start) > of {
                return None;
            }
            spot.of = Some(of);
            spot.module = self.named(&spot.module);
        }
        Some(match spots.as_slice() {
            [spot] if spot.take == (0..outputs) && spot.of == Some(outputs) && spot.at == 0 => {
                if spot.module == path {
                    Place::Own
                } else {
                    Place::Named(spot.module.clone())
                }
            }
            _ => Place::Rows(spots),
        })
    }

    /// Places of modules that differ from those that are known by what stands in front.
    fn shift(&self, own: &Own<'_>, rest: &[usize], places: &mut [Place]) -> Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        if let Some(at) = self.unread(own, rest) {
            return Err(doubt(own, own.modules[at].path, "it is a flattened name that no table knows"));
        }
        let theirs = Prefixes::of(self.modules.keys().map(String::as_str));
        let ours = Prefixes::of(own.modules.iter().map(|module| module.normal.as_str()));
        let mut doubtful: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
        for at in rest {
            let module = &own.modules[*at];
            let (mut same, mut unclear) = (Vec::new(), Vec::new());
            for (other, relation) in theirs.beside(&module.normal, &ours) {
                match relation {
                    Relation::Same => same.push(other),
                    Relation::Unclear => unclear.push(other),
                    Relation::Apart => {}
                }
            }
            match same.as_slice() {
                [] => {}
                [one] => {
                    places[*at] = self.place_of(module.path, one);
                    continue;
                }
                several => {
                    let found = several.iter().map(|normal| self.place_of(module.path, normal)).collect();
                    one_of(own, module.path, found)?;
                }
            }
            for other in unclear {
                let size = self.modules.get(&other).and_then(|entry| entry.size);
                let alike = size.is_some() && size == module.size;
                let tail = prefix::front(&module.normal).to_owned();
                let count = doubtful.entry((tail, prefix::front(&other).to_owned())).or_default();
                *count = (count.0 + usize::from(alike), count.1 + 1);
            }
        }
        // Half of them under the same ends, in the same sizes: more than chance.
        match doubtful.iter().find(|(_, (alike, all))| alike * 2 >= *all && *alike > 0) {
            None => Ok(()),
            Some(((front, other), (alike, _))) => {
                let what = format!("{alike} modules below `{front}` have the ends and sizes of those below `{other}`");
                Err(doubt(own, front, &what))
            }
        }
    }

    /// A module of a flattened name that was not read, beside paths with dots, if most such have their ends and sizes.
    fn unread(&self, own: &Own<'_>, rest: &[usize]) -> Option<usize> {
        let is_flat = |path: &str| arch::flattened(path).is_some() && !path.contains('.');
        let flat: Vec<usize> = rest.iter().copied().filter(|at| is_flat(&own.modules[*at].normal)).collect();
        if flat.is_empty() || self.modules.keys().any(|normal| is_flat(normal)) {
            return None;
        }
        let mut ends: HashMap<Option<(u64, u64)>, BTreeSet<&str>> = HashMap::default();
        for (normal, entry) in &self.modules {
            ends.entry(entry.size).or_default().insert(normal.rsplit('.').next().unwrap_or(normal));
        }
        let alike = flat.iter().filter(|at| {
            let module = &own.modules[**at];
            let ends = ends.get(&module.size).into_iter().flatten();
            module.size.is_some() && ends.into_iter().any(|end| ends_flat(&module.normal, end))
        });
        (alike.count() * 2 >= flat.len()).then(|| flat[0])
    }
}

fn doubt(own: &Own<'_>, path: &str, what: &str) -> Error {
    let problem =
        format!("`{path}` may be what another adapter has under another name, and no rule settles it: {what}");
    Error::unsupported(own.root, problem).hint(WAYS_OUT)
}

/// Whether the flattened `name` ends like a path that ends in `end`.
fn ends_flat(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.ends_with('_'))
}

/// The only one of several places.
fn one_of(own: &Own<'_>, path: &str, mut found: Vec<Place>) -> Result<Option<Place>> {
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let name = |place: &Place| match place {
        Place::Own => path.to_owned(),
        Place::Named(name) => name.clone(),
        Place::Rows(spots) => spots.first().map_or(String::new(), |spot| spot.module.clone()),
    };
    let names: Vec<String> = found.iter().map(|place| format!("`{}`", name(place))).collect();
    let what = format!("`{path}` could be any of {} of the other adapters", names.join(", "));
    Err(Error::unsupported(own.root, what).hint(format!("`--arch NAME` says of which family the model is; {WAYS_OUT}")))
}

/// The families whose names are known in one spelling, so that those in the other can follow.
struct Families {
    spoken: Vec<(&'static Arch, Spelling)>,
}

impl Families {
    fn of(known: &Known, all: &[Own<'_>], family: Option<&str>) -> Self {
        let likely = arch::archs_of(all.iter().flat_map(|own| own.modules.iter().map(|module| module.normal.as_str())));
        let is_likely = |arch: &Arch| match family.and_then(arch::arch) {
            Some(said) => std::ptr::eq(said, arch),
            None => likely.iter().any(|likely| std::ptr::eq(*likely, arch)),
        };
        let candidates = arch::archs().iter().filter(|arch| !arch.is_aside() && !arch.has_heads());
        let spoken = candidates.filter(|arch| !arch.is_denoiser() || is_likely(arch)).filter_map(|arch| {
            let mut spellings = known.modules.keys().filter_map(|normal| arch.spelling(normal));
            let first = spellings.next()?;
            spellings.all(|other| other == first).then_some((arch, first))
        });
        Self { spoken: spoken.collect() }
    }

    /// The place of a module that is not known, as the others here are spelled.
    fn place(&self, known: &Known, own: &Own<'_>, at: usize) -> Result<Option<Place>> {
        let module = &own.modules[at];
        let Some((outputs, inputs)) = module.size else { return Ok(None) };
        let mut found: Vec<Place> = Vec::new();
        for reading in &module.readings {
            for (arch, spelling) in &self.spoken {
                if arch.spelling(reading).is_none_or(|own| own == *spelling) {
                    continue;
                }
                for spots in arch.translate(reading, outputs, inputs) {
                    match known.placed(module.path, spots, outputs) {
                        Some(place) if !found.contains(&place) => found.push(place),
                        _ => {}
                    }
                }
            }
        }
        one_of(own, module.path, found)
    }
}
