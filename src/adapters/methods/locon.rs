//! LoCon in Tucker form (LyCORIS 4.1 `modules/locon.py`, `use_tucker`): ΔW[o, i, x] = s · Σₘₙ mid[m, n, x] · up[o, m] · down[n, i],
//! s = α/r. Without `lora_mid` a convolution's pair is a LoRA like any other.

use std::sync::Arc;

use super::form::General;
use super::named::{Named, check_rank};
use super::tucker::Down;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::{LowRankDelta, Term};
use crate::adapters::magnitudes::{LYCORIS_NAME, decomposed};
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts};
use crate::error::Result;
use crate::naming::Role;

/// LoCon in Tucker form.
pub static KIND: Kind = Kind { tells_kernel: true, ..Kind::new("LoCon (Tucker)", gather) };

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    if !parts.has_part("lora_mid") {
        return Ok(None);
    }
    let mut named = Named::take(parts, &["lora_mid", LYCORIS_NAME, "scalar"]);
    named.put("lora_down", parts.take(&Role::Down));
    named.put("lora_up", parts.take(&Role::Up));
    let rank = named.need("lora_down")?.info.shape.rows_cols().0;
    check_rank(&named, context, rank)?;
    let scale = parts.scale(context, rank)? * named.scalar()?;
    let (up, down) = (named.factor("lora_up")?, down(&named)?);
    named.agree(("lora_up", up.shape().1), ("lora_mid", down.shape().0))?;
    let (tensors, shape) = (named.tensors(), (up.shape().0 as u64, down.shape().1 as u64));
    let has_magnitudes = named.get(LYCORIS_NAME).is_some();
    let own = named.clone();
    let term = move || Ok(Term { up: own.factor("lora_up")?, down: self::down(&own)?.folded()?, scale });
    let method = if has_magnitudes {
        let make = move |target: &Target| {
            let inner = Arc::new(LowRankDelta::new(vec![term()?]));
            let delta = decomposed(inner, named.get(LYCORIS_NAME), target)?;
            Ok(vec![ParameterChange { parameter: "weight", delta }])
        };
        General::changing(&KIND, tensors, make).shaped(shape.0, shape.1)
    } else {
        General::product(&KIND, tensors, shape, term)
    };
    Ok(Some(Arc::new(method.ranked(rank, Some(scale)))))
}

fn down(named: &Named) -> Result<Down> {
    Down::new(named.factor("lora_down")?, named.get("lora_mid"))
}
