//! Values to codes, on scales that stay as they are.
//!
//! The nearest code is the one whose value, computed as it will be read, has the smallest distance; of two equally near ones it
//! is the even one. A code whose value is that of the old one stays, so what does not change keeps its bytes; of two zeros a new
//! one has the sign of the value.

use super::lanes::{Few, SmallFloat};

/// A table of levels in order.
#[derive(Clone, Debug)]
pub struct Levels {
    /// Ascending, each value once.
    values: Vec<f32>,
    codes: Vec<u8>,
    /// The codes of 0 and −0, where the table has both.
    zeros: Option<[u8; 2]>,
    /// How codes of many values are found at once.
    pub(super) float: Option<SmallFloat>,
    pub(super) few: Option<Few>,
}

impl Levels {
    /// The levels of codes 0, 1, 2 …, at most 256; what is not finite is no level.
    pub fn new(table: &[f32]) -> Self {
        let mut levels: Vec<(f32, u8)> = table.iter().copied().zip(0..=u8::MAX).collect();
        levels.retain(|(value, _)| value.is_finite());
        levels.sort_by(|one, other| one.0.total_cmp(&other.0));
        let zero = |is_negative: bool| {
            levels.iter().find(|(value, _)| *value == 0.0 && value.is_sign_negative() == is_negative).map(|zero| zero.1)
        };
        let zeros = zero(false).zip(zero(true)).map(|(plus, minus)| [plus, minus]);
        // Of levels that are equal the lowest code is kept.
        levels.dedup_by(|next, kept| {
            let is_same = next.0 == kept.0;
            kept.1 = if is_same { kept.1.min(next.1) } else { kept.1 };
            is_same
        });
        let (values, codes): (Vec<f32>, Vec<u8>) = levels.into_iter().unzip();
        let few = Few::of(table, &values, &codes);
        Self { values, codes, zeros, float: SmallFloat::of(table), few }
    }
}

/// What the codes of a run stand for.
#[derive(Clone, Copy, Debug)]
pub enum Level<'a> {
    /// (code − zero) · scale + bias.
    Whole {
        /// The smallest code that is written.
        least: u8,
        /// The largest one.
        most: u8,
        /// What is taken off a code.
        zero: f32,
        /// What is added to the product, where something is.
        bias: Option<f32>,
    },
    /// A level of `table` · scale.
    Table {
        /// By code.
        table: &'a [f32],
        /// The same in order.
        levels: &'a Levels,
    },
}

