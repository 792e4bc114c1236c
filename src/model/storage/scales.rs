//! Scales, and what else stands beside codes in a number per group: read as they are needed, so that opening a model costs
//! nothing.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::codes::power_of_two;
use crate::tensor::{Dtype, Float};

/// A tensor of scales.
#[derive(Debug, Clone)]
pub struct Scales {
    /// Where it lies.
    pub stored: Stored,
    code: Code,
}

/// How they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Float(Float),
    /// Powers of two.
    E8M0,
}

impl Scales {
    /// The scales `stored`; bytes without a type of their own are powers of two.
    ///
    /// # Errors
    /// When they are no numbers.
    pub fn of(stored: Stored) -> Result<Self> {
        let code = match &stored.info.dtype {
            Dtype::F8E8M0 | Dtype::U8 => Code::E8M0,
            other => match other.float() {
                Some(float) => Code::Float(float),
                None => {
                    let what =
                        format!("tensor `{}` holds scales as {other}, which are no numbers here", stored.info.name);
                    return Err(Error::unsupported(stored.path(), what));
                }
            },
        };
        Ok(Self { stored, code })
    }

    /// The same, where bytes without a type of their own are E4M3.
    ///
    /// # Errors
    /// When they are no numbers.
    pub fn of_e4m3(stored: Stored) -> Result<Self> {
        if stored.info.dtype == Dtype::U8 {
            return Ok(Self { stored, code: Code::Float(Float::F8E4M3) });
        }
        Self::of(stored)
    }

    /// The type of numbers of 16 or 32 bits.
    pub fn float(&self) -> Option<Float> {
        match self.code {
            Code::Float(float) if float.bytes() > 1 => Some(float),
            _ => None,
        }
    }

    /// What people call their type.
    pub fn dtype(&self) -> String {
        match self.code {
            Code::Float(float) => format!("{float} scales"),
            Code::E8M0 => "E8M0 scales".into(),
        }
    }

    /// The sizes of its dimensions.
    pub fn shape(&self) -> &[u64] {
        self.stored.info.shape.as_slice()
    }

    /// Reads those of `range`.
    ///
    /// # Errors
    /// When one is no finite number.
    pub fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = self.bytes() as u64;
        let bytes = self.stored.read(range.start as u64 * width, range.len() as u64 * width)?;
        match self.code {
            Code::Float(float) => float.decode(&bytes, out),
            Code::E8M0 => bytes.iter().zip(out.iter_mut()).for_each(|(byte, value)| *value = power_of_two(*byte)),
        }
        match out.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(self.refuse(range.start + at, out[at], "a finite number")),
        }
    }

    /// The same of scales that must be above 0.
    ///
    /// # Errors
    /// When one is not.
    pub fn read_positive(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let first = range.start;
        self.read(range, out)?;
        match out.iter().position(|value| *value <= 0.0) {
            None => Ok(()),
            Some(at) => Err(self.refuse(first + at, out[at], "a positive number")),
        }
    }

    fn refuse(&self, at: usize, value: f32, wanted: &str) -> Error {
        let problem = format!("scale {at} is {value}, not {wanted}");
        Error::numeric(self.stored.path(), &self.stored.info.name, problem)
    }

    fn bytes(&self) -> usize {
        match self.code {
            Code::Float(float) => float.bytes(),
            Code::E8M0 => 1,
        }
    }
}
