//! The reports of the verbs that make adapters: `extract`, `stack`, `subtract`, `resize`. What is said of a new adapter is the same in
//! all of them.

use std::collections::BTreeSet;
use std::fmt::{Result, Write};
use std::path::Path;

use super::{of_dialect, shown, size, table};
use crate::error::shown::line;
use crate::ops::extract::ExtractReport;
use crate::ops::sum::{AdapterResize, Input, Outcome, ResizeReport, SumReport};
use crate::truncate::{ModuleReport, NewAdapterReport};

/// Modules with the largest errors that are shown without `-v`.
const WORST_SHOWN: usize = 5;

/// Names that are listed on one line.
const NAMES_SHOWN: usize = 4;

/// An extraction as text; `verbose` lists every module and every tensor stored whole.
pub fn extract(report: &ExtractReport, verbose: bool) -> String {
    written(|text| {
        head(text, &report.out, report.to, report.dry_run)?;
        writeln!(text, "  base     {}", shown(&report.base))?;
        writeln!(text, "  tuned    {}", shown(&report.tuned))?;
        let counts = [(report.unchanged, "unchanged"), (report.skipped.len(), "skipped")];
        let counts: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if !counts.is_empty() {
            writeln!(text, "  tensors  {}", counts.join(", "))?;
        }
        if !report.skipped.is_empty() {
            writeln!(text, "  skipped  {}", listed(report.skipped.iter().cloned(), verbose))?;
        }
        let share = 100.0 * report.made.bytes as f64 / (report.tuned_bytes as f64).max(1.0);
        made(text, &report.made, &format!(", {share:.2} % of {}", size(report.tuned_bytes)), verbose)?;
        time(text, report.seconds, report.peak_resident_bytes)
    })
}

/// A stack or a difference of adapters as text; `verbose` lists every module.
pub fn sum(report: &SumReport, verbose: bool) -> String {
    written(|text| {
        head(text, &report.out, report.to, report.dry_run)?;
        report.adapters.iter().try_for_each(|adapter| writeln!(text, "  adapter  {}", input(adapter)))?;
        writeln!(text, "  method   {}", report.method)?;
        if report.left_out > 0 {
            writeln!(text, "  left out {} tensors, by choice", report.left_out)?;
        }
        made(text, &report.made, "", verbose)?;
        time(text, report.seconds, report.peak_resident_bytes)
    })
}

/// A resizing as text; `verbose` lists every module of a single adapter.
pub fn resize(report: &ResizeReport, verbose: bool) -> String {
    written(|text| {
        head(text, &report.out, report.to, report.dry_run)?;
        match report.adapters.as_slice() {
            [AdapterResize { path, outcome: Outcome::Resized(resized), out }] if *out == report.out => {
                writeln!(text, "  adapter  {}", shown(path))?;
                made(text, &resized.made, "", verbose)?;
            }
            several => {
                let header = ["adapter", "rank", "energy", "error ≤", "before", "after"];
                indented(text, &table(&header, several.iter().map(row)))?;
                several.iter().try_for_each(|adapter| problem(text, adapter))?;
            }
        }
        time(text, report.seconds, report.peak_resident_bytes)
    })
}

fn written(write: impl FnOnce(&mut String) -> Result) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text);
    text
}

fn head(text: &mut String, out: &Path, to: &str, dry_run: bool) -> Result {
    let would = if dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(text, "{}{}{would}", shown(out), of_dialect(to))
}

fn time(text: &mut String, seconds: f64, peak: Option<u64>) -> Result {
    let memory = peak.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
    writeln!(text, "  time     {seconds:.2} s{memory}")
}

/// The new adapter; `output` ends the line that tells its size.
fn made(text: &mut String, made: &NewAdapterReport, output: &str, verbose: bool) -> Result {
    writeln!(text, "  modules  {}", modules(made))?;
    if !made.vanished.is_empty() {
        writeln!(text, "  nothing  left of {}", listed(made.vanished.iter().cloned(), verbose))?;
    }
    if !made.whole.is_empty() {
        let bytes = made.whole.iter().map(|whole| whole.bytes).sum();
        let names = made.whole.iter().map(|whole| format!("{}.{}", whole.module, whole.tensor));
        writeln!(text, "  whole    {} tensors, {}: {}", made.whole.len(), size(bytes), listed(names, verbose))?;
    }
    if !made.modules.is_empty() {
        writeln!(text, "  ΔW       norm {:.4e}, {}", made.norm, error(made))?;
    }
    if let Some(budget) = &made.budget {
        writeln!(text, "  budget   {} of {} spent on factors", budget.cost, budget.budget)?;
    }
    let before = made.bytes_before.map_or(String::new(), |bytes| format!(" from {}", size(bytes)));
    let parameters = made.parameters_before.map_or(String::new(), |count| format!(" from {count}"));
    writeln!(
        text,
        "  output   {}{before}, {} parameters in pairs{parameters}{output}",
        size(made.bytes),
        made.parameters
    )?;
    made.notes.iter().try_for_each(|note| writeln!(text, "  note     {}", line(note)))?;
    let mut worst: Vec<&ModuleReport> = made.modules.iter().filter(|module| verbose || !module.exact).collect();
    worst.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error));
    if worst.is_empty() {
        return Ok(());
    }
    let rows = worst.iter().take(if verbose { worst.len() } else { WORST_SHOWN }).map(|module| {
        vec![
            module.module.clone(),
            ranks(module),
            format!("{:.3e}", module.norm),
            percent(module.kept_energy),
            format!("{:.1e}", module.relative_error),
            if module.at_rounding_floor == Some(true) { "rounding".into() } else { String::new() },
        ]
    });
    let title = if verbose { "module" } else { "largest errors" };
    indented(text, &table(&[title, "rank", "‖ΔW‖", "energy", "error ≤", ""], rows))
}

