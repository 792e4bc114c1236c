//! `merge`: W′ = W + Σ wᵢ ΔWᵢ, and replacements, streamed in the base's own layout.

pub(super) mod applied;
pub(super) mod arrange;
mod assemble;
mod denoisers;
mod fit;
pub(super) mod gguf;
mod homeless;
mod landable;
pub(super) mod landing;
pub(super) mod merged;
mod methods;
mod packing;
mod places;
mod prefixes;
mod prepared;
pub(super) mod provenance;
mod reversible;
pub(super) mod scaled;
mod selection;
pub(super) mod sides;
mod split;
mod stacks;
pub(super) mod summary;
pub(super) mod ties;
pub(super) mod tile;
mod unplaced;
pub(super) mod vocabulary;

use std::path::PathBuf;
use std::time::Instant;

use crate::adapters::{Factor, ReadOptions};
use crate::error::Result;
use crate::formats::Stored;
use crate::io::Inputs;
use crate::ops::WriteOptions;
use crate::ops::base::Base;
use crate::ops::fingerprint::fingerprints;
use crate::ops::output::Run;
use crate::tensor::Packing;
use assemble::{Assembled, assemble};
use landing::Lander;
use provenance::Edits;

pub(super) use applied::Applied;
pub use assemble::Counts;
pub(super) use fit::is_transposed;
pub(super) use landable::{Landable, scale_of};
pub use landing::Fate;
pub(super) use places::{Place as BasePlace, Places as BasePlaces};
pub(super) use prepared::{Prepared, prepare};
pub use selection::Selection;
pub(super) use summary::delta_norm;
pub use summary::{AdapterSummary, MergeReport, TensorSurvival};

/// Elements that are compared at once.
const COMPARED: usize = 1 << 16;

/// What is merged, and how.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// The model.
    pub base: PathBuf,
    /// Adapters with their weights, in order.
    pub adapters: Vec<(PathBuf, f64)>,
    /// What the adapters' files leave open.
    pub read: ReadOptions,
    /// Untrained factors for the adapters that need them, in order.
    pub init_adapters: Vec<PathBuf>,
    /// The model that PiSSA or OLoRA started from: gives the untrained factors of adapters that lost them.
    pub original: Option<PathBuf>,
    /// The base is the one an adapter's initialiser left behind.
    pub residual_base: bool,
    /// Which modules.
    pub selection: Selection,
    /// Patterns of adapter tensors that may stay unused.
    pub allow_unused: Vec<String>,
    /// The denoiser that is meant where a pipeline has several alike.
    pub component: Option<String>,
    /// A matrix saved whole may change the size of the vocabulary.
    pub resize_vocabulary: bool,
    /// What the weights that change are written as in a file of llama.cpp; `None` keeps the type of each.
    pub quant: Option<Packing>,
    /// Blocks may be rounded by chance, where rounding to nearest would take a change back (`docs/decisions/0012`).
    pub keep_change: bool,
    /// Hash the base's files as well.
    pub hash_base: bool,
    /// How the result is written.
    pub write: WriteOptions,
}

/// Merges adapters into a model.
///
/// # Errors
/// When an input is malformed, an adapter does not belong to the base, or the result cannot be written. Nothing is left
/// behind then.
pub fn merge(options: &MergeOptions, run: &Run<'_>) -> Result<MergeReport> {
    merge_as(options, Direction::PutIn, run)
}

/// Whether adapters are put into a model or taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// W′ = W + ΔW.
    PutIn,
    /// W = W′ − ΔW: for changes that are sums and nothing else.
    TakenOut,
}

/// Merges in either direction.
pub(super) fn merge_as(options: &MergeOptions, direction: Direction, run: &Run<'_>) -> Result<MergeReport> {
    let started = Instant::now();
    let inputs = Inputs::watch();
    let base = Base::open(&options.base).map_err(|problem| applied::swapped(options, problem))?;
    if direction == Direction::TakenOut {
        base.wrapping.refuse_inside(&base.checkpoint, "the merged model")?;
    }
    let mut applied = applied::open(options, base.config.as_ref())?;
    sides::check_out(&options.write, &base, &inputs)?;
    let changed = applied.iter().flat_map(|applied| &applied.adapter.modules);
    let base = base.with_head_named_by(changed.map(|module| module.path.as_str()));
    if direction == Direction::TakenOut {
        applied.iter_mut().for_each(|applied| applied.strength = -applied.strength);
    }
    let unused = provenance::globs(&options.allow_unused)?;
    let mut lander = Lander::new(&base, &options.selection, &unused)
        .resizing(options.resize_vocabulary)
        .meaning(options.component.as_deref());
    applied.iter().try_for_each(|applied| lander.land(applied))?;
    options.selection.check(&lander.paths)?;
    lander.tell_of_denoisers();
    let untied = match direction {
        Direction::PutIn => ties::untie(&mut lander, &applied)?,
        Direction::TakenOut => {
            reversible::check(&applied, &lander.landed.fates)?;
            ties::keep_together(&mut lander)?
        }
    };
    let vocabulary = vocabulary::check(&mut lander)?;
    let landed = lander.landed;

    let recipe = provenance::recipe(options, direction, &base, &applied)?;
    let assembled = assemble(&base, &landed, options, &provenance::metadata(&recipe))?;
    let mut report = summary::begin(options, &applied, &landed, &assembled, &base)?;
    let Assembled { plan, merged, .. } = assembled;
    let mut output = sides::output(plan, &options.write, &base);
    let originals = applied.iter().filter_map(|applied| applied.original.as_ref());
    let models = originals.map(|(original, _)| &original.base.checkpoint).chain([&base.checkpoint]);
    output.inputs = fingerprints(options.write.part, models)?;
    let added =
        sides::add(&mut output, &options.write, &base, &Edits { untied, vocabulary, ..Edits::default() }, &recipe)?;
    report.config_changes = added.config_changes;
    report.notes.extend(added.notes);
    report.bytes = output.bytes();
    output.write(&options.write, run, &inputs)?;
    if !options.write.dry_run {
        summary::complete(&mut report, &merged, started.elapsed());
    }
    Ok(report)
}

/// Whether two tensors hold the same numbers once the left one is stored as the right one is.
pub(super) fn same_values(left: &Stored, right: &Stored) -> Result<bool> {
    if left.info.dtype == right.info.dtype {
        let same = left.view()?.data == right.view()?.data;
        release(&[left, right]);
        return Ok(same);
    }
    let Some(float) = right.info.dtype.float() else { return Ok(false) };
    let ((left_rows, left_cols), wide) = (Factor::new(left)?.shape(), left.info.dtype.float());
    let Some(wide) = wide else { return Ok(false) };
    let (left_data, right_data) = (left.view()?.data, right.view()?.data);
    let mut values = vec![0.0; COMPARED.min(left_rows * left_cols)];
    let mut stored = vec![0; values.len() * float.bytes()];
    let pieces = left_data.chunks(COMPARED * wide.bytes()).zip(right_data.chunks(COMPARED * float.bytes()));
    for (piece, wanted) in pieces {
        let count = piece.len() / wide.bytes();
        wide.decode(piece, &mut values[..count]);
        float.encode(&values[..count], crate::tensor::Rounding::Nearest, &mut stored[..wanted.len()]);
        if stored[..wanted.len()] != *wanted {
            return Ok(false);
        }
    }
    release(&[left, right]);
    Ok(true)
}

fn release(tensors: &[&Stored]) {
    tensors.iter().for_each(|tensor| tensor.map.release(tensor.start, tensor.info.bytes));
}
