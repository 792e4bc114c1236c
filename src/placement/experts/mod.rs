//! Mixture-of-experts layers: adapters of stacks and of single experts, into bases of any layout.
//!
//! `homes` knows where a projection of an expert lies in the base, `stacks` brings a pair that adapts all experts at once to it,
//! `single` the pair of one expert. What a pair means (which factor lies on the input, in which order its columns stand) is a fact
//! of the adapter, [`Stack`](crate::adapters::Stack); here the shapes of the base have the last word on the sides.

mod homes;
mod single;
mod stacks;

use std::sync::Arc;

use homes::Home;
pub use homes::Layers;

use super::change::Placeable;
use super::placer::{Outcome, Placer};
use super::tile::Piece;
use crate::adapters::{Delta, Lora, LowRankDelta, Term};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::base::Base;
use crate::naming::experts;
use crate::naming::experts::peft::Class;
use crate::tensor::{Float, Rounding, Shape, TensorInfo};

/// Lands a pair that has no layer of its own: of an expert, or of a stack. `None` if it is neither.
///
/// # Errors
/// When it does not fit its place.
pub fn place(placer: &mut Placer<'_>, job: &Placeable<'_>, lora: &Lora) -> Result<Option<Outcome>> {
    if let Some(single) = experts::expert_of(&job.path) {
        return single::place(placer, job, lora, &single);
    }
    stacks::place(placer, job)
}

/// Whether PEFT of today takes the outputs of the stacks of `module` for their third dimension: those that are `[E, in, out]`, unless
/// their class does not say so (Llama 4). `None` where that is not known.
pub fn swapped_by_peft(base: &Base, module: &str) -> Option<bool> {
    let layer = Layers::default().of(base, experts::layer_of_stack(module)?)?;
    let silent =
        base.config.as_ref().is_some_and(|config| config.types().any(|name| Class::of(name) == [Class::Silent]));
    Some(layer.is_turned() && !silent)
}

/// The difference to untrained factors is formed for layers only.
fn refuse_init(job: &Placeable<'_>) -> Result<()> {
    if job.applied.init.is_none() && job.applied.original.is_none() {
        return Ok(());
    }
    let what = format!("untrained factors of experts (`{}`) are not subtracted yet", job.module.path);
    Err(Error::unsupported(&job.applied.adapter.root, what))
}

/// `term`, whose rows are the outputs of `home`, as it is to be added there.
fn turned(home: &Home, term: Term, up: &Stored) -> Result<LowRankDelta> {
    let term = if home.every > 1 { Term { up: spread(&term, up, home)?, ..term } } else { term };
    Ok(LowRankDelta::from(if home.turned { term.transposed() } else { term }))
}

fn add(placer: &mut Placer<'_>, job: &Placeable<'_>, home: &Home, delta: Arc<dyn Delta>) {
    let piece = Piece { delta, row: home.row, col: home.col, strength: job.strength };
    placer.add(&home.tensor, piece, home.cols);
}

/// B with rows of zeros between its own, for outputs that alternate with others. It is made as it is read.
fn spread(term: &Term, up: &Stored, home: &Home) -> Result<crate::adapters::Factor> {
    let (every, first, own) = (home.every, home.first, term.up.clone());
    let (rows, rank) = own.shape();
    let row_bytes = rank * Float::F32.bytes();
    let bytes = (rows * every * row_bytes) as u64;
    let made = up.map.made(bytes, move |offset, out| {
        // Factors are read by whole elements; a row is the least that is made.
        let offset = usize::try_from(offset).expect("a factor fits the address space");
        let (from, to) = (offset / row_bytes, (offset + out.len()).div_ceil(row_bytes));
        let mut band = vec![0; (to - from) * row_bytes];
        let mut values = vec![0.0; rank];
        for row in (from..to).filter(|row| row % every == first) {
            own.decode(row / every..row / every + 1, 0..rank, &mut values)?;
            let at = (row - from) * row_bytes;
            Float::F32.encode(&values, Rounding::Nearest, &mut band[at..at + row_bytes]);
        }
        let skipped = offset - from * row_bytes;
        out.copy_from_slice(&band[skipped..skipped + out.len()]);
        Ok(())
    });
    let shape = Shape::from([(rows * every) as u64, rank as u64]);
    let info = TensorInfo { name: up.info.name.clone(), dtype: Float::F32.dtype(), shape, offset: 0, bytes };
    crate::adapters::Factor::new(&Stored { map: Arc::new(made), info, start: 0 })
}
