//! The program, killed in front of every system call that changes a file, or told at each that the disk is full, has failed or is another
//! one; and its inputs replaced and overwritten at each. Whatever happens: under the final name stands nothing, the old output or the
//! complete new one, no other file is touched, and the next run leaves the output and nothing else.
//!
//! The program runs under ptrace, in one thread. Calls are counted, not timed, so the same number is the same place.
//!
//! `cargo test` takes a few of the places; all of them:
//!
//! ```text
//! cargo test --test faults -- --ignored --nocapture
//! ```

#![allow(unsafe_code, reason = "ptrace has no safe interface")]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

#[path = "faults/bench.rs"]
mod bench;
#[path = "faults/tracer.rs"]
mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bench::{Files, Line, Template, lines, snapshot};
use tracer::{End, Fault, Run, traced};

/// What can be injected at every call.
const FAULTS: [Fault; 5] =
    [Fault::Kill, Fault::Fail(libc::ENOSPC), Fault::Fail(libc::EIO), Fault::Fail(libc::EXDEV), Fault::KillBehind];

/// How many runs there were and how they ended.
#[derive(Debug, Default)]
struct Counts {
    runs: usize,
    killed: usize,
    failed: usize,
    done: usize,
    /// Runs that left something of their own beside the output.
    left: usize,
    wrong: Vec<String>,
}

impl Counts {
    fn add(&mut self, run: &Run, fault: Fault<'_>) -> Result<(), String> {
        match run.end {
            End::Signal(libc::SIGKILL) if fault.kills() => self.killed += 1,
            End::Code(1) if !fault.kills() => self.failed += 1,
            End::Code(0) if !fault.kills() => self.done += 1,
            end => return Err(format!("{end}: {}", run.stderr)),
        }
        check(!run.stderr.contains("panicked"), || run.stderr.clone())
    }

