//! OFT as sd-scripts and LyCORIS keep it (Qiu et al. 2023; LyCORIS 4.1 `modules/diag_oft.py`, `modules/boft.py`; sd-scripts
//! `networks/oft.py`): `oft_blocks` turn the outputs, R as in [`super::cayley`], c = α · outputs bounding ‖Q‖.
//!
//! Three dimensions, Diag-OFT and sd-scripts' OFT: W′[block] = Rᵀ · W[block]. Four, BOFT: m stages, of which stage i takes rows
//! 2ⁱ · b/2 apart together and turns them by R. `rescale` then multiplies every output. A strength w turns every R into
//! w · (R − I) + I, as LyCORIS does. PEFT's OFT and BOFT turn the inputs and are other parametrisations.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::cayley::{block_size, rotations};
use super::named::Named;
use crate::adapters::delta::{Columns, Delta, Tile};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts, wrong};
use crate::error::Result;
use crate::formats::Stored;
use crate::tensor::add_low_rank;

/// OFT of sd-scripts and LyCORIS.
pub static KIND: Kind = Kind::new("OFT (kohya)", gather);

/// The same with several stages.
static BUTTERFLY: Kind = Kind::new("BOFT (LyCORIS)", gather);

/// The tensors of one module.
#[derive(Debug)]
struct Oft {
    named: Named,
    alpha: f64,
    stages: Option<usize>,
}

fn gather(parts: &mut Parts, _context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    if !parts.has_part("oft_blocks") {
        return Ok(None);
    }
    let named = Named::take(parts, &["oft_blocks", "rescale"]);
    let blocks = named.need("oft_blocks")?;
    block_size(blocks)?;
    let stages = match *blocks.info.shape.as_slice() {
        [_, _, _] => None,
        [stages, _, _, _] => Some(usize::try_from(stages).expect("a mapped tensor fits memory")),
        _ => {
            let shape = &blocks.info.shape;
            return Err(wrong(blocks, format!("has shape {shape}: blocks have three dimensions, butterflies four")));
        }
    };
    let alpha = parts.alpha()?.unwrap_or(0.0);
    Ok(Some(Arc::new(Oft { named, alpha, stages })))
}

impl Method for Oft {
    fn kind(&self) -> &'static Kind {
        if self.stages.is_some() { &BUTTERFLY } else { &KIND }
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.named.list()
    }

    fn changes(&self, target: &Target) -> Result<Vec<ParameterChange>> {
        let blocks = self.named.need("oft_blocks")?;
        let size = block_size(blocks)?;
        let stages = self.stages.unwrap_or(1);
        let (rows, columns) = blocks.info.shape.rows_cols();
        let turned = (rows * columns) as usize / size / stages.max(1);
        if turned != target.outputs || stages == 0 {
            let problem = format!("turns {turned} outputs in {stages} stages, the layer has {}", target.outputs);
            return Err(wrong(blocks, problem));
        }
        if self.stages.is_some() && (size % 2 != 0 || stages > 32 || !turned.is_multiple_of(size << (stages - 1))) {
            let problem = format!("{stages} stages of blocks of {size} do not make butterflies of {turned} outputs");
            return Err(wrong(blocks, problem));
        }
        let rescale = self.named.get("rescale");
        let rescale = rescale.map(|stored| Factor::new(stored)?.to_vec()).transpose()?;
        if let Some((count, stored)) = rescale.as_ref().map(Vec::len).zip(self.named.get("rescale"))
            && count != target.outputs
        {
            return Err(wrong(stored, format!("has {count} factors, the layer {} outputs", target.outputs)));
        }
        let delta = Turning {
            blocks: blocks.clone(),
            constraint: self.alpha * target.outputs as f64,
            butterfly: self.stages,
            size,
            rescale,
            shape: (target.outputs, target.inputs),
            turns: Mutex::default(),
        };
        Ok(vec![ParameterChange { parameter: "weight", delta: Arc::new(delta) }])
    }
}

/// W′ = rescale · (turns of the rows).
struct Turning {
    blocks: Stored,
    constraint: f64,
    butterfly: Option<usize>,
    size: usize,
    rescale: Option<Vec<f32>>,
    shape: (usize, usize),
    /// R − I of all blocks, once they are needed.
    turns: Mutex<Option<Arc<Vec<f64>>>>,
}

