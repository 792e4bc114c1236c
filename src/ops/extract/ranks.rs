//! The changes of all modules → factors, each by its own rule or all within one budget.

use std::sync::atomic::{AtomicU64, Ordering};

use super::examine::Task;
use super::factor::{Factored, Form, Spectra, above_noise, by_rule, cut, kept_as, part_shape};
use crate::error::{Error, Result};
use crate::linalg::{RankPolicy, RankRule, Spectrum, allocate};
use crate::ops::{Budgeted, RankChoice, Ranking};
use crate::output::Run;
use crate::plan::{Budget, map_within};

/// Singular values that are looked at first, as a multiple of the rank that an equal share of the budget would buy: spectra
/// differ, and each that runs out is decomposed again with twice as many.
const FIRST_LOOK: usize = 2;

/// The fewest that are looked at.
const LEAST_LOOK: usize = 16;

/// Share of the memory budget that decompositions may take which are kept until the ranks are known.
const KEPT_SHARE: u64 = 2;

/// Copies of a matrix in f64 that a full decomposition holds, and blocks that an iteration holds of its two sides (measured).
const DENSE_COPIES: u64 = 5;
const SIDE_BYTES: u64 = 24;
const EXPECTED_BLOCKS: usize = 6;

/// What decides about ranks, and within which means.
pub struct Means<'a> {
    /// The options.
    pub choice: &'a RankChoice,
    /// One rank for all.
    pub uniform: bool,
    /// How factors are stored.
    pub form: Form,
    /// Threads and memory.
    pub budget: Budget,
    /// Bytes and parameters of the adapter that are no factors, per unit of the budget.
    pub spent: u64,
}

/// What is left of a budget, for the report.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Spent {
    /// What the factors may cost.
    pub budget: u64,
    /// What they cost.
    pub cost: u64,
    /// No other ranks within the budget keep more of Σ‖ΔW‖² than these and this.
    pub short_at_most: f64,
}

/// The factors of every task, in order.
///
/// # Errors
/// When a file cannot be read any more, a factor cannot be stored, or nothing fits the budget.
pub fn factor(tasks: &[Task], means: &Means<'_>, run: &Run<'_>) -> Result<(Vec<Factored>, Option<Spent>)> {
    let Ranking::Budget(budgeted) = means.choice.ranking else {
        return Ok((by_rules(tasks, means, None, run)?, None));
    };
    let unit = |task: &Task| unit_cost(task, &budgeted, &means.form);
    let total = match budgeted {
        Budgeted::Bytes(bytes) => bytes,
        Budgeted::Parameters(parameters) => parameters,
    };
    let too_small = || {
        let problem = format!("what is stored whole takes {} of {total}, and nothing is left for factors", means.spent);
        Error::invalid(option_of(&budgeted), problem).hint("a larger budget has room for it")
    };
    let left = total.checked_sub(means.spent).ok_or_else(too_small)?;
    let (own, shared): (Vec<usize>, Vec<usize>) =
        (0..tasks.len()).partition(|at| means.choice.rule(tasks[*at].layer.positions()).is_some());
    let own_cost: u64 = own
        .iter()
        .filter_map(|at| Some(unit(&tasks[*at]) * capped(&tasks[*at], means.choice.conv_rank?, means) as u64))
        .sum();
    let left = left.checked_sub(own_cost).ok_or_else(too_small)?;
    if means.uniform {
        let each: u64 = shared.iter().map(|at| unit(&tasks[*at])).sum();
        let rank = usize::try_from(left / each.max(1)).unwrap_or(usize::MAX);
        if rank == 0 && !shared.is_empty() {
            let problem = format!("rank 1 for every module takes {each}, the factors may take {left}");
            return Err(Error::invalid(option_of(&budgeted), problem));
        }
        let factors = by_rules(tasks, means, Some(rank), run)?;
        let cost = factors.iter().zip(tasks).map(|(factored, task)| factored.rank as u64 * unit(task)).sum();
        return Ok((factors, Some(Spent { budget: left, cost, short_at_most: 0.0 })));
    }
    let mut all: Vec<Option<Factored>> = tasks.iter().map(|_| None).collect();
    let apart = |which: &[usize]| which.iter().map(|at| &tasks[*at]).collect::<Vec<&Task>>();
    let by_own = each(&apart(&own), means, run, |_, task| one_by_rule(task, means, None))?;
    let (by_budget, spent) = within(&apart(&shared), &unit, left, means, run)?;
    own.into_iter().zip(by_own).chain(shared.into_iter().zip(by_budget)).for_each(|(at, one)| all[at] = Some(one));
    let all = all.into_iter().map(|one| one.expect("a task has its own rule or shares the budget")).collect();
    Ok((all, Some(spent)))
}

fn option_of(budgeted: &Budgeted) -> &'static str {
    match budgeted {
        Budgeted::Bytes(_) => "--max-size",
        Budgeted::Parameters(_) => "--max-params",
    }
}

fn by_rules(tasks: &[Task], means: &Means<'_>, rank: Option<usize>, run: &Run<'_>) -> Result<Vec<Factored>> {
    each(&tasks.iter().collect::<Vec<_>>(), means, run, |_, task| one_by_rule(task, means, rank))
}

/// By the rule of the options, by `rank` where there is none, or by the noise of the tuned weight.
fn one_by_rule(task: &Task, means: &Means<'_>, rank: Option<usize>) -> Result<Factored> {
    let max_rank = means.choice.max_rank;
    let rule = match (means.choice.rule(task.layer.positions()), rank) {
        (Some(rule), _) => rule,
        (None, Some(rank)) => RankRule { max_rank, ..RankRule::new(RankPolicy::Rank(rank)) },
        (None, None) => above_noise(task, max_rank)?,
    };
    by_rule(task, &rule, &means.form)
}

