//! Quotients to codes, many at once: arithmetic without branches, in lanes as wide as the quotients, so that it vectorises.
//!
//! Every function here says of each code whether it is certain: a quotient is rounded itself, and close to a tie that could decide.

/// How close to a tie, in steps of the codes, a quotient is looked at exactly: some hundred times the rounding of f32.
const CLOSE: f32 = 1e-5;

/// The same of whole numbers, which reach further.
const CLOSE_WHOLE: f32 = 1e-4;

/// A small float: a sign, and magnitudes that ascend with their codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SmallFloat {
    /// Bits of the mantissa.
    mantissa: i32,
    /// The exponent below which steps stay the same.
    least: i32,
    /// The largest magnitude's code.
    most: u8,
    /// The bit of the sign.
    pub(super) sign: u8,
}

/// E2M1, E2M3, E4M3, E5M2.
const SMALL_FLOATS: [SmallFloat; 4] = [
    SmallFloat { mantissa: 1, least: 0, most: 7, sign: 8 },
    SmallFloat { mantissa: 3, least: 0, most: 31, sign: 32 },
    SmallFloat { mantissa: 3, least: -6, most: 126, sign: 128 },
    SmallFloat { mantissa: 2, least: -14, most: 123, sign: 128 },
];

impl SmallFloat {
    /// The small float whose codes stand for `table`, if one does.
    pub(super) fn of(table: &[f32]) -> Option<Self> {
        SMALL_FLOATS.into_iter().find(|float| {
            let is_level = |(code, level): (u8, &f32)| {
                let magnitude = code & (float.sign - 1);
                magnitude > float.most || *level == float.value(magnitude) * if code < float.sign { 1.0 } else { -1.0 }
            };
            table.len() == 2 * usize::from(float.sign)
                && (0..=u8::MAX).zip(table).all(is_level)
                && table[usize::from(float.sign)].is_sign_negative()
        })
    }

    fn value(self, magnitude: u8) -> f32 {
        let (exponent, steps) =
            (i32::from(magnitude >> self.mantissa), i32::from(magnitude) & ((1 << self.mantissa) - 1));
        let steps = if exponent == 0 { steps } else { steps + (1 << self.mantissa) };
        steps as f32 * 2.0_f32.powi(self.least + exponent.max(1) - 1 - self.mantissa)
    }
}

/// Levels in order, as many as sixteen, and what lies in the middle between them; ∞ for those that are not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Few {
    values: [f32; 16],
    middles: [f32; 16],
    codes: [u8; 16],
    /// Of codes of one value the same one.
    pub(super) alike: [u8; 16],
    last: u8,
    /// Whether codes are places.
    pub(super) is_plain: bool,
}

impl Few {
    /// The same of levels that ascend.
    pub(super) fn of(table: &[f32], values: &[f32], codes: &[u8]) -> Option<Self> {
        let last = u8::try_from(values.len().checked_sub(1)?).ok().filter(|last| *last < 16)?;
        let mut few = Self {
            values: [f32::INFINITY; 16],
            middles: [f32::INFINITY; 16],
            codes: [0; 16],
            alike: [0; 16],
            last,
            is_plain: codes.is_sorted() && codes.len() == 16,
        };
        few.values[..values.len()].copy_from_slice(values);
        few.codes[..codes.len()].copy_from_slice(codes);
        for (middle, pair) in few.middles.iter_mut().zip(values.windows(2)) {
            *middle = (pair[0] + pair[1]) / 2.0;
        }
        for (alike, value) in few.alike.iter_mut().zip(table) {
            *alike = codes[values.iter().position(|level| level == value)?];
        }
        (table.len() == 16).then_some(few)
    }
}

/// 2²³: a number that is not negative and smaller, added to it, is rounded to a whole one, ties to even, in the bits of the sum.
const WHOLE: f32 = 8_388_608.0;

/// The whole number that is nearest to `steps` or, by chance, one of the two around it, and 1 where that is not certain. What is
/// no number or too large gives any number.
#[inline(always)]
fn rounded<const CHANCE: bool>(steps: f32, chance: f32, close: f32) -> (i32, i32) {
    let sum = steps + WHOLE;
    let nearest = sum - WHOLE;
    let number = sum.to_bits().cast_signed() - WHOLE.to_bits().cast_signed();
    if CHANCE {
        let is_above = nearest > steps;
        let fraction = steps - (if is_above { nearest - 1.0 } else { nearest });
        // What is a level but for the rounding of the quotient stays one.
        let is_level = (steps - nearest).abs() < close;
        let up = i32::from(chance < fraction);
        let floor = number - i32::from(is_above);
        (if is_level { number } else { floor + up }, i32::from(fraction.is_nan()))
    } else {
        let is_clear = (steps - nearest).abs() < 0.5 - close;
        (number, i32::from(!is_clear))
    }
}

