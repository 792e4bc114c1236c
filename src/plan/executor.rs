//! Runs the jobs of a plan on a fixed number of threads within a memory budget.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::workers::together;
use super::{Job, Plan, Progress, Work};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::io::PositionalFile;
use crate::limits::MAX_THREADS;

/// Largest piece of output one worker holds: large enough for writes at full speed, small enough for a cache.
const MAX_JOB_BYTES: u64 = 1 << 20;

/// Smallest piece of output worth a job.
const MIN_JOB_BYTES: u64 = 256 << 10;

/// What a worker holds beside its piece of output: tiles in f32 and decoded factors (measured below 8 MiB at rank 256).
const WORKER_BYTES: u64 = 8 << 20;

/// Memory of all workers together, if nothing is said: what `--max-memory` is by default.
const DEFAULT_MEMORY_BYTES: u64 = 2 << 30;

/// Threads and the memory they may hold.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Worker threads.
    pub threads: usize,
    /// Bytes of memory for all workers together; mapped input pages do not count.
    pub max_bytes: u64,
}

impl Default for Budget {
    /// All processors, and as much memory as the program takes if nothing is said.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads, max_bytes: DEFAULT_MEMORY_BYTES }
    }
}

impl Budget {
    /// Workers that fit: fewer than asked where the memory does not reach for all.
    pub fn workers(&self) -> usize {
        let fitting = usize::try_from(self.max_bytes / (WORKER_BYTES + MIN_JOB_BYTES)).unwrap_or(MAX_THREADS);
        self.threads.min(fitting).clamp(1, MAX_THREADS)
    }

    /// Bytes of output one job makes.
    pub fn job_bytes(&self) -> u64 {
        let share = self.max_bytes / self.workers() as u64;
        share.saturating_sub(WORKER_BYTES).clamp(MIN_JOB_BYTES, MAX_JOB_BYTES)
    }
}

/// Runs plans.
pub struct Executor<'a> {
    /// Threads and memory.
    pub budget: Budget,
    /// Set from outside to stop the run: between two jobs, and where a job asks ([`interrupt`]).
    pub cancel: &'a AtomicBool,
    /// Hears of every job done.
    pub progress: &'a dyn Progress,
}

impl Executor<'_> {
    /// Prepares everything that is computed, then fills `files`, the output files `range` of the plan.
    ///
    /// # Errors
    /// The error of the first job in plan order that failed; the others are stopped.
    pub fn run(&self, plan: &Plan, range: Range<usize>, files: &[PositionalFile]) -> Result<()> {
        let jobs: Vec<&Job> = plan.jobs.iter().filter(|job| range.contains(&job.file)).collect();
        self.progress.parts("pieces", jobs.len());
        self.progress.begin(jobs.iter().map(|job| job.bytes).sum());
        let mut by_file: Vec<Range<usize>> = Vec::new();
        for chunk in jobs.chunk_by(|left, right| left.file == right.file) {
            let start = by_file.last().map_or(0, |queue| queue.end);
            by_file.push(start..start + chunk.len());
        }
        let preparations: Vec<Range<usize>> = (0..plan.computed.len()).map(|at| at..at + 1).collect();
        let outcome = self.each(&preparations, |at, _| plan.computed[at].prepare()).and_then(|()| {
            let left: Vec<AtomicUsize> = by_file.iter().map(|queue| AtomicUsize::new(queue.len())).collect();
            let queue_of = |at: usize| by_file.partition_point(|queue| queue.end <= at);
            self.each(&by_file, |at, buffer| {
                let file = &files[jobs[at].file - range.start];
                self.one(jobs[at], file, buffer)?;
                if left[queue_of(at)].fetch_sub(1, Ordering::AcqRel) == 1 {
                    file.close();
                }
                Ok(())
            })
        });
        self.progress.finish();
        outcome
    }

    fn one(&self, job: &Job, file: &PositionalFile, buffer: &mut Vec<u8>) -> Result<()> {
        match &job.work {
            Work::Copy { source, start } => file.copy_from(source, *start, job.offset, job.bytes)?,
            Work::Rows { compute, rows } => {
                let bytes = usize::try_from(job.bytes).expect("a job's piece is sized to fit memory");
                buffer.resize(bytes, 0);
                compute.rows(rows.clone(), buffer)?;
                file.write_at(job.offset, buffer)?;
            }
        }
        self.progress.advance(job.bytes);
        Ok(())
    }

    /// Calls `work` for every number of `queues` on all workers; stops early at the first error.
    ///
    /// A worker empties a queue of its own before it helps with another: two writers of one file wait for each other, since
    /// the system lets one write at a time.
    fn each(&self, queues: &[Range<usize>], work: impl Fn(usize, &mut Vec<u8>) -> Result<()> + Sync) -> Result<()> {
        let unclaimed = AtomicUsize::new(0);
        let heads: Vec<AtomicUsize> = queues.iter().map(|queue| AtomicUsize::new(queue.start)).collect();
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let fail = |at: usize, error: Error| {
            stop.store(true, Ordering::Relaxed);
            let mut failed = failed.lock().expect("no worker panics while it holds the lock");
            if failed.as_ref().is_none_or(|(first, _)| at < *first) {
                *failed = Some((at, error));
            }
        };
        let empty = |queue: usize, buffer: &mut Vec<u8>| {
            while !stop.load(Ordering::Relaxed) {
                let at = heads[queue].fetch_add(1, Ordering::Relaxed);
                if at >= queues[queue].end {
                    break;
                }
                let outcome = interrupt::watching(self.cancel, || interrupt::check().and_then(|()| work(at, buffer)));
                outcome.unwrap_or_else(|error| fail(at, error));
            }
        };
        let worker = || {
            let mut buffer = Vec::new();
            let mut own = unclaimed.fetch_add(1, Ordering::Relaxed);
            while own < queues.len() {
                empty(own, &mut buffer);
                own = unclaimed.fetch_add(1, Ordering::Relaxed);
            }
            (0..queues.len()).for_each(|queue| empty(queue, &mut buffer));
        };
        let jobs: usize = queues.iter().map(ExactSizeIterator::len).sum();
        let workers = self.budget.workers().min(jobs.max(1));
        together(workers, worker);
        failed.into_inner().expect("all workers ended").map_or(Ok(()), |(_, error)| Err(error))
    }
}
