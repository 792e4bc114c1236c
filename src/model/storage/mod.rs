//! Quantised weights: one weight of a checkpoint as numbers, whatever tensors hold it.
//!
//! A quantised checkpoint stores a weight as codes and, in tensors beside them, what gives the codes their values: scales, zero
//! points, codebooks. A [`Storage`] is such a weight, seen as `[out, in]` in f32, exactly as its producer computes it. A checkpoint
//! is [seen](view) with one plain tensor for each of them, under the name the model itself has for it, and so every verb reads
//! them all.
//!
//! **How a storage is added.** One file here with a [`Recognise`], and one line in [`STORAGES`].
//! * `recognise` is shown every tensor of the checkpoint, and answers for the one that holds the codes: `None` where it is not its
//!   own, at no cost (look at dtype and the end of the name first). What belongs to it, it finds by name in [`Files`], which
//!   looks in all shards. Tensors and companions decide; what the config says is only checked against them.
//! * It answers with a [`Found`]: the weight's own name (`M.weight` for `M.qweight`), the tensors that are done with when the
//!   weight is a plain one (codes first; scales of activations too), and the [`Storage`].
//! * Shapes are checked there, all of them: a [`Storage`] may index without looking. Values are read in [`Storage::read`], a
//!   few rows at once, and those that mean nothing (a scale that is NaN, a group that does not exist) are refused there.
//! * A storage that can be written back implements [`Grid`] as well.
//!
//! | file | what |
//! |---|---|
//! | `view` | a quantised checkpoint as the plain one it stands for |
//! | `files` | the tensors of a checkpoint by name, and what is said of how it is quantised |
//! | `made` | the bytes of a plain tensor, made as they are read |
//! | `scales` | scales that are read as they are needed |
//! | `shapes` | what shapes tell: rows, groups, companions |
//! | `coded` | reading and writing of all weights that are a code per element and numbers per group |
//! | `rotated` | a weight whose columns are rotated in groups |
//! | `grid` | codes for changed values, on the scales a weight has |
//! | `trained` | a plain weight as it was quantised for training |
//! | `refused` | what is known by name and not read |
//! | all others | one storage each |

mod awq;
mod bnb;
mod bnb_state;
mod coded;
mod comfy;
mod files;
pub mod fp8;
mod gptq;
mod grid;
mod int8;
mod integers;
mod made;
mod microscaling;
mod mlx;
mod modelopt;
mod mxfp4;
mod nvfp4;
mod packed;
#[cfg(all(test, reference))]
mod reference;
pub mod refused;
mod rotated;
mod scales;
mod shapes;
mod trained;
pub mod view;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use files::{Files, KEYS, SIDE_FILES};
pub use grid::{Change, Grid};
pub use made::Quantised;
pub use trained::error_squared;

use crate::error::Result;
use crate::tensor::{Float, Shape, TensorInfo};

/// A weight behind its storage.
pub trait Storage: fmt::Debug + Send + Sync {
    /// What the weight is: `[out, in]`, or `[experts, …]` of a stack, as a plain checkpoint has it.
    fn shape(&self) -> Shape;

    /// Reads `rows × cols` in f32, row by row, where the rows are all dimensions but the last: row r of expert e of a stack
    /// `[experts, out, in]` is `e · out + r`.
    ///
    /// # Errors
    /// When a value cannot be told: a scale that is no number, a file that is no longer as it was mapped.
    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// What people want to know of it.
    fn facts(&self) -> Facts;

    /// What the weight was before it was quantised, and is computed with, where the storage itself says so.
    fn dtype(&self) -> Option<Float> {
        None
    }

    /// Rows that are read at once for the price of one: those of a transposed storage lie side by side.
    fn rows_together(&self) -> usize {
        1
    }

    /// Lets go of what is held in memory and can be made again.
    fn forget(&self) {}

    /// The sum over a row of the variances of rounding to the nearest code; 0 where codes are chosen otherwise.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn rounding_variance(&self, _row: usize) -> Result<f64> {
        Ok(0.0)
    }

    /// How it is written back in its own format; `None` where it cannot be.
    fn grid(&self) -> Option<&dyn Grid> {
        None
    }
}

/// What people want to know of a storage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Facts {
    /// The name people know it by: `FP8 (E4M3)`, `bitsandbytes NF4`, `GPTQ`.
    pub format: String,
    /// Bits of a code.
    pub bits: u32,
    /// What shares a scale.
    pub group: Group,
    /// What else tells it from others of its name: `F32 scales`, `double quantisation`, `act-order`.
    pub details: Vec<String>,
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The whole weight.
    Tensor,
    /// A row.
    Row,
    /// That many neighbours in a row.
    Columns(usize),
    /// A block of rows × columns.
    Block(usize, usize),
    /// That many neighbours of all elements, over the ends of rows.
    Flat(usize),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.write_str("one scale"),
            Self::Row => f.write_str("a scale per row"),
            Self::Columns(count) => write!(f, "groups of {count}"),
            Self::Block(rows, cols) => write!(f, "blocks of {rows} × {cols}"),
            Self::Flat(count) => write!(f, "blocks of {count}"),
        }
    }
}

/// A weight that was recognised.
#[derive(Debug)]
pub struct Found {
    /// The name of the weight in the plain checkpoint.
    pub name: String,
    /// The tensors it is stored in, codes first, and those that mean nothing without it.
    pub tensors: Vec<String>,
    /// The weight.
    pub storage: Arc<dyn Storage>,
}

/// Tells whether a tensor holds the codes of a weight, and which.
pub type Recognise = fn(&Files<'_>, &TensorInfo) -> Result<Option<Found>>;

/// All storages. The first that recognises a tensor has it.
pub const STORAGES: &[Recognise] = &[
    bnb::recognise,
    int8::recognise,
    mxfp4::recognise,
    comfy::recognise,
    fp8::recognise,
    packed::recognise,
    integers::recognise,
    nvfp4::recognise,
    microscaling::recognise,
    modelopt::recognise,
    gptq::recognise,
    awq::recognise,
    mlx::recognise,
];
