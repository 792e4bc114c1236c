//! Which types there are.

use std::fmt;

use crate::tensor::{Dtype, Float};

/// A ggml type, as the tensors of a GGUF file have it.
#[allow(missing_docs, reason = "the variants are the names; their facts are the rows of the table below")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    Iq2Xxs,
    Iq2Xs,
    Iq3Xxs,
    Iq1S,
    Iq4Nl,
    Iq3S,
    Iq2S,
    Iq4Xs,
    I8,
    I16,
    I32,
    I64,
    F64,
    Iq1M,
    Bf16,
    Tq1_0,
    Tq2_0,
    Mxfp4,
    Nvfp4,
    Q1_0,
    Q2_0,
}

/// What is known about a type.
struct Row {
    ggml: GgmlType,
    name: &'static str,
    id: u32,
    /// Values in a block.
    values: usize,
    /// Bytes of a block.
    bytes: usize,
    /// Where numbers of several bytes lie in a block: (first byte, width). Without, a block of a big-endian file
    /// cannot be told from its bytes alone.
    words: Option<&'static [(usize, usize)]>,
}

const fn row(
    ggml: GgmlType,
    name: &'static str,
    id: u32,
    values: usize,
    bytes: usize,
    words: Option<&'static [(usize, usize)]>,
) -> Row {
    Row { ggml, name, id, values, bytes, words }
}

const NONE: Option<&[(usize, usize)]> = Some(&[]);
const TWO: Option<&[(usize, usize)]> = Some(&[(0, 2)]);
const FOUR: Option<&[(usize, usize)]> = Some(&[(0, 4)]);
const EIGHT: Option<&[(usize, usize)]> = Some(&[(0, 8)]);
const PAIR: Option<&[(usize, usize)]> = Some(&[(0, 2), (2, 2)]);

#[rustfmt::skip]
static ROWS: [Row; 35] = [
    row(GgmlType::F32, "F32", 0, 1, 4, FOUR),
    row(GgmlType::F16, "F16", 1, 1, 2, TWO),
    row(GgmlType::Q4_0, "Q4_0", 2, 32, 18, TWO),
    row(GgmlType::Q4_1, "Q4_1", 3, 32, 20, PAIR),
    row(GgmlType::Q5_0, "Q5_0", 6, 32, 22, TWO),
    row(GgmlType::Q5_1, "Q5_1", 7, 32, 24, PAIR),
    row(GgmlType::Q8_0, "Q8_0", 8, 32, 34, TWO),
    row(GgmlType::Q8_1, "Q8_1", 9, 32, 36, PAIR),
    row(GgmlType::Q2K, "Q2_K", 10, 256, 84, Some(&[(80, 2), (82, 2)])),
    row(GgmlType::Q3K, "Q3_K", 11, 256, 110, Some(&[(108, 2)])),
    row(GgmlType::Q4K, "Q4_K", 12, 256, 144, PAIR),
    row(GgmlType::Q5K, "Q5_K", 13, 256, 176, PAIR),
    row(GgmlType::Q6K, "Q6_K", 14, 256, 210, Some(&[(208, 2)])),
    row(GgmlType::Q8K, "Q8_K", 15, 256, 292, None),
    row(GgmlType::Iq2Xxs, "IQ2_XXS", 16, 256, 66, None),
    row(GgmlType::Iq2Xs, "IQ2_XS", 17, 256, 74, None),
    row(GgmlType::Iq3Xxs, "IQ3_XXS", 18, 256, 98, None),
    row(GgmlType::Iq1S, "IQ1_S", 19, 256, 50, None),
    row(GgmlType::Iq4Nl, "IQ4_NL", 20, 32, 18, TWO),
    row(GgmlType::Iq3S, "IQ3_S", 21, 256, 110, TWO),
    row(GgmlType::Iq2S, "IQ2_S", 22, 256, 82, TWO),
    row(GgmlType::Iq4Xs, "IQ4_XS", 23, 256, 136, PAIR),
    row(GgmlType::I8, "I8", 24, 1, 1, NONE),
    row(GgmlType::I16, "I16", 25, 1, 2, TWO),
    row(GgmlType::I32, "I32", 26, 1, 4, FOUR),
    row(GgmlType::I64, "I64", 27, 1, 8, EIGHT),
    row(GgmlType::F64, "F64", 28, 1, 8, EIGHT),
    row(GgmlType::Iq1M, "IQ1_M", 29, 256, 56, None),
    row(GgmlType::Bf16, "BF16", 30, 1, 2, TWO),
    row(GgmlType::Tq1_0, "TQ1_0", 34, 256, 54, Some(&[(52, 2)])),
    row(GgmlType::Tq2_0, "TQ2_0", 35, 256, 66, Some(&[(64, 2)])),
    row(GgmlType::Mxfp4, "MXFP4", 39, 32, 17, NONE),
    row(GgmlType::Nvfp4, "NVFP4", 40, 64, 36, NONE),
    row(GgmlType::Q1_0, "Q1_0", 41, 128, 18, TWO),
    row(GgmlType::Q2_0, "Q2_0", 42, 64, 18, TWO),
];

