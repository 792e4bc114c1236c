//! The base that a QLoRA was trained on, told by how its 16-bit weights were quantised then.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::tensor::Float;

/// Elements that share a scale unless something else is said (`bitsandbytes`).
const BLOCK: usize = 64;

/// How `bitsandbytes` quantised linear weights when they were loaded.
///
/// ```
/// let spec: lorakit::model::TrainBase = "nf4,double,block=128".parse()?;
/// assert_eq!(spec.to_string(), "nf4,double,block=128");
/// # Ok::<(), lorakit::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainBase {
    /// Which codes.
    pub codes: TrainCodes,
    /// The scales are quantised as well.
    pub double: bool,
    /// Elements that share a scale.
    pub block: usize,
    /// What the model was loaded in; each weight's own type, if nothing is said.
    pub dtype: Option<Float>,
}

/// The codes of a base for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainCodes {
    /// `load_in_4bit`, type `nf4`.
    Nf4,
    /// `load_in_4bit`, type `fp4`.
    Fp4,
    /// `load_in_8bit`.
    Int8,
}

impl FromStr for TrainBase {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |problem: String| {
            Error::invalid("--train-base", problem)
                .hint("nf4, fp4 or int8, and of the first two `,double`, `,block=128`, `,dtype=bf16`")
        };
        let mut words = text.split(',').map(str::trim);
        let codes = match words.next().map(str::to_lowercase).as_deref() {
            Some("nf4") => TrainCodes::Nf4,
            Some("fp4") => TrainCodes::Fp4,
            Some("int8") => TrainCodes::Int8,
            _ => return Err(wrong(format!("`{text}` begins with no kind of codes"))),
        };
        let mut found = Self { codes, double: false, block: BLOCK, dtype: None };
        for word in words {
            match word.split_once('=') {
                None if word == "double" && codes != TrainCodes::Int8 => found.double = true,
                Some(("block", size)) if codes != TrainCodes::Int8 => {
                    let size =
                        size.parse().ok().filter(|size: &usize| size.is_power_of_two() && (32..=4096).contains(size));
                    found.block = size.ok_or_else(|| wrong(format!("`{word}`: blocks have 32, 64 … 4096 elements")))?;
                }
                Some(("dtype", name)) => {
                    let float = Float::from_option(name).filter(|float| [2, 4].contains(&float.bytes()));
                    found.dtype = Some(float.ok_or_else(|| wrong(format!("`{word}`: bf16, f16 or f32")))?);
                }
                _ => return Err(wrong(format!("`{word}` means nothing in `{text}`"))),
            }
        }
        Ok(found)
    }
}

impl fmt::Display for TrainBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.codes {
            TrainCodes::Nf4 => "nf4",
            TrainCodes::Fp4 => "fp4",
            TrainCodes::Int8 => "int8",
        })?;
        if self.double {
            f.write_str(",double")?;
        }
        if self.block != BLOCK {
            write!(f, ",block={}", self.block)?;
        }
        match self.dtype {
            Some(float) => write!(f, ",dtype={}", float.dtype().name().to_lowercase()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read() {
        for text in ["nf4", "fp4,block=128", "nf4,double,dtype=bf16", "int8", "nf4,double,block=4096,dtype=f16"] {
            assert_eq!(text.parse::<TrainBase>().expect(text).to_string(), text);
        }
        for text in
            ["", "nf5", "nf4,block=63", "nf4,block=0", "int8,double", "nf4,dtype=f8_e4m3", "nf4,x", "nf4,block=64x"]
        {
            assert!(text.parse::<TrainBase>().is_err(), "{text}");
        }
    }
}
