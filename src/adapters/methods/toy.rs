//! A method that only tests have, of what it takes to add one: this file and its line in [`super::KINDS`].
//!
//! ΔW = s · u · vᵀ, s = α/r with r = 1: `toy_u` `[out]`, `toy_v` `[in]`.

use std::sync::Arc;

use super::form::{General, sizes, values};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts};
use crate::error::Result;

/// The toy.
pub static KIND: Kind = Kind { alpha: Some("toy_alpha"), ..Kind::of_peft("Toy", &["TOY"], &["toy"], gather) };

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(u) = parts.take_part("toy_u") else { return Ok(None) };
    let v = parts.require_part("toy_v", &u)?;
    let ([outputs], [inputs]) = (sizes::<1>(&u)?, sizes::<1>(&v)?);
    let scale = parts.scale(context, 1)?;
    let tensors = vec![("toy_u", u.clone()), ("toy_v", v.clone())];
    let make = move || Ok(Term { up: Factor::held(values(&u)?, 1), down: Factor::held(values(&v)?, inputs), scale });
    let method = General::product(&KIND, tensors, (outputs as u64, inputs as u64), make);
    Ok(Some(Arc::new(method.ranked(1, Some(scale)))))
}
