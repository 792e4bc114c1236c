//! LoKr (Edalati et al. 2022; LyCORIS): ΔW = s · w1 ⊗ w2, each factor whole or a product, w2 of a convolution also in Tucker form.
//!
//! Sources: LyCORIS 4.1 `functional/lokr.py`, PEFT 0.21 `tuners/lokr/layer.py`. Where α stands beside the factors (LyCORIS) s = α/r
//! with r of w2_b, else of w1_b, and 1 if both are whole, whatever α says; the scale counts once, as in the forward pass, while
//! LyCORIS' own merge applies it twice. PEFT's s is α/r of its config always. A convolution's w2 is flattened to `[k, n · kernel]`,
//! which makes ΔW a plain Kronecker product. Exact as LoRA by (a₁b₁) ⊗ (a₂b₂) = (a₁ ⊗ a₂)(b₁ ⊗ b₂), a whole factor being
//! itself times the identity.

use std::ops::Range;
use std::sync::Arc;

use super::named::{Named, check_rank, room};
use super::tucker::Down;
use crate::adapters::delta::{Columns, Delta, Tile};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::magnitudes::{LYCORIS_NAME, decomposed};
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts, wrong};
use crate::error::Result;
use crate::formats::Stored;
use crate::tensor::add_low_rank;

const NAMES: [&str; 9] =
    ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", LYCORIS_NAME, "scalar"];

/// LoKr.
pub static KIND: Kind = Kind {
    alpha: Some("alpha"),
    is_of_lycoris: true,
    is_dotted: true,
    tells_kernel: true,
    ..Kind::of_peft("LoKr", &["LOKR"], &["lokr"], gather)
};

/// The tensors of one module.
#[derive(Debug)]
struct LoKr {
    named: Named,
    rank: Option<usize>,
    scale: f64,
}

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    if !NAMES[..7].iter().any(|name| parts.has_part(name)) {
        return Ok(None);
    }
    let named = Named::take(parts, &NAMES);
    let rank_of = |name: &str| named.get(name).map(|tensor| tensor.info.shape.rows_cols().0);
    let rank = rank_of("lokr_w2_b").or_else(|| rank_of("lokr_w1_b"));
    if let Some(rank) = rank {
        check_rank(&named, context, rank)?;
    }
    let scale = match rank {
        // α is read all the same: a broken one is said.
        None if context.alpha_per_module => parts.alpha().map(|_| 1.0)?,
        rank => parts.scale(context, rank.unwrap_or(1))?,
    };
    let scale = scale * named.scalar()?;
    let rank = rank.map(|rank| usize::try_from(rank).expect("a mapped tensor has fewer rows than the address space"));
    let method = LoKr { named, rank, scale };
    method.plans()?;
    Ok(Some(Arc::new(method)))
}

impl LoKr {
    fn side(&self, whole: &'static str, up: &'static str, down: &'static str) -> Result<Plan> {
        if let Some(stored) = self.named.get(whole) {
            if let Some(other) = self.named.get(up).or(self.named.get(down)) {
                return Err(wrong(other, format!("stands beside `{whole}`: a factor is whole or a product, not both")));
            }
            return Ok(Plan { up: Factor::new(stored)?, down: None });
        }
        let core = self.named.get("lokr_t2").filter(|_| whole == "lokr_w2");
        let (left, right) = (self.named.factor(up)?, Down::new(self.named.factor(down)?, core)?);
        let left = if core.is_some() { left.transposed() } else { left };
        self.named.agree((up, left.shape().1), (down, right.shape().0))?;
        Ok(Plan { up: left, down: Some(right) })
    }

    fn plans(&self) -> Result<[Plan; 2]> {
        Ok([self.side("lokr_w1", "lokr_w1_a", "lokr_w1_b")?, self.side("lokr_w2", "lokr_w2_a", "lokr_w2_b")?])
    }

    fn product(&self) -> Result<Kronecker> {
        let [left, right] = self.plans()?;
        Ok(Kronecker { left: left.side()?, right: right.side()?, scale: self.scale })
    }
}

/// One factor of the Kronecker product, before anything of it is read.
struct Plan {
    up: Factor,
    down: Option<Down>,
}

impl Plan {
    fn shape(&self) -> (usize, usize) {
        (self.up.shape().0, self.down.as_ref().map_or(self.up.shape().1, |down| down.shape().1))
    }

    fn side(self) -> Result<Side> {
        Ok(Side { up: self.up, down: self.down.map(Down::folded).transpose()? })
    }
}

impl Method for LoKr {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.named.list()
    }

    fn shape(&self) -> Option<(u64, u64)> {
        let [left, right] = self.plans().ok()?.map(|plan| plan.shape());
        Some((left.0 as u64 * right.0 as u64, left.1 as u64 * right.1 as u64))
    }

    fn rank(&self) -> Option<u64> {
        self.rank.map(|rank| rank as u64)
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn changes(&self, target: &Target) -> Result<Vec<ParameterChange>> {
        let delta = decomposed(Arc::new(self.product()?), self.named.get(LYCORIS_NAME), target)?;
        Ok(vec![ParameterChange { parameter: "weight", delta }])
    }

    fn low_rank(&self, _target: Option<&Target>) -> Result<Option<Term>> {
        if self.named.get(LYCORIS_NAME).is_some() {
            return Ok(None);
        }
        let Kronecker { left, right, scale } = self.product()?;
        let (outputs, inputs) = (left.shape().0 * right.shape().0, left.shape().1 * right.shape().1);
        let (left, right) = (left.split(), right.split());
        room(self.named.first(), &[outputs.max(inputs), left.0.shape().1, right.0.shape().1])?;
        Ok(Some(Term { up: kronecker(&left.0, &right.0)?, down: kronecker(&left.1, &right.1)?, scale }))
    }
}

