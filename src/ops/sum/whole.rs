//! Tensors that adapters hold whole: W + Σ wᵢ·(Tᵢ − W).
//!
//! Without W that is known only where it comes to a tensor some adapter holds: the only one has weight 1, or all hold the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::adapters::{BaseRows, Factor, describe};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::base::Base;
use crate::model::same_tensors;
use crate::model::weight::Weight;
use crate::pairs::range::beyond;
use crate::pairs::{Bytes, NewWhole};
use crate::placement::terms::{Held, Rows, Standing, Terms};
use crate::plan::Compute;
use crate::tensor::{Float, Shape};

/// Parameter under which PEFT keeps token rows beside their embedding.
const TOKEN_ROWS: &str = "token_adapter.trainable_tokens_delta";

/// Whole tensors of the result, and what is to be said about them.
#[derive(Default)]
pub struct Combined {
    /// The tensors.
    pub tensors: Vec<NewWhole>,
    /// `trainable_token_indices` of the config, if there are any.
    pub token_indices: Option<Value>,
    /// Notes.
    pub notes: Vec<String>,
}

/// Combines what `terms` hold whole, with the model they were trained on where it is at hand.
///
/// # Errors
/// When the result would depend on a model that is not at hand, or shapes do not fit.
pub fn combine(terms: &Terms, base: Option<&Base>, dtype: Option<Float>) -> Result<Combined> {
    let mut combined = Combined::default();
    let mut copies = 0;
    for ((module, parameter), held) in &terms.whole {
        let name = format!("{module}.{parameter}");
        let Some(bytes) = one(&name, held, base, dtype, &mut combined.notes)? else {
            copies += 1;
            continue;
        };
        let frozen_bias = held.iter().all(|held| held.standing != Standing::Saved);
        let shape = held[0].tensor.info.shape.clone();
        combined.tensors.push(NewWhole {
            module: module.clone(),
            parameter: parameter.clone(),
            shape,
            bytes,
            frozen_bias,
        });
    }
    if copies > 0 {
        combined.notes.push(format!("{copies} tensors that equal the base's are left out"));
    }
    token_rows(terms, base, dtype, &mut combined)?;
    Ok(combined)
}

/// One tensor; `None` if it is the base's own.
fn one(
    name: &str,
    held: &[Held],
    base: Option<&Base>,
    dtype: Option<Float>,
    notes: &mut Vec<String>,
) -> Result<Option<Bytes>> {
    let first = &held[0].tensor;
    if let Some(other) = held.iter().find(|other| other.tensor.info.shape != first.info.shape) {
        let problem = "both hold it whole, in different shapes";
        return Err(Error::mismatch(describe(&other.tensor), describe(first), problem));
    }
    let parts: Vec<(f64, &Stored)> = held.iter().map(|held| (held.weight, &held.tensor)).collect();
    let same = all_equal(&parts)?;
    let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
    let frozen = held.iter().all(|held| held.standing == Standing::Frozen);
    if same && (total == 1.0 || frozen) {
        return Ok(Some(Bytes::Stored(first.clone())));
    }
    let Some(base) = base else {
        if same && parts.len() > 1 {
            notes.push(format!(
                "`{name}` is the same in {} adapters and kept as it is: with weights that add up to {total} it would move further \
                 from the base if it was trained; `--base PATH` computes that",
                parts.len()
            ));
            return Ok(Some(Bytes::Stored(first.clone())));
        }
        return Err(unknown(name, &parts));
    };
    let Some(found) = base.own_name(name) else {
        let model = base.checkpoint.root().display().to_string();
        return Err(Error::mismatch(describe(first), model, format!("the base has no tensor `{name}`")));
    };
    let info = base.checkpoint.info(&found).expect("it was just found");
    if info.shape.rows_cols() != first.info.shape.rows_cols() {
        let problem = "the base holds it in another shape";
        return Err(Error::mismatch(describe(first), describe(&base.stored(&found)), problem));
    }
    if held.iter().all(|held| held.tensor.info.dtype == info.dtype)
        && same_tensors(first, &base.stored(&found))?
        && same
    {
        return Ok(None);
    }
    let weight = base.weight(&found, None)?;
    let float = dtype.unwrap_or(common(&parts));
    let count = (weight.rows * weight.cols * float.bytes()) as u64;
    let parts = parts.iter().map(|(times, tensor)| Ok((*times, Factor::new(tensor)?))).collect::<Result<_>>()?;
    Ok(Some(Bytes::Computed { compute: Arc::new(Blend { of: first.clone(), weight, parts, float }), float, count }))
}

fn unknown(name: &str, parts: &[(f64, &Stored)]) -> Error {
    let (weight, tensor) = parts[0];
    let what = match parts.len() {
        1 => format!(
            "tensor `{}` is held whole, and has weight {weight}: W + {weight}·(T − W) depends on W",
            tensor.info.name
        ),
        count => format!("`{name}` is held whole by {count} adapters, differently: W + Σ wᵢ·(Tᵢ − W) depends on W"),
    };
    Error::unsupported(tensor.path(), what)
        .hint("`--base PATH` with the model the adapters were trained on computes it")
}

