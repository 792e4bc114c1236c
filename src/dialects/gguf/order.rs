//! The rows of q and k, from the order of llama.cpp back into that of the checkpoint, once the heads of the model are known.

use std::path::Path;

use super::HeadCounts;
use super::heads::row_order;
use crate::adapters::{Adapter, Change, ReadOptions, describe};
use crate::dialects::turn;
use crate::error::{Error, Result};
use crate::llama::{GgufArch, gguf_arch_of};
use crate::model::ModelConfig;

impl Adapter {
    /// Opens an adapter for the model with the config `model`. A GGUF file may need it to be understood: in some
    /// architectures the order of rows depends on the number of heads, and such a file seldom says it.
    ///
    /// # Errors
    /// As [`Adapter::open`], when the number of heads is needed and not known, or the model is of another architecture.
    pub fn open_for(path: &Path, model: Option<&ModelConfig>, options: &ReadOptions) -> Result<Self> {
        let mut adapter = Self::open_as_it_lies(path, options)?;
        adapter.read_stacks(model, options, true)?;
        if let Some(said) = adapter.config.llama_cpp.clone() {
            adapter.check_architecture(said.arch, model)?;
            if said.unordered {
                let own = HeadCounts::in_metadata(&said.metadata, said.arch.name());
                adapter.put_in_order(said.arch, model.and_then(HeadCounts::of).or(own))?;
            }
        }
        Ok(adapter)
    }

    /// Opens an adapter, and leaves the rows of a GGUF file in the order that they have there.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn open_as_it_lies(path: &Path, options: &ReadOptions) -> Result<Self> {
        let (mut adapter, problem) = Self::examine(path, options)?;
        adapter.leave_out_originals();
        problem.map_or(Ok(adapter), Err)
    }

    fn check_architecture(&self, arch: &GgufArch, model: Option<&ModelConfig>) -> Result<()> {
        let kind = model.and_then(|model| model.model_type.as_deref());
        match kind.and_then(|kind| Some((kind, gguf_arch_of(kind)?))) {
            Some((kind, other)) if other.name() != arch.name() => {
                let what = format!(
                    "is for a model of architecture `{}`, and the model is of type `{kind}`, which is `{}`",
                    arch.name(),
                    other.name()
                );
                Err(Error::unsupported(&self.root, what).hint("is this the model the adapter was trained on?"))
            }
            _ => Ok(()),
        }
    }

    fn put_in_order(&mut self, arch: &GgufArch, counts: Option<HeadCounts>) -> Result<()> {
        for module in &mut self.modules {
            let (Change::Lora(lora), Some(place)) = (&mut module.change, arch.place(&module.path)) else { continue };
            if place.order.is_none() {
                continue;
            }
            if counts.is_none() {
                let what = format!(
                    "tensor `{}` has its rows in the order of llama.cpp, which the number of attention heads tells, and the \
                     file does not say it",
                    lora.up.info.name
                );
                return Err(Error::unsupported(&self.root, what)
                    .hint("give the model, --base PATH: a directory with its `config.json` will do, or a GGUF file"));
            }
            let rows = usize::try_from(lora.outputs()).unwrap_or(usize::MAX);
            let order = row_order(&place, counts, rows);
            let order = order.map_err(|problem| {
                Error::mismatch(describe(&lora.up), "the heads of the model", problem)
                    .hint("is this the model the adapter was trained on?")
            })?;
            if let Some(order) = order {
                lora.up = turn::scattered(&lora.up, order);
            }
        }
        if let Some(said) = &mut self.config.llama_cpp {
            said.unordered = false;
        }
        Ok(())
    }
}
