//! What the methods share: a change that is a product of factors made when it is needed, and one that is a formula over a
//! block of the weight.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::adapters::delta::{BaseRows, Columns, Delta, Tile};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::{LowRankDelta, Term};
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::wrong;
use crate::error::Result;
use crate::formats::Stored;
use crate::linalg::LinearOperator;

type MakeTerm = Arc<dyn Fn() -> Result<Term> + Send + Sync>;
type Check = Box<dyn Fn(&Target) -> Result<()> + Send + Sync>;
type Fit = Arc<dyn Fn(&Target) -> Result<Term> + Send + Sync>;
type MakeChanges = Box<dyn Fn(&Target) -> Result<Vec<ParameterChange>> + Send + Sync>;

/// A method of which the tensors and the way to its changes are known.
pub struct General {
    kind: &'static Kind,
    tensors: Vec<(&'static str, Stored)>,
    shape: Option<(u64, u64)>,
    rank: Option<u64>,
    scale: Option<f64>,
    make: Make,
}

enum Make {
    Product(MakeTerm),
    Fitted(Check, Fit),
    Changes(MakeChanges),
}

impl General {
    /// ΔW is the product that `make` gives, of this shape.
    pub fn product(
        kind: &'static Kind,
        tensors: Vec<(&'static str, Stored)>,
        shape: (u64, u64),
        make: impl Fn() -> Result<Term> + Send + Sync + 'static,
    ) -> Self {
        Self { kind, tensors, shape: Some(shape), rank: None, scale: None, make: Make::Product(Arc::new(make)) }
    }

    /// ΔW is a product that `make` cuts to a layer, if that passes the `check`.
    pub fn fitted(
        kind: &'static Kind,
        tensors: Vec<(&'static str, Stored)>,
        check: impl Fn(&Target) -> Result<()> + Send + Sync + 'static,
        make: impl Fn(&Target) -> Result<Term> + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            tensors,
            shape: None,
            rank: None,
            scale: None,
            make: Make::Fitted(Box::new(check), Arc::new(make)),
        }
    }

    /// The changes follow from the layer.
    pub fn changing(
        kind: &'static Kind,
        tensors: Vec<(&'static str, Stored)>,
        make: impl Fn(&Target) -> Result<Vec<ParameterChange>> + Send + Sync + 'static,
    ) -> Self {
        Self { kind, tensors, shape: None, rank: None, scale: None, make: Make::Changes(Box::new(make)) }
    }

    /// Tells outputs and inputs.
    #[must_use]
    pub fn shaped(self, outputs: u64, inputs: u64) -> Self {
        Self { shape: Some((outputs, inputs)), ..self }
    }

    /// Tells rank and scale.
    #[must_use]
    pub fn ranked(self, rank: u64, scale: Option<f64>) -> Self {
        Self { rank: Some(rank), scale, ..self }
    }
}

impl fmt::Debug for General {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.kind.title).field("shape", &self.shape).field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl Method for General {
    fn kind(&self) -> &'static Kind {
        self.kind
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.tensors.iter().map(|(role, tensor)| (*role, tensor)).collect()
    }

    fn shape(&self) -> Option<(u64, u64)> {
        self.shape
    }

    fn rank(&self) -> Option<u64> {
        self.rank
    }

    fn scale(&self) -> Option<f64> {
        self.scale
    }

    fn changes(&self, target: &Target) -> Result<Vec<ParameterChange>> {
        match &self.make {
            Make::Product(make) => {
                let (outputs, inputs) = self.shape.expect("a product is made with its shape");
                let shape = (outputs as usize, inputs as usize);
                Ok(vec![weight(Product { shape, make: make.clone(), made: Mutex::default() })])
            }
            Make::Fitted(check, make) => {
                check(target)?;
                let (shape, target, make) = ((target.outputs, target.inputs), target.clone(), make.clone());
                let make: MakeTerm = Arc::new(move || make(&target));
                Ok(vec![weight(Product { shape, make, made: Mutex::default() })])
            }
            Make::Changes(make) => make(target),
        }
    }

    fn low_rank(&self, target: Option<&Target>) -> Result<Option<Term>> {
        match &self.make {
            Make::Product(make) => make().map(Some),
            Make::Fitted(check, make) => target.map(|target| check(target).and_then(|()| make(target))).transpose(),
            Make::Changes(_) => Ok(None),
        }
    }
}

/// A change of the weight.
pub fn weight(delta: impl Delta + 'static) -> ParameterChange {
    ParameterChange { parameter: "weight", delta: Arc::new(delta) }
}

/// A change of the bias.
pub fn bias(delta: impl Delta + 'static) -> ParameterChange {
    ParameterChange { parameter: "bias", delta: Arc::new(delta) }
}

/// A product whose factors are made for the first tile and dropped after the last.
struct Product {
    shape: (usize, usize),
    make: MakeTerm,
    made: Mutex<Option<Arc<LowRankDelta>>>,
}

impl Product {
    fn made(&self) -> Result<Arc<LowRankDelta>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref() {
            return Ok(made.clone());
        }
        let fresh = Arc::new(LowRankDelta::from((self.make)()?));
        *made = Some(fresh.clone());
        Ok(fresh)
    }
}

impl Delta for Product {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn rounds_alone(&self) -> bool {
        false
    }

