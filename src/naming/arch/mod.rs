//! Families of models: how their weights are called in the original release and in diffusers, and which of them are fused
//! there and split here. Tables in `archs/*.toml`. A row holds for any number of layers; how many the models of a family have
//! stands beside the rows, to tell families apart ([`left`]).
//!
//! A fused weight and its parts differ in rows only, so a change of one is told as [`Spot`]s of the other: exact in both
//! directions, whatever the change is.

mod choice;
mod flat;
mod parts;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::LazyLock;

use foldhash::HashMap;

pub use choice::{By, Left, Said, Seen, left, said};
pub use flat::{flatten, flattened, unflatten, unflatten_all};
pub use parts::part_of;
use table::{Expanded, Row, Share, Swap};
use template::{Filling, outline};

/// Rows `take` of a change land at row `at` of `module`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// Path of the module, with its component.
    pub module: String,
    /// Rows of the change.
    pub take: Range<u64>,
    /// Where they begin in the module.
    pub at: u64,
    /// How many rows the whole module has, where that follows; a base that disagrees is another model.
    pub of: Option<u64>,
}

/// Whose names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spelling {
    /// Those of the original release; the fused form.
    Original,
    /// Those of diffusers or transformers; the split form.
    Diffusers,
}

/// A family of models.
#[derive(Debug)]
pub struct Arch {
    table: Expanded,
    /// Outline of a path → row, spelling and part.
    dotted: HashMap<String, Vec<Place>>,
    /// The same for flattened names.
    flat: HashMap<String, Vec<Place>>,
    /// Those that any path may stand in front of.
    open: Vec<Place>,
    /// Rows lie in another order within a head.
    heads: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    row: usize,
    spelling: Spelling,
    part: usize,
}

static ARCHS: LazyLock<Vec<Arch>> = LazyLock::new(|| table::read().into_iter().map(Arch::new).collect());

/// All families.
pub fn archs() -> &'static [Arch] {
    &ARCHS
}

/// The family of this name.
pub fn arch(name: &str) -> Option<&'static Arch> {
    archs().iter().find(|arch| arch.name() == name)
}

/// Every other spelling of the module `path` with so many outputs and inputs, each as the list of places its rows go to.
///
/// The tables of all families are asked; which answer is meant, the names of a base tell. Families whose rows lie in another
/// order within a head are left out: no block of rows could tell where they go.
pub fn translate(path: &str, outputs: u64, inputs: u64) -> Vec<Vec<Spot>> {
    let mut found: Vec<Vec<Spot>> = Vec::new();
    for arch in archs().iter().filter(|arch| !arch.has_heads()) {
        for spots in arch.translate(path, outputs, inputs) {
            if !found.contains(&spots) {
                found.push(spots);
            }
        }
    }
    found
}

/// The families that know most of `paths` (dotted, with their component, or flattened): one where the names are clear.
/// Denoisers are asked first; text encoders are shared by many.
pub fn archs_of<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<&'static Arch> {
    let paths: Vec<&str> = paths.into_iter().collect();
    most_known(|arch| paths.iter().filter(|path| arch.knows(path)).count())
}

/// The families with the highest count above zero: denoisers if there are some among them, else the others.
fn most_known(count: impl Fn(&Arch) -> usize) -> Vec<&'static Arch> {
    let best = |denoisers: bool| {
        let of_kind = archs().iter().filter(|arch| !arch.table.aside && arch.is_denoiser() == denoisers);
        let counted: Vec<(usize, &'static Arch)> = of_kind.map(|arch| (count(arch), arch)).collect();
        let most = counted.iter().map(|(count, _)| *count).max().unwrap_or(0);
        counted.into_iter().filter(move |(count, _)| most > 0 && *count == most).map(|(_, arch)| arch).collect()
    };
    let denoisers: Vec<&'static Arch> = best(true);
    if denoisers.is_empty() { best(false) } else { denoisers }
}

/// Name of the tensor that holds the parameter `parameter` of `module`: with a dot between, but for two kinds of modules whose
/// originals call it otherwise.
pub fn parameter(module: &str, parameter: &str) -> String {
    match (module.rsplit('.').next().unwrap_or_default(), parameter) {
        // PyTorch's attention holds the fused projection itself.
        ("in_proj", _) => format!("{module}_{parameter}"),
        ("query_norm" | "key_norm", "weight") => format!("{module}.scale"),
        _ => format!("{module}.{parameter}"),
    }
}

