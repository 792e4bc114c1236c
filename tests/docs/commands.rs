//! Every command of README, guides and reference, run as a reader would run it.

use std::path::Path;
use std::process::Command;

use regex::Regex;

use crate::page::{Block, Step, steps};
use crate::{hold, none, pages_of, root, user_pages};

/// A block that begins so is for other machines: the page says why it is not run.
const NOT_RUN: &str = "# not run here";

/// A line of the page that stands for any number of lines.
const CUT: &str = "…";

/// README's second command runs these tests.
const THESE: &str = "cargo test";

/// What README's first command is in a folder without the sources.
const FROM_SOURCE: (&str, &str) = ("cargo run --release -- ", "lorakit ");

#[test]
fn every_command_prints_what_the_page_shows() {
    let pages = user_pages().into_iter().chain(pages_of("docs/reference"));
    let problems: Vec<String> = pages.filter_map(|page| run_page(&page).err()).collect();
    none(&problems);
}

#[test]
fn every_guide_shows_an_output() {
    for page in user_pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let shown = steps(&text).iter().any(|step| matches!(step, Step::Block(block) if block.language == "console"));
        assert!(shown, "{} has no `console` block", page.display());
    }
}

#[test]
fn what_differs_from_run_to_run_is_masked() {
    assert_eq!(masked("merged 7 of 21 tensors in 0.31 s"), masked("merged 7 of 21 tensors in 12 ms"));
    assert_eq!(masked("0.2 s, 1.31 GB/s, peak memory 37 MB"), masked("1.2 s, 310.0 MB/s, peak memory 3.8 MB"));
    assert_eq!(masked("error 1.1e-6 at most"), masked("error 9.8e-7 at most"));
    assert_ne!(masked("error 1.1e-3 at most"), masked("error 1.2e-3 at most"));
    assert_ne!(masked("99.38 % kept"), masked("99.37 % kept"));
    assert_ne!(masked("269 MB"), masked("270 MB"));
}

#[test]
fn a_cut_output_keeps_its_shape() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (lines("a\n…\nz"), lines("A\nb\nc\nZ"));
    assert_eq!(shown(&old, &new), lines("A\n…\nZ"));
    assert_eq!(shown(&lines("a\n…\nc\nd"), &lines("a\nd")), lines("a\nd"));
    assert_eq!(shown(&lines("done in 3 s"), &lines("done in 4 s")), lines("done in 3 s"));
}

/// Runs a page in a folder of its own.
fn run_page(page: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(page).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("fixtures"), folder.path().join("fixtures")).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut blocks = Vec::new();
    for step in steps(&text) {
        match step {
            Step::Prepare(commands) => {
                for command in commands {
                    let (printed, is_success) = run(folder.path(), &command);
                    assert!(is_success, "{}: `{command}`: {printed}", page.display());
                }
            }
            Step::Block(block) if block.lines.first().is_some_and(|line| line.starts_with(NOT_RUN)) => {}
            Step::Block(block) if block.language == "sh" => {
                for (command, _) in commands(&block.lines, "") {
                    let (printed, is_success) = run(folder.path(), &command);
                    if !is_success {
                        return Err(format!("{}:{}: `{command}`: {printed}", page.display(), block.first + 1));
                    }
                }
            }
            Step::Block(block) if block.language == "console" => {
                let today = replay(folder.path(), &block)?;
                blocks.push((block, today));
            }
            Step::Block(_) => {}
        }
    }
    // From the end, so that the places of the blocks before stay what they are.
    for (block, today) in blocks.into_iter().rev() {
        lines.splice(block.first..block.first + block.lines.len(), today);
    }
    hold(page, &text, &format!("{}\n", lines.join("\n")))
}

