//! An opened adapter: its changes by module, in the one form that all dialects are brought to, PEFT's.
//!
//! Facts: PEFT 0.21 `tuners/lora/layer.py`, `utils/save_and_load.py`. The rank of a module is the one of its tensors, and has to
//! be the one its config gives it, since the scale depends on it.

use std::path::PathBuf;
use std::sync::Arc;

use super::alpha_from::AlphaFrom;
use super::config::AdapterConfig;
use super::factor::Factor;
use super::low_rank::{LowRankDelta, Term};
use super::method::{Inserted, Method};
use super::options::Needed;
use super::parts::describe;
use super::stack::{Packing, Stack};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored};
use crate::tensor::{first_not_finite, usize_of};

/// An opened adapter.
#[derive(Debug)]
pub struct Adapter {
    /// The directory it was read from, or the file that says everything itself.
    pub root: PathBuf,
    /// The naming scheme it is written in.
    pub dialect: &'static str,
    /// Its settings.
    pub config: AdapterConfig,
    /// Its tensors.
    pub tensors: Checkpoint,
    /// Its changes by module path, as the adapter names it.
    pub modules: Vec<Module>,
    /// What had to be told to read it.
    pub needed: Needed,
    /// How its stacks of experts lie in its file.
    pub packings: Vec<Packing>,
}

/// One change of one module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Path without wrappers.
    pub path: String,
    /// How deep the pair is nested: tells the parameters of one module apart.
    pub nesting: usize,
    /// What happens to it.
    pub change: Change,
}

/// What an adapter does to a module.
#[derive(Debug, Clone)]
pub enum Change {
    /// A low-rank change of its weight.
    Lora(Box<Lora>),
    /// A change of its parameters by another method.
    Method(Arc<dyn Method>),
    /// Something that is no change of a weight.
    Inserted(Box<Inserted>),
    /// A parameter (`weight`, `bias` …) that takes the place of the base's.
    Whole(String, Stored),
    /// A parameter of the frozen layer, saved along: a copy of the base's, or what the base's became.
    Frozen(String, Stored),
    /// Rows that replace rows of the weight.
    TokenRows(Stored),
    /// A tensor whose meaning is not known.
    Unknown(Stored),
}

/// A LoRA pair and what belongs to it.
#[derive(Debug, Clone)]
pub struct Lora {
    /// A, `[r, in]` or `[r, in, k …]`.
    pub down: Stored,
    /// B, `[out, r]` or `[out, r, 1 …]`.
    pub up: Stored,
    /// Bias of B, `[out]`.
    pub bias: Option<Stored>,
    /// DoRA magnitudes, one per output.
    pub magnitude: Option<Stored>,
    /// The weight is a table of rows, `[vocabulary, dim]`: ΔW = s · (B·A)ᵀ.
    pub embedding: bool,
    /// What is known of the pair of a stack of experts.
    pub stack: Option<Arc<Stack>>,
}

impl Lora {
    /// r, as the tensors have it; r times the number of experts for a stack.
    pub fn rank(&self) -> u64 {
        self.down.info.shape.rows_cols().0
    }

    /// Inputs, counting every position of a convolution's kernel.
    pub fn inputs(&self) -> u64 {
        self.down.info.shape.rows_cols().1
    }

    /// Outputs.
    pub fn outputs(&self) -> u64 {
        self.up.info.shape.rows_cols().0
    }

    /// `scale · B·A` as it is to be added to `[out, in]`.
    ///
    /// # Errors
    /// When a factor holds no floating point numbers.
    pub fn term(&self, scale: f64) -> Result<Term> {
        Ok(Term { up: Factor::new(&self.up)?, down: Factor::new(&self.down)?, scale })
    }

    /// The tensors of the pair.
    pub fn tensors(&self) -> impl Iterator<Item = &Stored> {
        [Some(&self.down), Some(&self.up), self.bias.as_ref(), self.magnitude.as_ref()].into_iter().flatten()
    }
}

impl Change {
    /// The tensors behind it.
    pub fn tensors(&self) -> Vec<&Stored> {
        match self {
            Self::Lora(lora) => lora.tensors().collect(),
            Self::Method(method) => method.tensors().into_iter().map(|(_, tensor)| tensor).collect(),
            Self::Inserted(inserted) => inserted.tensors.iter().map(|(_, tensor)| tensor).collect(),
            Self::Whole(_, tensor) | Self::Frozen(_, tensor) | Self::TokenRows(tensor) | Self::Unknown(tensor) => {
                vec![tensor]
            }
        }
    }
}

impl Term {
    /// The same change for a weight that is stored as `[in, out]`.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { up: self.down.transposed(), down: self.up.transposed(), scale: self.scale }
    }
}

impl From<Term> for LowRankDelta {
    fn from(term: Term) -> Self {
        Self::new(vec![term])
    }
}

impl Adapter {
    /// Refuses tensors without elements and values that are not finite.
    ///
    /// # Errors
    /// `Numeric` or `Malformed`, naming the first such tensor.
    pub fn check_values(&self) -> Result<()> {
        for module in &self.modules {
            for tensor in module.change.tensors() {
                check_tensor(tensor)?;
            }
        }
        Ok(())
    }

    /// Experts, rank, outputs and inputs of a pair for each expert in two tensors of three dimensions: A `[E, r, in]`, B
    /// `[E, out, r]`, either with one for all.
    pub fn experts_of_pair(&self, lora: &Lora) -> Option<[u64; 4]> {
        let (&[first, rank, inputs], &[second, outputs, inner]) =
            (lora.down.info.shape.as_slice(), lora.up.info.shape.as_slice())
        else {
            return None;
        };
        // A convolution over one dimension has A `[r, in, k]`, B `[out, r, 1]`.
        let is_convolution = outputs == first && inner == 1 && self.config.stacks_merged_by.is_none();
        if is_convolution || rank != inner || (first != second && first != 1 && second != 1) {
            return None;
        }
        Some([first.max(second), rank, outputs, inputs])
    }

