//! Where the bytes of a tensor that is to be written come from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::range::beyond;
use crate::error::Result;
use crate::formats::Stored;
use crate::plan::Compute;
use crate::tensor::{Dtype, Float};

/// Where the bytes of a tensor come from.
#[derive(Clone)]
pub enum Bytes {
    /// They were computed.
    Held {
        /// Row-major, little-endian.
        bytes: Vec<u8>,
        /// Their dtype.
        float: Float,
    },
    /// They are those of an input.
    Stored(Stored),
    /// They are computed when they are written.
    Computed {
        /// Who computes them, by rows of the first dimension against the others.
        compute: Arc<dyn Compute>,
        /// Their dtype.
        float: Float,
        /// Their number.
        count: u64,
    },
}

impl Bytes {
    /// `values` rounded to `float`; `path` and `tensor` say whose they are.
    ///
    /// # Errors
    /// When one is beyond the range of `float`.
    pub fn held(values: &[f32], float: Float, (path, tensor): (&Path, &str)) -> Result<Self> {
        let mut bytes = vec![0; values.len() * float.bytes()];
        float.encode_finite(values, &mut bytes).map_err(|found| beyond(path, tensor, 0, &found))?;
        Ok(Self::Held { bytes, float })
    }

    /// Nothing, where only numbers beside it count.
    pub fn none() -> Self {
        Self::Held { bytes: Vec::new(), float: Float::F32 }
    }

    /// Number of bytes.
    pub fn count(&self) -> u64 {
        match self {
            Self::Held { bytes, .. } => bytes.len() as u64,
            Self::Stored(stored) => stored.info.bytes,
            Self::Computed { count, .. } => *count,
        }
    }

    /// Their dtype.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Held { float, .. } | Self::Computed { float, .. } => float.dtype(),
            Self::Stored(stored) => stored.info.dtype.clone(),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.count(), self.dtype())
    }
}
