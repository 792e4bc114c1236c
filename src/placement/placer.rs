//! Where every change of an adapter has its place in the base: which tensor, which rows, which way round.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::change::Placeable;
use super::experts::Layers;
use super::places::{Place, Places, size_of};
use super::selection::Selection;
use super::tile::Piece;
use super::vocabulary::Resized;
use crate::error::Result;
use crate::formats::Stored;
use crate::model::base::Base;
use crate::naming::arch::{Spot, parameter as parameter_of};
use crate::naming::{experts, renamed};

/// What became of an adapter's tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is in the result.
    Merged,
    /// It repeats the base's own tensor.
    SameAsBase,
    /// `--include`, `--exclude` or a weight of zero leave it out.
    LeftOut,
    /// It has no place in the base, and `--allow-unused` says that it may.
    AllowedUnused,
}

/// Everything that goes to one tensor of the output.
#[derive(Default, Clone)]
pub struct Target {
    /// A tensor of an adapter that takes the base's place.
    pub replacement: Option<Stored>,
    /// What is added, in order.
    pub pieces: Vec<Piece>,
    /// Columns of the matrix view, where they are not those of the first dimension against the rest (stacks).
    pub cols: Option<usize>,
    /// For a tensor the base does not have: the one of the base it starts from.
    pub starts_from: Option<String>,
}

/// All changes with their places.
#[derive(Default)]
pub struct Placement {
    /// By name of the output tensor.
    pub targets: BTreeMap<String, Target>,
    /// What became of every adapter tensor, adapter by adapter.
    pub outcomes: Vec<HashMap<String, Outcome>>,
    /// Matrices that get another number of rows.
    pub resized: Resized,
    /// Notes.
    pub notes: Vec<String>,
}

/// Finds the place of one adapter after the other.
pub struct Placer<'a> {
    pub(crate) base: &'a Base,
    pub(crate) places: Places,
    /// The denoiser that `--component` names.
    pub(crate) component: Option<&'a str>,
    pub(super) selection: &'a Selection,
    pub(super) allow_unused: &'a globset::GlobSet,
    /// Whether the vocabulary may get another size.
    pub(super) resizes: bool,
    /// Modules of the tie: number of the adapter, position in it, and whether it is the head.
    pub(crate) tied: Vec<(usize, usize, bool)>,
    /// Whether the adapter that is placed calls the base's modules as the base does.
    pub(super) same_paths: bool,
    /// The layers with experts that were met.
    pub(super) layers: Layers,
    /// What is placed so far.
    pub placement: Placement,
    /// Every module path seen.
    pub paths: BTreeSet<String>,
}

impl<'a> Placer<'a> {
    /// Nothing is placed yet.
    pub fn new(base: &'a Base, selection: &'a Selection, allow_unused: &'a globset::GlobSet) -> Self {
        let (places, placement) = (Places::new(base), Placement::default());
        Self {
            base,
            places,
            component: None,
            selection,
            allow_unused,
            resizes: false,
            same_paths: false,
            tied: Vec::new(),
            layers: Layers::default(),
            placement,
            paths: BTreeSet::new(),
        }
    }

    /// The same, and whether the vocabulary may get another size.
    #[must_use]
    pub fn resizing(self, resizes: bool) -> Self {
        Self { resizes, ..self }
    }

    /// The same, and the denoiser that is meant where a pipeline has several alike.
    #[must_use]
    pub fn meaning(self, component: Option<&'a str>) -> Self {
        Self { component, ..self }
    }

    /// The places of the rows of the job's module, where they are those of other modules.
    #[allow(clippy::type_complexity, reason = "outputs and inputs of the change, and where its rows go")]
    pub(crate) fn spots(&self, job: &Placeable<'_>) -> Result<Option<((u64, u64), Vec<Spot>)>> {
        let Some(size) = size_of(&job.module.change) else { return Ok(None) };
        match self.places.find(self.base, &job.path, Some(size))? {
            Some(Place::Rows(spots)) => Ok(Some((size, spots))),
            _ => Ok(None),
        }
    }

    pub(crate) fn base_name(&self) -> String {
        self.base.checkpoint.root().display().to_string()
    }

    /// The name of `parameter` of the job's module in the output, if there is a place for it.
    pub(crate) fn tensor_of(&self, job: &Placeable<'_>, parameter: &str) -> Option<String> {
        let has =
            |name: &String| self.base.names.has(name) || self.base.tie.as_ref().is_some_and(|tie| tie.head == *name);
        // nn.MultiheadAttention keeps the weight of its first projection in a parameter of its own.
        let packed = (parameter == "weight").then(|| format!("{}.in_proj_weight", job.path));
        let paths = || std::iter::once(job.path.clone()).chain(experts::aliases(&job.path));
        let named = |path: &str, parameter: &str| match path {
            "" => parameter.to_owned(),
            path => format!("{path}.{parameter}"),
        };
        let renamed = renamed::parameters(parameter)
            .flat_map(|other| paths().map(|path| named(&path, &other)).collect::<Vec<String>>());
        paths()
            .map(|path| named(&path, parameter))
            .chain(packed)
            .chain(std::iter::once(parameter_of(&job.path, parameter)))
            .chain(renamed)
            .find(has)
    }

    /// The base's tensor that `name` starts from: itself, or the embedding for a tied head.
    pub(crate) fn target(&self, name: &str) -> Stored {
        let source = self.base.tie.as_ref().filter(|tie| tie.head == name).map_or(name, |tie| tie.embedding.as_str());
        self.base.stored(source)
    }

    pub(crate) fn add(&mut self, name: &str, piece: Piece, cols: Option<usize>) {
        let target = self.entry(name);
        target.cols = target.cols.or(cols);
        target.pieces.push(piece);
    }

    pub(super) fn entry(&mut self, name: &str) -> &mut Target {
        let tie = self.base.tie.as_ref().filter(|tie| tie.head == name);
        let starts_from = tie.map(|tie| tie.embedding.clone());
        self.placement.targets.entry(name.to_owned()).or_insert_with(|| Target { starts_from, ..Target::default() })
    }
}
