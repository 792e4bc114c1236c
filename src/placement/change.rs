//! One change of one adapter on its way to its place.

use super::applied::Applied;
use crate::adapters::{Change, Lora, Module, scale_of};
use crate::error::{Error, Result};

/// One change of one adapter on its way.
pub struct Placeable<'a> {
    /// The adapter.
    pub applied: &'a Applied,
    /// The change.
    pub module: &'a Module,
    /// Its position in the adapter.
    pub at: usize,
    /// Path in the base.
    pub path: String,
    /// Its weight.
    pub strength: f64,
}

impl<'a> Placeable<'a> {
    /// The scale of the pair, whose tensors have rank `rank`.
    pub fn scale(&self, rank: u64) -> Result<f64> {
        let path = &self.module.path;
        // PEFT matches its patterns against the parameter where it was adapted as one.
        let is_parameter = self.applied.adapter.config.parameters_of(path).contains(&"weight");
        if is_parameter { self.scale_as(&format!("{path}.weight"), rank) } else { self.scale_as(path, rank) }
    }

    /// The scale the config gives the path `path`.
    pub fn scale_as(&self, path: &str, rank: u64) -> Result<f64> {
        scale_of(&self.applied.adapter, path, rank)
    }

    /// The untrained pair of the same module and its scale.
    pub fn untrained(&self) -> Result<Option<(&'a Lora, f64)>> {
        let Some(init) = &self.applied.init else { return Ok(None) };
        let same = |module: &&Module| module.path == self.module.path && module.nesting == self.module.nesting;
        let pair_of = |module: &'a Module| match &module.change {
            Change::Lora(lora) => Some(lora),
            _ => None,
        };
        // Modules mostly stand in the order of their paths.
        let near = init.modules.partition_point(|module| module.path < self.module.path);
        let pair = init.modules[near..]
            .iter()
            .take_while(|module| module.path == self.module.path)
            .filter(same)
            .find_map(pair_of)
            .or_else(|| init.modules.iter().filter(same).find_map(pair_of));
        let Some(pair) = pair else {
            let problem = format!("has no factors for module `{}`", self.module.path);
            return Err(Error::mismatch(
                init.root.display().to_string(),
                self.applied.adapter.root.display().to_string(),
                problem,
            ));
        };
        Ok(Some((pair, scale_of(init, &self.module.path, pair.rank())?)))
    }

    /// The changes of the same module, which stand together.
    pub fn siblings(&self) -> impl Iterator<Item = &'a Module> {
        let modules = &self.applied.adapter.modules;
        let is_own = |module: &&Module| module.path == self.module.path;
        let before = modules[..self.at].iter().rev().take_while(is_own).count();
        modules[self.at - before..].iter().take_while(move |module| module.path == self.module.path)
    }

    /// Whether it is the first pair of its module.
    pub fn is_first_pair(&self) -> bool {
        let first = self.siblings().find(|module| matches!(module.change, Change::Lora(_)));
        first.is_some_and(|first| std::ptr::eq(first, self.module))
    }
}
