//! The methods other than LoRA, one file each, and the list of them.

use std::sync::Arc;

use super::method::Method;
use super::parts::{Context, Parts};
use crate::error::Result;

/// Takes a method's tensors out of the parts of a module; `None` if it is another method's module.
pub type Gather = fn(&mut Parts, &Context<'_>) -> Result<Option<Arc<dyn Method>>>;

/// A method and how its tensors are recognised.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Recognises its tensors.
    pub gather: Gather,
}

/// All methods, in the order they are asked: one that claims tensors of another comes first.
pub const KINDS: &[Kind] = &[];
