//! Factors that an initialiser took out of a base, found again from the weight they were taken from.
//!
//! PiSSA (Meng et al. 2024): s·B₀·A₀ is the best approximation of W of rank r, whatever s. OLoRA (Büyükakyüz 2024): W = Q·R,
//! B₀ = Q_r, A₀ = R_r, so that s·B₀·A₀ = s·Q_r·Q_rᵀ·W. Both products are unique where `linalg::Part` says so; their factors are
//! not. PEFT 0.21 (`tuners/lora/layer.py`) decomposes W in f32. The best approximation of a transpose is the transpose of the
//! best approximation, and OLoRA factors W as it is stored, so the stored orientation serves for both.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::factor::Factor;
use super::low_rank::Term;
use crate::error::{Error, Result};
use crate::linalg::{Part, RowSource, first_columns, leading};

/// Angle, for one unit roundoff of f32, from which a product is worth a note: LAPACK's errors are a few roundoffs.
const WORTH_A_NOTE: f64 = 1e-4;

/// Which part of the weight the factors were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialiser {
    /// The best approximation of its rank.
    Pissa,
    /// s times the projection onto its first columns.
    Olora,
}

/// s·B₀·A₀ of one module.
pub struct Initial {
    initialiser: Initialiser,
    rank: usize,
    scale: f64,
    weight: Arc<dyn RowSource + Send>,
    path: PathBuf,
    tensor: String,
    found: OnceLock<Found>,
}

struct Found {
    /// `None` for a weight of zeros.
    term: Option<Term>,
    note: Option<String>,
}

impl Initial {
    /// What `initialiser` took out of `weight` with this rank and scale. The weight is the tensor `tensor` of the file `path`.
    pub fn new(
        initialiser: Initialiser,
        rank: usize,
        scale: f64,
        weight: Arc<dyn RowSource + Send>,
        (path, tensor): (PathBuf, String),
    ) -> Self {
        Self { initialiser, rank, scale, weight, path, tensor, found: OnceLock::new() }
    }

    /// Bytes that are held while the weight is decomposed, about.
    pub fn held_bytes(&self) -> u64 {
        let (rows, cols) = self.weight.shape();
        let side = match self.initialiser {
            Initialiser::Pissa => rows.min(cols),
            Initialiser::Olora => self.rank,
        };
        (2 * (side * side + (rows + cols) * self.rank) * size_of::<f64>()) as u64
    }

    /// Decomposes the weight, once.
    ///
    /// # Errors
    /// When the weight cannot be read, holds values that are not finite, or does not define the product.
    pub fn find(&self) -> Result<()> {
        if self.found.get().is_some() {
            return Ok(());
        }
        let (part, scale) = self.part()?;
        let (rank, cols) = (part.factors.rank(), self.weight.shape().1);
        let term = (rank > 0).then(|| Term {
            up: Factor::held(part.factors.up(), rank),
            down: Factor::held(part.factors.down(), cols),
            scale: -scale,
        });
        let note = (part.blur() > WORTH_A_NOTE && !is_rounding(&part)).then(|| self.note(&part));
        // Found twice it is the same: keeping the first is right.
        let _ = self.found.set(Found { term, note });
        Ok(())
    }

    /// −s·B₀·A₀, after [`Initial::find`].
    pub fn term(&self) -> Option<&Term> {
        self.found.get().expect("the plan measures every delta that asks for it before its first tile").term.as_ref()
    }

    /// What is worth knowing about the decomposition.
    pub fn notes(&self) -> Option<&str> {
        self.found.get().and_then(|found| found.note.as_deref())
    }

    fn part(&self) -> Result<(Part, f64)> {
        let seed = blake3::hash(self.tensor.as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *seed.as_bytes();
        let found = match self.initialiser {
            // PEFT takes √(σ ∕ s), which no negative scale and no zero has.
            Initialiser::Pissa if self.scale <= 0.0 => {
                let what = format!("PiSSA cannot have started `{}` with a scale of {}", self.tensor, self.scale);
                return Err(Error::unsupported(&self.path, what));
            }
            Initialiser::Pissa => {
                leading(self.weight.as_ref(), self.rank, u64::from_le_bytes([a, b, c, d, e, f, g, h]))?
            }
            Initialiser::Olora => first_columns(self.weight.as_ref(), self.rank)?,
        };
        let Some(part) = found else {
            return Err(Error::numeric(&self.path, &self.tensor, "has values that are not finite"));
        };
        if !part.is_defined() {
            return Err(self.open(&part));
        }
        Ok((part, if self.initialiser == Initialiser::Olora { self.scale } else { 1.0 }))
    }

    /// The refusal of a weight that does not say what was taken out of it.
    fn open(&self, part: &Part) -> Error {
        let problem = match self.initialiser {
            Initialiser::Pissa => format!(
                "its singular values {} and {} are {:.6e} and {:.6e}, too close for f32: which part of rank {0} PiSSA took is not known",
                self.rank,
                self.rank + 1,
                part.kept,
                part.next.unwrap_or(0.0)
            ),
            Initialiser::Olora => format!(
                "its first {} columns depend on each other (singular values {:.6e} … {:.6e}): which part OLoRA took is not known",
                self.rank, part.largest, part.kept
            ),
        };
        Error::numeric(&self.path, &self.tensor, problem)
            .hint("`--init-adapter DIR` with the adapter as it was before training says it")
    }

    fn note(&self, part: &Part) -> String {
        let (tensor, blur) = (&self.tensor, part.blur());
        match part.next {
            Some(next) => format!(
                "`{tensor}`: σ{} = {:.4e} and σ{} = {next:.4e} are close, so what PiSSA took out in f32 may differ by some {blur:.0e} \
                 of them from what was found",
                self.rank,
                part.kept,
                self.rank + 1
            ),
            None => format!(
                "`{tensor}`: its first {} columns nearly depend on each other, so what OLoRA took out in f32 may differ by some \
                 {blur:.0e} from what was found",
                self.rank
            ),
        }
    }
}

fn is_rounding(part: &Part) -> bool {
    part.next.is_some() && part.kept <= f64::from(f32::EPSILON) * part.largest
}

impl fmt::Debug for Initial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initial")
            .field("initialiser", &self.initialiser)
            .field("tensor", &self.tensor)
            .finish_non_exhaustive()
    }
}
