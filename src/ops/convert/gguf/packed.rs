//! A tensor of a GGUF file, computed: rows of one weight, or of the experts one after the other, in the order of the file, with
//! what the architecture adds, packed into blocks of a ggml type.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::super::rounded::{RoundingError, Sums};
use crate::adapters::BaseRows;
use crate::error::{Error, Result};
use crate::model::weight::Weight;
use crate::plan::Compute;
use crate::tensor::GgmlType;

/// Elements that are packed at once: 256 KiB of f32.
const TILE: usize = 1 << 16;

/// A weight that goes into a tensor.
pub struct Part {
    /// The weight, by rows.
    pub weight: Weight,
    /// For every row of the file the one of the weight, where the order differs.
    pub order: Option<Arc<Vec<usize>>>,
    /// Added to every value.
    pub added: f32,
}

/// A tensor that is packed, row by row.
pub struct Packed {
    name: String,
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
    out: GgmlType,
    /// By first row of each job.
    sums: Mutex<Vec<(usize, Sums)>>,
}

impl Packed {
    /// The tensor `name` of `parts`, which have the same shape, as blocks of `out` that fit their rows.
    pub fn new(name: String, parts: Vec<Part>, out: GgmlType) -> Self {
        let (rows, cols) = parts.first().map_or((0, 0), |part| (part.weight.rows, part.weight.cols));
        Self { name, parts, rows, cols, out, sums: Mutex::default() }
    }

    /// Rows of the tensor, and bytes of each in the output.
    pub fn rows_of(&self) -> (Range<usize>, u64) {
        (0..self.rows * self.parts.len(), self.bytes_of(1) as u64)
    }

    fn bytes_of(&self, rows: usize) -> usize {
        let bytes = self.out.bytes_of((rows * self.cols) as u64);
        bytes.and_then(|bytes| usize::try_from(bytes).ok()).expect("the type was chosen to fit the rows")
    }

    /// What packing did to the values.
    pub fn loss(&self) -> (String, Sums) {
        let mut sums = self.sums.lock().expect("no thread panics while it holds the sums").clone();
        sums.sort_by_key(|(first, _)| *first);
        (self.name.clone(), sums.iter().fold(Sums::default(), |total, (_, one)| total.plus(one)))
    }

    /// Rows `band` of the file, which lie in one part.
    fn read(&self, band: Range<usize>, values: &mut [f32]) -> Result<()> {
        let part = &self.parts[band.start / self.rows];
        let first = band.start - band.start % self.rows;
        let local = band.start - first..band.end - first;
        match &part.order {
            None => BaseRows::read(&part.weight, local, 0..self.cols, values)?,
            Some(order) => {
                for (row, line) in local.zip(values.chunks_exact_mut(self.cols)) {
                    BaseRows::read(&part.weight, order[row]..order[row] + 1, 0..self.cols, line)?;
                }
            }
        }
        if part.added != 0.0 {
            values.iter_mut().for_each(|value| *value += part.added);
        }
        Ok(())
    }

    /// Whether what is stored for an element of the file is finite, although it is not as f32.
    fn was_finite(&self, row: usize, col: usize) -> Result<bool> {
        let (part, local) = (&self.parts[row / self.rows], row % self.rows);
        let own = part.order.as_ref().map_or(local, |order| order[local]);
        part.weight.is_stored_finite(own, col)
    }

    fn refuse(&self, row: usize, col: usize, before: f32, after: f32) -> Error {
        let path = self.parts[row / self.rows].weight.tensor.path();
        let problem = if before.is_finite() {
            format!("the value at [{row}, {col}] is {before}, and {after} as {}", self.out)
        } else {
            format!("the value at [{row}, {col}] is {before}, and blocks of {} hold finite values only", self.out)
        };
        Error::numeric(path, &self.name, problem).hint("`--dtype bf16` has room for every finite value of f32")
    }
}

impl Compute for Packed {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.weight.tensor.map.check_unchanged())?;
        let plain = self.out.float().is_some();
        let (mut values, mut back) = (Vec::new(), Vec::new());
        let mut sums = Sums::default();
        let step = (TILE / self.cols.max(1)).max(1);
        let mut first = rows.start;
        while first < rows.end {
            let part_end = first - first % self.rows + self.rows;
            let band = first..rows.end.min(part_end).min(first.saturating_add(step));
            let elements = band.len() * self.cols;
            values.resize(elements, 0.0);
            back.resize(elements, 0.0);
            self.read(band.clone(), &mut values)?;
            let begin = self.bytes_of(first - rows.start);
            let place = &mut out[begin..begin + self.bytes_of(band.len())];
            self.out.encode(&values, place);
            self.out.decode(place, &mut back);
            if let Some(at) = self.out.lost(&values, &back) {
                return Err(self.refuse(first + at / self.cols, at % self.cols, values[at], back[at]));
            }
            for (at, (before, after)) in values.iter().zip(&back).enumerate() {
                let kept = if plain {
                    before.is_finite() == after.is_finite() && before.is_nan() == after.is_nan()
                } else {
                    before.is_finite() && after.is_finite()
                };
                if !kept || !before.is_finite() && self.was_finite(first + at / self.cols, at % self.cols)? {
                    return Err(self.refuse(first + at / self.cols, at % self.cols, *before, *after));
                }
                sums.count(*before, *after);
            }
            first = band.end;
        }
        self.release(rows.clone());
        self.sums.lock().expect("no thread panics while it holds the sums").push((rows.start, sums));
        Ok(())
    }
}

impl Packed {
    /// Lets go of what the parts of `rows` are mapped from.
    fn release(&self, rows: Range<usize>) {
        let parts = rows.start / self.rows..rows.end.div_ceil(self.rows);
        for (at, part) in self.parts[parts.clone()].iter().enumerate() {
            let start = (parts.start + at) * self.rows;
            let local = rows.start.max(start) - start..rows.end.min(start + self.rows) - start;
            // Rows of another order lie anywhere in their head; a whole part lies nowhere else.
            if part.order.is_none() || local.end == self.rows {
                let local = if part.order.is_none() { local } else { 0..self.rows };
                part.weight.release(local);
            }
        }
    }
}

/// What packing did to all of `tensors`, and to the one that lost most.
pub fn summarise<'a>(tensors: impl Iterator<Item = &'a Packed>) -> Option<(RoundingError, RoundingError)> {
    super::super::rounded::total(tensors.map(Packed::loss))
}
