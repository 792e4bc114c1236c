//! A LoRA pair whose rows lie in other modules than its own: B is cut, or filled with zeros to the rows of a fused weight; A stays.
//! Rows of B·A are products of rows of B, so both are exact.

use std::collections::BTreeMap;

use crate::adapters::{Lora, describe};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::arch::Spot;
use crate::placement::Placeable;
use crate::tensor::{Shape, TensorInfo, usize_of};

/// The pairs that `lora` is at `spots`, by module.
///
/// # Errors
/// When it cannot be cut.
pub fn cut(lora: &Lora, spots: &[Spot]) -> Result<Vec<(String, Lora)>> {
    if lora.magnitude.is_some() || lora.embedding || lora.up.info.shape.as_slice().len() > 2 {
        let what = format!(
            "tensor `{}` is one weight here and several, or a part of one, in another adapter (`{}`): only plain LoRA of matrices \
             is cut",
            lora.up.info.name, spots[0].module
        );
        return Err(Error::unsupported(lora.up.path(), what).hint("`merge` takes both"));
    }
    let mut modules: BTreeMap<&str, Vec<&Spot>> = BTreeMap::new();
    spots.iter().for_each(|spot| modules.entry(&spot.module).or_default().push(spot));
    let pair = |(module, spots): (&str, Vec<&Spot>)| {
        let up = rows_at(&lora.up, &spots)?;
        let bias = lora.bias.as_ref().map(|bias| rows_at(bias, &spots)).transpose()?;
        Ok((
            module.to_owned(),
            Lora { down: lora.down.clone(), up, bias, magnitude: None, embedding: false, stack: None },
        ))
    };
    modules.into_iter().map(pair).collect()
}

/// The refusal of a change that cannot be cut.
pub fn not_cut(job: &Placeable<'_>, spots: &[Spot]) -> Error {
    let what = format!(
        "`{}` is one weight here and several, or a part of one, in another adapter (`{}`): only plain LoRA is cut",
        job.module.path, spots[0].module
    );
    Error::unsupported(&job.applied.adapter.root, what).hint("`merge` takes both")
}

/// Rows of `stored` at the places of `spots`, which are of one module; zeros elsewhere.
fn rows_at(stored: &Stored, spots: &[&Spot]) -> Result<Stored> {
    let shape = stored.info.shape.as_slice();
    let outputs = shape.first().copied().unwrap_or(0);
    let total =
        spots.iter().map(|spot| spot.of.unwrap_or(spot.at + spot.take.end - spot.take.start)).max().unwrap_or(0);
    let row = stored.info.bytes.checked_div(outputs).unwrap_or(0);
    let within = |spot: &&&Spot| spot.take.end <= outputs && spot.at + (spot.take.end - spot.take.start) <= total;
    let bytes = total.checked_mul(row).and_then(|bytes| usize::try_from(bytes).ok());
    let (Some(bytes), true) = (bytes, row * outputs == stored.info.bytes && spots.iter().all(|spot| within(&spot)))
    else {
        let problem = format!("its rows do not fit `{}` of {total} rows", spots[0].module);
        return Err(Error::malformed(stored.path(), describe(stored), problem));
    };
    let shape = Shape::from([total].iter().chain(shape.get(1..).unwrap_or_default()).copied().collect::<Vec<u64>>());
    let info = TensorInfo { shape, bytes: total * row, ..stored.info.clone() };
    if let [spot] = spots
        && spot.at == 0
        && spot.take.end - spot.take.start == total
    {
        return Ok(Stored { map: stored.map.clone(), info, start: stored.start + spot.take.start * row });
    }
    let data = stored.view()?.data;
    let mut held = vec![0; bytes];
    for spot in spots {
        let (from, to) = (usize_of(spot.take.start * row), usize_of(spot.at * row));
        let count = usize_of((spot.take.end - spot.take.start) * row);
        held[to..to + count].copy_from_slice(&data[from..from + count]);
    }
    Ok(Stored::held(&stored.map, info, held))
}
