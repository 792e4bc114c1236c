//! A tensor in another floating point type: W′ = round(W), once, to nearest or stochastically.
//!
//! Infinite values and NaN stay what they are, where the new type has them; a finite value that would become infinite is an
//! error. f64 goes to narrower types by way of f32, as in torch.

use std::ops::Range;
use std::sync::Mutex;

use serde::Serialize;

use crate::adapters::BaseRows;
use crate::error::{Error, Result};
use crate::model::Rounding;
use crate::model::weight::Weight;
use crate::plan::Compute;
use crate::tensor::{Float, first_odd_value, sum_of_squared_differences, sum_of_squares};

/// Elements that are rounded at once: 256 KiB of f32.
const TILE: usize = 1 << 16;

/// A tensor that is cast, row by row; a row may be one element.
pub struct Rounded {
    name: String,
    source: Weight,
    out: Float,
    rounding: Rounding,
    /// By first row of each job.
    sums: Mutex<Vec<(usize, Sums)>>,
}

/// What rounding did to some elements.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    squared: f64,
    error_squared: f64,
    vanished: u64,
    not_finite: u64,
}

/// What rounding did to a tensor, or to all.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RoundingError {
    /// The tensor, or `total`.
    pub tensor: String,
    /// ‖W′ − W‖ / ‖W‖, over finite values.
    pub relative: f64,
    /// Elements that were not 0 and are now.
    pub vanished: u64,
    /// Elements that are infinite or NaN, as they were before.
    pub not_finite: u64,
}

impl Rounded {
    /// A cast of `source`, called `name`, to `out`.
    pub fn new(name: String, source: Weight, out: Float, rounding: Rounding) -> Self {
        Self { name, source, out, rounding, sums: Mutex::default() }
    }

    /// Rows of the tensor, and bytes of each in the output.
    pub fn rows_of(&self) -> (Range<usize>, u64) {
        (0..self.source.rows, (self.source.cols * self.out.bytes()) as u64)
    }

    /// What rounding did. Summed in their order, so it does not depend on which thread came first.
    fn sums(&self) -> Sums {
        let mut sums = self.sums.lock().expect("no thread panics while it holds the sums").clone();
        sums.sort_by_key(|(first, _)| *first);
        sums.iter().fold(Sums::default(), |total, (_, one)| total.plus(one))
    }

    fn refuse(&self, index: usize, value: f32) -> Error {
        let (mut rest, mut place) = (index as u64, Vec::new());
        for size in self.source.tensor.info.shape.as_slice().iter().rev() {
            place.push(rest % size.max(&1));
            rest /= size.max(&1);
        }
        place.reverse();
        let (out, max) = (self.out.dtype(), self.out.max());
        if !value.is_finite() {
            let problem = format!("the value at {place:?} is beyond the range of F32, in which it is computed");
            return Error::numeric(self.source.tensor.path(), &self.name, problem)
                .hint("`--exclude` leaves the tensor as it is");
        }
        let problem = format!("the value at {place:?} is {value}, {out} ends at {max}");
        let error = Error::numeric(self.source.tensor.path(), &self.name, problem);
        match self.out {
            Float::Bf16 | Float::F32 => error.hint("`--exclude` leaves the tensor as it is"),
            _ => error.hint("`--dtype bf16` has room for it, `--exclude` leaves the tensor as it is"),
        }
    }
}

impl Sums {
    /// Counts values and what they became, where all are finite, and says whether they are.
    fn add_finite(&mut self, before: &[f32], after: &[f32]) -> bool {
        let all_finite = first_odd_value(before).is_none() && first_odd_value(after).is_none();
        if all_finite {
            self.squared += sum_of_squares(before);
            self.error_squared += sum_of_squared_differences(after, before);
            let pairs = before.iter().zip(after);
            self.vanished += pairs.filter(|(before, after)| **after == 0.0 && **before != 0.0).count() as u64;
        }
        all_finite
    }

    /// Counts a value and what it became.
    pub fn count(&mut self, before: f32, after: f32) {
        if before.is_finite() {
            let (before, after) = (f64::from(before), f64::from(after));
            self.squared += before * before;
            self.error_squared += (after - before) * (after - before);
            self.vanished += u64::from(after == 0.0 && before != 0.0);
        } else {
            self.not_finite += 1;
        }
    }

    /// Both together.
    pub fn plus(self, other: &Self) -> Self {
        Self {
            squared: self.squared + other.squared,
            error_squared: self.error_squared + other.error_squared,
            vanished: self.vanished + other.vanished,
            not_finite: self.not_finite + other.not_finite,
        }
    }

    fn told(self, tensor: String) -> RoundingError {
        let relative = if self.squared > 0.0 { (self.error_squared / self.squared).sqrt() } else { 0.0 };
        RoundingError { tensor, relative, vanished: self.vanished, not_finite: self.not_finite }
    }
}

/// What rounding did to all of `tensors`, and to the one that lost most.
pub fn summarise<'a>(tensors: impl Iterator<Item = &'a Rounded>) -> Option<(RoundingError, RoundingError)> {
    total(tensors.map(|tensor| (tensor.name.clone(), tensor.sums())))
}

/// The same of tensors by name.
pub(super) fn total(tensors: impl Iterator<Item = (String, Sums)>) -> Option<(RoundingError, RoundingError)> {
    let mut total = Sums::default();
    let mut worst: Option<RoundingError> = None;
    for (name, sums) in tensors {
        total = total.plus(&sums);
        let told = sums.told(name);
        if worst.as_ref().is_none_or(|worst| told.relative > worst.relative) {
            worst = Some(told);
        }
    }
    Some((total.told("total".into()), worst?))
}

impl Compute for Rounded {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.source.tensor.map.check_unchanged()?;
        self.source.populate(rows.clone());
        let (cols, width) = (self.source.cols, self.out.bytes());
        let (mut values, mut back) = (Vec::new(), Vec::new());
        let mut sums = Sums::default();
        let quantised = self.source.quantised.as_ref();
        let step = quantised.map_or((TILE / cols.max(1)).max(1), |quantised| quantised.rows_at_once());
        for first in rows.clone().step_by(step) {
            let band = first..rows.end.min(first.saturating_add(step));
            let elements = band.len() * cols;
            values.resize(elements, 0.0);
            back.resize(elements, 0.0);
            BaseRows::read(&self.source, band, 0..cols, &mut values)?;
            let begin = (first - rows.start) * cols * width;
            let place = &mut out[begin..begin + elements * width];
            self.out.encode(&values, self.rounding.at(&self.name, (first * cols) as u64), place);
            self.out.decode(place, &mut back);
            if sums.add_finite(&values, &back) {
                continue;
            }
            for (at, (before, after)) in values.iter().zip(&back).enumerate() {
                let kept = before.is_finite() == after.is_finite() && before.is_nan() == after.is_nan();
                let (row, col) = (first + at / cols, at % cols);
                // What is infinite only as f32 was not so in the file.
                if !kept || !before.is_finite() && self.source.is_stored_finite(row, col)? {
                    return Err(self.refuse(first * cols + at, *before));
                }
                sums.count(*before, *after);
            }
        }
        self.source.release(rows.clone());
        self.sums.lock().expect("no thread panics while it holds the sums").push((rows.start, sums));
        Ok(())
    }
}
