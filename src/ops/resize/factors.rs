//! The pair of one module at another rank: cut by its singular values, or filled up with zeros.
//!
//! Of a stack of experts each expert is decomposed on its own, and all get the same rank, as their two tensors demand. The
//! stack's singular values are those of the experts together: σₖ = √(Σₑ σₑₖ²), so that Σσₖ² is ‖ΔW‖² of the stack and what
//! rank k keeps of it is the sum of the first k.

use std::path::Path;

use crate::adapters::{Factor, describe};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::linalg::{Certificate, Decomposition, LowRank};
use crate::pairs::Bytes;
use crate::pairs::range::hinted;
use crate::placement::terms::Slot;
use crate::tensor::Float;

/// What a pair is worth at each rank.
pub struct Spectrum {
    /// Singular values of ΔW that are not zero, largest first.
    pub values: Vec<f64>,
    /// ‖ΔW‖².
    pub norm_squared: f64,
}

/// ΔW ∕ divisor and its decomposition, for every expert.
pub struct Decomposed {
    parts: Vec<(LowRank, Decomposition)>,
    divisor: f64,
}

/// A new pair.
pub struct Factors {
    /// r; of a stack that of one expert.
    pub rank: usize,
    /// α, for the scale α/r.
    pub alpha: f64,
    /// A.
    pub down: Bytes,
    /// B.
    pub up: Bytes,
    /// Bias of B.
    pub bias: Option<Bytes>,
    /// How far B·A is from ΔW.
    pub certificate: Certificate,
    /// The factors are those of the input, but for zeros.
    pub kept: bool,
}

impl Decomposed {
    /// Decomposes what `slot` adds, divided by `divisor`.
    ///
    /// # Errors
    /// When factors cannot be read, or the run is interrupted.
    pub fn new(slot: &Slot, divisor: f64) -> Result<Self> {
        let part = |expert: usize| {
            let mut products = slot.products(expert, |share| share.factor() / divisor)?;
            let product = if products.len() == 1 { products.remove(0) } else { LowRank::sum(&products) };
            let found = product.decompose()?;
            if !found.norm_squared().is_finite() {
                let (path, name) = origin(slot);
                return Err(Error::numeric(
                    path,
                    name,
                    "its change is beyond the range of F32, in which it is computed",
                ));
            }
            Ok((product, found))
        };
        Ok(Self { parts: (0..slot.experts()).map(part).collect::<Result<_>>()?, divisor })
    }

    /// The singular values of ΔW.
    pub fn spectrum(&self) -> Spectrum {
        let count = self.parts.iter().map(|(_, found)| found.values().len()).max().unwrap_or(0);
        let square = |at: usize| self.parts.iter().filter_map(move |(_, found)| found.values().get(at)).map(|x| x * x);
        let values = (0..count).map(|at| square(at).sum::<f64>().sqrt() * self.divisor.abs());
        let norm_squared: f64 = self.parts.iter().map(|(_, found)| found.norm_squared()).sum();
        Spectrum {
            values: values.take_while(|value| *value > 0.0).collect(),
            norm_squared: norm_squared * self.divisor.powi(2),
        }
    }

    /// The best factors of rank `rank`, with zeros where a matrix has less, stored as `float`. Their scale is the divisor.
    ///
    /// # Errors
    /// When the result is beyond the range of `float`.
    pub fn cut(&self, slot: &Slot, rank: usize, float: Float) -> Result<Factors> {
        let (rows, cols) = slot.shape();
        let experts = self.parts.len();
        let (mut down, mut up) = (vec![0.0; experts * rank * cols], vec![0.0; rows * rank * experts]);
        let mut certificates = Vec::with_capacity(experts);
        for (expert, (product, found)) in self.parts.iter().enumerate() {
            let cut = found.cut(rank, float, product)?;
            let own = cut.rank();
            down[expert * rank * cols..][..own * cols].copy_from_slice(&cut.factors.down());
            for (row, values) in cut.factors.up().chunks_exact(own.max(1)).enumerate() {
                let line = &mut up[row * rank * experts..][..rank * experts];
                line.iter_mut().skip(expert).step_by(experts).zip(values).for_each(|(to, from)| *to = *from);
            }
            certificates.push(cut.certificate);
        }
        let certificate = together(&certificates, self.divisor.abs());
        if !certificate.residual.is_finite() {
            let (path, name) = origin(slot);
            let problem = format!("its factors at rank {rank} are beyond the range of {float}");
            return Err(hinted(Error::numeric(path, name, problem), Some(float)));
        }
        Ok(Factors {
            rank,
            alpha: self.divisor * rank as f64,
            down: Bytes::held(&down, float, origin(slot))?,
            up: Bytes::held(&up, float, origin(slot))?,
            bias: bias(slot, self.divisor)?,
            certificate,
            kept: false,
        })
    }
}