/// The lines of a block as they are today.
fn replay(folder: &Path, block: &Block) -> Result<Vec<String>, String> {
    let mut today: Vec<String> = Vec::new();
    for (command, old) in commands(&block.lines, "$ ") {
        if !today.is_empty() {
            today.push(String::new());
        }
        let (printed, is_success) = run(folder, &command);
        let fails = printed.lines().any(|line| line.starts_with("error: "));
        if is_success == fails {
            return Err(format!("`{command}` {} and prints\n{printed}", if is_success { "succeeds" } else { "fails" }));
        }
        let new: Vec<String> = printed.trim_end().lines().map(|line| line.trim_end().to_owned()).collect();
        let mut typed = command.lines();
        today.extend(typed.next().map(|line| format!("$ {line}")));
        today.extend(typed.map(str::to_owned));
        today.extend(shown(&old, &new));
    }
    Ok(today)
}

/// Commands of a block, each with the lines below it. Without a prompt every line is one; `\` at the end goes on.
fn commands(lines: &[String], prompt: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut goes_on = false;
    for line in lines {
        match (goes_on, line.strip_prefix(prompt)) {
            (true, _) => {
                if let Some((command, _)) = found.last_mut() {
                    command.push('\n');
                    command.push_str(line);
                }
            }
            (false, Some(command)) if prompt.is_empty() && command.trim().is_empty() => continue,
            (false, Some(command)) => found.push((command.to_owned(), Vec::new())),
            (false, None) => {
                if let Some((_, below)) = found.last_mut() {
                    below.push(line.clone());
                }
            }
        }
        goes_on = line.ends_with('\\') && (goes_on || line.starts_with(prompt));
    }
    for (_, below) in &mut found {
        while below.last().is_some_and(String::is_empty) {
            below.pop();
        }
    }
    found
}

/// What the page shows of `new`: its own lines if nothing but masked numbers differs, and no more than it showed before.
fn shown(old: &[String], new: &[String]) -> Vec<String> {
    let agree = |a: &[String], b: &[String]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| masked(a) == masked(b));
    let Some(cut) = old.iter().position(|line| line.trim() == CUT) else {
        return if agree(old, new) { old.to_vec() } else { new.to_vec() };
    };
    let (head, tail) = (&old[..cut], &old[cut + 1..]);
    if head.len() + tail.len() >= new.len() {
        return new.to_vec();
    }
    let (new_head, new_tail) = (&new[..head.len()], &new[new.len() - tail.len()..]);
    if agree(head, new_head) && agree(tail, new_tail) {
        return old.to_vec();
    }
    [new_head, &[old[cut].clone()], new_tail].concat()
}

/// A line without times, speeds, memory, hashes and errors that are rounding alone, which the processor decides.
pub fn masked(line: &str) -> String {
    let varies = Regex::new(
        r#"\d+(\.\d+)?(e-?\d+)? ?((ns|µs|ms|s|min|h)\b|[kMGT]?i?B/s|[kMG]i?B (of memory|resident))|peak memory [\d.]+ [kMG]?B|(seconds|gb_per_second|peak_resident_bytes)": [\d.e-]+|\b[0-9a-f]{16,}\b|\b\d(\.\d+)?e-([5-9]|\d\d)\b"#,
    );
    varies.unwrap().replace_all(line, "~").into_owned()
}

/// What a command prints, on both streams, and whether it succeeded.
fn run(folder: &Path, command: &str) -> (String, bool) {
    let program = Path::new(env!("CARGO_BIN_EXE_lorakit"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = vec![program.parent().unwrap().to_path_buf()];
    paths.extend(std::env::split_paths(&path));
    let command =
        if command.starts_with(THESE) { "true".to_owned() } else { command.replace(FROM_SOURCE.0, FROM_SOURCE.1) };
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("exec 2>&1\n{command}"))
        .current_dir(folder)
        .env("PATH", std::env::join_paths(paths).unwrap())
        .env("HOME", folder)
        .env("LC_ALL", "C.UTF-8")
        .env_remove("COLUMNS")
        .env_remove("HF_HOME")
        .env_remove("HF_HUB_CACHE")
        .output()
        .unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}
