//! Rows of codes to f32.
//!
//! The codes of a row fall into runs that share a scale: a [`Shared`] says how long they are and where the first begins. Products
//! and sums are rounded one by one, as the producers do it.

use crate::tensor::simd::{Level, Simd, per_cpu};

/// Runs of neighbouring columns that share a scale, a zero and a bias.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// Columns of a run; 1 where every column has numbers of its own.
    pub size: usize,
    /// Columns of the first run that lie before the first code.
    pub skipped: usize,
    /// One per run.
    pub scales: &'a [f32],
    /// What is taken off a code, one per run; as good as zero where there are none.
    pub zeros: &'a [f32],
    /// What is added to a product, one per run; nothing where there are none.
    pub biases: &'a [f32],
}

impl Shared<'_> {
    /// The same for codes that begin `count` columns later.
    pub fn from(self, count: usize) -> Self {
        let run = (self.skipped + count) / self.size;
        let cut = |numbers: &'_ [f32]| numbers.len().min(run);
        Self {
            skipped: (self.skipped + count) % self.size,
            scales: &self.scales[cut(self.scales)..],
            zeros: &self.zeros[cut(self.zeros)..],
            biases: &self.biases[cut(self.biases)..],
            ..self
        }
    }

    /// Runs that the first `count` columns touch: there may be numbers of many more.
    #[inline(always)]
    pub fn runs(&self, count: usize) -> usize {
        self.scales.len().min(self.skipped.saturating_add(count).div_ceil(self.size))
    }

    /// The columns of run `run`, of `count` columns.
    #[inline(always)]
    pub fn columns(&self, run: usize, count: usize) -> std::ops::Range<usize> {
        let start = run.saturating_mul(self.size).saturating_sub(self.skipped);
        start.min(count)..(run + 1).saturating_mul(self.size).saturating_sub(self.skipped).min(count)
    }
}

/// `out = (code − zero) · scale`, and `+ bias` where there is one.
///
/// # Panics
/// When a run lacks its numbers.
pub fn whole(codes: &[u8], shared: Shared<'_>, out: &mut [f32]) {
    whole_at(Level::best(), codes, shared, out);
}

/// `out = table[code] · scale`, of a table of 16 or 64 levels or any power of two; a code is cut to its bits.
///
/// # Panics
/// When a run lacks its scale.
pub fn levels(table: &[f32], codes: &[u8], shared: Shared<'_>, out: &mut [f32]) {
    let level = Level::best();
    levels_at(level, table, codes, out);
    scale_at(level, shared, out);
}

/// `out = out · scale`.
///
/// # Panics
/// When a run lacks its scale.
pub fn scale(shared: Shared<'_>, out: &mut [f32]) {
    scale_at(Level::best(), shared, out);
}

