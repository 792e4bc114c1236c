//! SHiRA (Bhardwaj et al. 2024): ΔW is sparse, `shira_weight[n]` at row and column `shira_indices[:, n]`.
//!
//! Follows PEFT `tuners/shira/layer.py`; indices that were saved as floating point numbers are read as well.

use std::ops::Range;
use std::sync::Arc;

use super::form::{Formed, Formula, General, sizes, values, weight};
use crate::adapters::kind::Kind;
use crate::adapters::method::Method;
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;
use crate::formats::Stored;
use crate::tensor::Dtype;

/// SHiRA.
pub static KIND: Kind = Kind::of_peft("SHiRA", &["SHIRA"], &["shira"], gather);

fn gather(parts: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(stored) = parts.take_part("shira_weight") else { return Ok(None) };
    let indices = parts.require_part("shira_indices", &stored)?;
    let [two, count] = sizes::<2>(&indices)?;
    agree(&indices, "the number of coordinates", two, 2)?;
    agree(&stored, "the number of values", stored.elements(), count)?;
    let tensors = vec![("shira_weight", stored.clone()), ("shira_indices", indices.clone())];
    let make = move |target: &crate::adapters::method::Target| {
        let (numbers, at) = (values(&stored)?, whole_numbers(&indices)?);
        let mut entries: Vec<(usize, usize, f32)> = Vec::with_capacity(count);
        for (n, value) in numbers.iter().enumerate() {
            let (row, col) = (at[n], at[count + n]);
            if row >= target.outputs as u64 || col >= target.inputs as u64 {
                let problem = format!(
                    "entry {n} lies at [{row}, {col}], outside the layer's [{}, {}]",
                    target.outputs, target.inputs
                );
                return Err(wrong(&indices, problem));
            }
            entries.push((row as usize, col as usize, *value));
        }
        entries.sort_by_key(|(row, col, _)| (*row, *col));
        Ok(vec![weight(Formed(Sparse { shape: (target.outputs, target.inputs), entries }))])
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make))))
}

struct Sparse {
    shape: (usize, usize),
    entries: Vec<(usize, usize, f32)>,
}

impl Formula for Sparse {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn rewrites(&self) -> bool {
        false
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, _: &[f32], out: &mut [f32]) -> Result<()> {
        let first = self.entries.partition_point(|(row, ..)| *row < rows.start);
        let inside = self.entries[first..].iter().take_while(|(row, ..)| *row < rows.end);
        for (row, col, value) in inside.filter(|(_, col, _)| cols.contains(col)) {
            out[(row - rows.start) * cols.len() + col - cols.start] += value;
        }
        Ok(())
    }
}

/// The tensor's values as indices.
///
/// # Errors
/// When one is negative or no whole number.
pub(super) fn whole_numbers(stored: &Stored) -> Result<Vec<u64>> {
    let data = || stored.view().map(|view| view.data);
    let negative = |value: i64| wrong(stored, format!("holds the index {value}"));
    match stored.info.dtype {
        Dtype::U8 => Ok(data()?.iter().map(|byte| u64::from(*byte)).collect()),
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => {
            let width = match stored.info.dtype {
                Dtype::I8 => 1,
                Dtype::I16 => 2,
                Dtype::I32 => 4,
                _ => 8,
            };
            let read = |bytes: &[u8]| {
                let mut wide = [if bytes[width - 1] & 0x80 != 0 { 0xFF } else { 0 }; 8];
                wide[..width].copy_from_slice(bytes);
                let value = i64::from_le_bytes(wide);
                u64::try_from(value).map_err(|_| negative(value))
            };
            data()?.chunks_exact(width).map(read).collect()
        }
        _ => {
            let whole = |value: f32| {
                let fits = value >= 0.0 && value.fract() == 0.0 && value < 2.0_f32.powi(53);
                if fits { Ok(value as u64) } else { Err(wrong(stored, format!("holds the index {value}"))) }
            };
            values(stored)?.into_iter().map(whole).collect()
        }
    }
}