impl Level<'_> {
    /// The value of a code.
    #[inline]
    pub fn value(&self, code: u8, scale: f32) -> f32 {
        match self {
            Self::Whole { zero, bias: None, .. } => (f32::from(code) - zero) * scale,
            Self::Whole { zero, bias: Some(bias), .. } => (f32::from(code) - zero) * scale + bias,
            Self::Table { table, .. } => table[usize::from(code)] * scale,
        }
    }

    /// The code nearest to `target`, which stays `old` where that is as near.
    #[inline]
    pub fn nearest(&self, target: f64, scale: f32, old: u8) -> u8 {
        self.choose(target, scale, old, None)
    }

    /// One of the two codes around `target`, with the odds of the distances: `chance` is a random number in
    /// [0, 1).
    #[inline]
    pub fn stochastic(&self, target: f64, scale: f32, old: u8, chance: f64) -> u8 {
        self.choose(target, scale, old, Some(chance))
    }

    fn choose(&self, target: f64, scale: f32, old: u8, chance: Option<f64>) -> u8 {
        let before = f64::from(self.value(old, scale));
        if target == before || scale == 0.0 || !target.is_finite() {
            return old;
        }
        let guess = self.guess(target, scale);
        let distance = |place: usize| (target - f64::from(self.value(self.code(place), scale))).abs();
        let (mut place, mut nearest) = (guess, distance(guess));
        // Far beyond the last level all are equally far in f64: the last is taken.
        let is_beyond = self.is_beyond(guess, target, scale);
        let around = [guess.wrapping_sub(1), guess + 1];
        for other in around.into_iter().filter(|other| *other < self.places() && !is_beyond) {
            let away = distance(other);
            if away < nearest || (away == nearest && self.code(other) & 1 < self.code(place) & 1) {
                (place, nearest) = (other, away);
            }
        }
        if let Some(chance) = chance {
            place = self.one_of_two(place, target, scale, chance);
        }
        let code = self.code(place);
        let value = f64::from(self.value(code, scale));
        match self {
            _ if value == before => old,
            Self::Table { levels: Levels { zeros: Some([plus, minus]), .. }, .. } if value == 0.0 => {
                if target.is_sign_negative() { *minus } else { *plus }
            }
            _ => code,
        }
    }

    /// Whether the target lies beyond the first or the last place, where that is `place`.
    fn is_beyond(&self, place: usize, target: f64, scale: f32) -> bool {
        let value = |place: usize| f64::from(self.value(self.code(place), scale));
        let inner = if place == 0 { 1 } else { place - 1 };
        let is_end = place == 0 || place + 1 == self.places();
        is_end && inner < self.places() && (target - value(place)) * (value(place) - value(inner)) >= 0.0
    }

    /// The nearest place, or the next beyond the target, with the odds of the distances.
    fn one_of_two(&self, place: usize, target: f64, scale: f32, chance: f64) -> usize {
        let value = |place: usize| f64::from(self.value(self.code(place), scale));
        let near = value(place);
        let beyond = [place.wrapping_sub(1), place + 1].into_iter().filter(|other| *other < self.places());
        for other in beyond {
            let far = value(other);
            let is_between = (target - near) * (target - far) < 0.0;
            if is_between && chance < (target - near) / (far - near) {
                return other;
            }
        }
        place
    }

    /// How many codes there are, in the order of their values.
    fn places(&self) -> usize {
        match self {
            Self::Whole { least, most, .. } => usize::from(most - least) + 1,
            Self::Table { levels, .. } => levels.values.len(),
        }
    }

    fn code(&self, place: usize) -> u8 {
        match self {
            Self::Whole { least, .. } => *least + u8::try_from(place).unwrap_or(u8::MAX - *least),
            Self::Table { levels, .. } => levels.codes[place],
        }
    }

    /// A place that is nearest, or next to it.
    fn guess(&self, target: f64, scale: f32) -> usize {
        match self {
            Self::Whole { least, most, zero, bias } => {
                let offset = f64::from(bias.unwrap_or(0.0));
                let code = ((target - offset) / f64::from(scale) + f64::from(*zero)).round_ties_even();
                let place = code.clamp(f64::from(*least), f64::from(*most)) - f64::from(*least);
                // In 0 ..= 255, and a whole number.
                place as usize
            }
            Self::Table { levels, .. } => {
                let level = target / f64::from(scale);
                let above = levels.values.partition_point(|value| f64::from(*value) < level);
                above.min(levels.values.len() - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::codes::{E2M1, FP4, NF4, dynamic_map};

    fn table<'a>(table: &'a [f32], levels: &'a Levels) -> Level<'a> {
        Level::Table { table, levels }
    }

    #[test]
    fn ties_go_to_the_even_code() {
        let levels = Levels::new(&E2M1);
        let grid = table(&E2M1, &levels);
        for (target, value) in [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)]
        {
            assert_eq!(E2M1[usize::from(grid.nearest(target, 1.0, 7))], value, "{target}");
            assert_eq!(E2M1[usize::from(grid.nearest(-target, 1.0, 7))], -value, "−{target}");
        }
        let whole = Level::Whole { least: 0, most: 15, zero: 8.0, bias: None };
        assert_eq!([-8.5, -0.5, 0.5, 1.5, 9.0].map(|target| whole.nearest(target, 1.0, 3)), [0, 8, 8, 10, 15]);
    }

    #[test]
    fn a_code_stays_where_its_value_does() {
        let levels = Levels::new(&E2M1);
        let grid = table(&E2M1, &levels);
        assert_eq!((grid.nearest(0.0, 1.0, 8), grid.nearest(-0.0, 1.0, 0)), (8, 0));
        assert_eq!((grid.nearest(0.1, 1.0, 8), grid.nearest(-0.1, 1.0, 0)), (8, 0), "a zero stays the zero it was");
        assert_eq!(
            (grid.nearest(0.1, 1.0, 1), grid.nearest(-0.1, 1.0, 1)),
            (0, 8),
            "a new one has the sign of the value"
        );
        let levels = Levels::new(&FP4);
        assert_eq!(table(&FP4, &levels).nearest(-1e-5, 1.0, 1), 0, "FP4 has one zero under two codes");
        assert_eq!(table(&FP4, &levels).nearest(1e-5, 1.0, 8), 8);
        assert_eq!(grid.nearest(3.0, 0.0, 5), 5, "a scale of zero moves nothing");
    }

    #[test]
    fn the_nearest_is_that_of_a_search_over_all() {
        let map = dynamic_map();
        let tables: [&[f32]; 4] = [&E2M1, &NF4, &FP4, &map];
        for codes in tables {
            let levels = Levels::new(codes);
            let grid = table(codes, &levels);
            for step in -120..=120 {
                let (target, scale) = (f64::from(step) / 17.3, 0.9173);
                let found = grid.nearest(target, scale, 1);
                let distance = |code: u8| (f64::from(grid.value(code, scale)) - target).abs();
                let best = (0..codes.len()).map(|code| distance(u8::try_from(code).unwrap())).fold(f64::MAX, f64::min);
                assert_eq!(distance(found), best, "{target}");
            }
        }
    }

    #[test]
    fn scales_may_be_negative() {
        let grid = Level::Whole { least: 0, most: 7, zero: 0.0, bias: Some(1.0) };
        assert_eq!(grid.nearest(-0.9, -0.5, 0), 4);
        assert_eq!((grid.nearest(9.0, -0.5, 3), grid.nearest(-9.0, -0.5, 3)), (0, 7));
    }

    #[test]
    fn far_beyond_the_last_level_the_last_is_taken() {
        let levels = Levels::new(&E2M1);
        let grid = table(&E2M1, &levels);
        let tiny = f32::from_bits(0x0040_0000);
        assert_eq!((grid.nearest(0.01, tiny, 0), grid.nearest(-0.01, tiny, 0)), (7, 15));
    }

    #[test]
    fn chance_keeps_the_mean() {
        let levels = Levels::new(&E2M1);
        let grid = table(&E2M1, &levels);
        let draws = (0..1000).map(|at| f64::from(at) / 1000.0);
        let sum: f64 = draws.map(|chance| f64::from(E2M1[usize::from(grid.stochastic(3.25, 1.0, 2, chance))])).sum();
        assert!((sum / 1000.0 - 3.25).abs() < 0.01, "{sum}");
        assert_eq!(grid.stochastic(9.0, 1.0, 2, 0.0), 7, "beyond the last there is nothing");
        assert_eq!(grid.stochastic(2.0, 1.0, 2, 0.0), 4, "a level of its own is always taken");
    }
}
