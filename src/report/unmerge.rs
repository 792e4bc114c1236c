//! The report of adapters taken out of a merged model.

use std::fmt::{Result, Write};

use super::lines::{bytes, head, indented, notes, put, time};
use super::merge::{describe, outcome, written};
use super::{shown, table};
use crate::ops::merge::MergeReport;
use crate::ops::merge::unmerge::UnmergeReport;

/// Tensors that are shown without `-v`.
const SHOWN: usize = 5;

/// ΔW subtracted as it is: a merge with negated weights, and what that means for the result.
pub fn subtracted(report: &MergeReport, verbose: bool) -> String {
    let rounded = report.survival.as_ref().is_some_and(|survival| survival.relative_error > 1e-3);
    let note = "MERGED was rounded, so what comes back is BASE up to that rounding";
    // Of GGUF files the base is not compared.
    let is_gguf = report.base.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let note = if is_gguf { note.to_owned() } else { format!("{note}; `--base PATH` gives BASE back bit for bit") };
    let verdict = match (report.dry_run, report.changes_nothing, &report.part) {
        (true, ..) => format!("{} tensors would change", report.tensors.changed),
        (_, true, _) => "nothing is taken out: the result equals the merged model".to_owned(),
        (_, _, Some(part)) => {
            format!("part {part} is done; `lorakit finish {}` puts the parts together", shown(&report.out))
        }
        _ => format!("subtracted: {}", outcome(report)),
    };
    let more: Vec<String> = rounded.then_some(note).into_iter().collect();
    written(&verdict, report, &more, verbose)
}

/// MERGED compared with the merge of its base, as text; `verbose` lists every tensor that differs.
pub fn unmerge(report: &UnmergeReport, verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text, report, verbose);
    text
}

fn verdict(report: &UnmergeReport) -> String {
    match report.exact {
        _ if report.dry_run => format!("{} tensors would be compared", report.compared + report.proved),
        Some(true) => "proved: MERGED is exactly that merge; every tensor of OUT equals BASE's bit for bit".to_owned(),
        _ if report.elements > 0 && report.differing > 0 => {
            let share = 100.0 * report.differing as f64 / report.elements as f64;
            let tensors = report.differing_tensors.len();
            format!(
                "not proved: {} of {} elements ({share:.3} %) in {tensors} tensors differ from that merge: another adapter, weight, \
                 base or `--rounding` made MERGED, or it was changed since",
                report.differing, report.elements
            )
        }
        _ => format!("part {} is done: no element differs in it", report.part.as_deref().unwrap_or("1/1")),
    }
}

fn write(text: &mut String, report: &UnmergeReport, verbose: bool) -> Result {
    head(text, &verdict(report), &report.out, "", report.dry_run)?;
    put(text, "merged", &shown(&report.merged))?;
    put(text, "base", &shown(&report.base))?;
    report.adapters.iter().try_for_each(|adapter| put(text, "adapter", &describe(adapter)))?;
    let proved = if report.proved > 0 { format!(", {} as a whole", report.proved) } else { String::new() };
    put(text, "tensors", &format!("{} compared element by element{proved}", report.compared))?;
    put(text, "size", &bytes(report.bytes, report.files))?;
    if !report.dry_run {
        time(text, report.seconds, Some(report.gb_per_second), report.peak_resident_bytes)?;
    }
    if report.delta_rounded_first > 0 {
        let count = report.delta_rounded_first;
        put(
            text,
            "note",
            &format!("{count} element(s) are the merge's with the delta rounded first (`--rounding peft-safe`)"),
        )?;
    }
    notes(text, &report.notes)?;
    let shown = if verbose { report.differing_tensors.len() } else { SHOWN };
    if report.differing_tensors.is_empty() {
        return Ok(());
    }
    let rows = report.differing_tensors.iter().take(shown).map(|tensor| {
        let written = if tensor.changed { "W′ − ΔW" } else { "W′" };
        vec![tensor.tensor.clone(), tensor.differing.to_string(), tensor.elements.to_string(), written.into()]
    });
    indented(text, &table(&["not the merge's", "elements", "of", "written"], rows))?;
    match report.differing_tensors.len().saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(text, "  … and {more} more (-v lists all)"),
    }
}
