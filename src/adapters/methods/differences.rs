//! Parameters that were trained whole and saved as what they differ by (LyCORIS 4.1 `modules/full.py`, `modules/norms.py`; ComfyUI):
//! W′ = W + `diff`, b′ = b + `diff_b`, and the same for the weight and bias of a norm, `w_norm` and `b_norm`.
//! ComfyUI's `set_weight` is the new weight itself.

use std::sync::Arc;

use super::named::Named;
use crate::adapters::delta::Delta;
use crate::adapters::factor::Factor;
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, ParameterChange, Target};
use crate::adapters::parts::{Context, Parts};
use crate::adapters::whole::{Difference, Whole};
use crate::error::Result;
use crate::formats::Stored;

const NAMES: [&str; 5] = ["diff", "diff_b", "w_norm", "b_norm", "set_weight"];

/// Differences of whole parameters.
pub static KIND: Kind = Kind { is_dotted: true, ..Kind::new("full difference", gather) };

/// The tensors of one module.
#[derive(Debug)]
struct Differences(Named);

/// A pair may stand beside it.
fn gather(parts: &mut Parts, _context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    if !NAMES.iter().any(|name| parts.has_part(name)) {
        return Ok(None);
    }
    Ok(Some(Arc::new(Differences(Named::take(parts, &NAMES)))))
}

impl Method for Differences {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        self.0.list()
    }

    fn shape(&self) -> Option<(u64, u64)> {
        let weights = ["diff", "set_weight"].iter().find_map(|name| self.0.get(name));
        weights.map(|tensor| tensor.info.shape.rows_cols())
    }

    fn changes(&self, _target: &Target) -> Result<Vec<ParameterChange>> {
        let change = |(name, stored): (&'static str, &Stored)| {
            let factor = Factor::new(stored)?;
            let delta: Arc<dyn Delta> = if name == "set_weight" {
                Arc::new(Whole::new(factor))
            } else {
                Arc::new(Difference::new(factor, 1.0))
            };
            let parameter = if name.ends_with("_b") || name.starts_with("b_") { "bias" } else { "weight" };
            Ok(ParameterChange { parameter, delta })
        };
        self.0.list().into_iter().map(change).collect()
    }
}
