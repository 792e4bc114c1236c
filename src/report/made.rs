//! The reports of the verbs that make adapters: `extract`, `stack`, `subtract`, `resize`. What is said of a new adapter is the same in
//! all of them.

use std::collections::BTreeSet;
use std::fmt::Result;
use std::path::Path;

use super::inspect::numbers::percent;
use super::lines::{change, counts, head, indented, kept, notes, put};
use super::{of_dialect, shown, size, table};
use crate::error::shown::line;
use crate::ops::extract::ExtractReport;
use crate::ops::sum::{AdapterResize, Input, Outcome, ResizeReport, SumReport};
use crate::truncate::{ModuleReport, NewAdapterReport};

/// Names that are listed on one line.
const NAMES_SHOWN: usize = 4;

/// An extraction as text; `verbose` lists every module and every tensor stored whole.
pub fn extract(report: &ExtractReport, verbose: bool) -> String {
    written(|text| {
        let floor = report.at_rounding_floor;
        let all = report.made.modules.len();
        let mut verdict = format!("extracted: {}", outcome(&report.made, "the change"));
        if floor > 0 && floor == all {
            verdict += "; what is missing is the rounding of TUNED";
        }
        head(text, &verdict, &report.out, of_dialect(report.to).as_str(), report.dry_run)?;
        put(text, "base", &shown(&report.base))?;
        put(text, "tuned", &shown(&report.tuned))?;
        put(text, "tensors", &counts(&[(report.unchanged, "unchanged"), (report.skipped.len(), "skipped")]))?;
        if !report.skipped.is_empty() {
            put(text, "skipped", &listed(report.skipped.iter().cloned(), verbose))?;
        }
        let share = 100.0 * report.made.bytes as f64 / (report.tuned_bytes as f64).max(1.0);
        made(text, &report.made, &format!(", {share:.2} % of {}", size(report.tuned_bytes)), verbose)?;
        end(text, &report.made, report.seconds, report.peak_resident_bytes, verbose)
    })
}

/// A stack or a difference of adapters as text; `verbose` lists every module.
pub fn sum(report: &SumReport, verbose: bool) -> String {
    written(|text| {
        let verdict = match report.made.averaged {
            Some(tensors) => format!("averaged: {tensors} tensors, element by element"),
            None => format!("stacked: {}", outcome(&report.made, "the sum")),
        };
        head(text, &verdict, &report.out, of_dialect(report.to).as_str(), report.dry_run)?;
        report.adapters.iter().try_for_each(|adapter| put(text, "adapter", &input(adapter)))?;
        put(text, "method", report.method)?;
        if report.left_out > 0 {
            put(text, "left out", &format!("{} tensors, by choice", report.left_out))?;
        }
        made(text, &report.made, "", verbose)?;
        end(text, &report.made, report.seconds, report.peak_resident_bytes, verbose)
    })
}

/// A resizing as text; `verbose` lists every module of a single adapter.
pub fn resize(report: &ResizeReport, verbose: bool) -> String {
    written(|text| match report.adapters.as_slice() {
        [AdapterResize { path, outcome: Outcome::Resized(resized), out }] if *out == report.out => {
            let verdict = format!("resized: {}", outcome(&resized.made, "the change"));
            head(text, &verdict, &report.out, of_dialect(report.to).as_str(), report.dry_run)?;
            put(text, "adapter", &shown(path))?;
            made(text, &resized.made, "", verbose)?;
            end(text, &resized.made, report.seconds, report.peak_resident_bytes, verbose)
        }
        several => {
            let count = |which: fn(&Outcome) -> bool| several.iter().filter(|one| which(&one.outcome)).count();
            let parts = [
                (count(|outcome| matches!(outcome, Outcome::Resized(_))), "adapters"),
                (count(|outcome| matches!(outcome, Outcome::Done)), "done before"),
                (report.failed, "FAILED"),
            ];
            let made = several.iter().filter_map(|one| match &one.outcome {
                Outcome::Resized(resized) => Some(resized.made.kept_energy),
                _ => None,
            });
            let least = made
                .reduce(f64::min)
                .map_or(String::new(), |least| format!("; {} of each change is kept, or more", kept(least)));
            let verdict = format!("resized: {}{least}", counts(&parts));
            head(text, &verdict, &report.out, of_dialect(report.to).as_str(), report.dry_run)?;
            if !report.skipped.is_empty() {
                put(
                    text,
                    "skipped",
                    &format!("no adapters: {}", listed(report.skipped.iter().map(|path| shown(path)), verbose)),
                )?;
            }
            super::lines::time(text, report.seconds, None, report.peak_resident_bytes)?;
            several.iter().try_for_each(|adapter| problem(text, adapter))?;
            let header = ["adapter", "rank", "kept", "error ≤", "before", "after"];
            indented(text, &table(&header, several.iter().map(|adapter| row(adapter, &report.out))))
        }
    })
}

fn written(write: impl FnOnce(&mut String) -> Result) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text);
    text
}

/// What came of it, in one sentence.
fn outcome(made: &NewAdapterReport, whole: &str) -> String {
    if are_bottlenecks(made) {
        return of_units(made);
    }
    let rank = span(made.ranks.keys().copied());
    let rank = if rank.is_empty() { String::new() } else { format!("rank {rank} ") };
    if made.modules.is_empty() {
        return "tensors stored whole alone".to_owned();
    }
    if made.exact {
        return format!("{rank}holds {whole} exactly");
    }
    format!("{rank}keeps {} of {whole} (error {} at most)", kept(made.kept_energy), percent(made.relative_error))
}

