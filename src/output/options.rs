//! Options that every writing verb shares.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::limits::MAX_PARTS;
use crate::model::Rounding;
use crate::plan::Budget;
use crate::tensor::Float;

/// One of several runs that together make an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which one, from 1.
    pub part: u32,
    /// Of how many.
    pub parts: u32,
}

impl std::str::FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("--part", format!("`{text}` is not I/N with 1 ≤ I ≤ N ≤ {MAX_PARTS}"));
        let (part, parts) = text.split_once('/').ok_or_else(wrong)?;
        let (part, parts) = (part.parse().map_err(|_| wrong())?, parts.parse().map_err(|_| wrong())?);
        if part == 0 || part > parts || parts > MAX_PARTS { Err(wrong()) } else { Ok(Self { part, parts }) }
    }
}

/// What every writing verb is told.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Where the result goes.
    pub out: PathBuf,
    /// Replace what is there.
    pub force: bool,
    /// Dtype of what is computed; `None` keeps each tensor's own.
    pub dtype: Option<Float>,
    /// Cast untouched floating point tensors as well.
    pub cast_all: bool,
    /// How results are rounded.
    pub rounding: Rounding,
    /// Most bytes of tensor data per file; `None` keeps the base's files.
    pub max_shard_bytes: Option<u64>,
    /// Threads and memory.
    pub budget: Budget,
    /// Plan only.
    pub dry_run: bool,
    /// Do one slice only.
    pub part: Option<Part>,
    /// Wait until the result is on the disk itself.
    pub durable: bool,
}

impl WriteOptions {
    /// Checks that nothing asks for several files.
    ///
    /// # Errors
    /// `Invalid`, where shards or parts are wanted.
    pub fn fits_one_file(&self) -> Result<()> {
        if self.part.is_none() && self.max_shard_bytes.is_none() {
            return Ok(());
        }
        let problem = "the output is one file; parts and shards need a directory";
        Err(Error::invalid("--out", problem).hint("name a directory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_count_from_one() {
        assert_eq!("2/3".parse::<Part>().expect("a part"), Part { part: 2, parts: 3 });
        for text in ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/99999999"] {
            assert!(text.parse::<Part>().expect_err(text).to_string().contains(text), "{text}");
        }
    }
}
