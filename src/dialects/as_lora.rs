//! Other methods as LoRA, where their change is a product of small factors and needs no base: exact, at the lowest rank there is.
//!
//! The base, where it is given, tells which layers are convolutions and how many inputs they have, nothing more.
//!
//! ΔW = s · up · down as the method gives it, then the singular values of the product by its factors: what lies below the
//! rounding of f32 is left out. The error is measured, not estimated.

use std::collections::BTreeMap;

use super::pieces::{Pair, Pieces};
use crate::adapters::{Adapter, Target};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::linalg::LowRank;
use crate::model::base::Base;
use crate::naming::components;
use crate::pairs::matrix::Grid;
use crate::pairs::range::beyond;
use crate::tensor::{Float, Shape, TensorInfo};

/// Singular values below this share of the largest one are rounding of f32.
const NEGLIGIBLE: f64 = 1e-7;

/// What was done.
#[derive(Default)]
pub struct Made {
    /// Modules that are pairs now.
    pub count: usize,
    /// Largest relative error.
    pub error: Option<f64>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// Turns every other method into pairs.
///
/// # Errors
/// When a change is not of low rank without the values of the base, or a convolution that only the base tells.
pub fn convert(adapter: &Adapter, pieces: &mut Pieces, base: Option<&Base>, float: Option<Float>) -> Result<Made> {
    let mut made = Made::default();
    let layers = base.map(|base| layers(adapter, base));
    for other in std::mem::take(&mut pieces.methods) {
        let kind = other.method.kind();
        let refuse = |what: String| Error::unsupported(&adapter.root, what);
        let layer = match &layers {
            Some(layers) => Some(layers.get(&other.path).ok_or_else(|| {
                refuse(format!("changes `{}`, and the model given with --base has no such layer", other.path))
            })?),
            None if may_be_convolution(&other.path) => {
                let what = format!("`{}` may be a convolution, and the tensors of {kind} do not tell", other.path);
                return Err(refuse(what).hint("give the model: --base PATH"));
            }
            None => None,
        };
        let Some(term) = other.method.low_rank(layer)? else {
            let what = format!("`{}` is changed by {kind}, which is no product of factors by itself", other.path);
            return Err(refuse(what).hint(
                "VeRA and MiSS need the shapes of the model, --base PATH; for others, merge, then extract the difference",
            ));
        };
        let ((rows, rank), (_, cols)) = (term.up.shape(), term.down.shape());
        if let Some(layer) = layer.filter(|layer| (layer.outputs, layer.inputs) != (rows, cols)) {
            let what = format!(
                "`{}` is changed by a matrix of [{rows}, {cols}], the layer of the model is [{}, {}]",
                other.path, layer.outputs, layer.inputs
            );
            return Err(refuse(what));
        }
        let product = LowRank::from_rows(term.up.to_vec()?, term.down.to_vec()?, rank, 1.0);
        let found = product.decompose()?;
        if !found.norm_squared().is_finite() {
            let problem = "its change is beyond the range of F32, in which it is computed";
            return Err(Error::numeric(&adapter.root, &other.path, problem));
        }
        let first = found.values().first().copied().unwrap_or(0.0);
        let needed = found.values().iter().take_while(|value| **value > first * NEGLIGIBLE).count().max(1);
        let cut = found.cut(needed, float.unwrap_or(Float::F32), &product)?;
        let norm = cut.certificate.norm;
        let error = if norm > 0.0 { cut.certificate.residual / norm } else { 0.0 };
        made.error = Some(made.error.unwrap_or(0.0).max(error));
        made.count += 1;
        let kept = cut.rank();
        let hold = |what: &str, shape: Vec<u64>, values: &[f32]| held(adapter, &other.path, what, shape, values);
        let kernel = layer.map_or(&[][..], |layer| &layer.kernel);
        let positions = kernel.iter().product::<usize>().max(1);
        let shape = |first: usize, second: usize, rest: &dyn Fn(&usize) -> u64| -> Vec<u64> {
            [first as u64, second as u64].into_iter().chain(kernel.iter().map(rest)).collect()
        };
        let down = hold("A", shape(kept, cols / positions, &|size| *size as u64), &cut.factors.down())?;
        let up = hold("B", shape(rows, kept, &|_| 1), &cut.factors.up())?;
        pieces.pairs.push(Pair::new(other.path.clone(), down, up, term.scale));
    }
    pieces.pairs.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(made)
}

/// Every layer of the base by its path, as it is and below its component.
fn layers(adapter: &Adapter, base: &Base) -> BTreeMap<String, Target> {
    let mut layers = BTreeMap::new();
    for info in base.checkpoint.tensors() {
        let Some((module, "weight")) = info.name.rsplit_once('.') else { continue };
        let stored = base.stored(&info.name);
        let transposed =
            info.shape.as_slice().len() == 2 && base.keeps_inputs_in_rows(module, adapter.config.fan_in_fan_out);
        let layer = Target::of(&stored, transposed, false);
        layers.insert(components::with_component(module), layer.clone());
        layers.insert(module.to_owned(), layer);
    }
    layers
}

/// U-Nets are made of convolutions and linear layers; elsewhere the name says so.
pub(crate) fn may_be_convolution(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    components::with_component(path).starts_with("unet.") || last.contains("conv") || path.contains("_unet_")
}

fn held(adapter: &Adapter, path: &str, what: &str, shape: Vec<u64>, values: &[f32]) -> Result<Grid> {
    let mut bytes = vec![0; values.len() * Float::F32.bytes()];
    let name = format!("{path}.{what}");
    let outcome = Float::F32.encode_finite(values, &mut bytes);
    outcome.map_err(|found| beyond(&adapter.root, &name, 0, &found))?;
    let info =
        TensorInfo { name, dtype: Float::F32.dtype(), shape: Shape::from(shape), offset: 0, bytes: bytes.len() as u64 };
    Ok(Grid::of(&Stored::held(&adapter.tensors.files()[0].map, info, bytes)))
}
