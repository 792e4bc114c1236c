//! LoCon in Tucker form (LyCORIS 4.1 `modules/locon.py`, `use_tucker`): ΔW[o, i, x] = s · Σₘₙ mid[m, n, x] · up[o, m] · down[n, i],
//! s = α/r. Without `lora_mid` a convolution's pair is a LoRA like any other.

use std::sync::Arc;

use super::named::{Named, check_rank};
use super::tucker::Down;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::{LowRankDelta, Term};
use crate::adapters::magnitudes::{LYCORIS_NAME, decomposed};
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts};
use crate::error::Result;
use crate::formats::Stored;
use crate::naming::Role;

/// LoCon in Tucker form.
pub static KIND: Kind = Kind { tells_kernel: true, ..Kind::new("LoCon (Tucker)", gather) };

/// The tensors of one module.
#[derive(Debug)]
struct Tucker {
    named: Named,
    scale: f64,
}

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
    let method = Tucker { named, scale };
    method.down()?;
    Ok(Some(Arc::new(method)))
}

impl Tucker {
    fn down(&self) -> Result<Down> {
        let down = Down::new(self.named.factor("lora_down")?, self.named.get("lora_mid"))?;
        self.named.agree(("lora_up", self.named.factor("lora_up")?.shape().1), ("lora_mid", down.shape().0))?;
        Ok(down)
    }

    fn term(&self) -> Result<Term> {
        Ok(Term { up: self.named.factor("lora_up")?, down: self.down()?.folded()?, scale: self.scale })
    }
}

impl Method for Tucker {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.named.list()
    }

    fn shape(&self) -> Option<(u64, u64)> {
        Some((self.named.factor("lora_up").ok()?.shape().0 as u64, self.down().ok()?.shape().1 as u64))
    }

    fn rank(&self) -> Option<u64> {
        Some(self.named.get("lora_down")?.info.shape.rows_cols().0)
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn changes(&self, target: &Target) -> Result<Vec<ParameterChange>> {
        let inner = Arc::new(LowRankDelta::new(vec![self.term()?]));
        let delta = decomposed(inner, self.named.get(LYCORIS_NAME), target)?;
        Ok(vec![ParameterChange { parameter: "weight", delta }])
    }

    fn low_rank(&self, _target: Option<&Target>) -> Result<Option<Term>> {
        if self.named.get(LYCORIS_NAME).is_some() { Ok(None) } else { self.term().map(Some) }
    }
}
