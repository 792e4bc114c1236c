//! What a long run needs from the system: to be stopped, to be told of a lost input, to know its memory.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lorakit::error::{Error, Result};

/// What is said when an input shrinks under the map.
const LOST: &str =
    "error: an input file became shorter while it was being read, or its disk failed; nothing was written";

/// A flag that an interrupt sets; the second interrupt ends the process at once. Also ends it with a message when an
/// input shrinks while it is mapped.
pub fn interruptible() -> Result<Arc<AtomicBool>> {
    lorakit::io::exit_on_lost_mapping(LOST)?;
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let twice = signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&cancel));
        let once = signal_hook::flag::register(signal, Arc::clone(&cancel));
        twice.and(once).map_err(|source| Error::io("signals", "cannot be handled", source))?;
    }
    Ok(cancel)
}

/// Largest resident memory of this process so far, where the system tells (Linux: `VmHWM`).
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes << 10)
}
