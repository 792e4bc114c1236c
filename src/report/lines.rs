//! Lines that the reports of all verbs have, in one order and in one form: the verdict, where the result lies, what it was made of, the
//! change, the size, the time, what is to be known.

use std::fmt::{Result, Write};
use std::path::Path;

use super::inspect::numbers::{digits, percent};
use super::{shown, size};
use crate::error::shown::line;

/// Columns of a label.
const LABEL: usize = 9;

/// A label and what it stands for; nothing where there is nothing to say.
pub fn put(text: &mut String, label: &str, value: &str) -> Result {
    if value.is_empty() {
        return Ok(());
    }
    writeln!(text, "  {label:<LABEL$}{value}")
}

/// The verdict, and the output it is about.
pub fn head(text: &mut String, verdict: &str, out: &Path, kind: &str, dry_run: bool) -> Result {
    let dry = if dry_run { "dry run, nothing was written: " } else { "" };
    writeln!(text, "{dry}{}", line(verdict))?;
    put(text, "out", &format!("{}{kind}", shown(out)))
}

/// ‖ΔW‖, what of it is kept, and the error beside it.
pub fn change(text: &mut String, norm: f64, kept: &str, error: Option<f64>) -> Result {
    let error = error.map_or(String::new(), |error| format!(", error {} at most", percent(error)));
    put(text, "ΔW", &format!("norm {}, {kept}{error}", digits(norm)))
}

/// Wall time and memory.
pub fn time(text: &mut String, seconds: f64, gb_per_second: Option<f64>, peak: Option<u64>) -> Result {
    let rate = gb_per_second.map_or(String::new(), |rate| format!(", {rate:.2} GB/s"));
    let memory = peak.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
    put(text, "time", &format!("{seconds:.2} s{rate}{memory}"))
}

/// Notes, and what has to be seen.
pub fn notes(text: &mut String, notes: &[String]) -> Result {
    notes.iter().try_for_each(|note| match note.strip_prefix("WARNING: ").or_else(|| note.strip_prefix("warning: ")) {
        Some(warning) => put(text, "warning", &line(warning)),
        None => put(text, "note", &line(note)),
    })
}

/// A share that is kept, with as many digits as tell it from all.
pub fn kept(share: f64) -> String {
    let percent = 100.0 * share;
    match (percent - 100.0).abs() {
        // Rounding falls on either side: what is a little more than all is all.
        off if off < 5e-4 || (percent > 100.0 && off < 1.0) => "100 %".to_owned(),
        off if off < 0.05 => format!("{percent:.3} %"),
        off if off < 1.0 => format!("{percent:.2} %"),
        _ => format!("{percent:.1} %"),
    }
}

/// A table, indented under the lines.
pub fn indented(text: &mut String, table: &str) -> Result {
    table.lines().try_for_each(|line| writeln!(text, "  {}", line.trim_end()))
}

/// Counts that are not 0, each with its word.
pub fn counts(parts: &[(usize, &str)]) -> String {
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    parts.collect::<Vec<_>>().join(", ")
}

/// Bytes of an output, and its weight files.
pub fn bytes(bytes: u64, files: usize) -> String {
    match files {
        0 | 1 => format!("{} in one weight file", size(bytes)),
        files => format!("{} in {files} weight files", size(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_told_from_all() {
        for (share, text) in [
            (1.0, "100 %"),
            (0.999_999, "100 %"),
            (0.9999, "99.990 %"),
            (0.9938, "99.38 %"),
            (0.74345, "74.3 %"),
            (1.02, "102.0 %"),
        ] {
            assert_eq!(kept(share), text);
        }
    }
}
