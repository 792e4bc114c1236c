//! The report of a merge.

use std::fmt::Write;

use super::{shown, size, table};
use crate::error::shown::line;
use crate::ops::merge::{AdapterSummary, MergeReport, TensorSurvival};
use crate::placement::Outcome;

/// Worst tensors that are shown without `-v`.
const WORST_SHOWN: usize = 3;

/// A merge as text; `verbose` lists every changed tensor.
pub fn merge(report: &MergeReport, verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text, report, verbose);
    text
}

fn write(text: &mut String, report: &MergeReport, verbose: bool) -> std::fmt::Result {
    let would = if report.dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(text, "{}{would}", shown(&report.out))?;
    writeln!(text, "  base     {}", shown(&report.base))?;
    for adapter in &report.adapters {
        writeln!(text, "  adapter  {}", describe(adapter))?;
    }
    let counts = &report.tensors;
    let parts = [
        (counts.changed, "changed"),
        (counts.replaced, "replaced"),
        (counts.added, "added"),
        (counts.cast, "cast"),
        (counts.copied, "copied"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    writeln!(text, "  tensors  {}", parts.join(", "))?;
    for change in &report.config_changes {
        writeln!(text, "  config   {}", line(change))?;
    }
    writeln!(text, "  output   {} in {} weight file(s), {} jobs", size(report.bytes), report.files, report.jobs)?;
    if let Some(survival) = &report.survival {
        write_survival(text, survival)?;
        write_worst(text, &report.worst, if verbose { report.worst.len() } else { WORST_SHOWN })?;
        let memory = report.peak_resident_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", size(bytes)));
        writeln!(text, "  time     {:.2} s, {:.2} GB/s{memory}", report.seconds, report.gb_per_second)?;
    }
    for note in &report.notes {
        writeln!(text, "  note     {}", line(note))?;
    }
    if let Some(warning) = below_rounding(report) {
        writeln!(text, "  WARNING  {}", line(&warning))?;
    }
    if report.changes_nothing {
        writeln!(text, "  WARNING  the merge changes nothing: the result equals the base")?;
    }
    if verbose {
        let rows = report.changed.iter().map(|tensor| {
            let what = if tensor.replaced { "replaced" } else { "" };
            let norm = tensor.delta_norm.map_or(String::new(), |norm| format!("{norm:.3e}"));
            vec![tensor.name.clone(), tensor.deltas.to_string(), norm, what.into()]
        });
        write!(text, "\n{}", table(&["tensor", "deltas", "‖ΔW‖", ""], rows))?;
    }
    Ok(())
}

/// What has to be seen of a merge, whether its report is read or not.
pub fn warnings(report: &MergeReport) -> Vec<String> {
    let nothing = report.changes_nothing.then(|| "the merge changes nothing: the result equals the base".to_owned());
    below_rounding(report).into_iter().chain(nothing).collect()
}

/// The warning that rounding did more than the adapters, where it did.
pub fn below_rounding(report: &MergeReport) -> Option<String> {
    let worst = report.worst.first().filter(|_| report.drowned > 0 && !report.changes_nothing)?;
    Some(format!(
        "the change is below rounding in {} tensor(s), where rounding moved the weights as much or more ({}: {:.0} %): more bits keep more of it",
        report.drowned,
        worst.tensor,
        100.0 * worst.relative_error
    ))
}

pub(super) fn describe(adapter: &AdapterSummary) -> String {
    let ranks: Vec<String> = adapter.ranks.keys().map(u64::to_string).collect();
    let mut parts = vec![format!("{} × {}, {}", shown(&adapter.path), adapter.weight, line(&adapter.method))];
    if adapter.modules > 0 {
        parts.push(format!("{} modules, rank {}", adapter.modules, ranks.join("/")));
    }
    match adapter.scales {
        Some((low, high)) if low == high => parts.push(format!("scale {low:.4}")),
        Some((low, high)) => parts.push(format!("scales {low:.4} … {high:.4}")),
        None => {}
    }
    if let Some(from) = &adapter.alpha_from {
        parts.push(format!("alpha from {from}"));
    }
    for (outcome, count) in &adapter.tensors {
        let what = match outcome {
            Outcome::Merged => continue,
            Outcome::SameAsBase => "equal the base's",
            Outcome::LeftOut => "left out by choice",
            Outcome::AllowedUnused => "unused, as allowed",
        };
        parts.push(format!("{count} tensors {what}"));
    }
    parts.join(", ")
}

fn write_survival(text: &mut String, survival: &TensorSurvival) -> std::fmt::Result {
    if survival.delta_norm == 0.0 {
        return Ok(());
    }
    writeln!(
        text,
        "  delta    norm {:.4e}, {:.2} % retained after rounding, error {:.4e} ({:.2} %), {:.2} % of its elements did not move",
        survival.delta_norm,
        100.0 * survival.retained,
        survival.error_norm,
        100.0 * survival.relative_error,
        100.0 * survival.lost_share
    )
}

fn write_worst(text: &mut String, worst: &[TensorSurvival], shown: usize) -> std::fmt::Result {
    if worst.is_empty() || shown == 0 {
        return Ok(());
    }
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let rows = worst.iter().take(shown).map(|tensor| {
        vec![
            tensor.tensor.clone(),
            format!("{:.3e}", tensor.delta_norm),
            percent(tensor.retained),
            percent(tensor.relative_error),
            percent(tensor.lost_share),
        ]
    });
    for line in table(&["most lost to rounding", "‖ΔW‖", "retained", "error", "unmoved"], rows).lines() {
        writeln!(text, "  {line}")?;
    }
    Ok(())
}
