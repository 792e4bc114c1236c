//! Which family of models an adapter is for, where its names are to be spelled as another tool spells them.
//!
//! In this order: `--arch`; what the base says of itself, and the names and sizes of its modules; what the header of the adapter
//! says, where that is consistent; the adapter's own names, sizes and numbers of blocks. What is left may be several families: if
//! they all give the same names, it does not matter which is meant; else the conversion is refused.

use std::collections::BTreeMap;

use super::pieces::{Pair, Pieces};
use super::spell::{Wanted, is_flat, read_flat, renamed, translated};
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::formats::{Container, json};
use crate::model::base::Base;
use crate::naming::arch::{self, Arch, Left, Said, Seen, Spot};
use crate::naming::components;

/// Keys of an adapter's header that name the model (sd-scripts and musubi-tuner; Stability's model spec).
const STATED: [&str; 2] = ["ss_base_model_version", "modelspec.architecture"];

/// What a configuration calls the class of a denoiser.
const CLASS: &str = "_class_name";

/// The family, and what is to be said of it.
#[derive(Debug, Default)]
pub struct Chosen {
    /// `None` where no table has it, or several give the same names.
    pub family: Option<&'static Arch>,
    /// Whose table is used.
    pub table: Option<&'static Arch>,
    /// What told the family, in words.
    pub by: Option<String>,
    /// Notes.
    pub notes: Vec<String>,
}

impl Chosen {
    fn sure(family: &'static Arch, by: impl Into<String>) -> Self {
        Self { family: Some(family), table: Some(family), by: Some(by.into()), notes: Vec::new() }
    }
}

/// What is converted.
pub struct Asked<'a> {
    /// The adapter.
    pub adapter: &'a Adapter,
    /// Its changes, in its own names.
    pub pieces: &'a Pieces,
    /// The spelling that is wanted.
    pub wanted: Wanted,
    /// The model it is for.
    pub base: Option<&'a Base>,
    /// Flattened names of the base's modules → paths.
    pub flat: &'a BTreeMap<String, String>,
    /// The one family that the target's tool knows.
    pub only: Option<&'static str>,
}