    fn refuse_experts(&self, lora: &Lora) -> Result<()> {
        let Some([experts, ..]) = self.experts_of_pair(lora) else { return Ok(()) };
        let what = format!(
            "tensors `{}` {} and `{}` {} hold a pair for each of {} experts in one tensor each; such pairs are not read yet",
            lora.down.info.name, lora.down.info.shape, lora.up.info.name, lora.up.info.shape, experts
        );
        let error = Error::unsupported(lora.down.path(), what);
        Err(match self.config.stacks_merged_by {
            Some(way) => error.hint(way),
            None => error,
        })
    }

    /// What a user should know of how it was read: also where α stands, if that is not beside the factors or in a config.
    pub fn notes(&self) -> Vec<String> {
        let alpha = match self.config.alpha_from.as_ref() {
            Some(from @ (AlphaFrom::Header(_) | AlphaFrom::Told)) => {
                Some(format!("alpha of `{}` is from {from}", self.root.display()))
            }
            _ => None,
        };
        self.tensors.notes().cloned().chain(alpha).chain(self.packing_notes()).collect()
    }

    /// How its stacks of experts lie, where PEFT of today would read something else.
    pub fn packing_notes(&self) -> impl Iterator<Item = String> {
        self.packings.iter().filter(|packing| !packing.is_plain()).map(Packing::words)
    }

    /// Refuses pairs whose factors do not fit each other.
    ///
    /// # Errors
    /// `Mismatch` or `Malformed`, naming both tensors.
    pub fn check_pairs(&self) -> Result<()> {
        for module in &self.modules {
            let Change::Lora(lora) = &module.change else { continue };
            lora.tensors().try_for_each(check_elements)?;
            self.refuse_experts(lora)?;
            let up_rank = lora.up.info.shape.as_slice().get(1).copied();
            if up_rank == Some(lora.rank()) && lora.up.info.shape.rows_cols().1 != lora.rank() {
                let problem = format!("has shape {}: beyond the rank every dimension of B is 1", lora.up.info.shape);
                return Err(Error::malformed(lora.up.path(), format!("tensor `{}`", lora.up.info.name), problem));
            }
            if up_rank != Some(lora.rank()) {
                let problem = format!(
                    "A has rank {}, B has {}",
                    lora.rank(),
                    up_rank.map_or("none".into(), |rank| rank.to_string())
                );
                let error = Error::mismatch(describe(&lora.down), describe(&lora.up), problem);
                // B of a grouped convolution is [out, r / groups, 1 …].
                let groups = up_rank
                    .filter(|rank| *rank > 0 && lora.rank() % rank == 0 && lora.up.info.shape.as_slice().len() > 2);
                return Err(match groups {
                    Some(rank) => error.hint(format!(
                        "a convolution in {} groups; neither PEFT nor lorakit merges a LoRA into one",
                        lora.rank() / rank
                    )),
                    None => error,
                });
            }
        }
        Ok(())
    }
}

/// The scale the config of `adapter` gives `path`, whose tensors have rank `rank`.
///
/// # Errors
/// When the config has another rank, or none.
pub fn scale_of(adapter: &Adapter, path: &str, rank: u64) -> Result<f64> {
    let config = &adapter.config;
    let Some(scaling) = &config.scaling else {
        let what = format!("has LoRA tensors for `{path}`, its config says `{}`", config.method);
        return Err(Error::unsupported(&adapter.root, what));
    };
    let configured = scaling.rank(path);
    if configured != rank {
        let problem =
            format!("the tensors of `{path}` have rank {rank}, the config says {configured}: the scale is ambiguous");
        let left = adapter.tensors.root().display().to_string();
        return Err(Error::mismatch(left, config.path.display().to_string(), problem)
            .hint("correct `r` or `rank_pattern`; alpha counts for the rank the adapter was trained with"));
    }
    Ok(scaling.scale(path))
}

fn check_elements(tensor: &Stored) -> Result<()> {
    if tensor.info.bytes > 0 {
        return Ok(());
    }
    let problem = format!("has shape {} and no elements", tensor.info.shape);
    Err(Error::malformed(tensor.path(), format!("tensor `{}`", tensor.info.name), problem)
        .hint("ZeRO-3 and FSDP leave such tensors behind when an adapter is saved without gathering its shards"))
}

/// Bytes that are looked at at once.
const LOOKED_AT: u64 = 1 << 22;

fn check_tensor(tensor: &Stored) -> Result<()> {
    check_elements(tensor)?;
    let Some(float) = tensor.info.dtype.float() else { return Ok(()) };
    let mut offset = 0;
    while offset < tensor.info.bytes {
        let data = tensor.read(offset, LOOKED_AT.min(tensor.info.bytes - offset))?;
        if let Some(at) = first_not_finite(float, &data) {
            let mut value = [0.0];
            float.decode(&data[at * float.bytes()..(at + 1) * float.bytes()], &mut value);
            let at = at + usize_of(offset) / float.bytes();
            return Err(Error::numeric(tensor.path(), &tensor.info.name, format!("element {at} is {}", value[0])));
        }
        offset += data.len() as u64;
    }
    tensor.map.release(tensor.start, tensor.info.bytes);
    Ok(())
}
