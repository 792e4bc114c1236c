//! HiRA (Huang et al. 2025): W′ = W ∘ (1 + B · A), elementwise. Of an embedding `[vocabulary, dim]` the product is transposed.
//!
//! Follows PEFT `tuners/hira/layer.py`.

use std::ops::Range;
use std::sync::Arc;

use super::form::{Formed, Formula, General, weight};
use crate::adapters::delta::{Delta, Tile};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::{LowRankDelta, Term};
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts, agree};
use crate::error::Result;

/// HiRA.
pub static KIND: Kind = Kind::of_peft("HiRA", &["HIRA"], &["hira"], gather);

fn gather(parts: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    for (down, up, embedding) in [("hira_A", "hira_B", false), ("hira_embedding_A", "hira_embedding_B", true)] {
        let Some(a) = parts.take_part(down) else { continue };
        let b = parts.require_part(up, &a)?;
        let ((rank, inputs), (outputs, columns)) = (a.rows_cols(), b.rows_cols());
        agree(&b, "the rank", columns, rank)?;
        let tensors = vec![(down, a.clone()), (up, b.clone())];
        // An embedding is a table of rows: seen as a layer, its inputs are the dimensions.
        let (rows, cols) = if embedding { (inputs, outputs) } else { (outputs, inputs) };
        let make = move |_: &crate::adapters::method::Target| {
            let term = Term { up: Factor::new(&b)?, down: Factor::new(&a)?, scale: 1.0 };
            let term = if embedding { term.transposed() } else { term };
            Ok(vec![weight(Formed(Scaled(LowRankDelta::from(term))))])
        };
        let method = General::changing(&KIND, tensors, make).shaped(rows as u64, cols as u64);
        return Ok(Some(Arc::new(method.ranked(rank as u64, None))));
    }
    Ok(None)
}

struct Scaled(LowRankDelta);

impl Formula for Scaled {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let mut tile = Tile { rows, cols: cols.clone(), base: &[], value: &mut *out, fresh: true };
        self.0.columns(cols)?.add(1.0, &mut tile)?;
        out.iter_mut().zip(base).for_each(|(new, old)| *new = old.mul_add(*new, *old));
        Ok(())
    }
}
