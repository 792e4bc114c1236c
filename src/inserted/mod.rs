//! Adapters that are inserted into a model, not added to its weights: bottlenecks side by side, fewer units of them, and averages of
//! whatever agrees tensor by tensor.
//!
//! | file | idea |
//! |---|---|
//! | `structure` | what AdapterHub's config says of a bottleneck, and which of it decides whether outputs add up |
//! | `bottleneck` | one bottleneck as numbers: down, up, biases, the layer norm in front |
//! | `kronecker` | Compacter's layers as plain matrices |
//! | `places` | where bottlenecks sit, and the sizes that the library reads back |
//! | `sum` | several adapters as one, and one with fewer units |
//! | `average` | tensors of one name averaged |
//! | `ema` | weights of the checkpoints of one run |

mod average;
mod bottleneck;
mod ema;
mod kronecker;
mod places;
mod structure;
mod sum;

pub use average::average;
pub use ema::{step_of, weights_of_run};
pub use structure::BOTTLENECK;
pub use sum::{Asked, sum};

use crate::adapters::{Adapter, Change};

/// Whether everything that the adapter has is inserted into the model.
pub fn is_inserted(adapter: &Adapter) -> bool {
    !adapter.modules.is_empty() && adapter.modules.iter().all(|module| matches!(module.change, Change::Inserted(_)))
}