/// Whether the modules are bottlenecks, which have units and no rank.
fn are_bottlenecks(made: &NewAdapterReport) -> bool {
    !made.modules.is_empty() && made.modules.iter().all(|module| module.kind == "bottleneck")
}

/// What came of bottlenecks.
fn of_units(made: &NewAdapterReport) -> String {
    let units = span(made.ranks.keys().copied());
    if made.kept_energy < 1.0 {
        let share = kept(made.kept_energy);
        return format!("{units} units a place, the largest: they have {share} of the size of all, by their weights");
    }
    let how = if made.exact { "exactly" } else { "every number rounded once" };
    format!("{units} units a place give the sum of the outputs, {how}")
}

/// The new adapter; `share` ends the line that tells its size.
fn made(text: &mut String, made: &NewAdapterReport, share: &str, verbose: bool) -> Result {
    if made.averaged.is_some() {
        let before = made.bytes_before.map_or(String::new(), |bytes| format!(" from {}", size(bytes)));
        return put(text, "size", &format!("{}{before}", size(made.bytes)));
    }
    put(text, "modules", &modules(made))?;
    if !made.vanished.is_empty() {
        put(text, "nothing", &format!("left of {}", listed(made.vanished.iter().cloned(), verbose)))?;
    }
    if !made.whole.is_empty() {
        let bytes = made.whole.iter().map(|whole| whole.bytes).sum();
        let names = made.whole.iter().map(|whole| format!("{}.{}", whole.module, whole.tensor));
        put(text, "whole", &format!("{} tensors, {}: {}", made.whole.len(), size(bytes), listed(names, verbose)))?;
    }
    if !made.modules.is_empty() && !are_bottlenecks(made) {
        match made.exact {
            true => change(text, made.norm, "exact", None)?,
            false => change(text, made.norm, &format!("{} kept", kept(made.kept_energy)), Some(made.relative_error))?,
        }
    }
    if let Some(budget) = &made.budget {
        put(text, "budget", &format!("{} of {} spent on factors", budget.cost, budget.budget))?;
    }
    let before = made.bytes_before.map_or(String::new(), |bytes| format!(" from {}", size(bytes)));
    let parameters = made.parameters_before.map_or(String::new(), |count| format!(" from {count}"));
    let which = if are_bottlenecks(made) { "bottlenecks" } else { "pairs" };
    let pairs = format!("{} parameters in {which}{parameters}", made.parameters);
    put(text, "size", &format!("{}{before}, {pairs}{share}", size(made.bytes)))
}

/// Time, notes, and with `verbose` every module.
fn end(text: &mut String, made: &NewAdapterReport, seconds: f64, peak: Option<u64>, verbose: bool) -> Result {
    super::lines::time(text, seconds, None, peak)?;
    notes(text, &made.notes)?;
    let mut worst: Vec<&ModuleReport> = made.modules.iter().filter(|_| verbose).collect();
    worst.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error));
    if worst.is_empty() {
        return Ok(());
    }
    let rows = worst.iter().map(|module| {
        vec![
            module.module.clone(),
            ranks(module),
            format!("{:.3e}", module.norm),
            kept(module.kept_energy),
            percent(module.relative_error),
            if module.at_rounding_floor == Some(true) { "rounding".into() } else { String::new() },
        ]
    });
    indented(text, &table(&["module", "rank", "‖ΔW‖", "kept", "error ≤", ""], rows))
}

/// How many modules, their ranks and dtypes.
fn modules(made: &NewAdapterReport) -> String {
    let dtypes: BTreeSet<&str> = made.modules.iter().map(|module| module.dtype.as_str()).collect();
    let dtypes = dtypes.into_iter().collect::<Vec<_>>().join("/");
    match made.modules.len() {
        0 => "none".into(),
        count if are_bottlenecks(made) => format!("{count} bottlenecks, units {}, {dtypes}", rank_change(made)),
        count => format!("{count}, rank {}, {dtypes}", rank_change(made)),
    }
}

/// Ranks before, where there were others, and after.
fn rank_change(made: &NewAdapterReport) -> String {
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
fn row(adapter: &AdapterResize, out: &Path) -> Vec<String> {
    let name = shown(adapter.out.strip_prefix(out).unwrap_or(&adapter.out));
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
        rank_change(made),
        kept(made.kept_energy),
        percent(made.relative_error),
        made.bytes_before.map_or_else(String::new, size),
        size(made.bytes),
    ]
}

fn problem(text: &mut String, adapter: &AdapterResize) -> Result {
    let Outcome::Failed { problem, hint } = &adapter.outcome else { return Ok(()) };
    put(text, "FAILED", &line(problem))?;
    hint.iter().try_for_each(|hint| put(text, "hint", &line(hint)))
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
        assert!(!sum(&report, false).contains("4+8"), "modules are listed on request");
        let text = sum(&report, true);
        for part in [
            "dry run, nothing was written: stacked: rank 6 keeps 87.5 % of the sum",
            "  out      out",
            "  adapter  a × -0.5, 2 modules, rank 4",
            "  modules  2, rank 12 → 6, BF16",
            "87.5 % kept, error 35 % at most",
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
