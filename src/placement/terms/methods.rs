//! Methods other than LoRA as products: ΔW = scale · up · down, where that is exact and needs no weight of the model.

use super::{Share, Slot, Taken, Terms};
use crate::adapters::{Lora, Method, Target, describe};
use crate::error::{Error, Result};
use crate::pairs::PairKind;
use crate::placement::Placeable;

/// Names of layers that are convolutions, or may be: parts of a path's segments.
const CONVOLUTIONS: [&str; 9] = [
    "conv",
    "sampler",
    "in_layers",
    "out_layers",
    "skip_connection",
    "proj_in",
    "proj_out",
    "input_blocks_0_0",
    "patch_embed",
];

/// What refusals of what is no product offer.
const WAY_OUT: &str = "`lorakit merge MODEL ADAPTER -o merged` applies it; then `lorakit extract MODEL merged -o lora --rank 16` makes a LoRA";

/// A stack of experts in factors of three dimensions has no place in a PEFT adapter of layers.
///
/// # Errors
/// When `lora` is one.
pub(crate) fn refuse_stack(job: &Placeable<'_>, lora: &Lora) -> Result<()> {
    if job.applied.adapter.config.stacks_merged_by.is_none() || lora.down.info.shape.as_slice().len() < 3 {
        return Ok(());
    }
    let what = format!("{}: a stack of experts in one tensor is no pair of matrices", describe(&lora.down));
    Err(Error::unsupported(lora.down.path(), what).hint(WAY_OUT))
}

impl Terms {
    /// Takes a change by another method as a product.
    pub(crate) fn take_method(&mut self, taken: &Taken<'_>, method: &dyn Method) -> Result<()> {
        let Taken { job, source, home, .. } = taken;
        let target = home.and_then(|home| home.target(job, method));
        let Some(term) = method.low_rank(target.as_ref())? else { return Err(no_product(job, method, &target)) };
        let (outputs, inputs) = (term.up.shape().0, term.down.shape().1);
        let kernel = kernel(job, method, target.as_ref())?;
        let positions: u64 = kernel.iter().product();
        if let Some(target) = &target
            && (target.outputs, target.inputs) != (outputs, inputs)
        {
            let problem = format!(
                "`{}` is changed as [{outputs}, {inputs}], the layer is [{}, {}]",
                job.path, target.outputs, target.inputs
            );
            return Err(Error::mismatch(first(method), "the base", problem)
                .hint("is this the model the adapter was trained on?"));
        }
        if positions == 0 || !(inputs as u64).is_multiple_of(positions) {
            let problem = format!("{inputs} inputs are no multiple of a kernel of {kernel:?}");
            return Err(Error::mismatch(first(method), job.path.clone(), problem));
        }
        let outer = (outputs as u64, inputs as u64 / positions);
        let kind = if kernel.is_empty() { PairKind::Linear } else { PairKind::Conv { kernel } };
        let rank = term.down.shape().0;
        let share = Share {
            source: *source,
            weight: job.strength,
            term,
            rank,
            float: None,
            stored: None,
            bias: None,
            stack: None,
        };
        let slot = Slot { path: job.path.clone(), kind, outer, shares: vec![share], multiplied: Vec::new() };
        self.place((job.path.clone(), String::new()), slot, || first(method))
    }
}

/// The kernel, empty for a linear layer: the model's, or that of the method's own tensors.
fn kernel(job: &Placeable<'_>, method: &dyn Method, target: Option<&Target>) -> Result<Vec<u64>> {
    if let Some(target) = target {
        return Ok(target.kernel.iter().map(|size| *size as u64).collect());
    }
    let tensors = method.tensors();
    let shapes = tensors.iter().map(|(_, tensor)| tensor.info.shape.as_slice()).filter(|shape| shape.len() > 2);
    // The widest: factors on the other side of a core have kernels of one position.
    let widest = shapes.max_by_key(|shape| shape[2..].iter().product::<u64>());
    // Others stack blocks of a matrix.
    if let Some(shape) = widest.filter(|_| method.kind().tells_kernel) {
        return Ok(shape[2..].to_vec());
    }
    let flat = job.path.split('.').any(|segment| CONVOLUTIONS.iter().any(|name| segment.contains(name)));
    if flat || job.path.starts_with("lora_") {
        let what = format!(
            "`{}` is changed by {} and may be a convolution, whose kernel its tensors do not tell",
            job.path,
            method.kind()
        );
        return Err(Error::unsupported(&job.applied.adapter.root, what).hint("the model tells: add `--base MODEL`"));
    }
    Ok(Vec::new())
}

fn no_product(job: &Placeable<'_>, method: &dyn Method, target: &Option<Target>) -> Error {
    // Methods that tell their shape have said all they can without the model.
    let reason = match (target, method.shape()) {
        (None, None) => {
            "either it is no product of two factors, or only the model tells the shape; `--base MODEL` finds out"
        }
        _ => "it is no product of two factors that could be summed with others",
    };
    let what = format!("`{}` is changed by {}: {reason}", job.path, method.kind());
    Error::unsupported(&job.applied.adapter.root, what).hint(WAY_OUT)
}

fn first(method: &dyn Method) -> String {
    method.tensors().first().map_or_else(|| method.kind().to_string(), |(_, tensor)| describe(tensor))
}
