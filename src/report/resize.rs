//! The report of a resizing.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{of_dialect, shown, size, table};
use crate::error::shown::line;
use crate::ops::resize::{AdapterResize, ModuleResize, Outcome, ResizeReport, Resized};

/// Worst modules that are shown without `-v`.
const WORST_SHOWN: usize = 3;

/// A resizing as text; `verbose` lists every module.
pub fn resize(report: &ResizeReport, verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text, report, verbose);
    text
}

fn write(text: &mut String, report: &ResizeReport, verbose: bool) -> std::fmt::Result {
    let would = if report.dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(text, "{}{}{would}", shown(&report.out), of_dialect(report.to))?;
    match report.adapters.as_slice() {
        [AdapterResize { path, outcome: Outcome::Resized(resized), out }] if *out == report.out => {
            writeln!(text, "  adapter  {}", shown(path))?;
            write_one(text, resized, verbose)?;
        }
        several => {
            let rows = several.iter().map(row);
            let header = ["adapter", "rank", "kept", "error", "before", "after"];
            table(&header, rows).lines().try_for_each(|line| writeln!(text, "  {line}"))?;
            for adapter in several {
                write_problem(text, adapter)?;
            }
        }
    }
    let memory = report.peak_resident_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
    writeln!(text, "  time     {:.2} s{memory}", report.seconds)
}

fn write_one(text: &mut String, resized: &Resized, verbose: bool) -> std::fmt::Result {
    let pairs = resized.modules.len();
    writeln!(text, "  modules  {pairs}, rank {}", ranks(resized))?;
    if !resized.left_out.is_empty() {
        writeln!(text, "  left out {} modules: {}", resized.left_out.len(), some(&resized.left_out))?;
    }
    writeln!(
        text,
        "  delta    norm {:.4e}, {} of its square kept, error {} at most",
        resized.norm,
        percent(resized.kept_energy),
        percent(resized.relative_error)
    )?;
    writeln!(
        text,
        "  output   {} from {}, {} parameters from {}, {} tensors copied",
        size(resized.bytes),
        size(resized.bytes_before),
        resized.parameters,
        resized.parameters_before,
        resized.copied
    )?;
    resized.notes.iter().try_for_each(|note| writeln!(text, "  note     {}", line(note)))?;
    let mut worst: Vec<&ModuleResize> = resized.modules.iter().collect();
    worst.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error));
    let shown = if verbose { worst.len() } else { WORST_SHOWN };
    let rows = worst.iter().take(shown).filter(|module| verbose || module.relative_error > 0.0).map(|module| {
        vec![
            module.module.clone(),
            format!("{} → {}", module.rank_before, module.rank),
            percent(module.kept_energy),
            percent(module.relative_error),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    let title = if verbose { "module" } else { "largest errors" };
    table(&[title, "rank", "kept", "error"], rows).lines().try_for_each(|line| writeln!(text, "  {line}"))
}

/// One adapter in one line.
fn row(adapter: &AdapterResize) -> Vec<String> {
    let name = adapter.out.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let nothing = |what: &str| {
        let mut row = vec![name.clone(), what.to_owned()];
        row.resize(6, String::new());
        row
    };
    match &adapter.outcome {
        Outcome::Done => nothing("done before"),
        Outcome::Failed { .. } => nothing("FAILED"),
        Outcome::Resized(resized) => vec![
            name,
            ranks(resized),
            percent(resized.kept_energy),
            percent(resized.relative_error),
            size(resized.bytes_before),
            size(resized.bytes),
        ],
    }
}

fn write_problem(text: &mut String, adapter: &AdapterResize) -> std::fmt::Result {
    let Outcome::Failed { problem, hint } = &adapter.outcome else { return Ok(()) };
    writeln!(text, "  FAILED   {}", line(problem))?;
    hint.iter().try_for_each(|hint| writeln!(text, "  hint     {}", line(hint)))
}

/// Ranks before and after, the smallest and the largest.
fn ranks(resized: &Resized) -> String {
    let span = |ranks: BTreeSet<usize>| match (ranks.first(), ranks.last()) {
        (Some(low), Some(high)) if low == high => low.to_string(),
        (Some(low), Some(high)) => format!("{low}–{high}"),
        _ => String::new(),
    };
    let before = span(resized.modules.iter().map(|module| module.rank_before).collect());
    let after = span(resized.modules.iter().map(|module| module.rank).collect());
    format!("{before} → {after}")
}

fn some(names: &[String]) -> String {
    const SHOWN: usize = 2;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{}`", line(name))).collect();
    if names.len() > SHOWN { format!("{} …", shown.join(", ")) } else { shown.join(", ") }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}
