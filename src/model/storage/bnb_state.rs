//! What bitsandbytes writes of a 4-bit weight in JSON, as bytes of a tensor (`QuantState.as_dict`).

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::formats::{Stored, json};
use crate::tensor::Float;

/// Longest text that is read; a real one has 80 to 200 bytes.
const MAX_BYTES: u64 = 4096;

/// Sizes of blocks that are accepted; bitsandbytes makes 32 to 4096.
const MAX_BLOCK: u64 = 1 << 20;

/// The state of a 4-bit weight.
#[derive(Debug, Clone)]
pub struct State {
    /// `nf4` or `fp4`.
    pub kind: String,
    /// Elements that share a scale.
    pub block: usize,
    /// What the weight was.
    pub dtype: Option<Float>,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Of double quantisation.
    pub nested: Option<Nested>,
}

/// How the scales themselves are quantised.
#[derive(Debug, Clone, Copy)]
pub struct Nested {
    /// Scales that share one of their own.
    pub block: usize,
    /// Added to all.
    pub offset: f32,
    /// What they are rounded to.
    pub dtype: Float,
}

impl State {
    /// Reads it.
    ///
    /// # Errors
    /// When it says what cannot be.
    pub fn read(stored: &Stored) -> Result<Self> {
        let (path, at) = (stored.path(), format!("tensor `{}`", stored.info.name));
        if stored.info.bytes > MAX_BYTES {
            let what = format!("length of tensor `{}` in bytes", stored.info.name);
            return Err(Error::limit(path, what, stored.info.bytes, MAX_BYTES));
        }
        let said = json::parse(path, &at, &stored.read(0, stored.info.bytes)?)?;
        let wrong = |problem: String| Error::malformed(path, &at, problem);
        let block = |key: &str| {
            let size = said.get(key).and_then(Value::as_u64).filter(|size| (1..=MAX_BLOCK).contains(size));
            size.and_then(|size| usize::try_from(size).ok())
                .ok_or_else(|| wrong(format!("`{key}` is {}, not a size of blocks", shown(&said, key))))
        };
        let sizes = said.get("shape").and_then(Value::as_array);
        let shape: Option<Vec<u64>> = sizes.and_then(|sizes| sizes.iter().map(Value::as_u64).collect());
        let shape = shape
            .filter(|shape| (1..=3).contains(&shape.len()))
            .ok_or_else(|| wrong(format!("`shape` is {}, not that of a weight", shown(&said, "shape"))))?;
        let kind = said.get("quant_type").and_then(Value::as_str).unwrap_or_default();
        if !["nf4", "fp4"].contains(&kind) {
            return Err(wrong(format!("`quant_type` is {}, not `nf4` or `fp4`", shown(&said, "quant_type"))));
        }
        let nested = match said.get("nested_offset") {
            None => None,
            Some(offset) => {
                // As Python's `torch.tensor(float)` has it.
                let offset = offset.as_f64().map(|offset| offset as f32).filter(|offset| offset.is_finite());
                let offset = offset.ok_or_else(|| wrong("`nested_offset` is no finite number".into()))?;
                let dtype = said.get("nested_dtype").and_then(Value::as_str).map_or(Some(Float::F32), named);
                let dtype = dtype.ok_or_else(|| {
                    wrong(format!("`nested_dtype` is {}, which is no type here", shown(&said, "nested_dtype")))
                })?;
                Some(Nested { block: block("nested_blocksize")?, offset, dtype })
            }
        };
        let dtype = said.get("dtype").and_then(Value::as_str).and_then(named);
        Ok(Self { kind: kind.to_owned(), block: block("blocksize")?, dtype, shape, nested })
    }

    /// How many elements the weight has.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1_u64, |all, one| all.checked_mul(*one))
    }
}

fn named(name: &str) -> Option<Float> {
    Float::from_option(name.strip_prefix("torch.").unwrap_or(name)).filter(|float| float.bytes() > 1)
}

fn shown(said: &Map<String, Value>, key: &str) -> String {
    said.get(key).map_or_else(|| "missing".into(), |value| format!("`{value}`"))
}