impl GgmlType {
    /// The type of that number in a file; `None` for one this crate does not know.
    pub fn from_id(id: u32) -> Option<Self> {
        ROWS.iter().find(|row| row.id == id).map(|row| row.ggml)
    }

    /// The type that ggml calls so, in any case.
    ///
    /// ```
    /// use lorakit::tensor::GgmlType;
    /// assert_eq!(GgmlType::from_name("q4_k"), Some(GgmlType::Q4K));
    /// ```
    pub fn from_name(name: &str) -> Option<Self> {
        ROWS.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.ggml)
    }

    /// All of them, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.ggml)
    }

    /// ggml's name, as in `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The number that stands for it in a file.
    pub fn id(self) -> u32 {
        self.row().id
    }

    /// (values, bytes) of one block; plain numbers are blocks of one.
    pub fn block(self) -> (usize, usize) {
        (self.row().values, self.row().bytes)
    }

    /// Bytes of `values` values in a row; `None` where they are no whole number of blocks, or too many to count.
    pub fn bytes_of(self, values: u64) -> Option<u64> {
        let row = self.row();
        let (per_block, bytes) = (row.values as u64, row.bytes as u64);
        values.is_multiple_of(per_block).then_some(values / per_block)?.checked_mul(bytes)
    }

    /// The same as an element type of a tensor: plain numbers are those of every other file.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::F64 => Dtype::F64,
            Self::I8 => Dtype::I8,
            Self::I16 => Dtype::I16,
            Self::I32 => Dtype::I32,
            Self::I64 => Dtype::I64,
            blocks => Dtype::Ggml(blocks),
        }
    }

    /// The type that holds the elements of `dtype`; `None` where ggml has none.
    pub fn of(dtype: &Dtype) -> Option<Self> {
        Self::all().find(|ggml| ggml.dtype() == *dtype)
    }

    /// The type as one of the plain floating-point numbers.
    pub fn float(self) -> Option<Float> {
        self.dtype().float()
    }

    /// Turns the blocks of a big-endian file into ours, in place; `false` where that cannot be done, because the parts
    /// of a block are read in several widths.
    #[must_use]
    pub fn swap_bytes(self, bytes: &mut [u8]) -> bool {
        let Some(words) = self.row().words else { return false };
        for block in bytes.chunks_exact_mut(self.row().bytes) {
            for &(first, width) in words {
                block[first..first + width].reverse();
            }
        }
        true
    }

    fn row(self) -> &'static Row {
        ROWS.iter().find(|row| row.ggml == self).expect("every variant has a row; a test walks them all")
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_comes_back_from_its_number_its_name_and_its_dtype() {
        for ggml in GgmlType::all() {
            assert_eq!(GgmlType::from_id(ggml.id()), Some(ggml));
            assert_eq!(GgmlType::from_name(&ggml.name().to_lowercase()), Some(ggml));
            assert_eq!(GgmlType::of(&ggml.dtype()), Some(ggml));
            assert_eq!(ggml.dtype().name(), ggml.name());
        }
        assert_eq!(GgmlType::from_id(4), None);
        assert_eq!(GgmlType::of(&Dtype::Bool), None);
    }

    #[test]
    fn bytes_are_counted_in_whole_blocks() {
        assert_eq!(GgmlType::Q4_0.bytes_of(64), Some(36));
        assert_eq!(GgmlType::Q4_0.bytes_of(33), None);
        assert_eq!(GgmlType::F64.bytes_of(u64::MAX), None);
        assert_eq!(GgmlType::Q6K.bytes_of(0), Some(0));
    }

    #[test]
    fn words_lie_inside_their_blocks_and_turn_back() {
        for row in &ROWS {
            for (first, width) in row.words.into_iter().flatten() {
                assert!(first + width <= row.bytes, "{}", row.name);
            }
            let bytes: Vec<u8> = (0..2 * row.bytes).map(|i| (i % 251) as u8).collect();
            let mut turned = bytes.clone();
            assert_eq!(row.ggml.swap_bytes(&mut turned), row.words.is_some());
            assert!(row.words.is_none_or(|words| words.is_empty()) == (turned == bytes), "{}", row.name);
            let _ = row.ggml.swap_bytes(&mut turned);
            assert_eq!(turned, bytes, "{}", row.name);
        }
    }
}
