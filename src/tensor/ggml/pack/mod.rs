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
use crate::tensor::simd::{Level, Simd, per_cpu};

/// A way to pack whole blocks.
trait Pack {
    fn pack<const W: usize, S: Simd<W>>(simd: S, values: &[f32], bytes: &mut [u8]);
}

/// Calls a function that packs, with the vectors of the machine if it asks for them.
macro_rules! pack {
    ($function:path, $simd:ident, $values:expr, $bytes:expr) => {
        $function($values, $bytes)
    };
    ($function:path, $simd:ident, $values:expr, $bytes:expr, vectors) => {
        $function($simd, $values, $bytes)
    };
}

/// Declares how blocks of every type are packed: values and bytes that a function takes at once, one block or several.
/// (The functions are called by name: a closure might be compiled without the instructions of its caller.)
macro_rules! blocks {
    ($($ggml:ident: $count:literal, $size:literal, $some:path $(, $vectors:ident)?;)*) => {
        $(
            struct $ggml;
            impl Pack for $ggml {
                #[inline(always)]
                #[allow(unused_variables, reason = "some ask for vectors")]
                fn pack<const W: usize, S: Simd<W>>(simd: S, values: &[f32], bytes: &mut [u8]) {
                    let (values, rest) = values.as_chunks::<$count>();
                    let (blocks, last) = bytes.as_chunks_mut::<$size>();
                    for (values, blocks) in values.iter().zip(blocks) {
                        pack!($some, simd, values, blocks $(, $vectors)?);
                    }
                    if !rest.is_empty() {
                        // The rest again and again: a lane without values would take the longer way.
                        let (mut full, mut blocks) = ([0.0; $count], [0; $size]);
                        for part in full.chunks_mut(rest.len()) {
                            part.copy_from_slice(&rest[..part.len()]);
                        }
                        pack!($some, simd, &full, &mut blocks $(, $vectors)?);
                        last.copy_from_slice(&blocks[..last.len()]);
                    }
                }
            }
        )*

        /// Whether blocks of that type are made here.
        pub(super) fn is_known(ggml: GgmlType) -> bool {
            matches!(ggml, $(GgmlType::$ggml)|*)
        }

        fn encode_with(level: Level, ggml: GgmlType, values: &[f32], bytes: &mut [u8]) {
            match ggml {
                $(GgmlType::$ggml => pack_at::<$ggml>(level, values, bytes),)*
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
    Q2K: 512, 168, k::q2, vectors;
    Q3K: 512, 220, k::q3;
    Q4K: 1024, 576, k::q4, vectors;
    Q5K: 1024, 704, k::q5, vectors;
    Q6K: 512, 420, k::q6, vectors;
    Iq4Nl: 512, 288, levels::iq4_nl;
    Mxfp4: 32, 17, levels::mxfp4;
}

/// Packs whole blocks of a type that [`is_known`].
pub(super) fn encode(ggml: GgmlType, values: &[f32], bytes: &mut [u8]) {
    encode_with(Level::best(), ggml, values, bytes);
}

per_cpu! {
    fn pack_at<P: Pack>(values: &[f32], bytes: &mut [u8]) = vectors of pack_body;
}

#[inline(always)]
fn pack_body<const W: usize, S: Simd<W>, P: Pack>(simd: S, values: &[f32], bytes: &mut [u8]) {
    P::pack(simd, values, bytes);
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
