//! MiSS (Kang & Yin 2024, earlier Bone): normal and mini add a block repeated along the inputs, ΔW[o, i] = M[i mod r, o]; mini
//! repeats M along the outputs as well. `bat` works on r × r tiles of the weight: ΔW = W_tile · M[t] + M[t], t the tile's row.
//!
//! Follows PEFT `tuners/miss/layer.py`. Exact as LoRA of rank r in the first two forms: A[k, i] = 1 where i mod r = k, B = Mᵀ.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::form::{Formed, Formula, General, sizes, values, weight};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;
use crate::formats::Stored;

/// MiSS.
pub static KIND: Kind = Kind::of_peft("MiSS", &["MISS", "BONE"], &["miss", "bone"], gather);

/// What it was called before.
static BONE: Kind = Kind::new("Bone", gather);

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let (role, stored) = match (parts.take_part("miss_block"), parts.take_part("bone_block")) {
        (Some(stored), _) => ("miss_block", stored),
        (None, Some(stored)) => ("bone_block", stored),
        (None, None) => return Ok(None),
    };
    let tensors = vec![(role, stored.clone())];
    if stored.info.shape.as_slice().len() == 3 {
        let [tiles, rank, columns] = sizes::<3>(&stored)?;
        agree(&stored, "the block", columns, rank)?;
        let make = move |target: &Target| bat(&stored, tiles, rank, target);
        return Ok(Some(Arc::new(General::changing(&KIND, tensors, make).ranked(rank as u64, None))));
    }
    let [rank, width] = sizes::<2>(&stored)?;
    let mini = context.config.raw.get("init_weights").and_then(Value::as_str) == Some("mini");
    let kind = if role == "bone_block" { &BONE } else { &KIND };
    let own = stored.clone();
    let check = move |target: &Target| {
        let repeats = mini && target.outputs.is_multiple_of(width);
        if repeats { Ok(()) } else { agree(&own, "the number of outputs", width, target.outputs) }
    };
    let make = move |&Target { outputs, inputs, .. }: &Target| {
        let block = values(&stored)?;
        let mut up = vec![0.0; outputs * rank];
        for (o, line) in up.chunks_exact_mut(rank).enumerate() {
            line.iter_mut().enumerate().for_each(|(k, value)| *value = block[k * width + o % width]);
        }
        let mut down = vec![0.0; rank * inputs];
        (0..inputs).for_each(|i| down[(i % rank) * inputs + i] = 1.0);
        Ok(Term { up: Factor::held(up, rank), down: Factor::held(down, inputs), scale: 1.0 })
    };
    Ok(Some(Arc::new(General::fitted(kind, tensors, check, make).ranked(rank as u64, None))))
}

fn bat(stored: &Stored, tiles: usize, rank: usize, target: &Target) -> Result<Vec<ParameterChange>> {
    let (outputs, inputs) = (target.outputs, target.inputs);
    if tiles * rank != outputs || inputs % rank != 0 {
        let problem = format!(
            "has {tiles} blocks of {rank}, which do not tile a weight of [{outputs}, {inputs}] ({} rows)",
            stored.rows_cols().0
        );
        return Err(wrong(stored, problem));
    }
    Ok(vec![weight(Formed(Bat { shape: (outputs, inputs), rank, blocks: values(stored)? }))])
}

struct Bat {
    shape: (usize, usize),
    rank: usize,
    blocks: Vec<f32>,
}

impl Formula for Bat {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn grain(&self) -> (usize, usize) {
        (self.rank, self.rank)
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let (r, width) = (self.rank, cols.len());
        for (line, row) in rows.enumerate() {
            let block = &self.blocks[row / r * r * r..][..r * r];
            let own = &block[row % r * r..][..r];
            for first in (0..width).step_by(r) {
                let old = &base[line * width + first..][..r];
                for i in 0..r {
                    let sum: f64 = (0..r).map(|k| f64::from(old[k]) * f64::from(block[k * r + i])).sum();
                    out[line * width + first + i] = (f64::from(old[i]) + sum + f64::from(own[i])) as f32;
                }
            }
        }
        Ok(())
    }
}
