//! Whole tensors that the base does not have by their path: one prefix away lies the tensor they were trained from, or they are new.

use super::change::Placeable;
use super::placer::{Outcome, Placer};
use crate::adapters::config::saves;
use crate::adapters::{Change, Module, describe, is_saved_beside};
use crate::error::{Error, Result};
use crate::formats::Stored;

/// How many places are shown.
const SHOWN: usize = 4;

impl Placer<'_> {
    /// A tensor that the adapter declares as trained whole, and that has no place by its path.
    pub(super) fn place_unplaced(
        &mut self,
        job: &Placeable<'_>,
        parameter: &str,
        tensor: &Stored,
    ) -> Result<Option<Outcome>> {
        let saved = job.applied.adapter.config.saved_modules().any(|saved| saves(saved, &job.path));
        let beside = is_saved_beside(tensor);
        let is_there = self.base.names.has_module(&job.path) && !self.base.is_tied_head(&job.path);
        if is_there || !(saved || beside) {
            return Ok(None);
        }
        if let Some(path) = self.one_prefix_away(job, parameter, tensor)? {
            let (from, to) = (format!("{}.{parameter}", job.path), format!("{path}.{parameter}"));
            let to = to.trim_start_matches('.');
            self.placement.notes.push(format!("`{from}` of the adapter is `{to}` of the base: the prefix differs"));
            self.paths.insert(path.clone());
            let moved = Placeable { path, ..*job };
            return self.place_whole(&moved, parameter, tensor);
        }
        if !(saved || self.same_paths) || job.strength != 1.0 {
            return Ok(None);
        }
        self.place_new(job, parameter, tensor)
    }

    /// The module path of the one tensor of this shape whose name differs in a prefix that only one of both has.
    fn one_prefix_away(&self, job: &Placeable<'_>, parameter: &str, tensor: &Stored) -> Result<Option<String>> {
        let name = format!("{}.{parameter}", job.path);
        let mut found: Vec<(&str, &str)> = Vec::new();
        for other in self.base.names.one_prefix_away(&name) {
            let path = other.strip_suffix(parameter).filter(|path| path.is_empty() || path.ends_with('.'));
            let Some(path) = path.map(|path| path.trim_end_matches('.')) else { continue };
            let own = self.target(other);
            // The shape of packed values says nothing.
            if own.info.shape == tensor.info.shape || own.info.dtype.float().is_none() {
                found.push((other, path));
            }
        }
        let is_own = |name: &str| {
            let is = |module: &Module| match &module.change {
                Change::Whole(parameter, _) => name == format!("{}.{parameter}", module.path),
                _ => false,
            };
            job.applied.adapter.modules.iter().any(is)
        };
        match found.as_slice() {
            [] => Ok(None),
            [(other, path)] if !is_own(other) => Ok(Some((*path).to_owned())),
            [(other, _)] => {
                let problem = format!("has no place but `{other}`, for which the adapter brings another tensor");
                Err(Error::mismatch(describe(tensor), self.base_name(), problem))
            }
            several => {
                let shown: Vec<String> = several.iter().take(SHOWN).map(|(other, _)| format!("`{other}`")).collect();
                let problem = format!("it could be any of {} tensors: {}", several.len(), shown.join(", "));
                Err(Error::mismatch(describe(tensor), self.base_name(), problem)
                    .hint("name it in the adapter as the base does, prefix and all"))
            }
        }
    }

    /// A module the base does not have: a new head that the adapter declares.
    fn place_new(&mut self, job: &Placeable<'_>, parameter: &str, tensor: &Stored) -> Result<Option<Outcome>> {
        let name = format!("{}.{parameter}", job.path);
        if let Some(earlier) = self.placement.targets.get(&name).and_then(|target| target.replacement.as_ref()) {
            if !crate::model::same_values(tensor, earlier)? {
                let problem = "both bring a new tensor of this name, and the base has none to add them to";
                return Err(Error::mismatch(describe(tensor), describe(earlier), problem));
            }
            return Ok(Some(Outcome::Merged));
        }
        self.placement.notes.push(format!(
            "`{name}` is new: the base has no such module; `architectures` in config.json has to name a class that has one"
        ));
        self.entry(&name).replacement = Some(tensor.clone());
        Ok(Some(Outcome::Merged))
    }
}
