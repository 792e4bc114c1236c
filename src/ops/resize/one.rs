//! One adapter: its pairs' singular values, the ranks they get, the new factors.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::factors::{Decomposed, Factors, Spectrum, pad};
use super::ranks::{Claim, Request, divide, equal_share, left_of, unit_cost};
use super::summary::{ModuleResize, Resized};
use super::{ResizeOptions, written};
use crate::dialects::files::Files;
use crate::error::{Error, Result};
use crate::model::original::Original;
use crate::naming::layers_within_layers;
use crate::ops::{Budgeted, Ranking};
use crate::output::Run;
use crate::placement::Applied;
use crate::placement::Selection;
use crate::placement::terms::{self, Slot, Terms};
use crate::plan::map_within;
use crate::tensor::Float;

/// Copies of a pair, as f64, that its decomposition holds at once: the factors, their orthonormal bases, the singular vectors.
const HELD_COPIES: u64 = 6;

/// An adapter that has been read.
pub struct Opened {
    source: Applied,
    terms: Terms,
}

/// A pair on its way.
struct Job<'a> {
    slot: &'a Slot,
    request: Request,
    float: Float,
}

impl Opened {
    /// Reads the adapter at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or its changes are no low-rank products.
    pub fn read(path: &Path, options: &ResizeOptions, run: &Run<'_>) -> Result<Self> {
        let original = options.base.as_deref().map(Original::open).transpose()?.map(Arc::new);
        let mut sources =
            terms::open(&[(path.to_path_buf(), 1.0)], &options.init_adapters, original.as_ref(), &options.read)?;
        let mut terms = terms::gather(&sources, &Selection::default(), original.as_deref(), None)?;
        terms.resolve(&options.write.budget, run.cancel)?;
        if terms.slots.values().any(|slot| !slot.multiplied.is_empty()) {
            let what = "is DoRA: what it adds to a weight is no product of two factors, and has no ranks to be lowered";
            return Err(Error::unsupported(path, what).hint("`stack` with `--base` and a rank approximates W′ − W"));
        }
        let paths = terms.slots.values().map(|slot| slot.path.clone()).collect();
        options.selection.check(&paths)?;
        if terms.slots.is_empty() {
            return Err(Error::unsupported(path, "holds no low-rank pairs to be resized"));
        }
        Ok(Self { source: sources.remove(0), terms })
    }

    /// The adapter and what its initialiser left.
    pub fn source(&self) -> &Applied {
        &self.source
    }

    /// Decomposes the pairs and makes the output.
    ///
    /// # Errors
    /// When values cannot be read or stored, or a budget is too small.
    pub fn resize(&self, options: &ResizeOptions, recipe: &Value, run: &Run<'_>) -> Result<(Files, Resized)> {
        let jobs = self.terms.slots.values().map(|slot| Job::new(slot, options)).collect::<Result<Vec<_>>>()?;
        let held: Vec<u64> = jobs.iter().map(Job::held_bytes).collect();
        let (budget, cancel) = (&options.write.budget, run.cancel);
        // PEFT builds a layer within another adapted one with the same rank.
        let nested = layers_within_layers(jobs.iter().map(|job| job.slot.path.as_str()));
        let shared = options.uniform_rank || !nested.is_empty() || jobs.iter().any(|job| job.request == Request::Share);
        let (spectra, pairs) = if !shared {
            let keep = options.alpha.is_none();
            let each = map_within(&held, budget, cancel, |at| {
                let job = &jobs[at];
                let found = Decomposed::new(job.slot, 1.0)?;
                let spectrum = found.spectrum();
                let rank = job.request.rank(job.slot, &spectrum).expect("no pair shares a budget");
                let factors = job.factors(Some(found), &spectrum, rank, options, keep)?;
                Ok((spectrum, factors))
            })?;
            each.into_iter().unzip()
        } else {
            let spectra = map_within(&held, budget, cancel, |at| Ok(Decomposed::new(jobs[at].slot, 1.0)?.spectrum()))?;
            let mut ranks = self.ranks(&jobs, &spectra, options, recipe)?;
            for (inner, outer) in nested {
                let rank = ranks[inner].max(ranks[outer]);
                (ranks[inner], ranks[outer]) = (rank, rank);
            }
            let keep = options.alpha.is_none() && (!options.uniform_rank || have_one_scale(&jobs, &ranks));
            let pairs =
                map_within(&held, budget, cancel, |at| jobs[at].factors(None, &spectra[at], ranks[at], options, keep))?;
            (spectra, pairs)
        };
        self.finish(&jobs, spectra, pairs)
    }

