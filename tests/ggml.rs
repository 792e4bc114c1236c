//! Blocks of ggml against ggml: what its C quantiser made of eight rows of values, what it makes of its blocks and of
//! random ones. `fixtures/ggml` has a part of every row; the whole lies in the reference data beside the checkout.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::path::{Path, PathBuf};

use lorakit::tensor::GgmlType;
use safetensors::SafeTensors;

/// Types whose blocks are made here, and are ggml's own byte for byte.
const PACKED: [GgmlType; 12] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Iq4Nl,
    GgmlType::Mxfp4,
];

/// The blocks of the fixtures.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ggml")
}

/// All blocks of the reference data.
fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/ggml")
}

struct Rows {
    count: usize,
    data: Vec<u8>,
}

impl Rows {
    fn floats(&self) -> Vec<f32> {
        self.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

fn read(place: &Path, file: &str, name: &str) -> Option<Rows> {
    let bytes = std::fs::read(place.join(format!("{file}.safetensors"))).ok()?;
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).ok()?;
    Some(Rows { count: tensor.shape()[0], data: tensor.data().to_vec() })
}

fn assert_equal(ggml: GgmlType, bytes: &[u8], expected: &[f32], what: &str) {
    let mut values = vec![0.0; expected.len()];
    ggml.decode(bytes, &mut values);
    for (at, (value, expected)) in values.iter().zip(expected).enumerate() {
        let same = value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan();
        assert!(same, "{ggml}, {what}, value {at}: {value:e} instead of {expected:e}");
    }
}

fn check_unpacked(place: &Path) {
    let mut checked = 0;
    for ggml in GgmlType::all() {
        for (blocks, values) in [("quantized", "quantized_dequantized"), ("random", "random_dequantized")] {
            let Some(expected) = read(place, ggml.name(), values) else { continue };
            let blocks = read(place, ggml.name(), blocks).unwrap();
            assert_equal(ggml, &blocks.data, &expected.floats(), values);
            checked += 1;
        }
    }
    // All but Q8_1 and Q8_K, which ggml itself never unpacks, and the plain numbers that are no blocks.
    assert_eq!(checked, 2 * 27, "{}", place.display());
}

#[test]
fn every_type_is_unpacked_as_ggml_does() {
    check_unpacked(&fixtures());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_type_is_unpacked_as_ggml_does_in_the_reference() {
    check_unpacked(&reference());
}

fn check_near(place: &Path) {
    let input = read(place, "input", "input").unwrap().floats();
    for ggml in [GgmlType::Q8_1, GgmlType::Q8K] {
        let blocks = read(place, ggml.name(), "quantized").unwrap();
        let (per_block, bytes) = ggml.block();
        for (block, values) in blocks.data.chunks_exact(bytes).zip(input.chunks_exact(per_block)) {
            let mut unpacked = vec![0.0; per_block];
            ggml.decode(block, &mut unpacked);
            let size = values.iter().fold(0.0_f32, |size, value| size.max(value.abs()));
            // The scale of Q8_1 is an f16; below its smallest numbers nothing is left.
            let allowed = size / 127.0 * 0.52 + size * 1e-3 + 1e-5;
            for (a, b) in unpacked.iter().zip(values) {
                assert!((a - b).abs() <= allowed, "{ggml}: {a:e} for {b:e}, allowed are {allowed:e}");
            }
        }
    }
}

#[test]
fn blocks_that_ggml_never_unpacks_are_near_what_they_were_made_of() {
    check_near(&fixtures());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn blocks_that_ggml_never_unpacks_are_near_what_they_were_made_of_in_the_reference() {
    check_near(&reference());
}

fn check_packed(place: &Path) {
    let input = read(place, "input", "input").unwrap();
    let values = input.floats();
    let mut wrong = Vec::new();
    for ggml in PACKED {
        assert!(ggml.can_encode());
        let expected = read(place, ggml.name(), "quantized").unwrap();
        assert_eq!(expected.count, input.count);
        let mut bytes = vec![0; expected.data.len()];
        ggml.encode(&values, &mut bytes);
        let blocks = bytes.chunks_exact(ggml.block().1).zip(expected.data.chunks_exact(ggml.block().1));
        let different: Vec<usize> = blocks.enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
        if !different.is_empty() {
            wrong.push(format!("{ggml}: blocks {different:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}: {wrong:#?}", place.display());
}

#[test]
fn blocks_are_made_byte_for_byte_as_ggml_makes_them() {
    check_packed(&fixtures());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn blocks_are_made_byte_for_byte_as_ggml_makes_them_in_the_reference() {
    check_packed(&reference());
}

fn check_rounded(place: &Path) {
    let values = read(place, "input", "input").unwrap().floats();
    for ggml in [GgmlType::F16, GgmlType::Bf16] {
        let expected = read(place, ggml.name(), "quantized").unwrap();
        let mut bytes = vec![0; expected.data.len()];
        ggml.encode(&values, &mut bytes);
        assert!(bytes == expected.data, "{ggml}");
    }
}

#[test]
fn plain_numbers_are_rounded_as_ggml_does() {
    check_rounded(&fixtures());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn plain_numbers_are_rounded_as_ggml_does_in_the_reference() {
    check_rounded(&reference());
}
