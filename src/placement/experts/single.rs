//! The pair of one expert's linear layer, into the expert's tensor under another name or into its part of a stack.

use std::sync::Arc;

use super::homes::{Home, Layer};
use super::{add, refuse_init, turned};
use crate::adapters::{Delta, Dora, Lora, Target, Term, describe, magnitudes};
use crate::error::{Error, Result};
use crate::naming::experts::Single;
use crate::placement::change::Placeable;
use crate::placement::fit::check_magnitude;
use crate::placement::placer::{Outcome, Placer};
use crate::tensor::usize_of;

/// Lands it; `None` where the base has no such expert.
///
/// # Errors
/// When it does not fit its place.
pub fn place(
    placer: &mut Placer<'_>,
    job: &Placeable<'_>,
    lora: &Lora,
    single: &Single<'_>,
) -> Result<Option<Outcome>> {
    let base = placer.base;
    let Some(layer) = placer.layers.of(base, single.layer) else { return Ok(None) };
    let Some(homes) = homes(placer, &layer, single) else { return Ok(None) };
    let wanted = (homes.iter().map(|home| home.size.0).sum::<u64>(), homes[0].size.1);
    let got = (lora.outputs(), lora.inputs());
    if got != wanted {
        let problem = format!("the change is [{}, {}], its place [{}, {}]", got.0, got.1, wanted.0, wanted.1);
        return Err(Error::mismatch(describe(&lora.down), describe(&base.stored(&homes[0].tensor)), problem)
            .hint("is this the model the adapter was trained on?"));
    }
    refuse_init(job)?;
    check_magnitude(job, lora)?;
    if let Some(bias) = &lora.bias {
        let what = format!("tensor `{}`: biases of single experts are not merged into a stack", bias.info.name);
        return Err(Error::unsupported(bias.path(), what));
    }
    let term = lora.term(job.scale(lora.rank())?)?;
    let several = homes.len();
    for (at, home) in homes.into_iter().enumerate() {
        // Outputs of a matrix of both alternate.
        let up =
            if several == 1 { term.up.clone() } else { term.up.clone().pick_rows(at, usize_of(home.size.0), several) };
        let delta = delta(placer, job, lora, &home, Term { up, ..term.clone() })?;
        add(placer, job, &home, delta);
    }
    Ok(Some(Outcome::Merged))
}

/// Where the outputs of the pair go.
fn homes(placer: &Placer<'_>, layer: &Layer, single: &Single<'_>) -> Option<Vec<Home>> {
    let (base, expert) = (placer.base, single.expert);
    if single.parts.len() > 1
        && let Some(home) = layer.both(base, expert)
    {
        return Some(vec![home]);
    }
    let homes: Vec<Home> = single.parts.iter().filter_map(|part| layer.home(base, expert, *part)).collect();
    (homes.len() == single.parts.len()).then_some(homes)
}

/// ΔW as it is to be added to `home`, with its magnitudes.
fn delta(placer: &Placer<'_>, job: &Placeable<'_>, lora: &Lora, home: &Home, term: Term) -> Result<Arc<dyn Delta>> {
    let inner = turned(home, term, &lora.up)?;
    let Some(magnitude) = &lora.magnitude else { return Ok(Arc::new(inner)) };
    if home.every > 1 || home.size.0 != lora.outputs() {
        let what = format!(
            "tensor `{}`: the outputs of `{}` alternate with others in `{}`, and magnitudes of such are not merged",
            magnitude.info.name, job.module.path, home.tensor
        );
        return Err(Error::unsupported(placer.base.checkpoint.root(), what));
    }
    let (outputs, inputs) = (usize_of(home.size.0), usize_of(home.size.1));
    let target = Target { outputs, inputs, kernel: Vec::new(), bias: false };
    let found = magnitudes(magnitude, &target)?;
    let found = if home.turned { found.turned() } else { found };
    Ok(Arc::new(Dora::new(Arc::new(inner), found, magnitude.path(), job.path.clone())))
}