    /// Ranks that depend on each other.
    fn ranks(
        &self,
        jobs: &[Job<'_>],
        spectra: &[Spectrum],
        options: &ResizeOptions,
        recipe: &Value,
    ) -> Result<Vec<usize>> {
        let both = || jobs.iter().zip(spectra);
        let own: Vec<Option<usize>> = both().map(|(job, spectrum)| job.request.rank(job.slot, spectrum)).collect();
        let Ranking::Budget(budget) = options.ranks.ranking else {
            let most = own.iter().flatten().copied().max().unwrap_or(0);
            let of = |rank: &Option<usize>| match rank {
                Some(0) | None => 0,
                Some(rank) => {
                    if options.uniform_rank {
                        most
                    } else {
                        *rank
                    }
                }
            };
            return Ok(own.iter().map(of).collect());
        };
        let cost = |job: &Job<'_>| unit_cost(job.slot, budget, job.float.bytes());
        let sharing = both().filter(|(job, _)| options.uniform_rank || job.request == Request::Share);
        let claims: Vec<Claim<'_>> =
            sharing.map(|(job, spectrum)| Claim { slot: job.slot, spectrum, cost: cost(job) }).collect();
        let fixed = match budget {
            Budgeted::Bytes(_) => written::fixed_bytes(&self.source.adapter, &self.terms, recipe),
            Budgeted::Parameters(_) => 0,
        };
        if options.uniform_rank {
            let rank = equal_share(&claims, options.ranks.max_rank, left_of(budget, fixed)?);
            return match rank {
                0 => Err(left_of(budget, u64::MAX).expect_err("that is more than any budget")),
                rank => Ok(vec![rank; jobs.len()]),
            };
        }
        let taken: u64 = jobs.iter().zip(&own).filter_map(|(job, rank)| Some(cost(job) * (*rank)? as u64)).sum();
        let mut shares = divide(&claims, options.ranks.max_rank, left_of(budget, fixed + taken)?).into_iter();
        Ok(own.into_iter().map(|rank| rank.or_else(|| shares.next()).expect("every claim has a share")).collect())
    }

    fn finish(
        &self,
        jobs: &[Job<'_>],
        spectra: Vec<Spectrum>,
        pairs: Vec<Option<Factors>>,
    ) -> Result<(Files, Resized)> {
        let adapter = &self.source.adapter;
        let copied = self.terms.whole.values().map(Vec::len).sum::<usize>()
            + self.terms.rows.values().map(Vec::len).sum::<usize>();
        let (notes, alpha_from) = (adapter.reading_notes(), adapter.config.alpha_from.clone());
        let mut report = Resized { copied, notes, alpha_from, ..Resized::default() };
        let mut lost = 0.0;
        for ((job, spectrum), pair) in jobs.iter().zip(spectra).zip(&pairs) {
            let numbers = |rank: usize| unit_cost(job.slot, Budgeted::Parameters(0), 0) * rank as u64;
            report.parameters_before += numbers(job.slot.shares.iter().map(|share| share.rank).sum());
            match pair {
                None => {
                    lost += spectrum.norm_squared;
                    report.left_out.push(job.slot.name());
                }
                Some(factors) => {
                    report.parameters += numbers(factors.rank);
                    report.modules.push(ModuleResize::new(job.slot, spectrum, factors));
                }
            }
        }
        if report.modules.is_empty() {
            let what = "nothing of any module is worth keeping by that rule";
            return Err(Error::unsupported(&adapter.root, what).hint("allow a larger error or budget"));
        }
        report.total(lost);
        let (files, notes) = written::files(adapter, &self.terms, pairs)?;
        report.notes.extend(notes);
        report.bytes_before = adapter.tensors.files().iter().map(|file| file.map.len()).sum();
        Ok((files, report))
    }
}

impl<'a> Job<'a> {
    fn new(slot: &'a Slot, options: &ResizeOptions) -> Result<Self> {
        let taken = options.selection.takes(&slot.path);
        let request = Request::of(&options.ranks, options.kohya, slot, taken)?;
        let own = slot.common_float();
        let float = if taken { options.write.dtype.or(own) } else { own };
        Ok(Self { slot, request, float: float.unwrap_or(Float::F32) })
    }

    /// Bytes that the pair's decomposition takes.
    fn held_bytes(&self) -> u64 {
        let rank: usize = self.slot.shares.iter().map(|share| share.rank).sum();
        let numbers = unit_cost(self.slot, Budgeted::Parameters(0), 0) * rank as u64;
        numbers * HELD_COPIES * size_of::<f64>() as u64
    }

    /// Whether rank `rank` needs no more than the factors there are.
    fn is_held(&self, rank: usize) -> bool {
        self.slot.shares.len() == 1 && rank >= self.slot.shares[0].rank && self.slot.shares[0].float == Some(self.float)
    }

    /// The pair at rank `rank`, or nothing; `found` is its decomposition, if it is there already. With `keep`, factors that
    /// can be kept are.
    fn factors(
        &self,
        found: Option<Decomposed>,
        spectrum: &Spectrum,
        rank: usize,
        options: &ResizeOptions,
        keep: bool,
    ) -> Result<Option<Factors>> {
        if rank == 0 {
            return Ok(None);
        }
        let kept = self.request == Request::Keep && !options.uniform_rank && self.slot.shares[0].stored.is_some();
        if kept || keep && self.is_held(rank) {
            return pad(self.slot, rank, spectrum).map(Some);
        }
        let scale = options.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        let found = match found {
            Some(found) if scale == 1.0 => found,
            _ => Decomposed::new(self.slot, scale)?,
        };
        found.cut(self.slot, rank, self.float).map(Some)
    }
}

/// Whether all pairs can keep their factors, and have one scale: then they have one alpha as well.
fn have_one_scale(jobs: &[Job<'_>], ranks: &[usize]) -> bool {
    let scale = |job: &Job<'_>| job.slot.shares[0].factor();
    let mut used = jobs.iter().zip(ranks).filter(|(_, rank)| **rank > 0);
    used.all(|(job, rank)| job.is_held(*rank) && scale(job) == scale(&jobs[0]))
}
