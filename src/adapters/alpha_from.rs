//! Where the α of an adapter stands.

use std::fmt;

/// Where the α of an adapter stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlphaFrom {
    /// In the config of this name beside the weights.
    File(String),
    /// Beside the factors of every module.
    Tensors,
    /// Under this key of the header.
    Header(String),
    /// It was told.
    Told,
    /// Nowhere: it is the rank, so that the scale is 1.
    Rank,
}

impl fmt::Display for AlphaFrom {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => to.write_str(name),
            Self::Tensors => to.write_str("tensors"),
            Self::Header(key) => write!(to, "header, {key}"),
            Self::Told => to.write_str("--alpha"),
            Self::Rank => to.write_str("rank, as nothing says it"),
        }
    }
}

impl serde::Serialize for AlphaFrom {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
