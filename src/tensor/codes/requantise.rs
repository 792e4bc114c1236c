//! Rows of values to codes on the scales they have: what [`Level`] does for a value, for many at once.
//!
//! Values over their scales are brought to codes by arithmetic that vectorises. Where a quotient comes so close to a tie that its
//! rounding could decide, the exact search of [`Level`] does. So both give the same codes.

use super::lanes::{Few, SmallFloat, few_levels, low_byte, small_float, whole};
use super::nearest::{Level, Levels};
use super::values::Shared;
use crate::tensor::codec::Rounding;
use crate::tensor::random;
use crate::tensor::simd::{self, per_cpu};

/// Values at once.
const PIECE: usize = 1024;

/// A zero and a bias, in steps, beyond which the rounding of whole numbers may be more than that.
const FAR: f32 = 500.0;

/// Scales beyond these are looked at exactly: products with levels may be subnormal or infinite.
const USUAL_SCALES: std::ops::Range<f32> = 1e-30..1e30;

/// Random bits that make a number in [0, 1), and its unit.
const CHANCE_BITS: u32 = 24;
const CHANCE_UNIT: f32 = 1.0 / (1_u32 << CHANCE_BITS) as f32;

/// What codes stand for, before their scales.
#[derive(Clone, Copy, Debug)]
pub enum Codebook<'a> {
    /// Whole numbers; codes from the first to the second are written.
    Whole(u8, u8),
    /// A table by code, and in order.
    Table(&'a [f32], &'a Levels),
}

/// Values of neighbouring columns of a row.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What they were: where they are the same now, codes stay.
    pub base: &'a [f32],
    /// What they are to be.
    pub wanted: &'a [f32],
    /// How they are rounded; the index is that of the first.
    pub rounding: Rounding,
}

/// How codes are found at once.
#[derive(Clone, Copy, Debug)]
enum Way<'a> {
    Float(SmallFloat),
    Few(&'a Few),
    Whole(u8, u8),
}

/// What is done at once.
struct Piece {
    quotients: [f32; PIECE],
    /// Random numbers in [0, 1).
    chances: [f32; PIECE],
    /// As wide as the values, so that the same lanes hold both.
    codes: [i32; PIECE],
    /// 1 where the code is not certain.
    unsure: [i32; PIECE],
}

impl<'a> Codebook<'a> {
    fn way(self) -> Option<Way<'a>> {
        match self {
            Self::Whole(least, most) => Some(Way::Whole(least, most)),
            Self::Table(_, Levels { float: Some(float), .. }) => Some(Way::Float(*float)),
            Self::Table(_, levels) => levels.few.as_ref().map(Way::Few),
        }
    }

    /// The same with what else gives codes of a run their values.
    pub fn level(self, zero: f32, bias: Option<f32>) -> Level<'a> {
        match self {
            Self::Whole(least, most) => Level::Whole { least, most, zero, bias },
            Self::Table(table, levels) => Level::Table { table, levels },
        }
    }
}

/// Chooses the codes of values.
///
/// # Panics
/// When the slices are not of one length, or a run lacks its numbers.
pub fn requantise(book: Codebook<'_>, shared: Shared<'_>, values: Wanted<'_>, codes: &mut [u8]) {
    assert!(values.base.len() == codes.len() && values.wanted.len() == codes.len(), "a code for every value");
    let cpu = simd::Level::best();
    let mut piece = Piece { quotients: [0.0; PIECE], chances: [0.0; PIECE], codes: [0; PIECE], unsure: [0; PIECE] };
    for (at, codes) in codes.chunks_mut(PIECE).enumerate() {
        let (start, end) = (at * PIECE, at * PIECE + codes.len());
        let values = Wanted {
            base: &values.base[start..end],
            wanted: &values.wanted[start..end],
            rounding: values.rounding.skip(start),
        };
        if values.base != values.wanted {
            piece.choose(cpu, book, shared.from(start), values, codes);
        }
    }
}

