//! Runs tasks that each hold memory of their own on a fixed number of threads, within a memory budget.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, Mutex};

use super::Budget;
use super::workers::together;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::limits::MAX_THREADS;

/// Calls `work` with the number of every task; `held` tells how many bytes each holds while it runs.
///
/// The largest go first, and as many run at once as the budget has threads and memory for; one that is larger than the whole
/// budget runs alone. Each is done by one thread, so what it computes does not depend on their number.
///
/// # Errors
/// The error of the first task in order that failed; the others are stopped. [`Interrupted`](crate::error::Blame::Interrupted)
/// when `cancel` was set.
pub fn each_within(
    held: &[u64],
    budget: &Budget,
    cancel: &AtomicBool,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let mut waiting: Vec<usize> = (0..held.len()).collect();
    waiting.sort_by_key(|task| std::cmp::Reverse(held[*task]));
    let waiting = VecDeque::from(waiting);
    let state = Mutex::new(State { waiting, running: 0, held: 0, failed: None });
    let changed = Condvar::new();
    let lock = || state.lock().expect("no task panics while it holds the lock");
    let worker = || {
        loop {
            let mut current = lock();
            let task = loop {
                if current.failed.is_some() || current.waiting.is_empty() {
                    return;
                }
                if let Some(task) = current.take(held, budget.max_bytes) {
                    break task;
                }
                current = changed.wait(current).expect("no task panics while it holds the lock");
            };
            drop(current);
            let outcome = interrupt::watching(cancel, || interrupt::check().and_then(|()| work(task)));
            lock().finish(task, held[task], outcome);
            changed.notify_all();
        }
    };
    let workers = budget.threads.min(held.len()).clamp(1, MAX_THREADS);
    together(workers, worker);
    state.into_inner().expect("all workers ended").failed.map_or(Ok(()), |(_, error)| Err(error))
}

/// What `work` makes of every task, in the order of the tasks; as [`each_within`].
///
/// # Errors
/// As [`each_within`].
pub fn map_within<T: Send>(
    held: &[u64],
    budget: &Budget,
    cancel: &AtomicBool,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let done: Vec<Mutex<Option<T>>> = held.iter().map(|_| Mutex::new(None)).collect();
    each_within(held, budget, cancel, |task| {
        let result = work(task)?;
        *done[task].lock().expect("no task panics while it holds the lock") = Some(result);
        Ok(())
    })?;
    let result = |place: Mutex<Option<T>>| place.into_inner().expect("as above").expect("every task was done");
    Ok(done.into_iter().map(result).collect())
}

struct State {
    /// Largest first.
    waiting: VecDeque<usize>,
    running: usize,
    held: u64,
    failed: Option<(usize, Error)>,
}

impl State {
    /// The largest task that fits beside those that run.
    fn take(&mut self, held: &[u64], max_bytes: u64) -> Option<usize> {
        let fits = |task: &usize| self.running == 0 || self.held.saturating_add(held[*task]) <= max_bytes;
        let at = self.waiting.iter().position(fits)?;
        let task = self.waiting.remove(at)?;
        self.running += 1;
        self.held = self.held.saturating_add(held[task]);
        Some(task)
    }

    fn finish(&mut self, task: usize, held: u64, outcome: Result<()>) {
        self.running -= 1;
        self.held = self.held.saturating_sub(held);
        if let Err(error) = outcome
            && self.failed.as_ref().is_none_or(|(first, _)| task < *first)
        {
            self.failed = Some((task, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Blame;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    #[test]
    fn every_task_runs_once_and_together_they_stay_within_the_memory() {
        let held: Vec<u64> = (0..50).map(|task| task * 7 % 23 + 1).collect();
        let budget = Budget { threads: 4, max_bytes: 40 };
        let (now, most, runs) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(0));
        let work = |task: usize| {
            let total = now.fetch_add(held[task], Ordering::SeqCst) + held[task];
            most.fetch_max(total, Ordering::SeqCst);
            runs.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            now.fetch_sub(held[task], Ordering::SeqCst);
            Ok(())
        };
        each_within(&held, &budget, &AtomicBool::new(false), work).expect("nothing fails");
        assert_eq!(runs.into_inner(), 50);
        assert!(most.into_inner() <= 40);
    }

    #[test]
    fn results_come_in_the_order_of_the_tasks() {
        let budget = Budget { threads: 3, max_bytes: 10 };
        let doubled = map_within(&[1, 9, 5, 0], &budget, &AtomicBool::new(false), |task| Ok(task * 2));
        assert_eq!(doubled.expect("nothing fails"), [0, 2, 4, 6]);
    }

    #[test]
    fn a_task_larger_than_the_memory_runs_alone() {
        let budget = Budget { threads: 3, max_bytes: 10 };
        let running = AtomicUsize::new(0);
        let work = |task: usize| {
            let others = running.fetch_add(1, Ordering::SeqCst);
            assert!(task != 0 || others == 0);
            std::thread::yield_now();
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        each_within(&[100, 3, 3, 3], &budget, &AtomicBool::new(false), work).expect("nothing fails");
    }

    #[test]
    fn a_failure_and_a_cancellation_stop_the_rest() {
        let budget = Budget { threads: 1, max_bytes: 10 };
        let runs = AtomicUsize::new(0);
        let work = |task: usize| {
            runs.fetch_add(1, Ordering::SeqCst);
            if task == 1 { Err(Error::invalid("x", "fails")) } else { Ok(()) }
        };
        let error = each_within(&[1, 2, 0, 0], &budget, &AtomicBool::new(false), work).expect_err("it fails");
        assert_eq!((error.to_string().as_str(), runs.load(Ordering::SeqCst)), ("x: fails", 1));
        let error = each_within(&[1], &budget, &AtomicBool::new(true), |_| Ok(())).expect_err("cancelled");
        assert!(matches!(error.blame(), Blame::Interrupted));
    }
}
