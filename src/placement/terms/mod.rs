//! Several adapters → what each contributes to every module: weight · scale · B·A, and the tensors they hold whole.

mod methods;
mod moved;
mod parameters;
mod selected;
mod source;
mod spellings;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use std::sync::Arc;

use foldhash::HashMap;

use super::{Applied, Placeable, Selection};
use crate::adapters::config::saves;
use crate::adapters::{
    Adapter, Change, Factor, Initialiser, Lora, Module, Stack, Term, describe, embedding_of, embeddings_note,
};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::linalg::LowRank;
use crate::model::original::Original;
use crate::naming::arch::Spot;
use crate::pairs::{Bytes, NewPair, PairKind};
use crate::tensor::{Float, usize_of};
use parameters::Parameters;
use spellings::{Place, Spellings};

use moved::Home;
pub use moved::{Moved, Multiplied};
pub use source::open;

/// Everything that several adapters do to one module or parameter by low-rank products.
pub struct Slot {
    /// Module path.
    pub path: String,
    /// The kind of layer.
    pub kind: PairKind,
    /// Outputs and inputs, a convolution's without its kernel; of an embedding `(dim, vocabulary)`.
    pub outer: (u64, u64),
    /// What is summed, in the order of the adapters.
    pub shares: Vec<Share>,
    /// What is summed as well and is no product of factors.
    pub multiplied: Vec<Multiplied>,
}

/// One product.
pub struct Share {
    /// Which adapter it comes from.
    pub source: usize,
    /// The adapter's weight here.
    pub weight: f64,
    /// B, A and the scale the adapter's config gives them.
    pub term: Term,
    /// r; of a stack that of one expert.
    pub rank: usize,
    /// How its factors are stored, if both are alike.
    pub float: Option<Float>,
    /// A and B where the term is no more than what a file holds.
    pub stored: Option<(Stored, Stored)>,
    /// Bias of B.
    pub bias: Option<Stored>,
    /// What is known of the pair of a stack of experts.
    pub stack: Option<Arc<Stack>>,
}

impl Share {
    /// The factor in front of B·A.
    pub fn factor(&self) -> f64 {
        self.weight * self.term.scale
    }
}

/// What a whole tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Part of a module that was trained whole.
    Saved,
    /// A bias that was trained.
    Bias,
    /// A copy of the layer's own parameter, saved along and not trained.
    Frozen,
}

/// A tensor that one adapter holds whole.
pub struct Held {
    /// The adapter's weight here.
    pub weight: f64,
    /// The tensor.
    pub tensor: Stored,
    /// What it is.
    pub standing: Standing,
}

/// Token rows of one adapter.
pub struct Rows {
    /// The tensor, with the tokens it is for.
    pub held: Held,
    /// Token of every row.
    pub ids: Vec<usize>,
    /// How the config names the embedding; empty for the input embedding.
    pub suffix: String,
}

/// All contributions.
#[derive(Default)]
pub struct Terms {
    /// Low-rank ones by module path and, for parameters without a layer, name.
    pub slots: BTreeMap<(String, String), Slot>,
    /// Tensors held whole by module path and parameter.
    pub whole: BTreeMap<(String, String), Vec<Held>>,
    /// Token rows by module path.
    pub rows: BTreeMap<String, Vec<Rows>>,
    /// Tensors that the selection or a weight of zero leave out.
    pub left_out: usize,
    /// What people should know of how the adapters' names came together.
    pub notes: Vec<String>,
    /// Adapters that have no module in common with any other.
    pub apart: Vec<usize>,
    /// Changes whose weight is looked at last, all at once.
    pending: Vec<moved::Pending>,
}