impl Piece {
    fn choose(
        &mut self,
        cpu: simd::Level,
        book: Codebook<'_>,
        shared: Shared<'_>,
        values: Wanted<'_>,
        codes: &mut [u8],
    ) {
        let count = codes.len();
        match book.way() {
            None => self.unsure[..count].fill(1),
            Some(way) => {
                quotients_at(cpu, matches!(way, Way::Whole(..)), shared, values.wanted, &mut self.quotients[..count]);
                match values.rounding {
                    Rounding::Nearest => nearest_at(cpu, way, self, count),
                    Rounding::Stochastic { seed, index } => stochastic_at(cpu, way, seed, index, self, count),
                }
                keep_at(cpu, way, values, &self.codes[..count], &mut self.unsure[..count], codes);
            }
        }
        if self.unsure[..count].iter().fold(0, |any, unsure| any | unsure) == 0 {
            return;
        }
        for (at, code) in codes.iter_mut().enumerate().filter(|(at, _)| self.unsure[*at] != 0) {
            let run = (at + shared.skipped) / shared.size;
            let (zero, bias) = (shared.zeros.get(run).copied().unwrap_or(0.0), shared.biases.get(run).copied());
            let (level, target) = (book.level(zero, bias), f64::from(values.wanted[at]));
            *code = match values.rounding.skip(at) {
                _ if values.base[at] == values.wanted[at] => *code,
                Rounding::Nearest => level.nearest(target, shared.scales[run], *code),
                Rounding::Stochastic { seed, index } => {
                    level.stochastic(target, shared.scales[run], *code, chance(seed, index).into())
                }
            };
        }
    }
}

/// The random number of an element.
#[inline(always)]
fn chance(seed: u64, index: u64) -> f32 {
    (random::bits(seed, index) >> (32 - CHANCE_BITS)) as f32 * CHANCE_UNIT
}

