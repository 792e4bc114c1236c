//! Words → dtypes, patterns, threads and memory: what several verbs are told alike.

use std::path::Path;

use regex::Regex;

use super::place;

use crate::error::{Error, Result};
pub use crate::placement::pattern;
use crate::plan::Budget;
use crate::tensor::Float;

/// `--dtype`; `None` keeps what is there.
pub fn dtype(written: &str) -> Result<Option<Float>> {
    let name = written.to_lowercase();
    match name.strip_prefix("torch.").unwrap_or(&name) {
        "keep" => Ok(None),
        name => Float::from_option(name).map(Some).ok_or_else(|| {
            let problem = format!("`{written}` is not one of keep, f32, f16, bf16, f64, f8_e4m3, f8_e5m2");
            Error::invalid("--dtype", problem)
        }),
    }
}

/// `--threads` and `--max-memory`.
pub fn budget(threads: Option<usize>, max_memory: &str) -> Result<Budget> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    match threads.unwrap_or(processors) {
        0 => Err(Error::invalid("--threads", "must be at least 1")),
        threads => Ok(Budget { threads, max_bytes: place::size("--max-memory", max_memory)? }),
    }
}

/// `--out`.
pub fn out(written: &Path) -> Result<&Path> {
    match written.as_os_str() == "-" {
        true => Err(Error::invalid("--out", "`-` is no place for a model: outputs are files and directories")
            .hint("name one, as `-o out`")),
        false => Ok(written),
    }
}

/// The regular expressions given for `option`.
pub fn patterns(option: &str, written: &[String]) -> Result<Vec<Regex>> {
    written.iter().map(|one| pattern(option, one)).collect()
}