/// One factor of the Kronecker product.
struct Side {
    up: Factor,
    down: Option<Factor>,
}

impl Side {
    fn shape(&self) -> (usize, usize) {
        (self.up.shape().0, self.down.as_ref().map_or(self.up.shape().1, |down| down.shape().1))
    }

    /// A block of it in f32.
    fn block(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Vec<f32>> {
        let mut out = vec![0.0; rows.len() * cols.len()];
        let Some(down) = &self.down else {
            self.up.decode(rows, cols, &mut out)?;
            return Ok(out);
        };
        let (rank, width) = (down.shape().0, cols.len());
        let (mut left, mut right) = (vec![0.0; rows.len() * rank], vec![0.0; rank * width]);
        self.up.decode(rows, 0..rank, &mut left)?;
        down.decode(0..rank, cols, &mut right)?;
        add_low_rank(&mut out, width, &left, &right, width, rank, 1.0);
        Ok(out)
    }

    /// As a product of rank at most its smaller side.
    fn split(self) -> (Factor, Factor) {
        match self.down {
            Some(down) => (self.up, down),
            None if self.up.shape().0 <= self.up.shape().1 => (identity(self.up.shape().0), self.up),
            None => {
                let cols = self.up.shape().1;
                (self.up, identity(cols))
            }
        }
    }
}

fn identity(size: usize) -> Factor {
    let mut values = vec![0.0; size * size];
    values.iter_mut().step_by(size + 1).for_each(|value| *value = 1.0);
    Factor::held(values, size)
}

/// left ⊗ right.
fn kronecker(left: &Factor, right: &Factor) -> Result<Factor> {
    let ((_, first), (_, second)) = (left.shape(), right.shape());
    let (left, right) = (left.to_vec()?, right.to_vec()?);
    let mut out = Vec::with_capacity(left.len() * right.len());
    for upper in left.chunks_exact(first.max(1)) {
        for lower in right.chunks_exact(second.max(1)) {
            out.extend(upper.iter().flat_map(|upper| lower.iter().map(move |lower| upper * lower)));
        }
    }
    Ok(Factor::held(out, first * second))
}

/// scale · left ⊗ right.
struct Kronecker {
    left: Side,
    right: Side,
    scale: f64,
}

impl Delta for Kronecker {
    fn shape(&self) -> (usize, usize) {
        let ((up, left), (down, right)) = (self.left.shape(), self.right.shape());
        (up * down, left * right)
    }

    fn rounds_alone(&self) -> bool {
        false
    }

    fn release(&self) {
        for side in [&self.left, &self.right] {
            side.up.release();
            side.down.iter().for_each(Factor::release);
        }
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(KroneckerColumns(self)))
    }
}

struct KroneckerColumns<'a>(&'a Kronecker);

impl Columns for KroneckerColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let Kronecker { left, right, scale } = self.0;
        let scale = (strength * scale) as f32;
        let (high, wide) = right.shape();
        let width = tile.cols.len();
        for rows in pieces(&tile.rows, high) {
            for cols in pieces(&tile.cols, wide) {
                let (down, across) = (within(&rows, high), within(&cols, wide));
                let small = right.block(down.clone(), across.clone())?;
                let (above, beside) = (outer(&rows, high), outer(&cols, wide));
                let factors = left.block(above.clone(), beside.clone())?;
                for row in rows.clone() {
                    let line = &small[(row % high - down.start) * across.len()..][..across.len()];
                    let factors = &factors[(row / high - above.start) * beside.len()..][..beside.len()];
                    let at = (row - tile.rows.start) * width;
                    let mut col = cols.start;
                    while col < cols.end {
                        let end = cols.end.min((col / wide + 1) * wide);
                        let factor = factors[col / wide - beside.start];
                        let values = &mut tile.value[at + col - tile.cols.start..at + end - tile.cols.start];
                        let line = &line[col % wide - across.start..][..end - col];
                        values.iter_mut().zip(line).for_each(|(value, small)| *value += factor * small * scale);
                        col = end;
                    }
                }
            }
        }
        Ok(())
    }
}

/// `range` as a whole where a period fits into it, else cut at the multiples of `period`: no block of the small factor is
/// larger than the tile.
fn pieces(range: &Range<usize>, period: usize) -> Vec<Range<usize>> {
    if range.len() >= period || range.is_empty() {
        return vec![range.clone()];
    }
    let cut = (range.start / period + 1) * period;
    if cut >= range.end { vec![range.clone()] } else { vec![range.start..cut, cut..range.end] }
}

/// Where `range` lies in the small factor.
fn within(range: &Range<usize>, period: usize) -> Range<usize> {
    let first = range.start % period;
    if first + range.len() <= period { first..first + range.len() } else { 0..period }
}

/// Which elements of the large factor it meets.
fn outer(range: &Range<usize>, period: usize) -> Range<usize> {
    range.start / period..(range.end.max(range.start + 1) - 1) / period + 1
}
