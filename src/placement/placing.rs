//! One adapter after the other is brought to its places: which way a change takes.

use super::applied::Applied;
use super::change::Placeable;
use super::denoisers::in_component;
use super::fit::check_elements;
use super::methods;
use super::placer::{Outcome, Placer};
use super::places::{Place, names_component, size_of};
use super::prepared::{Prepared, prepare};
use super::tile::Piece;
use super::unplaced::{Lost, Unplaced};
use super::vocabulary::{self, is_resized};
use super::{experts as stacked, split};
use crate::adapters::{
    Adapter, Change, Difference, Factor, Lora, Module, TokenRows, Whole, describe, embedding_of, embeddings_note,
};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::{Shift, experts, head};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

impl Placer<'_> {
    /// Finds the place of everything in `applied`.
    ///
    /// # Errors
    /// When a tensor has no place, or not the shape of its place.
    pub fn place(&mut self, applied: &Applied) -> Result<()> {
        self.placement.outcomes.push(HashMap::new());
        let adapter = &applied.adapter;
        self.choose_denoiser(adapter)?;
        let shift = self.shift(adapter)?;
        self.same_paths = shift.is_identity();
        let moved = self.moved(adapter, &shift)?;
        let mut unplaced = Vec::new();
        let mut embedded = BTreeSet::new();
        for (at, module) in adapter.modules.iter().enumerate() {
            if let Some(name) = embedding_of(module) {
                embedded.insert(name);
                self.settle(module, Outcome::AllowedUnused);
                continue;
            }
            let path = moved.apply(self.places.meant(shift.apply(&module.path)));
            let path = self.located(module, path)?;
            self.paths.insert(path.clone());
            self.note_tied(at, &path);
            let strength = applied.strength_at(self.selection, &path)?;
            if strength == 0.0 || !self.selection.takes(&path) {
                self.settle(module, Outcome::LeftOut);
                continue;
            }
            let job = Placeable { applied, module, at, path, strength };
            match self.place_module(&job)? {
                Some(outcome) => self.settle(module, outcome),
                None => {
                    let tensors: Vec<String> =
                        module.change.tensors().iter().map(|tensor| tensor.info.name.clone()).collect();
                    if tensors.iter().all(|name| self.allow_unused.is_match(name)) {
                        self.settle(module, Outcome::AllowedUnused);
                    } else {
                        if let Some(error) = self.packed_place(&job) {
                            return Err(error);
                        }
                        unplaced.push(Unplaced { tensors, wanted: job.path.clone(), lost: Lost::of(&module.change) });
                    }
                }
            }
        }
        self.placement.notes.extend(embeddings_note(&embedded, "a model"));
        if unplaced.is_empty() { Ok(()) } else { Err(self.no_place(adapter, &unplaced, moved.nearly.as_deref())) }
    }

    /// Remembers a module of the tie, under whatever name the adapter has it.
    fn note_tied(&mut self, at: usize, path: &str) {
        let Some(tie) = self.base.tie.as_ref().or(self.base.stored_tie.as_ref()) else { return };
        let is = |tensor: &str| tensor.strip_suffix(".weight") == Some(path);
        if is(&tie.head) || is(&tie.embedding) {
            self.tied.push((self.placement.outcomes.len() - 1, at, is(&tie.head)));
        }
    }

    fn settle(&mut self, module: &Module, outcome: Outcome) {
        let outcomes = self.placement.outcomes.last_mut().expect("an adapter is being placed");
        outcomes.extend(module.change.tensors().into_iter().map(|tensor| (tensor.info.name.clone(), outcome)));
    }

    /// The path of the module in the base: as it is, or under another name.
    fn located(&self, module: &Module, path: String) -> Result<String> {
        if let Some(located) = self.base.names.located(&path) {
            return Ok(located);
        }
        match self.places.find(self.base, &path, size_of(&module.change))? {
            Some(Place::Whole(other)) => Ok(other),
            _ => Ok(path),
        }
    }

    /// The change of prefix between the adapter's paths and the base's.
    fn shift(&mut self, adapter: &Adapter) -> Result<Shift> {
        let is_plain = |module: &&Module| {
            matches!(module.change, Change::Lora(_) | Change::Method(_) | Change::TokenRows(_))
                && experts::layer_of_stack(&module.path).is_none()
                && experts::expert_of(&module.path).is_none()
                && !names_component(&module.path)
                // A head stands outside of what a prefix is put before.
                && !(head::is_head(&module.path) && self.base.names.has_module(&module.path))
        };
        let modules: Vec<&str> = adapter.modules.iter().filter(is_plain).map(|module| module.path.as_str()).collect();
        if let Some(located) = self.base.names.all_located(&modules) {
            let renamed = modules.iter().zip(&located).filter(|(module, located)| module != located);
            if let Some((module, located)) = renamed.clone().next() {
                let count = renamed.count();
                self.placement.notes.push(format!(
                    "the base has other names for {count} of the adapter's modules: `{module}` is its `{located}`"
                ));
            }
            return Ok(Shift::default());
        }
        match self.base.names.shifts(&modules).as_slice() {
            [] => Ok(Shift::default()),
            [shift] => {
                if !shift.is_identity() {
                    let (from, to) = (&shift.strip, &shift.add);
                    self.placement.notes.push(format!(
                        "module paths differ in their prefix: `{from}` of the adapter is `{to}` of the base"
                    ));
                }
                Ok(shift.clone())
            }
            // The denoiser that is meant decides.
            several if self.component.is_some_and(|name| in_component(several, modules[0], name).is_some()) => {
                let chosen = self.component.and_then(|name| in_component(several, modules[0], name));
                Ok(chosen.cloned().unwrap_or_default())
            }
            several => {
                let ways: Vec<String> = several.iter().map(|shift| format!("`{}`", shift.apply(modules[0]))).collect();
                let problem = format!("`{}` could be any of {}", modules[0], ways.join(", "));
                Err(Error::mismatch(adapter.root.display().to_string(), self.base_name(), problem))
            }
        }
    }

    fn place_module(&mut self, job: &Placeable<'_>) -> Result<Option<Outcome>> {
        match &job.module.change {
            Change::Lora(lora) => self.place_lora(job, lora),
            Change::Method(method) => methods::place(self, job, method.as_ref()),
            Change::Inserted(inserted) => {
                let what = format!("`{}` ({}): {}", job.module.path, inserted.kind, inserted.reason);
                Err(Error::unsupported(&job.applied.adapter.root, what))
            }
            Change::Whole(parameter, tensor) => self.place_whole(job, parameter, tensor),
            Change::Frozen(parameter, tensor) => self.place_frozen(job, parameter, tensor),
            Change::TokenRows(tensor) => self.place_rows(job, tensor),
            Change::Unknown(_) => Ok(None),
        }
    }

    fn place_lora(&mut self, job: &Placeable<'_>, lora: &Lora) -> Result<Option<Outcome>> {
        if let Some(name) = self.tensor_of(job, "weight") {
            let target = self.target(&name);
            if target.info.dtype.float().is_none() {
                // Says who packed it; a shape that does not fit would be the wrong thing to complain about.
                self.base.weight(&target.info.name, None)?;
            }
            let parameters = job.applied.adapter.config.parameters_of(&job.module.path);
            if target.info.shape.as_slice().len() == 3 && parameters.contains(&"weight") {
                return stacked::place(self, job, lora);
            }
            let piece = |delta| Piece { delta, row: 0, col: 0, strength: job.strength };
            match prepare(self.base, job, lora, &target)? {
                Prepared::Plain(delta) if self.is_attention_output(job) => {
                    // PEFT 0.21 adds this change twice, forward and merged alike (docs/decisions/0006).
                    self.add(&name, piece(Arc::new(delta.clone())), None);
                    self.add(&name, piece(Arc::new(delta.rounded_with_sum())), None);
                }
                Prepared::Plain(delta) => self.add(&name, piece(Arc::new(delta)), None),
                Prepared::Dora(delta) => self.add(&name, piece(Arc::new(delta)), None),
            }
            if let Some(bias) = &lora.bias {
                self.add_bias(job, bias)?;
            }
            return Ok(Some(Outcome::Merged));
        }
        if let Some(error) = self.base.packed(&job.path) {
            return Err(error);
        }
        if let Some((_, spots)) = self.spots(job)? {
            return split::place_lora(self, job, lora, &spots);
        }
        stacked::place(self, job, lora)
    }

    /// Whether the module is the output projection of an `nn.MultiheadAttention` that is adapted as a whole.
    fn is_attention_output(&self, job: &Placeable<'_>) -> bool {
        let Some(attention) = job.module.path.strip_suffix(".out_proj") else { return false };
        let parent = job.path.trim_end_matches(".out_proj");
        let adapted = |module: &Module| module.path == attention && matches!(module.change, Change::Lora(_));
        self.base.names.has(&format!("{parent}.in_proj_weight")) && job.applied.adapter.modules.iter().any(adapted)
    }

    fn add_bias(&mut self, job: &Placeable<'_>, bias: &Stored) -> Result<()> {
        let Some(name) = self.tensor_of(job, "bias") else {
            let problem = "the adapter adds to a bias (`lora_bias`), the module has none";
            return Err(Error::mismatch(describe(bias), format!("{}: `{}`", self.base_name(), job.path), problem));
        };
        let target = self.base.stored(&name);
        let lora = match &job.module.change {
            Change::Lora(lora) => lora,
            _ => unreachable!("a bias belongs to a pair"),
        };
        check_elements(bias, &target)?;
        let delta = Arc::new(Difference::new(Factor::new(bias)?, job.scale(lora.rank())?));
        self.add(&name, Piece { delta, row: 0, col: 0, strength: job.strength }, None);
        Ok(())
    }

    pub(super) fn place_whole(
        &mut self,
        job: &Placeable<'_>,
        parameter: &str,
        tensor: &Stored,
    ) -> Result<Option<Outcome>> {
        let Some(name) = self.tensor_of(job, parameter) else { return self.place_unplaced(job, parameter, tensor) };
        let target = self.target(&name);
        // A copy of a shared embedding is no reason to give its head another tensor.
        let is_shared = self.base.tie.as_ref().is_some_and(|tie| tie.embedding == name);
        if is_shared && tensor.info.shape == target.info.shape && crate::model::same_values(tensor, &target)? {
            return Ok(Some(Outcome::SameAsBase));
        }
        if self.resizes && is_resized(tensor, &target) {
            self.resize(job, &name, tensor, &target)?;
        } else {
            check_elements(tensor, &target)?;
            self.replace(job, &name, tensor)?;
        }
        Ok(Some(Outcome::Merged))
    }

    pub(crate) fn replace(&mut self, job: &Placeable<'_>, name: &str, tensor: &Stored) -> Result<()> {
        let target = self.entry(name);
        let taken = target.replacement.is_some() || !target.pieces.is_empty();
        if job.strength == 1.0 && !taken {
            target.replacement = Some(tensor.clone());
            return Ok(());
        }
        // Every change counts from the base: an earlier replacement becomes one of several.
        if let Some(earlier) = target.replacement.take() {
            let delta = Arc::new(Whole::new(Factor::new(&earlier)?));
            target.pieces.insert(0, Piece { delta, row: 0, col: 0, strength: 1.0 });
        }
        if taken {
            let note = format!("`{name}` is changed by more than one part of the adapters: the changes are added");
            self.placement.notes.push(note);
        }
        let delta = Arc::new(Whole::new(Factor::new(tensor)?));
        self.add(name, Piece { delta, row: 0, col: 0, strength: job.strength }, None);
        Ok(())
    }

    /// A layer's own parameter, saved beside its LoRA: usually the base's, sometimes trained (`bias`) or resized.
    fn place_frozen(&mut self, job: &Placeable<'_>, parameter: &str, tensor: &Stored) -> Result<Option<Outcome>> {
        let Some(name) = self.tensor_of(job, parameter) else { return Ok(None) };
        let target = self.target(&name);
        check_elements(tensor, &target)?;
        if crate::model::same_values(tensor, &target)? {
            return Ok(Some(Outcome::SameAsBase));
        }
        if parameter != "bias" {
            let note = format!(
                "`{name}` was saved with the adapter and differs from the base's: the adapter's is used, as PEFT does"
            );
            self.placement.notes.push(note);
        }
        self.replace(job, &name, tensor)?;
        Ok(Some(Outcome::Merged))
    }

    fn place_rows(&mut self, job: &Placeable<'_>, tensor: &Stored) -> Result<Option<Outcome>> {
        let config = &job.applied.adapter.config;
        let serves = |suffix: &str| {
            suffix.is_empty() || job.module.path == suffix || job.module.path.ends_with(&format!(".{suffix}"))
        };
        let Some((_, ids)) = config.token_indices.iter().find(|(suffix, _)| serves(suffix)) else {
            let problem =
                format!("belongs to `{}`, for which `{}` lists no tokens", job.module.path, config.path.display());
            return Err(Error::malformed(tensor.path(), format!("tensor `{}`", tensor.info.name), problem));
        };
        let Some(name) = self.tensor_of(job, "weight") else { return Ok(None) };
        let target = self.target(&name);
        let ((rows, dim), (vocabulary, width)) = (tensor.info.shape.rows_cols(), target.info.shape.rows_cols());
        let count = ids.len() as u64;
        if rows != count || dim != width {
            let problem = format!("{count} tokens of {width} numbers are listed, the tensor is {}", tensor.info.shape);
            return Err(Error::mismatch(describe(tensor), describe(&target), problem));
        }
        let vocabulary = usize::try_from(vocabulary).unwrap_or(usize::MAX);
        if let Some(beyond) = ids.iter().find(|id| **id >= vocabulary) {
            let problem = format!("token {beyond} was trained, the base has {vocabulary}");
            let hint = vocabulary::hint(*beyond as u64 + 1, vocabulary as u64);
            return Err(Error::mismatch(describe(tensor), describe(&target), problem).hint(hint));
        }
        let delta = Arc::new(TokenRows::new(Factor::new(tensor)?, ids, vocabulary));
        self.add(&name, Piece { delta, row: 0, col: 0, strength: job.strength }, None);
        Ok(Some(Outcome::Merged))
    }
}
