//! The report of a conversion.

use std::fmt::Write;

use super::{shown, size};
use crate::dialects::translate::Family;
use crate::error::shown::line;
use crate::ops::convert::{AdapterReport, CheckpointReport, Converted, RoundingError};

/// A conversion as text.
pub fn convert(converted: &Converted) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = match converted {
        Converted::Checkpoint(report) => checkpoint(&mut text, report),
        Converted::Adapter(report) => adapter(&mut text, report),
    };
    text
}

fn adapter(text: &mut String, report: &AdapterReport) -> std::fmt::Result {
    let would = if report.dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(text, "{}{would}", shown(&report.out))?;
    let (Family { family, family_by }, modules) = (&report.family, &report.modules);
    let named = family.as_ref().map_or(String::new(), |family| format!(", {family}"));
    writeln!(text, "  input    {}, {}{named}", shown(&report.input), report.from)?;
    if let (Some(family), Some(by)) = (family, family_by) {
        writeln!(text, "  family   {family}, by {by}")?;
    }
    let list = |parts: &[(usize, &str)]| {
        let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let kinds =
        list(&[(modules.pairs, "LoRA"), (modules.methods, "by other methods"), (modules.whole, "whole tensors")]);
    if !kinds.is_empty() {
        writeln!(text, "  modules  {kinds}")?;
    }
    let names = list(&[(modules.renamed, "renamed"), (modules.split, "split"), (modules.fused, "fused")]);
    if !names.is_empty() {
        writeln!(text, "  names    {names}")?;
    }
    let numbers = list(&[
        (modules.folded, "scales folded"),
        (modules.padded, "ranks padded"),
        (modules.made_pairs, "made LoRA of another method"),
    ]);
    if !numbers.is_empty() {
        writeln!(text, "  numbers  {numbers}")?;
    }
    if let Some(error) = modules.error {
        writeln!(text, "  error    {error:.1e} at most, relative to the change")?;
    }
    writeln!(text, "  output   {}, {}", report.to, size(report.bytes))?;
    for note in &report.notes {
        writeln!(text, "  note     {}", line(note))?;
    }
    Ok(())
}

fn checkpoint(text: &mut String, report: &CheckpointReport) -> std::fmt::Result {
    let would = if report.dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(text, "{}{would}", shown(&report.out))?;
    let input = size(report.input_bytes);
    writeln!(
        text,
        "  input    {}, {}, {input} in {} file(s)",
        shown(&report.input),
        report.format,
        report.input_files
    )?;
    let parts = [(report.cast, "cast"), (report.copied, "copied")];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let dtypes: Vec<String> = report.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    writeln!(text, "  tensors  {} ({})", parts.collect::<Vec<_>>().join(", "), dtypes.join(", "))?;
    for change in &report.config_changes {
        writeln!(text, "  config   {}", line(change))?;
    }
    writeln!(text, "  output   {} in {} weight file(s), {} jobs", size(report.bytes), report.files, report.jobs)?;
    if let (Some(total), Some(worst)) = (&report.rounding, &report.worst) {
        writeln!(text, "  rounding {}", rounding(total))?;
        if worst.relative > total.relative {
            writeln!(text, "           at worst {} in `{}`", rounding(worst), line(&worst.tensor))?;
        }
    }
    if !report.dry_run {
        let memory = report.peak_resident_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
        let rate = report.bytes as f64 / 1e9 / report.seconds.max(f64::MIN_POSITIVE);
        writeln!(text, "  time     {:.2} s, {rate:.2} GB/s{memory}", report.seconds)?;
    }
    for note in &report.notes {
        writeln!(text, "  note     {}", line(note))?;
    }
    Ok(())
}

fn rounding(error: &RoundingError) -> String {
    let mut parts = vec![format!("relative error {:.2e}", error.relative)];
    if error.vanished > 0 {
        parts.push(format!("{} values became 0", error.vanished));
    }
    if error.not_finite > 0 {
        parts.push(format!("{} values are not finite, as before", error.not_finite));
    }
    parts.join(", ")
}