    fn operator(&self) -> Result<Option<Box<dyn LinearOperator>>> {
        self.made()?.operator()
    }

    fn release(&self) {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn columns(&self, cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(Made(self.made()?, cols)))
    }
}

struct Made(Arc<LowRankDelta>, Range<usize>);

impl Columns for Made {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        self.0.columns(self.1.clone())?.add(strength, tile)
    }
}

/// A change computed block by block.
pub trait Formula: Send + Sync {
    /// Rows and columns, `[out, in]`.
    fn shape(&self) -> (usize, usize);

    /// Blocks begin and end at multiples of this.
    fn grain(&self) -> (usize, usize) {
        (1, 1)
    }

    /// Whether [`Formula::compute`] gives W′ from W rather than ΔW.
    fn rewrites(&self) -> bool {
        true
    }

    /// W′ (or ΔW) of the block into `out`, which starts as zeros; `base` is W's block, empty where it gives ΔW.
    ///
    /// # Errors
    /// When the tensors cannot be read.
    fn compute(&self, rows: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()>;

    /// As [`Delta::reads_weight`].
    fn reads_weight(&self) -> bool {
        false
    }

    /// As [`Delta::see_weight`].
    ///
    /// # Errors
    /// When the weight cannot be read.
    fn see_weight(&self, _weight: &dyn BaseRows) -> Result<()> {
        Ok(())
    }
}

/// A formula as a delta. With a strength w ≠ 1, or after another change, what is added is w · (W′ − W).
pub struct Formed<F>(pub F);

impl<F: Formula> Delta for Formed<F> {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn is_additive(&self) -> bool {
        !self.0.rewrites()
    }

    fn rounds_alone(&self) -> bool {
        false
    }

    fn grain(&self) -> (usize, usize) {
        self.0.grain()
    }

    fn reads_weight(&self) -> bool {
        self.0.reads_weight()
    }

    fn see_weight(&self, weight: &dyn BaseRows) -> Result<()> {
        self.0.see_weight(weight)
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(FormedColumns(&self.0)))
    }
}

struct FormedColumns<'a, F>(&'a F);

impl<F: Formula> Columns for FormedColumns<'_, F> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let mut out = vec![0.0; tile.value.len()];
        self.0.compute(tile.rows.clone(), tile.cols.clone(), tile.base, &mut out)?;
        if !self.0.rewrites() {
            let strength = strength as f32;
            tile.value.iter_mut().zip(&out).for_each(|(value, change)| *value += strength * change);
        } else if tile.fresh && strength == 1.0 {
            tile.value.copy_from_slice(&out);
        } else {
            let lines = tile.value.iter_mut().zip(&out).zip(tile.base);
            lines.for_each(|((value, new), old)| *value += (strength * f64::from(new - old)) as f32);
        }
        Ok(())
    }
}

/// The tensor's values in f32.
///
/// # Errors
/// When it holds no floating point numbers.
pub fn values(stored: &Stored) -> Result<Vec<f32>> {
    Factor::new(stored)?.to_vec()
}

/// The sizes of a tensor with exactly `N` dimensions.
///
/// # Errors
/// When it has another number of them, or one is zero.
pub fn sizes<const N: usize>(stored: &Stored) -> Result<[usize; N]> {
    let shape = stored.info.shape.as_slice();
    let narrow: Vec<usize> = shape.iter().filter_map(|size| usize::try_from(*size).ok()).collect();
    let sizes: Option<[usize; N]> = narrow.try_into().ok();
    sizes
        .filter(|sizes| !sizes.contains(&0))
        .ok_or_else(|| wrong(stored, format!("must have {N} dimensions, has shape {}", stored.info.shape)))
}
