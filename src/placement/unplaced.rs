//! Tensors of an adapter that have no place in the base: one message names all of them, and what they may have meant.

use super::change::Placeable;
use super::placer::{Outcome, Placer};
use crate::adapters::{Adapter, Change};
use crate::error::Error;
use crate::naming::arch::flattened;
use crate::naming::components::with_component;
use crate::naming::experts::{self, FUSED, SPLIT, Split};

/// A module that found no place; others may still follow, so that one message names all.
pub struct Unplaced {
    /// Its tensors.
    pub tensors: Vec<String>,
    /// Its path in the base.
    pub wanted: String,
    /// What it is.
    pub lost: Lost,
}

/// The tensor of the base that a module would change.
fn wanted(module: &Unplaced) -> String {
    format!("{}.weight", module.wanted)
}

/// What would be lost without a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// A parameter of the base that was saved along.
    Copy,
    /// A tensor that was trained whole.
    Whole,
    /// Any other change.
    Trained,
}

impl Lost {
    /// What is lost with `change`.
    pub fn of(change: &Change) -> Self {
        match change {
            Change::Frozen(..) => Self::Copy,
            Change::Whole(..) => Self::Whole,
            _ => Self::Trained,
        }
    }
}

impl Placer<'_> {
    /// The refusal of an adapter with such modules.
    pub(crate) fn no_place(&self, adapter: &Adapter, unplaced: &[Unplaced], nearly: Option<&str>) -> Error {
        const SHOWN: usize = 3;
        let tensors: usize = unplaced.iter().map(|module| module.tensors.len()).sum();
        let total = adapter.tensors.count();
        let found = |outcome: &Outcome| matches!(outcome, Outcome::Merged | Outcome::LeftOut);
        let any = self.placement.outcomes.last().is_some_and(|outcomes| outcomes.values().any(found));
        let shown: Vec<String> = unplaced
            .iter()
            .take(SHOWN)
            .map(|module| {
                // Of another model every name resembles some other one, and means none of them.
                let near = if any { self.base.names.nearest(&wanted(module), 2) } else { Vec::new() };
                if near.contains(&wanted(module).as_str()) {
                    return format!("`{}` (`{}` has no such parameter)", module.tensors[0], module.wanted);
                }
                let near: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
                match near.is_empty() {
                    true => format!("`{}`", module.tensors[0]),
                    false => format!("`{}` (did you mean {}?)", module.tensors[0], near.join(" or ")),
                }
            })
            .collect();
        let more = if unplaced.len() > SHOWN {
            format!(", and {} more modules", unplaced.len() - SHOWN)
        } else {
            String::new()
        };
        let all = if any { "" } else { ", those of all its modules," };
        let problem =
            format!("{tensors} of {total} adapter tensors{all} have no place in the base: {}{more}", shown.join(", "));
        let problem = nearly.map_or(problem.clone(), |nearly| format!("{problem}; {nearly}"));
        Error::mismatch(adapter.root.display().to_string(), self.base_name(), problem)
            .hint(self.way_out(unplaced, !any))
    }

    /// The way out. What was trained for a part that the base has is never offered to be dropped, nor `all` that was trained.
    fn way_out(&self, unplaced: &[Unplaced], all: bool) -> &'static str {
        let names = &self.base.names;
        let is_new = |module: &Unplaced| module.lost == Lost::Whole && !names.has_module(&module.wanted);
        let has_part = |module: &Unplaced| match flattened(&module.wanted) {
            Some((_, components)) => components.iter().any(|component| self.places.has_part(component)),
            None => {
                let path = with_component(&module.wanted);
                let part = path.split('.').next().unwrap_or_default();
                names.has_module(part) || self.places.has_part(part)
            }
        };
        if unplaced.iter().all(|module| module.lost == Lost::Copy) {
            "they repeat weights of the model the adapter was trained on: `--allow-unused GLOB` lets them go"
        } else if unplaced.iter().all(is_new) {
            "`modules_to_save` of the adapter's config names modules that are added to the model, such as a new head"
        } else if !all && !unplaced.iter().any(has_part) {
            "`--allow-unused GLOB` leaves away what belongs to a part of the model that the base does not have"
        } else {
            "is this the model the adapter was trained on?"
        }
    }

    /// The refusal of a change of experts that the base keeps packed.
    pub(crate) fn packed_place(&self, job: &Placeable<'_>) -> Option<Error> {
        let path = &job.path;
        let adapted = job.applied.adapter.config.parameters_of(&job.module.path);
        let mut stacks: Vec<String> = adapted.iter().map(|name| format!("{path}.{name}")).collect();
        if let Change::Whole(name, _) = &job.module.change {
            stacks.push(format!("{path}.{name}"));
        }
        if let Some(single) = experts::expert_of(path) {
            let parts = single.parts.iter();
            stacks.extend(parts.flat_map(|part| FUSED.iter().map(|fused| fused.tensor(single.layer, *part))));
        }
        // One layer for each expert: `experts.gate_up_projs.0`.
        let list = path.rsplit_once('.').filter(|(_, number)| number.parse::<u64>().is_ok());
        stacks.extend(list.and_then(|(list, _)| list.strip_suffix('s')).map(str::to_owned));
        stacks.iter().find_map(|stack| self.base.packed(stack)).or_else(|| self.packed_expert(path, &adapted))
    }

    /// The refusal of a stack of experts at `path` that the base keeps expert by expert, and packed.
    fn packed_expert(&self, path: &str, adapted: &[&str]) -> Option<Error> {
        let own = adapted.iter().map(|name| format!("{path}.0.{name}"));
        let splits = experts::layer_of_stack(path).into_iter().flat_map(|layer| {
            let modules = move |split: &'static Split| {
                let tensors = split.has().iter().map(move |part| split.tensor(layer, 0, *part));
                tensors.map(|tensor| tensor.trim_end_matches(".weight").to_owned())
            };
            SPLIT.iter().flat_map(modules)
        });
        own.chain(splits).find_map(|module| self.base.packed(&module))
    }
}
