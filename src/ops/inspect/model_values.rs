//! What only the values of a model tell, read once: numbers that are not finite, matrices of zeros, matrices that are there twice.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{InspectOptions, counted, named};
use crate::error::Result;
use crate::formats::{Checkpoint, Stored};
use crate::output::Run;
use crate::plan::map_within;
use crate::tensor::{Packing, all_zero, first_not_finite};

/// Values of a quantised tensor that are decoded at once.
const PIECE: usize = 1 << 16;

/// Least bytes of a tensor that is compared with others: small ones are alike by nature.
const COMPARED: u64 = 256;

/// What was found; names of tensors in file order.
#[derive(Debug, Default, Serialize)]
pub struct ModelValues {
    /// Tensors that were read.
    pub read: usize,
    /// Tensors whose codes are not decoded here, and that were only compared.
    pub not_decoded: usize,
    /// Matrices of zeros only.
    pub zero: Vec<String>,
    /// Tensors with NaN.
    pub nan: Vec<String>,
    /// Tensors with infinite values.
    pub infinite: Vec<String>,
    /// Matrices that hold the same bytes.
    pub duplicates: Vec<Vec<String>>,
}

/// What one tensor shows.
#[derive(Default)]
struct Seen {
    zero: bool,
    nan: bool,
    infinite: bool,
    decoded: bool,
    hash: Option<[u8; 32]>,
}

/// Reads all values of `checkpoint`.
///
/// # Errors
/// When a file is no longer there as it was opened, or the run is stopped.
pub fn values(checkpoint: &Checkpoint, options: &InspectOptions, run: &Run<'_>) -> Result<ModelValues> {
    let stored: Vec<Stored> = checkpoint.all().filter(|stored| stored.info.bytes > 0).collect();
    let held = vec![PIECE as u64 * 4; stored.len()];
    let seen = map_within(&held, &options.budget, run.cancel, |at| {
        let seen = look(&stored[at])?;
        stored[at].map.release(stored[at].start, stored[at].info.bytes);
        Ok(seen)
    })?;
    let mut found = ModelValues { read: stored.len(), ..ModelValues::default() };
    let mut alike: BTreeMap<[u8; 32], Vec<String>> = BTreeMap::new();
    for (stored, seen) in stored.iter().zip(seen) {
        let name = || stored.info.name.clone();
        let matrix = stored.info.shape.as_slice().len() > 1;
        found.not_decoded += usize::from(!seen.decoded);
        found.zero.extend((seen.zero && matrix).then(name));
        found.nan.extend(seen.nan.then(name));
        found.infinite.extend(seen.infinite.then(name));
        if let Some(hash) = seen.hash.filter(|_| !seen.zero) {
            alike.entry(hash).or_default().push(name());
        }
    }
    found.duplicates = alike.into_values().filter(|names| names.len() > 1).collect();
    found.duplicates.sort();
    Ok(found)
}

fn look(stored: &Stored) -> Result<Seen> {
    let view = stored.view()?;
    let mut seen = Seen::default();
    if stored.info.shape.as_slice().len() > 1 && stored.info.bytes >= COMPARED {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {}", stored.info.dtype, stored.info.shape).as_bytes()).update(view.data);
        seen.hash = Some(*hasher.finalize().as_bytes());
    }
    let odd = |seen: &mut Seen, values: &[f32]| {
        seen.nan |= values.iter().any(|value| value.is_nan());
        seen.infinite |= values.iter().any(|value| value.is_infinite());
    };
    if let Some(float) = view.float() {
        seen.decoded = true;
        seen.zero = all_zero(float, view.data);
        if !seen.zero && first_not_finite(float, view.data).is_some() {
            let packing = Packing::Float(float);
            pieces(packing, view.data, |values| odd(&mut seen, values));
        }
        return Ok(seen);
    }
    if let Some(packing) = Packing::of(&stored.info.dtype) {
        seen.decoded = true;
        let mut any = false;
        pieces(packing, view.data, |values| {
            any |= values.iter().any(|value| *value != 0.0);
            odd(&mut seen, values);
        });
        seen.zero = !any;
    }
    Ok(seen)
}

/// The values of whole blocks, piece by piece.
fn pieces(packing: Packing, data: &[u8], mut take: impl FnMut(&[f32])) {
    let count = PIECE / packing.block() * packing.block();
    let mut values = vec![0.0; count];
    for piece in data.chunks(packing.bytes_of(count)) {
        let count = packing.values_in(piece.len());
        packing.decode(piece, &mut values[..count]);
        take(&values[..count]);
    }
}

impl ModelValues {
    /// What of it is wrong.
    pub fn problems(&self) -> Vec<String> {
        let list = |names: &[String], what: &str| {
            let some = !names.is_empty();
            some.then(|| {
                format!("{} {what}: {}", counted(names.len(), "tensor"), named(names.iter().map(String::as_str)))
            })
        };
        let mut problems: Vec<String> = list(&self.nan, "with NaN").into_iter().collect();
        problems.extend(list(&self.infinite, "with infinite values"));
        problems.extend(list(&self.zero, "of zeros only"));
        const SHOWN: usize = 8;
        let same = self.duplicates.iter().take(SHOWN);
        problems.extend(same.map(|names| {
            format!(
                "{} hold the same values: {}",
                counted(names.len(), "tensor"),
                named(names.iter().map(String::as_str))
            )
        }));
        if self.duplicates.len() > SHOWN {
            problems.push(format!("{} more groups of tensors hold the same values", self.duplicates.len() - SHOWN));
        }
        problems
    }
}
