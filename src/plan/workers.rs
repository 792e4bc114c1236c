//! One function on several threads: as many as were asked for, or as many as the system gives.

use std::thread::{Builder, Scope};

/// Runs `worker` on `count` threads, this one among them, and waits for all. Where the system gives no more threads (a limit of
/// the user or of a container), those that there are do the work.
pub(super) fn together(count: usize, worker: impl Fn() + Sync) {
    together_by(count, &worker, |scope, worker| Builder::new().spawn_scoped(scope, worker).is_ok());
}

fn together_by<W: Fn() + Sync>(
    count: usize,
    worker: &W,
    spawn: impl for<'scope> Fn(&'scope Scope<'scope, '_>, &'scope W) -> bool,
) {
    std::thread::scope(|scope| {
        let _started = (1..count).take_while(|_| spawn(scope, worker)).count();
        worker();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_thread_that_cannot_be_had_is_a_worker_less() {
        for (given, expected) in [(0, 1), (2, 3), (9, 5)] {
            let (runs, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let worker = || {
                runs.fetch_add(1, Ordering::SeqCst);
            };
            together_by(5, &worker, |scope, worker| {
                asked.fetch_add(1, Ordering::SeqCst) < given && Builder::new().spawn_scoped(scope, worker).is_ok()
            });
            assert_eq!(runs.into_inner(), expected);
        }
    }

    #[test]
    fn one_worker_needs_no_other_thread() {
        let runs = AtomicUsize::new(0);
        together(1, || {
            runs.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(runs.into_inner(), 1);
    }
}
