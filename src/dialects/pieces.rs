//! An adapter's changes in the one form every target is written from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::experts::apart::take_apart;
use super::experts::sides::Family;
use crate::adapters::{Adapter, Change, Lora, Method, Module, embedding_of, scale_of};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::experts::{JOINED, Part, SPLIT, expert_of};
use crate::pairs::matrix::Grid;
use crate::tensor::Shape;

/// All changes of an adapter.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Low-rank pairs.
    pub pairs: Vec<Pair>,
    /// Changes by other methods.
    pub methods: Vec<Other>,
    /// Parameters stored whole.
    pub whole: Vec<WholePiece>,
    /// Tokens whose embeddings lie beside the changes: none of a weight, so they are left out.
    pub embedded: BTreeSet<String>,
}

/// A low-rank change.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Module path.
    pub path: String,
    /// A.
    pub down: Grid,
    /// B.
    pub up: Grid,
    /// Bias of B.
    pub bias: Option<Grid>,
    /// DoRA magnitudes.
    pub magnitude: Option<Magnitude>,
    /// ΔW = (B·A)ᵀ, a table of rows.
    pub embedding: bool,
    /// What multiplies the product.
    pub scale: f64,
    /// It adapts a parameter without a layer of its own.
    pub stack: Option<Stacked>,
}

/// A parameter without a layer of its own: A is `[E·r, in]`, B `[out, r·E]`, as PEFT has them today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stacked {
    /// Its name, as in `gate_up_proj`.
    pub name: String,
    /// Experts, 1 for a matrix.
    pub experts: u64,
}

/// Magnitudes of DoRA.
#[derive(Debug, Clone)]
pub struct Magnitude {
    /// The values as one column.
    pub grid: Grid,
    /// There is one per input, and not per output.
    pub per_input: bool,
}

/// A change by another method.
#[derive(Debug, Clone)]
pub struct Other {
    /// Module path.
    pub path: String,
    /// What it is.
    pub method: Arc<dyn Method>,
}

/// A parameter stored whole.
#[derive(Debug, Clone)]
pub struct WholePiece {
    /// Module path.
    pub path: String,
    /// Its parameter.
    pub parameter: String,
    /// Its values.
    pub tensor: Stored,
    /// It is the bias of a layer, not part of a module that was trained whole.
    pub frozen: bool,
}

/// A tensor of any shape, as one column.
fn column(tensor: &Stored) -> Grid {
    let mut tensor = tensor.clone();
    let count = tensor.info.shape.elements().unwrap_or(0);
    tensor.info.shape = Shape::from([count, 1]);
    Grid::of(&tensor)
}

impl Magnitude {
    /// `change` where the rows are outputs.
    #[must_use]
    pub fn map_rows(self, change: impl FnOnce(Grid) -> Grid) -> Self {
        if self.per_input { self } else { Self { grid: change(self.grid), ..self } }
    }
}

impl Pieces {
    /// The paths of all changes.
    pub fn paths(&self) -> impl Iterator<Item = &String> {
        let pairs = self.pairs.iter().map(|pair| &pair.path);
        pairs.chain(self.methods.iter().map(|other| &other.path)).chain(self.whole.iter().map(|whole| &whole.path))
    }

    /// The same, to be changed.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let pairs = self.pairs.iter_mut().map(|pair| &mut pair.path);
        let methods = self.methods.iter_mut().map(|other| &mut other.path);
        pairs.chain(methods).chain(self.whole.iter_mut().map(|whole| &mut whole.path))
    }

    /// Leaves out what `takes` does not take, by path.
    pub fn retain(&mut self, takes: impl Fn(&str) -> bool) {
        self.pairs.retain(|pair| takes(&pair.path));
        self.methods.retain(|other| takes(&other.path));
        self.whole.retain(|whole| takes(&whole.path));
    }

    /// Those of what is no pair.
    pub fn other_paths_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let methods = self.methods.iter_mut().map(|other| &mut other.path);
        methods.chain(self.whole.iter_mut().map(|whole| &mut whole.path))
    }
}

