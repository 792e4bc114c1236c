//! AdaLoRA (Zhang et al. 2023): ΔW = B · diag(E) · A · s / (n + 10⁻⁵), with s = α where that is positive, else r, and n the
//! number of ranks the allocator kept (`ranknum`), or where the file no longer says it the initial rank.
//!
//! Follows PEFT `tuners/adalora/layer.py`.

use std::sync::Arc;

use super::form::{General, values};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts, agree, number, wrong};
use crate::error::Result;
use crate::naming::Role;

/// AdaLoRA.
pub static KIND: Kind =
    Kind { segments: &["lora_E", "ranknum"], drops_ranks: true, ..Kind::of_peft("AdaLoRA", &["ADALORA"], &[], gather) };

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(e) = parts.take_part("lora_E") else { return Ok(None) };
    let fields = context.config.fields();
    let missing = |which: &str| wrong(&e, format!("belongs to a module whose {which} is not in the file"));
    let a = parts.take(&Role::Down).ok_or_else(|| missing("`lora_A`"))?;
    let b = parts.take(&Role::Up).ok_or_else(|| missing("`lora_B`"))?;
    let (rank, inputs) = a.rows_cols();
    let (outputs, columns) = b.rows_cols();
    agree(&b, "the rank", columns, rank)?;
    agree(&e, "the rank", e.elements(), rank)?;
    let stored = parts.take_part("ranknum");
    if rank == 0 {
        // The allocator left it none: the module is as it was.
        return Ok(None);
    }
    let kept = match &stored {
        Some(stored) => number(stored)?,
        None => fields.number("init_r")?.unwrap_or(12.0),
    };
    let alpha = fields.number("lora_alpha")?.filter(|alpha| *alpha > 0.0);
    let scale = alpha.unwrap_or(rank as f64) / (kept + 1e-5);
    let mut tensors = vec![("lora_A", a.clone()), ("lora_B", b.clone()), ("lora_E", e.clone())];
    tensors.extend(stored.map(|stored| ("ranknum", stored)));
    let make = move || {
        let (mut down, factors) = (values(&a)?, values(&e)?);
        for (line, factor) in down.chunks_exact_mut(inputs.max(1)).zip(factors) {
            line.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(Term { up: Factor::new(&b)?, down: Factor::held(down, inputs), scale })
    };
    let method = General::product(&KIND, tensors, (outputs as u64, inputs as u64), make);
    Ok(Some(Arc::new(method.ranked(rank as u64, Some(scale)))))
}