    /// Says how many there were, and fails if one was wrong.
    fn end(&self) {
        let Self { runs, killed, failed, done, left, wrong } = self;
        eprintln!("{runs} runs: {killed} killed, {failed} failed, {done} done; {left} left something for the next");
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// Whether ptrace works here; said loudly if not.
fn can_trace() -> bool {
    let tried = std::panic::catch_unwind(|| traced(Path::new("."), &["--version"], None));
    if tried.is_err() {
        eprintln!("SKIPPED: this system does not allow ptrace, so no fault was injected");
    }
    tried.is_ok()
}

fn words<'a>(line: &'a Line, more: &[&'a str]) -> Vec<&'a str> {
    line.words.iter().copied().chain(more.iter().copied()).collect()
}

/// Runs `line` once for every `step`-th call and each of `faults` (one after the other where `step` is not 1).
fn inject(template: &Template, line: &Line, step: usize, faults: &[Fault], counts: &mut Counts) {
    for force in [false, true] {
        if force && !line.can_force {
            continue;
        }
        let start = template.start(line, force);
        let more: &[&str] = if force { &["--force"] } else { &[] };
        let clean = start.copy();
        let run = traced(clean.path(), &words(line, more), None);
        assert!(matches!(run.end, End::Code(0)), "{line}: {} {}", run.end, run.stderr);
        let after = snapshot(clean.path());
        let before = snapshot(start.path());
        assert_ne!(before, after, "{line}: the run does nothing");
        for at in (0..run.calls.len()).filter(|at| at % step == 0) {
            let chosen: Vec<Fault> = if step == 1 { faults.to_vec() } else { vec![faults[at / step % faults.len()]] };
            for fault in chosen {
                let place = format!("{line} (force: {force}), {fault:?} at call {at}: {}", run.calls[at]);
                let case = start.copy();
                let broken = traced(case.path(), &words(line, more), Some((at, fault)));
                counts.runs += 1;
                let wrong = counts.add(&broken, fault).and_then(|()| {
                    let now = snapshot(case.path());
                    counts.left += usize::from(now.keys().any(|path| is_ours(path)));
                    check_state(line, &before, &now, &after)?;
                    let done = matches!(broken.end, End::Code(0));
                    check(!done || visible(&now) == visible(&after), || "it says that all is done".into())?;
                    mend(line, &case, &after)
                });
                if let Err(wrong) = wrong {
                    counts.wrong.push(format!("{place}: {wrong}"));
                }
            }
        }
    }
}

fn check(right: bool, wrong: impl FnOnce() -> String) -> Result<(), String> {
    if right { Ok(()) } else { Err(wrong()) }
}

/// What was begun and not done is not put together; what is, is whole.
fn tempt(line: &Line, case: &Template) -> Result<(), String> {
    let tempted = case.copy();
    let run = traced(tempted.path(), &["finish", "out"], None);
    let is_whole = || snapshot(tempted.path()) == line.whole;
    check(matches!(run.end, End::Code(1)) || is_whole(), || "`finish` puts together what is not done".into())
}

/// Runs again without a fault, and looks whether the output and nothing else stands.
fn mend(line: &Line, case: &Template, after: &Files) -> Result<(), String> {
    if line.again_makes_output {
        tempt(line, case)?;
    }
    for again in &line.again {
        let run = traced(case.path(), again, None);
        // A `finish` that was killed when all was done has nothing to do.
        let is_done =
            || run.stderr.contains("no part of it was begun") && visible(&snapshot(case.path())) == visible(after);
        check(matches!(run.end, End::Code(0)) || is_done(), || format!("then {}: {}", run.end, run.stderr))?;
    }
    let now = snapshot(case.path());
    let wanted = if line.again_makes_output { &line.whole } else { after };
    check(now == *wanted, || format!("the next run leaves {:?}, wanted {:?}", names(&now), names(wanted)))
}

fn names(files: &Files) -> Vec<&PathBuf> {
    files.keys().collect()
}

/// Whether a path lies in a hidden place of lorakit.
fn is_ours(path: &Path) -> bool {
    path.iter().any(|name| name.to_string_lossy().contains(".lorakit-"))
}

fn visible(files: &Files) -> BTreeMap<&PathBuf, &Vec<u8>> {
    files.iter().filter(|(path, _)| !is_ours(path)).collect()
}

/// Every visible file is as it was before, or as it is after; of one directory all are the one or the other.
fn check_state(line: &Line, before: &Files, now: &Files, after: &Files) -> Result<(), String> {
    let (before, now, after) = (visible(before), visible(now), visible(after));
    if line.is_set {
        // One entry of a folder after the other, each of which is whole.
        let all = before.keys().chain(after.keys()).chain(now.keys());
        let units: BTreeSet<PathBuf> = all.map(|path| path.iter().take(2).collect()).collect();
        // The folder itself may be empty for a while.
        for unit in units.iter().filter(|unit| *unit != Path::new("out")) {
            let of = |files: &BTreeMap<&PathBuf, &Vec<u8>>| -> Vec<(PathBuf, Vec<u8>)> {
                let inside = files.iter().filter(|(path, _)| path.starts_with(unit));
                inside.map(|(path, bytes)| ((*path).clone(), (*bytes).clone())).collect()
            };
            let found = of(&now);
            check(found == of(&before) || found == of(&after), || format!("{unit:?} is torn"))?;
        }
        return Ok(());
    }
    let is_old = now == before;
    // Where a file system cannot exchange names there is an instant without the old output.
    let absent: BTreeMap<_, _> =
        before.iter().filter(|(path, _)| !path.starts_with("out")).map(|(p, b)| (*p, *b)).collect();
    let is_new = now == after;
    let file_by_file = line.single
        && now.iter().all(|(path, bytes)| before.get(path) == Some(bytes) || after.get(path) == Some(bytes));
    check(is_old || is_new || now == absent || file_by_file, || format!("neither old nor new: {:?}", now.keys()))
}

/// A run of a few places of every line, with one fault each.
#[test]
fn a_fault_anywhere_leaves_the_old_or_the_new() {
    if !can_trace() {
        return;
    }
    let template = Template::new();
    let mut counts = Counts::default();
    for (number, line) in lines(&template).iter().enumerate() {
        let mut rotated = FAULTS;
        rotated.rotate_left(number % FAULTS.len());
        inject(&template, line, 13, &rotated, &mut counts);
    }
    counts.end();
    assert!(counts.killed > 10 && counts.failed > 10, "{counts:?}");
}

/// All places of all lines, with every fault.
#[test]
#[ignore = "some thousand runs: cargo test --test faults -- --ignored --nocapture"]
fn every_fault_at_every_call_leaves_the_old_or_the_new() {
    if !can_trace() {
        return;
    }
    let template = Template::new();
    let mut counts = Counts::default();
    for line in &lines(&template) {
        inject(&template, line, 1, &FAULTS, &mut counts);
    }
    counts.end();
}

/// Inputs that change at a call: the result is what the inputs were, or there is none.
fn change_inputs(step: usize) -> Counts {
    let template = Template::new();
    let mut counts = Counts::default();
    for line in lines(&template).iter().filter(|line| !line.inputs.is_empty()) {
        let clean = template.start(line, false);
        let run = traced(clean.path(), &line.words, None);
        let after = snapshot(clean.path());
        for at in (0..run.calls.len()).filter(|at| at % step == 0) {
            for input in &line.inputs {
                for fault in [Fault::Overwrite(input), Fault::Replace(input), Fault::Remove(input)] {
                    let place = format!("{line}, {fault:?} at call {at}: {}", run.calls[at]);
                    let case = template.start(line, false);
                    let changed = traced(case.path(), &line.words, Some((at, fault)));
                    counts.runs += 1;
                    let is_output = |path: &Path| {
                        path.starts_with("out")
                            || path.starts_with("out.safetensors")
                            || path.starts_with("out.safetensors.lorakit.json")
                    };
                    let outputs = |files: &Files| -> Files {
                        visible(files)
                            .into_iter()
                            .filter(|(path, _)| is_output(path))
                            .map(|(path, bytes)| (path.clone(), bytes.clone()))
                            .collect()
                    };
                    let made = outputs(&snapshot(case.path()));
                    let whole = made == outputs(&after);
                    let wrong = counts.add(&changed, fault).and_then(|()| {
                        let done = matches!(changed.end, End::Code(0));
                        check(whole || made.is_empty() && !done, || format!("a mixture, and {}", changed.end))
                    });
                    if let Err(wrong) = wrong {
                        counts.wrong.push(format!("{place}: {wrong}"));
                    }
                }
            }
        }
    }
    counts
}

#[test]
fn an_input_that_changes_during_the_run_gives_no_mixture() {
    if can_trace() {
        change_inputs(17).end();
    }
}

#[test]
#[ignore = "some thousand runs: cargo test --test faults -- --ignored --nocapture"]
fn an_input_that_changes_at_any_call_gives_no_mixture() {
    if can_trace() {
        change_inputs(1).end();
    }
}
