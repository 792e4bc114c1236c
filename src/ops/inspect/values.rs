//! What only the values of an adapter tell, read once: zeros, what is not finite, fused modules made of parts.

use serde::Serialize;

use super::InspectOptions;
use super::pairs::Pair;
use crate::adapters::{Adapter, Factor};
use crate::error::Result;
use crate::output::Run;
use crate::plan::map_within;
use crate::tensor::{all_zero, first_not_finite};

/// Parts that fused attention weights have: q, k, v, and the MLP's rows beside them.
const PARTS: [usize; 2] = [3, 4];

/// Words of the modules that are fused.
const FUSED: [&str; 2] = ["qkv", "linear1"];

/// What was found; names of tensors in file order.
#[derive(Debug, Default, Serialize)]
pub struct ValueFacts {
    /// Tensors of zeros only.
    pub zero: Vec<String>,
    /// Tensors with values that are not finite.
    pub not_finite: Vec<String>,
    /// Fused modules whose up projection has one part's rows for each part of the rank.
    pub block_sparse: Vec<String>,
}

/// Reads all values of `adapter`.
///
/// # Errors
/// When the file is no longer there as it was opened, or the run is stopped.
pub fn values(adapter: &Adapter, pairs: &[Pair<'_>], options: &InspectOptions, run: &Run<'_>) -> Result<ValueFacts> {
    let mut found = ValueFacts::default();
    let infos: Vec<_> = adapter.tensors.tensors().filter(|info| info.bytes > 0).collect();
    let held = vec![0; infos.len()];
    let states = map_within(&held, &options.budget, run.cancel, |at| {
        let Some(stored) = adapter.tensors.find(&infos[at].name) else { return Ok((false, false)) };
        let view = stored.view()?;
        let Some(float) = view.float() else { return Ok((false, false)) };
        let zero = all_zero(float, view.data);
        let odd = !zero && first_not_finite(float, view.data).is_some();
        stored.map.release(stored.start, stored.info.bytes);
        Ok((zero, odd))
    })?;
    for (info, (zero, odd)) in infos.iter().zip(states) {
        if zero {
            found.zero.push(info.name.clone());
        }
        if odd {
            found.not_finite.push(info.name.clone());
        }
    }
    for pair in pairs.iter().filter(|pair| FUSED.iter().any(|word| pair.path.contains(word))) {
        if is_block_sparse(pair)? {
            found.block_sparse.push(pair.path.clone());
        }
    }
    Ok(found)
}

/// Whether the columns of B fall into equal runs, each with rows of its own.
fn is_block_sparse(pair: &Pair<'_>) -> Result<bool> {
    let Ok(up) = Factor::new(&pair.lora.up) else { return Ok(false) };
    let (rows, rank) = up.shape();
    let values = up.to_vec()?;
    for parts in PARTS.into_iter().filter(|parts| rank > 0 && rank.is_multiple_of(*parts)) {
        let width = rank / parts;
        let mut ends = Vec::with_capacity(parts);
        for part in 0..parts {
            let used = |row: &usize| values[row * rank + part * width..][..width].iter().any(|value| *value != 0.0);
            let first = (0..rows).find(used);
            let last = (0..rows).rev().find(used);
            ends.extend(first.zip(last));
        }
        if ends.len() == parts && ends.windows(2).all(|pair| pair[0].1 < pair[1].0) {
            return Ok(true);
        }
    }
    Ok(false)
}
