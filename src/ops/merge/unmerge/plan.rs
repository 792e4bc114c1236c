//! BASE, MERGED and what the adapters do → the plan that gives BASE back.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::compare::{Otherwise, Pair, Proved, TakenOut};
use super::expected::Expected;
use crate::adapters::describe;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::Rounding;
use crate::model::base::Base;
use crate::model::weight::Weight;
use crate::output::WriteOptions;
use crate::output::arrange::{Placed, arrange};
use crate::placement::merged::Merged;
use crate::placement::placer::{Placement, Target};
use crate::placement::tile::Piece;
use crate::plan::{Compute, Plan};
use crate::tensor::Packing;

/// The plan and what it compares.
pub struct Planned {
    /// Files and jobs.
    pub plan: Plan,
    /// Tensors that are taken from the base element by element.
    pub taken: Vec<Arc<TakenOut>>,
    /// Tensors that are proved as a whole.
    pub proved: Vec<Arc<Proved>>,
}

/// Where a tensor of the output comes from.
enum Origin {
    Copied(Stored),
    TakenOut(Arc<TakenOut>),
}

/// Lists the jobs.
///
/// # Errors
/// When MERGED cannot be that merge: tensors are missing, left over, or of another shape.
pub fn plan(
    base: &Base,
    merged: &Base,
    placement: &Placement,
    options: &WriteOptions,
    metadata: &[(String, String)],
) -> Result<Planned> {
    let mut builder = Builder { base, merged, placement, rounding: options.rounding, proved: Vec::new() };
    let mut outputs = Vec::new();
    for (file, weights) in base.checkpoint.files().iter().enumerate() {
        let all = (0..weights.header.tensors.len()).map(|position| base.checkpoint.stored(file, position));
        let placed = all.map(|stored| {
            let info = stored.info.clone();
            Ok(Placed { info, origin: builder.existing(stored)? })
        });
        outputs.push((weights.safetensors_name(), placed.collect::<Result<Vec<_>>>()?));
    }
    builder.dropped()?;
    let proved = builder.proved;
    let mut planned = Planned { plan: Plan::default(), taken: Vec::new(), proved };
    for (at, (file, origins)) in arrange(base, options, outputs, metadata)?.into_iter().enumerate() {
        for (info, origin) in file.tensors.iter().zip(origins).filter(|(info, _)| info.bytes > 0) {
            let offset = file.start_of(info);
            match origin {
                Origin::Copied(source) => planned.plan.copy(at, offset, &source.map, source.start, info.bytes),
                Origin::TakenOut(taken) => {
                    let compute = Arc::clone(&taken) as Arc<dyn Compute>;
                    let (rows, row_bytes) = (0..taken.pair.rows, taken.row_bytes as u64);
                    planned.plan.compute(at, offset, &compute, rows, row_bytes, options.budget.job_bytes());
                    planned.taken.push(taken);
                }
            }
        }
        planned.plan.files.push(file);
    }
    let proved = planned.proved.iter().map(|proved| Arc::clone(proved) as Arc<dyn Compute>);
    let taken = planned.taken.iter().map(|taken| Arc::clone(taken) as Arc<dyn Compute>);
    planned.plan.computed = proved.chain(taken).collect();
    Ok(planned)
}

struct Builder<'a> {
    base: &'a Base,
    merged: &'a Base,
    placement: &'a Placement,
    rounding: Rounding,
    proved: Vec<Arc<Proved>>,
}