fn token_rows(terms: &Terms, base: Option<&Base>, dtype: Option<Float>, combined: &mut Combined) -> Result<()> {
    let mut indices: Map<String, Value> = Map::new();
    let mut listed = None;
    for (module, rows) in &terms.rows {
        let (ids, shape, bytes) = rows_of(module, rows, base, dtype)?;
        let suffix = &rows[0].suffix;
        let input_embedding = suffix.is_empty() && terms.rows.len() == 1;
        if input_embedding {
            listed = Some(json!(ids));
        }
        indices.insert(if suffix.is_empty() { module.clone() } else { suffix.clone() }, json!(ids));
        let (module, parameter) = (module.clone(), TOKEN_ROWS.to_owned());
        combined.tensors.push(NewWhole { module, parameter, shape, bytes, frozen_bias: false });
    }
    if !indices.is_empty() {
        combined.token_indices = listed.or(Some(Value::Object(indices)));
    }
    Ok(())
}

/// Tokens and rows of one embedding.
fn rows_of(
    module: &str,
    rows: &[Rows],
    base: Option<&Base>,
    dtype: Option<Float>,
) -> Result<(Vec<usize>, Shape, Bytes)> {
    let first = &rows[0].held.tensor;
    let parts: Vec<(f64, &Stored)> = rows.iter().map(|rows| (rows.held.weight, &rows.held.tensor)).collect();
    let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
    if total == 1.0 && rows.iter().all(|other| other.ids == rows[0].ids) && all_equal(&parts)? {
        return Ok((rows[0].ids.clone(), first.info.shape.clone(), Bytes::Stored(first.clone())));
    }
    let name = format!("{module}.weight");
    let found = base.and_then(|base| Some((base, base.own_name(&name)?)));
    let Some((base, found)) = found else { return Err(unknown(&name, &parts)) };
    let weight = base.weight(&found, None)?;
    let mut sums: BTreeMap<usize, (Vec<f32>, Vec<f64>)> = BTreeMap::new();
    for rows in rows {
        let factor = Factor::new(&rows.held.tensor)?;
        let values = factor.to_vec()?;
        let width = factor.shape().1;
        for (id, row) in rows.ids.iter().zip(values.chunks_exact(width.max(1))) {
            if *id >= weight.rows || width != weight.cols {
                let problem =
                    format!("token {id} with {width} numbers, the base has {} of {}", weight.rows, weight.cols);
                return Err(Error::mismatch(describe(&rows.held.tensor), describe(&weight.tensor), problem));
            }
            if !sums.contains_key(id) {
                let mut own = vec![0.0; width];
                weight.read(*id..*id + 1, 0..width, &mut own)?;
                sums.insert(*id, (own, vec![0.0; width]));
            }
            let (own, sum) = sums.get_mut(id).expect("it was just put there");
            let moved = row.iter().zip(own.iter()).map(|(row, own)| f64::from(*row) - f64::from(*own));
            sum.iter_mut().zip(moved).for_each(|(sum, moved)| *sum += rows.held.weight * moved);
        }
    }
    let ids: Vec<usize> = sums.keys().copied().collect();
    let values: Vec<f32> = sums
        .values()
        .flat_map(|(own, sum)| own.iter().zip(sum).map(|(own, sum)| (f64::from(*own) + sum) as f32))
        .collect();
    let shape = Shape::from([ids.len() as u64, weight.cols as u64]);
    let bytes = Bytes::held(&values, dtype.unwrap_or(common(&parts)), (first.path(), &first.info.name))?;
    Ok((ids, shape, bytes))
}

/// W + Σ wᵢ·(Tᵢ − W), in f64, rounded once.
struct Blend {
    of: Stored,
    weight: Weight,
    parts: Vec<(f64, Factor)>,
    float: Float,
}

impl Compute for Blend {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let cols = 0..self.weight.cols;
        let mut own = vec![0.0; rows.len() * cols.len()];
        self.weight.read(rows.clone(), cols.clone(), &mut own)?;
        let mut sum: Vec<f64> = own.iter().map(|value| f64::from(*value)).collect();
        let mut whole = vec![0.0; own.len()];
        for (times, factor) in &self.parts {
            factor.decode(rows.clone(), cols.clone(), &mut whole)?;
            let moved = whole.iter().zip(&own).map(|(whole, own)| f64::from(*whole) - f64::from(*own));
            sum.iter_mut().zip(moved).for_each(|(sum, moved)| *sum += times * moved);
        }
        let values: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
        let first = rows.start * self.weight.cols;
        self.float
            .encode_finite(&values, out)
            .map_err(|found| beyond(self.of.path(), &self.of.info.name, first, &found))
    }
}

fn common(parts: &[(f64, &Stored)]) -> Float {
    let first = parts[0].1.info.dtype.float();
    let same = parts.iter().all(|(_, tensor)| tensor.info.dtype.float() == first);
    first.filter(|_| same).unwrap_or(Float::F32)
}

fn all_equal(parts: &[(f64, &Stored)]) -> Result<bool> {
    for (_, other) in &parts[1..] {
        if !same_tensors(parts[0].1, other)? {
            return Ok(false);
        }
    }
    Ok(true)
}
