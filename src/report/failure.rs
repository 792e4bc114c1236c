//! A failure as a document: what a script reads where there is no report.

use serde::Serialize;

use crate::error::{Blame, Error};

/// What went wrong, with its place.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// What is said of it.
    pub error: String,
    /// Who is to blame: `io`, `malformed`, `unsupported`, `mismatch`, `invalid`, `limit`, `numeric`, `interrupted` or `usage`.
    pub kind: &'static str,
    /// The file, or the first of two that do not fit; none where an option is to blame.
    pub path: Option<String>,
    /// The tensor.
    pub tensor: Option<String>,
    /// The option that is to blame.
    pub option: Option<String>,
    /// The way out, where one is known.
    pub hint: Option<String>,
}

impl Failure {
    /// Words that no verb understands.
    pub fn usage(error: String, hint: Option<String>) -> Self {
        Self { error, kind: "usage", path: None, tensor: None, option: None, hint }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let (kind, path, option) = match error.blame() {
            Blame::Io { path, .. } => ("io", Some(path.display().to_string()), None),
            Blame::Malformed { path, .. } => ("malformed", Some(path.display().to_string()), None),
            Blame::Unsupported { path, .. } => ("unsupported", Some(path.display().to_string()), None),
            Blame::Mismatch { left, .. } => ("mismatch", Some(place(left).to_owned()), None),
            Blame::Invalid { option, .. } => ("invalid", None, Some(option.clone())),
            Blame::Limit { path, .. } => ("limit", Some(path.display().to_string()), None),
            Blame::Numeric { path, .. } => ("numeric", Some(path.display().to_string()), None),
            Blame::Interrupted => ("interrupted", None, None),
        };
        let tensor = match error.blame() {
            Blame::Numeric { tensor, .. } => Some(tensor.clone()),
            Blame::Malformed { at, .. } => tensor(at),
            Blame::Unsupported { what, .. } => tensor(what),
            Blame::Mismatch { left, right, problem } => {
                tensor(left).or_else(|| tensor(right)).or_else(|| tensor(problem))
            }
            _ => None,
        };
        Self { error: error.to_string(), kind, path, tensor, option, hint: error.way_out().map(str::to_owned) }
    }
}

/// The file of `path: tensor …`.
fn place(written: &str) -> &str {
    written.split_once(": ").map_or(written, |(path, _)| path)
}

/// The name in a sentence about a tensor.
fn tensor(written: &str) -> Option<String> {
    let (_, rest) = written.split_once("tensor `")?;
    rest.split_once('`').map(|(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_file_and_tensor() {
        let failure = Failure::from(&Error::numeric("a/b", "x.weight", "is NaN").hint("train again"));
        assert_eq!(
            (failure.kind, failure.path.as_deref(), failure.tensor.as_deref()),
            ("numeric", Some("a/b"), Some("x.weight"))
        );
        assert_eq!(failure.hint.as_deref(), Some("train again"));
        let failure = Failure::from(&Error::mismatch("a: tensor `x`", "b: tensor `y`", "shapes differ"));
        assert_eq!((failure.path.as_deref(), failure.tensor.as_deref()), (Some("a"), Some("x")));
        let failure = Failure::from(&Error::invalid("--rank", "is 0"));
        assert_eq!((failure.kind, failure.option.as_deref(), failure.path), ("invalid", Some("--rank"), None));
    }
}
