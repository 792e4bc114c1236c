//! The report of a stack.

use std::fmt::Write;

use super::{of_dialect, shown, size, table};
use crate::error::shown::line;
use crate::ops::stack::{Input, StackReport, StackedModule};

/// Modules that are shown without `-v`, the worst first.
const WORST_SHOWN: usize = 5;

/// A stack as text; `verbose` lists every module.
pub fn stack(report: &StackReport, verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text, report, verbose);
    text
}

fn write(text: &mut String, report: &StackReport, verbose: bool) -> std::fmt::Result {
    let would = if report.dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(text, "{}{}{would}", shown(&report.out), of_dialect(report.to))?;
    for adapter in &report.adapters {
        writeln!(text, "  adapter  {}", describe(adapter))?;
    }
    writeln!(text, "  method   {}", report.method)?;
    writeln!(text, "  modules  {}", modules(report))?;
    if report.whole > 0 {
        writeln!(text, "  whole    {} tensors", report.whole)?;
    }
    if report.left_out > 0 {
        writeln!(text, "  left out {} tensors, by choice", report.left_out)?;
    }
    if !report.modules.is_empty() {
        writeln!(text, "  ΔW       norm {:.4e}, {}", report.norm, error(report))?;
    }
    if !report.vanished.is_empty() {
        writeln!(text, "  zero     {} modules whose changes cancel are not in the result", report.vanished.len())?;
    }
    writeln!(
        text,
        "  output   {} ({} before), {} parameters in low-rank factors",
        size(report.bytes),
        size(report.bytes_before),
        report.parameters
    )?;
    for note in &report.notes {
        writeln!(text, "  note     {}", line(note))?;
    }
    let memory = report.peak_resident_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
    writeln!(text, "  time     {:.2} s{memory}", report.seconds)?;
    let mut worst: Vec<&StackedModule> = report.modules.iter().collect();
    worst.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error));
    let shown = if verbose {
        worst.len()
    } else if report.exact {
        0
    } else {
        WORST_SHOWN
    };
    if shown == 0 || worst.is_empty() {
        return Ok(());
    }
    let rows = worst.into_iter().take(shown).map(|module| {
        let before: Vec<String> = module.ranks_before.iter().map(usize::to_string).collect();
        vec![
            module.module.clone(),
            before.join("+"),
            module.rank.to_string(),
            format!("{:.3e}", module.norm),
            format!("{:.3} %", 100.0 * module.kept_energy),
            format!("{:.1e}", module.relative_error),
        ]
    });
    write!(text, "\n{}", table(&["module", "ranks", "rank", "‖ΔW‖", "energy", "error ≤"], rows))
}

fn describe(adapter: &Input) -> String {
    let ranks: Vec<String> = adapter.ranks.keys().map(u64::to_string).collect();
    let path = shown(&adapter.path);
    match adapter.modules {
        0 => format!("{path} × {}", adapter.weight),
        count => format!("{path} × {}, {count} modules, rank {}", adapter.weight, ranks.join("/")),
    }
}

/// How many modules, their ranks and dtypes.
fn modules(report: &StackReport) -> String {
    let mut ranks: Vec<usize> = report.modules.iter().map(|module| module.rank).collect();
    ranks.sort_unstable();
    let mut dtypes: Vec<&str> = report.modules.iter().map(|module| module.dtype.as_str()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    match (ranks.first(), ranks.last()) {
        (Some(low), Some(high)) if low == high => format!("{}, rank {low}, {}", ranks.len(), dtypes.join("/")),
        (Some(low), Some(high)) => format!("{}, ranks {low} … {high}, {}", ranks.len(), dtypes.join("/")),
        _ => "none".into(),
    }
}

fn error(report: &StackReport) -> String {
    if report.exact {
        return "exact".into();
    }
    let energy = 100.0 * report.kept_energy;
    format!("{energy:.3} % of its energy kept, error at most {:.2e} of it", report.relative_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn module(name: &str, error: f64) -> StackedModule {
        StackedModule {
            module: name.into(),
            ranks_before: vec![4, 8],
            rank: 6,
            dtype: "BF16".into(),
            exact: false,
            norm: 2.0,
            kept_energy: 1.0 - error * error,
            relative_error: error,
            optimum_at_least: None,
            singular_values: Vec::new(),
        }
    }

    #[test]
    fn the_worst_module_comes_first() {
        let report = StackReport {
            out: "out".into(),
            to: "peft",
            dry_run: true,
            method: "concat".into(),
            adapters: vec![Input {
                path: "a".into(),
                weight: -0.5,
                modules: 2,
                ranks: BTreeMap::from([(4, 2)]),
                alpha_from: None,
            }],
            modules: vec![module("good", 0.01), module("bad", 0.5)],
            vanished: vec!["gone".into()],
            whole: 1,
            left_out: 3,
            exact: false,
            norm: 2.8,
            kept_energy: 0.875,
            relative_error: 0.354,
            parameters: 100,
            bytes_before: 2000,
            bytes: 1000,
            notes: vec!["worth knowing".into()],
            seconds: 0.0,
            peak_resident_bytes: None,
        };
        let text = stack(&report, false);
        for part in [
            "out (dry run: nothing was written)",
            "  adapter  a × -0.5, 2 modules, rank 4",
            "  modules  2, rank 6, BF16",
            "87.500 % of its energy kept, error at most 3.54e-1 of it",
            "1 modules whose changes cancel",
            "1.00 kB (2.00 kB before), 100 parameters",
            "note     worth knowing",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(text.find("bad") < text.find("good"), "{text}");
    }
}
