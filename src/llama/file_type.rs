//! `general.file_type`: what most of a file is stored as.
//!
//! Source: llama.cpp `llama.h`, `enum llama_ftype`.

use crate::formats::gguf::{Metadata, Value};
use crate::tensor::{GgmlType, TensorInfo};

/// A kind of file, by the number that stands for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileType(pub u32);

/// Number, name, and the type that most bytes of such a file have.
const KINDS: [(u32, &str, GgmlType); 35] = [
    (0, "F32", GgmlType::F32),
    (1, "F16", GgmlType::F16),
    (2, "Q4_0", GgmlType::Q4_0),
    (3, "Q4_1", GgmlType::Q4_1),
    (7, "Q8_0", GgmlType::Q8_0),
    (8, "Q5_0", GgmlType::Q5_0),
    (9, "Q5_1", GgmlType::Q5_1),
    (10, "Q2_K", GgmlType::Q2K),
    (12, "Q3_K_M", GgmlType::Q3K),
    (11, "Q3_K_S", GgmlType::Q3K),
    (13, "Q3_K_L", GgmlType::Q3K),
    (15, "Q4_K_M", GgmlType::Q4K),
    (14, "Q4_K_S", GgmlType::Q4K),
    (17, "Q5_K_M", GgmlType::Q5K),
    (16, "Q5_K_S", GgmlType::Q5K),
    (18, "Q6_K", GgmlType::Q6K),
    (19, "IQ2_XXS", GgmlType::Iq2Xxs),
    (20, "IQ2_XS", GgmlType::Iq2Xs),
    (21, "Q2_K_S", GgmlType::Q2K),
    (22, "IQ3_XS", GgmlType::Iq3S),
    (23, "IQ3_XXS", GgmlType::Iq3Xxs),
    (24, "IQ1_S", GgmlType::Iq1S),
    (25, "IQ4_NL", GgmlType::Iq4Nl),
    (26, "IQ3_S", GgmlType::Iq3S),
    (27, "IQ3_M", GgmlType::Iq3S),
    (28, "IQ2_S", GgmlType::Iq2Xs),
    (29, "IQ2_M", GgmlType::Iq2S),
    (30, "IQ4_XS", GgmlType::Iq4Xs),
    (31, "IQ1_M", GgmlType::Iq1M),
    (32, "BF16", GgmlType::Bf16),
    (36, "TQ1_0", GgmlType::Tq1_0),
    (37, "TQ2_0", GgmlType::Tq2_0),
    (38, "MXFP4_MOE", GgmlType::Mxfp4),
    (39, "NVFP4", GgmlType::Nvfp4),
    (40, "Q1_0", GgmlType::Q1_0),
];

impl FileType {
    /// Its key.
    pub const KEY: &str = "general.file_type";

    /// What a file says.
    pub fn said(metadata: &Metadata) -> Option<Self> {
        u32::try_from(metadata.number(Self::KEY)?).ok().map(Self)
    }

    /// The kind of a file that is mostly of a type: the usual one, where there are several.
    pub fn mostly(ggml: GgmlType) -> Option<Self> {
        KINDS.iter().find(|(_, _, of)| *of == ggml).map(|(number, ..)| Self(*number))
    }

    /// The kind that llama.cpp calls so, in any case.
    pub fn named(name: &str) -> Option<Self> {
        KINDS.iter().find(|(_, of, _)| of.eq_ignore_ascii_case(name)).map(|(number, ..)| Self(*number))
    }

    /// llama.cpp's name.
    pub fn name(self) -> Option<&'static str> {
        KINDS.iter().find(|(number, ..)| *number == self.0).map(|(_, name, _)| *name)
    }

    /// The type that most bytes of such a file have.
    pub fn ggml(self) -> Option<GgmlType> {
        KINDS.iter().find(|(number, ..)| *number == self.0).map(|(.., ggml)| *ggml)
    }

    /// Makes what a file says true, after its tensors `before` became those `after`: only where another type than before
    /// has most of the bytes.
    pub fn follow<'a>(
        metadata: &mut Metadata,
        before: impl Iterator<Item = &'a TensorInfo>,
        after: impl Iterator<Item = &'a TensorInfo>,
    ) {
        let (before, after) = (most(before), most(after));
        if before == after || metadata.get(Self::KEY).is_none() {
            return;
        }
        if let Some(kind) = after.and_then(Self::mostly) {
            metadata.set(Self::KEY, Value::U32(kind.0));
        }
    }
}

/// The type that most values of the weights have.
fn most<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> Option<GgmlType> {
    let mut values: Vec<(GgmlType, u64)> = Vec::new();
    for tensor in tensors.filter(|tensor| tensor.shape.as_slice().len() > 1) {
        let Some(ggml) = GgmlType::of(&tensor.dtype) else { continue };
        let count = tensor.shape.elements().unwrap_or(0);
        match values.iter_mut().find(|(known, _)| *known == ggml) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => values.push((ggml, count)),
        }
    }
    values.into_iter().max_by_key(|(_, count)| *count).map(|(ggml, _)| ggml)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    fn tensor(ggml: GgmlType, rows: u64) -> TensorInfo {
        let (shape, bytes) = (Shape::from([rows, 256]), ggml.bytes_of(rows * 256).unwrap());
        TensorInfo { name: "w".into(), dtype: ggml.dtype(), shape, offset: 0, bytes }
    }

    #[test]
    fn every_number_has_one_name() {
        let numbers: std::collections::HashSet<u32> = KINDS.iter().map(|(number, ..)| *number).collect();
        assert_eq!(numbers.len(), KINDS.len());
        assert_eq!((FileType(15).name(), FileType(15).ggml()), (Some("Q4_K_M"), Some(GgmlType::Q4K)));
        assert_eq!(FileType::mostly(GgmlType::Q4K), Some(FileType(15)));
        assert_eq!(FileType(4).name(), None);
    }

    #[test]
    fn what_a_file_says_follows_the_bulk_of_it() {
        let said = |before: &[TensorInfo], after: &[TensorInfo]| {
            let mut metadata = Metadata::new();
            metadata.set(FileType::KEY, Value::U32(14));
            FileType::follow(&mut metadata, before.iter(), after.iter());
            FileType::said(&metadata).unwrap().0
        };
        let (few, many) = (tensor(GgmlType::F16, 1), [tensor(GgmlType::Q4K, 9)]);
        assert_eq!(said(&many, &[many[0].clone(), few]), 14, "a mix stays the mix that it is");
        assert_eq!(said(&many, &[tensor(GgmlType::F16, 9)]), 1);
        assert_eq!(FileType::said(&Metadata::new()), None);
    }
}
