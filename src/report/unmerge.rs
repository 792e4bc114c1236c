//! The report of adapters taken out of a merged model.

use std::fmt::Write;

use super::merge::{describe, merge};
use super::{shown, size, table};
use crate::error::shown::line;
use crate::ops::merge::MergeReport;
use crate::ops::merge::unmerge::UnmergeReport;

/// Tensors that are shown without `-v`.
const SHOWN: usize = 5;

/// ΔW subtracted as it is: a merge with negated weights, and what that means for the result.
pub fn subtracted(report: &MergeReport, verbose: bool) -> String {
    let mut text = merge(report, verbose);
    let rounded = report.survival.as_ref().is_some_and(|survival| survival.relative_error > 1e-3);
    if rounded {
        text += "  note     W′ was rounded when it was merged: W comes back up to that; `--base PATH` gives it back bit for bit\n";
    }
    text
}

/// MERGED compared with the merge of its base, as text; `verbose` lists every tensor that differs.
pub fn unmerge(report: &UnmergeReport, verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text, report, verbose);
    text
}

fn write(text: &mut String, report: &UnmergeReport, verbose: bool) -> std::fmt::Result {
    let would = if report.dry_run { " (dry run: nothing was compared or written)" } else { "" };
    writeln!(text, "{}{would}", shown(&report.out))?;
    writeln!(text, "  merged   {}", shown(&report.merged))?;
    writeln!(text, "  base     {}", shown(&report.base))?;
    for adapter in &report.adapters {
        writeln!(text, "  adapter  {}", describe(adapter))?;
    }
    let proved = if report.proved > 0 { format!(", {} as a whole", report.proved) } else { String::new() };
    writeln!(text, "  tensors  {} compared element by element{proved}", report.compared)?;
    writeln!(text, "  output   {} in {} weight file(s), {} jobs", size(report.bytes), report.files, report.jobs)?;
    match report.exact {
        Some(true) => {
            writeln!(text, "  result   MERGED is exactly that merge; OUT equals BASE bit for bit")?;
        }
        _ if report.elements > 0 => {
            let share = 100.0 * report.differing as f64 / report.elements as f64;
            let tensors = report.differing_tensors.len();
            writeln!(
                text,
                "  result   {} of {} elements ({share:.3} %) in {tensors} tensors are not those of that merge",
                report.differing, report.elements
            )?;
        }
        _ => {}
    }
    let shown = if verbose { report.differing_tensors.len() } else { SHOWN };
    if !report.differing_tensors.is_empty() {
        let rows = report.differing_tensors.iter().take(shown).map(|tensor| {
            let written = if tensor.changed { "W′ − ΔW" } else { "W′" };
            vec![tensor.tensor.clone(), tensor.differing.to_string(), tensor.elements.to_string(), written.into()]
        });
        for line in table(&["not the merge's", "elements", "of", "written"], rows).lines() {
            writeln!(text, "  {line}")?;
        }
        let more = report.differing_tensors.len().saturating_sub(shown);
        if more > 0 {
            writeln!(text, "  … and {more} more (-v lists all)")?;
        }
    }
    if report.delta_rounded_first > 0 {
        let count = report.delta_rounded_first;
        writeln!(
            text,
            "  note     {count} elements are the merge's with the delta rounded first (`--rounding peft-safe`)"
        )?;
    }
    if !report.dry_run {
        let memory = report.peak_resident_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
        writeln!(text, "  time     {:.2} s, {:.2} GB/s{memory}", report.seconds, report.gb_per_second)?;
    }
    for note in &report.notes {
        writeln!(text, "  note     {}", line(note))?;
    }
    Ok(())
}
