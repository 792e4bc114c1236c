//! A low-rank pair: two lazy matrices and a scale.
//!
//! | file | idea |
//! |---|---|
//! | `bytes` | where the bytes of a tensor come from |
//! | `pair` | a pair, or a whole parameter, with the kind of its layer |
//! | `matrix` | a matrix that is cut, turned and scaled when it is written |
//! | `range` | the words for a value that leaves the range of its type |

mod bytes;
pub mod matrix;
mod pair;
pub mod range;

pub use bytes::Bytes;
pub use pair::{NewPair, NewWhole, PairKind};