impl Turning {
    fn turns(&self) -> Result<Arc<Vec<f64>>> {
        let mut turns = self.turns.lock().expect("no thread panics while it holds the rotations");
        if let Some(turns) = turns.as_ref() {
            return Ok(Arc::clone(turns));
        }
        let made = Arc::new(rotations(&self.blocks, self.constraint)?);
        *turns = Some(Arc::clone(&made));
        Ok(made)
    }
}

impl Delta for Turning {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn grain(&self) -> (usize, usize) {
        (self.size << (self.butterfly.unwrap_or(1) - 1), 1)
    }

    fn release(&self) {
        *self.turns.lock().expect("no thread panics while it holds the rotations") = None;
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(TurningColumns { delta: self, turns: self.turns()? }))
    }
}

struct TurningColumns<'a> {
    delta: &'a Turning,
    turns: Arc<Vec<f64>>,
}

impl TurningColumns<'_> {
    /// Block by block: the change is (rescale · (w(R − I) + I)ᵀ − I) · W.
    fn add_blocks(&self, strength: f64, tile: &mut Tile<'_>) {
        let (size, width) = (self.delta.size, tile.cols.len());
        let first = tile.rows.start / size;
        let lines = tile.value.chunks_exact_mut(size * width).zip(tile.base.chunks_exact(size * width));
        let mut factors = vec![0.0_f32; size * size];
        for (at, (value, base)) in lines.enumerate() {
            let turn = &self.turns[(first + at) * size * size..][..size * size];
            for row in 0..size {
                let output = (first + at) * size + row;
                let rescale = self.delta.rescale.as_ref().map_or(1.0, |rescale| f64::from(rescale[output]));
                for col in 0..size {
                    let extra = if row == col { rescale - 1.0 } else { 0.0 };
                    factors[row * size + col] = (rescale * strength * turn[col * size + row] + extra) as f32;
                }
            }
            add_low_rank(value, width, &factors, base, width, size, 1.0);
        }
    }

    /// Stage by stage, each on what the one before it made.
    fn add_butterflies(&self, stages: usize, strength: f64, tile: &mut Tile<'_>) {
        let (size, width) = (self.delta.size, tile.cols.len());
        let per_stage = self.turns.len() / stages;
        let mut now = tile.base.to_vec();
        let mut taken = vec![0.0_f32; size * width];
        let mut factors = vec![0.0_f32; size * size];
        for stage in 0..stages {
            let apart = (size / 2) << stage;
            for block in 0..tile.rows.len() / size {
                let turn = &self.turns[stage * per_stage + (tile.rows.start / size + block) * size * size..];
                factors.iter_mut().zip(turn).for_each(|(factor, turn)| *factor = (strength * turn) as f32);
                // Position p of the reordered rows is row p/2 of the first or second half of its group of 2 · apart.
                let row_of = |at: usize| {
                    let position = block * size + at;
                    let (group, inside) = (position / (2 * apart), position % (2 * apart));
                    group * 2 * apart + inside % 2 * apart + inside / 2
                };
                for at in 0..size {
                    taken[at * width..][..width].copy_from_slice(&now[row_of(at) * width..][..width]);
                }
                let mut turned = taken.clone();
                add_low_rank(&mut turned, width, &factors, &taken, width, size, 1.0);
                for at in 0..size {
                    now[row_of(at) * width..][..width].copy_from_slice(&turned[at * width..][..width]);
                }
            }
        }
        let lines = now.chunks_exact(width).zip(tile.value.chunks_exact_mut(width)).zip(tile.base.chunks_exact(width));
        for (row, ((now, value), base)) in tile.rows.clone().zip(lines) {
            let rescale = self.delta.rescale.as_ref().map_or(1.0, |rescale| rescale[row]);
            for ((now, value), base) in now.iter().zip(value).zip(base) {
                let changed = rescale * now;
                *value = if tile.fresh { changed } else { *value + (changed - base) };
            }
        }
    }
}

impl Columns for TurningColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        match self.delta.butterfly {
            None => self.add_blocks(strength, tile),
            Some(stages) => self.add_butterflies(stages, strength, tile),
        }
        Ok(())
    }
}
