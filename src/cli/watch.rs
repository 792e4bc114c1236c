//! What a long run needs from the system: to be stopped, to be told of a lost input, to open many files, to know its memory.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::error::{Error, Result};
use crate::plan::Progress;

/// What is said when an input shrinks under the map.
const LOST: &str =
    "error: an input file became shorter while it was being read, or its disk failed; nothing was written";

/// Who runs a verb in a process of their own, and hears of it instead of signals and a terminal.
#[derive(Clone)]
pub struct Host {
    /// Set to stop the run.
    pub cancel: Arc<AtomicBool>,
    /// Hears how far it is.
    pub progress: Arc<dyn Progress + Send + Sync>,
}

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// Who runs the verbs of this thread; nobody in the program itself.
pub fn host() -> Option<Host> {
    HOST.with_borrow(Clone::clone)
}

/// Runs `work` for `host`.
pub fn hosted<T>(host: Host, work: impl FnOnce() -> T) -> T {
    HOST.set(Some(host));
    let done = work();
    HOST.set(None);
    done
}

/// A flag that an interrupt sets, or a terminal that goes away; the second interrupt ends the process at once. Also ends it with
/// a message when an input shrinks while it is mapped. A file that may not grow further is an error of its write from now on.
pub fn interruptible() -> Result<Arc<AtomicBool>> {
    crate::io::exit_on_lost_mapping(LOST)?;
    if let Some(host) = host() {
        return Ok(host.cancel);
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let cannot = |source| Error::io("signals", "cannot be handled", source);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // `nohup` asks for a run that outlives its terminal.
        if signal == SIGHUP && is_ignored(signal) {
            continue;
        }
        let twice = flag::register_conditional_shutdown(signal, 1, Arc::clone(&cancel));
        twice.and(flag::register(signal, Arc::clone(&cancel))).map_err(cannot)?;
    }
    // Without a handler `ulimit -f` kills; with one the write fails, and what was begun is removed.
    flag::register(SIGXFSZ, Arc::default()).map_err(cannot)?;
    Ok(cancel)
}

/// Whether the process was started with `signal` ignored, where the system tells (Linux: `SigIgn`).
fn is_ignored(signal: i32) -> bool {
    let mask = status("SigIgn:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Allows as many open files as the system lets this process allow itself: a model may have more than a shell allows. Where that
/// fails, what there is has to do.
pub fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Largest resident memory of this process so far, where the system tells (Linux: `VmHWM`).
pub fn peak_resident_bytes() -> Option<u64> {
    let kibibytes: u64 = status("VmHWM:")?.trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes << 10)
}

/// A line of what the system says of this process.
fn status(key: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

/// Columns of the terminal that stdout is; nothing where it is none. `COLUMNS` counts, as everywhere.
pub fn columns() -> Option<usize> {
    let stdout = std::io::stdout();
    if !std::io::IsTerminal::is_terminal(&stdout) {
        return None;
    }
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let found = || rustix::termios::tcgetwinsize(stdout).ok().map(|size| usize::from(size.ws_col));
    told.or_else(found).filter(|columns| *columns > 0)
}
