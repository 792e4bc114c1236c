//! Values to blocks, with the scales that ggml chooses where no value matters more than another.
//!
//! `simple`: one scale from the extremes of the block. `parts`: the K types, whose scales are searched for. `levels`:
//! IQ4_NL and MXFP4. A search runs over all parts of a block at once, one part to a lane ([`lanes`]): within a part every
//! sum is taken in the order of the values, as ggml does, so the bytes are the same.

mod k;
mod lanes;
mod levels;
mod parts;
mod simple;

use super::GgmlType;
use crate::tensor::simd::{Level, per_cpu};

/// A way to pack whole blocks.
trait Pack {
    fn pack(values: &[f32], bytes: &mut [u8]);
}

/// Declares how blocks of every type are packed: values, bytes, function.
macro_rules! blocks {
    ($($ggml:ident: $values:literal, $bytes:literal, $one:path;)*) => {
        $(
            struct $ggml;
            impl Pack for $ggml {
                #[inline(always)]
                fn pack(values: &[f32], bytes: &mut [u8]) {
                    let (values, blocks) = (values.as_chunks::<$values>().0, bytes.as_chunks_mut::<$bytes>().0);
                    for (values, block) in values.iter().zip(blocks) {
                        $one(values, block);
                    }
                }
            }
        )*

        /// Whether blocks of that type are made here.
        pub(super) fn is_known(ggml: GgmlType) -> bool {
            matches!(ggml, $(GgmlType::$ggml |)* GgmlType::Iq4Nl)
        }

        fn encode_with(level: Level, ggml: GgmlType, values: &[f32], bytes: &mut [u8]) {
            match ggml {
                $(GgmlType::$ggml => pack_at::<$ggml>(level, values, bytes),)*
                GgmlType::Iq4Nl => pack_at::<levels::Iq4Nl>(level, values, bytes),
                other => panic!("{other} is not packed"),
            }
        }
    };
}

blocks! {
    Q4_0: 32, 18, simple::q4_0;
    Q4_1: 32, 20, simple::q4_1;
    Q5_0: 32, 22, simple::q5_0;
    Q5_1: 32, 24, simple::q5_1;
    Q8_0: 32, 34, simple::q8_0;
    Q2K: 256, 84, k::q2;
    Q3K: 256, 110, k::q3;
    Q4K: 256, 144, k::q4;
    Q5K: 256, 176, k::q5;
    Q6K: 256, 210, k::q6;
    Mxfp4: 32, 17, levels::mxfp4;
}

/// Packs whole blocks of a type that [`is_known`].
pub(super) fn encode(ggml: GgmlType, values: &[f32], bytes: &mut [u8]) {
    encode_with(Level::best(), ggml, values, bytes);
}

per_cpu! {
    fn pack_at<P: Pack>(values: &[f32], bytes: &mut [u8]) = pack_body::<P>;
}

#[inline(always)]
fn pack_body<P: Pack>(values: &[f32], bytes: &mut [u8]) {
    P::pack(values, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random_bits;
    use proptest::prelude::*;

    fn known() -> Vec<GgmlType> {
        GgmlType::all().filter(|ggml| is_known(*ggml)).collect()
    }

    fn packed(ggml: GgmlType, values: &[f32]) -> Vec<u8> {
        let bytes = ggml.bytes_of(values.len() as u64).unwrap();
        let mut out = vec![0; usize::try_from(bytes).unwrap()];
        ggml.encode(values, &mut out);
        out
    }

    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        let values: Vec<f32> = (0..2560).map(|i| (random_bits(5, i) >> 8) as f32 / 1e7 - 0.8).collect();
        for ggml in known() {
            let expected = packed(ggml, &values);
            for level in Level::all() {
                let mut out = vec![0; expected.len()];
                encode_with(level, ggml, &values, &mut out);
                assert!(out == expected, "{ggml} with {level:?}");
            }
        }
    }

    #[test]
    fn a_block_does_not_depend_on_its_neighbours() {
        let values: Vec<f32> = (0..2560).map(|i| (random_bits(6, i) >> 8) as f32 / 1e7 - 0.8).collect();
        for ggml in known() {
            let (per_block, bytes) = ggml.block();
            let all = packed(ggml, &values);
            for (at, block) in all.chunks_exact(bytes).enumerate() {
                assert_eq!(packed(ggml, &values[at * per_block..(at + 1) * per_block]), block, "{ggml} block {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_values_are_packed_without_a_panic(bits in proptest::collection::vec(any::<u32>(), 256)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            for ggml in known() {
                packed(ggml, &values);
            }
        }
    }
}
