//! What a weight that changes is written as in a GGUF file.

use crate::error::{Error, Result};
use crate::model::Rounding;
use crate::model::base::Base;
use crate::model::weight::Weight;
use crate::output::WriteOptions;
use crate::tensor::Packing;

/// What the options ask for, `None` for what each weight is; `quant` is for GGUF files.
///
/// # Errors
/// When the options ask for two things, or for what the base's format does not have.
pub fn of(base: &Base, options: &WriteOptions, quant: Option<Packing>) -> Result<Option<Packing>> {
    let dtype = options.dtype.map(Packing::Float);
    if base.view.is_none() {
        return match quant {
            Some(blocks @ Packing::Blocks(_)) => {
                let problem = format!("{blocks} is a type of GGUF, and the base is none");
                Err(Error::invalid("--quant", problem)
                    .hint("merge first, then `lorakit convert --to gguf --quant …` the result"))
            }
            Some(float) if dtype.is_some_and(|dtype| dtype != float) => Err(contradiction(float, dtype)),
            float => Ok(float.or(dtype)),
        };
    }
    if let (Some(quant), Some(_)) = (quant, dtype.filter(|dtype| Some(*dtype) != quant)) {
        return Err(contradiction(quant, dtype));
    }
    if options.cast_all {
        let problem = "writes the tensors that nothing changes as well, and in a GGUF file those are quantised";
        return Err(
            Error::invalid("--cast-all", problem).hint("`lorakit convert --quant …` writes a file as another type")
        );
    }
    if options.rounding == Rounding::PeftSafe && base.checkpoint.tensors().any(|tensor| is_in_blocks(&tensor.dtype)) {
        return Err(Error::invalid(
            "--rounding",
            "the base is quantised, and PEFT merges no blocks: it has no such rounding",
        ));
    }
    let wanted = quant.or(dtype);
    if let Some(packing) = wanted.filter(|packing| crate::tensor::GgmlType::of(&packing.dtype()).is_none()) {
        return Err(Error::invalid("--dtype", format!("a GGUF file has no type {packing}")));
    }
    Ok(wanted)
}

fn contradiction(quant: Packing, dtype: Option<Packing>) -> Error {
    let dtype = dtype.map_or_else(String::new, |dtype| dtype.to_string());
    Error::invalid("--quant", format!("`--quant` asks for {quant}, `--dtype` for {dtype}"))
}

fn is_in_blocks(dtype: &crate::tensor::Dtype) -> bool {
    matches!(Packing::of(dtype), Some(Packing::Blocks(_)))
}

/// What a weight of a GGUF file is written as: its own type, or the one that is `wanted` of matrices.
///
/// # Errors
/// When that type cannot be written, or its blocks do not fit the rows.
pub fn written_as(own: &Weight, wanted: Option<Packing>) -> Result<Packing> {
    let is_matrix = own.tensor.info.shape.as_slice().len() > 1;
    let out = wanted.filter(|_| is_matrix).unwrap_or(own.packing);
    let (name, path) = (&own.tensor.info.name, own.tensor.path());
    if !out.can_encode() {
        let what = format!("tensor `{name}` changes and is stored as {out}, which can be read but not written");
        return Err(Error::unsupported(path, what)
            .hint("`--quant q8_0`, or another type, writes the weights that change as that"));
    }
    if !own.cols.is_multiple_of(out.block()) {
        let what = format!("tensor `{name}`: rows of {} values are no whole number of blocks of {out}", own.cols);
        return Err(Error::unsupported(path, what).hint("`--quant keep`, or a type of smaller blocks"));
    }
    Ok(out)
}
