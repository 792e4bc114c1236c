//! How one number is written in each format: to f32, from f32 by nearest or stochastic rounding.
//!
//! Everything here is branch-free integer arithmetic on the bits of an f32, so that loops over it vectorise. bf16 is
//! the upper half of an f32; f16 and the four fp8 formats are rows of constants ([`Layout`]) for one algorithm:
//!
//! | | exponent, mantissa bits | bias | largest | overflow becomes | NaN | −0 |
//! |---|---|---|---|---|---|---|
//! | F16 (IEEE 754) | 5, 10 | 15 | 65504 | ∞ | 0x7e00 + payload | yes |
//! | F8_E5M2 (arXiv 2209.05433) | 5, 2 | 15 | 57344 | ∞ | 0x7f | yes |
//! | F8_E4M3 (same; torch's `fn`) | 4, 3 | 7 | 448 | NaN | 0x7f | yes |
//! | F8_E4M3FNUZ (arXiv 2206.02915) | 4, 3 | 8 | 240 | NaN | 0x80 | no |
//! | F8_E5M2FNUZ (same) | 5, 2 | 16 | 57344 | NaN | 0x80 | no |
//!
//! Nearest is round to nearest, ties to even, as the hardware, the `half` crate and torch's casts
//! (`c10/util/Float8_*.h`) do it. Stochastic rounding goes up with a probability equal to the fraction that would be
//! cut off; it draws 32 random bits per element, exact for all but the subnormals, whose fraction is cut to 32 bits.

/// A number format of fixed width.
pub(super) trait Code: Copy + 'static {
    /// The bytes of one element, little-endian.
    type Bytes: bytemuck::Pod;
    /// The value as f32: exact for all but F64, which is rounded.
    fn widen(bytes: Self::Bytes) -> f32;
    /// The nearest element, ties to even.
    fn nearest(value: f32) -> Self::Bytes;
    /// One of the two neighbours, at random; a value that has an element of its own always gets it.
    fn stochastic(value: f32, random: u32) -> Self::Bytes;
    /// Whether the element is a number, neither infinite nor NaN.
    fn is_finite(bytes: Self::Bytes) -> bool;
    /// Whether the element is 0 or −0.
    fn is_zero(bytes: Self::Bytes) -> bool;
}

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7F80_0000;
/// Mantissa bits and exponent bias of f32.
const MANTISSA: u32 = f32::MANTISSA_DIGITS - 1;
const BIAS: u32 = 127;

/// IEEE binary64.
#[derive(Clone, Copy)]
pub(super) struct F64;

impl Code for F64 {
    type Bytes = [u8; 8];
    #[inline(always)]
    fn widen(bytes: [u8; 8]) -> f32 {
        f64::from_le_bytes(bytes) as f32
    }
    #[inline(always)]
    fn nearest(value: f32) -> [u8; 8] {
        f64::from(value).to_le_bytes()
    }
    #[inline(always)]
    fn stochastic(value: f32, _random: u32) -> [u8; 8] {
        Self::nearest(value)
    }
    #[inline(always)]
    fn is_finite(bytes: [u8; 8]) -> bool {
        f64::from_le_bytes(bytes).is_finite()
    }
    #[inline(always)]
    fn is_zero(bytes: [u8; 8]) -> bool {
        f64::from_le_bytes(bytes) == 0.0
    }
}

/// IEEE binary32.
#[derive(Clone, Copy)]
pub(super) struct F32;

