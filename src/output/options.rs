//! Options that every writing verb shares.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::formats::Format;
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
#[non_exhaustive]
pub struct WriteOptions {
    /// Where the result goes.
    pub out: PathBuf,
    /// Replace what is there.
    pub force: bool,
    /// Dtype of the model; `None` keeps each tensor's own. What has another dtype than most of the model keeps it.
    pub dtype: Option<Float>,
    /// Cast untouched floating point tensors as well, whatever their dtype.
    pub cast_all: bool,
    /// Leave untouched tensors of the model's main dtype as they are.
    pub changed_only: bool,
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

/// The container that a file called like `path` is of, whatever the case of its ending.
pub fn named_like(path: &Path) -> Option<&'static Format> {
    Format::named(Path::new(&path.file_name()?.to_str()?.to_ascii_lowercase()))
}

/// Checks that `out` is not called what the output is not; a file that `is_file` holds `format`.
///
/// # Errors
/// When a directory is called like a file, or a file like one of another format.
pub fn check_name(out: &Path, is_file: bool, format: &str) -> Result<()> {
    let Some(named) = named_like(out).map(|named| named.called).filter(|named| !is_file || *named != format) else {
        return Ok(());
    };
    let shown = out.display();
    Err(if is_file {
        Error::invalid("--out", format!("`{shown}` is named like {named}, the output is {format}"))
            .hint(format!("end the name in `.{format}`: `{}`", out.with_extension(format).display()))
    } else {
        let readable = named_like(out).is_some_and(|named| !named.is_written);
        Error::invalid("--out", format!("`{shown}` is named like a file ({named}), the output is a directory")).hint(
            match readable {
                true => "such files are read and not written: end the name in `.safetensors` or `.gguf`, or name a directory",
                false => "name a directory",
            },
        )
    })
}

impl WriteOptions {
    /// The result goes to `out`; everything else is as on the command line without options.
    ///
    /// ```
    /// let write = lorakit::ops::WriteOptions::new("merged");
    /// assert!(!write.force && write.dtype.is_none());
    /// ```
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self {
            out: out.into(),
            force: false,
            dtype: None,
            cast_all: false,
            changed_only: false,
            rounding: Rounding::Nearest,
            max_shard_bytes: None,
            budget: Budget::default(),
            dry_run: false,
            part: None,
            durable: false,
        }
    }

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

    #[test]
    fn an_output_is_called_what_it_is() {
        let check = |out: &str, is_file| check_name(Path::new(out), is_file, "safetensors").map_err(|e| e.to_string());
        for (out, is_file) in
            [("out", false), ("llama-3.1", false), ("out", true), ("x.safetensors", true), ("v1.0", true)]
        {
            assert_eq!(check(out, is_file), Ok(()), "{out}");
        }
        for ending in ["safetensors", "gguf", "bin", "pt", "pth", "ckpt", "npz", "npy", "BIN"] {
            let error = check(&format!("out.{ending}"), false).expect_err(ending);
            assert!(error.contains("is named like a file") && error.contains("the output is a directory"), "{error}");
        }
        let error = check("out.pt", true).expect_err("a PyTorch file");
        assert_eq!(error, "--out: `out.pt` is named like a PyTorch file, the output is safetensors");
    }
}