fn indented(text: &mut String, table: &str) -> Result {
    table.lines().try_for_each(|line| writeln!(text, "  {}", line.trim_end()))
}

/// How many modules, their ranks and dtypes.
fn modules(made: &NewAdapterReport) -> String {
    let dtypes: BTreeSet<&str> = made.modules.iter().map(|module| module.dtype.as_str()).collect();
    let dtypes = dtypes.into_iter().collect::<Vec<_>>().join("/");
    match made.modules.len() {
        0 => "none".into(),
        count => format!("{count}, rank {}, {dtypes}", change(made)),
    }
}

/// Ranks before, where there were others, and after.
fn change(made: &NewAdapterReport) -> String {
    let summed = made.modules.iter().filter(|module| !module.ranks_before.is_empty());
    let (before, after) =
        (span(summed.map(|module| module.ranks_before.iter().sum())), span(made.ranks.keys().copied()));
    if before.is_empty() || before == after { after } else { format!("{before} → {after}") }
}

fn span(ranks: impl Iterator<Item = usize>) -> String {
    let ranks: BTreeSet<usize> = ranks.collect();
    match (ranks.first(), ranks.last()) {
        (Some(low), Some(high)) if low == high => low.to_string(),
        (Some(low), Some(high)) => format!("{low} … {high}"),
        _ => String::new(),
    }
}

/// Ranks before, where there were some, and after.
fn ranks(module: &ModuleReport) -> String {
    if module.ranks_before.is_empty() {
        return module.rank.to_string();
    }
    let before: Vec<String> = module.ranks_before.iter().map(usize::to_string).collect();
    format!("{} → {}", before.join("+"), module.rank)
}

fn error(made: &NewAdapterReport) -> String {
    match made.exact {
        true => "exact".into(),
        false => {
            format!("{} of its energy kept, error {} at most", percent(made.kept_energy), percent(made.relative_error))
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.3} %", 100.0 * share)
}

fn listed(names: impl ExactSizeIterator<Item = String>, verbose: bool) -> String {
    let count = names.len();
    let shown = if verbose { count } else { NAMES_SHOWN };
    let names: Vec<String> = names.take(shown).map(|name| line(&name)).collect();
    let more = if count > shown { format!(" and {} more", count - shown) } else { String::new() };
    names.join(", ") + &more
}

fn input(adapter: &Input) -> String {
    let ranks: Vec<String> = adapter.ranks.keys().map(u64::to_string).collect();
    let path = shown(&adapter.path);
    match adapter.modules {
        0 => format!("{path} × {}", adapter.weight),
        count => format!("{path} × {}, {count} modules, rank {}", adapter.weight, ranks.join("/")),
    }
}

/// One resized adapter in one line.
fn row(adapter: &AdapterResize) -> Vec<String> {
    let name = adapter.out.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let nothing = |what: &str| {
        let mut row = vec![name.clone(), what.to_owned()];
        row.resize(6, String::new());
        row
    };
    let made = match &adapter.outcome {
        Outcome::Done => return nothing("done before"),
        Outcome::Failed { .. } => return nothing("FAILED"),
        Outcome::Resized(resized) => &resized.made,
    };
    vec![
        name,
        change(made),
        percent(made.kept_energy),
        percent(made.relative_error),
        made.bytes_before.map_or_else(String::new, size),
        size(made.bytes),
    ]
}

fn problem(text: &mut String, adapter: &AdapterResize) -> Result {
    let Outcome::Failed { problem, hint } = &adapter.outcome else { return Ok(()) };
    writeln!(text, "  FAILED   {}", line(problem))?;
    hint.iter().try_for_each(|hint| writeln!(text, "  hint     {}", line(hint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::{Bytes, NewPair, PairKind};
    use crate::tensor::Float;
    use std::collections::BTreeMap;

    fn module(name: &str, error: f64) -> ModuleReport {
        let factor = || Bytes::Held { bytes: Vec::new(), float: Float::Bf16 };
        let (path, kind, down, up) = (name.to_owned(), PairKind::Linear, factor(), factor());
        let pair = NewPair { path, kind, rank: 6, alpha: 6.0, down, up, outer: (3, 4), up_bias: None };
        ModuleReport { ranks_before: vec![4, 8], ..ModuleReport::of(&pair, 2.0).off_by(2.0 * error) }
    }

    #[test]
    fn the_worst_module_comes_first() {
        let mut made = NewAdapterReport {
            modules: vec![module("good", 0.01), module("bad", 0.5)],
            vanished: vec!["gone".into()],
            bytes_before: Some(2000),
            bytes: 1000,
            notes: vec!["worth knowing".into()],
            ..NewAdapterReport::default()
        };
        made.add_up(0.0);
        let ranks = BTreeMap::from([(4, 2)]);
        let report = SumReport {
            out: "out".into(),
            to: "peft",
            dry_run: true,
            method: "concat",
            adapters: vec![Input { path: "a".into(), weight: -0.5, modules: 2, ranks, alpha_from: None }],
            left_out: 3,
            made,
            seconds: 0.0,
            peak_resident_bytes: None,
        };
        let text = sum(&report, false);
        for part in [
            "out (dry run: nothing was written)",
            "  adapter  a × -0.5, 2 modules, rank 4",
            "  modules  2, rank 12 → 6, BF16",
            "87.495 % of its energy kept, error 35.362 % at most",
            "nothing  left of gone",
            "1.00 kB from 2.00 kB, 84 parameters in pairs",
            "note     worth knowing",
            "4+8 → 6",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(text.find("bad") < text.find("good"), "{text}");
    }
}
