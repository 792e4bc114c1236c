//! What can be truncated: the interface between the engine and the verbs.

use std::path::Path;

use crate::error::Result;
use crate::formats::Stored;
use crate::linalg::{LinearOperator, LowRank};
use crate::pairs::{Bytes, PairKind};
use crate::tensor::Float;

/// One change of a weight, or of a stack of experts.
pub trait Truncatable: Sync {
    /// Path of the module.
    fn path(&self) -> &str;

    /// What kind of layer it is.
    fn kind(&self) -> PairKind;

    /// Outputs and inputs, a convolution's without its kernel; of an embedding `(dim, vocabulary)`.
    fn outer(&self) -> (u64, u64);

    /// The file and the name that messages give.
    fn origin(&self) -> (&Path, String);

    /// The dtype its factors get where `wanted` leaves it open or it is not among what is changed.
    fn float(&self, wanted: Option<Float>) -> Float;

    /// The change of one expert, divided by `divisor` if it is a product.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn part(&self, expert: usize, divisor: f64) -> Result<Part<'_>>;

    /// The singular value below which nothing but rounding noise is left; of a stack that of its experts together.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn noise(&self) -> Result<f64>;

    /// Bytes that decomposing it to at most `rank` takes, by estimate.
    fn held_bytes(&self, rank: Option<usize>) -> u64;

    /// Ranks of what it is made of, where that has ranks.
    fn ranks(&self) -> Vec<usize> {
        Vec::new()
    }

    /// The pair that it is already, where that may stay.
    fn own(&self) -> Option<Own<'_>> {
        None
    }

    /// Whether its rank is chosen at all; otherwise it keeps the one it has.
    fn is_chosen(&self) -> bool {
        true
    }

    /// The scale of the pair it comes from, which kohya's rules leave aside.
    fn scale(&self) -> f64 {
        1.0
    }

    /// Whether a bias needs a pair to belong to.
    fn has_bias(&self) -> bool {
        false
    }

    /// The bias of B, divided by `scale`.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    fn bias(&self, _scale: f64) -> Result<Option<Bytes>> {
        Ok(None)
    }

    /// How often its factors are stored.
    fn copies(&self) -> u64 {
        1
    }

    /// Bytes that looking at it reads, for people who wait.
    fn bytes(&self) -> u64 {
        0
    }

    /// ‖·‖ of what rounding added to what was measured, where that is known.
    ///
    /// # Errors
    /// When its inputs cannot be read.
    fn rounding(&self) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Lets go of mapped pages.
    fn release(&self) {}

    /// Checks that no input was changed while it was read.
    ///
    /// # Errors
    /// When one was.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// What reports call its kind.
    fn label(&self) -> &'static str {
        self.kind().label()
    }

    /// Its shape, as the weight is stored.
    fn weight_shape(&self) -> Vec<u64> {
        self.kind().weight_shape(self.outer())
    }
}

/// The matrix of one expert.
pub struct Part<'a> {
    /// As it is known.
    pub operator: Operator<'a>,
    /// It is the transpose of `[out, in]`.
    pub turned: bool,
    /// Where the random numbers of an iteration are drawn from.
    pub seed: u64,
    /// How far it may be from the ΔW that it stands for.
    pub slack: f64,
    /// A norm up to here is what rounding left of terms that cancel.
    pub floor: f64,
}

impl<'a> Part<'a> {
    /// The matrix as it is.
    pub fn new(operator: Operator<'a>, seed: u64) -> Self {
        Self { operator, turned: false, seed, slack: 0.0, floor: 0.0 }
    }
}

/// How a matrix is known.
pub enum Operator<'a> {
    /// By its factors: decomposed exactly.
    Product(LowRank),
    /// By reading it: decomposed by an iteration.
    Streamed(Box<dyn LinearOperator + Send + 'a>),
}

impl Operator<'_> {
    /// As something to multiply by.
    pub fn matrix(&self) -> &dyn LinearOperator {
        match self {
            Self::Product(product) => product,
            Self::Streamed(matrix) => matrix.as_ref(),
        }
    }
}

/// A pair as a file holds it.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// r; of a stack that of one expert.
    pub rank: usize,
    /// How both factors are stored, if alike.
    pub float: Option<Float>,
    /// The factor in front of B·A.
    pub scale: f64,
    /// A.
    pub down: &'a Stored,
    /// B.
    pub up: &'a Stored,
    /// Bias of B.
    pub bias: Option<&'a Stored>,
}
