//! The report of an extraction.

use std::fmt::Write;

use super::{of_dialect, shown, size, table};
use crate::error::shown::line;
use crate::ops::extract::{ExtractReport, ModuleSummary, Total};

/// Modules with the largest errors that are shown without `-v`.
const WORST_SHOWN: usize = 5;

/// Names that are listed on one line.
const NAMES_SHOWN: usize = 4;

/// An extraction as text; `verbose` lists every module and every tensor stored whole.
pub fn extract(report: &ExtractReport, verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text, report, verbose);
    text
}

fn write(text: &mut String, report: &ExtractReport, verbose: bool) -> std::fmt::Result {
    let would = if report.dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(text, "{}{}{would}", shown(&report.out), of_dialect(report.to))?;
    writeln!(text, "  base     {}", shown(&report.base))?;
    writeln!(text, "  tuned    {}", shown(&report.tuned))?;
    let counts = [
        (report.modules.len(), "changed"),
        (report.whole.len(), "whole"),
        (report.unchanged, "unchanged"),
        (report.skipped.len(), "skipped"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    writeln!(text, "  tensors  {}", counts.join(", "))?;
    if !report.whole.is_empty() {
        let bytes = report.whole.iter().map(|whole| whole.bytes).sum();
        let names = report.whole.iter().map(|whole| format!("{}.{}", whole.module, whole.tensor));
        writeln!(text, "  whole    {} in {}", size(bytes), listed(names, report.whole.len(), verbose))?;
    }
    if !report.skipped.is_empty() {
        let names = report.skipped.iter().cloned();
        writeln!(text, "  skipped  {}", listed(names, report.skipped.len(), verbose))?;
    }
    write_total(text, report, &report.total)?;
    for note in &report.notes {
        writeln!(text, "  note     {}", line(note))?;
    }
    write_modules(text, &report.modules, verbose)
}

fn listed(names: impl Iterator<Item = String>, count: usize, verbose: bool) -> String {
    let shown = if verbose { count } else { NAMES_SHOWN };
    let names: Vec<String> = names.take(shown).map(|name| line(&name)).collect();
    let more = if count > shown { format!(" and {} more", count - shown) } else { String::new() };
    names.join(", ") + &more
}

fn write_total(text: &mut String, report: &ExtractReport, total: &Total) -> std::fmt::Result {
    writeln!(
        text,
        "  change   norm {:.4e}, {:.2} % of its energy kept, error at most {:.2} %",
        total.norm,
        100.0 * total.kept_energy,
        100.0 * total.relative_error
    )?;
    let ranks: Vec<&usize> = total.ranks.keys().collect();
    let ranks = match ranks.as_slice() {
        [] => "none".to_owned(),
        [only] => only.to_string(),
        [first, .., last] => format!("{first} … {last}"),
    };
    writeln!(text, "  ranks    {ranks}, {} parameters in factors", total.parameters)?;
    if let Some(budget) = &report.budget {
        writeln!(text, "  budget   {} of {} spent on factors", budget.cost, budget.budget)?;
    }
    let share = 100.0 * report.bytes as f64 / (report.tuned_bytes as f64).max(1.0);
    writeln!(text, "  output   {}, {share:.2} % of {}", size(report.bytes), size(report.tuned_bytes))?;
    let memory = report.peak_resident_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
    writeln!(text, "  time     {:.2} s{memory}", report.seconds)
}

/// The modules, largest errors first; all of them if `verbose`.
fn write_modules(text: &mut String, modules: &[ModuleSummary], verbose: bool) -> std::fmt::Result {
    if modules.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<&ModuleSummary> = modules.iter().collect();
    sorted.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error));
    let shown = if verbose { sorted.len() } else { WORST_SHOWN };
    let percent = |share: f64| format!("{:.3} %", 100.0 * share);
    let rows = sorted.iter().take(shown).map(|module| {
        vec![
            module.module.clone(),
            module.rank.to_string(),
            format!("{:.3e}", module.norm),
            percent(module.kept_energy),
            percent(module.relative_error),
            if module.at_rounding_floor { "rounding".into() } else { String::new() },
        ]
    });
    for line in table(&["largest errors", "rank", "‖ΔW‖", "kept", "error", ""], rows).lines() {
        writeln!(text, "  {}", line.trim_end())?;
    }
    Ok(())
}
