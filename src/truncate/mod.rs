//! Changes and a choice of ranks → low-rank pairs with certificates: the one engine of `extract`, `stack`, `subtract` and `resize`.
//!
//! A change is one matrix, or one per expert of a stack ([`Truncatable`]). Of a stack all experts get one rank, as their two tensors
//! demand; its singular values are those of the experts together, σₖ = √(Σₑ σₑₖ²), so that Σσₖ² is ‖ΔW‖² of the stack and what
//! rank k keeps of it is the sum of the first k.
//!
//! | file | idea |
//! |---|---|
//! | `choice` | what the rank options say |
//! | `change` | what can be truncated |
//! | `found` | the decomposition of one change, and its best factors of a rank |
//! | `job` | one change on its way: its rule, its rank, its pair |
//! | `budget` | one budget for all ranks |
//! | `report` | what is said of a new adapter, in every verb |

mod budget;
mod change;
mod choice;
mod found;
mod job;
mod report;

use std::sync::atomic::AtomicBool;

pub use change::{Operator, Own, Part, Truncatable};
pub use choice::{Budgeted, RankChoice, Ranking, check_alpha};
pub use report::{IntruderReport, ModuleReport, NewAdapterReport, Spent, WholeReport};

use crate::error::Result;
use crate::linalg::Compute;
use crate::naming::layers_within_layers;
use crate::pairs::NewPair;
use crate::plan::{Budget, Progress, map_within};
use crate::tensor::Float;
use job::Job;

/// How changes are truncated, and with what.
pub struct Means<'a> {
    /// How ranks are chosen.
    pub choice: &'a RankChoice,
    /// α of what is computed; `None` is its rank, a scale of 1.
    pub alpha: Option<f64>,
    /// How close to the best an iteration has to come.
    pub compute: Compute,
    /// Dtype of the factors; `None` leaves it to each change.
    pub dtype: Option<Float>,
    /// A fixed rank is reached with zeros where there is less, as `resize` does.
    pub raises: bool,
    /// What the adapter takes beside its factors, in the unit of the budget.
    pub fixed: u64,
    /// Threads and memory.
    pub budget: &'a Budget,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Hears of the bytes that were looked at.
    pub progress: &'a dyn Progress,
}

/// What changes became.
pub struct Truncated {
    /// One per change; `None` where it gets no rank.
    pub pairs: Vec<Option<NewPair>>,
    /// The same, described.
    pub report: NewAdapterReport,
}

/// Truncates `changes`, each by its rule or all within one budget.
///
/// # Errors
/// When values cannot be read or stored, a budget is too small, or the run was stopped.
pub fn truncate(changes: &[&dyn Truncatable], means: &Means<'_>) -> Result<Truncated> {
    let budget = budget::Shared::of(changes, means)?;
    let jobs: Vec<Job<'_>> = changes.iter().map(|change| Job { change: *change, means, cap: budget.cap() }).collect();
    let (nested, uniform) = (nested(changes), means.choice.uniform);
    // Where all pairs have to have one alpha, or ranks depend on each other, ranks come first.
    let apart = !budget.divides()
        && nested.is_empty()
        && !(uniform && (means.alpha.is_some() || changes.iter().any(|change| change.own().is_some())));
    let bytes: u64 = changes.iter().map(|change| change.bytes()).sum();
    if bytes > 0 {
        means.progress.parts("modules", if apart { changes.len() } else { 2 * changes.len() });
        means.progress.begin(if apart { bytes } else { 2 * bytes });
    }
    let mut spent = None;
    let mut pairs = if apart {
        let keep = means.alpha.is_none() && !uniform;
        each(&jobs, means, |_, job| {
            let (rule, found) = job.find()?;
            let rank = job.rank(&rule, &found.values(usize::MAX), found.norm_squared());
            job.pair(&found, rank, rank, keep)
        })?
    } else {
        let first = budget.first_look(&jobs);
        let mut known = each(&jobs, means, |_, job| job.look(first, &budget))?;
        let mut ranks = if budget.divides() {
            let (ranks, how) = budget.divide(&jobs, &mut known)?;
            spent = Some(how);
            ranks
        } else {
            jobs.iter().zip(&known).map(|(job, known)| known.rank(job)).collect()
        };
        level(&mut ranks, &nested);
        let widest = ranks.iter().copied().max().unwrap_or(0);
        let keep = means.alpha.is_none() && (!uniform || have_one_scale(&jobs, &ranks));
        each(&jobs, means, |at, job| known[at].pair(job, ranks[at], if uniform { widest } else { ranks[at] }, keep))?
    };
    if bytes > 0 {
        means.progress.finish();
    }
    if uniform {
        let widest = pairs.iter().map(|pair| pair.rank).max().unwrap_or(0);
        pairs.iter_mut().filter(|pair| pair.rank > 0).try_for_each(|pair| pair.widen(widest, means.alpha))?;
        let paired = jobs.iter().zip(&pairs).filter(|(_, pair)| pair.rank > 0).map(|(job, _)| job);
        spent = budget.spent(paired, widest);
    }
    Ok(Truncated::of(&jobs, pairs, spent))
}

/// PEFT builds a layer within another adapted one with the same rank.
fn nested(changes: &[&dyn Truncatable]) -> Vec<(usize, usize)> {
    layers_within_layers(changes.iter().map(|change| change.path()))
}

/// Gives layers within layers one rank, the largest: an outer one may hold several, and lie within another itself.
fn level(ranks: &mut [usize], nested: &[(usize, usize)]) {
    // Ranks only grow.
    while let Some((inner, outer)) = nested.iter().copied().find(|(inner, outer)| ranks[*inner] != ranks[*outer]) {
        let rank = ranks[inner].max(ranks[outer]);
        (ranks[inner], ranks[outer]) = (rank, rank);
    }
}

/// What `work` makes of every job and its number, within the memory there is.
fn each<'a, T: Send>(
    jobs: &[Job<'a>],
    means: &Means<'_>,
    work: impl Fn(usize, &Job<'a>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let held: Vec<u64> = jobs.iter().map(Job::held_bytes).collect();
    map_within(&held, means.budget, means.cancel, |at| {
        let result = work(at, &jobs[at])?;
        means.progress.advance(jobs[at].change.bytes());
        Ok(result)
    })
}

/// Whether all pairs can keep their factors, and have one scale: then they have one alpha as well.
fn have_one_scale(jobs: &[Job<'_>], ranks: &[usize]) -> bool {
    let mut scales = jobs.iter().zip(ranks).filter(|(_, rank)| **rank > 0).map(|(job, rank)| job.held(*rank));
    let Some(first) = scales.next() else { return false };
    first.is_some() && scales.all(|scale| scale == first)
}

#[cfg(test)]
mod tests {
    use super::level;

    #[test]
    fn layers_within_one_layer_get_one_rank() {
        let mut ranks = [2, 1, 9, 4];
        level(&mut ranks, &[(0, 1), (2, 1)]);
        assert_eq!(ranks, [9, 9, 9, 4]);
        level(&mut ranks, &[(3, 0), (0, 1), (2, 1)]);
        assert_eq!(ranks, [9, 9, 9, 9]);
    }
}