impl Pair {
    /// Factors and what multiplies them, of a layer that is no table.
    pub fn new(path: String, down: Grid, up: Grid, scale: f64) -> Self {
        Self { path, down, up, bias: None, magnitude: None, embedding: false, scale, stack: None }
    }

    /// r, of a stack that of one expert.
    pub fn rank(&self) -> u64 {
        self.down.size.0 / self.stack.as_ref().map_or(1, |stack| stack.experts)
    }

    /// α that gives the scale by α/r.
    pub fn alpha(&self) -> f64 {
        self.scale * self.rank() as f64
    }

    /// Whether it changes a convolution.
    pub fn is_conv(&self) -> bool {
        !self.down.kernel.is_empty()
    }
}

/// What becomes of pairs that adapt a stack of experts.
#[derive(Debug, Clone, Copy)]
pub enum Stacks<'a> {
    /// They are refused.
    Refused,
    /// They stay stacks.
    Kept,
    /// They become pairs of single experts, as the model calls them.
    Apart(&'a Family),
}

/// The scale that most modules have: where a target has one for all, it needs no folding there.
pub fn most_frequent(scales: impl Iterator<Item = f64>) -> f64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    scales.filter(|scale| *scale != 0.0).for_each(|scale| *counts.entry(scale.to_bits()).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(1.0, |(bits, _)| f64::from_bits(bits))
}

/// The changes of `adapter`.
///
/// # Errors
/// When a change has no such form, with the reason.
pub fn collect(adapter: &Adapter, stacks: Stacks<'_>) -> Result<Pieces> {
    let mut pieces = Pieces::default();
    for module in &adapter.modules {
        if let Some(name) = embedding_of(module) {
            pieces.embedded.insert(name);
            continue;
        }
        let refuse = |what: String| Err(Error::unsupported(&adapter.root, what));
        let path = module.path.clone();
        match &module.change {
            Change::Lora(lora) => match stacks {
                Stacks::Apart(family) if is_stack(adapter, module) => match parameter(adapter, module, lora)? {
                    Some(whole) => pieces.pairs.push(of_router(whole, family)),
                    None => pieces.pairs.extend(take_apart(adapter, module, lora, family)?),
                },
                Stacks::Kept if is_stack(adapter, module) => pieces.pairs.push(kept(adapter, module, lora)?),
                Stacks::Apart(_) => pieces.pairs.extend(halves(pair(adapter, module, lora)?)),
                _ => pieces.pairs.push(pair(adapter, module, lora)?),
            },
            Change::Method(method) => pieces.methods.push(Other { path, method: Arc::clone(method) }),
            Change::Whole(parameter, tensor) => {
                let frozen = parameter == "bias" && !trained_whole(adapter, &path);
                pieces.whole.push(WholePiece { path, parameter: parameter.clone(), tensor: tensor.clone(), frozen });
            }
            Change::Frozen(parameter, tensor) => {
                let frozen = true;
                pieces.whole.push(WholePiece { path, parameter: parameter.clone(), tensor: tensor.clone(), frozen });
            }
            Change::TokenRows(tensor) => {
                let what = format!("tensor `{}` holds rows of single tokens, which only PEFT stores", tensor.info.name);
                return refuse(what);
            }
            Change::Inserted(inserted) => {
                let what =
                    format!("`{path}` is {}: {}, and no other dialect stores it", inserted.kind, inserted.reason);
                return refuse(what);
            }
            Change::Unknown(tensor) => return refuse(format!("what tensor `{}` means is not known", tensor.info.name)),
        }
    }
    Ok(pieces)
}

fn trained_whole(adapter: &Adapter, path: &str) -> bool {
    adapter.config.modules_to_save.iter().any(|saved| crate::adapters::config::saves(saved, path))
}

/// Whether a pair adapts a parameter without a layer of its own.
fn is_stack(adapter: &Adapter, module: &Module) -> bool {
    module.nesting > 0 || !adapter.config.parameters_of(&module.path).is_empty()
}