/// Gathers what `sources` do to the modules of `selection`, each module under one name. Some changes need the model to be known:
/// `base`, and [`Terms::resolve`] afterwards. `family` is the one that the user says the model is of.
///
/// # Errors
/// When tensors of one module do not fit each other, a kind of change cannot be summed, or it is not clear which modules are one.
pub fn gather(
    sources: &[Applied],
    selection: &Selection,
    base: Option<&Original>,
    family: Option<&str>,
) -> Result<Terms> {
    let spellings = Spellings::of(sources, base.map(|base| &base.base), family)?;
    let parameters = Parameters::of(sources, &spellings)?;
    let mut terms = Terms { notes: spellings.notes.clone(), ..Terms::default() };
    let mut paths = BTreeSet::new();
    let mut holders = Holders::default();
    let mut embedded = BTreeSet::new();
    for (source, applied) in sources.iter().enumerate() {
        let home = base.map(|base| Home::of(base, &applied.adapter)).transpose()?;
        for (at, module) in applied.adapter.modules.iter().enumerate() {
            if let Some(name) = embedding_of(module) {
                embedded.insert(name);
                continue;
            }
            let place = spellings.place(source, at);
            let path = match place {
                Place::Own => &module.path,
                Place::Named(path) => path,
                // The first stands for all: they are parts of one weight.
                Place::Rows(spots) => &spots[0].module,
            };
            let names = spellings.names(path).chain([module.path.as_str()]);
            paths.extend(names.clone().map(str::to_owned));
            let strength = applied.within_range(selected::strength(selection, names.clone()), path)?;
            if strength == 0.0 || !selected::takes(selection, names) {
                terms.left_out += module.change.tensors().len();
                continue;
            }
            let taken = |path: &str| {
                let job = Placeable { applied, module, at, path: path.to_owned(), strength };
                Taken { job, source, parameters: &parameters, home: home.as_ref() }
            };
            match place {
                Place::Own | Place::Named(_) => {
                    holders.add(path, source);
                    terms.take(&taken(path))?;
                }
                Place::Rows(spots) => {
                    spots.iter().for_each(|spot| holders.add(&spot.module, source));
                    terms.take_rows(&taken, module, spots)?;
                }
            }
        }
    }
    terms.notes.extend(embeddings_note(&embedded, "a sum"));
    selection.check(&paths)?;
    terms.check()?;
    terms.apart = holders.apart();
    Ok(terms)
}

/// Which adapters have a module.
#[derive(Default)]
struct Holders {
    by_module: HashMap<String, BTreeSet<usize>>,
}

impl Holders {
    fn add(&mut self, module: &str, source: usize) {
        match self.by_module.get_mut(module) {
            Some(sources) => drop(sources.insert(source)),
            None => drop(self.by_module.insert(module.to_owned(), BTreeSet::from([source]))),
        }
    }

    /// Those that share no module with another, where there are others.
    fn apart(self) -> Vec<usize> {
        let all: BTreeSet<usize> = self.by_module.values().flatten().copied().collect();
        let sharing: BTreeSet<usize> =
            self.by_module.values().filter(|sources| sources.len() > 1).flatten().copied().collect();
        if all.len() < 2 { Vec::new() } else { all.difference(&sharing).copied().collect() }
    }
}

/// One change on its way.
pub(crate) struct Taken<'a> {
    job: Placeable<'a>,
    source: usize,
    parameters: &'a Parameters,
    home: Option<&'a Home<'a>>,
}