impl Code for F32 {
    type Bytes = [u8; 4];
    #[inline(always)]
    fn widen(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
    #[inline(always)]
    fn nearest(value: f32) -> [u8; 4] {
        value.to_le_bytes()
    }
    #[inline(always)]
    fn stochastic(value: f32, _random: u32) -> [u8; 4] {
        value.to_le_bytes()
    }
    #[inline(always)]
    fn is_finite(bytes: [u8; 4]) -> bool {
        f32::from_le_bytes(bytes).is_finite()
    }
    #[inline(always)]
    fn is_zero(bytes: [u8; 4]) -> bool {
        f32::from_le_bytes(bytes) == 0.0
    }
}

/// bfloat16: the upper half of an f32.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

/// The bits of an f32, its upper half rounded to nearest, ties to even; of a NaN anything.
#[inline(always)]
pub(super) fn to_upper_half(bits: u32) -> u32 {
    // Adding just under half an ulp, or half where the last kept bit is odd, carries into it when it should.
    bits.wrapping_add(0x7FFF + (bits >> 16 & 1))
}

impl Code for Bf16 {
    type Bytes = [u8; 2];
    #[inline(always)]
    fn widen(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }
    #[inline(always)]
    fn nearest(value: f32) -> [u8; 2] {
        let bits = value.to_bits();
        upper_half(if bits & !SIGN > INFINITY { bits | QUIET } else { to_upper_half(bits) })
    }
    #[inline(always)]
    fn stochastic(value: f32, random: u32) -> [u8; 2] {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(random & 0xFFFF);
        upper_half(if bits & !SIGN > INFINITY { bits | QUIET } else { rounded })
    }
    #[inline(always)]
    fn is_finite(bytes: [u8; 2]) -> bool {
        u16::from_le_bytes(bytes) & 0x7F80 != 0x7F80
    }
    #[inline(always)]
    fn is_zero(bytes: [u8; 2]) -> bool {
        u16::from_le_bytes(bytes) & 0x7FFF == 0
    }
}

/// The bit that keeps a NaN one when its lower half is cut off (IEEE 754: the quiet bit).
const QUIET: u32 = 0x0040_0000;

#[inline(always)]
fn upper_half(bits: u32) -> [u8; 2] {
    let [_, _, low, high] = bits.to_le_bytes();
    [low, high]
}

/// A format narrower than f32 in exponent and mantissa. Codes are right-aligned in a u32.
trait Layout {
    const BITS: u32;
    const MANTISSA: u32;
    const BIAS: u32;
    /// Code of the largest finite value.
    const MAX: u32;
    /// What lies beyond it.
    const OVERFLOW: u32;
    const NAN: u32;
    /// The bits of a NaN that come from the NaN it was made of.
    const PAYLOAD: u32;
    const HAS_NEGATIVE_ZERO: bool;

    /// Mantissa bits an f32 has in excess.
    const EXCESS: u32 = MANTISSA - Self::MANTISSA;
    /// Bits of the smallest normal value as f32.
    const MIN_NORMAL: u32 = (BIAS + 1 - Self::BIAS) << MANTISSA;
    /// Sign bit of a code.
    const SIGN: u32 = 1 << (Self::BITS - 1);
}

/// The value of a code.
#[inline(always)]
fn widen<L: Layout>(code: u32) -> f32 {
    let sign = (code & L::SIGN) << (32 - L::BITS);
    let magnitude = code & (L::SIGN - 1);
    let shifted = magnitude << L::EXCESS;
    let normal = shifted + L::MIN_NORMAL - (1 << MANTISSA);
    // A subnormal is given the smallest normal exponent, then what that added is taken off again: exact, and no
    // f32 subnormal ever enters the floating point unit, where it can cost a hundred cycles.
    let subnormal = f32::from_bits(shifted + L::MIN_NORMAL) - f32::from_bits(L::MIN_NORMAL);
    let finite = if shifted >> MANTISSA == 0 { subnormal.to_bits() } else { normal };
    let special = if magnitude == L::OVERFLOW && L::OVERFLOW != L::NAN {
        INFINITY
    } else {
        INFINITY | QUIET | (shifted & (QUIET - 1))
    };
    f32::from_bits(sign | if is_number::<L>(code) { finite } else { special })
}

/// Whether a code is neither infinite nor NaN.
#[inline(always)]
fn is_number<L: Layout>(code: u32) -> bool {
    code & (L::SIGN - 1) <= L::MAX && (L::HAS_NEGATIVE_ZERO || code != L::NAN)
}

/// The nearest code.
#[inline(always)]
fn nearest<L: Layout>(value: f32) -> u32 {
    let magnitude = value.to_bits() & !SIGN;
    let odd = (magnitude >> L::EXCESS) & 1;
    let normal = rebias::<L>(magnitude).wrapping_add((1 << (L::EXCESS - 1)) - 1 + odd) >> L::EXCESS;
    // Adding a number whose ulp is the spacing of the subnormals makes the floating point unit do the rounding.
    let unit = f32::from_bits((BIAS + 1 - L::BIAS + L::EXCESS) << MANTISSA);
    let subnormal = (f32::from_bits(magnitude) + unit).to_bits().wrapping_sub(unit.to_bits());
    finish::<L>(value, if magnitude < L::MIN_NORMAL { subnormal } else { normal })
}

/// The code below or above, with the odds of the distances.
#[inline(always)]
fn stochastic<L: Layout>(value: f32, random: u32) -> u32 {
    let magnitude = value.to_bits() & !SIGN;
    let normal = rebias::<L>(magnitude).wrapping_add(random & ((1 << L::EXCESS) - 1)) >> L::EXCESS;
    // Counted in subnormal steps; only looked at below `MIN_NORMAL`, where that is less than 2^MANTISSA.
    let step_inverse = f32::from_bits((BIAS + L::BIAS - 1 + L::MANTISSA) << MANTISSA);
    let steps = f32::from_bits(magnitude) * step_inverse;
    let whole = steps as u32;
    let fraction = (steps - whole as f32) * TWO_TO_32;
    let subnormal = whole.wrapping_add(u32::from(random < fraction as u32));
    finish::<L>(value, if magnitude < L::MIN_NORMAL { subnormal } else { normal })
}

const TWO_TO_32: f32 = 4_294_967_296.0;

/// Moves the exponent of a normal f32 to the bias of the layout.
#[inline(always)]
fn rebias<L: Layout>(magnitude: u32) -> u32 {
    magnitude.wrapping_sub((BIAS - L::BIAS) << MANTISSA)
}

/// Puts sign, overflow and NaN to a rounded magnitude.
#[inline(always)]
fn finish<L: Layout>(value: f32, rounded: u32) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & !SIGN;
    let code = if rounded > L::MAX { L::OVERFLOW } else { rounded };
    let nan = L::NAN | ((magnitude >> L::EXCESS) & L::PAYLOAD);
    let code = if magnitude > INFINITY { nan } else { code };
    let sign = (bits & SIGN) >> (32 - L::BITS);
    if !L::HAS_NEGATIVE_ZERO && code == 0 { 0 } else { code | sign }
}

