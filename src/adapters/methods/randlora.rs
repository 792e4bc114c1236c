//! RandLoRA (Albert et al. 2025): ΔW = s · B_f · A_f, s = α/r, made of n = ⌈min/r⌉ random pairs of rank r that all modules share.
//! With m = min(in, out): A_f's row k·n + j is λ[k, j] · A[k] ∘ γ[j], B_f's column j·r + k is B[:, j, k]; the two are paired by
//! their place, not by (j, k). Where in > out the product is transposed.
//!
//! Follows PEFT `tuners/randlora/layer.py`.

use std::sync::Arc;

use super::form::{General, sizes, values};
use super::vera::shared;
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;
use crate::formats::Stored;

/// RandLoRA.
pub static KIND: Kind = Kind::of_peft("RandLoRA", &["RANDLORA"], &["randlora"], gather);

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(lambda) = parts.take_part("randlora_lambda") else { return Ok(None) };
    let gamma = parts.require_part("randlora_gamma", &lambda)?;
    // Each module's own copies, where the file has them, are the shared ones.
    let (own_a, own_b) = (parts.take_part("randlora_A"), parts.take_part("randlora_B"));
    let a = own_a.map_or_else(|| shared(context, &KIND, "randlora_A", &lambda), Ok)?;
    let b = own_b.map_or_else(|| shared(context, &KIND, "randlora_B", &lambda), Ok)?;
    let ([rank, pairs], [pairs_g, least]) = (sizes::<2>(&lambda)?, sizes::<2>(&gamma)?);
    let ([rank_a, one, widest], [tallest, all_pairs, rank_b]) = (sizes::<3>(&a)?, sizes::<3>(&b)?);
    agree(&gamma, "the number of pairs", pairs_g, pairs)?;
    agree(&a, "the rank", rank_a, rank)?;
    agree(&a, "the second dimension", one, 1)?;
    agree(&b, "the rank", rank_b, rank)?;
    if widest < least || all_pairs < pairs {
        return Err(wrong(&b, format!("has {all_pairs} pairs, `{}` asks for {pairs}", lambda.info.name)));
    }
    let scale = context.config.fields().required("randlora_alpha")? / rank as f64;
    // PEFT writes the projections once for all modules, and once more with each.
    let copies: Vec<(Stored, Stored)> = [("randlora_A", &a), ("randlora_B", &b)]
        .into_iter()
        .filter_map(|(name, own)| Some((context.shared.get(name)?.clone(), own.clone())))
        .filter(|(common, own)| common.info.name != own.info.name)
        .collect();
    let mut tensors = vec![
        ("randlora_lambda", lambda.clone()),
        ("randlora_gamma", gamma.clone()),
        ("randlora_A", a.clone()),
        ("randlora_B", b.clone()),
    ];
    tensors.extend(copies.iter().map(|(common, _)| ("randlora", common.clone())));
    let make = move |target: &Target| {
        for (common, own) in &copies {
            if common.view()?.data != own.view()?.data {
                return Err(wrong(own, format!("is not the same as `{}`", common.info.name)));
            }
        }
        let (outputs, inputs) = (target.outputs, target.inputs);
        agree(&gamma, "the smaller of inputs and outputs", least, outputs.min(inputs))?;
        let most = outputs.max(inputs);
        if tallest < most {
            return Err(wrong(&b, format!("has {tallest} rows, the layer needs {most}")));
        }
        let (lambda, gamma, a, b) = (lambda.clone(), gamma.clone(), a.clone(), b.clone());
        let term = move || {
            let (factors, masks, rows) = (values(&lambda)?, values(&gamma)?, values(&a)?);
            let total = rank * pairs;
            let mut down = vec![0.0; total * least];
            for (at, line) in down.chunks_exact_mut(least).enumerate() {
                let (k, j) = (at / pairs, at % pairs);
                for (i, value) in line.iter_mut().enumerate() {
                    *value = factors[at] * rows[k * widest + i] * masks[j * least + i];
                }
            }
            let up = Factor::new(&b)?.pick_rows(0, most, 1).pick_cols(0, total, 1);
            let term = Term { up, down: Factor::held(down, least), scale };
            Ok(if inputs > least || inputs > outputs { term.transposed() } else { term })
        };
        General::product(&KIND, Vec::new(), (outputs as u64, inputs as u64), term).changes(target)
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make).ranked(rank as u64, Some(scale)))))
}
