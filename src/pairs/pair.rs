//! A low-rank pair, or a whole parameter, on its way into a new adapter.

use super::bytes::Bytes;
use crate::tensor::Shape;

/// What kind of layer a pair belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairKind {
    /// A matrix `[out, in]`, or its transpose in a `Conv1D`.
    Linear,
    /// A convolution `[out, in, k …]`.
    Conv {
        /// The dimensions after `[out, in]`.
        kernel: Vec<u64>,
    },
    /// A table of rows `[vocabulary, dim]`.
    Embedding,
    /// A parameter without a layer of its own, for which `target_parameters` stands in the config.
    Parameter {
        /// As in `gate_up_proj`.
        name: String,
        /// How many other parameters of the module lie deeper than this one.
        nesting: usize,
        /// Experts of the stack: A is `[experts · r, in]`, B `[out, r · experts]`.
        experts: u64,
    },
}

impl PairKind {
    /// Experts of a stack; 1 for everything else.
    pub fn experts(&self) -> usize {
        match self {
            Self::Parameter { experts, .. } => narrow(*experts),
            _ => 1,
        }
    }

    /// Positions of a convolution's kernel; 1 for everything else.
    pub fn positions(&self) -> u64 {
        match self {
            Self::Conv { kernel } => kernel.iter().product(),
            _ => 1,
        }
    }

    /// Rows and columns of ΔW as a matrix, of one expert's in a stack.
    pub fn matrix(&self, outer: (u64, u64)) -> (usize, usize) {
        (narrow(outer.0), narrow(outer.1 * self.positions()))
    }

    /// The shape of the weight.
    pub fn weight_shape(&self, (outputs, inputs): (u64, u64)) -> Vec<u64> {
        match self {
            Self::Linear | Self::Parameter { experts: 1, .. } => vec![outputs, inputs],
            Self::Conv { kernel } => [outputs, inputs].into_iter().chain(kernel.iter().copied()).collect(),
            Self::Embedding => vec![inputs, outputs],
            Self::Parameter { experts, .. } => vec![*experts, outputs, inputs],
        }
    }

    /// The path of the module, with the parameter's name where it is adapted without a layer.
    pub fn name(&self, path: &str) -> String {
        match self {
            Self::Parameter { name, .. } => format!("{path}.{name}"),
            _ => path.to_owned(),
        }
    }

    /// What reports call it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Conv { .. } => "conv",
            Self::Embedding => "embedding",
            Self::Parameter { experts: 1, .. } => "parameter",
            Self::Parameter { .. } => "experts",
        }
    }
}

fn narrow(count: u64) -> usize {
    usize::try_from(count).expect("sizes of mapped tensors fit the address space")
}

/// A low-rank change of one module.
#[derive(Debug, Clone)]
pub struct NewPair {
    /// Module path without wrappers.
    pub path: String,
    /// The kind of layer.
    pub kind: PairKind,
    /// r; of a stack that of one expert.
    pub rank: usize,
    /// α; the scale is α/r, or α/√r if the adapter is rsLoRA.
    pub alpha: f64,
    /// A, `[r, in]`; of a convolution `[r, in, k …]`, of an embedding `[r, vocabulary]`.
    pub down: Bytes,
    /// B, `[out, r]`; of an embedding `[dim, r]`.
    pub up: Bytes,
    /// Outputs and inputs, a convolution's without its kernel; of an embedding `(dim, vocabulary)`.
    pub outer: (u64, u64),
    /// Bias of B, `[out]`.
    pub up_bias: Option<Bytes>,
}

/// A parameter that is stored whole.
#[derive(Debug, Clone)]
pub struct NewWhole {
    /// Module path.
    pub module: String,
    /// As in `weight`.
    pub parameter: String,
    /// Its shape.
    pub shape: Shape,
    /// Its values.
    pub bytes: Bytes,
    /// The bias of a frozen layer (`bias="all"`), not part of a module that is saved whole.
    pub frozen_bias: bool,
}

impl NewPair {
    /// Rank and α of a layer without its factors: what a config is made of.
    pub fn numbers(path: &str, rank: u64, alpha: f64) -> Self {
        let rank = usize::try_from(rank).unwrap_or(1);
        let (path, kind, down, up) = (path.to_owned(), PairKind::Linear, Bytes::none(), Bytes::none());
        Self { path, kind, rank, alpha, down, up, outer: (1, 1), up_bias: None }
    }

    /// Shapes of A and B.
    pub fn shapes(&self) -> (Shape, Shape) {
        let rank = self.rank as u64;
        let (out, inputs) = self.outer;
        match &self.kind {
            PairKind::Linear | PairKind::Embedding => (Shape::from([rank, inputs]), Shape::from([out, rank])),
            PairKind::Conv { kernel } => {
                let down: Vec<u64> = [rank, inputs].iter().chain(kernel).copied().collect();
                let ones = std::iter::repeat_n(1, kernel.len());
                (Shape::from(down), Shape::from([out, rank].into_iter().chain(ones).collect::<Vec<u64>>()))
            }
            PairKind::Parameter { experts, .. } => {
                (Shape::from([rank * experts, inputs]), Shape::from([out, rank * experts]))
            }
        }
    }
}
