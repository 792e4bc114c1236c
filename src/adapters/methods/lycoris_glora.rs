//! GLoRA (Chavan et al. 2023) as LyCORIS keeps it (4.1 `modules/glora.py`): ΔW = s · (W · a1 · a2 + b1 · b2), s = α/r, over the
//! input channels of a convolution; `bm` is a Tucker core between b1 and b2. Old files have the two of each pair the other way
//! round; ComfyUI's `weight_adapter/glora.py` tells them apart by shape, and so does this. PEFT's GLoRA is another method.

use std::ops::Range;
use std::sync::Arc;

use super::form::{General, weight};
use super::named::Named;
use super::tucker::Down;
use crate::adapters::delta::{Columns, Delta, Tile};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::{LowRankDelta, Term};
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, wrong};
use crate::error::Result;
use crate::tensor::add_low_rank;

const NAMES: [&str; 6] = ["a1", "a2", "b1", "b2", "bm", "scalar"];

/// GLoRA of LyCORIS.
pub static KIND: Kind = Kind::new("GLoRA (LyCORIS)", gather);

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    if !["a1", "a2", "b1", "b2"].iter().all(|name| parts.has_part(name)) {
        return Ok(None);
    }
    let named = Named::take(parts, &NAMES);
    let shape = |name: &str| Ok::<_, crate::error::Error>(named.factor(name)?.shape());
    let (a1, a2, b1, b2) = (shape("a1")?, shape("a2")?, shape("b1")?, shape("b2")?);
    let new = b2.0 == b1.1 && b1.1 == a1.1 && a1.1 == a2.0;
    let old = b2.1 == b1.0 && b1.0 == a1.0 && a1.0 == a2.1;
    if !new && !old {
        let problem = format!("`a1` {a1:?}, `a2` {a2:?}, `b1` {b1:?} and `b2` {b2:?} have no rank in common");
        return Err(wrong(named.first(), problem));
    }
    // Where both readings are possible everything is square, which only an old file can be if its rank is the layer's size.
    let rank = if new { a2.0 } else { a1.0 };
    let scale = parts.scale(context, rank as u64)? * named.scalar()?;
    let tensors = named.tensors();
    let make = move |target: &Target| {
        let names = if new { ["a1", "a2", "b1", "b2"] } else { ["a2", "a1", "b2", "b1"] };
        let [inward, outward, up, down] = names.map(|name| named.factor(name));
        let (inward, outward, up) = (inward?, outward?, up?);
        let channels = inward.shape().0;
        // Old files of convolutions mix the flattened inputs.
        let positions = if channels == target.inputs { 1 } else { target.positions() };
        if channels * positions != target.inputs || outward.shape().1 != channels {
            let (to, inputs) = (outward.shape().1, target.channels());
            let problem = format!("`a1` and `a2` take {channels} inputs to {to}, the layer has {inputs}");
            return Err(wrong(named.first(), problem));
        }
        let down = Down::new(down?, named.get("bm"))?.folded()?;
        let mixed = Mixed { inward, outward, positions, scale, shape: (target.outputs, target.inputs) };
        Ok(vec![weight(mixed), weight(LowRankDelta::new(vec![Term { up, down, scale }]))])
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make).ranked(rank as u64, Some(scale)))))
}

/// scale · W · inward · outward, over the input channels.
struct Mixed {
    inward: Factor,
    outward: Factor,
    positions: usize,
    scale: f64,
    shape: (usize, usize),
}

impl Delta for Mixed {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn grain(&self) -> (usize, usize) {
        (1, self.shape.1)
    }

    fn release(&self) {
        self.inward.release();
        self.outward.release();
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(MixedColumns { delta: self, inward: self.inward.to_vec()?, outward: self.outward.to_vec()? }))
    }
}

struct MixedColumns<'a> {
    delta: &'a Mixed,
    inward: Vec<f32>,
    outward: Vec<f32>,
}

impl Columns for MixedColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let Mixed { positions, scale, .. } = *self.delta;
        let (channels, rank) = self.delta.inward.shape();
        let scale = (strength * scale) as f32;
        let (rows, width) = (tile.rows.len(), tile.cols.len());
        let mut base = vec![0.0_f32; rows * channels];
        let mut moved = vec![0.0_f32; rows * channels];
        for position in 0..positions {
            for (line, tile) in base.chunks_exact_mut(channels).zip(tile.base.chunks_exact(width)) {
                let spots = tile.iter().skip(position).step_by(positions);
                line.iter_mut().zip(spots).for_each(|(to, from)| *to = *from);
            }
            let mut inner = vec![0.0_f32; rows * rank];
            add_low_rank(&mut inner, rank, &base, &self.inward, rank, channels, 1.0);
            moved.fill(0.0);
            add_low_rank(&mut moved, channels, &inner, &self.outward, channels, rank, scale);
            for (line, tile) in moved.chunks_exact(channels).zip(tile.value.chunks_exact_mut(width)) {
                let spots = tile.iter_mut().skip(position).step_by(positions);
                spots.zip(line).for_each(|(to, from)| *to += from);
            }
        }
        Ok(())
    }
}
