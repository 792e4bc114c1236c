//! The progress bar: bytes, rate and time left, on a terminal only.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lorakit::plan::Progress;

/// How long a run goes on without a bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// Redraws per second.
const REDRAWS: u8 = 10;

/// A bar on stderr, or nothing where stderr is not a terminal.
#[derive(Default)]
pub struct Bar {
    quiet: bool,
    bar: OnceLock<ProgressBar>,
}

impl Bar {
    /// A bar that stays away if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bar: OnceLock::new() }
    }
}

impl Progress for Bar {
    fn begin(&self, bytes: u64) {
        let style = ProgressStyle::with_template(
            "{wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left",
        )
        .expect("the template is a constant that a test renders");
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden()).with_style(style);
        // Only the first run of a process draws.
        let _ = self.bar.set(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = self.bar.get() {
            bar.inc(bytes);
            // What is done at once needs no bar, and its terminal no codes.
            let is_late = bar.is_hidden() && bar.elapsed() >= PATIENCE;
            if is_late && !self.quiet && std::io::stderr().is_terminal() {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS));
            }
        }
    }

    fn finish(&self) {
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
        let bar = Bar::new(true);
        bar.begin(10);
        bar.advance(4);
        assert_eq!(bar.bar.get().map(ProgressBar::position), Some(4));
        bar.finish();
    }
}
