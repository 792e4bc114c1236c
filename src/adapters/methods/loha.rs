//! LoHa (Hyeon-Woo et al. 2022, FedPara): ΔW = s · (w1_a · w1_b) ∘ (w2_a · w2_b), s = α/r.
//!
//! Sources: LyCORIS 4.1 `functional/loha.py`, PEFT 0.21 `tuners/loha/layer.py`. With cores `hada_t1`, `hada_t2` the factors
//! `w*_a` are `[r, out]` and each half is in Tucker form. The scale counts once, as in the forward pass: LyCORIS' own merge
//! applies it twice. Exact as LoRA of rank r² by the Khatri-Rao product:
//! B[o, (i, j)] = w1_a[o, i] · w2_a[o, j], A[(i, j), n] = w1_b[i, n] · w2_b[j, n].

use std::ops::Range;
use std::sync::Arc;

use super::named::{Named, check_rank, room};
use super::tucker::Down;
use crate::adapters::delta::{Columns, Delta, Tile};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::{LowRankDelta, Term};
use crate::adapters::magnitudes::{LYCORIS_NAME, decomposed};
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts, describe};
use crate::error::{Error, Result};
use crate::formats::Stored;

const NAMES: [&str; 8] =
    ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", LYCORIS_NAME, "scalar"];

/// LoHa.
pub static KIND: Kind = Kind {
    alpha: Some("alpha"),
    is_of_lycoris: true,
    is_dotted: true,
    tells_kernel: true,
    ..Kind::of_peft("LoHa", &["LOHA"], &["hada"], gather)
};

/// The tensors of one module.
#[derive(Debug)]
struct LoHa {
    named: Named,
    rank: usize,
    scale: f64,
}

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    if !NAMES[..6].iter().any(|name| parts.has_part(name)) {
        return Ok(None);
    }
    let named = Named::take(parts, &NAMES);
    let rank = named.factor("hada_w1_b")?.shape().0;
    check_rank(&named, context, rank as u64)?;
    let scale = parts.scale(context, rank as u64)? * named.scalar()?;
    let method = LoHa { named, rank, scale };
    let [left, right] = method.halves()?;
    if left.shape() != right.shape() {
        let problem = format!("one half is {:?}, the other {:?}: they are multiplied", left.shape(), right.shape());
        let (left, right) = (method.named.need("hada_w1_a")?, method.named.need("hada_w2_a")?);
        return Err(Error::mismatch(describe(left), describe(right), problem));
    }
    Ok(Some(Arc::new(method)))
}

/// One of the two products.
struct Half {
    up: Factor,
    down: Down,
}

impl Half {
    fn shape(&self) -> (usize, usize) {
        (self.up.shape().0, self.down.shape().1)
    }

    fn delta(self) -> Result<LowRankDelta> {
        Ok(LowRankDelta::new(vec![Term { up: self.up, down: self.down.folded()?, scale: 1.0 }]))
    }
}

impl LoHa {
    fn half(&self, up: &'static str, down: &'static str, core: &'static str) -> Result<Half> {
        let cores = ["hada_t1", "hada_t2"].iter().any(|core| self.named.get(core).is_some());
        let core = if cores { Some(self.named.need(core)?) } else { None };
        let (left, right) = (self.named.factor(up)?, Down::new(self.named.factor(down)?, core)?);
        let left = if cores { left.transposed() } else { left };
        self.named.agree((up, left.shape().1), (down, right.shape().0))?;
        Ok(Half { up: left, down: right })
    }

    fn halves(&self) -> Result<[Half; 2]> {
        Ok([self.half("hada_w1_a", "hada_w1_b", "hada_t1")?, self.half("hada_w2_a", "hada_w2_b", "hada_t2")?])
    }
}

impl Method for LoHa {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.named.list()
    }

    fn shape(&self) -> Option<(u64, u64)> {
        let [left, _] = self.halves().ok()?;
        let (outputs, inputs) = left.shape();
        Some((outputs as u64, inputs as u64))
    }

    fn rank(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn changes(&self, target: &Target) -> Result<Vec<ParameterChange>> {
        let [left, right] = self.halves()?;
        let product = Hadamard { left: left.delta()?, right: right.delta()?, scale: self.scale };
        let delta = decomposed(Arc::new(product), self.named.get(LYCORIS_NAME), target)?;
        Ok(vec![ParameterChange { parameter: "weight", delta }])
    }

    fn low_rank(&self, _target: Option<&Target>) -> Result<Option<Term>> {
        if self.named.get(LYCORIS_NAME).is_some() {
            return Ok(None);
        }
        let [left, right] = self.halves()?;
        let first = self.named.first();
        let (upper, lower) = (left.down.folded()?.transposed(), right.down.folded()?.transposed());
        room(first, &[left.up.shape().0.max(upper.shape().0), upper.shape().1, lower.shape().1])?;
        let up = paired(&left.up, &right.up)?;
        let down = paired(&upper, &lower)?.transposed();
        Ok(Some(Term { up, down, scale: self.scale }))
    }
}

/// Row by row every element of `left` times every element of `right`.
fn paired(left: &Factor, right: &Factor) -> Result<Factor> {
    let ((rows, first), (_, second)) = (left.shape(), right.shape());
    let (left, right) = (left.to_vec()?, right.to_vec()?);
    let mut out = Vec::with_capacity(rows * first * second);
    for (left, right) in left.chunks_exact(first.max(1)).zip(right.chunks_exact(second.max(1))) {
        out.extend(left.iter().flat_map(|left| right.iter().map(move |right| left * right)));
    }
    Ok(Factor::held(out, first * second))
}

/// scale · left ∘ right.
struct Hadamard {
    left: LowRankDelta,
    right: LowRankDelta,
    scale: f64,
}

impl Delta for Hadamard {
    fn shape(&self) -> (usize, usize) {
        self.left.shape()
    }

    fn rounds_alone(&self) -> bool {
        false
    }

    fn release(&self) {
        self.left.release();
        self.right.release();
    }

    fn columns(&self, cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        let (left, right) = (self.left.columns(cols.clone())?, self.right.columns(cols)?);
        Ok(Box::new(HadamardColumns { left, right, scale: self.scale, products: [Vec::new(), Vec::new()] }))
    }
}

struct HadamardColumns<'a> {
    left: Box<dyn Columns + 'a>,
    right: Box<dyn Columns + 'a>,
    scale: f64,
    products: [Vec<f32>; 2],
}

impl Columns for HadamardColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        for (columns, product) in [&mut self.left, &mut self.right].into_iter().zip(&mut self.products) {
            product.clear();
            product.resize(tile.value.len(), 0.0);
            let (rows, cols) = (tile.rows.clone(), tile.cols.clone());
            columns.add(1.0, &mut Tile { rows, cols, base: &[], value: product, fresh: true })?;
        }
        let scale = (strength * self.scale) as f32;
        let [left, right] = &self.products;
        for ((value, left), right) in tile.value.iter_mut().zip(left).zip(right) {
            *value += left * right * scale;
        }
        Ok(())
    }
}