impl Asked<'_> {
    /// The family the adapter is for; `named` is what `--arch` says.
    ///
    /// # Errors
    /// When several are left and differ in the names they give, or what is said contradicts the names.
    pub fn family(&self, named: Option<&str>) -> Result<Chosen> {
        if let Some(name) = named {
            let family = arch::arch(name).ok_or_else(|| {
                let known: Vec<&str> = arch::archs().iter().map(Arch::name).collect();
                Error::invalid("--arch", format!("`{name}` is not one of {}", known.join(", ")))
            })?;
            return Ok(Chosen::sure(family, "--arch"));
        }
        let modules = self.modules();
        let seen: Vec<Seen<'_>> = modules.iter().map(|(path, size)| Seen { path, size: *size }).collect();
        let own = arch::left(&seen);
        if !own.families.iter().any(|family| family.is_denoiser()) {
            let family = own.families.first().copied();
            let of_denoiser = |(path, _): &(String, _)| {
                components::split(path).is_some_and(|(component, _)| components::kind_of_denoiser(component).is_some())
            };
            return Ok(Chosen {
                family,
                table: family,
                ..self.unknown(family.is_none() && modules.iter().any(of_denoiser))
            });
        }
        if let Some(chosen) = self.by_base(&own)? {
            return Ok(chosen);
        }
        let mut notes = Vec::new();
        for (key, text, said) in self.stated() {
            let family = match said {
                Said::Family(family) => family,
                Said::Other => return Ok(self.unknown(true)),
                Said::Nothing => continue,
            };
            let known = own.families.iter().any(|left| std::ptr::eq(*left, family));
            // Sizes that no known model has are no contradiction: the file says what it is.
            if known && (own.other_sizes || family.has_sizes(&seen)) {
                return Ok(Chosen::sure(family, format!("`{key}` of its header, `{text}`")));
            }
            notes.push(format!("`{key}` of its header is `{text}`, which its modules are not: it was not heeded"));
        }
        let mut chosen = self.of(&own)?;
        chosen.notes.extend(notes);
        Ok(chosen)
    }

    /// Paths with their component, or flattened, and sizes.
    fn modules(&self) -> Vec<(String, Option<(u64, u64)>)> {
        let path = |path: &str| if is_flat(path) { path.to_owned() } else { components::with_component(path) };
        let pairs = self.pieces.pairs.iter().map(|pair| (path(&pair.path), Some(size_of(pair))));
        let methods = self.pieces.methods.iter().map(|other| (path(&other.path), other.method.shape()));
        let whole = self.pieces.whole.iter().map(|whole| (path(&whole.path), None));
        pairs.chain(methods).chain(whole).collect()
    }

    /// The family by the base, if it tells one.
    fn by_base(&self, own: &Left) -> Result<Option<Chosen>> {
        let Some(base) = self.base else { return Ok(None) };
        let name = || format!("the base `{}`", base.checkpoint.root().display());
        let consistent = |family: &'static Arch| {
            if own.families.iter().any(|left| std::ptr::eq(*left, family)) {
                return Ok(Some(Chosen::sure(family, name())));
            }
            let names: Vec<&str> = own.families.iter().map(|family| family.name()).collect();
            let problem =
                format!("the names of its modules are those of {}, the base is {}", names.join(", "), family.name());
            Err(Error::mismatch(
                self.adapter.root.display().to_string(),
                base.checkpoint.root().display().to_string(),
                problem,
            )
            .hint("is this the model the adapter was trained on?"))
        };
        for text in said_by(base)? {
            match arch::said(&text) {
                Said::Family(family) => return consistent(family),
                Said::Other => return Ok(Some(self.unknown(true))),
                Said::Nothing => {}
            }
        }
        let modules: Vec<(String, Option<(u64, u64)>)> = base
            .checkpoint
            .tensors()
            .filter_map(|info| {
                let (module, parameter) = info.name.rsplit_once('.')?;
                let size = (parameter == "weight" && info.shape.as_slice().len() > 1).then(|| info.shape.rows_cols());
                Some((components::with_component(module), size))
            })
            .collect();
        let seen: Vec<Seen<'_>> = modules.iter().map(|(path, size)| Seen { path, size: *size }).collect();
        let of_base = arch::left(&seen);
        if !of_base.families.iter().any(|family| family.is_denoiser()) || of_base.other_sizes {
            return Ok(None);
        }
        match of_base.families.as_slice() {
            [family] => consistent(family),
            several => {
                let both: Vec<&'static Arch> = several
                    .iter()
                    .copied()
                    .filter(|one| own.families.iter().any(|other| std::ptr::eq(*one, *other)))
                    .collect();
                if both.is_empty() { Ok(None) } else { self.of(&Left { families: both, ..own.clone() }).map(Some) }
            }
        }
    }

    /// What the header of the adapter says: key, text and family.
    fn stated(&self) -> impl Iterator<Item = (&'static str, &str, Said)> {
        let metadata = &self.adapter.tensors.files()[0].header.metadata;
        STATED.into_iter().filter_map(|key| {
            let (_, text) = metadata.iter().find(|(own, _)| own == key)?;
            Some((key, text.as_str(), arch::said(text)))
        })
    }

    /// The family among those that are left.
    fn of(&self, left: &Left) -> Result<Chosen> {
        if let Some(family) = left.families.iter().find(|family| Some(family.name()) == self.only) {
            return Ok(Chosen::sure(family, "the target, which knows no other"));
        }
        if let ([family], false) = (left.families.as_slice(), left.other_sizes) {
            return Ok(Chosen::sure(family, left.by.words()));
        }
        let outcomes: Vec<Vec<Outcome>> = left.families.iter().map(|family| self.outcome(Some(family))).collect();
        let first = outcomes.first().cloned().unwrap_or_default();
        let same = outcomes.iter().all(|other| *other == first);
        if left.other_sizes {
            // A family that is none of these may call everything otherwise.
            if same && first == self.outcome(None) {
                return Ok(self.unknown(true));
            }
        } else if same {
            let table = left.families.first().copied();
            return Ok(Chosen { table, ..Chosen::default() });
        }
        let names: Vec<&str> = left.families.iter().map(|family| family.name()).collect();
        let who = match (names.as_slice(), left.other_sizes) {
            (names, true) => {
                format!("has the names of {}, and sizes that no known model of them has", names.join(", "))
            }
            (names, false) => {
                format!("can be for {}: its names and sizes are the same in all of them", names.join(", "))
            }
        };
        let what = format!("{who}; what its modules are called there depends on the model");
        let ways: Vec<String> = names.iter().map(|name| format!("--arch {name}")).collect();
        Err(Error::unsupported(&self.adapter.root, what)
            .hint(format!("say which model it is for: {}, or --base PATH", ways.join(", "))))
    }

    /// A family that no table has: all names stay.
    fn unknown(&self, denoiser: bool) -> Chosen {
        let note =
            "no known family of models has modules of these names and sizes: their names stay as they are".to_owned();
        let told = denoiser && self.wanted != Wanted::Own;
        Chosen { notes: if told { vec![note] } else { Vec::new() }, ..Chosen::default() }
    }

    /// What every module would be called if the adapter were for `family`.
    fn outcome(&self, family: Option<&'static Arch>) -> Vec<Outcome> {
        let read = |path: &String| {
            if is_flat(path) {
                read_flat(path, self.flat, family).unwrap_or_else(|| path.clone())
            } else {
                components::with_component(path)
            }
        };
        let pair = |pair: &Pair| {
            let path = read(&pair.path);
            let spots =
                if self.wanted == Wanted::Own { None } else { translated(&path, size_of(pair), self.wanted, family) };
            spots.map_or(Outcome::Called(path), Outcome::Moved)
        };
        let other = |path: &String| {
            let path = read(path);
            if self.wanted == Wanted::Own {
                Outcome::Called(path)
            } else {
                Outcome::Renamed(renamed(&path, self.wanted, family))
            }
        };
        let others = self
            .pieces
            .methods
            .iter()
            .map(|other| &other.path)
            .chain(self.pieces.whole.iter().map(|whole| &whole.path));
        self.pieces.pairs.iter().map(pair).chain(others.map(other)).collect()
    }
}

