//! What codes stand for.
//!
//! | table | codes | source |
//! |---|---|---|
//! | E2M1 | 16, sign in the upper bit | OCP Microscaling 1.0 |
//! | E2M3 | 64, sign in the upper bit | the same |
//! | NF4 | 16, ascending | arXiv 2305.14314; the digits are bitsandbytes' |
//! | FP4 | 16, sign in the upper bit, not ascending | bitsandbytes, `create_fp4_map` |
//! | dynamic map | 256, ascending | arXiv 1511.04561; the digits are bitsandbytes' |

/// Two bits of exponent, one of mantissa. Code 8 is −0.
pub static E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Two bits of exponent, three of mantissa. Code 32 is −0.
pub static E2M3: [f32; 64] = e2m3();

const fn e2m3() -> [f32; 64] {
    let mut table = [0.0; 64];
    let mut code = 0;
    while code < 32_usize {
        let (exponent, mantissa) = (code >> 3, (code & 7) as f32 / 8.0);
        let magnitude = match exponent {
            0 => mantissa,
            1 => 1.0 + mantissa,
            2 => 2.0 + 2.0 * mantissa,
            _ => 4.0 + 4.0 * mantissa,
        };
        table[code] = magnitude;
        table[code + 32] = -magnitude;
        code += 1;
    }
    table
}

/// The quantiles of a normal distribution (QLoRA).
pub static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Twelfths. Code 8 is +0, as the stored map has it.
pub static FP4: [f32; 16] = [
    0.0,
    0.062_5 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    0.0,
    -0.062_5 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

/// The positive levels of bitsandbytes' signed dynamic map below 1. Another `linspace` differs in the last bit of a quarter of
/// them, so they stand here digit by digit.
#[rustfmt::skip]
pub static DYNAMIC_POSITIVE: [f32; 127] = [
    0.000_000_550_000_04, 0.000_003_250_000_2, 0.000_007_75, 0.000_021_249_998, 0.000_043_75, 0.000_066_25,
    0.000_088_75, 0.000_156_250_01, 0.000_268_750_04, 0.000_381_250_02, 0.000_493_750_03, 0.000_606_250_1,
    0.000_718_750_06, 0.000_831_25, 0.000_943_750_1, 0.001_281_249_9, 0.001_843_75, 0.002_406_25, 0.002_968_75,
    0.003_531_249_7, 0.004_093_75, 0.004_656_249_7, 0.005_218_750_3, 0.005_781_25, 0.006_343_75, 0.006_906_25,
    0.007_468_75, 0.008_031_25, 0.008_593_75, 0.009_156_249, 0.009_718_75, 0.011_406_25, 0.014_218_75, 0.017_031_25,
    0.019_843_752, 0.022_656_25, 0.025_468_75, 0.028_281_251, 0.031_093_75, 0.033_906_25, 0.036_718_752, 0.039_531_25,
    0.042_343_747, 0.045_156_25, 0.047_968_75, 0.050_781_25, 0.053_593_75, 0.056_406_25, 0.059_218_753, 0.062_031_25,
    0.064_843_75, 0.067_656_256, 0.070_468_746, 0.073_281_25, 0.076_093_75, 0.078_906_25, 0.081_718_76, 0.084_531_25,
    0.087_343_75, 0.090_156_25, 0.092_968_754, 0.095_781_26, 0.098_593_75, 0.107_031_256, 0.121_093_75, 0.135_156_24,
    0.149_218_75, 0.163_281_25, 0.177_343_76, 0.191_406_25, 0.205_468_74, 0.219_531_25, 0.233_593_75, 0.247_656_24,
    0.261_718_75, 0.275_781_27, 0.289_843_74, 0.303_906_26, 0.317_968_73, 0.332_031_25, 0.346_093_74, 0.360_156_24,
    0.374_218_76, 0.388_281_23, 0.402_343_75, 0.416_406_24, 0.430_468_74, 0.444_531_26, 0.458_593_73, 0.472_656_25,
    0.486_718_7, 0.500_781_24, 0.514_843_7, 0.528_906_2, 0.542_968_75, 0.557_031_3, 0.571_093_8, 0.585_156_26,
    0.599_218_7, 0.613_281_25, 0.627_343_8, 0.641_406_3, 0.655_468_76, 0.669_531_2, 0.683_593_75, 0.697_656_3,
    0.711_718_8, 0.725_781_26, 0.739_843_7, 0.753_906_25, 0.767_968_8, 0.782_031_24, 0.796_093_76, 0.810_156_2,
    0.824_218_75, 0.838_281_3, 0.852_343_74, 0.866_406_26, 0.880_468_7, 0.894_531_25, 0.908_593_8, 0.922_656_24,
    0.936_718_76, 0.950_781_2, 0.964_843_75, 0.978_906_3, 0.992_968_74,
];

/// The signed dynamic map: 127 negative levels, 0, as many positive ones, 1.
pub fn dynamic_map() -> [f32; 256] {
    let mut map = [0.0; 256];
    for (at, level) in DYNAMIC_POSITIVE.into_iter().enumerate() {
        map[128 + at] = level;
        map[126 - at] = -level;
    }
    map[255] = 1.0;
    map
}

/// 2^(byte − 127), the number that an E8M0 scale stands for; NaN for 255. The smallest is subnormal: it is made of its bits.
#[inline(always)]
pub fn power_of_two(byte: u8) -> f32 {
    f32::from_bits(match byte {
        0 => 0x0040_0000,
        255 => 0x7FC0_0000,
        normal => u32::from(normal) << 23,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_are_what_their_bits_say() {
        for (code, level) in (0_u8..).zip(E2M3) {
            let (exponent, mantissa) = (code >> 3 & 3, f32::from(code & 7));
            let magnitude =
                if exponent == 0 { mantissa / 8.0 } else { (1.0 + mantissa / 8.0) * (1 << (exponent - 1)) as f32 };
            assert_eq!(level, if code >= 32 { -magnitude } else { magnitude });
        }
        assert_eq!((E2M3[31], E2M3[1]), (7.5, 0.125));
        assert!(E2M1[8].is_sign_negative() && FP4[8].is_sign_positive());
    }

    #[test]
    fn tables_have_the_bits_of_bitsandbytes() {
        let bits = |table: &[f32]| table.iter().map(|level| f64::from(*level)).collect::<Vec<_>>();
        assert_eq!(bits(&NF4)[1], -0.696_192_800_998_687_7);
        assert_eq!(bits(&NF4)[14], 0.722_956_836_223_602_3);
        assert_eq!(bits(&FP4)[1], 0.005_208_333_488_553_762_4);
        assert_eq!(bits(&FP4)[2], 0.666_666_686_534_881_6);
        let map = dynamic_map();
        assert!(map.is_sorted() && map[127] == 0.0 && map[255] == 1.0);
        assert_eq!(f64::from(map[128]), 5.500_000_384_017_767e-7);
        assert_eq!(f64::from(map[254]), 0.992_968_738_079_071);
    }

    #[test]
    fn powers_of_two_reach_the_subnormals() {
        assert_eq!(power_of_two(127), 1.0);
        assert_eq!(power_of_two(254), 2.0_f32.powi(127));
        assert_eq!(f64::from(power_of_two(0)), 2.0_f64.powi(-127));
        assert!(power_of_two(255).is_nan());
    }
}