impl Arch {
    fn new(table: Expanded) -> Self {
        let heads = table.rows.iter().any(|row| row.heads);
        let mut arch = Self { table, dotted: HashMap::default(), flat: HashMap::default(), open: Vec::new(), heads };
        for (row, own) in arch.table.rows.iter().enumerate() {
            let original = std::iter::once((Spelling::Original, 0, &own.original));
            let parts = own.diffusers.iter().enumerate().map(|(part, name)| (Spelling::Diffusers, part, name));
            for (spelling, part, name) in original.chain(parts) {
                let place = Place { row, spelling, part };
                if name.is_open() {
                    arch.open.push(place);
                    continue;
                }
                arch.dotted.entry(name.outline('.')).or_default().push(place);
                arch.flat.entry(name.outline('_')).or_default().push(place);
            }
        }
        arch
    }

    /// What sd-scripts calls models of this family, in `ss_base_model_version`.
    pub fn sd_scripts(&self) -> Option<&str> {
        self.table.sd_scripts.as_deref()
    }

    /// Whether its models have several text encoders, which sd-scripts numbers.
    pub fn has_several_encoders(&self) -> bool {
        self.table.several_encoders
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.table.name
    }

    /// The components of a pipeline that are of this family; none for language models.
    pub fn components(&self) -> &[String] {
        &self.table.components
    }

    /// Whether it is the part of a pipeline that removes noise.
    pub fn is_denoiser(&self) -> bool {
        self.components().iter().any(|name| name == "unet" || name == "transformer" || name == "prior")
    }

    /// Whether the tables hold the path, dotted or flattened.
    pub fn knows(&self, path: &str) -> bool {
        self.below(path).is_some_and(|(_, path)| !self.find(path).is_empty()) || !self.unflatten(path).is_empty()
    }

    /// In whose names `path` is spelled; `None` if it is the same in both, or not of this family.
    pub fn spelling(&self, path: &str) -> Option<Spelling> {
        let (_, path) = self.below(path)?;
        let mut found = self.find(path).into_iter().filter(|(place, _)| !self.row(*place).diffusers.is_empty());
        let (first, _) = found.next()?;
        found.all(|(place, _)| place.spelling == first.spelling).then_some(first.spelling)
    }

    /// Whether the tables hold the path, and a module with so many outputs and inputs.
    pub fn fits(&self, path: &str, outputs: u64, inputs: u64) -> bool {
        let Some((_, below)) = self.below(path) else { return false };
        self.find(below).into_iter().any(|(place, filling)| {
            let row = self.row(place);
            row.diffusers.is_empty() || spots(row, place, &filling, outputs, inputs).is_some()
        })
    }

    /// Whether it is the names of one tool, beside those of a family.
    pub fn is_aside(&self) -> bool {
        self.table.aside
    }

    /// Whether rows lie in another order within a head, so that no block of rows tells where they go.
    pub fn has_heads(&self) -> bool {
        self.heads
    }

    /// The other spellings of `path` in this family.
    pub fn translate(&self, path: &str, outputs: u64, inputs: u64) -> Vec<Vec<Spot>> {
        let Some((component, below)) = self.below(path) else { return Vec::new() };
        let found = self.find(below).into_iter().filter_map(|(place, filling)| {
            let row = self.row(place);
            if row.heads {
                return None;
            }
            let mut spots = spots(row, place, &filling, outputs, inputs)?;
            if !component.is_empty() {
                spots.iter_mut().for_each(|spot| spot.module = format!("{component}.{}", spot.module));
            }
            Some(spots)
        });
        found.filter(|spots| spots.iter().any(|spot| spot.module != path)).collect()
    }

    /// The path in the other spelling where it is renamed and nothing else, and whether the rows of its heads lie in another
    /// order (torchtune's queries and keys).
    pub fn renamed(&self, path: &str, to: Spelling) -> Option<(String, bool)> {
        let (component, below) = self.below(path)?;
        let (place, filling) = self.find(below).into_iter().find(|(place, _)| place.spelling != to)?;
        let row = self.row(place);
        let name = match (to, row.diffusers.as_slice()) {
            (Spelling::Original, [_]) => row.original.fill(&filling),
            (Spelling::Diffusers, [one]) => one.fill(&filling),
            _ => return None,
        };
        Some((if component.is_empty() { name } else { format!("{component}.{name}") }, row.heads))
    }