impl Builder<'_> {
    /// A tensor of the base.
    fn existing(&mut self, stored: Stored) -> Result<Origin> {
        let name = stored.info.name.clone();
        if stored.info.bytes == 0 {
            return Ok(Origin::Copied(stored));
        }
        let found = self.found(&stored)?;
        match self.placement.targets.get(&name) {
            Some(target) => self.changed(&name, target, stored, found),
            None => self.untouched(stored, found),
        }
    }

    /// What MERGED holds in the place of `stored`.
    fn found(&self, stored: &Stored) -> Result<Stored> {
        let name = &stored.info.name;
        // A head that is declared one with the embedding is often saved once.
        let shared = self.base.stored_tie.as_ref().filter(|tie| tie.head == *name).map(|tie| tie.embedding.as_str());
        let places = [Some(name.as_str()), shared];
        places.into_iter().flatten().find_map(|name| self.merged.checkpoint.find(name)).ok_or_else(|| {
            let merged = self.merged.checkpoint.root().display().to_string();
            Error::mismatch(merged, describe(stored), "it has no such tensor").hint("is MERGED a merge of BASE?")
        })
    }

    /// A tensor that nothing was done to.
    fn untouched(&self, stored: Stored, found: Stored) -> Result<Origin> {
        check_shape(&found, &stored)?;
        let (name, same) = (stored.info.name.clone(), stored.info.dtype == found.info.dtype);
        let (shape, expected, otherwise) = if same {
            (stored.rows_cols(), Expected::Stored(stored.clone()), Otherwise::Found)
        } else {
            let (own, other) = (self.base.weight(&name, None)?, self.merged.weight(&found.info.name, None)?);
            let cast = |source: &Weight, out| Merged::new(name.clone(), source.clone(), Vec::new(), out, self.rounding);
            let expected = Expected::Computed(Arc::new(cast(&own, other.packing)));
            ((own.rows, own.cols), expected, Otherwise::Subtracted(Box::new(cast(&other, own.packing))))
        };
        let row_bytes = usize::try_from(stored.info.bytes).unwrap_or(usize::MAX) / shape.0.max(1);
        let pair = Pair::new(name, expected, found, shape);
        Ok(Origin::TakenOut(Arc::new(TakenOut { pair, base: stored, row_bytes, otherwise })))
    }

    /// A tensor that adapters changed.
    fn changed(&mut self, name: &str, target: &Target, stored: Stored, found: Stored) -> Result<Origin> {
        let (mut pair, source) = self.pair(name, target, found)?;
        let additive = target.replacement.is_none() && target.pieces.iter().all(|piece| piece.delta.is_additive());
        let Some(source) = source.as_ref().filter(|_| additive) else {
            self.prove(pair, target);
            return Ok(Origin::Copied(stored));
        };
        if let (Expected::Computed(first), Rounding::Nearest) = (&pair.expected, self.rounding) {
            let (source, pieces) = (first.source.clone(), first.pieces.clone());
            pair.second = Some(Arc::new(Merged::new(name.into(), source, pieces, first.out, Rounding::PeftSafe)));
        }
        let base = source.packing;
        let merged = self.merged.weight(&pair.found.info.name, target.cols)?;
        let negated = target.pieces.iter().map(|piece| Piece { strength: -piece.strength, ..piece.clone() }).collect();
        let otherwise = Merged::new(name.into(), merged, negated, base, Rounding::Nearest);
        let row_bytes = source.row_bytes();
        Ok(Origin::TakenOut(Arc::new(TakenOut {
            pair,
            base: stored,
            row_bytes,
            otherwise: Otherwise::Subtracted(Box::new(otherwise)),
        })))
    }

    /// What the merge gives for `name` beside what was found there, and what the merge starts from.
    fn pair(&self, name: &str, target: &Target, found: Stored) -> Result<(Pair, Option<Weight>)> {
        let stands_for = target.starts_from.as_deref().unwrap_or(name);
        let weight = match &target.replacement {
            Some(tensor) if target.pieces.is_empty() && tensor.info.dtype == found.info.dtype => {
                check_shape(&found, tensor)?;
                let pair = Pair::new(name.into(), Expected::Stored(tensor.clone()), found, tensor.rows_cols());
                return Ok((pair, None));
            }
            Some(tensor) => Weight::new(tensor.clone(), target.cols)?,
            None => self.base.weight(stands_for, target.cols)?,
        };
        check_shape(&found, &weight.tensor)?;
        let Some(out) = found.info.dtype.float().map(Packing::Float) else {
            let problem = format!("MERGED stores it as {}, which no merge gives", found.info.dtype);
            return Err(Error::mismatch(describe(&found), describe(&weight.tensor), problem));
        };
        let merged = Merged::new(name.into(), weight.clone(), target.pieces.clone(), out, self.rounding);
        let shape = (weight.rows, weight.cols);
        Ok((Pair::new(name.into(), Expected::Computed(Arc::new(merged)), found, shape), Some(weight)))
    }

    fn prove(&mut self, pair: Pair, target: &Target) {
        let how = match target {
            Target { replacement: Some(_), .. } => "a replacement",
            _ => "a change that is no sum (DoRA, a replacement, rows of tokens)",
        };
        self.proved.push(Arc::new(Proved { pair, how }));
    }

    /// Tensors of MERGED that the base does not have: the merge has to give them.
    fn dropped(&mut self) -> Result<()> {
        let own: BTreeSet<&str> = self.base.checkpoint.tensors().map(|info| info.name.as_str()).collect();
        for info in self.merged.checkpoint.tensors().filter(|info| info.bytes > 0 && !own.contains(info.name.as_str()))
        {
            let found = self.merged.stored(&info.name);
            let Some(target) = self.placement.targets.get(&info.name).cloned().or_else(|| self.second_copy(&info.name))
            else {
                let model = self.base.checkpoint.root().display().to_string();
                let problem = "neither the base nor the adapters have it";
                return Err(Error::mismatch(describe(&found), model, problem).hint("is MERGED a merge of BASE?"));
            };
            let (pair, _) = self.pair(&info.name, &target, found)?;
            self.prove(pair, &target);
        }
        let missing = self.placement.targets.iter().find(|(name, target)| {
            target.starts_from.is_none() && !own.contains(name.as_str()) && !self.merged.names.has(name)
        });
        missing.map_or(Ok(()), |(name, _)| {
            let (merged, model) = (self.merged.checkpoint.root(), self.base.checkpoint.root());
            let problem = format!("the merge gives `{name}`, MERGED does not have it");
            Err(Error::mismatch(merged.display().to_string(), model.display().to_string(), problem))
        })
    }

    /// What a head that the base shares with its embedding holds where MERGED stores both: the embedding's own.
    fn second_copy(&self, name: &str) -> Option<Target> {
        let tie = self.base.tie.as_ref().filter(|tie| tie.head == name)?;
        let pieces = self.placement.targets.get(&tie.embedding).map(|target| target.pieces.clone()).unwrap_or_default();
        let replacement = self.placement.targets.get(&tie.embedding).and_then(|target| target.replacement.clone());
        Some(Target { replacement, pieces, cols: None, starts_from: Some(tie.embedding.clone()) })
    }
}

fn check_shape(found: &Stored, other: &Stored) -> Result<()> {
    if found.info.shape == other.info.shape {
        return Ok(());
    }
    let problem = format!("MERGED has {}, the merge gives {}", found.info.shape, other.info.shape);
    Err(Error::mismatch(describe(found), describe(other), problem).hint("is MERGED a merge of BASE?"))
}
