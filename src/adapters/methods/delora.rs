//! DeLoRA (Bini et al. 2025): ΔW = B · diag(λ / (r · max(‖Aᵢ‖, 10⁻⁴) · max(‖Bᵢ‖, 10⁻⁴))) · A · diag(w), Aᵢ rows of A, Bᵢ columns
//! of B, w the base's column norms as saved.
//!
//! Follows PEFT `tuners/delora/layer.py`; norms are summed in f64.

use std::sync::Arc;

use super::form::{General, values};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts, agree, number};
use crate::error::Result;

/// DeLoRA.
pub static KIND: Kind = Kind::of_peft("DeLoRA", &["DELORA"], &["delora"], gather);

/// Norms below this count as this.
const SMALLEST: f64 = 1e-4;

fn gather(parts: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(a) = parts.take_part("delora_A") else { return Ok(None) };
    let b = parts.require_part("delora_B", &a)?;
    let lambda = parts.require_part("delora_lambda", &a)?;
    let norms = parts.require_part("delora_w_norm", &a)?;
    let ((rank, inputs), (outputs, columns)) = (a.rows_cols(), b.rows_cols());
    agree(&b, "the rank", columns, rank)?;
    agree(&norms, "the number of inputs", norms.elements(), inputs)?;
    let strength = number(&lambda)?;
    let tensors = vec![
        ("delora_A", a.clone()),
        ("delora_B", b.clone()),
        ("delora_lambda", lambda),
        ("delora_w_norm", norms.clone()),
    ];
    let make = move || {
        let (mut down, up, weights) = (values(&a)?, values(&b)?, values(&norms)?);
        for (k, line) in down.chunks_exact_mut(inputs).enumerate() {
            let norm = |squares: f64| squares.sqrt().max(SMALLEST);
            let of_a = norm(line.iter().map(|v| f64::from(*v).powi(2)).sum());
            let of_b = norm(up.iter().skip(k).step_by(rank).map(|v| f64::from(*v).powi(2)).sum());
            let factor = strength / (rank as f64 * of_a * of_b);
            line.iter_mut().zip(&weights).for_each(|(v, w)| *v = (f64::from(*v) * factor * f64::from(*w)) as f32);
        }
        Ok(Term { up: Factor::held(up, rank), down: Factor::held(down, inputs), scale: 1.0 })
    };
    let method = General::product(&KIND, tensors, (outputs as u64, inputs as u64), make);
    Ok(Some(Arc::new(method.ranked(rank as u64, None))))
}