macro_rules! layout {
    ($name:ident, $bits:ty, $size:literal, mantissa $mantissa:literal, bias $bias:literal, max $max:literal,
     overflow $overflow:literal, nan $nan:literal, payload $payload:literal, negative zero $zero:literal) => {
        /// See the table of this file.
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Layout for $name {
            const BITS: u32 = <$bits>::BITS;
            const MANTISSA: u32 = $mantissa;
            const BIAS: u32 = $bias;
            const MAX: u32 = $max;
            const OVERFLOW: u32 = $overflow;
            const NAN: u32 = $nan;
            const PAYLOAD: u32 = $payload;
            const HAS_NEGATIVE_ZERO: bool = $zero;
        }

        impl Code for $name {
            type Bytes = [u8; $size];
            #[inline(always)]
            fn widen(bytes: Self::Bytes) -> f32 {
                widen::<Self>(<$bits>::from_le_bytes(bytes).into())
            }
            #[inline(always)]
            fn nearest(value: f32) -> Self::Bytes {
                low_bytes(nearest::<Self>(value))
            }
            #[inline(always)]
            fn stochastic(value: f32, random: u32) -> Self::Bytes {
                low_bytes(stochastic::<Self>(value, random))
            }
            #[inline(always)]
            fn is_finite(bytes: Self::Bytes) -> bool {
                is_number::<Self>(<$bits>::from_le_bytes(bytes).into())
            }
            #[inline(always)]
            fn is_zero(bytes: Self::Bytes) -> bool {
                let code = u32::from(<$bits>::from_le_bytes(bytes));
                if $zero { code & (Self::SIGN - 1) == 0 } else { code == 0 }
            }
        }
    };
}

layout!(F16, u16, 2, mantissa 10, bias 15, max 0x7BFF, overflow 0x7C00, nan 0x7E00, payload 0x3FF, negative zero true);
layout!(F8E5M2, u8, 1, mantissa 2, bias 15, max 0x7B, overflow 0x7C, nan 0x7F, payload 0, negative zero true);
layout!(F8E4M3, u8, 1, mantissa 3, bias 7, max 0x7E, overflow 0x7F, nan 0x7F, payload 0, negative zero true);
layout!(F8E4M3Fnuz, u8, 1, mantissa 3, bias 8, max 0x7F, overflow 0x80, nan 0x80, payload 0, negative zero false);
layout!(F8E5M2Fnuz, u8, 1, mantissa 2, bias 16, max 0x7F, overflow 0x80, nan 0x80, payload 0, negative zero false);

