//! Where each change of an adapter belongs: on tensors and rows of a model, or by its path alone.
//!
//! | file | idea |
//! |---|---|
//! | `selection` | which modules are changed, and how strongly |
//! | `applied` | the adapters of a run, opened, with their weights |
//! | `change` | one change on its way to its place |
//! | `placer`, `placing` | which tensor, which rows, which way round |
//! | `places` | names: components, prefixes, flattened names |
//! | `denoisers`, `prefixes` | which of several denoisers; paths that lack or have a prefix too many |
//! | `fit`, `prepared` | whether a change fits its tensor, and its delta |
//! | `experts`, `split` | parts of stacked and of fused tensors |
//! | `methods` | changes by other methods than LoRA |
//! | `ties`, `vocabulary` | heads that share a tensor, and rows that are added |
//! | `unplaced` | what found no place, and what it may have meant |
//! | `tile`, `merged`, `requantised` | the arithmetic of a changed tensor |
//! | `terms` | changes without a base, as terms of a sum |

pub mod applied;
pub mod change;
mod denoisers;
mod experts;
mod fit;
pub mod merged;
mod methods;
mod one_pass;
pub mod placer;
mod places;
mod placing;
mod prefixes;
mod prepared;
pub mod requantised;
mod selection;
mod split;
pub mod terms;
pub mod ties;
pub mod tile;
mod unplaced;
pub mod vocabulary;
mod whole;

pub use applied::{Applied, Sources};
pub use change::Placeable;
pub use experts::swapped_by_peft;
pub use fit::is_transposed;
pub use placer::{Outcome, Placer};
pub use places::{Place as BasePlace, Places as BasePlaces};
pub use prepared::{Prepared, prepare};
pub use selection::{Selection, pattern};
