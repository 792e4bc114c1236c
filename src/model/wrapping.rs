//! A model that was saved with what its training put around it: read under its own names, and written under those of its
//! files. A PEFT model with its adapters inside becomes the model alone.

use std::collections::HashMap;

use crate::adapters::wrappers::{Unwrapped, unwrap};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Container};

/// What was taken off the names of a model.
#[derive(Debug, Default)]
pub struct Wrapping {
    /// What stood in front of all names.
    front: String,
    /// Own name → name in the files, where they differ.
    in_files: HashMap<String, String>,
    /// Adapters inside, and how many tensors they have.
    inside: Option<(Vec<String>, usize)>,
    /// One of the names in the files.
    example: Option<String>,
}

impl Wrapping {
    /// The model `checkpoint` under its own names, without what lies inside it and is none of it.
    ///
    /// # Errors
    /// When its tensors cannot be told apart then.
    pub fn off(checkpoint: Checkpoint) -> Result<(Checkpoint, Self)> {
        let plain = matches!(checkpoint.container(), Container::Pipeline(_)) || checkpoint.gguf().is_some();
        let keys: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
        let Some(unwrapped) = unwrap(&keys).filter(|_| !plain) else { return Ok((checkpoint, Self::default())) };
        let left_out = unwrapped.left_out();
        let Unwrapped { names, front, adapters } = unwrapped;
        let has_frozen = left_out > 0 || keys.iter().any(|key| key.contains("base_layer"));
        let pairs = names.iter().zip(&keys).filter_map(|(name, key)| Some((name.as_ref()?, *key)));
        let differing = pairs.filter(|(name, key)| name != key);
        let mut wrapping = Self { example: differing.clone().next().map(|(_, key)| key.to_owned()), ..Self::default() };
        if has_frozen {
            wrapping.inside = Some((adapters.into_iter().collect(), left_out));
        } else {
            wrapping.in_files = differing.map(|(name, key)| (name.clone(), key.to_owned())).collect();
            wrapping.front = front;
        }
        Ok((checkpoint.renamed(names)?, wrapping))
    }

    /// What the tensor `name` is called in the files of the model, or would be.
    pub fn in_files(&self, name: &str) -> String {
        self.in_files.get(name).cloned().unwrap_or_else(|| format!("{}{name}", self.front))
    }

    /// What a user should know of it.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let example = self.example.as_deref().unwrap_or_default();
        let wrapped = (!self.in_files.is_empty()).then(|| {
            format!("the names of the model stand in wrappers of its training (`{example}`): it is read without them, and written with them")
        });
        let inside = self.inside.as_ref().map(|(adapters, count)| match adapters.as_slice() {
            [] => format!("the model was saved as PEFT holds it (`{example}`): it is written under its own names"),
            adapters => {
                let names: Vec<String> = adapters.iter().map(|name| format!("`{name}`")).collect();
                format!(
                    "the model holds adapters of its own, {}: their {count} tensors are no part of the result",
                    names.join(" and ")
                )
            }
        });
        wrapped.into_iter().chain(inside)
    }

    /// A model whose own adapters would be lost is not what `role` should be.
    ///
    /// # Errors
    /// When `checkpoint` has some.
    pub fn refuse_inside(&self, checkpoint: &Checkpoint, role: &str) -> Result<()> {
        let Some((adapters, count)) = self.inside.as_ref().filter(|(_, count)| *count > 0) else { return Ok(()) };
        let names: Vec<String> = adapters.iter().map(|name| format!("`{name}`")).collect();
        let what = format!(
            "{role} holds adapters of its own beside its weights ({}, {count} tensors), which are not merged",
            names.join(", ")
        );
        Err(Error::unsupported(checkpoint.root(), what)
            .hint("`lorakit merge MODEL MODEL --adapter-name NAME` merges one of them; the result is a plain model"))
    }
}