/// The pair as it is, with zeros up to `rank`, which is not below its own. Its scale stays as well.
///
/// # Errors
/// When factors cannot be read.
pub fn pad(slot: &Slot, rank: usize, spectrum: &Spectrum) -> Result<Factors> {
    let share = &slot.shares[0];
    let (down, up) = share.stored.as_ref().expect("only factors that a file holds are kept");
    let more = rank - share.rank;
    let (down, up) = if more == 0 {
        (Bytes::Stored(down.clone()), Bytes::Stored(up.clone()))
    } else {
        // A holds one expert after the other, in B the expert runs fastest.
        let (experts, (rows, cols)) = (slot.experts(), slot.shape());
        (with_zeros(down, experts, more * cols)?, with_zeros(up, rows, more * experts)?)
    };
    let norm = spectrum.norm_squared.sqrt();
    let certificate = Certificate {
        norm,
        residual: 0.0,
        residual_at_most: 0.0,
        optimum_at_least: 0.0,
        optimum_near: 0.0,
        stored_error: 0.0,
        complete: true,
    };
    let bias = share.bias.clone().map(Bytes::Stored);
    Ok(Factors { rank, alpha: share.factor() * rank as f64, down, up, bias, certificate, kept: true })
}

/// File and name of a tensor of the pair, where one holds it; else the module.
fn origin(slot: &Slot) -> (&Path, &str) {
    let stored = slot.shares.first().and_then(|share| share.stored.as_ref());
    stored.map_or((Path::new(""), slot.path.as_str()), |(down, _)| (down.path(), down.info.name.as_str()))
}

/// The elements of `tensor` in `runs` runs of equal length, each followed by `zeros` zeros.
fn with_zeros(tensor: &Stored, runs: usize, zeros: usize) -> Result<Bytes> {
    let float = tensor.info.dtype.float().ok_or_else(|| Error::unsupported(tensor.path(), describe(tensor)))?;
    let data = tensor.view()?.data;
    let zeros = vec![0; zeros * float.bytes()];
    let bytes = data.chunks_exact(data.len() / runs).flat_map(|run| run.iter().chain(&zeros)).copied().collect();
    Ok(Bytes::Held { bytes, float })
}

/// Σ scale · bias of B, divided by the new scale.
fn bias(slot: &Slot, divisor: f64) -> Result<Option<Bytes>> {
    let mut biases = slot.shares.iter().filter_map(|share| Some((share.bias.as_ref()?, share.factor() / divisor)));
    let Some((first, factor)) = biases.next() else { return Ok(None) };
    let more: Vec<_> = biases.collect();
    if factor == 1.0 && more.is_empty() {
        return Ok(Some(Bytes::Stored(first.clone())));
    }
    let mut sum = vec![0.0; slot.shape().0];
    for (tensor, factor) in std::iter::once((first, factor)).chain(more) {
        let values = Factor::new(tensor)?.to_vec()?;
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += (factor * f64::from(value)) as f32);
    }
    let float = first.info.dtype.float().expect("its values have just been read");
    Bytes::held(&sum, float, (first.path(), &first.info.name)).map(Some)
}

/// Errors of several matrices as one, times `scale`.
fn together(certificates: &[Certificate], scale: f64) -> Certificate {
    let root = |of: fn(&Certificate) -> f64| {
        scale * certificates.iter().map(|certificate| of(certificate).powi(2)).sum::<f64>().sqrt()
    };
    Certificate {
        norm: root(|one| one.norm),
        residual: root(|one| one.residual),
        residual_at_most: root(|one| one.residual_at_most),
        optimum_at_least: root(|one| one.optimum_at_least),
        optimum_near: root(|one| one.optimum_near),
        stored_error: root(|one| one.stored_error),
        complete: certificates.iter().all(|one| one.complete),
    }
}
