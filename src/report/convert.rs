//! The report of a conversion.

use std::fmt::Result;

use super::inspect::numbers::percent;
use super::lines::{counts, head, notes, put, time};
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

fn adapter(text: &mut String, report: &AdapterReport) -> Result {
    let (Family { family, family_by }, modules) = (&report.family, &report.modules);
    let exactly = match modules.error {
        Some(error) => format!("error {error:.1e} of the change at most"),
        None => "every module is in it".to_owned(),
    };
    let verdict = match report.from == report.to {
        true => format!("converted: {} as before, {exactly}", report.to),
        false => format!("converted: {} → {}, {exactly}", report.from, report.to),
    };
    head(text, &verdict, &report.out, "", report.dry_run)?;
    let named = family.as_ref().map_or(String::new(), |family| format!(", {family}"));
    put(text, "input", &format!("{}, {}{named}", shown(&report.input), report.from))?;
    if let (Some(family), Some(by)) = (family, family_by) {
        put(text, "family", &format!("{family}, by {by}"))?;
    }
    let kinds = [(modules.pairs, "LoRA"), (modules.methods, "by other methods"), (modules.whole, "whole tensors")];
    put(text, "modules", &counts(&kinds))?;
    let names = [(modules.renamed, "renamed"), (modules.split, "split"), (modules.fused, "fused")];
    put(text, "names", &counts(&names))?;
    let numbers = [
        (modules.folded, "scales folded"),
        (modules.padded, "ranks padded"),
        (modules.made_pairs, "made LoRA of another method"),
    ];
    put(text, "numbers", &counts(&numbers))?;
    put(text, "size", &size(report.bytes))?;
    notes(text, &report.notes)
}

fn checkpoint(text: &mut String, report: &CheckpointReport) -> Result {
    let dtypes: Vec<String> = report.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    head(text, &verdict(report), &report.out, "", report.dry_run)?;
    let input = size(report.input_bytes);
    put(
        text,
        "input",
        &format!("{}, {}, {input} in {} file(s)", shown(&report.input), report.format, report.input_files),
    )?;
    let tensors = [(report.cast, "cast"), (report.copied, "copied")];
    put(text, "tensors", &format!("{} ({})", counts(&tensors), dtypes.join(", ")))?;
    if let (Some(total), Some(worst)) = (&report.rounding, &report.worst) {
        put(text, "rounding", &rounding(total))?;
        if worst.relative > total.relative {
            put(text, "", &format!("at worst {} in `{}`", rounding(worst), line(&worst.tensor)))?;
        }
    }
    report.config_changes.iter().try_for_each(|change| put(text, "config", &line(change)))?;
    put(text, "size", &super::lines::bytes(report.bytes, report.files))?;
    if !report.dry_run {
        let rate = report.bytes as f64 / 1e9 / report.seconds.max(f64::MIN_POSITIVE);
        time(text, report.seconds, Some(rate), report.peak_resident_bytes)?;
    }
    notes(text, &report.notes)
}

/// What came of it, in one sentence.
fn verdict(report: &CheckpointReport) -> String {
    if let Some(part) = &report.part {
        return format!(
            "part {part} is done; `lorakit finish {}` puts the parts together when all are",
            shown(&report.out)
        );
    }
    let share = percent(report.bytes as f64 / report.input_bytes.max(1) as f64);
    match &report.rounding {
        None if report.cast == 0 => "converted: every tensor keeps its bytes".to_owned(),
        None => format!("converted: {share} of the input's size"),
        Some(total) if total.not_finite > 0 => {
            format!("converted, but {} values are not finite, as they were in the input", total.not_finite)
        }
        Some(total) if total.relative == 0.0 => "converted: no number was rounded".to_owned(),
        Some(total) => {
            format!("converted: {share} of the input's size, rounding moved the weights by {}", percent(total.relative))
        }
    }
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
