//! LoRA (Hu et al. 2021): ΔW = s · B · A with B `[out, r]`, A `[r, in]`, s = α/r or α/√r.
//!
//! A sum of such products serves adapters that are known only as a difference: ΔW = s(B A − B₀ A₀), B₀ and A₀ from a file or
//! found again from the original weight ([`Initial`]). Arithmetic follows PEFT's CPU merge bit for bit: one f32 accumulator per element, fused multiply-add over k in order, the scale afterwards
//! (`tensor::add_low_rank`).

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::delta::{BaseRows, Columns, Delta, Tile};
use super::factor::Factor;
use super::initial::Initial;
use super::spare::Spare;
use crate::error::Result;
use crate::linalg::{LinearOperator, LowRank};
use crate::tensor::add_low_rank;

/// One product, in the orientation of the stored weight.
#[derive(Debug, Clone)]
pub struct Term {
    /// `[rows, r]`.
    pub up: Factor,
    /// `[r, cols]`.
    pub down: Factor,
    /// The scale of the product.
    pub scale: f64,
}

impl Term {
    /// Its rank.
    pub fn rank(&self) -> usize {
        self.down.shape().0
    }

    /// `down` at `cols`, `[r, cols]`.
    ///
    /// # Errors
    /// As [`Factor::decode`].
    pub fn decode_down(&self, cols: Range<usize>) -> Result<Spare> {
        let mut down = Spare::of(self.rank() * cols.len());
        self.down.decode(0..self.rank(), cols, &mut down)?;
        Ok(down)
    }

    /// `up` at `rows`, `[rows, r]`.
    ///
    /// # Errors
    /// As [`Factor::decode`].
    pub fn decode_up(&self, rows: Range<usize>) -> Result<Spare> {
        let mut up = Spare::of(rows.len() * self.rank());
        self.up.decode(rows, 0..self.rank(), &mut up)?;
        Ok(up)
    }
}

/// ΔW = Σ scaleᵢ · upᵢ · downᵢ, less what an initialiser took out.
#[derive(Debug, Clone)]
pub struct LowRankDelta {
    terms: Vec<Term>,
    initial: Option<Arc<Initial>>,
    rounds_alone: bool,
}

impl LowRankDelta {
    /// The sum of `terms`, which all have the same outer shape.
    pub fn new(terms: Vec<Term>) -> Self {
        assert!(!terms.is_empty(), "a delta has at least one term");
        assert!(terms.iter().all(|term| term.up.shape().1 == term.down.shape().0), "inner dimensions agree");
        Self { terms, initial: None, rounds_alone: true }
    }

    /// The same change less `initial`, which is found when the delta is measured.
    #[must_use]
    pub fn less(self, initial: Arc<Initial>) -> Self {
        Self { initial: Some(initial), ..self }
    }

    /// The same change, of which `safe_merge=True` rounds only the sum.
    #[must_use]
    pub fn rounded_with_sum(self) -> Self {
        Self { rounds_alone: false, ..self }
    }

    /// The file the first term lies in.
    pub fn path(&self) -> &Path {
        self.terms[0].up.path().unwrap_or(Path::new(""))
    }

    /// The products, after it was measured.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        self.terms.iter().chain(self.initial.iter().filter_map(|initial| initial.term()))
    }
}

impl Delta for LowRankDelta {
    fn shape(&self) -> (usize, usize) {
        (self.terms[0].up.shape().0, self.terms[0].down.shape().1)
    }

    fn rounds_alone(&self) -> bool {
        self.rounds_alone
    }

    fn operator(&self) -> Result<Option<Box<dyn LinearOperator>>> {
        let ([term], None) = (self.terms.as_slice(), &self.initial) else { return Ok(None) };
        let rank = term.rank();
        Ok(Some(Box::new(LowRank::from_rows(term.up.to_vec()?, term.down.to_vec()?, rank, term.scale))))
    }

    fn products(&self) -> Option<Vec<&Term>> {
        Some(self.terms().collect())
    }

    fn needs_measure(&self) -> bool {
        self.initial.is_some()
    }

    fn measure(&self, _base: &dyn BaseRows) -> Result<()> {
        self.initial.as_ref().map_or(Ok(()), |initial| initial.find())
    }

    fn measure_bytes(&self) -> u64 {
        self.initial.as_ref().map_or(0, |initial| initial.held_bytes())
    }

    fn notes(&self) -> Option<&str> {
        self.initial.as_ref().and_then(|initial| initial.notes())
    }

    fn release(&self) {
        self.terms.iter().flat_map(|term| [&term.up, &term.down]).for_each(Factor::release);
    }

    fn columns(&self, cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        let terms: Vec<&Term> = self.terms().collect();
        let down = terms.iter().map(|term| term.decode_down(cols.clone())).collect::<Result<_>>()?;
        Ok(Box::new(LowRankColumns { terms, down, up: Spare::of(0) }))
    }
}

struct LowRankColumns<'a> {
    terms: Vec<&'a Term>,
    down: Vec<Spare>,
    up: Spare,
}

impl Columns for LowRankColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let width = tile.cols.len();
        for (term, down) in self.terms.iter().zip(&self.down) {
            self.up = term.decode_up(tile.rows.clone())?;
            let scale = (strength * term.scale) as f32;
            add_low_rank(tile.value, width, &self.up, down, width, term.rank(), scale);
        }
        Ok(())
    }
}
