//! What can go wrong, sorted by who is to blame: the file, the combination of inputs, the options or the numbers.
//!
//! Every error says where (file, tensor, option) and gives both numbers where two things disagree. Messages are
//! lower case, carry literals in backticks and end without a full stop. What they quote comes from files: an [`Error`] shows
//! it [cleaned and cut](shown).

pub mod shown;

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
///
/// ```
/// fn dialect(path: &str) -> lorakit::Result<&'static str> {
///     Ok(lorakit::Adapter::open(path)?.dialect())
/// }
/// assert_eq!(dialect("fixtures/dialects/kohya-lora-r4.safetensors")?, "kohya");
/// # Ok::<(), lorakit::Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: whose fault it is, and a way out where one is known.
///
/// ```
/// let error = lorakit::Adapter::open("nowhere").unwrap_err();
/// assert!(error.to_string().starts_with("nowhere: cannot open: "));
/// assert!(matches!(error.blame(), lorakit::error::Blame::Io { .. }));
/// ```
#[derive(Debug)]
pub struct Error {
    blame: Box<Blame>,
    hint: Option<String>,
}

/// Who or what is to blame, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Blame {
    /// The operating system refused something.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done, as in "cannot open".
        action: String,
        /// The system's own words.
        source: std::io::Error,
    },
    /// The bytes of a file break its format.
    #[error("{}: {at}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The tensor, key or byte offset.
        at: String,
        /// What is wrong there.
        problem: String,
    },
    /// The file is well formed, and asks for something that is not or cannot be done.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for, and why that is refused.
        what: String,
    },
    /// Two inputs do not fit each other.
    #[error("{left} does not fit {right}: {problem}")]
    Mismatch {
        /// One input: file and tensor.
        left: String,
        /// The other input.
        right: String,
        /// Where they disagree.
        problem: String,
    },
    /// An option makes no sense.
    #[error("{option}: {problem}")]
    Invalid {
        /// The option as the user writes it.
        option: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// A number is beyond what is accepted.
    #[error("{}: {what} is {got}, more than the accepted {max}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The quantity, with its unit.
        what: String,
        /// The value found.
        got: u64,
        /// The largest value accepted (see [`crate::limits`]).
        max: u64,
    },
    /// The values themselves are unusable: not finite, or beyond the range of the target.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Numeric {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What its values do.
        problem: String,
    },
    /// The run was interrupted from outside.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl Error {
    /// The operating system refused `action` on `path`.
    pub fn io(path: impl AsRef<Path>, action: impl Into<String>, source: std::io::Error) -> Self {
        Blame::Io { path: path.as_ref().into(), action: action.into(), source }.into()
    }

    /// The bytes at `at` (tensor, key or offset) break the format.
    pub fn malformed(path: impl AsRef<Path>, at: impl Into<String>, problem: impl Into<String>) -> Self {
        Blame::Malformed { path: path.as_ref().into(), at: at.into(), problem: problem.into() }.into()
    }

    /// The file asks for something that is not done.
    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Blame::Unsupported { path: path.as_ref().into(), what: what.into() }.into()
    }

    /// Two inputs disagree.
    pub fn mismatch(left: impl Into<String>, right: impl Into<String>, problem: impl Into<String>) -> Self {
        Blame::Mismatch { left: left.into(), right: right.into(), problem: problem.into() }.into()
    }

    /// An option makes no sense.
    pub fn invalid(option: impl Into<String>, problem: impl Into<String>) -> Self {
        Blame::Invalid { option: option.into(), problem: problem.into() }.into()
    }

    /// A quantity of `path` exceeds a limit.
    pub fn limit(path: impl AsRef<Path>, what: impl Into<String>, got: u64, max: u64) -> Self {
        Blame::Limit { path: path.as_ref().into(), what: what.into(), got, max }.into()
    }

    /// The values of a tensor are unusable.
    pub fn numeric(path: impl AsRef<Path>, tensor: impl Into<String>, problem: impl Into<String>) -> Self {
        Blame::Numeric { path: path.as_ref().into(), tensor: tensor.into(), problem: problem.into() }.into()
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(shown::line(&hint.into()));
        self
    }

    /// Whose fault it is.
    pub fn blame(&self) -> &Blame {
        &self.blame
    }

    /// The way out, where one is known.
    pub fn way_out(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<Blame> for Error {
    fn from(blame: Blame) -> Self {
        Self { blame: Box::new(blame), hint: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown::line(&self.blame.to_string()))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.blame.source()
    }
}
