//! Untrained factors that are lost: what PiSSA and OLoRA took out of the model, found again from it for all modules at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::adapters::{Adapter, Change, Initial, Initialiser, Lora, Term};
use crate::error::Result;
use crate::ops::initial::Original;
use crate::ops::merge::Selection;
use crate::plan::{Budget, map_within};

/// Where to look, for which modules, and with what.
pub struct Search<'a> {
    /// The model training started from.
    pub base: &'a Path,
    /// Which modules are asked for.
    pub selection: &'a Selection,
    /// Threads and memory.
    pub budget: Budget,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
}

/// What was found for one adapter.
pub struct Found {
    /// The model.
    pub base: PathBuf,
    /// −s·B₀·A₀ by module path, `[out, r]` times `[r, in]`.
    pub terms: BTreeMap<String, Term>,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

/// One weight to be decomposed.
struct Task<'a> {
    path: &'a str,
    initial: Arc<Initial>,
    /// The weight is stored as `[in, out]`.
    turned: bool,
}

impl Search<'_> {
    /// Finds what `initialiser` took out for the modules of `adapter`.
    ///
    /// # Errors
    /// When the model is another one, or a weight does not say what was taken out of it.
    pub fn find(&self, adapter: &Adapter, initialiser: Initialiser) -> Result<Found> {
        let original = Original::open(self.base)?;
        let pairs: Vec<(&str, &Lora)> = adapter
            .modules
            .iter()
            .filter(|module| self.selection.takes(&module.path))
            .filter_map(|module| match &module.change {
                Change::Lora(lora) => Some((module.path.as_str(), lora.as_ref())),
                _ => None,
            })
            .collect();
        let shift = original.shift(adapter, &pairs.iter().map(|(path, _)| *path).collect::<Vec<_>>())?;
        let mut tasks = Vec::new();
        for (path, lora) in pairs {
            let (home, scale) = (shift.apply(path), crate::ops::merge::scale_of(adapter, path, lora.rank())?);
            if let Some(initial) = original.initial(initialiser, lora, &format!("{home}.weight"), scale)? {
                let turned = original.keeps_inputs_in_rows(adapter, &home, lora);
                tasks.push(Task { path, initial, turned });
            }
        }
        let held: Vec<u64> = tasks.iter().map(|task| task.initial.held_bytes()).collect();
        let terms = map_within(&held, &self.budget, self.cancel, |at| {
            let Task { initial, turned, .. } = &tasks[at];
            initial.find()?;
            Ok(initial.term().cloned().map(|term| if *turned { term.transposed() } else { term }))
        })?;
        let notes = tasks.iter().filter_map(|task| task.initial.worth_knowing().map(str::to_owned)).collect();
        let terms = tasks.iter().zip(terms).filter_map(|(task, term)| Some((task.path.to_owned(), term?))).collect();
        Ok(Found { base: self.base.into(), terms, notes })
    }
}
