//! One budget for all ranks: divided where it keeps most of Σ‖ΔW‖², or the largest rank that it buys for all.

use std::sync::atomic::{AtomicU64, Ordering};

use super::change::Truncatable;
use super::found::Found;
use super::job::{Job, Known};
use super::report::Spent;
use super::{Budgeted, Means, Ranking, each};
use crate::error::{Error, Result};
use crate::linalg::{Spectrum, allocate};

/// Singular values that are looked at first, as a multiple of the rank that an equal share of the budget would buy: spectra
/// differ, and each that runs out is decomposed again with twice as many.
const FIRST_LOOK: usize = 2;

/// The fewest that are looked at.
const LEAST_LOOK: usize = 16;

/// Share of the memory that decompositions may take which are kept until the ranks are known.
const KEPT_SHARE: u64 = 2;

/// What all changes share: a budget, if there is one, and memory.
pub struct Shared<'a> {
    means: &'a Means<'a>,
    budget: Option<(Budgeted, u64)>,
    cap: Option<usize>,
    kept: AtomicU64,
}

impl<'a> Shared<'a> {
    /// The budget that `means` give `changes`.
    ///
    /// # Errors
    /// When it is too small for what is no factor, or for one rank of all.
    pub fn of(changes: &[&dyn Truncatable], means: &'a Means<'a>) -> Result<Self> {
        let mut shared = Self { means, budget: None, cap: None, kept: AtomicU64::new(0) };
        let Ranking::Budget(budget) = means.choice.ranking else { return Ok(shared) };
        let left = budget.left_of(means.fixed)?;
        shared.budget = Some((budget, left));
        if means.choice.uniform {
            let each: u64 = changes.iter().map(|change| shared.cost(&Job { change: *change, means, cap: None })).sum();
            let rank = usize::try_from(left / each.max(1)).unwrap_or(usize::MAX);
            if rank == 0 {
                let problem = format!("rank 1 for every module takes {each}, the factors may take {left}");
                return Err(Error::invalid(budget.option(), problem));
            }
            shared.cap = Some(rank);
        }
        Ok(shared)
    }

    /// The rank that it buys for all, where all get one.
    pub fn cap(&self) -> Option<usize> {
        self.cap
    }

    /// Whether it is divided among the changes.
    pub fn divides(&self) -> bool {
        self.budget.is_some() && self.cap.is_none()
    }

    /// Whether there is memory to keep `found`.
    pub fn keeps(&self, found: &Found<'_>) -> bool {
        let most = self.means.budget.max_bytes / KEPT_SHARE;
        let more = |kept: u64| kept.checked_add(found.bytes()).filter(|kept| *kept <= most);
        self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Gives back what `known` keeps.
    fn let_go(&self, known: &mut Known<'_>) {
        if let Some(found) = known.found.take() {
            self.kept.fetch_sub(found.bytes(), Ordering::Relaxed);
        }
    }

    /// What a unit of the rank of `job` costs.
    fn cost(&self, job: &Job<'_>) -> u64 {
        let width = match self.budget {
            Some((Budgeted::Bytes(_), _)) => job.float().bytes() as u64,
            _ => 1,
        };
        job.numbers() * width
    }

    /// How many singular values are looked at first.
    pub fn first_look(&self, jobs: &[Job<'_>]) -> usize {
        let all: u64 = jobs.iter().map(|job| self.cost(job)).sum();
        let share = self.budget.map_or(0, |(_, left)| left) / all.max(1);
        usize::try_from(share).unwrap_or(usize::MAX).saturating_mul(FIRST_LOOK).max(LEAST_LOOK)
    }

    /// The ranks that keep most, beside those of `jobs` with a rule of their own. Where all values that were looked at are kept and
    /// more exist, a change is looked at deeper, until none runs out: then no value that was not looked at can belong to the best
    /// choice, being no larger than one of the same matrix that was left out.
    ///
    /// # Errors
    /// When the budget is too small, or values cannot be read.
    pub fn divide<'b>(&self, jobs: &[Job<'b>], known: &mut [Known<'b>]) -> Result<(Vec<usize>, Spent)> {
        let (budget, _) = self.budget.expect("only a budget is divided");
        let sharing: Vec<usize> = (0..jobs.len()).filter(|at| known[*at].rule.is_none()).collect();
        let mut ranks: Vec<usize> = jobs.iter().zip(known.iter()).map(|(job, known)| known.rank(job)).collect();
        let own: u64 = jobs.iter().zip(&ranks).map(|(job, rank)| self.cost(job) * *rank as u64).sum();
        let least: u64 = sharing.iter().map(|at| self.cost(&jobs[*at]) * jobs[*at].least() as u64).sum();
        let left = budget.left_of(self.means.fixed.saturating_add(own).saturating_add(least))?;
        let allocation = loop {
            let most = self.means.choice.max_rank.unwrap_or(usize::MAX);
            let spectrum = |at: &usize| {
                let values = &known[*at].values;
                Spectrum { values: &values[..most.min(values.len())], unit_cost: self.cost(&jobs[*at]) }
            };
            let spectra: Vec<Spectrum<'_>> = sharing.iter().map(spectrum).collect();
            let allocation = allocate(&spectra, left);
            let deeper = |at: usize| jobs[at].at_most(known[at].look.saturating_mul(2));
            let runs_out = |(at, rank): (&usize, &usize)| {
                let more = !known[*at].complete && deeper(*at) > known[*at].look;
                (more && *rank == known[*at].values.len()).then_some(*at)
            };
            let short: Vec<usize> = sharing.iter().zip(&allocation.ranks).filter_map(runs_out).collect();
            if short.is_empty() {
                break allocation;
            }
            let again: Vec<Job<'_>> = short.iter().map(|at| jobs[*at]).collect();
            let looks: Vec<usize> = short.iter().map(|at| deeper(*at)).collect();
            short.iter().for_each(|at| self.let_go(&mut known[*at]));
            let found = each(&again, self.means, |at, job| job.look(looks[at], self))?;
            short.into_iter().zip(found).for_each(|(at, found)| known[at] = found);
        };
        let taken = own > 0 || least > 0 || allocation.cost > 0;
        let units = || sharing.iter().filter(|at| !known[**at].values.is_empty()).map(|at| self.cost(&jobs[*at]));
        if let Some(unit) = units().min().filter(|_| !taken) {
            let problem = format!("{left} are left for pairs, and the smallest takes {unit} at rank 1");
            return Err(Error::invalid(budget.option(), problem));
        }
        sharing.iter().zip(&allocation.ranks).for_each(|(at, rank)| ranks[*at] = (*rank).max(jobs[*at].least()));
        Ok((ranks, Spent { budget: left, cost: allocation.cost, short_at_most: allocation.short_at_most }))
    }

    /// What the rank `rank` for all `jobs` costs, where a budget bought it.
    pub fn spent<'b: 'c, 'c>(&self, jobs: impl Iterator<Item = &'c Job<'b>>, rank: usize) -> Option<Spent> {
        let (_, budget) = self.budget?;
        let cost = jobs.map(|job| self.cost(job) * rank as u64).sum();
        Some(Spent { budget, cost, short_at_most: 0.0 })
    }
}