#[inline(always)]
fn low_bytes<const N: usize>(code: u32) -> [u8; N] {
    let bytes = code.to_le_bytes();
    std::array::from_fn(|i| bytes[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: sign · mantissa · 2^exponent, or `None` for what is not a number.
    fn by_definition<L: Layout>(code: u32) -> Option<f64> {
        let negative = code & L::SIGN != 0;
        let magnitude = code & (L::SIGN - 1);
        if magnitude > L::MAX || (!L::HAS_NEGATIVE_ZERO && code == L::SIGN) {
            return None;
        }
        let fraction = f64::from(magnitude & ((1 << L::MANTISSA) - 1)) / f64::from(1 << L::MANTISSA);
        let exponent = i32::try_from(magnitude >> L::MANTISSA).unwrap();
        let bias = i32::try_from(L::BIAS).unwrap();
        let value = if exponent == 0 {
            fraction * 2.0_f64.powi(1 - bias)
        } else {
            (1.0 + fraction) * 2.0_f64.powi(exponent - bias)
        };
        Some(if negative { -value } else { value })
    }

    fn check_every_code<L: Layout>() {
        for code in 0..1 << L::BITS {
            let value = widen::<L>(code);
            match by_definition::<L>(code) {
                Some(defined) => {
                    assert_eq!(f64::from(value).to_bits(), defined.to_bits(), "{code:#x}");
                    assert_eq!(nearest::<L>(value), code);
                    assert_eq!(stochastic::<L>(value, u32::MAX), code);
                }
                None => {
                    let infinite = code & (L::SIGN - 1) == L::OVERFLOW && L::OVERFLOW != L::NAN;
                    assert_eq!((value.is_infinite(), value.is_nan()), (infinite, !infinite), "{code:#x}");
                    assert!(!widen::<L>(nearest::<L>(value)).is_finite());
                }
            }
        }
    }

    /// Between each code and the next: the middle goes to the even one, everything else to the nearer one.
    fn check_every_gap<L: Layout>() {
        for code in 0..L::MAX {
            let (low, high) = (widen::<L>(code), widen::<L>(code + 1));
            let middle = low + (high - low) / 2.0;
            for sign in [1.0, -1.0] {
                let to = |value: f32| widen::<L>(nearest::<L>(value * sign)) * sign;
                assert_eq!(to(middle), if code % 2 == 0 { low } else { high }, "{code:#x}");
                assert_eq!((to(middle.next_down()), to(middle.next_up())), (low, high), "{code:#x}");
            }
        }
        // Half a step beyond the largest, a tie, goes to the largest where that is even (E4M3: 464 stays 448).
        let (below, max) = (widen::<L>(L::MAX - 1), widen::<L>(L::MAX));
        let edge = max + (max - below) / 2.0;
        assert_eq!(nearest::<L>(edge.next_down()), L::MAX);
        assert_eq!(nearest::<L>(edge), if L::MAX % 2 == 0 { L::MAX } else { L::OVERFLOW });
        assert_eq!(nearest::<L>(edge.next_up()), L::OVERFLOW);
    }

    #[test]
    fn every_code_is_what_its_format_defines_and_comes_back() {
        check_every_code::<F16>();
        check_every_code::<F8E5M2>();
        check_every_code::<F8E4M3>();
        check_every_code::<F8E4M3Fnuz>();
        check_every_code::<F8E5M2Fnuz>();
    }

    #[test]
    fn every_gap_is_rounded_to_nearest_and_ties_to_even() {
        check_every_gap::<F16>();
        check_every_gap::<F8E5M2>();
        check_every_gap::<F8E4M3>();
        check_every_gap::<F8E4M3Fnuz>();
        check_every_gap::<F8E5M2Fnuz>();
    }

    #[test]
    fn formats_without_a_negative_zero_never_write_nan_for_one() {
        for value in [-0.0, -1e-30, -f32::MIN_POSITIVE / 4.0] {
            assert_eq!((F8E4M3Fnuz::nearest(value), F8E5M2Fnuz::stochastic(value, u32::MAX)), ([0], [0]));
            assert_eq!(F8E4M3::nearest(value), [0x80]);
        }
    }

    #[test]
    fn a_nan_whose_payload_is_cut_off_stays_nan() {
        let nan = f32::from_bits(0x7F80_0001);
        assert!(Bf16::widen(Bf16::nearest(nan)).is_nan() && Bf16::widen(Bf16::stochastic(nan, 0)).is_nan());
        assert!(F16::widen(F16::nearest(nan)).is_nan() && F16::widen(F16::stochastic(nan, 0)).is_nan());
    }
}
