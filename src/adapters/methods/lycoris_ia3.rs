//! IA³ as LyCORIS 4.1 parametrises it (`modules/ia3.py`): W′ = W ∘ (1 + w), w one number per output, or per input where `on_input`
//! is set, starting at zero. PEFT's `ia3_l` starts at one and is another parametrisation.

use std::ops::Range;
use std::sync::Arc;

use super::form::{General, weight};
use super::named::Named;
use crate::adapters::delta::{Columns, Delta, Tile};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, number, wrong};
use crate::error::Result;

/// IA³ of LyCORIS.
pub static KIND: Kind = Kind::new("IA³ (LyCORIS)", gather);

fn gather(parts: &mut Parts, _context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    if !parts.has_part("on_input") {
        return Ok(None);
    }
    let named = Named::take(parts, &["weight", "on_input"]);
    named.need("weight")?;
    let on_input = number(named.need("on_input")?)? != 0.0;
    let tensors = named.tensors();
    let make = move |target: &Target| {
        let stored = named.need("weight")?;
        let factors = Factor::new(stored)?.to_vec()?;
        let wanted = if on_input { target.channels() } else { target.outputs };
        if factors.len() != wanted {
            let side = if on_input { "inputs" } else { "outputs" };
            return Err(wrong(stored, format!("has {} factors, the layer {wanted} {side}", factors.len())));
        }
        let period = on_input.then(|| target.positions());
        Ok(vec![weight(Scaled { factors, period, shape: (target.outputs, target.inputs) })])
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make))))
}

/// W′ = W ∘ (1 + factors): one per row, or one for every `period` columns.
struct Scaled {
    factors: Vec<f32>,
    period: Option<usize>,
    shape: (usize, usize),
}

impl Delta for Scaled {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(ScaledColumns(self)))
    }
}

struct ScaledColumns<'a>(&'a Scaled);

impl Columns for ScaledColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let Scaled { factors, period, .. } = self.0;
        let width = tile.cols.len().max(1);
        let lines = tile.value.chunks_exact_mut(width).zip(tile.base.chunks_exact(width));
        for (row, (values, base)) in tile.rows.clone().zip(lines) {
            for (col, (value, base)) in tile.cols.clone().zip(values.iter_mut().zip(base)) {
                let factor = factors[period.map_or(row, |period| col / period)];
                *value += (strength * f64::from(factor) * f64::from(*base)) as f32;
            }
        }
        Ok(())
    }
}
