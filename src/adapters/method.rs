//! The contract of a way to change a weight that is not a plain LoRA pair.

use std::fmt::Debug;
use std::sync::Arc;

use super::delta::Delta;
use super::kind::Kind;
use super::low_rank::Term;
use crate::error::Result;
use crate::formats::Stored;
use crate::tensor::usize_of;

/// The layer a method changes, as the base stores it. Methods think in `[out, in]`; whoever lands the change turns it for a
/// layer that keeps its inputs in rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Outputs.
    pub outputs: usize,
    /// Inputs, counting every position of a convolution's kernel.
    pub inputs: usize,
    /// Sizes of the kernel, empty for a linear layer.
    pub kernel: Vec<usize>,
    /// The layer has a bias.
    pub bias: bool,
}

impl Target {
    /// The layer whose weight is `stored`, which keeps its inputs in rows where `transposed`.
    pub fn of(stored: &Stored, transposed: bool, bias: bool) -> Self {
        let (rows, cols) = stored.rows_cols();
        let (outputs, inputs) = if transposed { (cols, rows) } else { (rows, cols) };
        let kernel = stored.info.shape.as_slice().iter().skip(2).map(|size| usize_of(*size)).collect();
        Self { outputs, inputs, kernel, bias }
    }

    /// Positions of the kernel, 1 for a linear layer.
    pub fn positions(&self) -> usize {
        self.kernel.iter().product::<usize>().max(1)
    }

    /// Inputs, the kernel left aside.
    pub fn channels(&self) -> usize {
        self.inputs / self.positions()
    }
}

/// A change of one parameter.
pub struct ParameterChange {
    /// Its name in the layer: `weight` or `bias`.
    pub parameter: &'static str,
    /// The change, `[out, in]` for a weight, `[1, out]` for a bias.
    pub delta: Arc<dyn Delta>,
}

/// What the tensors of one module mean, for a method other than LoRA.
pub trait Method: Debug + Send + Sync {
    /// Which method it is.
    fn kind(&self) -> &'static Kind;

    /// Its tensors in the file, by role: the suffix without the module.
    fn tensors(&self) -> Vec<(&'static str, &Stored)>;

    /// Outputs and inputs of the weight it changes, where the tensors tell.
    fn shape(&self) -> Option<(u64, u64)> {
        None
    }

    /// Rank, where the method has one.
    fn rank(&self) -> Option<u64> {
        None
    }

    /// The factor in front of the change, where the method has one.
    fn scale(&self) -> Option<f64> {
        None
    }

    /// The changes of the layer's parameters.
    ///
    /// # Errors
    /// When its tensors do not fit each other or the layer, naming both.
    fn changes(&self, target: &Target) -> Result<Vec<ParameterChange>>;

    /// ΔW = scale · up · down exactly, `[out, in]`, where it is of low rank and needs no base. `target` may be left out where
    /// the tensors tell the shape.
    ///
    /// # Errors
    /// When the tensors cannot be read.
    fn low_rank(&self, _target: Option<&Target>) -> Result<Option<Term>> {
        Ok(None)
    }
}

/// Something that is inserted into the model rather than added to a weight: a soft prompt, a prefix, a bottleneck. It can be
/// inspected and renamed, never merged.
#[derive(Debug, Clone)]
pub struct Inserted {
    /// `prompt tuning`, `bottleneck` …
    pub kind: &'static str,
    /// Why no weight can hold it.
    pub reason: &'static str,
    /// Its tensors by role.
    pub tensors: Vec<(String, Stored)>,
}