per_cpu! {
    fn quotients_at(is_whole: bool, shared: Shared<'_>, wanted: &[f32], out: &mut [f32]) = quotients;
}

/// Values in steps of their codes; NaN where the scale is not usual.
#[inline(always)]
fn quotients(is_whole: bool, shared: Shared<'_>, wanted: &[f32], out: &mut [f32]) {
    let count = out.len();
    for (run, &scale) in shared.scales[..shared.runs(count)].iter().enumerate() {
        let columns = shared.columns(run, count);
        let pairs = out[columns.clone()].iter_mut().zip(&wanted[columns]);
        let zero = shared.zeros.get(run).copied().unwrap_or(0.0);
        let bias = shared.biases.get(run).copied().unwrap_or(0.0);
        let is_near = !is_whole || (bias / scale).abs() + zero.abs() < FAR;
        if !USUAL_SCALES.contains(&scale.abs()) || !is_near {
            pairs.for_each(|(out, _)| *out = f32::NAN);
        } else if is_whole {
            pairs.for_each(|(out, wanted)| *out = (wanted - bias) / scale + zero);
        } else {
            pairs.for_each(|(out, wanted)| *out = wanted / scale);
        }
    }
}

per_cpu! {
    fn nearest_at(way: Way<'_>, piece: &mut Piece, count: usize) = nearest;
}

#[inline(always)]
fn nearest(way: Way<'_>, piece: &mut Piece, count: usize) {
    guess::<false>(way, piece, count);
}

per_cpu! {
    fn stochastic_at(way: Way<'_>, seed: u64, index: u64, piece: &mut Piece, count: usize) = stochastic;
}

#[inline(always)]
fn stochastic(way: Way<'_>, seed: u64, index: u64, piece: &mut Piece, count: usize) {
    for (place, at) in piece.chances[..count].iter_mut().zip(0_u64..) {
        *place = chance(seed, index.wrapping_add(at));
    }
    guess::<true>(way, piece, count);
}

#[inline(always)]
fn guess<const CHANCE: bool>(way: Way<'_>, piece: &mut Piece, count: usize) {
    let (quotients, chances) = (&piece.quotients[..count], &piece.chances[..count]);
    let (codes, unsure) = (&mut piece.codes[..count], &mut piece.unsure[..count]);
    match way {
        Way::Float(float) => small_float::<CHANCE>(float, quotients, chances, codes, unsure),
        Way::Few(few) => few_levels::<CHANCE>(few, quotients, chances, codes, unsure),
        Way::Whole(least, most) => whole::<CHANCE>((least, most), quotients, chances, codes, unsure),
    }
}

per_cpu! {
    fn keep_at(way: Way<'_>, values: Wanted<'_>, new: &[i32], unsure: &mut [i32], codes: &mut [u8]) = keep;
}

/// Takes new codes where the value changed and is another than that of the old code, and where they are certain.
#[inline(always)]
fn keep(way: Way<'_>, values: Wanted<'_>, new: &[i32], unsure: &mut [i32], codes: &mut [u8]) {
    match way {
        Way::Float(SmallFloat { sign, .. }) => {
            keep_where(|one, other| (one == other) | ((one | other) & (sign - 1) == 0), values, new, unsure, codes);
        }
        Way::Few(few) if !few.is_plain => {
            let alike = |code: u8| few.alike[usize::from(code & 15)];
            keep_where(|one, other| alike(one) == alike(other), values, new, unsure, codes);
        }
        Way::Few(_) | Way::Whole(..) => keep_where(|one, other| one == other, values, new, unsure, codes),
    }
}

#[inline(always)]
fn keep_where(is_same: impl Fn(u8, u8) -> bool, values: Wanted<'_>, new: &[i32], unsure: &mut [i32], codes: &mut [u8]) {
    let changed = values.base.iter().zip(values.wanted).map(|(base, wanted)| base != wanted);
    for (((code, unsure), new), is_changed) in codes.iter_mut().zip(unsure).zip(new).zip(changed) {
        let new = low_byte(*new);
        let is_new = is_changed & (*unsure == 0) & !is_same(new, *code);
        *code = if is_new { new } else { *code };
        *unsure = if is_changed { *unsure } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Float;
    use crate::tensor::codes::{E2M1, E2M3, FP4, NF4};

    fn floats(float: Float) -> Vec<f32> {
        let codes: Vec<u8> = (0..=u8::MAX).collect();
        let mut values = vec![0.0; 256];
        float.decode(&codes, &mut values);
        values
    }

    fn tables() -> Vec<Vec<f32>> {
        let plain: [&[f32]; 4] = [&E2M1, &E2M3, &NF4, &FP4];
        let floats = [Float::F8E4M3, Float::F8E5M2].map(floats);
        plain.into_iter().map(<[f32]>::to_vec).chain(floats).collect()
    }

    /// Values around all levels and all ties of codes on a scale, and between.
    fn targets(level: Level<'_>, scale: f32, count: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..count).map(|code| level.value(u8::try_from(code).unwrap(), scale)).collect();
        values.retain(|value| value.is_finite());
        values.sort_by(f32::total_cmp);
        let middles: Vec<f32> = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        values.extend(middles);
        let around = |value: f32| [value, value.next_up(), value.next_down(), value * 1.000_01, value * 0.99];
        values.into_iter().flat_map(around).collect()
    }

    fn check(book: Codebook<'_>, zero: f32, bias: Option<f32>, count: usize) {
        let level = book.level(zero, bias);
        for scale in [1.0, 0.013_7, 3.3e-5, 257.0, 1e-38, 1e-44] {
            let wanted = targets(level, scale, count);
            let base = vec![f32::NAN; wanted.len()];
            for old in [1, 2, u8::try_from(count - 1).unwrap(), u8::try_from(count / 2).unwrap()] {
                let mut codes = vec![old; wanted.len()];
                let values = Wanted { base: &base, wanted: &wanted, rounding: Rounding::Nearest };
                let (scales, zeros) = (vec![scale; wanted.len().div_ceil(7)], vec![zero; wanted.len().div_ceil(7)]);
                let biases = bias.map(|bias| vec![bias; scales.len()]).unwrap_or_default();
                let shared = Shared { size: 7, skipped: 0, scales: &scales, zeros: &zeros, biases: &biases };
                requantise(book, shared, values, &mut codes);
                for (code, wanted) in codes.into_iter().zip(&wanted) {
                    let exact = level.nearest(f64::from(*wanted), scale, old);
                    assert_eq!(code, exact, "{wanted} on {scale}, {count} codes, was {old}");
                }
            }
        }
    }

    #[test]
    fn many_at_once_are_what_one_by_one_are() {
        for table in tables() {
            let levels = Levels::new(&table);
            check(Codebook::Table(&table, &levels), 0.0, None, table.len());
        }
        for (zero, bias) in [(8.0, None), (0.0, Some(-0.37)), (3.0, None), (0.0, Some(900.0))] {
            check(Codebook::Whole(0, 15), zero, bias, 16);
        }
        check(Codebook::Whole(1, 255), 128.0, None, 256);
    }

    /// One scale for all.
    fn one(scale: &f32) -> Shared<'_> {
        Shared { size: usize::MAX / 2, skipped: 0, scales: std::slice::from_ref(scale), zeros: &[], biases: &[] }
    }

    #[test]
    fn chance_takes_a_neighbour_and_keeps_the_mean() {
        for table in tables() {
            let levels = Levels::new(&table);
            let book = Codebook::Table(&table, &levels);
            let (base, wanted) = (vec![0.0; 4096], vec![0.43_f32; 4096]);
            let mut codes = vec![0; wanted.len()];
            let rounding = Rounding::Stochastic { seed: 7, index: 100 };
            requantise(book, one(&0.9), Wanted { base: &base, wanted: &wanted, rounding }, &mut codes);
            let sum: f64 = codes.iter().map(|code| f64::from(book.level(0.0, None).value(*code, 0.9))).sum();
            assert!((sum / 4096.0 - 0.43).abs() < 0.01, "{}", sum / 4096.0);
            // A part alone is the same: chances belong to places.
            let mut part = vec![0; 2000];
            let later = Wanted { base: &base[..2000], wanted: &wanted[..2000], rounding: rounding.skip(2096) };
            requantise(book, one(&0.9), later, &mut part);
            assert_eq!(part, codes[2096..]);
        }
    }

    #[test]
    fn a_level_of_its_own_is_taken_whatever_the_chance() {
        for table in tables() {
            let levels = Levels::new(&table);
            let book = Codebook::Table(&table, &levels);
            let wanted: Vec<f32> = table.iter().map(|value| value * 0.037).filter(|value| value.is_finite()).collect();
            let base = vec![f32::NAN; wanted.len()];
            let mut codes = vec![1; wanted.len()];
            let rounding = Rounding::Stochastic { seed: 3, index: 0 };
            requantise(book, one(&0.037), Wanted { base: &base, wanted: &wanted, rounding }, &mut codes);
            let back: Vec<f32> = codes.iter().map(|code| book.level(0.0, None).value(*code, 0.037)).collect();
            assert_eq!(back, wanted);
        }
    }

    #[test]
    fn every_instruction_set_chooses_the_same() {
        let wanted: Vec<f32> = (0..PIECE).map(|at| at as f32 * 0.013 - 5.3).collect();
        for table in tables() {
            let levels = Levels::new(&table);
            for book in [Codebook::Table(&table, &levels), Codebook::Whole(0, 15)] {
                let way = book.way().unwrap();
                let results = simd::Level::all().into_iter().map(|cpu| {
                    let mut piece =
                        Piece { quotients: [0.0; PIECE], chances: [0.0; PIECE], codes: [0; PIECE], unsure: [0; PIECE] };
                    quotients_at(cpu, false, one(&0.7), &wanted, &mut piece.quotients);
                    nearest_at(cpu, way, &mut piece, PIECE);
                    let mut out = [piece.codes, piece.unsure].concat();
                    stochastic_at(cpu, way, 5, 9, &mut piece, PIECE);
                    out.extend(piece.codes);
                    out
                });
                let results: Vec<Vec<i32>> = results.collect();
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
            }
        }
    }
}