impl Terms {
    fn take(&mut self, taken: &Taken<'_>) -> Result<()> {
        let Placeable { applied, module, strength: weight, .. } = taken.job;
        let path = &taken.job.path;
        let config = &applied.adapter.config;
        let held = |tensor: &Stored, standing| Held { weight, tensor: tensor.clone(), standing };
        match &module.change {
            Change::Lora(lora) => self.take_pair(taken, lora),
            Change::Whole(parameter, tensor) => {
                let trained = config.modules_to_save.iter().any(|saved| saves(saved, &module.path));
                let standing = if parameter == "bias" && !trained { Standing::Bias } else { Standing::Saved };
                self.whole.entry((path.clone(), parameter.clone())).or_default().push(held(tensor, standing));
                Ok(())
            }
            Change::Frozen(parameter, tensor) => {
                let trained = parameter == "bias" && config.raw.get("bias").is_some_and(|bias| bias != "none");
                let standing = if trained { Standing::Bias } else { Standing::Frozen };
                self.whole.entry((path.clone(), parameter.clone())).or_default().push(held(tensor, standing));
                Ok(())
            }
            Change::TokenRows(tensor) => {
                let (suffix, ids) = token_ids(&applied.adapter, &module.path, tensor)?;
                let rows = Rows { held: held(tensor, Standing::Saved), ids, suffix };
                self.rows.entry(path.clone()).or_default().push(rows);
                Ok(())
            }
            Change::Method(method) => self.take_method(taken, method.as_ref()),
            Change::Inserted(inserted) => {
                let what = format!("`{}` is {}: {}", module.path, inserted.kind, inserted.reason);
                Err(Error::unsupported(&applied.adapter.root, what))
            }
            Change::Unknown(tensor) => {
                let what = format!("tensor `{}` belongs to LoRA in a way that is not known", tensor.info.name);
                Err(Error::unsupported(tensor.path(), what))
            }
        }
    }

    /// Takes a change whose rows lie in other modules than its own.
    fn take_rows<'a>(&mut self, taken: &dyn Fn(&str) -> Taken<'a>, module: &Module, spots: &[Spot]) -> Result<()> {
        let whole = taken(&spots[0].module);
        let Change::Lora(lora) = &module.change else { return Err(spellings::not_cut(&whole.job, spots)) };
        if moved::needs_weight(&whole.job, lora) || whole.job.applied.init.is_some() {
            return Err(spellings::not_cut(&whole.job, spots));
        }
        for (path, part) in spellings::cut(lora, spots)? {
            self.take_pair(&taken(&path), &part)?;
        }
        Ok(())
    }

    fn take_pair(&mut self, taken: &Taken<'_>, lora: &Lora) -> Result<()> {
        let Taken { job, source, parameters, home } = taken;
        methods::refuse_stack(job, lora)?;
        let kind = parameters.kind(job, *source, lora)?;
        let outer = outer(lora, &kind);
        let mut slot = Slot { path: job.path.clone(), kind, outer, shares: Vec::new(), multiplied: Vec::new() };
        let name = match &slot.kind {
            PairKind::Parameter { name, .. } => name.clone(),
            _ => String::new(),
        };
        let key = (job.path.clone(), name);
        match home.filter(|_| moved::needs_weight(job, lora)) {
            Some(home) => self.pending.push(home.find(job, lora, *source, key.clone())?),
            None => slot.shares = products(job, *source, lora, &slot)?,
        }
        self.place(key, slot, || describe(&lora.down))
    }

    /// Adds a slot to what other adapters do to the same module; `what` names the tensor it comes from.
    fn place(&mut self, key: (String, String), slot: Slot, what: impl Fn() -> String) -> Result<()> {
        match self.slots.entry(key) {
            Entry::Vacant(place) => {
                place.insert(slot);
            }
            Entry::Occupied(mut place) => {
                let earlier = place.get_mut();
                earlier.widen(&slot);
                earlier.check_alike(&slot, what)?;
                earlier.shares.extend(slot.shares);
            }
        }
        Ok(())
    }

    /// A module is either adapted or saved whole.
    fn check(&self) -> Result<()> {
        for ((module, parameter), held) in &self.whole {
            let Some(saved) = held.iter().find(|held| held.standing == Standing::Saved) else { continue };
            let pair = self.slots.get(&(module.clone(), String::new())).and_then(|slot| slot.shares.first());
            if let Some(share) = pair
                && parameter == "weight"
            {
                let other = share.stored.as_ref().map_or_else(|| module.clone(), |(down, _)| describe(down));
                let problem = format!("module `{module}` is saved whole by one and adapted by the other");
                return Err(Error::mismatch(describe(&saved.tensor), other, problem)
                    .hint("an adapter can hold a module in one way only; `merge` takes both"));
            }
        }
        Ok(())
    }
}