#[inline(always)]
pub(super) fn small_float<const CHANCE: bool>(
    float: SmallFloat,
    quotients: &[f32],
    chances: &[f32],
    codes: &mut [i32],
    unsure: &mut [i32],
) {
    let (least, mantissa, most) = (float.least, float.mantissa, i32::from(float.most));
    let sign_shift = 31 - float.sign.trailing_zeros();
    let places = codes.iter_mut().zip(unsure);
    for ((code, unsure), (quotient, chance)) in places.zip(quotients.iter().zip(chances)) {
        let bits = quotient.to_bits();
        let exponent = (bits >> 23 & 0xFF).cast_signed() - 127;
        let exponent = if exponent < least { least } else { exponent };
        // In steps of that exponent: a power of two, so the product is exact.
        let steps = quotient.abs() * f32::from_bits(((127 + mantissa - exponent) << 23).cast_unsigned());
        let (number, is_unsure) = rounded::<CHANCE>(steps, *chance, CLOSE);
        let magnitude = ((exponent - least) << mantissa).wrapping_add(number);
        let magnitude = if magnitude > most { most } else { magnitude };
        *code = magnitude | ((bits >> 31) << 31 >> sign_shift).cast_signed();
        *unsure = is_unsure;
    }
}

#[inline(always)]
pub(super) fn few_levels<const CHANCE: bool>(
    few: &Few,
    quotients: &[f32],
    chances: &[f32],
    codes: &mut [i32],
    unsure: &mut [i32],
) {
    let last = i32::from(few.last);
    let places = codes.iter_mut().zip(unsure);
    for ((code, unsure), (&quotient, &chance)) in places.zip(quotients.iter().zip(chances)) {
        let place = if CHANCE {
            let (mut below, mut above, mut place) = (f32::NEG_INFINITY, f32::INFINITY, 0);
            for (index, level) in (0..).zip(few.values) {
                let is_below = quotient >= level;
                below = if is_below { level } else { below };
                place = if is_below { index } else { place };
            }
            for level in few.values.into_iter().rev() {
                above = if quotient < level { level } else { above };
            }
            // Beyond the ends nothing goes up: this is 0 there, or NaN.
            let (up, _) = rounded::<true>((quotient - below) / (above - below), chance, CLOSE);
            *unsure = i32::from(quotient.is_nan());
            if (quotient > below) & (above < f32::INFINITY) & (below > f32::NEG_INFINITY) { place + up } else { place }
        } else {
            let (mut place, mut closest) = (0, f32::INFINITY);
            for middle in few.middles {
                place += i32::from(quotient >= middle);
                let away = (quotient - middle).abs();
                closest = if away < closest { away } else { closest };
            }
            // In steps of 1, the largest level of such tables.
            *unsure = i32::from(closest <= CLOSE) | i32::from(quotient.is_nan());
            place
        };
        *code = if place > last { last } else { place };
    }
    if !few.is_plain {
        codes.iter_mut().for_each(|code| *code = few.codes[usize::from(low_byte(*code) & 15)].into());
    }
}

#[inline(always)]
pub(super) fn whole<const CHANCE: bool>(
    (least, most): (u8, u8),
    quotients: &[f32],
    chances: &[f32],
    codes: &mut [i32],
    unsure: &mut [i32],
) {
    let (least, most) = (f32::from(least), f32::from(most));
    let places = codes.iter_mut().zip(unsure);
    for ((code, unsure), (&quotient, &chance)) in places.zip(quotients.iter().zip(chances)) {
        // Beyond the ends there is nothing to choose.
        let low = if quotient < least { least } else { quotient };
        let inside = if low > most { most } else { low };
        (*code, *unsure) = rounded::<CHANCE>(inside, chance, CLOSE_WHOLE);
    }
}

#[inline(always)]
pub(super) fn low_byte(code: i32) -> u8 {
    let [low, ..] = code.to_le_bytes();
    low
}
