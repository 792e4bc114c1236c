//! An adapter as its modules and their ΔW.

use std::path::Path;
use std::sync::Arc;

use crate::adapters::{self, Change, Delta, Init, LowRankDelta, Method, Target, Tile, scale_of};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::linalg::{LowRank, singular_values};
use crate::ops::inspect::{ModuleFacts, Pair, Targets, modules, pairs};
use crate::tensor::usize_of;

/// An opened adapter of any dialect: what it changes, and by how much.
///
/// ```
/// let adapter = lorakit::Adapter::open("fixtures/tiny/adapter")?;
/// let first = &adapter.modules()[0];
/// assert_eq!((first.rank, first.scale), (Some(4), Some(2.0)));
///
/// let (values, [outputs, inputs]) = adapter.delta(&first.path)?;
/// assert_eq!(values.len(), outputs * inputs);
/// # Ok::<(), lorakit::Error>(())
/// ```
#[derive(Debug)]
pub struct Adapter {
    inner: adapters::Adapter,
    modules: Vec<ModuleFacts>,
}

impl Adapter {
    /// Opens the adapter at `path`: a directory, or a weight file with its config beside it where its dialect has one.
    ///
    /// # Errors
    /// When a file is missing or malformed, or tensors that belong together do not fit.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let inner = adapters::Adapter::open(path.as_ref())?;
        let modules = modules(&inner, &pairs(&inner, &Targets::of(&inner.config)));
        Ok(Self { inner, modules })
    }

    /// The naming scheme it is written in.
    pub fn dialect(&self) -> &'static str {
        self.inner.dialect
    }

    /// Everything that is changed, with method, shape, rank, alpha and scale, in the order of the paths.
    pub fn modules(&self) -> &[ModuleFacts] {
        &self.modules
    }

    /// ΔW of the module `path`, scale included, row by row, and its rows and columns: `[out, in]` with a convolution's kernel counted
    /// as inputs, `[vocabulary, dim]` for an embedding. A model that keeps a layer's inputs in rows has its transpose.
    ///
    /// # Errors
    /// When no module has this path, or its change is not known without the base: DoRA, OFT, tensors saved whole, stacks of experts,
    /// adapters whose initialiser changed the base.
    pub fn delta(&self, path: &str) -> Result<(Vec<f32>, [usize; 2])> {
        let config = &self.inner.config;
        if let Some(refusal) = config.refusal() {
            return Err(refusal);
        }
        if config.init.0 != Init::Plain {
            let what = format!("`init_lora_weights` is `{}`: the base was changed too", config.init.1);
            return Err(self.unknown(path, &what));
        }
        let pairs = pairs(&self.inner, &Targets::of(config));
        let mut pairs = pairs.iter().filter(|pair| pair.path == path);
        let same = self.inner.modules.iter().filter(|module| module.path == path);
        let mut methods = same.filter_map(|module| match &module.change {
            Change::Method(method) => Some(method),
            _ => None,
        });
        let delta = match (pairs.next(), methods.next()) {
            (Some(pair), None) => self.product(pair)?,
            (None, Some(method)) => self.by_method(path, method.as_ref())?,
            (Some(_), Some(_)) => return Err(self.unknown(path, "it is changed in several ways")),
            (None, None) if self.modules.iter().any(|module| module.path == path) => {
                return Err(self.unknown(path, "its tensors take the place of the base's"));
            }
            (None, None) => {
                return Err(Error::unsupported(&self.inner.root, format!("changes no module `{path}`")));
            }
        };
        if pairs.next().is_some() || methods.next().is_some() {
            return Err(self.unknown(path, "it is changed in several ways"));
        }
        whole(delta.as_ref())
    }

    /// A and B of the module `path`, as they are stored, if it is changed by one pair of factors.
    pub fn factors(&self, path: &str) -> Option<[Stored; 2]> {
        let pairs = pairs(&self.inner, &Targets::of(&self.inner.config));
        let mut pairs = pairs.iter().filter(|pair| pair.path == path);
        let pair = pairs.next().filter(|_| pairs.next().is_none())?;
        Some([pair.lora.down.clone(), pair.lora.up.clone()])
    }

    /// The singular values of ΔW of the module `path` that are not zero by its rank, largest first.
    ///
    /// # Errors
    /// As [`Adapter::delta`].
    pub fn singular_values(&self, path: &str) -> Result<Vec<f64>> {
        let pairs = pairs(&self.inner, &Targets::of(&self.inner.config));
        let mut same = pairs.iter().filter(|pair| pair.path == path);
        // A pair tells them without ΔW, if `delta` would form it.
        let plain = self.inner.config.refusal().is_none() && self.inner.config.init.0 == Init::Plain;
        if let (true, Some(pair), None) = (plain, same.next(), same.next())
            && pair.experts == 1
            && pair.lora.magnitude.is_none()
        {
            let term = pair.lora.term(scale_of(&self.inner, path, pair.rank)?)?;
            let (down, up) = (term.down.to_vec()?, term.up.to_vec()?);
            let product = LowRank::from_rows(up, down, usize_of(pair.rank), term.scale);
            return Ok(product.decompose()?.values().to_vec());
        }
        let (values, [rows, cols]) = self.delta(path)?;
        singular_values(&values, rows, cols).ok_or_else(|| self.unknown(path, "its values are not finite"))
    }

    /// s · B·A.
    fn product(&self, pair: &Pair<'_>) -> Result<Arc<dyn Delta>> {
        if pair.experts > 1 {
            let what = format!("{} experts are in one pair of factors", pair.experts);
            return Err(self.unknown(&pair.path, &what));
        }
        if pair.lora.magnitude.is_some() {
            return Err(self.unknown(&pair.path, "DoRA's magnitudes need the base's weight"));
        }
        let term = pair.lora.term(scale_of(&self.inner, &pair.path, pair.rank)?)?;
        let term = if pair.lora.embedding { term.transposed() } else { term };
        Ok(Arc::new(LowRankDelta::from(term)))
    }

    /// The change of the weight by another method, where that is a sum.
    fn by_method(&self, path: &str, method: &dyn Method) -> Result<Arc<dyn Delta>> {
        let kind = method.kind();
        if let Some(term) = method.low_rank(None)? {
            return Ok(Arc::new(LowRankDelta::from(term)));
        }
        let Some((outputs, inputs)) = method.shape() else {
            return Err(self.unknown(path, &format!("{kind} needs the shape of the base's weight")));
        };
        let target = Target { outputs: usize_of(outputs), inputs: usize_of(inputs), kernel: Vec::new(), bias: false };
        let of_weight = method.changes(&target)?.into_iter().find(|change| change.parameter == "weight");
        of_weight
            .map(|change| change.delta)
            .filter(|delta| delta.is_additive() && !delta.reads_base() && !delta.needs_measure())
            .ok_or_else(|| self.unknown(path, &format!("{kind} needs the base's weight")))
    }

    fn unknown(&self, path: &str, reason: &str) -> Error {
        Error::unsupported(&self.inner.root, format!("the change of `{path}` is not known without the base: {reason}"))
    }
}

/// All rows of `delta`.
fn whole(delta: &dyn Delta) -> Result<(Vec<f32>, [usize; 2])> {
    let (rows, cols) = delta.shape();
    let mut values = vec![0.0; rows * cols];
    let mut tile = Tile { rows: 0..rows, cols: 0..cols, base: &[], value: &mut values, fresh: true };
    delta.columns(0..cols)?.add(1.0, &mut tile)?;
    delta.release();
    Ok((values, [rows, cols]))
}
