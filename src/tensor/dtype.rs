//! Element types: their names, widths and, for the real floating-point ones, their range.
//!
//! Everything known about a type is one row of [`ROWS`]; the names and widths are those of `safetensors` 0.8, and a
//! test holds every row against that crate. A name the table lacks is carried along as [`Dtype::Other`], because a
//! tensor nobody touches can be copied without being understood.

use std::fmt;
use std::sync::Arc;

use super::ggml::GgmlType;

/// The type of a tensor's elements, named as safetensors names it.
#[allow(missing_docs, reason = "the variants are the names; their facts are the rows of the table below")]
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
    /// Blocks of values that share scales, in a GGUF file; a width in bits per element there is not.
    Ggml(GgmlType),
    /// A name this crate does not know; such tensors are copied and never computed with.
    Other(Arc<str>),
}

/// The element types whose values can be computed with: real, at least 8 bits wide, one number per element.
///
/// (F8_E8M0 is a scale without sign or zero, and F4 and F6 come in blocks that share a scale.)
///
/// ```
/// use lorakit::Float;
///
/// assert_eq!(Float::from_option("bf16"), Some(Float::Bf16));
/// assert_eq!(Float::Bf16.bytes(), 2);
/// ```
#[allow(missing_docs, reason = "the variants are the names; their facts are the rows of the table below")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Float {
    F64,
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
}

impl Dtype {
    /// The type of that safetensors name; a name unknown to this crate becomes [`Dtype::Other`].
    pub fn from_name(name: &str) -> Self {
        let known = ROWS.iter().find(|row| row.name == name);
        known.map_or_else(|| Self::Other(name.into()), |row| row.dtype.clone())
    }

    /// The safetensors spelling, as in `F8_E4M3`.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            Self::Ggml(ggml) => ggml.name(),
            known => known.row().map_or("", |row| row.name),
        }
    }

    /// Width of one element in bits; `None` for a type this crate does not know.
    pub fn bits(&self) -> Option<u32> {
        self.row().map(|row| row.bits)
    }

    /// Its place in the list of the `safetensors` library, which writes the types at its end first; `None` for one it lacks.
    pub fn library_place(&self) -> Option<usize> {
        ROWS.iter().position(|row| row.dtype == *self)
    }

    /// The type as one that can be computed with.
    pub fn float(&self) -> Option<Float> {
        self.row().and_then(|row| row.float.as_ref()).map(|facts| facts.float)
    }

    fn row(&self) -> Option<&'static Row> {
        ROWS.iter().find(|row| row.dtype == *self)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Float {
    /// The same type among all element types.
    pub fn dtype(self) -> Dtype {
        self.facts().0.dtype.clone()
    }

    /// Width of one element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E4M3Fnuz | Self::F8E5M2Fnuz => 1,
        }
    }

    /// The largest finite value.
    pub fn max(self) -> f64 {
        self.facts().1.max
    }

    /// The type a user means on a command line: the safetensors or torch name, or a common short form, in any case.
    ///
    /// ```
    /// use lorakit::tensor::Float;
    /// assert_eq!(Float::from_option("fp16"), Some(Float::F16));
    /// assert_eq!(Float::from_option("bfloat16"), Some(Float::Bf16));
    /// assert_eq!(Float::from_option("int8"), None);
    /// ```
    pub fn from_option(typed: &str) -> Option<Self> {
        ROWS.iter().find_map(|row| {
            let facts = row.float.as_ref()?;
            let mut spellings = [row.name, facts.torch_name].into_iter().chain(facts.aliases.iter().copied());
            spellings.any(|spelling| spelling.eq_ignore_ascii_case(typed)).then_some(facts.float)
        })
    }

    /// The name of `torch.<name>`, as `config.json` has it in `torch_dtype`.
    pub fn torch_name(self) -> &'static str {
        self.facts().1.torch_name
    }

    /// Mantissa bits that are stored, without the leading one.
    pub fn digits(self) -> i32 {
        self.facts().1.digits
    }

    /// Exponent of the smallest normal number: below it the distance of neighbours stays the same.
    pub fn min_exponent(self) -> i32 {
        self.facts().1.min_exponent
    }

    fn facts(self) -> (&'static Row, &'static Facts) {
        let mut rows = ROWS.iter().filter_map(|row| Some((row, row.float.as_ref()?)));
        rows.find(|(_, facts)| facts.float == self).expect("every variant has a row; a test walks them all")
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.facts().0.name)
    }
}

/// What is known about an element type.
struct Row {
    dtype: Dtype,
    name: &'static str,
    bits: u32,
    float: Option<Facts>,
}

/// What is known about one that can be computed with.
struct Facts {
    float: Float,
    /// Largest finite value.
    max: f64,
    /// Mantissa bits that are stored.
    digits: i32,
    /// Exponent of the smallest normal number.
    min_exponent: i32,
    torch_name: &'static str,
    /// What else people type.
    aliases: &'static [&'static str],
}

const fn other(dtype: Dtype, name: &'static str, bits: u32) -> Row {
    Row { dtype, name, bits, float: None }
}

