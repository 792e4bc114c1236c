//! VeRA (Kopiczko et al. 2024): ΔW = diag(b) · B · diag(d) · A, A and B random, shared by all modules and cut to the layer's
//! sizes. PVeRA draws d and A anew in training; its merge uses their means, the first half of each.
//!
//! Follows PEFT `tuners/{vera,pvera}/layer.py`. A file without the shared matrices needs torch's generator.

use std::sync::Arc;

use super::form::{General, sizes, values};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::{Error, Result};
use crate::formats::Stored;

/// VeRA.
pub static KIND: Kind = Kind::of_peft("VeRA", &["VERA"], &["vera"], gather_vera);

/// PVeRA.
pub static PROBABILISTIC: Kind = Kind::of_peft("PVeRA", &["PVERA"], &["pvera"], gather_pvera);

fn gather_vera(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    gather(&KIND, ["vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"], 1, parts, context)
}

fn gather_pvera(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    gather(&PROBABILISTIC, ["pvera_lambda_b", "pvera_lambda_d", "pvera_A", "pvera_B"], 2, parts, context)
}

/// A shared matrix, or the reason why there is none.
pub(super) fn shared(context: &Context<'_>, kind: &Kind, role: &str, beside: &Stored) -> Result<Stored> {
    context.shared.get(role).cloned().ok_or_else(|| {
        let what = format!(
            "{kind} without saved projections: `{role}`, beside `{}`, would have to be drawn by torch's generator",
            beside.info.name
        );
        Error::unsupported(beside.path(), what)
            .hint("save the adapter again with `save_projection=True`, or merge it with PEFT")
    })
}

fn gather(
    kind: &'static Kind,
    [b, d, shared_a, shared_b]: [&'static str; 4],
    part: usize,
    parts: &mut Parts,
    context: &Context<'_>,
) -> Result<Option<Arc<dyn Method>>> {
    let Some(lambda_b) = parts.take_part(b) else { return Ok(None) };
    let lambda_d = parts.require_part(d, &lambda_b)?;
    let a = shared(context, kind, shared_a, &lambda_b)?;
    let big_b = shared(context, kind, shared_b, &lambda_b)?;
    let ([outputs], [drawn]) = (sizes::<1>(&lambda_b)?, sizes::<1>(&lambda_d)?);
    let rank = drawn / part;
    let ((a_rows, widest), (tallest, b_cols)) = (a.rows_cols(), big_b.rows_cols());
    agree(&a, "the rank", a_rows, drawn)?;
    agree(&big_b, "the rank", b_cols, rank)?;
    if tallest < outputs {
        return Err(wrong(&big_b, format!("has {tallest} rows, `{}` asks for {outputs}", lambda_b.info.name)));
    }
    let tensors = vec![(b, lambda_b.clone()), (d, lambda_d.clone()), (shared_a, a.clone()), (shared_b, big_b.clone())];
    let (own, wide) = (lambda_b.clone(), a.clone());
    let check = move |target: &Target| {
        if target.inputs > widest {
            return Err(wrong(&wide, format!("has {widest} columns, the layer {} inputs", target.inputs)));
        }
        agree(&own, "the number of outputs", outputs, target.outputs)
    };
    let make = move |&Target { inputs, .. }: &Target| {
        let (row_factors, rank_factors) = (values(&lambda_b)?, values(&lambda_d)?);
        let mut up = vec![0.0; outputs * rank];
        Factor::new(&big_b)?.decode(0..outputs, 0..rank, &mut up)?;
        let mut down = vec![0.0; rank * inputs];
        Factor::new(&a)?.decode(0..rank, 0..inputs, &mut down)?;
        for (line, factor) in up.chunks_exact_mut(rank.max(1)).zip(row_factors) {
            line.iter_mut().for_each(|value| *value *= factor);
        }
        for (line, factor) in down.chunks_exact_mut(inputs.max(1)).zip(rank_factors) {
            line.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(Term { up: Factor::held(up, rank), down: Factor::held(down, inputs), scale: 1.0 })
    };
    Ok(Some(Arc::new(General::fitted(kind, tensors, check, make).ranked(rank as u64, None))))
}
