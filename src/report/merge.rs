//! The report of a merge: what became of the change, and what to do about it.

use std::fmt::{Result, Write};

use serde_json::Value;

use super::inspect::numbers::percent;
use super::lines::{bytes, change, counts, head, indented, kept, notes, put, time};
use super::{shown, table};
use crate::error::shown::line;
use crate::ops::merge::{AdapterSummary, MergeReport, TensorSurvival};
use crate::placement::Outcome;

/// Share of the change below which a wider dtype is recommended.
const MUCH: f64 = 0.98;

/// Tensors with the largest errors that `-v` lists.
const WORST_SHOWN: usize = 10;

/// Types of numbers that are rounded one by one; others in blocks.
const FLOATS: [&str; 6] = ["f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"];

/// A merge as text; `verbose` lists every changed tensor.
pub fn merge(report: &MergeReport, verbose: bool) -> String {
    written(&verdict(report), report, &[], verbose)
}

/// The same under another verdict, with more notes.
pub(super) fn written(verdict: &str, report: &MergeReport, more: &[String], verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut text, verdict, report, more, verbose);
    text
}

/// What came of it, in one sentence.
fn verdict(report: &MergeReport) -> String {
    if report.dry_run {
        let counts = &report.tensors;
        return format!("{} of {} tensors would change", counts.changed + counts.replaced + counts.added, all(report));
    }
    if report.changes_nothing {
        return "merged, but nothing changed: the result equals the base".to_owned();
    }
    let part = report.part.as_ref().map(|part| {
        format!("part {part} is done; `lorakit finish {}` puts the parts together when all are", shown(&report.out))
    });
    part.unwrap_or_else(|| format!("merged: {}", outcome(report)))
}

/// What rounding left of the change.
pub(super) fn outcome(report: &MergeReport) -> String {
    let stored = report.written_as.join("/");
    let Some(survival) = report.survival.as_ref().filter(|survival| survival.delta_norm > 0.0) else {
        return "what the adapters hold whole is in place".to_owned();
    };
    let share = kept(survival.retained);
    let is_float = report.written_as.iter().all(|stored| FLOATS.contains(&stored.as_str()));
    let error = percent(survival.relative_error);
    if survival.relative_error == 0.0 {
        return "the change is in the weights exactly".to_owned();
    }
    if report.options["keep_format"] == true {
        let moved = survival.codes_moved.map_or(String::new(), |moved| format!(" ({} of them moved)", percent(moved)));
        return format!(
            "codes on the base's own scales keep {share} of the change{moved}; a plain result, without `--keep-format`, keeps more"
        );
    }
    if report.drowned > 0 {
        let wider = if is_float { "`--dtype f32` keeps all of it" } else { "`--quant q8_0` is more precise" };
        let times = survival.relative_error;
        return format!(
            "usable, but {stored} is coarse for this adapter: {share} of the change is there on average, and rounding moved the weights \
             {times:.1} times as much; {wider}"
        );
    }
    match is_float {
        true if survival.retained < MUCH => {
            format!("rounding to {stored} keeps {share} of the change; `--dtype f32` keeps all of it")
        }
        true => format!("rounding to {stored} keeps {share} of the change, as any {stored} merge does"),
        false => format!("{stored} keeps {share} of the change, with an error of {error} of its size"),
    }
}

fn all(report: &MergeReport) -> usize {
    let counts = &report.tensors;
    counts.changed + counts.replaced + counts.added + counts.cast + counts.copied
}

fn write(text: &mut String, verdict: &str, report: &MergeReport, more: &[String], verbose: bool) -> Result {
    head(text, verdict, &report.out, "", report.dry_run)?;
    put(text, "base", &shown(&report.base))?;
    report.adapters.iter().try_for_each(|adapter| put(text, "adapter", &describe(adapter)))?;
    let found = &report.tensors;
    let tensors = [
        (found.changed, "changed"),
        (found.replaced, "replaced"),
        (found.added, "added"),
        (found.cast, "cast"),
        (found.copied, "copied"),
    ];
    put(text, "tensors", &counts(&tensors))?;
    if let Some(survival) = report.survival.as_ref().filter(|survival| survival.delta_norm > 0.0) {
        change(text, survival.delta_norm, &format!("{} kept after rounding", kept(survival.retained)), None)?;
    }
    put(text, "options", &options(report))?;
    report.config_changes.iter().try_for_each(|change| put(text, "config", &line(change)))?;
    put(text, "size", &bytes(report.bytes, report.files))?;
    if report.survival.is_some() {
        time(text, report.seconds, Some(report.gb_per_second), report.peak_resident_bytes)?;
    }
    notes(text, &report.notes)?;
    notes(text, more)?;
    if verbose {
        details(text, report)?;
    }
    Ok(())
}

