//! LoRA pairs with the rank and scale that count for them.
//!
//! The pairs of a module's parameters (`target_parameters`) do not carry the parameter's name: they nest, the one defined
//! last outermost. A stack's pair holds the rank once per expert. Only the base can prove which is which; without one the
//! order of nesting is believed.

use super::targets::Targets;
use crate::adapters::{Adapter, Change, Lora};
use crate::naming::experts;

/// A pair, and what the config says about it.
pub struct Pair<'a> {
    /// The module's path.
    pub module: &'a str,
    /// The path that rank and alpha go by: that of the module, or of its parameter.
    pub path: String,
    /// The pair belongs to a parameter, not to a layer.
    pub parameter: bool,
    /// The tensors.
    pub lora: &'a Lora,
    /// Rank of one expert; of the pair where there are none.
    pub rank: u64,
    /// Rank, alpha and scale by the config; `None` for a method without.
    pub configured: Option<(u64, f64, f64)>,
    /// Experts in the stack; 1 for a layer.
    pub experts: u64,
}

/// The pairs of `adapter` in path order.
pub fn pairs<'a>(adapter: &'a Adapter, targets: &Targets) -> Vec<Pair<'a>> {
    let loras: Vec<(&str, usize, &Lora)> = adapter
        .modules
        .iter()
        .filter_map(|module| match &module.change {
            Change::Lora(lora) => Some((module.path.as_str(), module.nesting, lora.as_ref())),
            _ => None,
        })
        .collect();
    let mut found = Vec::with_capacity(loras.len());
    for same in loras.chunk_by(|left, right| left.0 == right.0) {
        for (module, nesting, lora) in same.iter().copied() {
            let parameters = adapter.config.parameters_of(module);
            let is_layer = experts::layer_of_stack(module).is_none() && targets.take(module) != Some(false);
            let inside = same.iter().filter(|(_, other, _)| *other > nesting).count();
            let name = if is_layer { None } else { parameters.get(inside) };
            let path = name.map_or_else(|| module.to_owned(), |name| format!("{module}.{name}"));
            let each = adapter.experts_of_pair(lora);
            let stored = each.map_or_else(|| lora.rank(), |[_, rank, ..]| rank);
            let configured = adapter.config.scaling.as_ref().map(|scaling| scaling.of(&path));
            let rank = configured.map_or(stored, |(rank, ..)| rank);
            let held = stored.checked_div(rank).filter(|held| name.is_some() && held * rank == stored);
            let held = held.unwrap_or(1).max(1);
            let (parameter, rank) = (name.is_some(), stored / held);
            let experts = each.map_or(held, |[experts, ..]| experts);
            found.push(Pair { module, path, parameter, lora, rank, configured, experts });
        }
    }
    found
}

impl Pair<'_> {
    /// What the module or parameter is called in its layer.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// The element types of A and B.
    pub fn dtypes(&self) -> (&str, &str) {
        (self.lora.down.info.dtype.name(), self.lora.up.info.dtype.name())
    }

    /// The element type, or both where they differ.
    pub fn dtype(&self) -> String {
        let (down, up) = self.dtypes();
        if down == up { down.to_owned() } else { format!("{down}/{up}") }
    }
}
