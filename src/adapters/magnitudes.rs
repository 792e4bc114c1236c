//! DoRA's magnitudes in a file: whose they are, and which axis they count along.
//!
//! PEFT keeps one number per output, `[out]`, or `[1, out, 1, 1]` for a convolution. LyCORIS calls the tensor `dora_scale` and
//! gives it the shape of the axis: `[out, 1 …]`, or `[1, in, 1 …]` as older versions and OneTrainer do.

use std::sync::Arc;

use super::delta::Delta;
use super::dora::{Axis, Dora, Magnitudes, Manner};
use super::factor::Factor;
use super::method::Target;
use super::parts::describe;
use crate::error::{Error, Result};
use crate::formats::Stored;

/// What LyCORIS calls the magnitudes.
pub const LYCORIS_NAME: &str = "dora_scale";

/// The magnitudes in `stored`, for the layer `target`, counted in `[out, in]`.
///
/// # Errors
/// When they fit neither the outputs nor the inputs.
pub fn magnitudes(stored: &Stored, target: &Target) -> Result<Magnitudes> {
    let values = Factor::new(stored)?.to_vec()?;
    let (manner, axis) = if stored.info.name.ends_with(LYCORIS_NAME) {
        (Manner::Lycoris, lycoris_axis(stored, values.len(), target))
    } else {
        (Manner::Peft, (values.len() == target.outputs).then_some(Axis::Rows))
    };
    let Some(axis) = axis else {
        let (outputs, inputs) = (target.outputs, target.channels());
        let problem = format!("a magnitude has {} entries, the weight {outputs} outputs", values.len());
        return Err(Error::mismatch(describe(stored), format!("a layer of {inputs} → {outputs}"), problem));
    };
    Ok(Magnitudes { values, axis, manner })
}

/// Outputs where the first dimension says so, else input channels.
fn lycoris_axis(stored: &Stored, count: usize, target: &Target) -> Option<Axis> {
    let leads = |wanted: usize| match stored.info.shape.as_slice() {
        [] | [_] => true,
        [first, ..] => *first == wanted as u64,
    };
    if count == target.outputs && leads(target.outputs) {
        return Some(Axis::Rows);
    }
    let channels = target.channels();
    (count == channels && leads(1)).then_some(Axis::Cols(target.positions()))
}

impl Magnitudes {
    /// The same for a weight that is stored as `[in, out]`.
    #[must_use]
    pub fn turned(self) -> Self {
        let axis = if self.axis == Axis::Rows { Axis::Cols(1) } else { Axis::Rows };
        Self { axis, ..self }
    }
}

/// `inner` with the magnitudes `stored`, if there are any.
///
/// # Errors
/// As [`magnitudes`].
pub fn decomposed(inner: Arc<dyn Delta>, stored: Option<&Stored>, target: &Target) -> Result<Arc<dyn Delta>> {
    let Some(stored) = stored else { return Ok(inner) };
    let magnitudes = magnitudes(stored, target)?;
    Ok(Arc::new(Dora::new(inner, magnitudes, stored.path(), stored.info.name.clone())))
}