/// Options that change bytes, as the record has them.
fn options(report: &MergeReport) -> String {
    let given = report.options.as_object().into_iter().flatten();
    let one = |(key, value): (&String, &Value)| match value {
        Value::Bool(true) => key.replace('_', "-"),
        Value::String(text) => format!("{} {text}", key.replace('_', "-")),
        Value::Array(several) => {
            let texts: Vec<String> =
                several.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
            format!("{} {}", key.replace('_', "-"), texts.join(" "))
        }
        other => format!("{} {other}", key.replacen('_', "-", 1)),
    };
    line(&given.map(one).collect::<Vec<_>>().join(", "))
}

/// What has to be seen of a merge, whether its report is read or not.
pub fn warnings(report: &MergeReport) -> Vec<String> {
    let nothing = report.changes_nothing.then(|| "the merge changes nothing: the result equals the base".to_owned());
    below_rounding(report).into_iter().chain(nothing).collect()
}

/// The warning that rounding did more than the adapters, where it did.
fn below_rounding(report: &MergeReport) -> Option<String> {
    let worst = report.worst.first().filter(|_| report.drowned > 0 && !report.changes_nothing)?;
    Some(format!(
        "in {} {} rounding moved the weights as much as the change or more (most in `{}`: {:.0} % of it): more bits keep more of it \
         (`--quant` or `--dtype`)",
        report.drowned,
        if report.drowned == 1 { "tensor" } else { "tensors" },
        worst.tensor,
        100.0 * worst.relative_error
    ))
}

pub(super) fn describe(adapter: &AdapterSummary) -> String {
    let ranks: Vec<String> = adapter.ranks.keys().map(u64::to_string).collect();
    let mut parts = vec![format!("{} × {}, {}", shown(&adapter.path), adapter.weight, method(&adapter.method))];
    if adapter.modules > 0 {
        parts.push(format!("{} modules, rank {}", adapter.modules, ranks.join("/")));
    }
    let short = super::inspect::numbers::rounded;
    match adapter.scales {
        Some((low, high)) if low == high => parts.push(format!("scale {}", short(low))),
        Some((low, high)) => parts.push(format!("scales {} … {}", short(low), short(high))),
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

/// A method as people write it; PEFT's config has it in capitals.
fn method(written: &str) -> String {
    if written == "LORA" { "LoRA".to_owned() } else { line(written) }
}

/// What rounding did to each tensor, and all that changed.
fn details(text: &mut String, report: &MergeReport) -> Result {
    if let Some(survival) = report.survival.as_ref().filter(|survival| survival.delta_norm > 0.0) {
        let (error, unmoved) = (percent(survival.relative_error), percent(survival.lost_share));
        put(text, "rounding", &format!("error {error} of ‖ΔW‖, {unmoved} of the elements of ΔW did not move"))?;
        worst(text, &report.worst)?;
    }
    put(text, "jobs", &report.jobs.to_string())?;
    let rows = report.changed.iter().map(|tensor| {
        let what = if tensor.replaced { "replaced" } else { "" };
        let norm = tensor.delta_norm.map_or(String::new(), |norm| format!("{norm:.3e}"));
        vec![tensor.name.clone(), tensor.deltas.to_string(), norm, what.into()]
    });
    write!(text, "\n{}", table(&["tensor", "deltas", "‖ΔW‖", ""], rows))
}

fn worst(text: &mut String, worst: &[TensorSurvival]) -> Result {
    if worst.is_empty() {
        return Ok(());
    }
    let rows = worst.iter().take(WORST_SHOWN).map(|tensor| {
        vec![
            tensor.tensor.clone(),
            format!("{:.3e}", tensor.delta_norm),
            kept(tensor.retained),
            percent(tensor.relative_error),
            tensor
                .codes_moved
                .map_or_else(|| percent(tensor.lost_share), |moved| format!("{} of codes moved", percent(moved))),
        ]
    });
    indented(text, &table(&["largest errors", "‖ΔW‖", "kept", "error", "unmoved"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survival(retained: f64, relative_error: f64) -> Option<TensorSurvival> {
        Some(TensorSurvival {
            tensor: "total".into(),
            delta_norm: 1.0,
            moved_norm: 1.0,
            retained,
            error_norm: relative_error,
            relative_error,
            lost_share: 0.1,
            max_delta: 0.1,
            codes_moved: None,
        })
    }

    #[test]
    fn the_verdict_says_what_to_do_where_there_is_something() {
        let said = |stored: &str, retained, error, drowned| {
            let report = MergeReport {
                written_as: vec![stored.into()],
                survival: survival(retained, error),
                drowned,
                ..MergeReport::default()
            };
            verdict(&report)
        };
        assert_eq!(
            said("bf16", 0.9938, 0.2438, 0),
            "merged: rounding to bf16 keeps 99.38 % of the change, as any bf16 merge does"
        );
        assert_eq!(said("f32", 1.0, 0.0, 0), "merged: the change is in the weights exactly");
        assert!(said("bf16", 0.9, 0.5, 0).ends_with("`--dtype f32` keeps all of it"));
        let coarse = said("q4_1", 0.99, 5.9, 210);
        assert!(
            coarse.contains("usable, but q4_1 is coarse") && coarse.ends_with("`--quant q8_0` is more precise"),
            "{coarse}"
        );
    }
}
