//! What a method says of itself. Whoever needs to know something of a method asks its record; nobody knows it by name.

use std::fmt;
use std::sync::Arc;

use super::method::Method;
use super::parts::{Context, Parts};
use crate::error::Result;

/// Takes a method's tensors out of the parts of a module; `None` if it is another method's module.
pub type Gather = fn(&mut Parts, &Context<'_>) -> Result<Option<Arc<dyn Method>>>;

/// A method and the facts about it.
#[derive(Debug)]
pub struct Kind {
    /// Its name as the field writes it: `LoHa`, `OFT` …
    pub title: &'static str,
    /// The values of `peft_type` of its adapters; none for a method that PEFT does not have.
    pub peft_types: &'static [&'static str],
    /// What its tensors begin with in PEFT's files, up to the first underscore of a segment.
    pub prefixes: &'static [&'static str],
    /// Other segments of PEFT's keys that are its tensors.
    pub segments: &'static [&'static str],
    /// What follows the segment in the keys of its tensors, and is no name of an adapter.
    pub parameters: &'static [&'static str],
    /// The key of α in PEFT's config, where the scale is α/r or α/√r.
    pub alpha: Option<&'static str>,
    /// PEFT calls its tensors as LyCORIS does.
    pub is_of_lycoris: bool,
    /// Readers of files with α beside the factors know it below dotted names as well.
    pub is_dotted: bool,
    /// Its tensors tell the kernel of a convolution.
    pub tells_kernel: bool,
    /// It may leave a module no rank, with factors that are empty.
    pub drops_ranks: bool,
    /// Why it does not change an embedding, if it does not.
    pub on_embedding: Option<&'static str>,
    /// What there is to say of a convolution that it changes.
    pub on_convolution: Option<&'static str>,
    /// Why it is not merged, if it is not.
    pub refused: Option<&'static str>,
    /// Recognises its tensors.
    pub gather: Gather,
}

impl Kind {
    /// A method of which only the name is known, and how its tensors are recognised.
    pub const fn new(title: &'static str, gather: Gather) -> Self {
        Self {
            title,
            peft_types: &[],
            prefixes: &[],
            segments: &[],
            parameters: &[],
            alpha: None,
            is_of_lycoris: false,
            is_dotted: false,
            tells_kernel: false,
            drops_ranks: false,
            on_embedding: None,
            on_convolution: None,
            refused: None,
            gather,
        }
    }

    /// A method of PEFT.
    pub const fn of_peft(
        title: &'static str,
        peft_types: &'static [&'static str],
        prefixes: &'static [&'static str],
        gather: Gather,
    ) -> Self {
        Self { peft_types, prefixes, ..Self::new(title, gather) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.title == other.title
    }
}