/// In the order of the `safetensors` library.
static ROWS: [Row; 22] = [
    other(Dtype::Bool, "BOOL", 8),
    other(Dtype::F4, "F4", 4),
    other(Dtype::F6E2M3, "F6_E2M3", 6),
    other(Dtype::F6E3M2, "F6_E3M2", 6),
    other(Dtype::U8, "U8", 8),
    other(Dtype::I8, "I8", 8),
    Row {
        dtype: Dtype::F8E5M2,
        name: "F8_E5M2",
        bits: 8,
        float: Some(Facts {
            float: Float::F8E5M2,
            max: 57344.0,
            digits: 2,
            min_exponent: -14,
            torch_name: "float8_e5m2",
            aliases: &["fp8_e5m2", "f8e5m2", "fp8e5m2"],
        }),
    },
    Row {
        dtype: Dtype::F8E4M3,
        name: "F8_E4M3",
        bits: 8,
        float: Some(Facts {
            float: Float::F8E4M3,
            max: 448.0,
            digits: 3,
            min_exponent: -6,
            torch_name: "float8_e4m3fn",
            aliases: &["fp8_e4m3", "fp8_e4m3fn", "f8_e4m3fn", "float8_e4m3", "f8e4m3", "fp8e4m3"],
        }),
    },
    other(Dtype::F8E8M0, "F8_E8M0", 8),
    Row {
        dtype: Dtype::F8E4M3Fnuz,
        name: "F8_E4M3FNUZ",
        bits: 8,
        float: Some(Facts {
            float: Float::F8E4M3Fnuz,
            max: 240.0,
            digits: 3,
            min_exponent: -7,
            torch_name: "float8_e4m3fnuz",
            aliases: &["fp8_e4m3fnuz", "f8e4m3fnuz", "fp8e4m3fnuz"],
        }),
    },
    Row {
        dtype: Dtype::F8E5M2Fnuz,
        name: "F8_E5M2FNUZ",
        bits: 8,
        float: Some(Facts {
            float: Float::F8E5M2Fnuz,
            max: 57344.0,
            digits: 2,
            min_exponent: -15,
            torch_name: "float8_e5m2fnuz",
            aliases: &["fp8_e5m2fnuz", "f8e5m2fnuz", "fp8e5m2fnuz"],
        }),
    },
    other(Dtype::I16, "I16", 16),
    other(Dtype::U16, "U16", 16),
    Row {
        dtype: Dtype::F16,
        name: "F16",
        bits: 16,
        float: Some(Facts {
            float: Float::F16,
            max: 65504.0,
            digits: 10,
            min_exponent: -14,
            torch_name: "float16",
            aliases: &["fp16", "half"],
        }),
    },
    Row {
        dtype: Dtype::Bf16,
        name: "BF16",
        bits: 16,
        float: Some(Facts {
            float: Float::Bf16,
            max: 3.3895313892515355e38,
            digits: 7,
            min_exponent: -126,
            torch_name: "bfloat16",
            aliases: &["bfp16"],
        }),
    },
    other(Dtype::I32, "I32", 32),
    other(Dtype::U32, "U32", 32),
    Row {
        dtype: Dtype::F32,
        name: "F32",
        bits: 32,
        float: Some(Facts {
            float: Float::F32,
            max: 3.4028234663852886e38,
            digits: 23,
            min_exponent: -126,
            torch_name: "float32",
            aliases: &["fp32", "float"],
        }),
    },
    other(Dtype::C64, "C64", 64),
    Row {
        dtype: Dtype::F64,
        name: "F64",
        bits: 64,
        float: Some(Facts {
            float: Float::F64,
            max: f64::MAX,
            digits: 52,
            min_exponent: -1022,
            torch_name: "float64",
            aliases: &["fp64", "double"],
        }),
    },
    other(Dtype::I64, "I64", 64),
    other(Dtype::U64, "U64", 64),
];

/// Every [`Float`], for tests that must reach each of them.
#[cfg(test)]
pub(super) const FLOATS: [Float; 8] = [
    Float::F64,
    Float::F32,
    Float::F16,
    Float::Bf16,
    Float::F8E4M3,
    Float::F8E5M2,
    Float::F8E4M3Fnuz,
    Float::F8E5M2Fnuz,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_widths_are_those_of_the_safetensors_crate() {
        for row in &ROWS {
            let theirs: safetensors::Dtype = serde_json::from_value(row.name.into()).unwrap();
            assert_eq!(u32::try_from(theirs.bitsize()), Ok(row.bits), "{}", row.name);
            assert_eq!(theirs.to_string(), row.dtype.name());
            assert_eq!(Dtype::from_name(row.name), row.dtype);
            assert_eq!(row.dtype.bits(), Some(row.bits));
        }
    }

    #[test]
    fn an_unknown_name_is_kept_as_it_is() {
        let dtype = Dtype::from_name("Q4_K");
        assert_eq!(dtype, Dtype::Other("Q4_K".into()));
        assert_eq!((dtype.name(), dtype.bits(), dtype.float()), ("Q4_K", None, None));
        assert_eq!(format!("{dtype} {:>5}", Dtype::Bf16), "Q4_K  BF16");
    }

    #[test]
    fn every_float_has_one_row_and_comes_back_from_it() {
        for float in FLOATS {
            assert_eq!(float.dtype().float(), Some(float));
            assert_eq!(u32::try_from(float.bytes() * 8).unwrap(), float.dtype().bits().unwrap());
            assert_eq!(Float::from_option(&float.to_string()), Some(float));
            assert_eq!(Float::from_option(float.torch_name()), Some(float));
        }
        assert_eq!(ROWS.iter().filter(|row| row.float.is_some()).count(), FLOATS.len());
    }

    #[test]
    fn every_spelling_means_one_type() {
        let mut seen = HashSet::new();
        for row in &ROWS {
            for facts in row.float.iter() {
                assert!(seen.insert(row.name.to_lowercase()) | seen.insert(facts.torch_name.into()), "{}", row.name);
                for alias in facts.aliases {
                    assert!(seen.insert((*alias).into()), "`{alias}` is listed twice");
                    assert_eq!(Float::from_option(&alias.to_uppercase()), Some(facts.float));
                }
            }
        }
        assert_eq!(Float::from_option("int8"), None);
    }
}