/// Puts the name of the denoiser in front of paths that name no component, where the blocks or the tables tell that they are
/// modules of one: an adapter of PEFT's belongs to one model, and its paths do not say which part of a pipeline that is.
pub fn name_components(pieces: &mut Pieces) {
    let own: Vec<&String> =
        pieces.paths().filter(|path| path.contains('.') && components::split(path).is_none()).collect();
    let told: Vec<String> = own.iter().map(|path| components::with_component(path)).collect();
    let known = |denoiser: &&'static str| {
        let knows = |path: &String| {
            arch::archs().iter().any(|family| family.is_denoiser() && family.knows(&format!("{denoiser}.{path}")))
        };
        own.iter().any(|path| knows(path))
    };
    let by_blocks = components::of_blocks(told.iter().map(String::as_str));
    let Some(denoiser) = by_blocks.or_else(|| ["transformer", "unet"].into_iter().find(known)) else { return };
    for path in pieces.paths_mut() {
        if path.contains('.') && components::split(path).is_none() {
            *path = components::below(denoiser, &components::with_component(path));
        }
    }
}

/// What becomes of the name of one module.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It is called so already.
    Called(String),
    /// Its rows go there.
    Moved(Vec<Spot>),
    /// It is called so; nothing if it cannot be renamed.
    Renamed(Option<String>),
}

/// Outputs and inputs.
fn size_of(pair: &Pair) -> (u64, u64) {
    (pair.up.size.0, pair.down.size.1)
}

/// What a base says of its family: the class of the denoiser, or the architecture of a GGUF file.
fn said_by(base: &Base) -> Result<Vec<String>> {
    let class = |config: &serde_json::Map<String, serde_json::Value>| {
        config.get(CLASS).and_then(|class| class.as_str()).map(str::to_owned)
    };
    let mut found: Vec<String> = base.config.as_ref().and_then(|config| class(&config.raw)).into_iter().collect();
    if let Container::Pipeline(folders) = base.checkpoint.container() {
        for folder in folders.iter().filter(|folder| components::kind_of_denoiser(&folder.name).is_some()) {
            let config = base.checkpoint.root().join(&folder.name).join("config.json");
            if config.is_file() {
                found.extend(class(&json::read_object(&config)?));
            }
        }
    }
    let gguf = base.checkpoint.gguf().and_then(|metadata| metadata.text("general.architecture"));
    found.extend(gguf.map(str::to_owned));
    Ok(found)
}