/// The products of a pair: its own, and that of its untrained factors where they are at hand.
fn products(job: &Placeable<'_>, source: usize, lora: &Lora, slot: &Slot) -> Result<Vec<Share>> {
    let experts = slot.experts() as u64;
    let float = |tensor: &Stored| tensor.info.dtype.float();
    let share = |pair: &Lora, scale: f64| -> Result<Share> {
        Ok(Share {
            source,
            weight: job.strength,
            rank: usize_of(pair.rank() / experts),
            float: float(&pair.down).filter(|float_of_down| float(&pair.up) == Some(*float_of_down)),
            term: Term { up: Factor::new(&pair.up)?, down: Factor::new(&pair.down)?, scale },
            stored: Some((pair.down.clone(), pair.up.clone())),
            bias: pair.bias.clone(),
            stack: pair.stack.clone(),
        })
    };
    let own = match &slot.kind {
        PairKind::Parameter { name, .. } => format!("{}.{name}", job.module.path),
        _ => job.module.path.clone(),
    };
    let mut shares = vec![share(lora, job.scale_as(&own, lora.rank() / experts)?)?];
    if let Some((untrained, scale)) = job.untrained()? {
        if (untrained.outputs(), untrained.inputs()) != (lora.outputs(), lora.inputs()) {
            let problem = "the untrained factors have another shape";
            return Err(Error::mismatch(describe(&untrained.up), describe(&lora.up), problem));
        }
        let mut taken = share(untrained, -scale)?;
        if lies_as_stored(job, untrained) {
            (taken.term, taken.stored) = (taken.term.transposed(), None);
        }
        shares.push(taken);
    }
    Ok(shares)
}

/// OLoRA factors a weight as it is stored, `[in, out]` where the config says so (docs/inside/decisions/0006); only square layers survive
/// that in PEFT.
fn lies_as_stored(job: &Placeable<'_>, untrained: &Lora) -> bool {
    let config = &job.applied.adapter.config;
    let olora = config.initialiser() == Some(Initialiser::Olora);
    olora && config.fan_in_fan_out && untrained.outputs() == untrained.inputs()
}

impl Slot {
    /// A convolution of one position is a matrix, and is stored as either: here as the convolution, if one of both is.
    fn widen(&mut self, other: &Self) {
        let pointwise =
            |slot: &Self| matches!(slot.kind, PairKind::Linear | PairKind::Conv { .. }) && slot.positions() == 1;
        if pointwise(self) && pointwise(other) && self.kind == PairKind::Linear {
            self.kind = other.kind.clone();
        }
    }

    /// What another adapter does to the module has to be of the same kind and shape.
    fn check_alike(&self, other: &Self, what: impl Fn() -> String) -> Result<()> {
        let both_pointwise =
            matches!((&self.kind, &other.kind), (PairKind::Conv { .. }, PairKind::Linear)) && self.positions() == 1;
        if (self.kind == other.kind || both_pointwise) && self.outer == other.outer {
            return Ok(());
        }
        let earlier = self.shares.first().and_then(|share| share.stored.as_ref()).map(|(down, _)| describe(down));
        let word = |slot: &Self| {
            let kind = match slot.kind {
                PairKind::Linear => "a matrix",
                PairKind::Conv { .. } => "a convolution",
                PairKind::Embedding => "an embedding",
                PairKind::Parameter { .. } => "a stack of experts",
            };
            format!("{kind} of [{}, {}]", slot.outer.0, slot.outer.1)
        };
        let problem = format!("one changes {}, the other {}", word(self), word(other));
        Err(Error::mismatch(what(), earlier.unwrap_or_else(|| self.name()), problem)
            .hint("adapters of different models have no sum"))
    }

