//! VB-LoRA (Li et al. 2024): ΔW = B · A, both made of sub-vectors of length v, each a mixture of the K vectors of a shared bank
//! with the largest logits, weighted by their softmax.
//!
//! A's row k is the concatenation of its sub-vectors; sub-vector (j, k) of B holds rows jv … jv+v−1 of column k. A file may hold
//! indices and the first K − 1 weights instead of logits. Follows PEFT `tuners/vblora/layer.py`.

use std::sync::Arc;

use super::form::{General, sizes, values};
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::low_rank::Term;
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::{Error, Result};
use crate::formats::Stored;

/// VB-LoRA.
pub static KIND: Kind = Kind::of_peft("VB-LoRA", &["VBLORA"], &["vblora"], gather);

/// How the vectors of one factor are chosen.
enum Choice {
    Logits(Stored, usize),
    Chosen { indices: Stored, weights: Stored },
}

const NAMES: [[&str; 3]; 2] = [
    ["vblora_logits_A", "vblora_logits_A_topk_indices", "vblora_logits_A_topk_weights"],
    ["vblora_logits_B", "vblora_logits_B_topk_indices", "vblora_logits_B_topk_weights"],
];

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let top = context.config.fields().number("topk")?.unwrap_or(2.0) as usize;
    let mut tensors = Vec::new();
    let mut take = |[logits, indices, weights]: [&'static str; 3]| -> Result<Option<([usize; 2], Choice)>> {
        if let Some(stored) = parts.take_part(logits) {
            let [first, second, _] = sizes::<3>(&stored)?;
            tensors.push((logits, stored.clone()));
            return Ok(Some(([first, second], Choice::Logits(stored, top))));
        }
        let Some(chosen) = parts.take_part(indices) else { return Ok(None) };
        let mixed = parts.require_part(weights, &chosen)?;
        let ([first, second, count], shape) = (sizes::<3>(&chosen)?, sizes::<3>(&mixed)?);
        agree(&mixed, "the number of weights", shape[2] + 1, count)?;
        agree(&mixed, "the number of sub-vectors", shape[0] * shape[1], first * second)?;
        tensors.push((indices, chosen.clone()));
        tensors.push((weights, mixed.clone()));
        Ok(Some(([first, second], Choice::Chosen { indices: chosen, weights: mixed })))
    };
    let Some(([rank, across], of_a)) = take(NAMES[0])? else { return Ok(None) };
    let of_b = take(NAMES[1])?;
    let beside = tensors[0].1.clone();
    let missing = |what: &str| wrong(&beside, format!("needs `{what}`, which is not in the file"));
    let ([down_blocks, rank_b], of_b) = of_b.ok_or_else(|| missing("vblora_logits_B"))?;
    agree(&beside, "the rank", rank, rank_b)?;
    let bank = context.shared.get("vblora_vector_bank").cloned().ok_or_else(|| missing("vblora_vector_bank"))?;
    let length = bank.rows_cols().1;
    tensors.push(("vblora_vector_bank", bank.clone()));
    let (outputs, inputs) = (down_blocks * length, across * length);
    let make = move || {
        let vectors = values(&bank)?;
        let down = mix(&of_a, &vectors, length)?;
        let mixed = mix(&of_b, &vectors, length)?;
        let mut up = vec![0.0; outputs * rank];
        for (at, vector) in mixed.chunks_exact(length).enumerate() {
            let (block, k) = (at / rank, at % rank);
            vector.iter().enumerate().for_each(|(row, value)| up[(block * length + row) * rank + k] = *value);
        }
        Ok(Term { up: Factor::held(up, rank), down: Factor::held(down, inputs), scale: 1.0 })
    };
    let method = General::product(&KIND, tensors, (outputs as u64, inputs as u64), make);
    Ok(Some(Arc::new(method.ranked(rank as u64, Some(1.0)))))
}

/// All sub-vectors of a factor, one after the other.
fn mix(choice: &Choice, bank: &[f32], length: usize) -> Result<Vec<f32>> {
    let count = bank.len() / length.max(1);
    let mut out = Vec::new();
    let mut add = |chosen: &[(usize, f64)]| {
        for at in 0..length {
            let sum = chosen.iter().map(|(vector, weight)| weight * f64::from(bank[vector * length + at])).sum::<f64>();
            out.push(sum as f32);
        }
    };
    match choice {
        Choice::Logits(stored, top) => {
            agree(stored, "the number of vectors", sizes::<3>(stored)?[2], count)?;
            for logits in values(stored)?.chunks_exact(count) {
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by(|l, r| logits[*r].total_cmp(&logits[*l]));
                order.truncate((*top).max(1));
                let largest = f64::from(logits[order[0]]);
                let weight = |at: &usize| (f64::from(logits[*at]) - largest).exp();
                let total: f64 = order.iter().map(weight).sum();
                add(&order.iter().map(|at| (*at, weight(at) / total)).collect::<Vec<_>>());
            }
        }
        Choice::Chosen { indices, weights } => {
            let (chosen, mixed) = (super::shira::whole_numbers(indices)?, values(weights)?);
            let top = sizes::<3>(indices)?[2];
            if let Some(index) = chosen.iter().find(|index| **index >= count as u64) {
                let problem = format!("names vector {index} of a bank of {count}");
                return Err(Error::malformed(indices.path(), format!("tensor `{}`", indices.info.name), problem));
            }
            for (at, chosen) in chosen.chunks_exact(top).enumerate() {
                let known = &mixed[at * (top - 1)..(at + 1) * (top - 1)];
                let last = 1.0 - known.iter().map(|weight| f64::from(*weight)).sum::<f64>();
                let all = known.iter().map(|weight| f64::from(*weight)).chain([last]);
                add(&chosen.iter().map(|index| *index as usize).zip(all).collect::<Vec<_>>());
            }
        }
    }
    Ok(out)
}
