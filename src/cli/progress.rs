//! The progress bar: what is done, how many of how many, and the time left; on a terminal only.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::watch::{Host, host};

use crate::plan::Progress;

/// How long a run goes on without a bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// Redraws per second.
const REDRAWS: u8 = 10;

/// Bytes on their way to a disk have a rate; modules that are decomposed are counted.
const WRITING: &str = "{prefix} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";
const COUNTING: &str = "{prefix} {wide_bar} {msg} {eta} left";

/// A bar on stderr, or nothing where stderr is not a terminal.
#[derive(Default)]
pub struct Bar {
    host: Option<Host>,
    quiet: bool,
    /// What is being done, in one word.
    verb: &'static str,
    /// What the parts are called, and how many there are.
    parts: OnceLock<(&'static str, usize)>,
    done: AtomicUsize,
    bar: OnceLock<ProgressBar>,
}

impl Bar {
    /// A bar that says `verb`, or stays away if `quiet`.
    pub fn new(verb: &'static str, quiet: bool) -> Self {
        Self { quiet, verb, host: host(), ..Self::default() }
    }

    /// How many of the parts are done, where they are counted.
    fn counted(&self) -> Option<String> {
        let (what, count) = self.parts.get().filter(|(what, _)| *what == "modules")?;
        Some(format!("{}/{count} {what}", self.done.load(Ordering::Relaxed).min(*count)))
    }
}

impl Progress for Bar {
    fn parts(&self, what: &'static str, count: usize) {
        self.host.iter().for_each(|host| host.progress.parts(what, count));
        let _ = self.parts.set((what, count));
    }

    fn begin(&self, bytes: u64) {
        if let Some(host) = &self.host {
            return host.progress.begin(bytes);
        }
        let template = if self.counted().is_some() { COUNTING } else { WRITING };
        let style = ProgressStyle::with_template(template).expect("the templates are constants that a test renders");
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden()).with_style(style);
        bar.set_prefix(self.verb);
        // Only the first run of a process draws.
        let _ = self.bar.set(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(host) = &self.host {
            return host.progress.advance(bytes);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        if let Some(bar) = self.bar.get() {
            if let Some(counted) = self.counted() {
                bar.set_message(counted);
            }
            bar.inc(bytes);
            // What is done at once needs no bar, and its terminal no codes.
            let is_late = bar.is_hidden() && bar.elapsed() >= PATIENCE;
            if is_late && !self.quiet && std::io::stderr().is_terminal() {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS));
            }
        }
    }

    fn finish(&self) {
        self.host.iter().for_each(|host| host.progress.finish());
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_without_a_terminal() {
        for (what, counted) in [("modules", Some("1/3 modules".to_owned())), ("pieces", None)] {
            let bar = Bar::new("extracting", true);
            bar.parts(what, 3);
            bar.begin(10);
            bar.advance(4);
            assert_eq!(bar.bar.get().map(ProgressBar::position), Some(4));
            assert_eq!(bar.counted(), counted);
            bar.finish();
        }
    }
}