/// Runs `work` for every task and its number within the memory budget.
fn each<T: Send>(
    tasks: &[&Task],
    means: &Means<'_>,
    run: &Run<'_>,
    work: impl Fn(usize, &Task) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let held: Vec<u64> = tasks.iter().map(|task| held_bytes(task, means)).collect();
    map_within(&held, &means.budget, run.cancel, |at| {
        let result = work(at, tasks[at])?;
        run.progress.advance(tasks[at].difference.tuned().tensor.info.bytes);
        Ok(result)
    })
}

/// What one more rank of a task costs.
fn unit_cost(task: &Task, budgeted: &Budgeted, form: &Form) -> u64 {
    let (rows, cols) = part_shape(task);
    // A tied head repeats its embedding's factors.
    let copies = 1 + u64::from(task.tied_head.is_some());
    let parameters = (rows + cols) as u64 * task.layer.experts() * copies;
    match budgeted {
        Budgeted::Parameters(_) => parameters,
        Budgeted::Bytes(_) => {
            let float = form.stored.unwrap_or_else(|| kept_as(task.difference.tuned_float()));
            parameters * float.bytes() as u64
        }
    }
}

/// `rank`, or what the matrix and `--max-rank` allow.
fn capped(task: &Task, rank: usize, means: &Means<'_>) -> usize {
    let (rows, cols) = part_shape(task);
    rank.min(rows).min(cols).min(means.choice.max_rank.unwrap_or(usize::MAX))
}

/// Estimate of the memory a decomposition takes.
fn held_bytes(task: &Task, means: &Means<'_>) -> u64 {
    let (rows, cols) = part_shape(task);
    let dense = (rows * cols * size_of::<f64>()) as u64 * DENSE_COPIES;
    let rank = match means.choice.rule(task.layer.positions()).and_then(|rule| rule.rank_at_most()) {
        Some(rank) => rank.min(rows).min(cols),
        None => rows.min(cols) / EXPECTED_BLOCKS,
    };
    let sides = ((rows + cols) * (rank + LEAST_LOOK) * EXPECTED_BLOCKS) as u64 * SIDE_BYTES;
    dense.min(sides)
}

/// What is known of one task's spectrum.
struct Known {
    look: usize,
    values: Vec<f64>,
    all: bool,
    spectra: Option<Spectra>,
}

/// The ranks that keep most within `left`. Where all values that were looked at are kept and more exist, the task is looked at
/// deeper, until none runs out: then no value that was not looked at can belong to the best choice, being no larger than
/// one of the same matrix that was left out.
fn within(
    tasks: &[&Task],
    unit: &(impl Fn(&Task) -> u64 + Sync),
    left: u64,
    means: &Means<'_>,
    run: &Run<'_>,
) -> Result<(Vec<Factored>, Spent)> {
    let costs: Vec<u64> = tasks.iter().map(|task| unit(task)).collect();
    let share = left / costs.iter().sum::<u64>().max(1);
    let first = usize::try_from(share).unwrap_or(usize::MAX).saturating_mul(FIRST_LOOK).max(LEAST_LOOK);
    let kept = AtomicU64::new(0);
    let look = |task: &Task, look: usize| -> Result<Known> {
        let rule = RankRule::new(RankPolicy::Rank(look));
        let spectra = Spectra::find(task, &rule, means.form.compute)?;
        task.difference.release();
        let (values, all) = (spectra.values(look), spectra.has_all(look));
        let bytes = spectra.bytes(part_shape(task));
        let fits = kept.fetch_add(bytes, Ordering::Relaxed) + bytes <= means.budget.max_bytes / KEPT_SHARE;
        Ok(Known { look, values, all, spectra: fits.then_some(spectra) })
    };
    let mut known = each(tasks, means, run, |_, task| look(task, capped(task, first, means)))?;
    let allocation = loop {
        let spectra: Vec<Spectrum<'_>> = known
            .iter()
            .zip(&costs)
            .map(|(known, unit_cost)| Spectrum { values: &known.values, unit_cost: *unit_cost })
            .collect();
        let allocation = allocate(&spectra, left);
        let runs_out = |at: usize| {
            let deeper = capped(tasks[at], known[at].look.saturating_mul(2), means) > known[at].look;
            !known[at].all && deeper && allocation.ranks[at] == known[at].values.len()
        };
        let short: Vec<usize> = (0..tasks.len()).filter(|at| runs_out(*at)).collect();
        if short.is_empty() {
            break allocation;
        }
        let again: Vec<&Task> = short.iter().map(|at| tasks[*at]).collect();
        let looks: Vec<usize> = short.iter().map(|at| capped(tasks[*at], known[*at].look * 2, means)).collect();
        let found = each(&again, means, run, |at, task| look(task, looks[at]))?;
        short.into_iter().zip(found).for_each(|(at, found)| known[at] = found);
    };
    let factors = each(tasks, means, run, |at, task| {
        match &known[at].spectra {
            Some(spectra) => cut(task, spectra, allocation.ranks[at], &means.form),
            // The same numbers over again: they do not depend on whether there was memory to keep them.
            None => {
                let rule = RankRule::new(RankPolicy::Rank(known[at].look));
                cut(task, &Spectra::find(task, &rule, means.form.compute)?, allocation.ranks[at], &means.form)
            }
        }
    })?;
    Ok((factors, Spent { budget: left, cost: allocation.cost, short_at_most: allocation.short_at_most }))
}