/// The pairs of gate and up where both are one matrix of an expert, whose rows alternate.
fn halves(pair: Pair) -> Vec<Pair> {
    let Some(single) = expert_of(&pair.path).filter(|_| JOINED.iter().any(|list| pair.path.contains(list))) else {
        return vec![pair];
    };
    let count = single.parts.len() as u64;
    let half = |(at, part): (u64, &Part)| {
        let path = SPLIT[0].tensor(single.layer, single.expert, *part).trim_end_matches(".weight").to_owned();
        let cut = |grid: Grid| {
            let rows = grid.size.0 / count;
            grid.every(at, rows, count)
        };
        Pair { path, up: cut(pair.up.clone()), bias: pair.bias.clone().map(cut), ..pair.clone() }
    };
    (0..).zip(single.parts).map(half).collect()
}

/// The pair of a plain matrix that is a parameter, such as a router's weight or the biases of experts; `None` of a stack.
fn parameter(adapter: &Adapter, module: &Module, lora: &Lora) -> Result<Option<Pair>> {
    let names = adapter.config.parameters_of(&module.path);
    let (Some(at), None) = (names.len().checked_sub(1 + module.nesting), &lora.stack) else { return Ok(None) };
    let name = names[at];
    if name != "weight" && !name.ends_with("_bias") {
        return Ok(None);
    }
    let scale = scale_of(adapter, &format!("{}.{name}", module.path), lora.rank())?;
    let stack = Some(Stacked { name: name.into(), experts: 1 });
    Ok(Some(Pair { stack, ..Pair::new(module.path.clone(), Grid::of(&lora.down), Grid::of(&lora.up), scale) }))
}

/// A router that is a layer where experts are single.
fn of_router(pair: Pair, family: &Family) -> Pair {
    match family.split_router(&pair.path) {
        Some(path) => Pair { path, stack: None, ..pair },
        None => pair,
    }
}

/// The pair of a parameter, as PEFT has it today.
fn kept(adapter: &Adapter, module: &Module, lora: &Lora) -> Result<Pair> {
    if let Some(pair) = parameter(adapter, module, lora)? {
        return Ok(pair);
    }
    let refuse = |what: &str| Error::unsupported(&adapter.root, format!("`{}` {what}", module.path));
    let Some(stack) = &lora.stack else {
        return Err(refuse("adapts parameters, and which of its pairs is whose is not known"));
    };
    if stack.sides.is_none() && (!stack.lies_as_today || lora.inputs() == lora.outputs()) {
        return Err(stack.refusal(&lora.down));
    }
    if lora.magnitude.is_some() || lora.bias.is_some() {
        return Err(refuse("is a stack of experts, and can have neither magnitudes nor a bias"));
    }
    let name = stack.parameter.rsplit('.').next().unwrap_or_default().to_owned();
    let scale = scale_of(adapter, &stack.parameter, lora.rank() / stack.experts)?;
    let stacked = Stacked { name, experts: stack.experts };
    Ok(Pair { stack: Some(stacked), ..Pair::new(module.path.clone(), Grid::of(&lora.down), Grid::of(&lora.up), scale) })
}

fn pair(adapter: &Adapter, module: &Module, lora: &Lora) -> Result<Pair> {
    let path = &module.path;
    let stacked = is_stack(adapter, module);
    // Three dimensions are a convolution of one, or a stack of experts.
    if stacked || adapter.config.stacks_merged_by.is_some() && lora.down.info.shape.as_slice().len() > 2 {
        let what = format!("`{path}` adapts parameters without a layer of their own, which only PEFT stores");
        return Err(Error::unsupported(&adapter.root, what));
    }
    let scale = scale_of(adapter, path, lora.rank())?;
    let magnitude = |tensor: &Stored| {
        // LyCORIS' shape tells the axis by its first dimension; PEFT's and mlx-lm's have one entry per output.
        let shape = tensor.info.shape.as_slice();
        let several = shape.len() > 1 && shape[0] == 1 && (lora.outputs() != 1 || lora.inputs() == shape[1]);
        Magnitude { grid: column(tensor), per_input: tensor.info.name.ends_with("dora_scale") && several }
    };
    Ok(Pair {
        bias: lora.bias.as_ref().map(column),
        magnitude: lora.magnitude.as_ref().map(magnitude),
        embedding: lora.embedding,
        ..Pair::new(path.clone(), Grid::of(&lora.down), Grid::of(&lora.up), scale)
    })
}
