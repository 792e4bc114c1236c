//! Whether the work of this thread is still wanted.
//!
//! Between two jobs a run looks at its flag itself ([`crate::plan`]). Inside a job that takes long (a decomposition, the copy of a
//! large file) the flag is asked for here, so that it need not be handed through every formula on the way. Nothing that is computed
//! depends on it.
//!
//! The `unsafe` of this room is one pointer, and it is sound: it is set from a borrow, for the thread that holds the borrow, and
//! taken back before that borrow ends, also when the work panics.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::{Blame, Result};

/// How often a flag is looked at while one long computation runs.
const LOOK_EVERY: Duration = Duration::from_millis(50);

thread_local! {
    static FLAG: Cell<*const AtomicBool> = const { Cell::new(ptr::null()) };
}

/// Puts the flag back that was there before.
struct Restore(*const AtomicBool);

impl Drop for Restore {
    fn drop(&mut self) {
        FLAG.set(self.0);
    }
}

/// Runs `work`; while it runs, [`check`] on this thread asks `flag`.
pub fn watching<T>(flag: &AtomicBool, work: impl FnOnce() -> T) -> T {
    let _restore = Restore(FLAG.replace(flag));
    work()
}

fn is_set() -> bool {
    // SAFETY: the pointer is null or comes from the borrow that a `watching` further up on this thread's stack holds.
    unsafe { FLAG.get().as_ref() }.is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails when the run was interrupted.
///
/// # Errors
/// [`Blame::Interrupted`].
pub fn check() -> Result<()> {
    if is_set() { Err(Blame::Interrupted.into()) } else { Ok(()) }
}

/// The result of one computation that cannot be stopped in the middle, or an error as soon as nobody wants it any more: it
/// then runs on by itself until it is done or the process ends. On the thread that asks, where nothing is [`watching`] or no
/// other thread can be had.
///
/// # Errors
/// [`Blame::Interrupted`].
pub fn while_wanted<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    check()?;
    if FLAG.get().is_null() {
        return Ok(work());
    }
    // Kept where it can be found again if no thread can be had.
    let work = Arc::new(Mutex::new(Some(work)));
    let (send, receive) = channel();
    let theirs = Arc::clone(&work);
    let spawned = thread::Builder::new().spawn(move || {
        let work = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nobody may be waiting any more.
        let _ = send.send(work.map(|work| work()));
    });
    let Ok(thread) = spawned else {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        return Ok(work.expect("no other thread took it")());
    };
    loop {
        match receive.recv_timeout(LOOK_EVERY) {
            Ok(result) => return Ok(result.expect("nobody else took it")),
            Err(RecvTimeoutError::Timeout) => check()?,
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("a thread that ends well has sent its result"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_asked_for_only_while_it_is_watched() {
        let (outer, inner) = (AtomicBool::new(false), AtomicBool::new(true));
        assert!(check().is_ok());
        watching(&outer, || {
            assert!(check().is_ok());
            watching(&inner, || assert!(matches!(check().expect_err("set").blame(), Blame::Interrupted)));
            assert!(check().is_ok());
            outer.store(true, Ordering::Relaxed);
            assert!(check().is_err());
        });
        assert!(check().is_ok());
    }

    #[test]
    fn a_computation_gives_its_result_or_is_left_alone() {
        let flag = Arc::new(AtomicBool::new(false));
        assert_eq!(while_wanted(|| 6 * 7).expect("nobody watches"), 42);
        assert_eq!(watching(&flag, || while_wanted(|| 6 * 7)).expect("wanted"), 42);
        let (theirs, (hold, held)) = (Arc::clone(&flag), channel::<()>());
        let endless = move || {
            theirs.store(true, Ordering::Relaxed);
            // Ends when the sender is dropped.
            let _ = held.recv();
        };
        let error = watching(&flag, || while_wanted(endless)).expect_err("interrupted");
        assert!(matches!(error.blame(), Blame::Interrupted));
        drop(hold);
    }

    #[test]
    #[should_panic(expected = "as it was")]
    fn a_panic_comes_through_as_it_was() {
        let flag = AtomicBool::new(false);
        let _ = watching(&flag, || while_wanted(|| panic!("as it was")));
    }
}
