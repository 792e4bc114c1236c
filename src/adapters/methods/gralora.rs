//! GraLoRA (Jung et al. 2025): the weight is cut into k × k blocks, each with a pair of its own. With q = r/k the block of
//! outputs j and inputs n is ΔW[o, i] = s · Σₜ A[n, i, jq+t] · B[j, nq+t, o], s = α / (r + r_h); the hybrid form adds s · B_h · A_h.
//!
//! As one product: the k·r rows (j, n, t) of A lie in input block n, the columns of B in output block j.
//! Follows PEFT `tuners/gralora/layer.py`.

use std::sync::Arc;

use super::form::{General, sizes, values};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;

/// GraLoRA.
pub static KIND: Kind = Kind::of_peft("GraLoRA", &["GRALORA"], &["gralora"], gather);

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(a) = parts.take_part("gralora_A") else { return Ok(None) };
    let b = parts.require_part("gralora_B", &a)?;
    let ([k, high, rank], [k_b, rank_b, wide]) = (sizes::<3>(&a)?, sizes::<3>(&b)?);
    agree(&b, "the number of blocks", k_b, k)?;
    agree(&b, "the rank", rank_b, rank)?;
    if rank % k != 0 {
        return Err(wrong(&a, format!("has rank {rank}, which {k} blocks do not divide")));
    }
    let (outputs, inputs) = (k * wide, k * high);
    let mut tensors = vec![("gralora_A", a.clone()), ("gralora_B", b.clone())];
    let general = match parts.take_part("gralora_A_general") {
        None => None,
        Some(down) => {
            let up = parts.require_part("gralora_B_general", &down)?;
            let ((hybrid, cols), (rows, columns)) = (down.rows_cols(), up.rows_cols());
            agree(&down, "the number of inputs", cols, inputs)?;
            agree(&up, "the number of outputs", rows, outputs)?;
            agree(&up, "the rank", columns, hybrid)?;
            tensors.push(("gralora_A_general", down.clone()));
            tensors.push(("gralora_B_general", up.clone()));
            Some((down, up, hybrid))
        }
    };
    let hybrid = general.as_ref().map_or(0, |(_, _, hybrid)| *hybrid);
    // PEFT's rank setting counts the blocks' rank alone.
    let scale = context.config.fields().required("alpha")? / (rank + hybrid) as f64;
    let total = k * rank + hybrid;
    let make = move || {
        let (source_a, source_b, q) = (values(&a)?, values(&b)?, rank / k);
        let (mut down, mut up) = (vec![0.0; total * inputs], vec![0.0; outputs * total]);
        for j in 0..k {
            for n in 0..k {
                for t in 0..q {
                    let row = (j * k + n) * q + t;
                    for i in 0..high {
                        down[row * inputs + n * high + i] = source_a[(n * high + i) * rank + j * q + t];
                    }
                    for o in 0..wide {
                        up[(j * wide + o) * total + row] = source_b[(j * rank + n * q + t) * wide + o];
                    }
                }
            }
        }
        if let Some((general_down, general_up, hybrid)) = &general {
            down[k * rank * inputs..].copy_from_slice(&values(general_down)?);
            for (line, from) in up.chunks_exact_mut(total).zip(values(general_up)?.chunks_exact(*hybrid)) {
                line[k * rank..].copy_from_slice(from);
            }
        }
        Ok(Term { up: Factor::held(up, total), down: Factor::held(down, inputs), scale })
    };
    let method = General::product(&KIND, tensors, (outputs as u64, inputs as u64), make);
    Ok(Some(Arc::new(method.ranked(total as u64, Some(scale)))))
}