    /// Component and rest of a path of this family.
    fn below<'a>(&self, path: &'a str) -> Option<(&'a str, &'a str)> {
        if self.components().is_empty() {
            return Some(("", path));
        }
        let (component, rest) = path.split_once('.')?;
        self.components().iter().any(|name| name == component).then_some((component, rest))
    }

    fn row(&self, place: Place) -> &Row {
        &self.table.rows[place.row]
    }

    fn find(&self, path: &str) -> Vec<(Place, Filling)> {
        let indexed = self.dotted.get(&outline(path, '.')).into_iter().flatten();
        let name = |place: &Place| {
            let row = self.row(*place);
            match place.spelling {
                Spelling::Original => &row.original,
                Spelling::Diffusers => &row.diffusers[place.part],
            }
        };
        indexed.chain(&self.open).filter_map(|place| Some((*place, name(place).fit(path)?))).collect()
    }
}

/// Where the rows of a change of one spelling of `row` go in the other; `None` if its sizes cannot be those of this row.
fn spots(row: &Row, place: Place, filling: &Filling, outputs: u64, inputs: u64) -> Option<Vec<Spot>> {
    let whole = |module: String| match swapped(row.swap, outputs, inputs) {
        true if outputs % 2 == 1 => None,
        true => {
            let half = outputs / 2;
            let spot = |take: Range<u64>, at| Spot { module: module.clone(), take, at, of: Some(outputs) };
            Some(vec![spot(0..half, half), spot(half..outputs, 0)])
        }
        false => Some(vec![Spot { module, take: 0..outputs, at: 0, of: Some(outputs) }]),
    };
    let one = matches!(row.diffusers.as_slice(), [_]);
    if one && !row.shares.is_empty() && sizes(&row.shares, outputs, inputs).is_none() {
        return None;
    }
    match (place.spelling, row.diffusers.as_slice()) {
        (_, []) => None,
        (Spelling::Original, [one]) => whole(one.fill(filling)),
        (Spelling::Diffusers, [_]) => whole(row.original.fill(filling)),
        (Spelling::Original, parts) => {
            let mut at = 0;
            let sizes = sizes(&row.shares, outputs, inputs)?;
            let spots = parts.iter().zip(sizes).map(|(part, size)| {
                let take = at..at + size;
                at += size;
                Spot { module: part.fill(filling), take, at: 0, of: Some(size) }
            });
            Some(spots.collect())
        }
        (Spelling::Diffusers, _) => {
            let own = row.shares[place.part];
            let size = |share: &Share| match share {
                Share::Rest => (own == Share::Rest).then_some(outputs),
                fixed => fixed.rows(inputs),
            };
            if size(&own) != Some(outputs) {
                return None;
            }
            let sum = |shares: &[Share]| shares.iter().map(size).try_fold(0_u64, |sum, size| sum.checked_add(size?));
            let (at, of) = (sum(&row.shares[..place.part])?, sum(&row.shares));
            Some(vec![Spot { module: row.original.fill(filling), take: 0..outputs, at, of }])
        }
    }
}

fn swapped(swap: Swap, outputs: u64, inputs: u64) -> bool {
    match swap {
        Swap::Never => false,
        Swap::Always => true,
        Swap::Two => inputs.checked_mul(2) == Some(outputs),
    }
}

/// Rows of every part of a fused weight.
fn sizes(shares: &[Share], outputs: u64, inputs: u64) -> Option<Vec<u64>> {
    let fixed = |share: &Share| if *share == Share::Rest { Some(0) } else { share.rows(inputs) };
    let sizes = shares.iter().map(fixed).collect::<Option<Vec<u64>>>()?;
    let taken = sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size))?;
    let rest = outputs.checked_sub(taken)?;
    let among = shares.iter().filter(|share| **share == Share::Rest).count() as u64;
    if among == 0 {
        return (rest == 0).then_some(sizes);
    }
    let each = rest / among;
    let exact = rest % among == 0 && each > 0;
    let size = |(share, size): (&Share, u64)| if *share == Share::Rest { each } else { size };
    exact.then(|| shares.iter().zip(sizes).map(size).collect())
}