per_cpu! {
    fn whole_at(codes: &[u8], shared: Shared<'_>, out: &mut [f32]) = whole_body;
}

#[inline(always)]
fn whole_body(codes: &[u8], shared: Shared<'_>, out: &mut [f32]) {
    let count = out.len();
    if let (1, 0, []) = (shared.size, shared.skipped, shared.biases) {
        let numbers = shared.scales.iter().zip(shared.zeros);
        let codes = codes.iter().zip(numbers);
        out.iter_mut().zip(codes).for_each(|(out, (&code, (scale, zero)))| *out = (f32::from(code) - zero) * scale);
        return;
    }
    for (run, &scale) in shared.scales[..shared.runs(count)].iter().enumerate() {
        let columns = shared.columns(run, count);
        let zero = shared.zeros.get(run).copied().unwrap_or(0.0);
        let pairs = out[columns.clone()].iter_mut().zip(&codes[columns]);
        match shared.biases.get(run) {
            None => pairs.for_each(|(out, &code)| *out = (f32::from(code) - zero) * scale),
            Some(&bias) => pairs.for_each(|(out, &code)| *out = (f32::from(code) - zero) * scale + bias),
        }
    }
}

per_cpu! {
    fn scale_at(shared: Shared<'_>, out: &mut [f32]) = scale_body;
}

#[inline(always)]
fn scale_body(shared: Shared<'_>, out: &mut [f32]) {
    let count = out.len();
    for (run, &scale) in shared.scales[..shared.runs(count)].iter().enumerate() {
        out[shared.columns(run, count)].iter_mut().for_each(|value| *value *= scale);
    }
}

per_cpu! {
    fn levels_at(table: &[f32], codes: &[u8], out: &mut [f32]) = vectors of levels_body;
}

#[inline(always)]
fn levels_body<const W: usize, S: Simd<W>>(simd: S, table: &[f32], codes: &[u8], out: &mut [f32]) {
    // A table whose length the compiler knows is read without a check.
    if let Ok(table) = <&[f32; 16]>::try_from(table) {
        let ((out, last), (codes, others)) = (out.as_chunks_mut::<W>(), codes.as_chunks::<W>());
        out.iter_mut().zip(codes).for_each(|(out, codes)| *out = simd.store(simd.look_up(table, codes)));
        last.iter_mut().zip(others).for_each(|(out, code)| *out = table[usize::from(code & 15)]);
    } else if let Ok(table) = <&[f32; 64]>::try_from(table) {
        out.iter_mut().zip(codes).for_each(|(out, code)| *out = table[usize::from(code & 63)]);
    } else {
        let last = table.len() - 1;
        out.iter_mut().zip(codes).for_each(|(out, code)| *out = table[usize::from(*code) & last]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::codes::{E2M1, E2M3};

    #[test]
    fn runs_begin_where_they_are_said_to() {
        let codes = [1, 2, 3, 4, 5, 6, 7];
        let mut out = [f32::NAN; 7];
        let shared = Shared { size: 4, skipped: 3, scales: &[1.0, 10.0, 100.0], zeros: &[1.0, 0.0, 7.0], biases: &[] };
        whole(&codes, shared, &mut out);
        assert_eq!(out, [0.0, 20.0, 30.0, 40.0, 50.0, -100.0, 0.0]);
        whole(&codes, Shared { biases: &[0.5, 0.25, 0.0], ..shared }, &mut out);
        assert_eq!(out, [0.5, 20.25, 30.25, 40.25, 50.25, -100.0, 0.0]);
    }

    #[test]
    fn columns_may_have_numbers_of_their_own() {
        let mut out = [0.0; 3];
        let shared = Shared { size: 1, skipped: 0, scales: &[1.0, 2.0, 3.0], zeros: &[], biases: &[] };
        levels(&E2M1, &[7, 15, 8], shared, &mut out);
        assert_eq!(out, [6.0, -12.0, 0.0]);
        assert!(out[2].is_sign_negative());
        levels(&E2M3, &[31, 63, 1], shared, &mut out);
        assert_eq!(out, [7.5, -15.0, 0.375]);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let codes: Vec<u8> = (0..97).map(|at| (at * 5) as u8 & 15).collect();
        let uncut: Vec<u8> = (0..97).map(|at| (at * 53) as u8).collect();
        let scales = [0.1, 1.7e-3, 3.3, 7.0];
        let shared = Shared { size: 32, skipped: 9, scales: &scales, zeros: &[8.0, 3.0, 0.0, 15.0], biases: &scales };
        let results = Level::all().into_iter().map(|level| {
            let (mut out, mut looked_up) = (vec![0.0; 97], vec![0.0; 97]);
            whole_at(level, &codes, shared, &mut out);
            levels_at(level, &E2M1, &uncut, &mut looked_up);
            assert!(looked_up.iter().zip(&uncut).all(|(value, code)| *value == E2M1[usize::from(code & 15)]));
            scale_at(level, shared, &mut looked_up);
            out.extend(looked_up);
            out.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        });
        let results: Vec<_> = results.collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