    /// Adds products where those of the same adapter stand.
    fn insert(&mut self, shares: Vec<Share>) {
        let Some(source) = shares.first().map(|share| share.source) else { return };
        let at = self.shares.partition_point(|share| share.source <= source);
        self.shares.splice(at..at, shares);
    }

    /// Whether it is a stack of which only the model tells which factor lies on the input: it stays as it lies.
    pub fn is_open(&self) -> bool {
        self.shares.iter().any(|share| share.stack.as_ref().is_some_and(|stack| stack.sides.is_none()))
    }

    /// Experts of a stack; 1 for everything else.
    pub fn experts(&self) -> usize {
        self.kind.experts()
    }

    /// Positions of a convolution's kernel; 1 for everything else.
    pub fn positions(&self) -> u64 {
        self.kind.positions()
    }

    /// Rows and columns of ΔW as a matrix, of one expert's in a stack.
    pub fn shape(&self) -> (usize, usize) {
        self.kind.matrix(self.outer)
    }

    /// The path of the module, with the parameter's name where it is adapted without a layer.
    pub fn name(&self) -> String {
        self.kind.name(&self.path)
    }

    /// Every share's product for one expert, with the factor in front that `scale` gives.
    ///
    /// # Errors
    /// When factors cannot be read.
    pub fn products(&self, expert: usize, scale: impl Fn(&Share) -> f64) -> Result<Vec<LowRank>> {
        let experts = self.experts();
        let product = |share: &Share| {
            let lies = share.stack.as_ref().and_then(|stack| stack.expert(expert as u64, share.term.scale));
            let Term { down, up, .. } = match lies {
                Some(term) => term?,
                None => share.term.expert(expert, experts),
            };
            Ok(LowRank::from_rows(up.to_vec()?, down.to_vec()?, share.rank, scale(share)))
        };
        self.shares.iter().map(product).collect()
    }

    /// A pair for the module.
    pub fn pair(&self, rank: usize, alpha: f64, down: Bytes, up: Bytes, up_bias: Option<Bytes>) -> NewPair {
        let (path, kind, outer) = (self.path.clone(), self.kind.clone(), self.outer);
        NewPair { path, kind, rank, alpha, down, up, outer, up_bias }
    }

    /// Ranks of what is summed.
    pub fn ranks(&self) -> Vec<usize> {
        let multiplied = self.multiplied.iter().map(|multiplied| multiplied.rank);
        self.shares.iter().map(|share| share.rank).chain(multiplied).collect()
    }

    /// The dtype that all shares have in common.
    pub fn common_float(&self) -> Option<Float> {
        let first = self.shares.first().filter(|_| self.multiplied.is_empty())?.float;
        first.filter(|_| self.shares.iter().all(|share| share.float == first))
    }
}

fn outer(lora: &Lora, kind: &PairKind) -> (u64, u64) {
    (lora.outputs(), lora.inputs() / kind.positions())
}

/// The tokens whose rows `tensor` holds, and how the config names their embedding.
fn token_ids(adapter: &Adapter, path: &str, tensor: &Stored) -> Result<(String, Vec<usize>)> {
    let serves = |suffix: &str| suffix.is_empty() || path == suffix || path.ends_with(&format!(".{suffix}"));
    let found = adapter.config.token_indices.iter().find(|(suffix, _)| serves(suffix));
    let Some((suffix, ids)) = found else {
        let problem = format!("belongs to `{path}`, for which `{}` lists no tokens", adapter.config.path.display());
        return Err(Error::malformed(tensor.path(), format!("tensor `{}`", tensor.info.name), problem));
    };
    let rows = tensor.info.shape.rows_cols().0;
    if rows != ids.len() as u64 {
        let problem = format!("{} tokens are listed, the tensor is {}", ids.len(), tensor.info.shape);
        return Err(Error::mismatch(describe(tensor), adapter.config.path.display().to_string(), problem));
    }
    Ok((suffix.clone(), ids.clone()))
}
